"""The run folder: what a run was asked to do, on what, and what came out, in files that other tools can read."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import math
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cl_runner.errors import RequestError
from cl_runner.recording.durable import write_whole
from cl_runner.recording.events import plain, write_error
from cl_runner.recording.redact import redact, redact_config, redact_text

PARAMETER_COLUMNS = (
    "task", "base", "trainable", "adapter", "normalisation", "head", "stored", "inference", "growth",
    "epochs", "best_epoch", "seconds",
)  # fmt: skip
LAYER_COLUMNS = ("task", "name", "kind", "shape", "rank", "parameters", "delta_norm")
SUMMARY_KEYS = (
    "status", "experiment", "benchmark", "backbone", "adapter", "strategy", "seed",
    "acc", "learning_accuracy", "bwt", "fwt", "forgetting", "transfer", "average", "last",
    "parameter_growth", "base_parameters", "trainable_parameters", "stored_parameters", "inference_parameters",
    "wall_seconds", "train_images_per_second", "peak_memory_bytes",
    "retention", "loss", "drift", "task_inference_accuracy",
    "delta_loss", "last_task_loss", "adapter_parameters",
)  # fmt: skip
LOSS_COLUMNS = ("after_task", "task", "name", "metric", "score", "loss", "perplexity", "token_accuracy", "tokens")
_TABLES = (
    "accuracy_matrix.csv", "losses.csv", "probes.csv", "parameters.csv", "layers.csv", "rank_curve.csv",
    "per_class_accuracy.csv",
)  # fmt: skip
_MARKS_OF_A_RUN = ("config.yaml", "events.jsonl", "summary.json", "DONE")


class RunFolder:
    """Writes the files of one run.

    Every file but ``config.yaml`` is written beside its place and moved there, so that a reader (or a
    killed run) never sees half a file. ``RunFolder(path)`` is a folder that exists, e.g. to go on with;
    :meth:`create` makes a new one. Whatever cannot be written raises RequestError naming the file.
    """

    def __init__(self, path: Path) -> None:
        self._path = Path(path)

    @classmethod
    def create(
        cls, path: Path, config: Mapping[str, Any] | str | Any, overrides: Sequence[str], *, begun: bool = False
    ) -> RunFolder:
        """Makes the folder and writes ``config.yaml`` and ``overrides.yaml`` into it.

        Args:
            path: the folder; it may exist as long as it holds no run.
            config: the resolved configuration: YAML text, a mapping or an OmegaConf node.
            overrides: what the user typed.
            begun: the folder holds a run that goes on, without its configuration.

        Raises:
            RequestError: names ``output_root``; no permission, no space, a file in the way, or a run there already.
        """
        folder = cls(path)
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            held = [name for name in _MARKS_OF_A_RUN if (folder.path / name).exists()]
            if held and not begun:
                raise _already_holds(folder.path, held[0])
            folder._write_exclusively("config.yaml", _yaml(config))
        except OSError as error:
            raise _creation_error(error, folder.path) from error
        folder._write("overrides.yaml", _yaml(list(overrides)))
        return folder

    @property
    def path(self) -> Path:
        """Where the folder is."""
        return self._path

    @property
    def done(self) -> bool:
        """Whether the run ended well: its last file is there."""
        return (self._path / "DONE").exists()

    def write_matrix(
        self, initial: Sequence[float] | None, rows: Sequence[Sequence[float]], task_names: Sequence[str]
    ) -> None:
        """Writes ``accuracy_matrix.csv``: a row for 0 (before training) to T tasks trained, a column a task.

        Args:
            initial: T accuracies in [0, 1] before training; None where they were not evaluated.
            rows: accuracies in [0, 1] after each task, in order; NaN or None where not evaluated.
            task_names: T names.
        """
        before = [None] * len(task_names) if initial is None else initial
        lines = [[after, *map(_cell, row)] for after, row in enumerate([before, *rows])]
        self._write("accuracy_matrix.csv", _csv(["after_task", *task_names], lines))

    def write_losses(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes ``losses.csv``: a row an evaluation of a task of texts, see :mod:`cl_runner.recording.losses`.

        ``score`` in [0, 1] is what the accuracy matrix holds, ``metric`` what it is; ``loss`` is in nats a token.
        """
        self._write("losses.csv", _records(LOSS_COLUMNS, rows))

    def write_probes(self, rows: Sequence[Sequence[float | None]], domains: Sequence[str]) -> None:
        """Writes ``probes.csv``: a row for 0 (before training) to T tasks trained, a column a probe domain.

        Args:
            rows: T + 1 rows of accuracies in [0, 1]; NaN or None where not evaluated.
            domains: their names.
        """
        lines = [[after, *map(_cell, row)] for after, row in enumerate(rows)]
        self._write("probes.csv", _csv(["after_task", *domains], lines))

    def write_parameters(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes ``parameters.csv``, a row a task: the contract's columns, then any other key of the rows."""
        self._write("parameters.csv", _records(PARAMETER_COLUMNS, rows))

    def write_layers(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes ``layers.csv``, a row a task and adapted layer: the contract's columns, then any other key."""
        self._write("layers.csv", _records(LAYER_COLUMNS, rows))

    def write_rank_curve(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes ``rank_curve.csv``: accuracy and loss per task of the network truncated to each rank, after a task."""
        self._write("rank_curve.csv", _records(("rank", "task", "accuracy", "after_task", "loss"), rows))

    def write_classes(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes ``per_class_accuracy.csv``: a row an evaluation and class, accuracy in [0, 1]."""
        self._write(
            "per_class_accuracy.csv", _records(("after_task", "class_id", "class_name", "accuracy", "task"), rows)
        )

    def write_environment(self, environment: Mapping[str, Any]) -> None:
        """Writes ``environment.json``, see :func:`cl_runner.recording.environment.describe`."""
        self._write("environment.json", _json(environment))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes ``summary.json``: every key of the contract in its order, null where absent, then any other key."""
        self._write("summary.json", _json({**dict.fromkeys(SUMMARY_KEYS), **summary}))

    def mark_done(self) -> None:
        """Writes ``DONE``, after which nothing may be written; how an earlier attempt failed goes with it."""
        (self._path / "error.txt").unlink(missing_ok=True)
        self._write("DONE", "")

    def write_error(self, error: BaseException) -> Path:
        """Writes the traceback of a run that failed to ``error.txt`` and returns its place."""
        self._write("error.txt", redact_text("".join(traceback.format_exception(error))))
        return self._path / "error.txt"

    def discard(self) -> None:
        """Removes the folder of a run that was refused before it began; a folder with anything else in it stays."""
        events = self._path / "events.jsonl"
        if events.exists() and events.stat().st_size:
            return
        for name in ("config.yaml", "overrides.yaml", "events.jsonl", "metrics.csv", "environment.json"):
            (self._path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self._path.rmdir()
            self._path.parent.rmdir()

    def restart(self) -> None:
        """Clears what an earlier attempt measured; its configuration stays."""
        for name in ("events.jsonl", "metrics.csv", "summary.json", "error.txt", "report.html", *_TABLES):
            (self._path / name).unlink(missing_ok=True)
        for picture in (self._path / "plots").glob("*.png"):
            picture.unlink(missing_ok=True)

    def _write(self, name: str, text: str) -> None:
        write_whole(self._path / name, [text.encode()])

    def _write_exclusively(self, name: str, text: str) -> None:
        """Writes a file that must be new: of two runs that claim one folder at the same time one is refused."""
        place = self._path / name
        try:
            file = place.open("x", encoding="utf-8")
        except FileExistsError:
            raise _already_holds(self._path, name) from None
        try:
            with file:
                file.write(text)
        except OSError:
            place.unlink(missing_ok=True)
            raise


def _already_holds(path: Path, name: str) -> RequestError:
    return RequestError(
        f"output_root: {path} already holds a run (found {name})",
        f"go on with it by resume={path}, or choose another place with output_root=FOLDER",
    )


def _creation_error(error: OSError, path: Path) -> RequestError:
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        blocking = next((part for part in [path, *path.parents] if part.exists()), path)
        return RequestError(
            f"output_root: cannot make the run folder {path}: the file {blocking} is in the way",
            "move the file, or choose another place with output_root=FOLDER",
        )
    return write_error(error, path)


def _yaml(content: Mapping[str, Any] | Sequence[str] | str | Any) -> str:
    """YAML without secrets, which work in this process and are written nowhere."""
    if isinstance(content, str):
        return redact_text(content)
    if isinstance(content, dict | list):
        import yaml

        return yaml.safe_dump(redact(content), sort_keys=False, allow_unicode=True)
    from omegaconf import OmegaConf

    resolved = OmegaConf.to_container(content, resolve=True)
    cleaned = redact_config(resolved)
    if cleaned == resolved:
        return OmegaConf.to_yaml(content, resolve=True)
    return OmegaConf.to_yaml(OmegaConf.create(cleaned))  # a secret of the environment stays ${oc.env:NAME}


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(redact(plain(content)), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _records(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    names = list(dict.fromkeys([*columns, *(key for row in rows for key in row)]))
    return _csv(names, [[_cell(row.get(name)) for name in names] for row in rows])


def _csv(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return text.getvalue()


def _cell(value: Any) -> str:
    """Writes a cell so that reading it gives the same number; empty for what was not measured."""
    if hasattr(value, "tolist"):  # numpy
        value = value.tolist()
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, list | tuple):  # a shape
        return "x".join(str(item) for item in value)
    return str(value)
