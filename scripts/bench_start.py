"""From the command to the first training step of the quickstart, beside the imports that nothing can avoid.

    python scripts/bench_start.py [--json FILE] [--repeats 5] [--threads 2] [KEY=VALUE ...]

Every figure is the wall time of a process of its own, from the moment it is started: `cl-run --help`; a process that
imports torch, Avalanche and Hydra and does nothing else, as Python does it and without Python's search for garbage,
which cl-run leaves out while it imports; `cl-run` until its first task is about to be trained (the event
`task_started`); and until its process has ended. They take turns; the first round is not counted. Printed: medians with
their spread, and what the command takes above the imports of the same round.
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
from importlib import metadata
from pathlib import Path
from typing import Any

COMMAND = str(Path(sys.executable).parent / "cl-run")
IMPORTS = "import torch, avalanche.training.supervised, avalanche.benchmarks, hydra; import os; os._exit(0)"
ROWS = {
    "help": "cl-run --help",
    "imports": "unavoidable imports",
    "imports_without_gc": "the same without the search for garbage",
    "first_step": "cl-run, to the first training step",
    "end": "cl-run, to the end",
    "above": "first step above the imports",
    "above_without_gc": "first step above the imports without the search",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds, after one that is not counted")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("overrides", nargs="*", help="what is typed after cl-run; nothing: the quickstart")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    figures: dict[str, Any] = {"machine": machine(options)}
    print(json.dumps(figures["machine"], indent=1))
    rounds = [measure(options.overrides) for _ in range(options.repeats + 1)][1:]
    print(f"\n{'seconds, median of ' + str(options.repeats):<50} median  (min to max)")
    for name, title in ROWS.items():
        values = [one[name] for one in rounds]
        middle, least, most = statistics.median(values), min(values), max(values)
        figures[name] = {"median": middle, "min": least, "max": most, "n": len(values)}
        print(f"{title:<50} {middle:6.2f}  ({least:.2f} to {most:.2f})")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(overrides: list[str]) -> dict[str, float]:
    """One round: seconds by name."""
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "help": seconds([COMMAND, "--help"], folder),
            "imports": seconds([sys.executable, "-c", IMPORTS], folder),
            "imports_without_gc": seconds([sys.executable, "-c", f"import gc; gc.disable(); {IMPORTS}"], folder),
        }
        began = time.time()
        found["end"] = seconds([COMMAND, "quiet=true", *overrides], folder)
        (log,) = Path(folder).glob("outputs/*/*/events.jsonl")
        events = map(json.loads, log.read_text().splitlines())
        found["first_step"] = next(item["time"] for item in events if item["event"] == "task_started") - began
    found["above"] = found["first_step"] - found["imports"]
    found["above_without_gc"] = found["first_step"] - found["imports_without_gc"]
    return found


def seconds(command: list[str], folder: str) -> float:
    """The wall time of a command in a folder."""
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Hardware and versions."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    names = ("torch", "torchvision", "avalanche-lib", "hydra-core", "numpy")
    return {
        "cpu": cpu, "cores": os.cpu_count(), "threads": options.threads, "python": platform.python_version(),
        **{name: metadata.version(name) for name in names},
    }  # fmt: skip


if __name__ == "__main__":
    main()
