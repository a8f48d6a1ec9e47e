"""A run, from a request to its folder."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cl_runner.cells import cell_folder, finished, is_cell, summary_of
from cl_runner.config.checks import settle
from cl_runner.config.compose import OWN_CONFIGS
from cl_runner.config.taken_up import taken_up
from cl_runner.errors import RequestError
from cl_runner.faults import explain
from cl_runner.going_on import begun_with, refuse_lost, to_go_on_from
from cl_runner.process import importing
from cl_runner.recording.checkpoints import Checkpoint, Checkpoints
from cl_runner.recording.console import Console
from cl_runner.recording.events import CsvTracker, EventLog, Tracker, read_events
from cl_runner.recording.lock import held
from cl_runner.recording.recorder import Recorder
from cl_runner.recording.run_folder import RunFolder
from cl_runner.recording.wandb import WandbTracker, resolved_mode
from cl_runner.result import RunResult
from cl_runner.signals import interruptible
from cl_runner.training.timing import NoTimer, Timer


class RunFailed(RuntimeError):
    """The run itself went wrong, or was interrupted; its folder holds the traceback."""

    def __init__(self, message: str, *, interrupted: bool = False) -> None:
        self.interrupted = interrupted
        super().__init__(message)


def run(
    config: Any,
    *,
    experiment: str = "quickstart",
    overrides: Sequence[str] = (),
    in_sweep: bool = False,
    began: float | None = None,
) -> RunResult:
    """Runs a request.

    Args:
        config: what `cl_runner.config.compose.compose` gives, or a dict of the same shape.
        experiment: names the run and its folder.
        overrides: what was typed, for `overrides.yaml` and for refusing typed keys that nothing uses.
        in_sweep: this is a cell of a sweep, whose folder is named by its configuration: done once, it is not run again.
        began: where the account of time (`trainer.profile`) begins, on the clock of `time.perf_counter`; None: now.

    Raises:
        RequestError: the request cannot be met.
        RunFailed: the run itself failed or was interrupted.
    """
    began = time.perf_counter() if began is None else began
    settled = settle(config, list(overrides))
    if settled.mode == "eval":
        return _evaluate(settled, list(overrides))
    if settled.resume is not None:
        return _resume(settled, list(overrides), began)
    if in_sweep and is_cell(settled):
        return _run_cell(settled, experiment, list(overrides), began)
    place = _place(settled, experiment)
    with held(place):
        return _execute(settled, RunFolder.create(place, settled, list(overrides)), experiment, began)


def _execute(
    config: DictConfig,
    folder: RunFolder,
    experiment: str,
    began: float | None = None,
    *,
    fresh: bool = True,
    checkpoint: Checkpoint | None = None,
    revisited: Checkpoint | None = None,
) -> RunResult:
    """Trains, evaluates or plans in the folder, and leaves it telling how that ended.

    Args:
        config: settled.
        folder: made.
        experiment: names the run.
        began: where the account of time begins.
        fresh: nothing was there; a run that is refused leaves no folder then.
        checkpoint: what to go on from.
        revisited: another run's, with mode=eval.
    """
    console = Console(quiet=config.quiet)
    checkpoints = Checkpoints(folder.path)
    recorder = None
    try:
        with interruptible() as stop:
            if config.mode == "plan":
                with importing():
                    from cl_runner.planning import plan
                return plan(config, folder, console)
            events = EventLog(folder.path / "events.jsonl", None if checkpoint is None else checkpoint.events)
            trackers = _trackers(config, folder, console, experiment)
            report = _draw_report if config.report else None
            recorder = Recorder(folder, events, console, trackers=trackers, report=report)
            if config.mode == "eval":
                with importing():
                    from cl_runner.revisit import evaluate_again
                assert revisited is not None
                return evaluate_again(config, folder, recorder, experiment, revisited)
            kept = {"checkpoints": checkpoints, "checkpoint": checkpoint, "stop": stop}
            return _learn(config, folder, recorder, experiment, began, **kept)
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
        raise RunFailed(f"cl-run: interrupted; continue with {_command(folder)}", interrupted=True) from error
    except Exception as error:
        if recorder is not None:
            recorder.run_failed(error, "failed")
        raise RunFailed(_reason(error, config, folder, checkpoints)) from error


def _learn(
    config: DictConfig, folder: RunFolder, recorder: Recorder, experiment: str, began: float | None, **kept: Any
) -> RunResult:
    """Trains; all the seconds that torch and Avalanche take to be imported are spent here."""
    timer = Timer(began) if config.trainer.profile else NoTimer()
    timer.mark("start")
    with importing():
        from cl_runner.learning import learn
    timer.mark("imports")
    return learn(config, folder, recorder, experiment, timer=timer, **kept)


def _command(folder: RunFolder) -> str:
    own = os.environ.get(OWN_CONFIGS)
    return f"cl-run {f'--config-dir {own} ' if own else ''}resume={folder.path}"


def _reason(error: Exception, config: DictConfig, folder: RunFolder, checkpoints: Checkpoints) -> str:
    """Why a run failed, what to do where that is known, and what is left of it."""
    try:
        trace = f"the traceback is in {folder.write_error(error)}"
    except RequestError as second:  # a full disk must not hide why the run failed
        trace = f"no traceback was written, {second.message.removeprefix('output_root: ')}"
    reason = explain(error, config) or _told(error)
    lines = [f"cl-run: the run failed: {reason}".replace("\n", "\n        "), trace]
    last = checkpoints.latest(lambda text: None)
    if last is not None:
        lines.append(f"the last good checkpoint is {last.number}, {last.where}, in {checkpoints.folder}")
    return "\n        ".join(lines)


def _draw_report(folder: Path) -> None:
    from cl_runner.reports.single import write_report  # imports matplotlib, and only when there is something to draw

    write_report(folder)


def _trackers(config: DictConfig, folder: RunFolder, console: Console, experiment: str) -> list[Tracker]:
    """Who is told about the run besides the event log, whose events of an earlier attempt the table gets again."""
    trackers: list[Tracker] = []
    if config.tracking.csv:
        place = folder.path / "metrics.csv"
        place.unlink(missing_ok=True)
        table = CsvTracker(place)
        for event in read_events(folder.path / "events.jsonl"):
            table.log(event)
        trackers.append(table)
    options = config.tracking.get("wandb")
    if options is not None and resolved_mode(options.mode) != "disabled":
        trackers.append(WandbTracker(folder.path, options, experiment, console.note))
    return trackers


def _resume(config: DictConfig, overrides: list[str], began: float) -> RunResult:
    """Goes on in a run folder: nothing to do where it is done, from the start where there is no checkpoint."""
    path = Path(config.resume).expanduser()
    begun = begun_with(path, f"resume={path}", config)
    folder = RunFolder(path)
    summary = summary_of(path)
    asked = taken_up(begun, config, overrides)
    if folder.done:
        Console(quiet=config.quiet).note(f"{path} is done; nothing to resume")
        return RunResult(path, summary)
    refuse_lost(path, f"resume={path}")
    earlier = settle(asked)
    with held(path):
        checkpoint = to_go_on_from(earlier, folder)
        told = {} if checkpoint is None else checkpoint.state["recorder"]["summary"]
        name = summary.get("experiment") or told.get("experiment") or path.resolve().parent.name
        return _execute(earlier, folder, name, began, fresh=False, checkpoint=checkpoint)


def _evaluate(config: DictConfig, overrides: list[str]) -> RunResult:
    """Evaluates the network of a run folder once more, into a folder of its own."""
    path = Path(config.checkpoint).expanduser()
    begun = begun_with(path, f"checkpoint={path}", config)
    refuse_lost(path, f"checkpoint={path}")
    found = Checkpoints(path).latest(Console(quiet=config.quiet).warning)
    if found is None:
        raise RequestError(f"checkpoint={path}: there is no checkpoint in it that can be used", "train it first")
    same = [word for word in overrides if word.partition("=")[0] not in ("mode", "checkpoint")]
    settings = {"mode": "eval", "checkpoint": str(path), "resume": None, "output_root": config.output_root}
    again = settle(OmegaConf.merge(taken_up(begun, config, same), settings))
    name = str(summary_of(path).get("experiment") or path.resolve().parent.name)
    place = _place(again, "eval")
    with held(place):
        result = _execute(again, RunFolder.create(place, again, overrides), name, revisited=found)
    apart = result.summary.get("largest_difference")
    if apart is not None:
        told = f"at most {100 * apart:.2f} points apart from" if apart else "the same as"
        after = result.summary["after_task"]
        Console(quiet=config.quiet).note(f"accuracies after task {after}: {told} the recorded ones")
    return result


def _run_cell(config: DictConfig, experiment: str, overrides: list[str], began: float) -> RunResult:
    """Runs a cell of a sweep in the folder of its own; what an earlier call did not finish goes on there."""
    path = cell_folder(config, experiment)
    with held(path):
        folder = RunFolder(path)
        summary = finished(path)
        if summary is not None:  # by another process, since this sweep was submitted
            return RunResult(path, summary)
        begun = (path / "config.yaml").exists()
        checkpoint = to_go_on_from(config, folder) if begun else None
        for name in ("DONE", "config.yaml"):  # written anew: where this attempt runs may be another place
            (path / name).unlink(missing_ok=True)
        folder = RunFolder.create(path, config, overrides, begun=checkpoint is not None)
        return _execute(config, folder, experiment, began, fresh=not begun, checkpoint=checkpoint)


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
