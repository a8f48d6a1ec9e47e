"""Every strategy with every adapter, with and without task labels; and that each method does what it is for."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.training.plugins import AGEMPlugin, EWCPlugin, GEMPlugin, LwFPlugin, SynapticIntelligencePlugin
from runs_helpers import Watch, as_array, network_state, same, small_run, watch_assembly
from torch.nn import functional

from cl_runner.benchmarks.classes import SplitDigits
from cl_runner.errors import RequestError

# What must come of each cell: `done`, or words of the reason why it is refused.
MIXES = "task_labels=false with adapter=convlora: .* several tasks at once"
OUTCOMES = {
    # strategy:   convlora, labels | convlora, no labels; without an adapter and with one shared set all are done
    "naive": ("done", "done"),
    "replay": ("done", MIXES),
    "ewc": ("done", "done"),
    "lwf": ("done", MIXES),
    "si": ("done", "done"),
    "gem": ("done", MIXES),
    "agem": ("done", MIXES),
    "der": ("without task identity", MIXES),
    "icarl": ("one feature space", MIXES),
    "cumulative": ("done", MIXES),
    "joint": ("done", MIXES),
}
KINDS = {
    "none": ["adapter=none"],
    "shared": ["adapter=lora", "adapter.sharing=shared"],
    "convlora": ["adapter=convlora"],
}
CELLS = [
    pytest.param(strategy, kind, labels, outcome, id=f"{strategy}-{kind}-{labels}")
    for strategy, outcomes in OUTCOMES.items()
    for kind in KINDS
    for labels, outcome in zip(("true", "false"), outcomes if kind == "convlora" else ("done", "done"), strict=True)
]


@pytest.mark.parametrize(("strategy", "kind", "labels", "outcome"), CELLS)
def test_every_cell_is_a_finished_run_or_a_reason(strategy, kind, labels, outcome, tmp_path):
    typed = [f"strategy={strategy}", *KINDS[kind], f"benchmark.task_labels={labels}", "benchmark.n_tasks=5"]
    if outcome != "done":
        with pytest.raises(RequestError, match=outcome) as caught:
            small_run(tmp_path, *typed)
        assert len(str(caught.value).splitlines()) == 2, "a reason and what would work"
        assert not list(tmp_path.rglob("*.*")), "a refused request leaves no run folder"
        return
    result = small_run(tmp_path, *typed)
    assert result.summary["status"] == "done" and (result.folder / "DONE").exists()
    evaluated = np.isfinite(as_array(result.matrix))
    expected = np.ones((5, 5), dtype=bool)
    if strategy == "joint":
        expected[:-1] = False
    assert np.array_equal(evaluated, expected)
    assert np.isfinite(as_array([result.initial])).all() == (strategy != "icarl"), "iCaRL has no classifier at first"
    assert result.summary["acc"] == pytest.approx(np.mean(result.matrix[-1]))


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        (["strategy=agem", "trainer.channels_last=true"], "channels-last"),
        (["strategy=agem", "strategy.sample_size=1"], "strategy.sample_size=1"),
        (["strategy=si", "backbone.head=per_task"], "backbone.head=per_task"),
        (["strategy=der", "backbone.head=per_task"], "without task identity"),
        (["strategy=icarl", "backbone.head=per_task"], "one feature space"),
        (["strategy=icarl", "trainer.patience=2", "benchmark.validation_fraction=0.1"], "trainer.patience"),
        (["strategy=icarl", "scheduler=plateau", "benchmark.validation_fraction=0.1"], "scheduler=plateau"),
        (["benchmark.task_labels=false", "backbone.head=per_task"], "backbone.head=per_task"),
        (["adapter=convlora", "backbone.head=shared"], "backbone.head=shared"),
        (["adapter=convlora", "backbone.head=shared", "benchmark.task_labels=false"], "backbone.head=shared"),
        (["adapter=convlora", "strategy=ewc", "strategy.variant=online"], "strategy.variant=online"),
        (["strategy=joint", "trainer.batch_size=1"], "trainer.batch_size=1"),
        (["strategy=cumulative", "trainer.batch_size=1"], "trainer.batch_size=1"),
        (["strategy=icarl", "trainer.batch_size=1"], "trainer.batch_size=1"),
    ],
)
def test_what_a_method_cannot_do_is_refused(typed, reason, tmp_path):
    adapter = [] if any(item.startswith("adapter") for item in typed) else ["adapter=none"]
    with pytest.raises(RequestError, match=reason):
        small_run(tmp_path, *adapter, *typed)


@pytest.mark.parametrize("strategy", ["naive", "replay", "ewc", "lwf", "gem", "agem"])
def test_a_head_per_task_works_without_an_adapter(strategy, tmp_path):
    result = small_run(tmp_path, "adapter=none", "backbone.head=per_task", f"strategy={strategy}", "trainer.epochs=2")
    assert np.isfinite(as_array(result.matrix)).all()


@pytest.mark.parametrize("strategy", ["replay", "gem", "agem", "der", "icarl"])
def test_a_memory_smaller_than_the_number_of_classes_works(strategy, tmp_path):
    result = small_run(tmp_path, "adapter=none", f"strategy={strategy}", "benchmark.n_tasks=5", "strategy.mem_size=3")
    assert np.isfinite(as_array(result.matrix)).all()


# ------------------------------------------------------------------------------- what the methods are for


def watched_run(
    folder: Any,
    monkeypatch: Any,
    *typed: str,
    before: Watch | None = None,
    after: Watch | None = None,
    began: Watch | None = None,
) -> Any:
    """Runs without an adapter and returns the Avalanche strategy.

    Args:
        folder: where the run folder goes.
        monkeypatch: pytest's.
        typed: overrides.
        before: comes before all other plugins at every event.
        after: comes after them.
        began: comes after them, too.
    """

    def attach(strategy: Any) -> None:
        strategy.plugins[:] = [before or Watch(), *strategy.plugins, after or Watch(), began or Watch()]

    made = watch_assembly(monkeypatch, attach)
    small_run(folder, "adapter=none", "trainer.epochs=3", *typed)
    return made[0]


def plugin_of(strategy: Any, kind: type) -> Any:
    return next(plugin for plugin in strategy.plugins if isinstance(plugin, kind))


def in_store(store: Any, x: torch.Tensor, y: torch.Tensor) -> list[int]:
    """The ids of normalised images; fails where an image with this label is not in the store."""
    normal = store.normalise(store.host_NCHW)
    found = []
    for image, label in zip(x, y.tolist(), strict=True):
        ids = torch.nonzero((normal == image).flatten(1).all(1) & (store.labels == label)).flatten()
        assert len(ids) > 0
        found.append(int(ids[0]))
    return found


def test_replay_mixes_its_memory_into_every_later_batch(tmp_path, monkeypatch):
    batches: dict[int, list] = {0: [], 1: []}
    watch = Watch(
        after_training_iteration=lambda s: batches[s.clock.train_exp_counter].append((s.mb_x.clone(), s.mb_y.clone()))
    )
    made = watched_run(tmp_path, monkeypatch, "strategy=replay", "strategy.mem_size=10", before=watch)
    assert all((y < 5).all() for _, y in batches[0])
    old = [(x[y < 5], y[y < 5]) for x, y in batches[1]]
    assert all(len(y) == 10 for _, y in old), "all ten stored images, fewer than a batch, are in every batch"
    assert all(((y >= 5).sum() in (16, 4)) for _, y in batches[1])
    used = {i for x, y in old for i in in_store(made.lane.store, x, y)}
    first_task = {i for x, y in batches[0] for i in in_store(made.lane.store, x, y)}
    assert len(used) == 10 and used <= first_task


def penalty_watch(penalty: Any) -> tuple[Watch, list]:
    """Compares, at every step, loss minus cross-entropy with ``penalty(strategy)``."""
    pairs: list[tuple[int, float, float]] = []

    def look(strategy: Any) -> None:
        plain = functional.cross_entropy(strategy.mb_output, strategy.mb_y)
        extra = (strategy.loss - plain).item()
        pairs.append((strategy.clock.train_exp_counter, extra, torch.as_tensor(penalty(strategy)).item()))

    return Watch(after_backward=look), pairs


def check_penalty(pairs: list, tolerance: float = 1e-4) -> None:
    first = [(extra, expected) for task, extra, expected in pairs if task == 0]
    later = [(extra, expected) for task, extra, expected in pairs if task == 1]
    assert first and all(abs(extra) < 1e-6 for extra, _ in first), "there is nothing to hold on to in the first task"
    assert max(expected for _, expected in later) > 10 * tolerance, "the penalty does nothing"
    for extra, expected in later:
        assert extra == pytest.approx(expected, rel=1e-3, abs=tolerance)


@pytest.mark.parametrize("labels", ["true", "false"])
@pytest.mark.parametrize("variant", ["separate", "online"])
def test_ewc_adds_its_penalty_from_the_second_task_on(labels, variant, tmp_path, monkeypatch):
    at_end: dict[str, torch.Tensor] = {}
    gradients: dict[str, torch.Tensor] = {}

    def remember(strategy: Any) -> None:
        """The diagonal of the Fisher matrix from the lane's own batches, at the end of task 1."""
        if strategy.clock.train_exp_counter != 0:
            return
        at_end.update(network_state(strategy.model))
        model = copy.deepcopy(strategy.model).eval()
        batches = list(strategy.lane.evaluation(torch.tensor(list(strategy.experience.dataset.sample_id)), 16))
        for x, y, tasks in batches:
            model.zero_grad()
            functional.cross_entropy(model(x, tasks), y).backward()
            for name, parameter in model.named_parameters():
                gradients[name] = gradients.get(name, 0) + parameter.grad**2 / len(batches)

    def penalty(strategy: Any) -> Any:
        if strategy.clock.train_exp_counter == 0:
            return 0.0
        named = dict(strategy.model.named_parameters())
        return 1000 * sum((gradients[name] * (named[name] - at_end[name]) ** 2).sum() for name in named)

    watch, pairs = penalty_watch(penalty)
    typed = [
        "strategy=ewc",
        "strategy.ewc_lambda=1000",
        f"strategy.variant={variant}",
        f"benchmark.task_labels={labels}",
    ]
    made = watched_run(tmp_path, monkeypatch, *typed, before=Watch(after_training_exp=remember), after=watch)
    check_penalty(pairs)
    importances = plugin_of(made, EWCPlugin).importances
    assert sorted(importances) == ([0, 1] if variant == "separate" else [1])
    assert all(float(item.data.sum()) > 0 for item in importances[1].values())


