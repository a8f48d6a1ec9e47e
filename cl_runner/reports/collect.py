"""Finds run folders and groups the runs that differ in nothing but their seed."""

from __future__ import annotations

import json
import os
import shlex
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cl_runner.errors import RequestError
from cl_runner.reports.csv_files import csv_lines, read_rank_curve

IDENTITY = ("experiment", "benchmark", "backbone", "adapter", "strategy")
FIGURES = (  # what a summary holds as a number, or as null where it does not apply
    "acc", "learning_accuracy", "bwt", "fwt", "forgetting", "transfer", "average", "last", "parameter_growth",
    "base_parameters", "trainable_parameters", "stored_parameters", "inference_parameters", "wall_seconds",
    "train_images_per_second", "peak_memory_bytes", "retention", "loss", "drift", "task_inference_accuracy",
    "delta_loss", "last_task_loss", "adapter_parameters",
)  # fmt: skip
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, six times as fast, where libyaml is there
NOT_SETTINGS = {
    "seed", "output_root", "quiet", "report", "resume", "checkpoint", "data_root", "tracking", "launcher", "hydra",
    "fail_fast", "objective", "export", "export_adapter", "benchmark.cache",
    "trainer.device", "trainer.threads",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run folder: its ``summary.json`` and the settings of its ``config.yaml``, seed and places left out.

    ``settings`` maps dotted keys to values; None where there is no readable ``config.yaml``. ``typed`` is what was
    typed besides the parts that have a column of their own, ``overrides`` all of it in order; None where there is no
    ``overrides.yaml``.
    """

    folder: Path
    summary: dict[str, Any]
    settings: dict[str, Any] | None
    written: float
    typed: tuple[str, ...] | None = None
    overrides: tuple[str, ...] | None = None

    @property
    def command(self) -> str:
        """What a terminal takes to run this again; "" where nobody wrote down what was typed."""
        return "" if self.overrides is None else shlex.join(["cl-run", *self.overrides])

    def setting(self, key: str) -> Any:
        """Returns the value at a dotted key of the configuration; None where there is none."""
        return (self.settings or {}).get(key)

    def matrix(self) -> list[list[float | None]]:
        """Returns the T x T accuracies in [0, 1] of ``accuracy_matrix.csv``, row i after task i; None = not evaluated.

        Raises:
            RequestError: there is no such file, or it holds something else.
        """
        header, *rows = csv_lines(self.folder / "accuracy_matrix.csv")
        try:
            cells = {int(row[0]): [float(cell) if cell else None for cell in row[1:]] for row in rows}
        except ValueError as error:
            raise RequestError(f"{self.folder / 'accuracy_matrix.csv'} is damaged: {error}") from error
        unknown: list[float | None] = [None] * (len(header) - 1)
        return [cells.get(task, unknown) for task in range(1, len(header))]

    def rank_curve(self, figure: str = "accuracy") -> dict[float, float]:
        """Returns the accuracy in [0, 1], mean over the tasks after the last one, at every rank of ``rank_curve.csv``.

        Args:
            figure: "accuracy", or "loss" of texts in nats a token. Ranks that lack it on a task are left out.

        Raises:
            RequestError: there is no such file, or it holds something else.
        """
        rows = read_rank_curve(self.folder)
        last = max((row.after_task for row in rows), default=0)
        at_rank: dict[float, list[float | None]] = defaultdict(list)
        for row in rows:
            if row.after_task == last:
                at_rank[row.rank].append(getattr(row, figure))
        known = {rank: [one for one in at_rank[rank] if one is not None] for rank in sorted(at_rank)}
        return {rank: statistics.fmean(known[rank]) for rank in known if len(known[rank]) == len(at_rank[rank])}


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
            runs.setdefault(folder.resolve(), read_run(folder))
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
        cell = cells[(*_identity(run), settings)]
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
    rows = [(*_identity(group[0]), text) for group, text in zip(groups, texts, strict=True)]
    count = Counter(rows)
    keys = _differing(groups)
    return [
        text if one is not None and count[row] == 1 else _difference(group[0], keys[_identity(group[0])])
        for group, one, text, row in zip(groups, typed, texts, rows, strict=True)
    ]


def _difference(run: Run, keys: list[str] | None) -> str:
    """Returns the settings of a run that differ among groups of one experiment, benchmark, ...; its folder for none."""
    if keys is None:
        return str(run.folder)
    return ", ".join(f"{key}={(run.settings or {}).get(key)}" for key in keys)


def _differing(groups: Sequence[Sequence[Run]]) -> dict[Any, list[str] | None]:
    """Returns the keys whose values differ, by what identifies the groups; None where a configuration is missing."""
    alike = defaultdict(list)
    for group in groups:
        alike[_identity(group[0])].append(group[0].settings)
    found: dict[Any, list[str] | None] = {}
    for identity, settings in alike.items():
        known = [one for one in settings if one is not None]
        keys = dict.fromkeys(key for one in known for key in one)
        differing = [key for key in keys if len({json.dumps(one.get(key), default=str) for one in known}) > 1]
        found[identity] = differing if len(known) == len(settings) else None
        if len(settings) == 1:
            found[identity] = []
    return found


def _identity(run: Run) -> tuple[Any, ...]:
    return tuple(run.summary.get(key) for key in IDENTITY)


def _folders(path: Path) -> Iterator[Path]:
    for folder, below, files in os.walk(path):
        below.sort()
        if "summary.json" in files:
            below.clear()  # checkpoints and plots hold no further runs
            yield Path(folder)


def read_run(folder: Path) -> Run:
    """Reads one run folder, whatever its status.

    Raises:
        OSError, ValueError, yaml.YAMLError: a file cannot be read or is damaged.
    """
    place = folder / "summary.json"
    try:
        summary = json.loads(place.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"summary.json is damaged ({error})") from None
    if not isinstance(summary, dict):
        raise ValueError("summary.json holds no JSON object")
    config_file = folder / "config.yaml"
    config = _yaml(config_file) if config_file.exists() else None
    settings = None
    if isinstance(config, dict):
        settings = {key: value for key, value in _flat(config).items() if not _idle(key)}
    wrong = [key for key in FIGURES if not isinstance(summary.get(key), int | float | None)]
    if wrong:
        raise ValueError(f"summary.json: {wrong[0]} is {summary[wrong[0]]!r}, not a number")
    overrides = _overrides(folder / "overrides.yaml")
    return Run(folder, summary, settings, place.stat().st_mtime, _typed(overrides), overrides)


def _yaml(place: Path) -> Any:
    return yaml.load(place.read_text(encoding="utf-8"), Loader=_LOADER)


def _overrides(place: Path) -> tuple[str, ...] | None:
    typed = _yaml(place) if place.exists() else None
    return tuple(map(str, typed)) if isinstance(typed, list) else None


def _typed(typed: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """What was typed, but for the choices that have columns and what does not change a result."""
    if typed is None:
        return None
    shown = {*IDENTITY, "backbone.name"}
    kept = []
    for item in typed:
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
