"""DyLoRA: truncating, ordering, drawing ranks and following a schedule."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from method_table import adapted, expected_delta, inputs_of, randomise
from runs_helpers import Watch, epochs_of, small_run, table, watch_assembly
from torch import nn

from cl_runner.adapters import DyLoRA, Hybrid, LoRA
from cl_runner.adapters.dylora import DyLoRAFactors
from cl_runner.adapters.penalties import ordering

TYPED = ["adapter=dylora", "adapter.rank=6", "adapter.base=frozen", "optimizer.lr=0.01"]


def pair(rank: int = 6, **options: Any) -> tuple[nn.Module, DyLoRA]:
    """Two linear layers and a convolution under one shared set whose B is not zero."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 9, 10), nn.Linear(10, 7)).double()
    adapter = DyLoRA(**{"rank": rank, "alpha": 4.0, "base": "frozen"} | options)
    adapter.attach(model)
    adapter.begin_task(0)
    randomise(adapter)
    return model, adapter


def factors_of(adapter: Any) -> list[DyLoRAFactors]:
    return list(adapter.open_factors())


# --------------------------------------------------------------------------------------------- truncating


@pytest.mark.parametrize("make", [DyLoRA, LoRA, Hybrid])
@pytest.mark.parametrize("rank", range(1, 7))
def test_truncating_is_masking_is_slicing_by_hand(make, rank):
    torch.manual_seed(0)
    base = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 9, 10), nn.Linear(10, 7)).double()
    model = copy.deepcopy(base).eval()
    adapter = make(rank=6, alpha=4.0, base="frozen")
    adapter.attach(model)
    adapter.begin_task(0)
    randomise(adapter)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    full = model(x).detach()
    adapter.truncate(rank)
    masked = model(x).detach()
    adapter.truncate(None)
    assert torch.equal(model(x), full)

    layers = [module for module in model if hasattr(module, "deltas")]
    sliced = copy.deepcopy(base)
    for layer, target in zip(
        layers, [base_layer for base_layer in sliced if hasattr(base_layer, "weight")], strict=True
    ):
        delta = layer.deltas["shared"]
        left, right = delta.B.detach().flatten(1)[:, :rank], delta.A.detach().flatten(1)[:rank]
        target.weight.data += 4.0 / 6 * (left @ right).view(target.weight.shape)  # the scale stays alpha / r
    assert (masked - sliced(x)).abs().max() < 1e-12
    for layer in layers:
        changed = layer.deltas["shared"].truncate(rank)
        assert len(changed) == 2 and layer.deltas["shared"].rank == rank
    assert (model(x) - masked).abs().max() < 1e-12
    assert (masked - full).abs().max() > 0.01 or rank == 6


def test_evaluation_uses_all_components_or_those_asked_for():
    for training in ("ordering", "random_rank"):
        model, adapter = pair(training=training)
        _, asked = pair(training=training, eval_rank=2)
        for adapted_by, rank in ((adapter, 6), (asked, 2)):
            adapted_by.before_step(0.0)
            adapted_by.root.eval()
            assert [item.limit for item in factors_of(adapted_by)] == [rank] * 3
            adapted_by.truncate(4)
            assert [item.limit for item in factors_of(adapted_by)] == [4] * 3
            adapted_by.truncate(None)
            assert [item.limit for item in factors_of(adapted_by)] == [rank] * 3
        asked.root.train()
        if training == "ordering":
            assert [item.limit for item in factors_of(asked)] == [6] * 3, "all of them train"


# ------------------------------------------------------------------------------------------ the ordering


def written(a: list[list[float]], b: list[list[float]]) -> DyLoRAFactors:
    """Factors with these rows of A and these columns of B."""
    item = DyLoRAFactors(torch.zeros(len(b[0]), len(a[0]), dtype=torch.float64), len(a), 1.0)
    item.A.data, item.B.data = torch.tensor(a).double(), torch.tensor(b).double().t().contiguous()
    return item


