"""How a run's cost grows with its tasks: a stream of fifty, with a set per task, with one set for all, and with none.

    python scripts/bench_growth.py [--methods convlora lora none] [--json FILE] [--csv FILE] [--plot FILE]
    python scripts/bench_growth.py --read FILE --plot FILE        draws the figures of an earlier call again

Every method is a whole run of cl-run, checkpoints included, on random 32x32 images in the place of CIFAR-100's, 50
tasks of two classes. After each task the tasks so far are evaluated. Measured after each task: seconds of training,
seconds of evaluation and the number of test images evaluated, resident memory of the process and bytes of what the
network stores, seconds and bytes of the task's checkpoints. Each is fitted by a line over the tasks: the slope, and the
median of the last ten tasks by that of the first ten. The first task is left out: there libraries warm up, and the base
learns.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from bench_checkpoint import random_images
from bench_loop import machine

METHODS = {"convlora": "ConvLoRA, a set per task", "lora": "LoRA, one set", "none": "no adapter"}
COLUMNS = (
    "task", "train_seconds", "evaluation_seconds", "test_images", "resident_bytes", "stored_bytes",
    "checkpoint_seconds", "checkpoint_bytes",
)  # fmt: skip
END = 10  # tasks at either end that are compared
COLOURS = {"convlora": "#0072B2", "lora": "#D55E00", "none": "#009E73"}  # Okabe and Ito's, for every kind of sight
MARKS = {"convlora": "o", "lora": "s", "none": "^"}


def request(options: argparse.Namespace, method: str, root: Path) -> list[str]:
    return [
        "benchmark=split_cifar100", f"benchmark.n_tasks={options.tasks}", "benchmark.validation_fraction=0",
        f"adapter={method}", "evaluate=seen", f"trainer.epochs={options.epochs}", f"trainer.threads={options.threads}",
        "trainer.device=cpu", "trainer.checkpoint_minutes=null", "quiet=true", "report=false", f"output_root={root}",
        *(["adapter.base=first_task"] if method != "none" else []), *options.typed,
    ]  # fmt: skip


def one_run(options: argparse.Namespace, method: str) -> list[dict[str, float]]:
    """A row a task."""
    from cl_runner import learning
    from cl_runner.config.compose import compose
    from cl_runner.keeping.keeper import Keeper
    from cl_runner.runner import run

    rows: list[dict[str, float]] = []
    spent: dict[str, float] = dict.fromkeys(("train", "evaluate", "write"), 0.0)
    written: list[int] = []
    keep, train, evaluate = Keeper._write, learning._train, learning.Run.evaluate

    def kept(self: Keeper, where: str, *given: Any, **named: Any) -> int:
        started = time.perf_counter()
        number = keep(self, where, *given, **named)
        spent["write"] += time.perf_counter() - started
        folder = self._checkpoints.folder  # type: ignore[union-attr]
        written.append(sum(place.stat().st_size for place in folder.glob(f"{number:06d}.*")))
        if where.endswith("evaluated"):
            rows[-1] |= {"checkpoint_seconds": spent["write"], "checkpoint_bytes": sum(written)}
            gc.collect()
            rows[-1]["resident_bytes"] = resident()
            spent["write"] = 0.0
            written.clear()
        return number

    def trained(*given: Any) -> Any:
        spent["write"] = 0.0
        written.clear()
        started = time.perf_counter()
        row = train(*given)
        rows.append({"task": len(rows) + 1, "train_seconds": time.perf_counter() - started})
        rows[-1]["stored_bytes"] = 4 * row["stored"]
        return row

    def evaluated(self: Any, tasks_seen: int) -> None:
        started = time.perf_counter()
        evaluate(self, tasks_seen)
        if rows:
            rows[-1]["evaluation_seconds"] = time.perf_counter() - started
            rows[-1]["test_images"] = sum(task.n_test for task in self.stage.stream.tasks[:tasks_seen])

    with tempfile.TemporaryDirectory() as place:
        overrides = request(options, method, Path(place))
        with (
            random_images(options.images, options.images // 2),
            mock.patch.object(Keeper, "_write", kept),
            mock.patch.object(learning, "_train", trained),
            mock.patch.object(learning.Run, "evaluate", evaluated),
        ):
            run(compose(overrides), experiment="growth", overrides=overrides)
    return rows


def resident() -> int:
    """Bytes of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def fitted(rows: list[dict[str, float]], of: str, over: str = "task") -> dict[str, float]:
    """The line through a column over another, and how its ends compare, from the second task on."""
    x, y = (np.array([row[key] for row in rows[1:]], dtype=float) for key in (over, of))
    slope, offset = np.polyfit(x, y, 1)
    spread = float(((y - y.mean()) ** 2).sum())
    share = 1 - float(((y - slope * x - offset) ** 2).sum()) / spread if spread else 1.0
    ends = min(END, len(y) // 2)
    return {
        "slope": float(slope),
        "offset": float(offset),
        "explained": share,
        "last_by_first": float(np.median(y[-ends:]) / np.median(y[:ends])),
    }


def report(method: str, rows: list[dict[str, float]]) -> dict[str, Any]:
    found = {
        "training": fitted(rows, "train_seconds"),
        "evaluation": fitted(rows, "evaluation_seconds", "test_images"),
        "resident": fitted(rows, "resident_bytes"),
        "stored": fitted(rows, "stored_bytes"),
        "checkpoint_seconds": fitted(rows, "checkpoint_seconds"),
        "checkpoint_bytes": fitted(rows, "checkpoint_bytes"),
    }
    units = {
        "training": (1e3, "ms a task"), "evaluation": (1e6, "us a test image"), "resident": (1e-3, "kB a task"),
        "stored": (1e-3, "kB a task"), "checkpoint_seconds": (1e3, "ms a task"),
        "checkpoint_bytes": (1e-3, "kB a task"),
    }  # fmt: skip
    print(f"\n{METHODS[method]}: {len(rows)} tasks")
    print(f"  {'':20s}{'at the start':>14s}{'slope':>12s}{'':18s}{'r^2':>6s}  last ten / first ten tasks")
    for name, line in found.items():
        factor, unit = units[name]
        print(
            f"  {name:20s}{line['offset'] * factor:14,.1f}{line['slope'] * factor:12.3f} {unit:17s}"
            f"{line['explained']:6.3f}  {line['last_by_first']:.3f}"
        )
    return found


def draw(runs: dict[str, list[dict[str, float]]], place: Path) -> None:
    """Four panels: training, evaluation, memory, checkpoints."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    panels = (
        (axes[0, 0], "Training", "task", "task", "train_seconds", 1, "seconds for the task"),
        (axes[0, 1], "Evaluation", "test_images", "test images evaluated", "evaluation_seconds", 1, "seconds"),
        (axes[1, 0], "What is stored", "task", "tasks learned", "stored_bytes", 1e-6, "megabytes of weights"),
        (axes[1, 1], "Checkpoints", "task", "task", "checkpoint_seconds", 1e3, "milliseconds for the task"),
    )
    for axis, title, over, label, of, factor, unit in panels:
        for method, rows in runs.items():
            shown = rows[1:]
            x, y = [row[over] for row in shown], [factor * row[of] for row in shown]
            line = fitted(rows, of, over)
            axis.plot(x, y, MARKS[method], color=COLOURS[method], markersize=3.5, label=METHODS[method])
            ends = [min(x), max(x)]
            axis.plot(
                ends, [factor * (line["offset"] + line["slope"] * end) for end in ends], color=COLOURS[method], lw=1
            )
        axis.set(title=title, xlabel=label, ylabel=unit)
        axis.set_ylim(bottom=0, top=1.15 * max(factor * row[of] for rows in runs.values() for row in rows[1:]))
        axis.grid(alpha=0.3)
    axes[0, 0].legend(loc="lower right", frameon=False)
    figure.suptitle("Fifty tasks: points are measured, lines fitted from the second task on", fontsize=11)
    place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(place, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--images", type=int, default=40, help="training images of a class; test images are half of it")
    parser.add_argument("--epochs", type=int, default=3, help="of each task")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--typed", nargs="*", default=[], help="further overrides of cl-run")
    parser.add_argument("--json", type=Path, help="adds the figures to this file")
    parser.add_argument("--csv", type=Path, help="write the rows to this file")
    parser.add_argument("--plot", type=Path, help="draw the rows")
    parser.add_argument("--read", type=Path, help="measure nothing, take the rows of this JSON file")
    options = parser.parse_args()
    source = options.read or options.json
    found = json.loads(source.read_text()) if source and source.exists() else {"runs": {}, "lines": {}}
    if not options.read:
        found["machine"] = machine(options) | {"images": options.images, "epochs": options.epochs}
        print(json.dumps(found["machine"], indent=1))
        for method in options.methods:
            found["runs"][method] = one_run(options, method)
    for method, rows in found["runs"].items():
        found["lines"][method] = report(method, rows)
    if options.json and not options.read:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.csv:
        with options.csv.open("w", newline="") as file:
            table = csv.DictWriter(file, ["method", *COLUMNS])
            table.writeheader()
            table.writerows({"method": method, **row} for method, rows in found["runs"].items() for row in rows)
    if options.plot:
        draw(found["runs"], options.plot)


if __name__ == "__main__":
    main()
