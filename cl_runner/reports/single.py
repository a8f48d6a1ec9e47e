"""The report of a single run: `report.html` and `plots/*.png` in its folder, small and without a library.

A page of the comparison carries a plotting library of 2 MB; a sweep leaves one report a cell, so these hold their
pictures as SVG.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from cl_runner.errors import RequestError
from cl_runner.reports.collect import IDENTITY, Group, Run, read_run
from cl_runner.reports.details import detail
from cl_runner.reports.drawing import as_svg, save, style
from cl_runner.reports.losses import said
from cl_runner.reports.markup import (
    Heading,
    asset,
    chips,
    escape,
    figure,
    number,
    page,
    percent,
    script,
    table,
    words,
)
from cl_runner.reports.metrics import METRICS, shown_metric
from cl_runner.reports.run_figures import PICTURES

TITLES = {
    "matrix": "Accuracy matrix: accuracy (%) on each task, after each task",
    "tasks": "Accuracy and forgetting over tasks",
    "growth": "Parameter growth",
    "layers": "Rank per adapted layer",
    "probes": "Probe domains: accuracy after each task",
    "losses": "Loss on each task (nats a token), after each task",
}
_TILES = (
    "acc", "learning_accuracy", "forgetting", "bwt", "fwt", "retention", "loss", "delta_loss", "last_task_loss",
    "growth", "trainable", "stored", "adapter_parameters", "seconds", "memory",
)  # fmt: skip


def write_report(folder: Path) -> None:
    """Draws the report of a run whose tables and summary are written: at the end of every run, or later.

    Raises:
        OSError, ValueError, RequestError: a file of the run is damaged, or one of the report cannot be written.
    """
    run = read_run(folder)
    content, problems = detail(Group([run]))
    if problems:
        raise RequestError(problems[0])
    text = _page(run, content, _pictures(folder, content))
    partial = folder / ".report.html.partial"
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(folder / "report.html")
    except OSError:
        with contextlib.suppress(OSError):  # what is told is why the page could not be written
            partial.unlink()
        raise


def _pictures(folder: Path, content: dict[str, Any]) -> dict[str, str]:
    """Writes `plots/NAME.png` and returns the same as SVG; what a run has no numbers for is not drawn."""
    there = {
        "matrix": any(value is not None for row in [content["initial"], *content["matrix"]] for value in row),
        "tasks": any(value is not None for value in content["accuracy"]["mean"]),
        "growth": any(value is not None for value in content["parameters"]["growth"]),
        "layers": bool(content["ranks"]["layers"]),
        "probes": any(value is not None for row in content["probes"]["values"] for value in row),
        "losses": any(value is not None for row in content["losses"]["values"] for value in row),
    }
    drawn = {}
    for name, draw in PICTURES.items():
        if there[name]:
            with style():
                picture = draw([("", content)])
                save(picture, folder / "plots" / f"{name}.png", dpi=100)
                drawn[name] = as_svg(picture)
    return drawn


def _page(run: Run, content: dict[str, Any], pictures: dict[str, str]) -> str:
    summary = run.summary
    title = str(summary.get("experiment") or run.folder.name)
    status = str(summary.get("status"))
    names = [(key, str(summary.get(key) or "")) for key in IDENTITY if key != "experiment"]
    body = [f"<header><h1>{escape(title)}</h1>", chips([*names, ("seed", str(summary.get("seed")))])]
    if status != "done":
        reason = str(summary.get("error") or "")
        body.append(f'<p class="status-{escape(status)}">{escape(f"{status}: {reason}" if reason else status)}</p>')
    body.append("</header><main>")
    body.append(f'<div class="tiles">{"".join(_tile(run, name) for name in _TILES)}</div>')
    if run.command:
        body.append(f"<pre>{escape(run.command)}</pre>")
    body.append('<div class="cards">')
    body += [figure(name, said(TITLES[name], content["measure"]), svg) for name, svg in pictures.items()]
    body.append("</div>")
    body.append(f"<h2>Tasks</h2>{_tasks(content)}")
    if content["losses"]["values"]:
        body.append(f"<h2>Losses</h2>{_losses(content)}")
    if content["probes"]["domains"]:
        body.append(f"<h2>Probe domains</h2>{_probes(content['probes'])}")
    if content["classes"]:
        body.append(f"<h2>Classes</h2>{_classes(content)}")
    body.append(f"</main><footer>{escape(run.folder.resolve().name)}</footer>")
    return page(title, "\n".join(body), [script(asset("single.js"))])


def _tile(run: Run, name: str) -> str:
    metric = METRICS[name]
    value = run.summary.get(metric.key)
    return (
        ""
        if value is None
        else f'<div class="tile"><span>{metric.title}</span><b>{shown_metric(name, value)}</b></div>'
    )


def _tasks(content: dict[str, Any]) -> str:
    """What each task reached right after it and at the end, and what it took; joint training has one row of costs."""
    columns = content["parameters"]
    cost = {task: index for index, task in enumerate(columns["task"])}
    headings = ["task", "right after it (%)", "at the end (%)", "epochs", "best epoch", "trainable", "stored"]
    rows = []
    for index, name in enumerate(content["tasks"]):
        row = cost.get(float(index + 1))
        costs = [None if row is None else columns[key][row] for key in ("epochs", "best_epoch", "trainable", "stored")]
        learned, end = content["matrix"][index][index], content["matrix"][-1][index]
        accuracies = [number(value, percent(value)) for value in (learned, end)]
        rows.append([words(name), *accuracies, *(number(one, "" if one is None else f"{one:,.0f}") for one in costs)])
    return table([Heading(text, is_text=not index) for index, text in enumerate(headings)], rows, "tasks-table")


def _losses(content: dict[str, Any]) -> str:
    """Of texts: what each task's score is, and its loss right after it and at the end."""
    headings = [
        *("task", "score", "loss before any (nats a token)", "right after it", "at the end", "change"),
        *("perplexity at the end", "token accuracy at the end (%)", "tokens"),
    ]
    rows = []
    for name, values, one in zip(
        content["tasks"], content["losses"]["values"], content["losses"]["tasks"], strict=True
    ):
        learned, end = one["learned"]["loss"], one["end"]["loss"]
        change = None if learned is None or end is None else end - learned
        cells = [number(value, "" if value is None else f"{value:.4f}") for value in (values[0], learned, end)]
        cells.append(number(change, "" if change is None else f"{change:+.4f}"))
        perplexity, accuracy, tokens = (one["end"][key] for key in ("perplexity", "token_accuracy", "tokens"))
        cells.append(number(perplexity, "" if perplexity is None else f"{perplexity:,.2f}"))
        cells += [number(accuracy, percent(accuracy)), number(tokens, "" if tokens is None else f"{tokens:,.0f}")]
        rows.append([words(name), words(one["metric"].replace("_", " ")), *cells])
    return table([Heading(text, is_text=index < 2) for index, text in enumerate(headings)], rows, "losses-table")


