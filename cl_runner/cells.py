"""The cells of a sweep on disk: where each lies, and what an earlier call left there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cl_runner.config.identity import cell_hash


def sweep_folder(config: Any, experiment: str) -> Path:
    """Returns where the cells of an experiment's sweeps lie."""
    return Path(config.output_root).expanduser() / "sweeps" / experiment


def cell_folder(config: Any, experiment: str) -> Path:
    """Returns the folder of a settled request that is a cell of a sweep: the same for every call that asks for it."""
    return sweep_folder(config, experiment) / cell_hash(config)


def is_cell(config: Any) -> bool:
    """Whether a settled request in a sweep has a folder by its configuration: plans and resumed runs have not."""
    return bool(config.mode == "train" and config.resume is None)


def summary_of(folder: Path) -> dict[str, Any]:
    """Returns the summary in a run folder; empty where there is none that can be read."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return summary if isinstance(summary, dict) else {}


def finished(folder: Path) -> dict[str, Any] | None:
    """Returns the summary of a run that is done; None where it cannot be read, so that it is not done after all."""
    summary = summary_of(folder)
    return summary if (folder / "DONE").exists() and summary.get("status") == "done" else None
