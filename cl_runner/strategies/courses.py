"""What strategies have gathered in the task that is being trained, and back.

Our own plugins say it with methods (`course`, `take_up`); for Avalanche's it is said here. What a plugin derives from
the network at the start of a task is not part of it: a task that is taken up has begun anew, from the same network.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

from avalanche.training.plugins import SynapticIntelligencePlugin
from avalanche.training.supervised.icarl import _ICaRLPlugin

from cl_runner.strategies.avalanche_classes import LaneDER
from cl_runner.strategies.memories import State, as_data, as_tensors, counts_of, set_counts, sizes
from cl_runner.strategies.restartable import LaneAGEM


def courses(strategy: Any) -> list[State]:
    """What a strategy has gathered in the present task, part by part."""
    return [counts_of(strategy), *(course_of(part) for part in (strategy, *strategy.plugins))]


def take_up_all(strategy: Any, states: Sequence[State]) -> None:
    """Gives a strategy that has begun the task what `courses` took."""
    counts, *rest = states
    set_counts(strategy, counts)
    for part, state in zip((strategy, *strategy.plugins), rest, strict=True):
        take_up(part, state)


@singledispatch
def course_of(part: Any) -> State:
    """What one part has gathered in the present task."""
    return part.course() if hasattr(part, "course") else {}


@singledispatch
def take_up(part: Any, state: State) -> None:
    """Gives one part what it had gathered."""
    if hasattr(part, "take_up"):
        part.take_up(state)


@course_of.register
def _(part: SynapticIntelligencePlugin) -> State:
    return {name: as_tensors(part.syn_data[name]) for name in ("old_theta", "new_theta", "grad", "trajectory")}


@take_up.register
def _(part: SynapticIntelligencePlugin, state: State) -> None:
    for name, weights in state.items():
        part.syn_data[name] = as_data(weights)  # type: ignore[assignment]


@course_of.register
def _(part: LaneAGEM) -> State:
    return {"taken": part.buffer_dliter.taken if part.buffers else 0}


@take_up.register
def _(part: LaneAGEM, state: State) -> None:
    if part.buffers:
        part.buffer_dliter.skip_to(state["taken"])


@course_of.register
def _(part: LaneDER) -> State:
    return {"taken": part.memory.taken if part.memory is not None else 0}


@take_up.register
def _(part: LaneDER, state: State) -> None:
    if part.memory is not None:
        part.memory.skip_to(state["taken"])


@course_of.register
def _(part: _ICaRLPlugin) -> State:
    return sizes(part)


@take_up.register
def _(part: _ICaRLPlugin, state: State) -> None:
    for name, value in state.items():
        setattr(part, name, value)
