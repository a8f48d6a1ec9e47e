"""The door: composes a request, checks it and runs it. Imports nothing heavy."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import cl_runner
from cl_runner.errors import RequestError, shown

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130


def main() -> None:
    """The `cl-run` command: ends the process with 0 done, 1 failed, 2 refused or 130 interrupted."""
    sys.exit(execute(sys.argv[1:]))


def execute(arguments: list[str]) -> int:
    """Runs Hydra over the arguments and returns the exit code: of several runs the highest."""
    if arguments == ["--version"]:
        sys.stdout.write(f"cl-run {cl_runner.__version__}\n")
        return DONE
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach the handlers below instead of Hydra's own printer
    codes: list[int] = []
    running = False
    options = None

    def task(config: Any) -> Any:
        nonlocal running
        running = True
        code, result = _run(config)
        running = False
        codes.append(code)
        return result

    try:
        options = _options(arguments)
        _extend_import_path(options.config_dir)
        _hydra_application(task, arguments)
    except SystemExit as stop:  # Hydra's --help
        return _status(stop)
    except KeyboardInterrupt:
        return INTERRUPTED
    except RequestError as error:
        return _refuse(error)
    except Exception as error:
        if running or options is None:
            raise
        from cl_runner.config.compose import explain

        return _refuse(explain(error, options.overrides, options.config_dir))
    return max(codes, default=DONE)


def _options(arguments: list[str]) -> argparse.Namespace:
    """Reads the arguments as Hydra will, to refuse an unknown option in two lines."""
    from hydra._internal.utils import get_args_parser

    def wrong(message: str) -> NoReturn:
        raise RequestError(message, "cl-run --hydra-help lists the options; keys are set by KEY=VALUE, without dashes")

    parser = get_args_parser()
    parser.error = wrong  # type: ignore[method-assign]
    options, unknown = parser.parse_known_args(arguments)
    if unknown and not unknown[0].startswith("-"):
        raise RequestError(
            f"{shown(unknown[0])}: overrides stand together", "write options such as -m before all of them"
        )
    if unknown:
        wrong(f"there is no option {shown(unknown[0])}")
    return options


def _hydra_application(task: Callable[[Any], Any], arguments: list[str]) -> None:
    import hydra

    from cl_runner.config.compose import config_folder

    sys.argv = [sys.argv[0], *arguments]
    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="run")(task)()


def _run(config: Any) -> tuple[int, Any]:
    """Runs one composed request: (exit code, its result)."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from cl_runner.config.inherit import shed
    from cl_runner.runner import RunFailed, run

    settings = HydraConfig.get()
    typed = [
        str(item) for item in OmegaConf.to_container(settings.overrides.task) or ()
    ]  # unresolved: ${...} as it stood
    for item in settings.overrides.hydra:
        if str(item).lstrip("+~").startswith(("hydra.run.", "hydra.job.chdir", "hydra.output_subdir")):
            key = str(item).lstrip("+~").split("=")[0]
            return _refuse(
                RequestError(f"{key} has no use here: cl-run names its folders", "set output_root=FOLDER")
            ), None
    experiment = settings.runtime.choices.get("experiment") or "quickstart"
    try:
        return DONE, run(shed(config, typed), experiment=experiment, overrides=typed)
    except RequestError as error:
        return _refuse(error), None
    except RunFailed as failure:
        sys.stderr.write(f"{failure}\n")
        if failure.interrupted:  # a sweep ends with it
            raise KeyboardInterrupt from failure
        return FAILED, None


def _extend_import_path(config_dir: str | None) -> None:
    """Puts the folder given with --config-dir, and its parent, where a user's `_target_` can be imported from."""
    if config_dir is not None:
        from cl_runner.config.compose import user_folder

        folder = user_folder(config_dir)
        sys.path[:0] = [str(folder), str(folder.parent)]


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
