"""What the tests of sweeps share: small cells, a folder of their own, and what ran and what lies there."""

from __future__ import annotations

import csv
from pathlib import Path

import yaml

QUICK = [
    "trainer.epochs=1", "benchmark.per_class=5", "benchmark.n_tasks=2", "backbone.width=4", "trainer.device=cpu",
    "trainer.threads=1", "strategy=naive", "report=false",
]  # fmt: skip
CELLS = Path("outputs/sweeps/quickstart")


def cells() -> dict[int, Path]:
    """The cells on disk by their seed."""
    return {yaml.safe_load(file.read_text())["seed"]: file.parent for file in CELLS.glob("*/config.yaml")}


def rows(file: Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


def matrices() -> dict[int, str]:
    """The accuracy matrices of the cells that are done, by their seed."""
    return {
        seed: (cell / "accuracy_matrix.csv").read_text() for seed, cell in cells().items() if (cell / "DONE").exists()
    }
