"""cl-run: continual learning from one command. Importing this package loads neither torch nor Avalanche."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_runner.result import RunResult
    from cl_runner.revisit import load
    from cl_runner.runner import run

try:
    __version__ = metadata.version("cl-runner")
except metadata.PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"

__all__ = ["RunResult", "__version__", "load", "run"]


def __getattr__(name: str) -> Any:
    if name == "run":
        from cl_runner.runner import run

        return run
    if name == "load":
        from cl_runner.revisit import load

        return load
    if name == "RunResult":
        from cl_runner.result import RunResult

        return RunResult
    raise AttributeError(f"module 'cl_runner' has no attribute '{name}'")
