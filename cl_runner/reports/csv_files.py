"""CSV files of run folders, and the rank curve among them: read once, for all that look at it."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from cl_runner.errors import RequestError

Number = float | None


@dataclass(frozen=True)
class AtRank:
    """One task (from 1), evaluated with the network cut to a rank after `after_task` tasks; None = not evaluated.

    `accuracy` is in [0, 1], `loss` in nats a token and of texts only.
    """

    rank: float
    task: int
    after_task: int
    accuracy: Number
    loss: Number


def csv_lines(place: Path) -> list[list[str]]:
    """Returns the rows of a CSV file, its header first; no empty ones.

    Raises:
        RequestError: the file is missing, cannot be read or is empty.
    """
    try:
        with place.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        raise RequestError(f"{place} cannot be read: {(error.strerror or str(error)).lower()}") from error
    if not rows:
        raise RequestError(f"{place} is empty")
    return rows


def read_rank_curve(folder: Path) -> list[AtRank]:
    """Reads `rank_curve.csv`; what does not say after which task is from after the last one.

    Files of older runs have no column for that, nor for losses.

    Raises:
        RequestError: there is no such file, or it holds something else.
    """
    place = folder / "rank_curve.csv"
    if not place.is_file():
        raise RequestError(f"{folder} has no rank_curve.csv", "only runs evaluated at several ranks have one")
    header, *lines = csv_lines(place)
    try:
        rows = [dict(zip(header, line, strict=True)) for line in lines]
        last = max((int(row["task"]) for row in rows), default=0)  # every task is evaluated at every rank
        return [
            AtRank(
                float(row["rank"]),
                int(row["task"]),
                int(row.get("after_task") or last),
                number(row["accuracy"]),
                number(row.get("loss", "")),
            )
            for row in rows
        ]
    except (ValueError, KeyError) as error:
        raise RequestError(f"{place} is damaged: {error}") from error


def number(cell: str) -> Number:
    """Returns the number in a cell; None for an empty one."""
    return float(cell) if cell else None
