"""What happens within a task: validation, early stopping, schedules, optimiser state, iterations, precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EWCPlugin
from runs_helpers import Watch, as_array, epochs_of, network_state, same, small_run, table, watch_assembly
from torch.nn import functional

from cl_runner.benchmarks.classes import SplitDigits
from cl_runner.runner import RunFailed
from cl_runner.training.monitor import TrainingMonitor
from cl_runner.training.schedules import Constant, Cosine, MultiStep, Plateau

VALIDATED = ("benchmark.validation_fraction=0.2", "trainer.epochs=6")


def scripted(monkeypatch: Any, *tasks: list[float]) -> None:
    """Replaces the validation losses by these, a list a task."""
    monkeypatch.setattr(
        TrainingMonitor, "_validate", lambda self, strategy: (tasks[self.task][self.epoch - 1], 0.5), raising=True
    )


def snapshots(monkeypatch: Any) -> tuple[list, list]:
    """(weights after each epoch, before the monitor acts; weights when each task ends) of the runs to come."""
    after_epoch: list[list[dict]] = []
    at_end: list[dict] = []
    watch = Watch(
        before_training_exp=lambda s: after_epoch.append([]),
        after_training_epoch=lambda s: after_epoch[-1].append(network_state(s.model)),
        after_training_exp=lambda s: at_end.append(network_state(s.model)),
    )
    watch_assembly(monkeypatch, lambda strategy: strategy.plugins.insert(0, watch))
    return after_epoch, at_end


# --------------------------------------------------------------------------------------- early stopping

SEQUENCES = [  # validation losses, patience, epochs trained, best epoch
    ([3, 2, 2.5, 2.6, 1, 1], 2, 4, 2),
    ([3, 2, 2.5, 1.9, 1.95, 1.8], 2, 6, 6),
    ([1, 2, 3, 4, 5, 6], 1, 2, 1),
    ([1, 1, 1, 1, 1, 1], 3, 4, 1),
    ([6, 5, 4, 3, 2, 3], 1, 6, 5),
    ([3, 2, 2.5, 2.6, 2.7, 2.8], None, 6, 2),
]


@pytest.mark.parametrize("adapter", ["none", "convlora"])
@pytest.mark.parametrize(("losses", "patience", "epochs", "best"), SEQUENCES)
def test_a_task_ends_with_its_best_epoch(losses, patience, epochs, best, adapter, tmp_path, monkeypatch):
    scripted(monkeypatch, losses, [5.0, 4.0, 3.0, 2.0, 1.0, 0.5])
    after_epoch, at_end = snapshots(monkeypatch)
    given = "null" if patience is None else patience
    result = small_run(tmp_path, f"adapter={adapter}", *VALIDATED, f"trainer.patience={given}")
    rows = table(result.folder / "parameters.csv")
    assert [(int(row["epochs"]), int(row["best_epoch"])) for row in rows] == [(epochs, best), (6, 6)]
    assert [len(states) for states in after_epoch] == [epochs, 6], "patience of one task reached into the next"
    assert same(at_end[0], after_epoch[0][best - 1]), "weights or running statistics are not those of the best epoch"
    assert not same(after_epoch[0][0], after_epoch[0][1])
    assert same(at_end[1], after_epoch[1][5])


def test_the_last_epoch_stays_where_restoring_is_off(tmp_path, monkeypatch):
    scripted(monkeypatch, [1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6])
    after_epoch, at_end = snapshots(monkeypatch)
    result = small_run(tmp_path, "adapter=none", *VALIDATED, "trainer.restore_best=false", "trainer.patience=2")
    assert same(at_end[0], after_epoch[0][-1]) and len(after_epoch[0]) == 3
    assert [row["best_epoch"] for row in table(result.folder / "parameters.csv")] == ["1", "1"]


def test_importances_are_those_of_the_best_weights(tmp_path, monkeypatch):
    scripted(monkeypatch, [2, 1, 3, 3, 3, 3], [1] * 6)
    saved: list[dict] = []
    best: list[dict] = []
    before = Watch(after_training_epoch=lambda s: best.append(network_state(s.model)))
    after = Watch(
        before_training_exp=lambda s: saved.append(
            {k: v.data for p in s.plugins if isinstance(p, EWCPlugin) for k, v in p.saved_params[0].items()}
        )
    )
    watch_assembly(monkeypatch, lambda s: s.plugins.__setitem__(slice(None), [before, *s.plugins, after]))
    small_run(tmp_path, "adapter=none", "strategy=ewc", *VALIDATED)
    assert len(saved[1]) > 4
    for name, tensor in saved[1].items():
        assert torch.equal(tensor, best[1][name]), "EWC holds on to another epoch than the best"


@pytest.mark.parametrize("strategy", ["naive", "joint"])
@pytest.mark.parametrize("labels", ["true", "false"])
def test_nothing_but_the_validation_split_is_watched(strategy, labels, tmp_path, monkeypatch):
    asked: list[list[int]] = []

    def look(made: Any) -> None:
        evaluation = made.lane.evaluation

        def spied(ids: torch.Tensor, batch_size: int) -> Any:
            if made.is_training:
                asked.append(ids.tolist())
            return evaluation(ids, batch_size)

        made.lane.evaluation = spied

    watch_assembly(monkeypatch, look)
    typed = ["adapter=none", f"strategy={strategy}", f"benchmark.task_labels={labels}", *VALIDATED]
    if strategy == "naive":
        typed.append("trainer.prefix_cache=false")  # which looks at some training images when a task begins
    result = small_run(tmp_path, *typed, "trainer.patience=2")
    stream = SplitDigits(n_tasks=2, per_class=20, validation_fraction=0.2, task_labels=labels == "true")
    tasks = stream.stream(tmp_path).tasks
    parts = {tuple(task.validation.ids.tolist()): task for task in tasks}
    assert {tuple(ids) for ids in asked} == set(parts), "something else than the validation split was evaluated"

    last = epochs_of(result.folder)
    if strategy == "naive":
        last = [event for event in last if event["task"] == 2]
        tasks = tasks[1:]
    network = result.network.eval()
    losses = []
    for task in tasks:
        x, y = task.validation[:]
        with torch.no_grad():
            logits = network(x, torch.full_like(y, task.index)) if labels == "true" else network(x)
        losses.append(functional.cross_entropy(logits, y).item())
    best = min(event["validation_loss"] for event in last)
    assert best == pytest.approx(np.mean(losses), rel=1e-5), "the weights that stayed do not give the best loss"


def test_without_a_split_there_is_no_best_epoch(tmp_path):
    result = small_run(tmp_path, "adapter=none", "trainer.epochs=2")
    assert [row["best_epoch"] for row in table(result.folder / "parameters.csv")] == ["", ""]
    assert all(event["validation_loss"] is None for event in epochs_of(result.folder))


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_validation_loss_that_is_no_number_ends_the_run_with_a_reason(loss, tmp_path, monkeypatch):
    scripted(monkeypatch, [loss] * 6, [loss] * 6)
    with pytest.raises(RunFailed, match=f"validation loss of task 1 is {loss} in epoch 1; try a lower optimizer.lr"):
        small_run(tmp_path, "adapter=none", *VALIDATED)


# --------------------------------------------------------------------------------------------- schedules


def rates(schedule: Constant, optimizer: torch.optim.Optimizer, epochs: int, batches: int, losses: Any = None) -> list:
    """The learning rate of every step of a task."""
    schedule.begin(optimizer, epochs * batches)
    seen = []
    for epoch in range(epochs):
        for _ in range(batches):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.after_step()
        schedule.after_epoch(losses[epoch] if losses else None)
    return seen


STILL = [1.0] * 6
EXPECTED = [
    (Constant(), None, [0.5] * 12),
    (Cosine(min_lr=0.1), None, [0.1 + 0.4 * (1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]),
    (MultiStep(milestones=[2, 5], gamma=0.1), None, [0.5] * 4 + [0.05] * 6 + [0.005] * 2),
    (Plateau(patience=1, factor=0.1), STILL, [0.5] * 6 + [0.05] * 4 + [0.005] * 2),
    (Plateau(patience=1, factor=0.1), [6, 5, 4, 3, 2, 1], [0.5] * 12),
    (Plateau(patience=0, factor=0.1, min_lr=0.02), STILL, [0.5] * 4 + [0.05] * 2 + [0.02] * 6),
]


@pytest.mark.parametrize(("schedule", "losses", "expected"), EXPECTED)
@pytest.mark.parametrize("carried", [False, True])
def test_every_task_follows_the_schedule_from_its_start(schedule, losses, expected, carried):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    for _ in range(3):
        if not carried:
            optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        assert rates(schedule, optimizer, 6, 2, losses) == pytest.approx(expected, rel=1e-6)


def test_the_plateau_schedule_follows_the_validation_loss(tmp_path, monkeypatch):
    scripted(monkeypatch, [3, 2, 2, 2, 2, 2], [6, 5, 4, 3, 2, 1])
    typed = ["scheduler=plateau", "scheduler.patience=1", "scheduler.factor=0.5", "optimizer.lr=0.01"]
    result = small_run(tmp_path, "adapter=none", *VALIDATED, *typed)
    seen = [event["learning_rate"] for event in epochs_of(result.folder)]
    assert seen == pytest.approx([0.01] * 4 + [0.005] * 2 + [0.01] * 6)


def steps_of(monkeypatch: Any, folder: Any, *typed: str) -> list[list[float]]:
    """The learning rate of every optimiser step, a list a task."""
    seen: list[list[float]] = []
    watch = Watch(
        before_training_exp=lambda s: seen.append([]),
        before_update=lambda s: seen[-1].append(s.optimizer.param_groups[0]["lr"]),
    )
    watch_assembly(monkeypatch, lambda strategy: strategy.plugins.append(watch))
    small_run(folder, "adapter=none", "optimizer.lr=0.01", *typed)
    return seen


@pytest.mark.parametrize("strategy", ["naive", "replay", "cumulative", "der", "gem"])
@pytest.mark.parametrize("reset", ["true", "false"])
def test_iterations_and_cosine_fit_each_other(strategy, reset, tmp_path, monkeypatch):
    typed = ["trainer.iterations=20", "scheduler=cosine", f"trainer.reset_optimizer={reset}", f"strategy={strategy}"]
    tasks = steps_of(monkeypatch, tmp_path, *typed)
    expected = [0.01 * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)]
    assert len(tasks) == 2
    for task in tasks:
        assert task == pytest.approx(expected, rel=1e-5)


# ------------------------------------------------------------------------------- optimiser and precision


@pytest.mark.parametrize(
    ("adapter", "reset", "carried"), [("none", "true", False), ("none", "false", True), ("convlora", "false", False)]
)
def test_optimiser_state_is_reset_or_carried_on(adapter, reset, carried, tmp_path, monkeypatch):
    optimisers: list[Any] = []
    steps: list[float] = []
    watch = Watch(
        before_training_exp=lambda s: optimisers.append(s.optimizer),
        after_training_exp=lambda s: steps.append(max(float(v["step"]) for v in s.optimizer.state.values())),
    )
    watch_assembly(monkeypatch, lambda strategy: strategy.plugins.append(watch))
    small_run(tmp_path, f"adapter={adapter}", "strategy=naive", f"trainer.reset_optimizer={reset}")
    first, second = steps
    assert (optimisers[0] is optimisers[1]) == carried
    assert second == (2 * first if carried else first) == (14 if carried else 7)


def test_the_optimiser_holds_only_what_trains(tmp_path, monkeypatch):
    counts: list[tuple[int, int]] = []

    def look(strategy: Any) -> None:
        held = [item for group in strategy.optimizer.param_groups for item in group["params"]]
        assert all(item.requires_grad for item in held)
        open_now = sum(item.numel() for item in strategy.model.parameters() if item.requires_grad)
        counts.append((sum(item.numel() for item in held), open_now))

    watch_assembly(monkeypatch, lambda s: s.plugins.append(Watch(before_training_exp=look)))
    result = small_run(tmp_path, "adapter=convlora", "benchmark.n_tasks=5")
    assert all(held == open_now for held, open_now in counts)
    rows = table(result.folder / "parameters.csv")
    assert [int(row["trainable"]) for row in rows] == [held for held, _ in counts]
    assert counts[1] == counts[4] and counts[1][0] < counts[0][0]


@pytest.mark.parametrize("adapter", ["none", "convlora"])
@pytest.mark.parametrize(
    ("typed", "tolerance"), [("trainer.precision=bfloat16", 0.06), ("trainer.channels_last=true", 0.02)]
)
def test_other_precisions_and_formats_come_close_to_float32(adapter, typed, tolerance, tmp_path, monkeypatch):
    formats: list[bool] = []
    types: set[torch.dtype] = set()

    def look(strategy: Any) -> None:
        formats.append(strategy.mb_x.is_contiguous(memory_format=torch.channels_last))
        types.add(strategy.mb_output.dtype)
        weights = [(name, item) for name, item in strategy.model.named_parameters() if item.dim() == 4]
        wide = [item for name, item in weights if item.shape[1] > 1 and "deltas" not in name]
        assert wide
        if "channels_last" in typed:
            formats.extend(item.is_contiguous(memory_format=torch.channels_last) for item in wide)

    common = [f"adapter={adapter}", "trainer.epochs=4", "backbone.width=16", "optimizer.lr=0.005"]
    plain = small_run(tmp_path, *common)
    watch_assembly(monkeypatch, lambda s: s.plugins.append(Watch(after_forward=look)))
    other = small_run(tmp_path, *common, typed)
    difference = np.abs(as_array(plain.matrix) - as_array(other.matrix))
    assert difference.mean() < tolerance and plain.summary["acc"] > 0.5
    assert types == {torch.float32} and all(formats)  # one channel is contiguous in both formats
    for item in other.network.parameters():
        assert item.dtype == torch.float32 and item.is_contiguous(), "as files of weights have them"
    if "bfloat16" in typed:
        assert difference.max() > 0 or not same(network_state(plain.network), network_state(other.network))


@pytest.mark.parametrize("strategy", ["icarl", "der", "gem", "replay"])
def test_bfloat16_runs_with_methods_of_their_own_forward(strategy, tmp_path):
    result = small_run(tmp_path, "adapter=none", f"strategy={strategy}", "trainer.precision=bfloat16")
    assert np.isfinite(as_array(result.matrix)).all()


@pytest.mark.parametrize("strategy", ["naive", "cumulative"])
def test_validation_covers_what_training_covers(strategy, tmp_path, monkeypatch):
    from cl_runner.training.lane import Lane

    tasks_validated: list[int] = []
    evaluation = Lane.evaluation

    def counted(lane, ids, batch_size):
        tasks_validated.append(len(set((lane.store.host_labels[ids]).tolist())))
        return evaluation(lane, ids, batch_size)

    # Two classes a task; test data is left out by evaluating only at the end. One call for each validated task.
    monkeypatch.setattr(Lane, "evaluation", counted)
    typed = ["adapter=none", f"strategy={strategy}", "benchmark.n_tasks=5", "benchmark.validation_fraction=0.3"]
    if strategy == "naive":
        typed.append("trainer.prefix_cache=false")
    small_run(tmp_path, *typed, "trainer.epochs=1", "evaluate=last")
    per_task = [1] * 5 if strategy == "naive" else [1, 2, 3, 4, 5]
    assert len(tasks_validated) == sum(per_task) + 5  # and the five test parts of the last row
    assert set(tasks_validated) == {2}