def test_the_ordering_penalty_against_arithmetic():
    # ||A_i|| = 5, 5, 10 and ||B_i|| = 1, 2, 3: 0 * 5 + 1/2 * 5 * 2 + 1 * 10 * 3 = 35; the second layer: 1 * 1 * 4 = 4
    first = written([[3, 4], [0, 5], [8, 6]], [[1, 0], [0, 2], [0, 3]])
    second = written([[1, 1], [1, 0]], [[9, 9], [0, 4]])
    assert float(ordering([first])) == pytest.approx(35)
    assert float(ordering([first, second])) == pytest.approx(39)
    assert ordering([]) is None


def test_the_adapter_adds_lambda_times_the_sum_over_its_layers():
    _, adapter = pair(lambda_order=0.01)
    total = 0.0
    for item in factors_of(adapter):
        a, b = item.A.detach().numpy().reshape(6, -1), item.B.detach().numpy().reshape(-1, 6)
        total += sum(i / 5 * np.linalg.norm(a[i]) * np.linalg.norm(b[:, i]) for i in range(6))
    assert len(factors_of(adapter)) == 3
    assert float(adapter.penalty()) == pytest.approx(0.01 * total, rel=1e-12)
    assert float(adapter.penalty()) > 0.1
    _, drawing = pair(training="random_rank")
    assert drawing.penalty() is None


def test_the_ordering_penalty_reaches_a_and_b():
    _, adapter = pair(lambda_order=1.0)
    adapter.penalty().backward()
    for item in factors_of(adapter):
        a, b = item.A.grad.flatten(1).norm(dim=1), item.B.grad.flatten(1).norm(dim=0)
        assert a[0] == 0 and b[0] == 0, "the first component is free"
        assert (a[1:] > 0).all() and (b[1:] > 0).all()
        # d/dA_i of w_i ||A_i|| ||B_i|| has length w_i ||B_i||
        steps = torch.arange(6) / 5
        torch.testing.assert_close(a, steps * item.B.detach().flatten(1).norm(dim=0))
        torch.testing.assert_close(b, steps * item.A.detach().flatten(1).norm(dim=1))


def test_a_b_of_zero_gives_no_nan_and_one_component_no_penalty():
    model, adapter = pair(lambda_order=1.0)
    for item in factors_of(adapter):
        item.B.data.zero_()
    penalty = adapter.penalty()
    penalty.backward()
    assert float(penalty) == 0
    assert all(item.grad.isfinite().all() for item in model.parameters() if item.requires_grad)
    _, single = pair(rank=1)
    assert float(single.penalty()) == 0


def test_ordering_shrinks_late_components_more(tmp_path):
    shares = {}
    for weight in ("0", "0.1"):
        typed = [*TYPED, f"adapter.lambda_order={weight}", "trainer.epochs=6", f"output_root={tmp_path}"]
        network = small_run(tmp_path, *typed[:-1]).network
        shares[weight] = []
        for name in network.adapter.adapted_layers():
            delta = network.backbone.get_submodule(name).deltas["shared"]
            size = delta.A.detach().flatten(1).norm(dim=1) * delta.B.detach().flatten(1).norm(dim=0)
            shares[weight].append(float(size[3:].sum() / size.sum()))
    assert all(late < 0.5 * free for late, free in zip(shares["0.1"], shares["0"], strict=True)), shares


# ------------------------------------------------------------------------------------------ random ranks


def test_one_rank_a_step_for_all_layers_uniform_over_all_ranks():
    _, adapter = pair(rank=6, training="random_rank")
    counts = np.zeros(6)
    for _ in range(3000):
        adapter.before_step(0.5)
        ranks = {item.train_limit for item in factors_of(adapter)}
        assert len(ranks) == 1
        counts[ranks.pop() - 1] += 1
    # 500 expected of each; chi-squared with 5 degrees of freedom is below 20.5 with probability 0.999
    assert ((counts - 500) ** 2 / 500).sum() < 20.5


