"""Makes the comparison of a project's runs as a W&B report: accuracy against growth, forgetting, matrices, ranks.

Needs ``pip install wandb-workspaces`` (W&B's own, in public preview) and credentials:

    python scripts/wandb_report.py --entity ME --project cl-run --group convlora_cifar100
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

CURVES = {  # metric against the number of tasks learned: title
    "accuracy/mean_seen": "accuracy on the tasks seen",
    "forgetting/mean": "forgetting",
    "transfer/backward": "backward transfer",
    "parameters/growth": "parameter growth",
}
SCATTERS = {  # x, y of the summary: title
    ("parameter_growth", "acc"): "accuracy against parameter growth",
    ("trainable_parameters", "acc"): "accuracy against trainable parameters",
    ("forgetting", "learning_accuracy"): "stability against plasticity",
}
TRAINING = ("train/loss", "validation/accuracy")
PICTURES = ("pictures/accuracy_matrix", "pictures/layers")


def build(entity: str, project: str, group: str | None, by: Sequence[str]) -> Any:
    """The report, not saved yet.

    Args:
        entity: user or team.
        project: its project.
        group: only the runs of this group (an experiment); None for all.
        by: what runs of a curve have in common; the mean over the others is drawn with its range.
    """
    import wandb_workspaces.reports.v2 as wr

    def runs(grouped: bool) -> Any:
        filters = f"Metric('Group') == '{group}'" if group else ""
        return wr.Runset(entity=entity, project=project, filters=filters, groupby=list(by) if grouped else [])

    curves = [wr.LinePlot(title=title, x="task", y=[metric]) for metric, title in CURVES.items()]
    scatters = [
        wr.ScatterPlot(title=title, x=wr.SummaryMetric(x), y=wr.SummaryMetric(y)) for (x, y), title in SCATTERS.items()
    ]
    training = [wr.LinePlot(title=metric, x="train/step", y=[metric]) for metric in TRAINING]
    pictures = [wr.MediaBrowser(title=key.split("/")[1], media_keys=[key]) for key in PICTURES]
    return wr.Report(
        entity=entity,
        project=project,
        title=f"Continual learning: {group or project}",
        description="Made by scripts/wandb_report.py of cl-run. Accuracies are in [0, 1].",
        blocks=[
            wr.H2("Accuracy and what it costs"),
            wr.PanelGrid(runsets=[runs(grouped=False)], panels=scatters),
            wr.H2("Over the tasks"),
            wr.PanelGrid(runsets=[runs(grouped=True)], panels=curves),
            wr.H2("Accuracy matrix and rank per layer"),
            wr.PanelGrid(runsets=[runs(grouped=False)], panels=pictures),
            wr.H2("Training"),
            wr.PanelGrid(runsets=[runs(grouped=True)], panels=training),
        ],
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entity", required=True, help="user or team")
    parser.add_argument("--project", default="cl-run")
    parser.add_argument("--group", help="one experiment only")
    parser.add_argument(
        "--by", nargs="*", default=["run.jobType", "config.adapter.rank"], help="what a curve's runs share"
    )
    arguments = parser.parse_args(argv)
    try:
        report = build(arguments.entity, arguments.project, arguments.group, arguments.by)
    except ModuleNotFoundError as error:
        print(f"wandb_report: {error.name} is missing: pip install wandb-workspaces", file=sys.stderr)
        return 2
    report.save()
    print(report.url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
