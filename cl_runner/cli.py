"""The door: composes a request, checks it and runs it. Imports nothing heavy."""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import cl_runner
from cl_runner.errors import RequestError, shown

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130


def main() -> None:
    """The `cl-run` command: ends the process with 0 done, 1 failed, 2 refused or 130 interrupted."""
    sys.exit(execute(sys.argv[1:]))


@dataclass(frozen=True)
class _Ended:
    """How one run ended: its exit code, what was typed for it, and what was said where it went wrong."""

    code: int
    typed: tuple[str, ...]
    message: str = ""
    result: Any = None


def execute(arguments: list[str]) -> int:
    """Runs Hydra over the arguments and returns the exit code: of several runs the highest."""
    if arguments == ["--version"]:
        sys.stdout.write(f"cl-run {cl_runner.__version__}\n")
        return DONE
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach the handlers below instead of Hydra's own printer
    runs: list[_Ended] = []
    crashed = False
    options = None

    def task(config: Any) -> Any:
        nonlocal crashed
        try:
            ended = _run(config)
        except Exception:
            crashed = True  # what a run raises is no composition error; the other cells of a sweep still run
            raise
        runs.append(ended)
        return ended.result

    try:
        options = _options(arguments)
        _extend_import_path(options.config_dir)
        _hydra_application(task, arguments)
    except SystemExit as stop:  # Hydra's --help, or a sweep whose report could not be made
        _tell_again(runs)
        return max([_status(stop), *(ended.code for ended in runs)])
    except KeyboardInterrupt:
        return INTERRUPTED
    except RequestError as error:
        return _refuse(error)
    except Exception as error:
        if crashed or options is None:
            raise
        from cl_runner.config.compose import explain

        return _refuse(explain(error, options.overrides, options.config_dir))
    _tell_again(runs)
    return max((ended.code for ended in runs), default=DONE)


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

    from cl_runner.config.compose import config_folder, opened

    sys.argv = [sys.argv[0], *opened(arguments)]
    hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="run")(task)()


def _run(config: Any) -> _Ended:
    """Runs one composed request."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from cl_runner.config.inherit import shed
    from cl_runner.runner import RunFailed, run

    settings = HydraConfig.get()
    typed = [
        str(item) for item in OmegaConf.to_container(settings.overrides.task) or ()
    ]  # unresolved: ${...} as it stood
    for item in settings.overrides.hydra:
        key = str(item).lstrip("+~").split("=")[0]
        if key.startswith(("hydra.run.", "hydra.sweep.", "hydra.job.chdir", "hydra.output_subdir")):
            error = RequestError(f"{key} has no use here: cl-run names its folders", "set output_root=FOLDER")
            return _Ended(_refuse(error), tuple(typed), error.message)
    experiment = settings.runtime.choices.get("experiment") or "quickstart"
    in_sweep = settings.mode == RunMode.MULTIRUN
    try:
        result = run(shed(config, typed), experiment=experiment, overrides=typed, in_sweep=in_sweep)
        # Hydra keeps what every cell returns until the last one is done, and nobody needs the networks
        return _Ended(DONE, tuple(typed), result=dataclasses.replace(result, network=None))
    except RequestError as error:
        return _Ended(_refuse(error), tuple(typed), error.message)
    except RunFailed as failure:
        sys.stderr.write(f"{failure}\n")
        if failure.interrupted:  # a sweep ends with it
            raise KeyboardInterrupt from failure
        return _Ended(FAILED, tuple(typed), str(failure))


def _tell_again(runs: list[_Ended]) -> None:
    """Says at the end of a sweep which cells went wrong, for what was said at the time has scrolled past."""
    wrong = [ended for ended in runs if ended.code != DONE]
    if len(runs) < 2 or not wrong:
        return
    sys.stderr.write(f"cl-run: {len(wrong)} of {len(runs)} cells did not end well\n")
    everywhere = set.intersection(*(set(ended.typed) for ended in runs))
    for ended in wrong:
        cell = " ".join(item for item in ended.typed if item not in everywhere)
        sys.stderr.write(f"        {cell}: {ended.message.splitlines()[0].removeprefix('cl-run: ')}\n")


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