@pytest.mark.parametrize("update", ["all", "last"])
@pytest.mark.parametrize("drawn", [1, 3, 6])
def test_a_step_uses_the_first_components_and_trains_what_it_should(update, drawn):
    model, adapter = pair(training="random_rank", update=update)
    for item in factors_of(adapter):
        item.train_limit = drawn
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    model.train()
    output = model(x)
    output.square().sum().backward()
    trained = range(drawn) if update == "all" else [drawn - 1]
    for item in factors_of(adapter):
        a, b = item.A.grad.flatten(1).norm(dim=1), item.B.grad.flatten(1).norm(dim=0)
        assert [i for i in range(6) if a[i] > 0] == list(trained)
        assert [i for i in range(6) if b[i] > 0] == list(trained)
    adapter.truncate(drawn)
    assert (model.eval()(x) - output).abs().max() < 1e-12


@pytest.mark.parametrize("update", ["all", "last"])
def test_a_run_draws_before_every_step(update, tmp_path, monkeypatch):
    seen: list[int] = []

    def look(strategy: Any) -> None:
        drawn = {item.train_limit for item in factors_of(strategy.model.adapter)}
        assert len(drawn) == 1
        rank = drawn.pop()
        seen.append(rank)
        for item in factors_of(strategy.model.adapter):
            touched = torch.nonzero(item.B.grad.flatten(1).norm(dim=0)).flatten().tolist()
            assert set(touched) <= set(range(rank) if update == "all" else [rank - 1]), "a component beyond learned"

    made = watch_assembly(monkeypatch, lambda s: s.plugins.append(Watch(after_backward=look)))
    typed = ["adapter.training=random_rank", f"adapter.update={update}", "trainer.batch_size=4", "trainer.epochs=2"]
    result = small_run(tmp_path, *TYPED, *typed)
    assert set(seen) == {1, 2, 3, 4, 5, 6} and len(seen) == 2 * 2 * 25, "two tasks, two epochs, 100 images in fours"
    assert len(made) == 1
    for name in result.network.adapter.adapted_layers():
        assert result.network.backbone.get_submodule(name).deltas["shared"].train_limit is None


def test_every_rank_of_a_drawn_training_is_usable(tmp_path):
    typed = ["adapter.training=random_rank", "trainer.epochs=15", "benchmark.per_class=60", "evaluate=last"]
    curve = {}
    for adapter in ("dylora", "lora"):
        drawn = typed[:1] if adapter == "dylora" else []
        options = [f"adapter={adapter}", *TYPED[1:], *drawn, *typed[1:], "adapter.eval_ranks=[1,2,3,4,5,6]"]
        rows = table(small_run(tmp_path, *options).folder / "rank_curve.csv")
        curve[adapter] = [
            np.mean([float(row["accuracy"]) for row in rows if row["rank"] == str(rank)]) for rank in range(1, 7)
        ]
    assert curve["dylora"][0] > curve["lora"][0] + 0.05, "rank 1 is no better than that of plain LoRA"


# --------------------------------------------------------------------------------------- the rank schedule


