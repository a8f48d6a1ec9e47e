"""CoDyRA: gates, their threshold, and what is left of a task once it is merged."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from builders import network as small_network
from method_table import adapted, inputs_of, randomise
from runs_helpers import Watch, settled, small_run, table, watch_assembly
from torch import nn

from cl_runner.adapters import CoDyRA
from cl_runner.adapters.codyra import GatedFactors, shrink
from cl_runner.errors import RequestError

TYPED = ["adapter=codyra", "adapter.rank=6", "adapter.base=frozen", "optimizer.lr=0.003", "trainer.epochs=4"]
LAYERS = {"block1.conv": 9 + 8 + 1, "block2.conv": 8 * 9 + 16 + 1}  # numbers a rank, the gate included


def gated(gates: list[float]) -> GatedFactors:
    """Factors with these gates."""
    item = GatedFactors(torch.zeros(7, 5, dtype=torch.float64), len(gates))
    item.g.data = torch.tensor(gates, dtype=torch.float64)
    nn.init.normal_(item.B)
    return item


# ---------------------------------------------------------------------------------- gates and threshold


def test_gates_start_standard_normal():
    torch.manual_seed(0)
    g = GatedFactors(torch.zeros(3, 4), 20_000).g.detach()
    assert abs(float(g.mean())) < 0.03 and float(g.std()) == pytest.approx(1, abs=0.03)
    # normal, and not only of that mean and deviation: 68.3 % within one deviation, 95.4 % within two
    assert float((g.abs() < 1).float().mean()) == pytest.approx(0.683, abs=0.015)
    assert float((g.abs() < 2).float().mean()) == pytest.approx(0.954, abs=0.01)


def test_the_delta_weighs_every_component_with_its_gate():
    item = gated([2.0, 0.0, -0.5])
    a, b = item.A.detach().numpy(), item.B.detach().numpy()
    expected = 2.0 * np.outer(b[:, 0], a[0]) - 0.5 * np.outer(b[:, 2], a[2])
    np.testing.assert_allclose(item().detach().numpy(), expected, atol=1e-14)
    item().square().sum().backward()
    assert item.g.grad is not None and item.g.grad.abs().min() > 0, "a gate at zero can come back"


def test_the_soft_threshold_against_its_formula():
    gates = [1.0, 0.31, 0.3, 0.29, 0.0, -0.29, -0.3, -0.31, -1.0]
    item = gated(gates)
    shrink([item.g], 0.3, 0.3)
    expected = [np.sign(g) * max(abs(g) - 0.3, 0.0) for g in gates]
    np.testing.assert_allclose(item.g.detach().numpy(), expected, atol=1e-15)
    assert (item.g == 0).tolist() == [False, False, True, True, True, True, True, False, False]


def test_all_gates_go_through_the_threshold_together_as_they_would_one_by_one():
    kinds = [torch.float32, torch.float32, torch.float64]
    gates = [torch.randn(size, dtype=kind) for size, kind in zip((3, 7, 4), kinds, strict=True)]
    together, alone = [gate.clone() for gate in gates], [gate.clone() for gate in gates]
    shrink(together, 0.4, 0.8)
    for gate in alone:
        shrink([gate], 0.4, 0.8)
    for gate, first, second in zip(gates, together, alone, strict=True):
        assert torch.equal(first, second) and not torch.equal(first, gate)
        assert first.dtype == gate.dtype
    shrink([], 0.4, 0.8)


def released(g: float, kappa: float) -> float:
    """The published code, line by line."""
    if g > kappa:
        g = g - kappa
    elif g < -kappa:
        g = g + kappa
    return 0.0 if abs(g) < kappa else g


@pytest.mark.parametrize("threshold", ["soft", "released"])
def test_a_step_of_the_adapter_thresholds_as_it_was_told(threshold):
    model, adapter = nn.Sequential(nn.Linear(200, 200)).double(), None
    adapter = CoDyRA(rank=200, base="frozen", kappa_max=0.2, threshold=threshold)
    adapter.attach(model)
    adapter.begin_task(0)
    item = model[0].deltas["0"]
    before = item.g.detach().clone()
    adapter.after_step(1.0)
    if threshold == "released":
        expected = [released(g, 0.2) for g in before.tolist()]
    else:
        expected = [math.copysign(max(abs(g) - 0.2, 0.0), g) for g in before.tolist()]
    np.testing.assert_allclose(item.g.detach().numpy(), expected, atol=1e-15)
    zeros = int((item.g == 0).sum())
    within = int((before.abs() < (0.4 if threshold == "released" else 0.2)).sum())
    assert zeros == within > 10


def test_kappa_rises_in_fifty_steps_over_the_second_half():
    adapter = CoDyRA(kappa_max=0.005)
    assert [adapter.kappa(progress) for progress in (0.0, 0.25, 0.5)] == [0, 0, 0]
    assert adapter.kappa(1.0) == 0.005
    for progress, f in ((0.505, 0.01), (0.51, 0.02), (0.519, 0.038), (0.6, 0.2), (0.75, 0.5), (0.994, 0.988)):
        assert adapter.kappa(progress) == pytest.approx(0.005 * math.floor(50 * f + 1e-6) / 50)
    assert len({adapter.kappa(step / 5000) for step in range(5001)}) == 51
    late = CoDyRA(kappa_max=1.0, dense_fraction=0.8)
    assert late.kappa(0.8) == 0 and late.kappa(0.9) == pytest.approx(0.5) and late.kappa(1.0) == 1.0
    assert CoDyRA(kappa_max=1.0, dense_fraction=0.0).kappa(0.5) == pytest.approx(0.5)


@pytest.mark.parametrize(("steps", "typed"), [(8, "trainer.iterations=8"), (28, "trainer.epochs=4")])
def test_in_a_run_the_threshold_follows_the_steps_whatever_their_number(steps, typed, tmp_path, monkeypatch):
    before: list[list[torch.Tensor]] = []
    zeros: list[bool] = []
    count = [0]

    def gates(strategy: Any) -> list[torch.Tensor]:
        return [item.g.detach().clone() for _, item in strategy.model.adapter.open_deltas()]

    def compare(strategy: Any) -> None:
        step = count[0] % steps + 1
        count[0] += 1
        f = max(0.0, (step / steps - 0.5) / 0.5)
        kappa = 0.2 * math.floor(50 * f + 1e-6) / 50
        for old, new in zip(before.pop(), gates(strategy), strict=True):
            assert torch.allclose(new, old.sign() * (old.abs() - kappa).clamp_min(0), atol=1e-6)
        zeros.append(any(bool((item == 0).any()) for item in gates(strategy)))

    def attach(strategy: Any) -> None:
        first, last = Watch(after_update=lambda s: before.append(gates(s))), Watch(after_update=compare)
        strategy.plugins[:] = [first, *strategy.plugins, last]

    watch_assembly(monkeypatch, attach)
    small_run(tmp_path, *[item for item in TYPED if "epochs" not in item], typed, "adapter.kappa_max=0.2")
    assert count[0] == 2 * steps, "two tasks"
    for task in (zeros[:steps], zeros[steps:]):
        assert not any(task[: steps // 2]), "a gate is zero in the dense half"
        assert task[-1]


def test_a_larger_threshold_keeps_fewer_components(tmp_path):
    kept = []
    for kappa in ("0", "0.05", "0.1", "0.3"):
        rows = table(small_run(tmp_path, *TYPED, f"adapter.kappa_max={kappa}").folder / "layers.csv")
        kept.append(sum(int(row["rank"]) for row in rows))
    assert kept[0] == 2 * 2 * 6, "two tasks, two layers, every component"
    assert kept[0] > kept[1] > kept[2] > kept[3]


# ------------------------------------------------------------------------------------ dropping and merging


@pytest.mark.parametrize("kind", ["linear-on-tokens", "conv-groups", "Conv1D", "MultiheadAttention", "fused-c_attn"])
def test_dropping_components_and_merging_keep_the_output(kind):
    base, model, adapter = adapted("codyra", kind)
    randomise(adapter)
    for _, item in adapter.open_deltas():
        item.g.data[0] = 0.0
    x = inputs_of(kind)
    before = model(x).detach()
    for _, item in adapter.open_deltas():
        item.prune()
        assert item.rank == 1 and len(item.g) == 1
    assert (model(x) - before).abs().max() < 1e-12
    adapter.end_task()
    assert (model(x) - before).abs().max() < 1e-12
    assert model.state_dict().keys() == base.state_dict().keys(), "exactly the base's architecture"
    base.load_state_dict(model.state_dict(), strict=True)
    assert (base(x) - before).abs().max() < 1e-12
    assert {row.rank for row in adapter.layer_report(1)} == {1}


def test_a_layer_whose_gates_are_all_zero_keeps_its_weight():
    base, model, adapter = adapted("codyra", "conv3x3")
    randomise(adapter)
    for _, item in adapter.open_deltas():
        item.g.data.zero_()
    adapter.end_task()
    assert torch.equal(model.layer.weight, base.layer.weight)
    (row,) = adapter.layer_report(1)
    assert (row.rank, row.parameters, row.delta_norm) == (0, 0, 0.0)
    adapter.begin_task(2)
    assert adapter.layer_report(2)[0].rank == 2
    model(inputs_of("conv3x3")).sum().backward()


def test_every_task_starts_with_fresh_factors():
    _, model, adapter = adapted("codyra", "linear", tasks=(0,))
    first = model.layer.deltas["0"]
    randomise(adapter)
    adapter.end_task()
    assert len(model.layer.deltas) == 0
    adapter.begin_task(1)
    second = model.layer.deltas["1"]
    assert list(model.layer.deltas) == ["1"] and second is not first
    assert not second.B.any() and second.A.any() and second.rank == 2
    assert not torch.equal(second.g, first.g) and not torch.equal(second.A, first.A)
    assert {name for name, item in model.named_parameters() if item.requires_grad} == {
        f"layer.deltas.1.{factor}" for factor in "ABg"
    }


def weights_of(net: Any) -> dict[str, np.ndarray]:
    """The weights themselves, read past the adapter."""
    named = dict(net.backbone.named_parameters())
    return {name: named[f"{name}.weight"].detach().double().numpy().copy() for name in LAYERS}


class Ends:
    """The weights and the logits around the end of every task."""

    def __init__(self) -> None:
        self.weights: list[dict[str, np.ndarray]] = []
        self.logits: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.images = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def attach(self, strategy: Any) -> None:
        self.weights.append(weights_of(strategy.model))
        first = Watch(after_training_exp=lambda s: self.before(s.model))
        last = Watch(after_training_exp=lambda s: self.after(s.model))
        strategy.plugins[:] = [first, *strategy.plugins, last]

    def answer(self, net: Any) -> torch.Tensor:
        net.eval()
        with torch.no_grad():
            return net(self.images)

    def before(self, net: Any) -> None:
        self.open = self.answer(net)

    def after(self, net: Any) -> None:
        self.logits.append((self.open, self.answer(net)))
        self.weights.append(weights_of(net))


@pytest.mark.parametrize("labels", ["true", "false"])
@pytest.mark.parametrize("base", ["frozen", "first_task"])
def test_what_a_run_reports_is_what_happened_to_the_weights(base, labels, tmp_path, monkeypatch):
    ends = Ends()
    watch_assembly(monkeypatch, ends.attach)
    typed = ["benchmark.n_tasks=5", "adapter.kappa_max=0.1", f"benchmark.task_labels={labels}"]
    result = small_run(tmp_path, *TYPED[:2], f"adapter.base={base}", *TYPED[3:], *typed)
    for before, after in ends.logits:
        assert (before - after).abs().max() < 1e-4, "merging changed the logits"
    layers, first = table(result.folder / "layers.csv"), 1 if base == "first_task" else 0
    assert [(int(row["task"]), row["name"]) for row in layers] == [
        (task, name) for task in range(1 + first, 6) for name in LAYERS
    ]
    for row in layers:
        task, name = int(row["task"]), row["name"]
        moved = ends.weights[task][name] - ends.weights[task - 1][name]
        assert float(row["delta_norm"]) == pytest.approx(np.linalg.norm(moved), rel=1e-4)
        assert int(row["rank"]) == np.linalg.matrix_rank(moved.reshape(len(moved), -1), tol=1e-5)
        assert int(row["parameters"]) == int(row["rank"]) * LAYERS[name]
    assert {int(row["rank"]) for row in layers} - {6}, "no component was ever dropped"
    parameters = table(result.folder / "parameters.csv")
    for task in range(1, 6):
        away = [ends.weights[task][name] - ends.weights[first][name] for name in LAYERS]
        expected = 0.0 if task == first else math.sqrt(sum(float((item**2).sum()) for item in away))
        assert float(parameters[task - 1]["drift"]) == pytest.approx(expected, rel=1e-4)
    assert result.summary["drift"] == float(parameters[-1]["drift"]) > 0.1


@pytest.mark.parametrize("base", ["frozen", "first_task"])
def test_after_the_last_task_the_network_is_the_base_and_its_head(base, tmp_path):
    result = small_run(tmp_path, *TYPED[:2], f"adapter.base={base}", *TYPED[3:])
    # two convolutions without bias, two BatchNorm layers, and a head of 4 * 16 features to 10 classes
    backbone, head = 9 * 8 + 72 * 16 + 2 * (8 + 16), 64 * 10 + 10
    assert sum(item.numel() for item in result.network.parameters()) == backbone + head
    rows = table(result.folder / "parameters.csv")
    for row in rows:
        assert (int(row["base"]), int(row["adapter"]), int(row["head"])) == (backbone, 0, head)
        assert int(row["stored"]) == int(row["inference"]) == backbone + head
    open_numbers = 6 * sum(LAYERS.values()) + head
    assert int(rows[1]["trainable"]) == open_numbers
    assert int(rows[0]["trainable"]) == (backbone + head if base == "first_task" else open_numbers)
    config = settled(*TYPED[:2], f"adapter.base={base}", *TYPED[3:])
    from cl_runner.benchmarks.classes import SplitDigits
    from cl_runner.modalities.images import build_network

    fresh = build_network(config, SplitDigits(n_tasks=2).outline(tmp_path))
    fresh.load_state_dict(result.network.state_dict(), strict=True)
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(fresh.eval()(x), result.network.eval()(x))


@pytest.mark.parametrize("strategy", ["joint", "cumulative"])
@pytest.mark.parametrize("base", ["frozen", "first_task"])
def test_tasks_that_are_trained_together_share_one_set(base, strategy, tmp_path, monkeypatch):
    ends = Ends()
    watch_assembly(monkeypatch, ends.attach)
    typed = [*TYPED[:2], f"adapter.base={base}", *TYPED[3:], f"strategy={strategy}"]
    result = small_run(tmp_path, *typed)
    for before, after in ends.logits:
        assert (before - after).abs().max() < 1e-4
    layers = table(result.folder / "layers.csv")
    phases = 1 if strategy == "joint" else 2
    assert len(ends.weights) == phases + 1
    if (base, strategy) == ("first_task", "joint"):
        assert layers == [], "the base alone learned"
    elif strategy == "joint":
        moved = np.linalg.norm(ends.weights[1]["block1.conv"] - ends.weights[0]["block1.conv"])
        norms = [float(row["delta_norm"]) for row in layers if row["name"] == "block1.conv"]
        assert norms == [pytest.approx(moved, rel=1e-4)] * 2
    else:
        assert {row["task"] for row in layers} == ({"2"} if base == "first_task" else {"1", "2"})
    assert result.summary["acc"] > 0.3


def test_with_every_gate_at_zero_only_the_head_has_learned(tmp_path, monkeypatch):
    ends = Ends()
    watch_assembly(monkeypatch, ends.attach)
    result = small_run(tmp_path, *TYPED, "adapter.kappa_max=1000")
    for name in LAYERS:
        assert np.array_equal(ends.weights[0][name], ends.weights[-1][name])
    rows = table(result.folder / "layers.csv")
    assert {(row["rank"], row["parameters"], float(row["delta_norm"])) for row in rows} == {("0", "0", 0.0)}
    assert result.summary["drift"] == 0.0


def test_an_unfinished_task_counts_with_its_open_set():
    net = small_network(adapter="none", head="shared")
    net.adapter = CoDyRA(rank=2, base="frozen")
    net.adapter.attach(net)
    net.begin_task([0])
    assert net.adapter.parameter_report().adapter == sum(
        item.numel() for name, item in net.named_parameters() if ".deltas." in name
    )
    assert [row.rank for row in net.adapter.layer_report(0)] == [2, 2, 2]
    net.end_task()
    assert net.adapter.parameter_report().adapter == 0


def test_a_validation_split_does_not_undo_the_pruning(tmp_path):
    typed = ["adapter=codyra", "adapter.rank=6", "adapter.kappa_max=1000", "adapter.base=frozen", "trainer.epochs=8"]
    result = small_run(tmp_path, *typed, "benchmark.validation_fraction=0.3", "benchmark.per_class=40")
    assert result.network.adapter.keeps_last
    assert {row["rank"] for row in table(result.folder / "layers.csv")} == {"0"}
    with pytest.raises(RequestError, match="trainer.patience=2.*end of a task"):
        small_run(tmp_path, *typed, "benchmark.validation_fraction=0.3", "trainer.patience=2")
    with pytest.raises(RequestError, match="trainer.restore_best has no use here"):
        small_run(tmp_path, *typed, "benchmark.validation_fraction=0.3", "trainer.restore_best=true")
