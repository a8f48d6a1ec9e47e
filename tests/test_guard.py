"""A loss that is no finite number: it stops the run, or the step is left out."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from runs_helpers import asked, epochs_of, network_state, small_run, watch_assembly

from cl_runner import cli
from cl_runner.config.compose import compose
from cl_runner.keeping.keeper import Keeper
from cl_runner.keeping.packing import Packer
from cl_runner.keeping.reading import last_of, read_state
from cl_runner.keeping.weights import optimizer_state
from cl_runner.recording import Console
from cl_runner.runner import RunFailed, run
from cl_runner.strategies.courses import courses
from cl_runner.training import guard as guards
from cl_runner.training.guard import Guard

KEPT = "trainer.checkpoint_minutes=0"
Place = tuple[int, int, int]


def place_of(strategy: Any) -> Place:
    """Task, epoch and step, from 1."""
    return strategy.experience.current_experience + 1, strategy.clock.train_exp_epochs + 1, strategy.keeper.step + 1


def poison_losses(monkeypatch, *places: Place, value: float = math.nan) -> list[Any]:
    """The losses of some steps are this value; returns the strategies of the runs."""

    def spoil(strategy: Any) -> None:
        criterion = strategy._criterion

        def loss(output: Any, target: Any) -> Any:
            found = criterion(output, target)
            return found * 0 + value if strategy.is_training and place_of(strategy) in places else found

        strategy._criterion = loss

    return watch_assembly(monkeypatch, spoil)


def poison_images(monkeypatch, *places: Place) -> None:
    """The images of some steps are no numbers, which a forward pass leaves in the running statistics too."""
    before_step = Guard.before_step

    def spoilt(self: Guard, strategy: Any) -> None:
        before_step(self, strategy)
        if place_of(strategy) in places:
            strategy.mbatch[0] = torch.full_like(strategy.mbatch[0], math.nan)

    monkeypatch.setattr(Guard, "before_step", spoilt)


def learned(strategy: Any) -> str:
    """Everything that a step may teach, in one text."""
    packer = Packer()
    state = [network_state(strategy.model), optimizer_state(strategy.optimizer), _lasting(courses(strategy))]
    plain = packer.pack([*state, [param.detach() for param in strategy.model.parameters()]])
    return json.dumps(plain) + repr({name: item.tolist() for name, item in packer.tensors().items()})


def _lasting(value: Any) -> Any:
    """Without how many batches a memory has given, and the weights that SI notes as a step begins."""
    if isinstance(value, dict):
        return {key: _lasting(item) for key, item in value.items() if key not in ("taken", "old_theta")}
    return [_lasting(item) for item in value] if isinstance(value, list | tuple) else value


def watch_steps(monkeypatch) -> dict[Place, tuple[str, str]]:
    """What everything that can be learned was before and after every step."""
    seen: dict[Place, tuple[str, str]] = {}
    before_step, stepped = Guard.before_step, Keeper.stepped
    begun: list[str] = []

    def before(self: Guard, strategy: Any) -> None:
        begun[:] = [learned(strategy)]
        before_step(self, strategy)

    def after(self: Keeper, strategy: Any) -> None:
        seen[place_of(strategy)] = begun[0], learned(strategy)
        stepped(self, strategy)

    monkeypatch.setattr(Guard, "before_step", before)
    monkeypatch.setattr(Keeper, "stepped", after)
    return seen


def events_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [event for event in events if event["event"] == kind]


def folder_in(root: Path) -> Path:
    (found,) = root.glob("*/*/config.yaml")
    return found.parent


def resumed(folder: Path) -> Any:
    given = [f"resume={folder}"]
    return run(compose(given), overrides=given)


# ------------------------------------------------------------------------------------------------------------- stop


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_such_a_loss_ends_the_run_before_it_is_learned_from(value, elsewhere, tmp_path, monkeypatch, capfd):
    made = poison_losses(monkeypatch, (2, 1, 3), value=value)
    before: list[torch.Tensor] = []
    before_step = Guard.before_step

    def watched(self: Guard, strategy: Any) -> None:
        before[:] = [param.detach().clone() for param in strategy.model.parameters()]
        before_step(self, strategy)

    monkeypatch.setattr(Guard, "before_step", watched)
    assert cli.execute([*asked("adapter=none", KEPT), f"output_root={tmp_path}"]) == 1
    said = " ".join(capfd.readouterr().err.split())
    shown = rf"the loss of task 2 is {value} at step 3 of epoch 1 \(samples ([\d, ]+), \.\.\. 16 in all\)"
    found = re.search(shown, said)
    assert found is not None, said
    assert [int(item) for item in found[1].split(",")] == made[0].lane.served.tolist()[:12]
    assert "on_nan=skip" in said and "optimizer.lr" in said
    folder = folder_in(tmp_path)
    assert "Traceback" not in said and "DivergedError" in (folder / "error.txt").read_text()

    named = dict(made[0].model.named_parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, named.values(), strict=True)), "it was learned from"
    last = last_of(folder, pytest.fail)
    assert f"the last good checkpoint is {last.number}, in task 2, epoch 1, step 2" in said
    kept = read_state(last, named.__getitem__, torch.device("cpu"))["weights"]
    assert all(torch.equal(kept[name], param) for name, param in named.items())


def test_what_stopped_goes_on_once_the_reason_is_gone(tmp_path, monkeypatch):
    calm = small_run(tmp_path / "calm", KEPT)
    with monkeypatch.context() as patch:
        poison_losses(patch, (2, 1, 2))
        with pytest.raises(RunFailed, match="at step 2 of epoch 1"):
            small_run(tmp_path / "stopped", KEPT)
    found = resumed(folder_in(tmp_path / "stopped"))
    assert found.matrix == calm.matrix
    one, other = (network_state(item.network) for item in (calm, found))
    assert all(torch.equal(one[name], other[name]) for name in one)


# ------------------------------------------------------------------------------------------------------------- skip

STRATEGIES = [
    ("naive",),
    ("naive", "optimizer=sgd", "optimizer.lr=0.05", "scheduler=cosine"),
    ("replay", "strategy.mem_size=20"),
    ("ewc",),
    ("si",),
    ("lwf",),
    ("gem", "strategy.mem_size=20"),
    ("agem", "strategy.mem_size=20"),
    ("der", "strategy.mem_size=20", "strategy.batch_size_mem=8"),
]


@pytest.mark.parametrize("given", STRATEGIES, ids=lambda given: given[0] + ("+sgd" if len(given) > 2 else ""))
def test_a_step_that_is_left_out_teaches_nothing(given, tmp_path, monkeypatch):
    bad = (2, 1, 2)
    seen = watch_steps(monkeypatch)
    poison_images(monkeypatch, bad)
    strategy, *more = given
    result = small_run(tmp_path, "adapter=none", f"strategy={strategy}", *more, "on_nan=skip")
    for place, (before, after) in seen.items():
        assert (before == after) == (place == bad), place
    assert len(seen) > 6
    (event,) = events_of(result.folder, "step_skipped")
    assert (event["task"], event["epoch"], event["step"]) == bad
    assert len(event["samples"]) >= 8
    assert result.summary["skipped_steps"] == 1
    assert json.loads((result.folder / "summary.json").read_text())["skipped_steps"] == 1
    assert all(bool(item.isfinite().all()) for item in result.network.state_dict().values())


@pytest.mark.parametrize("adapter", ["convlora", "codyra", "dylora"])
def test_an_adapter_learns_nothing_from_it_either(adapter, tmp_path, monkeypatch):
    seen = watch_steps(monkeypatch)
    poison_images(monkeypatch, (1, 1, 2), (2, 1, 1))
    result = small_run(tmp_path, f"adapter={adapter}", "on_nan=skip")
    skipped = {place for place, (before, after) in seen.items() if before == after}
    assert skipped == {(1, 1, 2), (2, 1, 1)} and result.summary["skipped_steps"] == 2


def test_the_samples_of_a_skipped_step_are_named(tmp_path, monkeypatch):
    served: list[list[int]] = []
    accepts = Guard.accepts

    def watched(self: Guard, strategy: Any) -> bool:
        served.append(strategy.lane.served.tolist())
        return accepts(self, strategy)

    monkeypatch.setattr(Guard, "accepts", watched)
    poison_losses(monkeypatch, (1, 1, 2))
    result = small_run(tmp_path, "on_nan=skip")
    assert events_of(result.folder, "step_skipped")[0]["samples"] == served[1]


def test_an_epoch_of_nothing_but_such_steps(tmp_path, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(Console, "warning", lambda self, text: warnings.append(text))
    poison_losses(monkeypatch, *((2, 1, step) for step in range(1, 100)))
    result = small_run(tmp_path, "trainer.epochs=2", "on_nan=skip", "report=true", "trainer.log_every=1")
    epochs = {(event["task"], event["epoch"]): event["train_loss"] for event in epochs_of(result.folder)}
    assert epochs[2, 1] is None, "there is no mean of no losses"
    assert all(math.isfinite(loss) for place, loss in epochs.items() if place != (2, 1))
    skipped = len(events_of(result.folder, "step_skipped"))
    assert skipped == result.summary["skipped_steps"] > 3
    told = [text for text in warnings if "skipped" in text]
    assert len(told) == 2, "the first step, and how many there were"
    assert "step 1 of epoch 1 of task 2" in told[0] and told[1].startswith(f"{skipped} training steps")
    assert not [text for text in warnings if "report" in text]
    assert (result.folder / "report.html").exists()


def test_no_step_is_skipped_and_nothing_is_said(tmp_path, monkeypatch):
    warnings: list[str] = []
    monkeypatch.setattr(Console, "warning", lambda self, text: warnings.append(text))
    result = small_run(tmp_path, "on_nan=skip")
    assert "skipped_steps" not in result.summary and not [text for text in warnings if "skipped" in text]
    stopping = small_run(tmp_path / "other")
    assert stopping.matrix == result.matrix, "looking changes nothing"


class Killed(BaseException):
    """As by SIGKILL."""


def test_skipped_steps_are_counted_over_all_attempts(tmp_path, monkeypatch):
    bad = ((1, 1, 2), (2, 1, 1), (2, 1, 3))
    with monkeypatch.context() as patch:
        poison_losses(patch, *bad)
        calm = small_run(tmp_path / "calm", "on_nan=skip", KEPT)
    with monkeypatch.context() as patch:
        poison_losses(patch, *bad)
        stepped = Keeper.stepped

        def killed(self: Keeper, strategy: Any) -> None:
            place = place_of(strategy)
            stepped(self, strategy)
            if place == (2, 1, 2):
                raise Killed

        with patch.context() as more:
            more.setattr(Keeper, "stepped", killed)
            with pytest.raises(Killed):
                small_run(tmp_path / "wild", "on_nan=skip", KEPT)
        found = resumed(folder_in(tmp_path / "wild"))
    assert found.summary["skipped_steps"] == calm.summary["skipped_steps"] == 3
    places = [(event["task"], event["epoch"], event["step"]) for event in events_of(found.folder, "step_skipped")]
    assert tuple(places) == bad
    one, other = (network_state(item.network) for item in (calm, found))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_weights_that_are_no_numbers_are_not_skipped_over(tmp_path, monkeypatch):
    """A finite loss may have a gradient that is not; then nothing is left to learn, and validation says so."""
    made = watch_assembly(monkeypatch)
    optimized: list[int] = []
    step = torch.optim.Adam.step

    def spoils(self: Any, *given: Any, **named: Any) -> Any:
        optimized.append(1)
        if len(optimized) == 3:
            for group in self.param_groups:
                for param in group["params"]:
                    param.data.fill_(math.nan)
        return step(self, *given, **named)

    monkeypatch.setattr(torch.optim.Adam, "step", spoils)
    with pytest.raises(RunFailed, match="the validation loss of task 1 is nan in epoch 1"):
        small_run(tmp_path, "on_nan=skip", "benchmark.validation_fraction=0.2", "adapter=none")
    assert made[0].guard.skipped > 0


# ------------------------------------------------------------------------------------------------- far from the host


@pytest.fixture
def far(monkeypatch):
    """Losses count as those of a device that should not be waited for; the number of looks is returned."""
    looks: list[int] = []
    monkeypatch.setattr(guards, "_is_far", lambda loss: True)
    look = Guard.look

    def counted(self: Guard, strategy: Any) -> None:
        looks.append(len(self._judged))
        look(self, strategy)

    monkeypatch.setattr(Guard, "look", counted)
    return looks


def test_far_from_the_host_the_judgements_are_read_now_and_then(far, tmp_path, monkeypatch):
    made = poison_losses(monkeypatch, (1, 7, 4), (1, 8, 1))
    with pytest.raises(RunFailed, match=r"task 1 is no finite number at step 4 of epoch 7 \(samples \d+, "):
        small_run(tmp_path, "trainer.epochs=20", "trainer.checkpoint_minutes=null")
    assert set(far) == {made[0].epoch_batches}, "once an epoch, as it is shorter than fifty steps"
    with pytest.raises(RunFailed, match="at step 3 of epoch 1"):
        far.clear()
        poison_losses(monkeypatch, (1, 1, 3))
        small_run(tmp_path / "long", "trainer.iterations=120", "trainer.checkpoint_minutes=null")
    assert far == [50], "every fifty steps"


def test_far_from_the_host_nothing_spoilt_is_kept(far, tmp_path, monkeypatch):
    poison_losses(monkeypatch, (2, 1, 3))
    with pytest.raises(RunFailed, match=r"at step 3 of epoch 1(.|\n)*the last good checkpoint is"):
        small_run(tmp_path, KEPT)
    last = last_of(folder_in(tmp_path), pytest.fail)
    assert last.where == "in task 2, epoch 1, step 2"


def test_far_from_the_host_a_run_without_such_losses_is_the_same(far, tmp_path, monkeypatch):
    found = small_run(tmp_path / "far")
    monkeypatch.setattr(guards, "_is_far", lambda loss: False)
    assert found.matrix == small_run(tmp_path / "near").matrix


def test_where_steps_are_skipped_every_loss_is_waited_for(far, tmp_path, monkeypatch):
    poison_losses(monkeypatch, (1, 1, 2))
    assert small_run(tmp_path, "on_nan=skip").summary["skipped_steps"] == 1
    assert not any(far)