class Follow:
    """What a scheduled run did: ranks and steps at the start of every epoch, and what the optimiser held."""

    def __init__(self) -> None:
        self.ranks: dict[int, list[int]] = {}
        self.kept: list[bool] = []
        self.before: dict[int, list[torch.Tensor]] = {}

    def watch(self) -> tuple[Watch, Watch]:
        return Watch(before_training_epoch=self.remember), Watch(
            before_training_epoch=self.compare, after_update=self.check_steps
        )

    def remember(self, strategy: Any) -> None:
        """Before the adapter acts."""
        self.old = [(item.A.detach().clone(), item.B.detach().clone()) for item in factors_of(strategy.model.adapter)]
        self.first = True

    def compare(self, strategy: Any) -> None:
        """After it."""
        now = factors_of(strategy.model.adapter)
        ranks = {item.rank for item in now}
        assert len(ranks) == 1
        self.ranks.setdefault(strategy.clock.train_exp_counter, []).append(ranks.pop())
        for (a, b), item in zip(self.old, now, strict=True):
            assert torch.equal(item.A, a[: item.rank]) and torch.equal(item.B, b[:, : item.rank])
            assert item.A.requires_grad and item.B.requires_grad
        held = {id(item) for group in strategy.optimizer.param_groups for item in group["params"]}
        assert held == {id(item) for item in strategy.model.parameters() if item.requires_grad}
        assert {id(item) for item in strategy.optimizer.state} <= held, "state of parameters that are gone"
        self.changed = self.old[0][0].shape[0] != now[0].rank

    def check_steps(self, strategy: Any) -> None:
        """Adam's own count of steps starts over for what was replaced, and goes on for the head."""
        if self.first and strategy.clock.train_exp_epochs:
            item = factors_of(strategy.model.adapter)[0]
            own = int(strategy.optimizer.state[item.A]["step"])
            head = int(strategy.optimizer.state[strategy.model.head.classifiers[0].weight]["step"])
            assert own == 1 if self.changed else own == head
            assert head == 1 + strategy.clock.train_exp_epochs * len(strategy.dataloader)
            assert strategy.optimizer.state[item.A]["exp_avg"].shape == item.A.shape
            assert item.A.grad is not None and item.A.grad.any()
            self.kept.append(not self.changed)
        self.first = False


SCHEDULES = {
    "from-1": (["adapter.rank_schedule=[6,4,2]"], {0: [6, 4, 2], 1: [2, 2, 2]}),
    "from-2": (
        ["adapter.rank_schedule=[6,4,2]", "adapter.schedule_from=2"], {0: [6, 6, 6], 1: [6, 4, 2]},
    ),
    "shorter": (["adapter.rank_schedule=[3]"], {0: [3, 3, 3], 1: [3, 3, 3]}),
    "hybrid": (["adapter=hybrid", "adapter.rank_schedule=[6,4,2]"], {0: [6, 6, 6], 1: [6, 4, 2]}),
}  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_schedule_is_followed_and_the_optimiser_with_it(schedule, tmp_path, monkeypatch):
    typed, expected = SCHEDULES[schedule]
    follow = Follow()
    first, last = follow.watch()
    watch_assembly(monkeypatch, lambda s: s.plugins.__setitem__(slice(None), [first, *s.plugins, last]))
    result = small_run(tmp_path, *TYPED, *typed, "trainer.epochs=3")
    assert follow.ranks == expected
    assert len(follow.kept) == 4
    rows = table(result.folder / "layers.csv")
    assert {(int(row["task"]), int(row["rank"])) for row in rows} == {(t + 1, expected[t][-1]) for t in expected}
    sizes = {"block1.conv": 1 * 9 + 8, "block2.conv": 8 * 9 + 16}  # numbers a rank
    for row in rows:
        assert int(row["parameters"]) == int(row["rank"]) * sizes[row["name"]]
    assert [int(row["adapter"]) for row in table(result.folder / "parameters.csv")] == [
        expected[task][-1] * sum(sizes.values()) for task in expected
    ]


def test_with_the_base_trained_first_the_schedule_starts_at_the_first_adapter(tmp_path):
    typed = ["adapter.base=first_task", "adapter.rank_schedule=[6,4,2]", "trainer.epochs=3", "benchmark.n_tasks=5"]
    rows = table(small_run(tmp_path, "adapter=dylora", "adapter.rank=6", *typed).folder / "layers.csv")
    assert {(int(row["task"]), int(row["rank"])) for row in rows} == {(2, 2), (3, 2), (4, 2), (5, 2)}


def test_every_tasks_own_set_follows_the_schedule(tmp_path):
    typed = ["adapter.sharing=per_task", "adapter.rank_schedule=[6,4,2]", "trainer.epochs=3", "benchmark.n_tasks=5"]
    rows = table(small_run(tmp_path, *TYPED, *typed).folder / "layers.csv")
    assert {(int(row["task"]), int(row["rank"])) for row in rows} == {(task, 2) for task in range(1, 6)}