def test_lwf_distils_a_copy_of_the_network_of_the_task_before(tmp_path, monkeypatch):
    def penalty(strategy: Any) -> Any:
        if strategy.clock.train_exp_counter == 0:
            return 0.0
        teacher = plugin_of(strategy, LwFPlugin).lwf.prev_model
        assert teacher is not strategy.model
        with torch.no_grad():
            before = teacher(strategy.mb_x)[:, :5] / 2
        target, student = before.softmax(1), (strategy.mb_output[:, :5] / 2).log_softmax(1)
        return 10 * (target * (target.log() - student)).sum(1).mean()

    watch, pairs = penalty_watch(penalty)
    states: list[dict] = []
    snapshots = Watch(after_training_exp=lambda strategy: states.append(network_state(strategy.model)))
    typed = ["strategy=lwf", "strategy.alpha=10", "benchmark.task_labels=false"]
    teachers: list[Any] = []

    def look(strategy: Any) -> None:
        teacher = plugin_of(strategy, LwFPlugin).lwf.prev_model
        teachers.append(None if teacher is None else network_state(teacher))

    began = Watch(before_training_exp=look)
    watched_run(tmp_path, monkeypatch, *typed, before=snapshots, after=watch, began=began)
    check_penalty(pairs)
    assert teachers[0] is None and same(teachers[1], states[0]) and not same(states[0], states[1])


