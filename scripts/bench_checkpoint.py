"""What checkpoints cost: the ResNet-20 with ConvLoRA and SGD on a stream of ten tasks of 32x32 images.

    python scripts/bench_checkpoint.py [--json FILE] [--images 1000] [--epochs 2] [--repeats 3] [--threads 2]

The images are random, in the place of CIFAR-100's. Printed: milliseconds and bytes of the checkpoints within a task
and after each task, what of the bytes are weights (after a task the base and the sets of all tasks so far, within one
those that it trains), and the share of the run's time that goes into a checkpoint after every epoch: as the run itself
counts it, and as the difference to runs that write none. The runs with and without take turns, so that a machine that
slows down slows both.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from bench_loop import machine

TASKS, CLASSES = 10, 100


def request(options: argparse.Namespace, root: Path) -> list[str]:
    return [
        "benchmark=split_cifar100", f"benchmark.n_tasks={TASKS}", "benchmark.validation_fraction=0.1",
        "backbone=resnet20", "adapter=convlora", "optimizer=sgd", "evaluate=last", f"trainer.epochs={options.epochs}",
        f"trainer.threads={options.threads}", "trainer.device=cpu", "trainer.checkpoint_minutes=null",
        "trainer.checkpoint_epochs=1", "quiet=true", "report=false", f"output_root={root}",
    ]  # fmt: skip


def random_images(per_class: int, tests: int = 2) -> Any:
    """CIFAR-100 with other images."""
    from cl_runner.benchmarks.sources.cifar import Cifar100
    from cl_runner.benchmarks.sources.source import Facts, ImageData, Labels

    draw = np.random.default_rng(0)
    labels = [np.repeat(np.arange(CLASSES), count) for count in (per_class, tests)]
    images = [draw.integers(0, 256, (len(part), 32, 32, 3), dtype=np.uint8) for part in labels]
    names = tuple(f"class {label}" for label in range(CLASSES))
    facts = Facts(CLASSES, (3, 32, 32), len(labels[0]), len(labels[1]), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return mock.patch.multiple(
        Cifar100,
        facts=lambda self: facts,
        find=lambda self: "random",
        place=lambda self: Path(__file__),
        verify=lambda self, progress=None: "random",
        load=lambda self, progress=None: ImageData(images[0], labels[0], images[1], labels[1], names),
        labels=lambda self: Labels(labels[0], labels[1], names),
    )


def one_run(options: argparse.Namespace, *, keeping: bool) -> dict[str, Any]:
    """Runs the request; what its checkpoints cost, and the whole."""
    from cl_runner import learning
    from cl_runner.config.compose import compose
    from cl_runner.keeping.keeper import Keeper
    from cl_runner.runner import run

    written: list[dict[str, Any]] = []
    keepers: list[Keeper] = []
    learn, write = learning.learn, Keeper._write

    def learned(*given: Any, checkpoints: Any = None, **named: Any) -> Any:
        return learn(*given, checkpoints=checkpoints if keeping else None, **named)

    def timed(self: Keeper, where: str, *given: Any, **named: Any) -> int:
        started = time.perf_counter()
        number = write(self, where, *given, **named)
        seconds = time.perf_counter() - started
        folder = self._checkpoints.folder  # type: ignore[union-attr]
        size = sum(place.stat().st_size for place in folder.glob(f"{number:06d}.*"))
        written.append({"where": where, "milliseconds": 1000 * seconds, "bytes": size})
        keepers[:] = [self]
        return number

    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        root = Path(place)
        overrides = request(options, root)
        with mock.patch.object(learning, "learn", learned), mock.patch.object(Keeper, "_write", timed):
            started = time.perf_counter()
            result = run(compose(overrides), experiment="bench", overrides=overrides)
            seconds = time.perf_counter() - started
        with (result.folder / "parameters.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
    wall = float(result.summary["wall_seconds"])
    return {
        "seconds": seconds,
        "wall_seconds": wall,
        "writing": keepers[0].seconds_writing if keeping else 0.0,
        "training_seconds": sum(float(row["seconds"]) for row in rows),
        "checkpoints": written,
        "stored": [4 * int(row["stored"]) for row in rows],
        "trained": [4 * int(row["trainable"]) for row in rows],
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Runs with and without in turn."""
    runs: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    per_class = -(-options.images * TASKS // (CLASSES * 9) * 10)  # a tenth is held out
    with random_images(per_class):
        for repeat in range(options.repeats):
            for keeping in (True, False) if repeat % 2 else (False, True):
                runs[keeping].append(one_run(options, keeping=keeping))
                print(f"  {'with' if keeping else 'without':<8}{runs[keeping][-1]['wall_seconds']:8.1f} s", flush=True)
    return summarised(runs)


def summarised(runs: dict[bool, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians and spreads over the repeats."""
    kept = runs[True]
    rows = []
    for place, first in enumerate(kept[0]["checkpoints"]):
        took = [run["checkpoints"][place]["milliseconds"] for run in kept]
        words = first["where"].replace(",", "").split()
        task = int(words[2]) if words[2].isdecimal() else 0
        whole = task > 0 and words[-1] != "evaluated"  # else what it stands on holds the weights
        weights = kept[0]["trained" if words[0] == "in" else "stored"][task - 1] if whole else 0
        rows.append({
            "where": first["where"], "milliseconds": statistics.median(took), "spread": [min(took), max(took)],
            "bytes": first["bytes"], "weights": weights, "beyond": first["bytes"] - weights,
        })  # fmt: skip
    shares = [run["writing"] / run["wall_seconds"] for run in kept]
    ratios = [a["wall_seconds"] / b["wall_seconds"] for a, b in zip(kept, runs[False], strict=True)]
    return {
        "checkpoints": rows,
        "share": statistics.median(shares), "share_spread": [min(shares), max(shares)],
        "ratio": statistics.median(ratios), "ratio_spread": [min(ratios), max(ratios)],
        "wall_seconds": {"with": [run["wall_seconds"] for run in kept],
                         "without": [run["wall_seconds"] for run in runs[False]]},
    }  # fmt: skip


def report(found: dict[str, Any], options: argparse.Namespace) -> None:
    print(f"\nn = {options.repeats}, {options.images} images in an epoch of a task, {options.epochs} epochs")
    print(f"{'checkpoint':<28}{'ms':>8}{'(spread)':>18}{'bytes':>12}{'weights':>12}{'beyond them':>14}")
    for row in found["checkpoints"]:
        spread = f"({row['spread'][0]:.0f} to {row['spread'][1]:.0f})"
        print(
            f"{row['where']:<28}{row['milliseconds']:>8.1f}{spread:>18}{row['bytes']:>12,}"
            f"{row['weights']:>12,}{row['beyond']:>14,}"
        )
    low, high = found["share_spread"]
    print(f"of the run's time, as it counts it: {found['share']:.2%} ({low:.2%} to {high:.2%})")
    low, high = found["ratio_spread"]
    print(f"time with checkpoints / without:    {found['ratio']:.3f} ({low:.3f} to {high:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--images", type=int, default=1000, help="training images of a task (CIFAR-100 has 4500)")
    parser.add_argument("--epochs", type=int, default=2, help="of each task")
    parser.add_argument("--repeats", type=int, default=3, help="of each, in turn")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--folder", type=Path, help="where the runs go, for the disk's sake; default: the system's")
    options = parser.parse_args()
    described = machine(options) | {"cores": os.cpu_count(), "load": os.getloadavg()}
    print(json.dumps(described, indent=1))
    found = measure(options)
    report(found, options)
    if options.json:
        options.json.write_text(json.dumps({"machine": described} | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