@pytest.mark.parametrize("patience", ["null", "2"])
def test_the_best_epoch_is_never_one_of_another_size(patience, tmp_path):
    # nothing is learned at this rate, so that the first epoch would stay the best one if its size still fitted
    typed = ["adapter.rank_schedule=[6,4,2]", "trainer.epochs=6", "benchmark.validation_fraction=0.3"]
    result = small_run(tmp_path, *TYPED[:3], "optimizer.lr=1e-30", *typed, f"trainer.patience={patience}")
    rows = table(result.folder / "parameters.csv")
    assert int(rows[0]["best_epoch"]) >= 3
    lengths = [sum(event["task"] == task for event in epochs_of(result.folder)) for task in (1, 2)]
    # with patience 2 the first task stops two epochs after the third, the last that changed the size
    assert lengths == ([5, 3] if patience == "2" else [6, 6]), lengths
    for name in result.network.adapter.adapted_layers():
        assert result.network.backbone.get_submodule(name).deltas["shared"].rank == 2


def test_a_scheduled_network_comes_back_from_its_state_dict():
    _, model, adapter = adapted("dylora-ordering", "conv3x3", rank=4)
    randomise(adapter)
    for item in factors_of(adapter):
        item.truncate(2)
    _, fresh, _ = adapted("dylora-ordering", "conv3x3", rank=4, seed=9)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(fresh(inputs_of("conv3x3")), model(inputs_of("conv3x3")))
    assert expected_delta("dylora-ordering", "conv3x3", adapter, "layer", "shared").any()


def test_training_goes_on_after_a_rank_was_dropped(tmp_path):
    losses = {}
    for schedule in ("[]", "[6,3,3,3,3,3]"):
        typed = [f"adapter.rank_schedule={schedule}", "trainer.epochs=6", "benchmark.per_class=40"]
        result = small_run(tmp_path, *TYPED, *typed)
        losses[schedule] = [event["train_loss"] for event in epochs_of(result.folder) if event["task"] == 1]
    scheduled = losses["[6,3,3,3,3,3]"]
    assert scheduled[0] == losses["[]"][0], "the first epoch has every component"
    assert scheduled[1] != losses["[]"][1]
    assert scheduled[-1] < 0.7 * scheduled[1]


# ------------------------------------------------------------------------------------------ the rank curve


@pytest.mark.parametrize("labels", ["true", "false"])
def test_the_rank_curve_ends_where_the_matrix_does(labels, tmp_path):
    typed = ["adapter.eval_ranks=[1,3,6]", "benchmark.n_tasks=5", "trainer.epochs=3", f"benchmark.task_labels={labels}"]
    result = small_run(tmp_path, *TYPED, *typed)
    rows = table(result.folder / "rank_curve.csv")
    assert [(int(row["rank"]), int(row["task"])) for row in rows] == [(r, t) for r in (1, 3, 6) for t in range(1, 6)]
    last = [float(row["accuracy"]) for row in rows if row["rank"] == "6"]
    assert last == result.matrix[-1]
    assert [float(row["accuracy"]) for row in rows if row["rank"] == "1"] != last, "nothing was truncated"
    plain = small_run(tmp_path, *TYPED, *typed[1:])
    assert not (plain.folder / "rank_curve.csv").exists()
    assert plain.matrix == result.matrix, "evaluating at ranks changed the run"


@pytest.mark.parametrize("training", ["ordering", "random_rank"])
def test_the_same_seed_gives_the_same_run(training, tmp_path):
    typed = [*TYPED, f"adapter.training={training}", "trainer.epochs=2"]
    states = [small_run(tmp_path, *typed, f"seed={seed}").network.state_dict() for seed in (3, 3, 4)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(
        states[0]["backbone.block1.conv.deltas.shared.B"], states[2]["backbone.block1.conv.deltas.shared.B"]
    )
