"""A run, from a request to its folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from cl_runner.cells import cell_folder, finished, is_cell, summary_of
from cl_runner.config.checks import settle
from cl_runner.errors import RequestError, shown
from cl_runner.recording.console import Console
from cl_runner.recording.events import CsvTracker, EventLog, Tracker
from cl_runner.recording.lock import held
from cl_runner.recording.recorder import Recorder
from cl_runner.recording.run_folder import RunFolder
from cl_runner.recording.wandb import WandbTracker, resolved_mode
from cl_runner.result import RunResult
from cl_runner.signals import interruptible


class RunFailed(RuntimeError):
    """The run itself went wrong, or was interrupted; its folder holds the traceback."""

    def __init__(self, message: str, *, interrupted: bool = False) -> None:
        self.interrupted = interrupted
        super().__init__(message)


def run(
    config: Any, *, experiment: str = "quickstart", overrides: Sequence[str] = (), in_sweep: bool = False
) -> RunResult:
    """Runs a request.

    Args:
        config: what `cl_runner.config.compose.compose` gives, or a dict of the same shape.
        experiment: names the run and its folder.
        overrides: what was typed, for `overrides.yaml` and for refusing typed keys that nothing uses.
        in_sweep: this is a cell of a sweep, whose folder is named by its configuration: done once, it is not run again.

    Raises:
        RequestError: the request cannot be met.
        RunFailed: the run itself failed or was interrupted.
    """
    settled = settle(config, list(overrides))
    if settled.resume is not None:
        return _resume(settled)
    if in_sweep and is_cell(settled):
        return _run_cell(settled, experiment, list(overrides))
    folder = RunFolder.create(_place(settled, experiment), settled, list(overrides))
    return _execute(settled, folder, experiment)


def _execute(config: DictConfig, folder: RunFolder, experiment: str, *, fresh: bool = True) -> RunResult:
    """Trains or plans in the folder, and leaves it telling how that ended; a fresh one goes where nothing began."""
    console = Console(quiet=config.quiet)
    recorder = None
    try:
        with interruptible():
            if config.mode == "plan":
                from cl_runner.planning import plan

                return plan(config, folder, console)
            trackers = _trackers(config, folder, console, experiment)
            events, report = EventLog(folder.path / "events.jsonl"), _draw_report if config.report else None
            recorder = Recorder(folder, events, console, trackers=trackers, report=report)
            from cl_runner.learning import learn  # imports torch and Avalanche, which takes seconds

            return learn(config, folder, recorder, experiment)
    except RequestError as error:
        console.close()
        if fresh and (recorder is None or not recorder.started):
            folder.discard()
        elif recorder is not None:
            recorder.run_failed(error, "failed")
        raise
    except KeyboardInterrupt as error:
        if recorder is None:  # a plan, which leaves nothing to go on with
            console.close()
            folder.discard()
            raise RunFailed("cl-run: interrupted", interrupted=True) from error
        recorder.run_failed(error, "interrupted")
        raise RunFailed(f"cl-run: interrupted; continue with cl-run resume={folder.path}", interrupted=True) from error
    except Exception as error:
        if recorder is not None:
            recorder.run_failed(error, "failed")
        trace = folder.write_error(error)
        raise RunFailed(f"cl-run: the run failed: {_told(error)}\n        the traceback is in {trace}") from error


def _draw_report(folder: Path) -> None:
    from cl_runner.reports.single import write_report  # imports matplotlib, and only when there is something to draw

    write_report(folder)


def _trackers(config: DictConfig, folder: RunFolder, console: Console, experiment: str) -> list[Tracker]:
    """Who is told about the run besides the event log."""
    trackers: list[Tracker] = [CsvTracker(folder.path / "metrics.csv")] if config.tracking.csv else []
    options = config.tracking.get("wandb")
    if options is not None and resolved_mode(options.mode) != "disabled":
        trackers.append(WandbTracker(folder.path, options, experiment, console.note))
    return trackers


def _resume(config: DictConfig) -> RunResult:
    """Goes on in a run folder: nothing to do where it is done, from the start where there is no checkpoint."""
    path = Path(config.resume).expanduser()
    if not (path / "config.yaml").is_file():
        raise RequestError(
            f"resume={path}: this is no run folder, it has no config.yaml", "give a folder below outputs/"
        )
    folder = RunFolder(path)
    summary = summary_of(path)
    if folder.done:
        Console(quiet=config.quiet).note(f"{path} is done; nothing to resume")
        return RunResult(path, summary)
    try:
        earlier = settle(OmegaConf.merge(OmegaConf.load(path / "config.yaml"), {"quiet": config.quiet}))
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise RequestError(
            f"resume={path}: its config.yaml is damaged: {shown(error, 200)}", "start a new run without resume"
        ) from error
    with held(path):
        folder.restart()
        return _execute(earlier, folder, summary.get("experiment") or path.resolve().parent.name, fresh=False)


def _run_cell(config: DictConfig, experiment: str, overrides: list[str]) -> RunResult:
    """Runs a cell of a sweep in the folder of its own; what an earlier call did not finish starts over there."""
    path = cell_folder(config, experiment)
    with held(path):
        folder = RunFolder(path)
        summary = finished(path)
        if summary is not None:  # by another process, since this sweep was submitted
            return RunResult(path, summary)
        begun = (path / "config.yaml").exists()
        if begun:
            folder.restart()
            for name in ("DONE", "config.yaml"):  # written anew: where this attempt runs may be another place
                (path / name).unlink(missing_ok=True)
        return _execute(config, RunFolder.create(path, config, overrides), experiment, fresh=not begun)


def _place(config: DictConfig, experiment: str) -> Path:
    """A folder of its own for this run: <output_root>/<experiment>/<time>."""
    parent = Path(config.output_root).expanduser() / experiment
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S")
    path, attempt = parent / stamp, 1
    while True:
        try:
            path.mkdir(parents=True)  # of two runs that begin in the same second only one makes it
        except FileExistsError:
            attempt += 1
            path = parent / f"{stamp}_{attempt}"
            continue
        except OSError:  # told where the folder is filled
            return path
        return path


def _told(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