def _probes(probes: dict[str, Any]) -> str:
    """What the network knew of domains that it never trains on, before any training and after the last task."""
    headings = ["domain", "before (%)", "at the end (%)", "change (points)", "at the end / before"]
    ends = [(values[0], values[-1]) for values in [*probes["values"], probes["mean"]]]
    shares = [None if end is None or not before else end / before for before, end in ends[:-1]]
    known = [share for share in shares if share is not None]
    # as in the summary: the mean of the shares, not the share of the means
    shares.append(sum(known) / len(known) if len(known) == len(shares) else None)
    rows = []
    for name, (before, end), share in zip([*probes["domains"], "mean"], ends, shares, strict=True):
        change = None if before is None or end is None else end - before
        cells = [number(before, percent(before)), number(end, percent(end)), number(change, percent(change, "+"))]
        rows.append([words(name), *cells, number(share, "" if share is None else f"{share:.4f}")])
    return table([Heading(text, is_text=not index) for index, text in enumerate(headings)], rows, "probes-table")


def _classes(content: dict[str, Any]) -> str:
    headings = ["class", "task", "right after its task (%)", "at the end (%)"]
    rows = [
        [
            words(one["name"]),
            words(content["tasks"][one["task"] - 1]),
            *(number(one[key], percent(one[key])) for key in ("learned", "end")),
        ]
        for one in content["classes"]
    ]
    return table([Heading(text, is_text=index < 2) for index, text in enumerate(headings)], rows, "classes-table")
