"""The door: composes a request, checks it and runs it. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from cl_runner.errors import RequestError

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130


def main() -> None:
    """The `cl-run` command: ends the process with 0 done, 1 failed, 2 refused or 130 interrupted."""
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: list[str]) -> int:
    """Runs Hydra over the arguments and returns the exit code."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach the handlers below instead of Hydra's own printer
    _extend_import_path(arguments)
    outcome: dict[str, int] = {}
    try:
        _hydra_application(arguments, outcome)
    except SystemExit as stop:  # argparse and Hydra's --help
        return _status(stop)
    except KeyboardInterrupt:
        return INTERRUPTED
    except RequestError as error:
        return _refuse(error)
    except Exception as error:
        if not _is_composition_error(error):
            raise
        from cl_runner.config.compose import explain

        return _refuse(explain(error, [item for item in arguments if not item.startswith("-")]))
    return max(outcome.values(), default=DONE)


def _hydra_application(arguments: list[str], outcome: dict[str, int]) -> None:
    import hydra
    from omegaconf import DictConfig

    from cl_runner.config.compose import config_folder

    def task(config: DictConfig) -> Any:
        code, result = _run(config)
        outcome[str(len(outcome))] = code
        return result

    sys.argv = [sys.argv[0], *arguments]
    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="run")(task)()


def _run(config: Any) -> tuple[int, Any]:
    """Runs one composed request: (exit code, its summary)."""
    from hydra.core.hydra_config import HydraConfig

    from cl_runner.runner import RunFailed, run

    settings = HydraConfig.get()
    experiment = settings.runtime.choices.get("experiment") or "quickstart"
    try:
        result = run(config, experiment=experiment, overrides=list(settings.overrides.task))
    except RunFailed as failure:
        sys.stderr.write(f"{failure}\n")
        return (INTERRUPTED if failure.interrupted else FAILED), None
    return DONE, result


def _extend_import_path(arguments: list[str]) -> None:
    """Puts the folder given with --config-dir, and its parent, where a user's `_target_` can be imported from."""
    for position, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name in ("--config-dir", "-cd"):
            value = value or (arguments[position + 1] if position + 1 < len(arguments) else "")
            folder = Path(value).resolve()
            sys.path[:0] = [str(folder), str(folder.parent)]


def _is_composition_error(error: Exception) -> bool:
    modules = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
    return bool(modules & {"hydra", "omegaconf"}) or (
        isinstance(error, ValueError) and "Only one of --run" in str(error)
    )


def _refuse(error: RequestError) -> int:
    sys.stderr.write(f"cl-run: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"        {error.hint}\n")
    return REFUSED


def _status(stop: SystemExit) -> int:
    if stop.code is None:
        return DONE
    return stop.code if isinstance(stop.code, int) else REFUSED


if __name__ == "__main__":
    main()