def test_si_holds_weights_by_their_importance(tmp_path, monkeypatch):
    def penalty(strategy: Any) -> Any:
        before, importance = plugin_of(strategy, SynapticIntelligencePlugin).ewc_data
        named = dict(strategy.model.named_parameters())
        kept = [name for name in named if name in importance]  # Avalanche leaves normalisation layers out
        assert any("conv" in name for name in kept) and any("classifier" in name for name in kept)
        return 500 * sum(
            (importance[name].data * (named[name].flatten() - before[name].data) ** 2).sum() for name in kept
        )

    watch, pairs = penalty_watch(penalty)
    watched_run(tmp_path, monkeypatch, "strategy=si", "strategy.si_lambda=1000", after=watch)
    check_penalty(pairs)


def test_gem_projects_onto_the_gradients_of_its_memory(tmp_path, monkeypatch):
    products: list[torch.Tensor] = []
    conflicts: list[bool] = []

    def gradient(strategy: Any) -> torch.Tensor:
        return torch.cat([parameter.grad.flatten() for parameter in strategy.model.parameters()])

    def before(strategy: Any) -> None:
        if strategy.clock.train_exp_counter:
            conflicts.append(bool((plugin_of(strategy, GEMPlugin).G @ gradient(strategy) < 0).any()))

    def after(strategy: Any) -> None:
        if strategy.clock.train_exp_counter:
            products.append(plugin_of(strategy, GEMPlugin).G @ gradient(strategy))

    typed = ["strategy=gem", "strategy.mem_size=30", "benchmark.task_labels=false"]
    watches = {"before": Watch(after_backward=before), "after": Watch(after_backward=after)}
    watched_run(tmp_path, monkeypatch, *typed, **watches)
    assert any(conflicts), "no gradient was ever projected, so nothing is tested"
    for product in products:
        assert (product > -1e-3 * product.abs().max().clamp_min(1)).all()


