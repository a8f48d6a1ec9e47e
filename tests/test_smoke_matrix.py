"""Every adapter with every strategy: a finished run, or a refusal that says why; and plans that agree with runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from runs_helpers import Watch, as_array, small_run, table, watch_assembly

from cl_runner.errors import RequestError
from cl_runner.training.plugin import AdapterPlugin

FROZEN = "adapter.base=frozen"
SMALL = ["benchmark.per_class=10", "backbone.width=4", "optimizer.lr=0.005"]
SHARED = {
    "lora": ["adapter=lora"],
    "dylora": ["adapter=dylora"],
    "dylora-random_rank": ["adapter=dylora", "adapter.training=random_rank"],
    "dclora": ["adapter=dclora"],
    "hybrid": ["adapter=hybrid"],
    "codyra": ["adapter=codyra", "adapter.rank=4"],
    "peft": ["adapter=peft"],
}
PER_TASK = {
    "lora-per_task": ["adapter=lora", "adapter.sharing=per_task"],
    "convlora": ["adapter=convlora"],
    "convlora_cp": ["adapter=convlora_cp"],
    "senacnn": ["adapter=senacnn"],
    "peft-per_task": ["adapter=peft", "adapter.sharing=per_task"],
}
ADAPTERS = {"none": ["adapter=none"]} | {name: [*typed, FROZEN] for name, typed in (SHARED | PER_TASK).items()}
STRATEGIES = ["naive", "replay", "ewc", "lwf", "si", "gem", "agem", "der", "icarl", "cumulative", "joint"]
REASONS = {  # why a set per task cannot be combined with a strategy; every other cell finishes
    "der": "strategy=der trains without task identity",
    "icarl": "strategy=icarl compares class means in one feature space",
}
CELLS = [
    pytest.param(adapter, strategy, REASONS.get(strategy) if adapter in PER_TASK else None, id=f"{strategy}-{adapter}")
    for strategy in STRATEGIES
    for adapter in ADAPTERS
]


def needs(adapter: str) -> None:
    """PEFT is an extra."""
    if adapter.startswith("peft"):
        pytest.importorskip("peft")


def reason_of(folder: Any, *typed: str) -> str:
    """The first line of a refusal, which must have two and leave nothing behind."""
    with pytest.raises(RequestError) as caught:
        small_run(folder, *SMALL, *typed)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2, "a reason and what would work"
    assert not list(folder.rglob("*.*")), "a refused request leaves no run folder"
    return lines[0]


def counted(monkeypatch: Any) -> list[tuple[int, int]]:
    """(steps done, steps announced to the adapter) of every phase."""
    ends: list[tuple[int, int]] = []

    def look(strategy: Any) -> None:
        (plugin,) = [item for item in strategy.plugins if isinstance(item, AdapterPlugin)]
        ends.append((plugin.step, plugin.steps))

    watch_assembly(monkeypatch, lambda s: s.plugins.append(Watch(after_training_exp=look)))
    return ends


@pytest.mark.parametrize(("adapter", "strategy", "reason"), CELLS)
def test_every_cell_is_a_finished_run_or_a_reason(adapter, strategy, reason, tmp_path, monkeypatch):
    needs(adapter)
    typed = [*ADAPTERS[adapter], f"strategy={strategy}"]
    if reason is not None:
        assert reason in reason_of(tmp_path, *typed)
        return
    ends = counted(monkeypatch)
    result = small_run(tmp_path, *SMALL, *typed)
    assert result.summary["status"] == "done" and (result.folder / "DONE").exists()
    assert np.isfinite(as_array(result.matrix)[-1]).all()
    rows = table(result.folder / "parameters.csv")
    assert len(ends) == len(rows) == (1 if strategy == "joint" else 2)
    assert all(done == announced > 0 for done, announced in ends), "the adapter was told another length"
    for row in rows:
        assert (int(row["adapter"]) > 0) == (adapter not in ("none", "codyra"))
    if adapter not in ("none", "senacnn"):
        assert result.summary["drift"] > 0, "the adapter has learned nothing"


@pytest.mark.parametrize("strategy", ["naive", "replay", "gem", "der", "icarl", "cumulative", "joint"])
def test_by_iterations_too_the_adapter_knows_how_long_a_task_is(strategy, tmp_path, monkeypatch):
    ends = counted(monkeypatch)
    small_run(tmp_path, *SMALL, *ADAPTERS["codyra"], f"strategy={strategy}", "trainer.iterations=9")
    assert set(ends) == {(9, 9)}


@pytest.mark.parametrize("strategy", ["ewc", "si"])
@pytest.mark.parametrize("adapter", ["dylora", "hybrid"])
def test_weights_that_are_dropped_cannot_be_held_by_their_importance(adapter, strategy, tmp_path):
    reason = reason_of(
        tmp_path, *ADAPTERS[adapter], f"strategy={strategy}", "trainer.epochs=2", "adapter.rank_schedule=[4,2]"
    )
    assert f"strategy={strategy} remembers one value for every weight" in reason and "rank_schedule" in reason


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name not in ("ewc", "si")])
def test_every_other_strategy_follows_a_rank_schedule(strategy, tmp_path):
    typed = [*ADAPTERS["dylora"], f"strategy={strategy}", "adapter.rank_schedule=[4,2]", "trainer.epochs=2"]
    rows = table(small_run(tmp_path, *SMALL, *typed).folder / "layers.csv")
    assert {row["rank"] for row in rows} == {"2"}


# -------------------------------------------------------------------------------------- a plan of the same

COUNTS = ("base", "trainable", "adapter", "normalisation", "head", "stored", "inference", "growth", "buffers")


@pytest.mark.parametrize("base", ["frozen", "first_task"])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_a_plan_counts_what_training_then_has(adapter, base, tmp_path):
    needs(adapter)
    typed = [item for item in ADAPTERS[adapter] if item != FROZEN]
    typed += [f"adapter.base={base}"] if adapter != "none" else []
    if adapter == "codyra":
        typed.append("adapter.kappa_max=0")  # what a threshold drops, no plan can know
    folders = [small_run(tmp_path / mode, *SMALL, *typed, f"mode={mode}").folder for mode in ("plan", "train")]
    planned, trained = (table(folder / "parameters.csv") for folder in folders)
    assert len(planned) == len(trained) == 2
    for plan, run in zip(planned, trained, strict=True):
        assert {key: plan[key] for key in COUNTS} == {key: run[key] for key in COUNTS}
    columns = ("task", "name", "kind", "shape", "rank", "parameters")
    layers = [[tuple(row[key] for key in columns) for row in table(folder / "layers.csv")] for folder in folders]
    assert layers[0] == layers[1]
    assert bool(layers[0]) == (adapter != "none")


@pytest.mark.parametrize("epochs", [3, 4])
@pytest.mark.parametrize("adapter", ["dylora", "hybrid"])
def test_a_plan_follows_a_rank_schedule(adapter, epochs, tmp_path):
    typed = [*ADAPTERS[adapter], "adapter.rank_schedule=[6,4,2]", f"trainer.epochs={epochs}"]
    folders = [small_run(tmp_path / mode, *SMALL, *typed, f"mode={mode}").folder for mode in ("plan", "train")]
    planned, trained = (table(folder / "parameters.csv") for folder in folders)
    for plan, run in zip(planned, trained, strict=True):
        assert {key: plan[key] for key in COUNTS} == {key: run[key] for key in COUNTS}
    assert int(planned[1]["adapter"]) < int(planned[1]["trainable"])
    ranks = [[row["rank"] for row in table(folder / "layers.csv")] for folder in folders]
    assert ranks[0] == ranks[1] and ranks[0][-1] == "2"
