"""Seconds a cell of a sweep: the quickstart's 24 cells in one process, and other ways to run the same cells.

    python scripts/bench_sweep.py                     # 24 cells in one process; 3 of them as processes of their own
    python scripts/bench_sweep.py --seeds 8           # also 8 seeds: alone, one after another, in turn, stacked
    python scripts/bench_sweep.py --cells 0 --processes 0 --seeds 8 --frozen --case resnet20 --device cuda

Everything is written to a temporary folder. `--frozen` first trains a network and exports its weights; the seeds then
share them as a frozen base (`backbone.pretrained=FILE`). Seconds a cell are those between the lines that are written
when one has ended: they hold everything, composing, training, evaluation, checkpoints and the report. The seconds of
seeds are those from the first event of the first to the last of the last, without imports and reports.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

GRID = ["seed=0,1,2,3,4,5,6,7", "adapter.rank=1,2,4"]
CASES = {"small": [], "resnet20": ["backbone=resnet20", "trainer.epochs=2"]}


def main() -> None:
    """Runs what is asked for and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=24, help="cells in one process, 0 to 24; 0: leave it out")
    parser.add_argument("--processes", type=int, default=3, help="of these, as processes of their own")
    parser.add_argument("--seeds", type=int, default=0, help="seeds of the comparison of launchers; 0: leave it out")
    parser.add_argument("--case", choices=sorted(CASES), default="small")
    parser.add_argument("--frozen", action="store_true", help="the seeds share a frozen base that was trained before")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="trainer.threads; 0: as many as there are")
    parser.add_argument("--epochs", type=int, default=0, help="trainer.epochs of the seeds")
    parser.add_argument("--repeats", type=int, default=3, help="of the comparison of launchers, the ways taking turns")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    found: dict[str, Any] = {"machine": machine(asked.device)}
    common = [f"trainer.device={asked.device}", *([f"trainer.threads={asked.threads}"] if asked.threads else [])]
    with tempfile.TemporaryDirectory() as place:
        if asked.cells:
            found["sweep"] = sweep(Path(place), asked.cells, common)
        if asked.processes:
            found["processes"] = processes(Path(place), asked.processes, common)
        if asked.seeds:
            epochs = [f"trainer.epochs={asked.epochs}"] if asked.epochs else []
            cells = [*common, *CASES[asked.case], *epochs]
            found["launchers"] = launchers(Path(place), cells, asked)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n")


def machine(device: str) -> dict[str, Any]:
    """Hardware and versions."""
    versions = {name: version(name) for name in ("torch", "avalanche-lib", "hydra-core", "matplotlib", "numpy")}
    name = platform.processor() or platform.machine()
    if device.startswith("cuda"):
        import torch

        name = torch.cuda.get_device_name()
    return {"device": name, "cores": os.cpu_count(), "python": platform.python_version(), **versions}


def spread(values: list[float]) -> dict[str, Any]:
    """n, median and spread, in seconds."""
    low, high = (min(values), max(values)) if values else (None, None)
    middle = statistics.median(values) if values else None
    return {"n": len(values), "median": middle, "least": low, "most": high}


def command(place: Path, *typed: str) -> list[str]:
    """A `cl-run` process that writes below a folder."""
    return [sys.executable, "-m", "cl_runner.cli", *typed, f"output_root={place}"]


def sweep(place: Path, most: int, common: list[str]) -> dict[str, Any]:
    """The grid in one process; seconds from one cell's end to the next one's."""
    grid = GRID if most >= 24 else [f"seed={','.join(map(str, range(most)))}"]
    ends = [time.perf_counter()]
    typed = command(place / "sweep", "-m", *grid, *common)
    with subprocess.Popen(typed, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("cell ") and "acc" in line:
                ends.append(time.perf_counter())
    assert process.returncode == 0
    each = [after - before for before, after in zip(ends, ends[1:], strict=False)]
    return {"first_with_start": each[0], "after_the_first": spread(each[1:]), "whole": time.perf_counter() - ends[0]}


def processes(place: Path, count: int, common: list[str]) -> dict[str, Any]:
    """Some of the same cells, each a process of its own, one after another."""
    return spread([timed(command(place / "alone", f"seed={seed}", *common, "quiet=true")) for seed in range(count)])


def launchers(place: Path, cells: list[str], asked: argparse.Namespace) -> dict[str, Any]:
    """One seed, and several: one after another, in turn, stacked."""
    if asked.frozen:
        weights = place / "base.safetensors"
        subprocess.run(command(place / "base", *cells, "adapter=none", "quiet=true", f"export={weights}"), check=True,
                       capture_output=True)  # fmt: skip
        cells = [*cells, f"backbone.pretrained={weights}"]
    seeds = f"seed={','.join(map(str, range(asked.seeds)))}"
    ways = {
        "one": ["seed=0"],
        "basic": [seeds],
        "interleaved": [seeds, "launcher=gpu_shared", "hydra.launcher.mode=interleaved"],
        "stacked": [seeds, "launcher=gpu_shared", "hydra.launcher.mode=stacked"],
    }
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for repeat in range(asked.repeats):
        for way, typed in ways.items():
            more = [f"hydra.launcher.cells={asked.seeds}"] if "launcher=gpu_shared" in typed else []
            root = place / f"{way}_{repeat}"
            timed(command(root, "-m", *typed, *more, *cells, "quiet=true", "report=false"))
            taken[way].append(training_seconds(root))
    table: dict[str, Any] = {way: spread(seconds) for way, seconds in taken.items()}
    for way in ("basic", "interleaved", "stacked"):
        table[way]["times_one"] = table[way]["median"] / table["one"]["median"]
    return {"seeds": asked.seeds, "case": asked.case, "frozen": asked.frozen} | table


def training_seconds(root: Path) -> float:
    """Seconds from the first event of a sweep's cells to the last one, so without imports."""
    times = []
    for file in root.glob("sweeps/*/*/events.jsonl"):
        events = [json.loads(line) for line in file.read_text().splitlines()]
        times += [event["time"] for event in (events[0], events[-1])]
    return max(times) - min(times)


def timed(typed: list[str]) -> float:
    """Seconds that a process takes."""
    began = time.perf_counter()
    subprocess.run(typed, check=True, capture_output=True)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
