"""Runs that are killed and taken up again, in this process, and what they are compared with."""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf
from runs_helpers import asked

from cl_runner import evaluation
from cl_runner.config.compose import compose
from cl_runner.keeping.keeper import Keeper
from cl_runner.recording import environment
from cl_runner.runner import RunResult, run

EVERY_STEP = ("trainer.checkpoint_minutes=0",)
EVERY_EPOCH = ("trainer.checkpoint_minutes=null", "trainer.checkpoint_epochs=1")
EVERY_TASK = ("trainer.checkpoint_minutes=null",)
INTERVALS = (EVERY_STEP, EVERY_EPOCH, EVERY_TASK)


def _chaos() -> Any:
    place = Path(__file__).parents[1] / "scripts" / "chaos.py"
    spec = importlib.util.spec_from_file_location("chaos", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["chaos"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


chaos = _chaos()


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out what takes time and has no part in this: asking git, and waiting for the disk."""
    monkeypatch.setattr(environment, "_command", lambda *given: None)
    monkeypatch.setattr("os.fsync", lambda handle: None)


class Killed(BaseException):
    """Nothing handles it, so that a run is left as by SIGKILL."""


@contextmanager
def watched(place: str = "", act: Callable[[], None] = lambda: None) -> Iterator[list[str]]:
    """Acts once, at a place of a run; collects the places of all steps that are executed.

    Args:
        place: "2.1.3" after step 3 of epoch 1 of task 2, "2.1.end" after that epoch, "2.trained" after the task,
            "2.evaluate" before the evaluation after it, "2.evaluated" after that. The act comes before the run is kept
            there.
        act: raises, or sends a signal.
    """
    steps: list[str] = []
    acted: list[str] = []

    def reached(here: str) -> None:
        if here == place and not acted:
            acted.append(here)
            act()

    with pytest.MonkeyPatch.context() as patch:
        evaluate = evaluation.evaluate

        def evaluated(*args: Any, tasks_seen: int, **kwargs: Any) -> None:
            reached(f"{tasks_seen}.evaluate")
            evaluate(*args, tasks_seen=tasks_seen, **kwargs)

        def told(name: str, where: Callable[..., str]) -> None:
            method = getattr(Keeper, name)

            def telling(self: Keeper, given: Any) -> None:
                reached(where(self, given))
                method(self, given)

            patch.setattr(Keeper, name, telling)

        def step(keeper: Keeper, strategy: Any) -> str:
            steps.append(f"{_task(strategy)}.{strategy.clock.train_exp_epochs + 1}.{keeper.step + 1}")
            return steps[-1]

        patch.setattr(evaluation, "evaluate", evaluated)
        told("stepped", step)
        told("epoch_ended", lambda keeper, strategy: f"{_task(strategy)}.{strategy.clock.train_exp_epochs}.end")
        told("phase_trained", lambda keeper, done: f"{done}.trained")
        told("phase_evaluated", lambda keeper, done: f"{done}.evaluated")
        yield steps
    assert acted or not place, f"the run never came to {place}"


def _task(strategy: Any) -> int:
    return int(strategy.experience.current_experience) + 1


def kill() -> None:
    """The act of being killed."""
    raise Killed


@functools.cache
def _composed(*typed: str) -> Any:
    return compose(list(typed))


def start(root: Path, typed: Sequence[str], interval: Sequence[str] = ()) -> RunResult:
    """Runs a request in a folder below ``root``, with checkpoints at an interval."""
    config, given = copy.deepcopy(_composed(*typed)), (*interval, f"output_root={root}")
    for item in given:
        key, _, value = item.partition("=")
        OmegaConf.update(config, key, yaml.safe_load(value))
    return run(config, experiment="quickstart", overrides=[*typed, *given])


def folder_in(root: Path) -> Path:
    """The one run folder below ``root``."""
    (found,) = root.glob("*/*/config.yaml")
    return found.parent


def resume(folder: Path) -> RunResult:
    """Takes a run up."""
    config = copy.deepcopy(_composed("resume=somewhere", "quiet=true"))
    config.resume = str(folder)
    return run(config, overrides=[f"resume={folder}", "quiet=true"])


def killed_at(place: str, root: Path, typed: Sequence[str] = (), interval: Sequence[str] = ()) -> Path:
    """Runs a request, or goes on with the run below ``root``, up to a place; returns the run folder."""
    with pytest.raises(Killed), watched(place, kill):
        if typed:
            start(root, typed, interval)
        else:
            resume(folder_in(root))
    return folder_in(root)


def tormented(
    root: Path, typed: Sequence[str], places: Sequence[str], interval: Sequence[str] = EVERY_STEP
) -> tuple[Path, list[str]]:
    """Runs a request that is killed at each of some places, one after the other, and then comes to its end.

    Returns:
        The run folder, and the steps that the last attempt executed.
    """
    for number, place in enumerate(places):
        killed_at(place, root, () if number else typed, interval)
    with watched() as steps:
        resume(folder_in(root))
    return folder_in(root), steps


class Calm:
    """Runs that nobody interrupts, each request once."""

    def __init__(self, factory: Any) -> None:
        self._factory = factory
        self._known: dict[tuple[str, ...], Path] = {}

    def __call__(self, *typed: str) -> Path:
        """The folder of the finished run."""
        if typed not in self._known:
            root = self._factory.mktemp("calm")
            start(root, typed)
            self._known[typed] = folder_in(root)
        return self._known[typed]


def same_run(expected: Path, found: Path, *, steps: bool = True) -> None:
    """Asserts that two finished runs are equal, times apart: tables, events in their order, every tensor.

    Args:
        expected: the folder of one.
        found: that of the other.
        steps: whether steps were logged, each of which must be there once.
    """
    assert (found / "DONE").exists()
    assert chaos.compare(expected, found) == []
    logged = [(item["task"], item["epoch"], item["step"]) for item in _events(found) if item["event"] == "step"]
    assert bool(logged) == steps and len(set(logged)) == len(logged)


def _events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


def small(*overrides: str) -> tuple[str, ...]:
    """The small settings with every step logged."""
    return (*asked(*overrides), "trainer.log_every=1")
