"""Recorded steps against steps as they are; a tape on the CPU stands for the CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs_helpers import network_state, small_run, table
from tape import Tape

from cl_runner import learning
from cl_runner.training.capture import MOST_GRAPHS, WARM, CapturedStep, CudaGraph, step_for
from cl_runner.training.step import Step

EXACT_RATE = "optimizer.lr=0.0009765625"  # 2 ** -10, the same number in float32
LONGER = ("trainer.epochs=4", "benchmark.per_class=30", EXACT_RATE, "trainer.log_every=1")

Step_ = Callable[..., Any]


def run_with(monkeypatch: pytest.MonkeyPatch, folder: Path, make: Callable[[Any], Step], *typed: str) -> Any:
    """A run whose steps are made by what ``make`` gives; returns it, its steps and what was told."""
    told: list[str] = []
    made: list[Any] = []

    def chosen(wanted: Any, device: Any, tell: Any) -> Step:
        made.append(make(told.append))
        return made[-1]

    monkeypatch.setattr(learning, "step_for", chosen)
    return small_run(folder, *LONGER, *typed), made[0], told


def compared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *typed: str, exact: bool = True) -> tuple[Any, list[str]]:
    """Asserts that recorded and plain steps give the same run; returns the recording step and what was told."""
    plain, _, _ = run_with(monkeypatch, tmp_path / "plain", lambda tell: Step(), *typed)
    run, step, told = run_with(monkeypatch, tmp_path / "taped", lambda tell: CapturedStep(tell, Tape), *typed)
    expected, found = network_state(plain.network), network_state(run.network)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        if exact:
            assert torch.equal(value, found[name]), name
        else:
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)
    if exact:
        assert plain.matrix == run.matrix
        for column in ("task", "trainable", "stored"):
            rows = [[row.get(column) for row in table(item.folder / "parameters.csv")] for item in (plain, run)]
            assert rows[0] == rows[1]
    return step, told


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize(
    "adapter",
    [
        ("adapter=none",),
        ("adapter=convlora", "adapter.rank=1"),
        ("adapter=senacnn",),
        ("adapter=lora", "adapter.dropout=0.2", "placement=linears", "placement.head=true"),
        ("adapter=dylora", "adapter.rank=2"),
        ("adapter=dclora", "adapter.rank=2"),
        ("adapter=codyra", "adapter.rank=2", "adapter.base=frozen", "adapter.kappa_max=0.05"),
    ],
    ids=lambda words: words[0].partition("=")[2],
)
def test_recorded_steps_give_the_same_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, adapter: tuple[str, ...], optimizer: str
) -> None:
    """Every weight and statistic, to the bit, for every adapter that can be recorded; and most steps are replays."""
    if optimizer != "adam" and adapter[0] not in ("adapter=convlora", "adapter=none"):
        pytest.skip("every optimiser with two adapters, and every adapter with one optimiser")
    step, told = compared(monkeypatch, tmp_path, f"optimizer={optimizer}", *adapter)
    assert not told
    assert step.recorded == 4, "whole batches and the last ones, in both tasks"
    assert step.repeated > 20


def test_without_task_labels_and_with_a_shared_head(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No mask, no routing."""
    step, _ = compared(monkeypatch, tmp_path, "benchmark.task_labels=false", "adapter=none")
    assert step.repeated > 20


