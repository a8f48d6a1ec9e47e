"""Evaluation: Avalanche's events and figures, merged weights, inference mode, batches, tasks that are carried over."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, loss_metrics
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.templates import SupervisedTemplate
from builders import backbone, learned
from resume_helpers import EVERY_TASK, folder_in, killed_at, resume
from runs_helpers import Watch, as_array, asked, network_state, same, small_run, watch_assembly
from torch import nn

from cl_runner.adapters import LoRA
from cl_runner.adapters.convlora import ConvFactors
from cl_runner.benchmarks.avalanche_view import avalanche_benchmark
from cl_runner.benchmarks.classes import SplitDigits
from cl_runner.errors import RequestError
from cl_runner.modalities.modality import ON_CPU
from cl_runner.training import evaluating
from cl_runner.training.evaluating import EvaluationMixin, Merging, loops_here, release
from cl_runner.training.events import EVALUATION_EVENTS
from cl_runner.training.fitting import activation_bytes, fitting
from cl_runner.training.meter import NoMetrics
from cl_runner.training.unchanged import states

PIECES = "trainer.eval_batch_size=64"  # the 180 test images or so of five digits in three batches


def trained(folder: Any, monkeypatch: Any, *typed: str) -> tuple[Any, list[Any]]:
    """The strategy of a small run that has ended, and its test experiences."""
    made = watch_assembly(monkeypatch)
    small_run(folder, *typed)
    monkeypatch.undo()
    stream = SplitDigits(
        n_tasks=2, per_class=20, validation_fraction=0, task_labels="benchmark.task_labels=false" not in typed
    )
    return made[0], list(avalanche_benchmark(stream.stream(folder)).test_stream)


def answers(strategy: Any, experiences: list[Any]) -> list[torch.Tensor]:
    """The logits of every batch."""
    found: list[torch.Tensor] = []
    handle = strategy.model.register_forward_hook(lambda module, given, logits: found.append(logits.clone()))
    strategy.eval(experiences)
    handle.remove()
    return found


# ------------------------------------------------------------------------------------------------ events


@pytest.mark.parametrize("strategy", ["naive", "joint", "icarl"])
def test_events_and_figures_are_avalanches(strategy, tmp_path, monkeypatch):
    made, experiences = trained(tmp_path, monkeypatch, "adapter=none", f"strategy={strategy}", PIECES)
    seen: list[tuple[str, int | None, int]] = []

    def note(name: str) -> Any:
        def told(acting: Any) -> None:
            task = None if acting.experience is None else acting.experience.current_experience
            batch = 0 if acting.mbatch is None else len(acting.mb_y)
            assert not acting.is_training and not acting.model.training
            assert name != "after_eval_iteration" or acting.loss.isfinite().all()
            seen.append((name, task, batch))

        return told

    metrics = EvaluationPlugin(
        accuracy_metrics(experience=True, stream=True), loss_metrics(experience=True), loggers=[]
    )
    made.plugins = [metrics if isinstance(item, NoMetrics) else item for item in made.plugins]
    made.plugins.insert(0, Watch(**{name: note(name) for name in EVALUATION_EVENTS}))
    made.evaluator = metrics
    theirs = dict(SupervisedTemplate.eval(made, experiences))
    first, seen[:] = list(seen), []
    ours = dict(made.eval(experiences))
    assert seen == first and len(first) == 2 + 2 * 4 + 4 * 6  # two tasks of three batches
    assert ours.keys() == theirs.keys() and len(ours) == 5
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-6)


def test_what_avalanche_does_for_every_experience_is_not_done(tmp_path, monkeypatch):
    made, experiences = trained(tmp_path, monkeypatch, "adapter=convlora", PIECES)
    calls: list[str] = []
    monkeypatch.setattr(type(made), "model_adaptation", lambda self: calls.append("adapted") or self.model)
    monkeypatch.setattr(type(made), "criterion", lambda self: calls.append("loss"))
    before = answers(made, experiences)
    assert calls == [] and len(before) == 6
    calls.clear()
    with torch.no_grad():
        SupervisedTemplate.eval(made, experiences)
    assert calls.count("adapted") == 2 and calls.count("loss") == 6
    made.model.add_module("grows", evaluating.DynamicModule())
    made.eval(experiences)
    assert calls.count("adapted") == 4


def test_a_strategy_with_a_loop_of_its_own_keeps_it(tmp_path, monkeypatch):
    made, experiences = trained(tmp_path, monkeypatch, "adapter=none")
    assert loops_here(type(made))

    class Own(type(made)):  # type: ignore[misc]
        def eval_epoch(self, **kwargs: Any) -> None:
            went.append(self.experience.current_experience)

    went: list[int] = []
    made.__class__ = Own
    made.plugins = []
    made.eval(experiences)
    assert went == [0, 1] and not loops_here(Own)


@pytest.mark.parametrize("adapter", ["none", "convlora"])
def test_evaluating_in_the_middle_of_training_changes_nothing(adapter, tmp_path, monkeypatch):
    typed = [f"adapter={adapter}", "trainer.epochs=2", PIECES]
    plain = small_run(tmp_path / "a", *typed)
    modes: list[bool] = []

    def look(strategy: Any) -> None:
        before = [module.training for module in strategy.model.modules()]
        strategy.eval([strategy.experience])
        modes.append(before == [module.training for module in strategy.model.modules()] and strategy.is_training)

    watch_assembly(monkeypatch, lambda strategy: strategy.plugins.append(Watch(before_training_epoch=look)))
    looked = small_run(tmp_path / "b", *typed)
    assert modes == [True] * 4
    assert same(network_state(plain.network), network_state(looked.network)) and plain.matrix == looked.matrix


# --------------------------------------------------------------------------------------- merged weights

METHODS = {  # typed, whether the answers are those of the deltas to the last bit
    "convlora": (["adapter=convlora"], True),
    "convlora_cp": (["adapter=convlora_cp"], True),
    "lora": (["adapter=lora"], True),
    "dylora": (["adapter=dylora", "adapter.training=random_rank", "adapter.eval_rank=2"], True),
    "hybrid": (["adapter=hybrid"], True),
    "with a head": (["adapter=convlora", "placement.head=true"], False),  # a linear layer has two paths
    "peft": (["adapter=peft", "adapter.method=lora", "adapter.sharing=per_task"], False),
    "oracle": (["adapter=convlora", "benchmark.task_labels=false", "adapter.task_inference=oracle"], True),
}


@pytest.mark.parametrize("method", METHODS)
def test_weights_are_merged_for_a_task_and_put_back(method, tmp_path, monkeypatch):
    typed, exact = METHODS[method]
    # channels-last, the two have other strides where there is one channel, and torch another kernel for each
    typed = [*typed, "adapter.base=frozen", "trainer.channels_last=false", PIECES]
    strategy, experiences = trained(tmp_path, monkeypatch, *typed)
    state, merged = network_state(strategy.model), []
    adapter = strategy.model.adapter
    merge = adapter.merge
    monkeypatch.setattr(
        adapter, "merge", lambda: (merge(), merged.append(not same(state, network_state(strategy.model))))
    )
    found = answers(strategy, experiences)
    assert merged == [True, True], "the weights are not those of the task"
    assert same(state, network_state(strategy.model)), "the base's weights did not come back"
    monkeypatch.setattr(Merging, "of_task", lambda self, batches: None)
    expected = answers(strategy, experiences)
    assert len(found) == len(expected) == 6
    for now, then in zip(found, expected, strict=True):
        if exact:
            assert torch.equal(now, then)
        else:
            finite = then.isfinite()
            torch.testing.assert_close(now[finite], then[finite], rtol=1e-4, atol=1e-5)


def test_a_delta_is_formed_once_a_task(tmp_path, monkeypatch):
    strategy, experiences = trained(tmp_path, monkeypatch, "adapter=convlora", "adapter.base=frozen", PIECES)
    formed, forward = [], ConvFactors.forward
    monkeypatch.setattr(ConvFactors, "forward", lambda self: (formed.append(self), forward(self))[1])
    strategy.eval(experiences)
    assert len(formed) == 4, "two convolutions, two tasks"
    strategy.eval_mb_size = 512
    strategy.eval(experiences)
    assert len(formed) == 8 and not strategy.model.adapter._unmerged, "one batch gains nothing, and costs the same"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_the_weights_come_back_however_evaluation_ends(error, tmp_path, monkeypatch):
    strategy, experiences = trained(tmp_path, monkeypatch, "adapter=convlora", "adapter.base=frozen", PIECES)
    state, seen = network_state(strategy.model), []

    def fail(acting: Any) -> None:
        seen.append(same(state, network_state(acting.model)))
        if len(seen) == 2:
            raise error

    strategy.plugins.append(Watch(after_eval_iteration=fail))
    strategy.model.train()
    with pytest.raises(error):
        strategy.eval(experiences)
    assert seen == [False, False] and same(state, network_state(strategy.model)) and strategy.model.training


def test_nothing_is_merged_where_it_would_be_wrong():
    net = learned()
    assert net.adapter.may_merge() and not net.adapter.may_merge(halved=True)  # a linear layer is placed
    assert learned(placement="convs").adapter.may_merge(halved=True)
    assert Merging(net).network is net and Merging(None).network is None
    blind = learned(task_labels=False, task_inference="max_output")
    assert Merging(blind).network is None, "several sets answer each batch"
    half = nn.Sequential(nn.Linear(6, 5, dtype=torch.bfloat16))
    adapter = LoRA(rank=2, base="frozen")
    adapter.attach(half)
    adapter.begin_task(0)
    assert half[0].deltas["shared"].A.dtype == torch.float32 and not adapter.may_merge()


# --------------------------------------------------------------------------------------- inference mode


def test_the_network_answers_in_inference_mode_and_trains_on(tmp_path, monkeypatch):
    modes: list[tuple[bool, bool]] = []
    kinds: list[bool] = []

    class Caches(nn.Module):
        """Multiplies by a table that it makes when it is first asked, as position embeddings are made."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner
            self.table: dict[str, torch.Tensor] = {}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.table:
                self.table["ones"] = torch.ones(x.shape[1:])
                self.register_buffer("twice", 2 * torch.ones(x.shape[1:]), persistent=False)
            kinds.append(self.table["ones"].is_inference())
            return self.inner(x * self.table["ones"] * self.twice / 2)

    def cache(strategy: Any) -> None:
        first = strategy.model.backbone.block1.conv
        strategy.model.backbone.block1.conv = Caches(first)
        strategy.model.register_forward_hook(
            lambda module, *_: modes.append((module.training, torch.is_inference_mode_enabled()))
        )

    watch_assembly(monkeypatch, cache)
    result = small_run(tmp_path, "adapter=none", PIECES, "trainer.prefix_cache=false")
    assert (False, True) in modes and (True, False) in modes
    assert (False, False) not in modes and (True, True) not in modes
    assert kinds[0] and not kinds[-1], "the table was made in evaluation, and is a usual tensor in training"
    plain = small_run(tmp_path / "plain", "adapter=none", PIECES, "trainer.prefix_cache=false")
    assert plain.matrix and result.matrix == plain.matrix


