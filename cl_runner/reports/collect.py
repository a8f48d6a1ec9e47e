"""Finds run folders and groups the runs that differ in nothing but their seed."""

from __future__ import annotations

import csv
import json
import os
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cl_runner.errors import RequestError

IDENTITY = ("experiment", "benchmark", "backbone", "adapter", "strategy")
FIGURES = ("acc", "bwt", "forgetting", "parameter_growth", "wall_seconds")
NOT_SETTINGS = {
    "seed", "output_root", "quiet", "resume", "checkpoint", "data_root", "tracking", "launcher", "hydra",
    "trainer.device", "trainer.threads",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run folder: its ``summary.json`` and the settings of its ``config.yaml``, seed and places left out.

    ``settings`` maps dotted keys to values; None where there is no readable ``config.yaml``. ``typed`` is what was
    typed besides the parts that have a column of their own; None where there is no ``overrides.yaml``.
    """

    folder: Path
    summary: dict[str, Any]
    settings: dict[str, Any] | None
    written: float
    typed: tuple[str, ...] | None = None

    def setting(self, key: str) -> Any:
        """Returns the value at a dotted key of the configuration; None where there is none."""
        return (self.settings or {}).get(key)

    def matrix(self) -> list[list[float | None]]:
        """Returns the T x T accuracies in [0, 1] of ``accuracy_matrix.csv``, row i after task i; None = not evaluated.

        Raises:
            RequestError: there is no such file, or it holds something else.
        """
        header, *rows = _lines(self.folder / "accuracy_matrix.csv")
        try:
            cells = {int(row[0]): [float(cell) if cell else None for cell in row[1:]] for row in rows}
        except ValueError as error:
            raise RequestError(f"{self.folder / 'accuracy_matrix.csv'} is damaged: {error}") from error
        unknown: list[float | None] = [None] * (len(header) - 1)
        return [cells.get(task, unknown) for task in range(1, len(header))]

    def rank_curve(self) -> dict[float, float]:
        """Returns the accuracy in [0, 1], mean over the tasks, at every rank of ``rank_curve.csv``.

        Raises:
            RequestError: there is no such file, or it holds something else.
        """
        place = self.folder / "rank_curve.csv"
        if not place.is_file():
            raise RequestError(f"{self.folder} has no rank_curve.csv", "only runs evaluated at several ranks have one")
        header, *rows = _lines(place)
        at_rank: dict[float, list[float]] = defaultdict(list)
        try:
            rank, accuracy = header.index("rank"), header.index("accuracy")
            for row in rows:
                at_rank[float(row[rank])].append(float(row[accuracy]))
        except (ValueError, IndexError) as error:
            raise RequestError(f"{place} is damaged: {error}") from error
        return {key: statistics.fmean(at_rank[key]) for key in sorted(at_rank)}


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but their seed, one a seed."""

    runs: list[Run]
    settings: str = ""

    def identity(self, key: str) -> str:
        """Returns what the runs used, e.g. the name of the backbone."""
        return str(self.runs[0].summary.get(key) or "")

    def values(self, key: str) -> list[float] | None:
        """Returns the values of a key of the summary; None where a run has none."""
        values = [run.summary.get(key) for run in self.runs]
        return (
            None if any(value is None for value in values) else [float(value) for value in values if value is not None]
        )

    def mean(self, key: str) -> float | None:
        """Returns the mean over the seeds."""
        values = self.values(key)
        return None if values is None else statistics.fmean(values)

    def deviation(self, key: str) -> float | None:
        """Returns the sample standard deviation (n - 1) over the seeds; None for one seed."""
        values = self.values(key)
        return None if values is None or len(values) < 2 else statistics.stdev(values)


def find_runs(paths: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Reads every run folder (a folder with a ``summary.json``) at or below ``paths``.

    Returns:
        The runs in the order of their paths, each once, and a sentence for every one that cannot be read.
    """
    runs: dict[Path, Run] = {}
    problems = []
    for folder in (folder for path in paths for folder in _folders(Path(path))):
        try:
            runs.setdefault(folder.resolve(), _read(folder))
        except (OSError, ValueError, yaml.YAMLError) as error:
            problems.append(f"{folder} left out: {str(error).splitlines()[0]}")
    return list(runs.values()), problems


def group_runs(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Groups the finished runs by everything but their seed; of two runs with one seed the newer one counts.

    Returns:
        The groups in the order of the runs, and a sentence for every run that is left out.
    """
    problems = []
    cells: dict[Any, dict[Any, Run]] = defaultdict(dict)
    for run in runs:
        if run.summary.get("status") != "done":
            problems.append(f"{run.folder} left out: its status is {run.summary.get('status')}")
            continue
        # without a configuration nobody knows what a run shares with another one
        settings = str(run.folder) if run.settings is None else json.dumps(run.settings, sort_keys=True, default=str)
        cell = cells[(*(run.summary.get(key) for key in IDENTITY), settings)]
        seed = run.summary.get("seed")
        other = cell.get(seed)
        if other is not None:
            old, run = sorted((other, run), key=lambda one: one.written)
            problems.append(f"{old.folder} left out: {run.folder} has the same settings and seed and is newer")
        cell[seed] = run
    groups = [list(cell.values()) for cell in cells.values()]
    return [Group(group, settings) for group, settings in zip(groups, _settings(groups), strict=True)], problems


def _settings(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Returns what was typed for each group, without what was typed for all; where that tells nothing, the difference.

    What was typed is what differs from the experiment's defaults, in the words of the command line.
    """
    typed = [group[0].typed for group in groups]
    everywhere = set.intersection(*(set(one or ()) for one in typed)) if typed else set()
    texts = [" ".join(item for item in one or () if item not in everywhere) for one in typed]
    rows = [(*(group[0].summary.get(key) for key in IDENTITY), text) for group, text in zip(groups, texts, strict=True)]
    return [
        text if one is not None and rows.count(row) == 1 else _difference(group[0], groups)
        for group, one, text, row in zip(groups, typed, texts, rows, strict=True)
    ]


def _difference(run: Run, groups: Sequence[Sequence[Run]]) -> str:
    """Returns what sets a run apart from those of the same experiment, benchmark, ... in other groups."""
    alike = [one[0] for one in groups if all(one[0].summary.get(key) == run.summary.get(key) for key in IDENTITY)]
    if len(alike) == 1:
        return ""
    if any(one.settings is None for one in alike):
        return str(run.folder)
    settings = [one.settings or {} for one in alike]
    keys = dict.fromkeys(key for one in settings for key in one)
    differing = [key for key in keys if len({json.dumps(one.get(key), default=str) for one in settings}) > 1]
    return ", ".join(f"{key}={(run.settings or {}).get(key)}" for key in differing)


def _folders(path: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(path):
        below.sort()
        if "summary.json" in files:
            below.clear()  # checkpoints and plots hold no further runs
            yield Path(folder)


def _read(folder: Path) -> Run:
    place = folder / "summary.json"
    try:
        summary = json.loads(place.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"summary.json is damaged ({error})") from None
    if not isinstance(summary, dict):
        raise ValueError("summary.json holds no JSON object")
    config_file = folder / "config.yaml"
    config = yaml.safe_load(config_file.read_text(encoding="utf-8")) if config_file.exists() else None
    settings = None
    if isinstance(config, dict):
        settings = {key: value for key, value in _flat(config).items() if not _idle(key)}
    wrong = [key for key in FIGURES if not isinstance(summary.get(key), int | float | None)]
    if wrong:
        raise ValueError(f"summary.json: {wrong[0]} is {summary[wrong[0]]!r}, not a number")
    return Run(folder, summary, settings, place.stat().st_mtime, _typed(folder / "overrides.yaml"))


def _lines(place: Path) -> list[list[str]]:
    """The rows of a CSV file, its header first; no empty ones."""
    try:
        with place.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except OSError as error:
        raise RequestError(f"{place} cannot be read: {(error.strerror or str(error)).lower()}") from error
    if not rows:
        raise RequestError(f"{place} is empty")
    return rows


def _typed(place: Path) -> tuple[str, ...] | None:
    """What was typed, but for the choices that have columns and what does not change a result."""
    if not place.exists():
        return None
    typed = yaml.safe_load(place.read_text(encoding="utf-8"))
    if not isinstance(typed, list):
        return None
    shown = {*IDENTITY, "backbone.name"}
    kept = []
    for item in map(str, typed):
        key = item.lstrip("+~").split("=")[0]
        if key not in shown and not _idle(key):
            kept.append(item)
    return tuple(sorted(kept))


def _idle(key: str) -> bool:
    """Whether a dotted key, or the group it belongs to, does not change a result."""
    return key in NOT_SETTINGS or key.split(".")[0] in NOT_SETTINGS


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