def test_a_schedule_reaches_the_recorded_optimiser(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The learning rate changes at every step; it is a float32 in the graph, hence the tolerance."""
    typed = ("adapter=convlora", "adapter.rank=1", "scheduler=cosine", "optimizer.lr=0.05")
    step, _ = compared(monkeypatch, tmp_path, *typed, exact=False)
    assert step.repeated > 20
    other, _, _ = run_with(monkeypatch, tmp_path / "b", lambda tell: Step(), *typed[:2], "optimizer.lr=0.05")
    run, _, _ = run_with(monkeypatch, tmp_path / "c", lambda tell: CapturedStep(tell, Tape), *typed)
    name = next(name for name in network_state(run.network) if name.endswith(".A"))
    apart = (network_state(run.network)[name] - network_state(other.network)[name]).abs().max()
    assert apart > 1e-3, "without the schedule the weights would be others"


def test_losses_of_single_steps_are_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every replay writes its loss to the same place: what was logged of earlier steps must not change with it."""
    from cl_runner.recording.events import read_events

    runs = [
        run_with(monkeypatch, tmp_path / "plain", lambda tell: Step(), "adapter=none")[0],
        run_with(monkeypatch, tmp_path / "taped", lambda tell: CapturedStep(tell, Tape), "adapter=none")[0],
    ]
    losses = [[event for event in read_events(run.folder / "events.jsonl") if "loss" in event] for run in runs]
    pick = [[(event["event"], event.get("step"), event["loss"]) for event in found] for found in losses]
    assert pick[0] == pick[1]
    assert len({loss for _, step, loss in pick[0] if step}) > 10


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        (("strategy=lwf", "adapter=none"), "acts in the middle of every step"),
        (("adapter=dylora", "adapter.rank=2", "adapter.training=random_rank"), "something else at every step"),
        (("on_nan=skip", "adapter=none"), "on_nan=skip"),
        (("strategy=der", "strategy.mem_size=20", "adapter=none"), "a step of its own"),
    ],
)
def test_what_cannot_be_recorded_is_computed_as_it_is_and_said_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, typed: tuple[str, ...], reason: str
) -> None:
    """The run is the plain one, and one line says why."""
    step, told = compared(monkeypatch, tmp_path, *typed)
    assert step.recorded == step.repeated == 0
    assert len(told) == 1 and reason in told[0]


def test_batches_of_several_tasks_are_computed_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Replay mixes tasks, and which rows are whose differs from batch to batch; its first task is recorded."""
    step, _ = compared(monkeypatch, tmp_path, "strategy=replay", "strategy.mem_size=20", "adapter=none")
    assert step.recorded == 2


def test_a_step_that_waits_for_the_device_is_not_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A penalty that reads a number back breaks the recording; the run goes on without, and says so."""
    from cl_runner.adapters import NoAdapter

    penalty = lambda self: torch.zeros(()) * float(next(self.model.parameters()).detach().sum())  # noqa: E731
    monkeypatch.setattr(NoAdapter, "penalty", penalty)
    step, told = compared(monkeypatch, tmp_path, "adapter=none")
    assert step.recorded == 0
    assert len(told) == 1 and "not permitted" in told[0]


def test_every_shape_of_batch_has_a_graph_up_to_a_limit() -> None:
    """A further shape is computed in the ordinary way."""
    step = CapturedStep(lambda reason: None, Tape)
    step._reason, step._memory = None, []
    learned: list[int] = []
    step._record = lambda strategy, key, images, labels, tasks: step._graphs.setdefault(key, object())  # type: ignore
    step._repeat = lambda strategy, found: learned.append(1)  # type: ignore[method-assign]

    class Strategy:
        model = type("Model", (), {"task_labels": True, "training": True})()
        guard = type("Guard", (), {"accepts": lambda self, strategy: True})()
        events = type("Events", (), {"fire": lambda self, name: None})()

    monkey = pytest.MonkeyPatch()
    monkey.setattr(Step, "learn", lambda self, strategy: True)
    strategy = Strategy()
    for size in range(1, MOST_GRAPHS + 3):
        strategy.mbatch = [torch.zeros(size + 1, 1), torch.zeros(size + 1), torch.zeros(1).long().expand(size + 1)]
        for _ in range(WARM + 2):
            step.learn(strategy)
    monkey.undo()
    assert len(step._graphs) == MOST_GRAPHS
    assert len(learned) == MOST_GRAPHS


def test_which_steps_a_run_gets() -> None:
    """Recorded on CUDA unless it is switched off; on the CPU as they are, with a word where it was asked for."""
    told: list[str] = []
    assert type(step_for("auto", torch.device("cpu"), told.append)) is Step and not told
    assert type(step_for(True, torch.device("cpu"), told.append)) is Step and "cpu" in told[0]
    assert type(step_for(False, torch.device("cuda"), told.append)) is Step


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("adapter", ["none", "convlora", "senacnn", "lora", "dylora", "dclora", "codyra"])
def test_recorded_on_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, adapter: str) -> None:
    """The same with the real graph."""
    typed = ("trainer.device=cuda", f"adapter={adapter}")
    plain, _, _ = run_with(monkeypatch, tmp_path / "plain", lambda tell: Step(), *typed)
    run, step, told = run_with(
        monkeypatch, tmp_path / "graph", lambda tell: CapturedStep(tell, lambda: CudaGraph()), *typed
    )
    assert not told and step.repeated > 20
    for name, value in network_state(plain.network).items():
        torch.testing.assert_close(network_state(run.network)[name], value, rtol=1e-3, atol=1e-4)