def test_a_plugin_of_the_users_may_keep_what_it_sees(tmp_path, monkeypatch):
    strategy, experiences = trained(tmp_path, monkeypatch, "adapter=none")
    kept: list[torch.Tensor] = []
    strategy.plugins.append(Watch(after_eval_iteration=lambda acting: kept.append(acting.mb_output)))
    strategy.eval(experiences)
    assert not any(item.is_inference() or item.requires_grad for item in kept)
    (nn.Parameter(torch.ones(1)) * kept[0]).sum().backward()


def test_only_foreign_modules_are_looked_through():
    module, own = nn.Linear(2, 2), backbone()
    with torch.inference_mode():
        module.kept = own.kept = torch.ones(2)
    release([module, own])
    assert module.kept.is_inference() and own.kept.is_inference(), "torch's own keep nothing"
    foreign = type("Foreign", (nn.Module,), {"__module__": "elsewhere"})()
    with torch.inference_mode():
        foreign.kept = ([torch.ones(2)], {"a": (torch.zeros(1), "word")})
    release([foreign])
    assert not foreign.kept[0][0].is_inference() and not foreign.kept[1]["a"][0].is_inference()
    assert foreign.kept[1]["a"][1] == "word"


# --------------------------------------------------------------------------------------------- batches


def test_as_many_samples_as_fit_well():
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 25, 7))
    net.train()
    # 4 maps of 5 x 5 out of the convolution, the activation and the flattening, and 7 logits, 4 bytes each
    assert activation_bytes(net, lambda: net(torch.zeros(1, 3, 5, 5))) == 4 * (3 * 100 + 7) and net.training
    assert activation_bytes(net.double(), lambda: net(torch.zeros(1, 3, 5, 5).double())) == 8 * (3 * 100 + 7)
    assert not any(module._forward_hooks for module in net.modules())
    gib = 1 << 30
    assert fitting(8 * gib, gib // 100) == 128  # a quarter holds 200
    assert fitting(8 * gib, gib // 128) == 256 and fitting(8 * gib, gib) == 16 and fitting(80 * gib, 1) == 4096


@pytest.mark.parametrize(("typed", "expected"), [([], ON_CPU), (["trainer.eval_batch_size=9"], 9)])
def test_the_number_of_samples_is_the_devices_or_ones_own(typed, expected, tmp_path, monkeypatch):
    sizes: set[int] = set()
    watch_assembly(
        monkeypatch, lambda s: s.plugins.append(Watch(after_eval_iteration=lambda a: sizes.add(len(a.mb_y))))
    )
    small_run(tmp_path, "adapter=none", *typed)
    assert max(sizes) == expected


# ------------------------------------------------------------------------------------------ carried over


def evaluated(folder: Any) -> list[tuple[int, int, bool]]:
    """(after task, task, whether it was carried over) of a run's events."""
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [
        (item["after_task"], item["task"], bool(item.get("carried"))) for item in lines if item["event"] == "evaluated"
    ]


def measured(monkeypatch: Any) -> list[int]:
    """The tasks that networks are asked about from now on."""
    asked_about: list[int] = []
    answer = EvaluationMixin._answer
    monkeypatch.setattr(
        EvaluationMixin,
        "_answer",
        lambda self, **kw: (asked_about.append(self.experience.current_experience), answer(self, **kw))[1],
    )
    return asked_about


CARRIED = {  # what is typed, and the tasks measured after 0 to 3 tasks
    "convlora": (["adapter=convlora"], [[0, 1, 2], [0, 1, 2], [1], [2]]),  # the first task trains the base
    "frozen base": (["adapter=convlora", "adapter.base=frozen"], [[0, 1, 2], [0], [1], [2]]),
    "senacnn": (["adapter=senacnn"], [[0, 1, 2], [0, 1, 2], [1], [2]]),
    # PEFT drops the set with which it was attached when the first task has one
    "peft": (["adapter=peft", "adapter.sharing=per_task"], [[0, 1, 2], [0, 1, 2], [0, 1, 2], [2]]),
    "one set": (["adapter=lora"], [[0, 1, 2]] * 4),
    "inferred": (["adapter=convlora", "benchmark.task_labels=false"], [[0, 1, 2]] * 4),
    "icarl": (["adapter=none", "strategy=icarl"], [[], *[[0, 1, 2]] * 3]),  # knows nothing before a task
}
THREE = ("benchmark=split_digits", "benchmark.n_tasks=3", "benchmark.first_task_classes=2")


@pytest.mark.parametrize("case", CARRIED)
def test_carried_figures_are_the_measured_ones(case, tmp_path, monkeypatch):
    typed, expected = CARRIED[case]
    plain = small_run(tmp_path / "plain", *typed, *THREE)
    tasks = measured(monkeypatch)
    carried = small_run(tmp_path / "carried", *typed, *THREE, "evaluate_unchanged=carry")
    assert tasks == [task for row in expected for task in row]
    assert carried.matrix == plain.matrix and carried.initial == plain.initial
    assert carried.summary["forgetting"] == plain.summary["forgetting"]
    by_class = [(run.folder / "per_class_accuracy.csv").read_text() for run in (carried, plain)]
    assert by_class[0] == by_class[1]
    rows = [(after, task + 1, task not in row) for after, row in enumerate(expected) if row for task in range(3)]
    assert evaluated(carried.folder) == rows and not any(item[2] for item in evaluated(plain.folder))


def test_a_changed_weight_of_an_earlier_task_is_noticed(tmp_path, monkeypatch):
    def tamper(strategy: Any) -> None:
        if strategy.experience.current_experience == 2:
            for name, item in strategy.model.named_parameters():
                if ".deltas.1." in name:
                    item.data += 1.0

    watch_assembly(monkeypatch, lambda strategy: strategy.plugins.insert(0, Watch(after_training_exp=tamper)))
    tasks = measured(monkeypatch)
    result = small_run(tmp_path, "adapter=convlora", *THREE, "evaluate_unchanged=carry")
    assert tasks[-2:] == [1, 2] and tasks.count(0) == 2
    assert result.matrix[2][1] != result.matrix[1][1]


def test_what_a_task_depends_on():
    net = learned()
    shared, own = states(net)
    assert set(own) == {0, 1, 2} and states(net) == (shared, own)
    parts = {  # a tensor, and whose digest has it
        "backbone.conv1.weight": None,
        "backbone.norm1.base.running_mean": None,
        "backbone.norm1.copies.1.running_mean": 1,
        "backbone.conv2.deltas.2.A": 2,
        "backbone.classifier.classifiers.0.bias": 0,
    }
    tensors = dict(net.named_parameters()) | dict(net.named_buffers())
    for name, task in parts.items():
        kept = tensors[name].detach().clone()
        with torch.no_grad():
            tensors[name].view(-1)[0] += 1e-6
        now, of_tasks = states(net)
        assert (now != shared) is (task is None), name
        assert {item for item in own if of_tasks[item] != own[item]} == (set() if task is None else {task}), name
        with torch.no_grad():
            tensors[name].copy_(kept)
    net.backbone.hidden.deltas["1"].eval_limit = 1
    assert [task for task in own if states(net)[1][task] != own[task]] == [1]


def test_a_run_that_goes_on_measures_once_more(tmp_path, monkeypatch):
    typed = (*asked("adapter=convlora", *THREE), "evaluate_unchanged=carry")
    whole = small_run(tmp_path / "whole", "adapter=convlora", *THREE)
    killed_at("3.1.2", tmp_path / "cut", typed, EVERY_TASK)
    tasks = measured(monkeypatch)
    again = resume(folder_in(tmp_path / "cut"))
    assert np.array_equal(as_array(again.matrix), as_array(whole.matrix)) and tasks == [0, 1, 2]


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        (["evaluate=last"], "evaluate=last evaluates once"),
        (["mode=plan"], "mode=plan evaluates nothing"),
    ],
)
def test_a_key_without_use_is_refused(typed, reason, tmp_path):
    with pytest.raises(RequestError, match=reason):
        small_run(tmp_path, "evaluate_unchanged=carry", *typed)