def test_memories_hold_normalised_floats_of_the_right_task(tmp_path, monkeypatch):
    made = watch_assembly(monkeypatch)
    for strategy in ("gem", "agem", "der", "icarl"):
        small_run(tmp_path, "adapter=none", f"strategy={strategy}", "strategy.mem_size=30")
    gem, agem, der, icarl = made
    memory = plugin_of(gem, GEMPlugin)
    groups = {
        "agem": [list(buffer) for buffer in plugin_of(agem, AGEMPlugin).buffers],
        "der": [
            [item for label in range(first, first + 5) for item in der.storage_policy.buffer_groups[label].buffer]
            for first in (0, 5)
        ],
    }
    memories = {"gem": [(memory.memory_x[task], memory.memory_y[task]) for task in (0, 1)]}
    for name, tasks in groups.items():
        memories[name] = [
            (torch.stack([item[0] for item in items]), torch.tensor([int(item[1]) for item in items]))
            for items in tasks
        ]
    exemplars = next(plugin for plugin in icarl.plugins if hasattr(plugin, "x_memory"))
    memories["icarl"] = [
        (torch.cat(exemplars.x_memory[span]), torch.tensor(sum(exemplars.y_memory[span], [])))
        for span in (slice(0, 5), slice(5, 10))
    ]
    for strategy, made_by in zip(memories, made, strict=True):
        for task, (x, y) in enumerate(memories[strategy]):
            assert x.dtype == torch.float32 and len(x) == 15, strategy
            ids = in_store(made_by.lane.store, x, y)
            assert set(made_by.lane.store.labels[ids].tolist()) <= set(range(5 * task, 5 * task + 5))
            assert len(set(ids)) == 15, "the same image twice"


def test_icarl_distils_from_the_network_of_the_task_before_with_its_shared_set(tmp_path, monkeypatch):
    states: list[dict] = []
    teachers: list[Any] = []
    outputs: list[torch.Tensor] = []
    x = SplitDigits(n_tasks=2).stream(tmp_path).tasks[1].test[:][0]

    @torch.no_grad()
    def ended(strategy: Any) -> None:
        states.append(network_state(strategy.model))
        training = strategy.model.training
        outputs.append(strategy.model.eval().feature_extractor(x))
        strategy.model.train(training)

    def began(strategy: Any) -> None:
        teachers.append(copy.deepcopy(strategy._criterion.old_model))

    watch = Watch(after_training_exp=ended, before_training_exp=began)
    made = watch_assembly(monkeypatch, lambda strategy: strategy.plugins.insert(0, watch))
    typed = ["adapter=lora", "adapter.sharing=shared", "adapter.base=frozen", "strategy=icarl", "strategy.mem_size=30"]
    small_run(tmp_path, *typed, "trainer.epochs=2")
    assert teachers[0] is None and made[0]._criterion.old_model is None, "none is kept between two tasks"
    teacher = teachers[1]
    state = network_state(teacher)  # with the class means, which came after
    assert same({name: state[name] for name in states[0]}, states[0]) and not same(states[0], states[1])
    factors = [item for name, item in teacher.named_parameters() if name.endswith("deltas.shared.B")]
    assert factors and all(item.abs().max() > 0 for item in factors), "the set learned nothing"
    with torch.no_grad():
        features = teacher.eval().feature_extractor(x)
        torch.testing.assert_close(features, outputs[0])
        for factor in factors:
            factor.zero_()
        assert not torch.allclose(features, teacher.feature_extractor(x), atol=1e-4)


def test_der_stores_the_plain_logits_of_the_end_of_a_task(tmp_path, monkeypatch):
    made = watch_assembly(monkeypatch)
    result = small_run(tmp_path, "adapter=none", "strategy=der", "strategy.mem_size=30")
    items = [item for label in range(5, 10) for item in made[0].storage_policy.buffer_groups[label].buffer]
    network = result.network.eval()
    with torch.no_grad():
        logits = network(torch.stack([item[0] for item in items]))
    torch.testing.assert_close(torch.stack([item[-1] for item in items]), logits, rtol=1e-5, atol=1e-6)
    assert torch.isfinite(logits).all(), "with task labels too, all classes are matched"


@pytest.mark.parametrize(("strategy", "phases"), [("naive", [100, 100]), ("cumulative", [100, 200]), ("joint", [200])])
@pytest.mark.parametrize("labels", ["true", "false"])
def test_how_much_data_a_task_trains_on(strategy, phases, labels, tmp_path, monkeypatch):
    counts: list[dict[int, int]] = []
    watch = Watch(
        before_training_exp=lambda s: counts.append({}),
        after_training_iteration=lambda s: counts[-1].update(
            {int(y): counts[-1].get(int(y), 0) + int((s.mb_y == y).sum()) for y in s.mb_y.unique()}
        ),
    )
    typed = [f"strategy={strategy}", "trainer.epochs=1", f"benchmark.task_labels={labels}"]
    watched_run(tmp_path, monkeypatch, *typed, after=watch)
    assert [sum(count.values()) for count in counts] == phases
    for count in counts:
        assert set(count.values()) == {20}, "every image of every class once"
