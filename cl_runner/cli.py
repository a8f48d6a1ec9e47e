"""The door: composes a request, checks it and runs it. Imports nothing heavy."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import cl_runner
from cl_runner.errors import RequestError, shown
from cl_runner.process import leave, process_start
from cl_runner.result import Outcome

DONE, REFUSED, INTERRUPTED = 0, 2, 130


def main() -> None:
    """The `cl-run` command: ends the process with 0 done, 1 failed, 2 refused or 130 interrupted."""
    leave(execute(sys.argv[1:], began=process_start()))


class _Door:
    """What Hydra calls for one run, and what the launcher of a sweep tells how its cells ended.

    Attributes:
        cells: how each request ended.
        not_begun: cells of a sweep that ended before their turn.
        report: what a sweep leaves besides its cells; None where there is no sweep, or nothing to report it.
        crashed: what was raised is no composition error: a run, or what was to start the cells, raised it.

    Args:
        began: when the process started; None where that is not known, or where it is somebody else's.
    """

    def __init__(self, began: float | None = None) -> None:
        self._began = began
        self.cells: list[Outcome] = []
        self.not_begun = 0
        self.report: Any = None
        self.crashed = False

    def __call__(self, config: Any) -> None:
        """Runs one request in this process."""
        try:
            began, self._began = self._began, None
            self.cells.append(_run(config, began))
        except Exception:
            self.crashed = True
            raise
        if self.cells[-1].code == INTERRUPTED:
            raise KeyboardInterrupt

    @property
    def run_cell(self) -> Any:
        """Runs one cell of a sweep, in whatever process."""
        return _run_cell

    def finish(self) -> int:
        """Reports a sweep and returns the exit code: of several cells the highest."""
        codes = [ended.code for ended in self.cells]
        if self.report is not None:
            try:
                self.report.finish()
            except RequestError as error:  # a table or a figure cannot be written
                sys.stderr.write(f"cl-run: the sweep's report: {error.text.removeprefix('cl-run: ')}")
                codes.append(REFUSED)
            _tell_again(self.cells, self.not_begun)
        return max(codes, default=DONE)


def execute(arguments: list[str], *, began: float | None = None) -> int:
    """Runs Hydra over the arguments and returns the exit code: of several runs the highest.

    ``began`` is when the process started, on the clock of `time.perf_counter`, where it does nothing else.
    """
    if arguments == ["--version"]:
        sys.stdout.write(f"cl-run {cl_runner.__version__}\n")
        return DONE
    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions reach the handlers below instead of Hydra's own printer
    door = _Door(began)
    options = None
    try:
        options = _options(arguments)
        _extend_import_path(options.config_dir)
        if options.multirun:
            from cl_runner.config.compose import first_choices

            first = first_choices(options.overrides)
            rest = [item for item in arguments if item not in options.overrides]
            arguments = [*rest, *first.values(), *options.overrides]
            options.overrides = [first.get(item, item) for item in options.overrides]
        _hydra_application(door, arguments)
    except SystemExit as stop:  # Hydra's --help
        return _status(stop)
    except KeyboardInterrupt:
        return max(INTERRUPTED, door.finish())
    except RequestError as error:
        return _refuse(error)
    except Exception as error:
        if door.crashed or options is None:
            door.finish()
            raise
        from cl_runner.config.compose import explain

        return _refuse(explain(error, options.overrides, options.config_dir))
    return door.finish()


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


def _hydra_application(door: _Door, arguments: list[str]) -> None:
    import hydra

    from cl_runner.config.compose import config_folder, opened
    from cl_runner.signals import interruptible

    sys.argv = [sys.argv[0], *opened(arguments)]
    _list_without_copies()
    with interruptible():
        hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="run")(door)()


def _list_without_copies() -> None:
    """Lets Hydra list the choices of a group, as for --help, without copying the configurations of all plugins."""
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    listed = ConfigLoaderImpl.get_group_options
    if listed.__module__ == __name__:
        return

    def get_group_options(self: Any, group_name: str, *given: Any, **named: Any) -> list[str]:
        if named.get("config_name") is None and not named.get("overrides") and len(given) <= 1:
            kind = {"results_filter": named["results_filter"]} if "results_filter" in named else {}
            return list(self.repository.get_group_options(group_name, *given, **kind))  # which nothing here changes
        return listed(self, group_name, *given, **named)

    ConfigLoaderImpl.get_group_options = get_group_options  # type: ignore[method-assign]


def _run(config: Any, began: float | None = None) -> Outcome:
    """Runs one composed request."""
    from hydra.core.hydra_config import HydraConfig

    from cl_runner.config.inherit import shed
    from cl_runner.config.request import Request
    from cl_runner.runner import RunFailed, run

    request = Request.of(HydraConfig.get())
    typed, objective = tuple(request.typed), config.get("objective")
    try:
        request.check()
        content = shed(config, request.typed)
        result = run(
            content, experiment=request.experiment, overrides=request.typed, in_sweep=request.in_sweep, began=began
        )
    except RequestError as error:
        _refuse(error)
        return Outcome("refused", typed, message=error.message)
    except RunFailed as failure:
        sys.stderr.write(f"{failure}\n")
        return Outcome("interrupted" if failure.interrupted else "failed", typed, message=str(failure))
    figure = result.summary.get(objective) if objective else None
    if objective and figure is None and request.in_sweep:
        sys.stderr.write(f"cl-run: objective={objective} is null in {result.folder}/summary.json\n")
    return Outcome("done", typed, result.folder, summary=result.summary, objective=figure)


def _run_cell(config: Any) -> Outcome | None:
    """Runs one cell of a sweep, in whatever process; None where it is not to begin any more."""
    from cl_runner.launchers.ticket import ended, wanted

    _feel_at_home()
    if not wanted():
        return None
    try:
        outcome = _run(config)
    except Exception as error:  # a mistake of ours must not hide the other cells
        traceback.print_exc()
        outcome = Outcome("failed", message=f"{type(error).__name__}: {error}")
    ended(outcome.code)
    return outcome


def _feel_at_home() -> None:
    """Gives a process that a launcher started the working directory and the import path of the command."""
    from hydra.core.hydra_config import HydraConfig

    runtime = HydraConfig.get().runtime
    if Path(runtime.cwd).is_dir() and Path.cwd() != Path(runtime.cwd):
        os.chdir(runtime.cwd)
    for source in runtime.config_sources:
        if source.provider == "command-line" and str(Path(source.path)) not in sys.path:
            _extend_import_path(source.path)


def _tell_again(cells: list[Outcome], not_begun: int) -> None:
    """Says at the end of a sweep which cells went wrong, for what was said at the time has scrolled past."""
    wrong = [ended for ended in cells if ended.code != DONE]
    total = len(cells) + not_begun
    if total > 1 and wrong:
        sys.stderr.write(f"cl-run: {len(wrong)} of {total} cells did not end well\n")
        everywhere = set.intersection(*(set(ended.typed) for ended in cells)) if len(cells) > 1 else set()
        for ended in wrong:
            cell = " ".join(item for item in ended.typed if item not in everywhere)
            sys.stderr.write(f"        {cell}: {ended.error}\n")
    if not_begun:
        sys.stderr.write(f"cl-run: {not_begun} of {total} cells were not begun; the same command goes on with them\n")


def _extend_import_path(config_dir: str | None) -> None:
    """Puts the folder given with --config-dir, and its parent, where a user's `_target_` can be imported from."""
    from cl_runner.config.compose import OWN_CONFIGS, user_folder

    os.environ.pop(OWN_CONFIGS, None)  # of an earlier request in this process
    if config_dir is not None:
        folder = user_folder(config_dir)
        os.environ[OWN_CONFIGS] = config_dir
        sys.path[:0] = [str(folder), str(folder.parent)]


def _refuse(error: RequestError) -> int:
    from cl_runner.recording.redact import redact_text

    sys.stderr.write(redact_text(error.text))
    return REFUSED


def _status(stop: SystemExit) -> int:
    if stop.code is None:
        return DONE
    return stop.code if isinstance(stop.code, int) else REFUSED


if __name__ == "__main__":
    main()
