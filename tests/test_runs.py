"""Whole runs: measured as Avalanche measures, the same for the same seed, and a folder that tells how they ended."""

from __future__ import annotations

import json
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from avalanche.evaluation.metrics import accuracy_metrics, bwt_metrics
from avalanche.training.plugins import EvaluationPlugin
from omegaconf import OmegaConf
from resume_helpers import watched
from runs_helpers import (
    as_array,
    learn_directly,
    network_state,
    same,
    small_run,
    table,
    watch_assembly,
)

from cl_runner import learning
from cl_runner.benchmarks.classes import SplitDigits
from cl_runner.config.compose import compose
from cl_runner.errors import RequestError
from cl_runner.recording.run_folder import SUMMARY_KEYS
from cl_runner.runner import RunFailed, run

FILES = {
    "config.yaml", "overrides.yaml", "environment.json", "events.jsonl", "accuracy_matrix.csv", "parameters.csv",
    "per_class_accuracy.csv", "layers.csv", "summary.json", "DONE", "checkpoints",
}  # fmt: skip
NAIVE = ("adapter=none", "strategy=naive")


def matrix_of(folder: Path) -> np.ndarray:
    """`accuracy_matrix.csv` with the row before training; NaN where a cell is empty."""
    rows = table(folder / "accuracy_matrix.csv")
    assert [row["after_task"] for row in rows] == [str(index) for index in range(len(rows))]
    names = [name for name in rows[0] if name != "after_task"]
    return np.array([[float(row[name] or "nan") for name in names] for row in rows])


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


# ---------------------------------------------------------------------------------------------- measuring


@pytest.mark.parametrize("labels", ["true", "false"])
@pytest.mark.parametrize("typed", [NAIVE, ("adapter=none", "strategy=der"), ("adapter=none", "strategy=icarl")])
def test_accuracies_and_bwt_are_avalanches(labels, typed, tmp_path):
    evaluator = EvaluationPlugin(accuracy_metrics(experience=True), bwt_metrics(experience=True, stream=True))
    more = [f"benchmark.task_labels={labels}", "benchmark.n_tasks=5", "trainer.epochs=5", "optimizer.lr=0.01"]
    result, _ = learn_directly(tmp_path / "run", *typed, *more, evaluator=evaluator)
    values = evaluator.get_all_metrics()
    series = [
        next(numbers for name, (_, numbers) in values.items() if "Acc" in name and name.endswith(f"Exp{task:03d}"))
        for task in range(5)
    ]
    theirs = np.array(series).T
    ours = matrix_of(result.folder)
    if "strategy=icarl" in typed:
        assert np.isnan(ours[0]).all()  # no class means before the first task
        ours = ours[1:]
    if labels == "false" or "strategy=naive" in typed:  # Avalanche does not mask der's and icarl's other classes
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
        bwt = values["StreamBWT/eval_phase/test_stream"][1][-1]
        assert result.summary["bwt"] == pytest.approx(bwt, abs=1e-6) and abs(bwt) > 1e-3
    else:
        assert (ours >= theirs - 1e-6).all() and (ours > theirs + 1e-3).any(), "fewer candidates cannot cost accuracy"

    r = as_array(result.matrix)
    forgotten = [max(r[i, j] for i in range(j, 4)) - r[4, j] for j in range(4)]  # the formula, written out
    assert result.summary["forgetting"] == pytest.approx(sum(forgotten) / 4, abs=1e-12)
    assert result.summary["acc"] == pytest.approx(sum(r[4]) / 5, abs=1e-12)
    assert np.array_equal(matrix_of(result.folder)[1:], r)
    assert summary_of(result.folder)["bwt"] == result.summary["bwt"]


def test_accuracy_counts_the_whole_test_part(tmp_path):
    result = small_run(tmp_path, *NAIVE, "benchmark.task_labels=false", "trainer.eval_batch_size=7")
    network, made = result.network.eval(), []
    for task in SplitDigits(n_tasks=2, task_labels=False).stream(tmp_path).tasks:
        x, y = task.test[:]
        with torch.no_grad():
            made.append((network(x).argmax(1) == y).double().mean().item())
    assert result.matrix[-1] == pytest.approx(made, abs=1e-12)


def test_fine_tuning_forgets_and_convlora_does_not(tmp_path):
    quick = ["benchmark.n_tasks=5", "benchmark.per_class=null", "benchmark.task_labels=false", "trainer.epochs=3"]
    naive = small_run(tmp_path, *NAIVE, *quick, "optimizer.lr=0.01")
    assert naive.summary["forgetting"] > 0.3 and naive.summary["learning_accuracy"] > 0.8
    default = ["quiet=true", "trainer.threads=1", "trainer.device=cpu"]
    quickstart = small_run(tmp_path, *default, plain=True)
    assert quickstart.summary["forgetting"] == 0.0 and quickstart.summary["acc"] > 0.9
    assert quickstart.summary["adapter"] == "convlora"


# ---------------------------------------------------------------------------------------- reproducibility


class Trace:
    """What a run started from and the order in which it saw its data."""

    def __init__(self, monkeypatch: Any) -> None:
        self.runs: list[dict[str, Any]] = []
        watch_assembly(monkeypatch, self.look)

    def look(self, strategy: Any) -> None:
        orders: list[list[int]] = []
        monitor = next(plugin for plugin in strategy.plugins if hasattr(plugin, "validation"))
        held_out = [part.ids.tolist() for part in monitor.validation if part is not None]
        self.runs.append({"weights": network_state(strategy.model), "orders": orders, "held_out": held_out})
        chunks = strategy.lane.chunks

        def spied(batches: Any, augmented: bool) -> Any:
            batches = list(batches)
            if augmented:
                ids = torch.cat(batches)
                orders.append(torch.argsort(torch.argsort(ids)).tolist())  # positions within the task's own samples
            return chunks(batches, augmented)

        strategy.lane.chunks = spied


def images_held_out(trace: dict[str, Any]) -> set[int]:
    return {index for part in trace["held_out"] for index in part}


SEEDED = ("benchmark.n_tasks=5", "benchmark.validation_fraction=0.2", "trainer.epochs=2", "adapter=none")


@pytest.mark.parametrize(
    "typed",
    [
        ("adapter=convlora", "strategy=naive"),
        ("adapter=none", "strategy=replay"),
        ("adapter=none", "strategy=agem"),
        ("adapter=none", "strategy=gem"),
        ("adapter=none", "strategy=icarl"),
    ],
)
def test_the_same_seed_gives_the_same_matrix_byte_for_byte(typed, tmp_path):
    first, second = (small_run(tmp_path, *typed, "trainer.epochs=2", "seed=3") for _ in range(2))
    assert first.folder != second.folder
    assert (first.folder / "accuracy_matrix.csv").read_bytes() == (second.folder / "accuracy_matrix.csv").read_bytes()
    assert same(network_state(first.network), network_state(second.network))


def test_the_class_order_seed_changes_the_classes_and_nothing_else(tmp_path, monkeypatch):
    traced = Trace(monkeypatch)
    runs = [small_run(tmp_path, *SEEDED, f"benchmark.class_order_seed={seed}") for seed in (1, 2)]
    one, two = traced.runs
    assert same(one["weights"], two["weights"]), "the class order reached the initial weights"
    assert one["orders"] == two["orders"], "the class order reached the order of the data"
    assert images_held_out(one) == images_held_out(two)
    orders = [json.loads((item.folder / "environment.json").read_text())["class_order"] for item in runs]
    assert orders == [torch.randperm(10, generator=torch.Generator().manual_seed(seed)).tolist() for seed in (1, 2)]
    assert runs[0].matrix != runs[1].matrix


def test_the_seed_changes_initialisation_and_data_order_only(tmp_path, monkeypatch):
    traced = Trace(monkeypatch)
    runs = [small_run(tmp_path, *SEEDED, "benchmark.class_order_seed=1", f"seed={seed}") for seed in (0, 1)]
    zero, one = traced.runs
    assert not same(zero["weights"], one["weights"])
    assert zero["orders"] != one["orders"]
    assert zero["held_out"] == one["held_out"], "the seed reached the validation split"
    notes = [json.loads((item.folder / "environment.json").read_text()) for item in runs]
    assert notes[0]["class_order"] == notes[1]["class_order"]
    for seed, (result, note) in enumerate(zip(runs, notes, strict=True)):  # 0 is a seed, not the lack of one
        assert result.summary["seed"] == seed and summary_of(result.folder)["seed"] == seed
        assert note["seeds"]["seed"] == seed
        assert OmegaConf.load(result.folder / "config.yaml").seed == seed


def test_the_outside_world_does_not_matter(tmp_path, monkeypatch):
    traced = Trace(monkeypatch)
    torch.manual_seed(11)
    small_run(tmp_path, *SEEDED)
    torch.manual_seed(22)
    np.random.seed(22)
    small_run(tmp_path, *SEEDED)
    assert same(traced.runs[0]["weights"], traced.runs[1]["weights"])
    assert traced.runs[0]["orders"] == traced.runs[1]["orders"]


# ------------------------------------------------------------------------------------------ the run folder


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("full", [[1, 1, 1, 1, 1]] * 6),
        ("seen", [[int(task < row) for task in range(5)] for row in range(6)]),
        ("last", [[0] * 5] * 5 + [[1] * 5]),
    ],
)
def test_what_is_evaluated(which, expected, tmp_path):
    result = small_run(tmp_path, *NAIVE, "benchmark.n_tasks=5", f"evaluate={which}")
    assert np.array_equal(~np.isnan(matrix_of(result.folder)), np.array(expected, dtype=bool))
    assert result.summary["acc"] is not None
    assert (result.summary["forgetting"] is None) == (which == "last")
    assert (result.summary["fwt"] is None) == (which != "full")


def test_joint_training_has_only_the_last_row(tmp_path):
    result = small_run(tmp_path, "adapter=none", "strategy=joint", "benchmark.n_tasks=5")
    assert np.isnan(matrix_of(result.folder)).all(axis=1).tolist() == [False, True, True, True, True, False]
    assert [row["task"] for row in table(result.folder / "parameters.csv")] == ["5"]
    assert result.summary["forgetting"] is None and result.summary["acc"] is not None


def test_the_folder_holds_every_file(tmp_path):
    result = small_run(tmp_path, "adapter=convlora", "adapter.rank=2", "seed=5")
    assert {path.name for path in result.folder.iterdir()} == FILES
    assert result.folder.parent == tmp_path / "test"
    summary = summary_of(result.folder)
    assert set(SUMMARY_KEYS) <= set(summary) and summary["status"] == "done"
    named = {"experiment": "test", "benchmark": "split_digits", "backbone": "small_cnn", "adapter": "convlora"}
    assert {key: summary[key] for key in named} == named
    assert summary["train_images_per_second"] > 0 and summary["wall_seconds"] > 0
    assert summary["peak_memory_bytes"] > 1e8, "torch alone takes more than that"
    assert "seed=5" in OmegaConf.load(result.folder / "overrides.yaml")
    rows = table(result.folder / "parameters.csv")
    assert [row["task"] for row in rows] == ["1", "2"] and {row["epochs"] for row in rows} == {"1"}
    layers = table(result.folder / "layers.csv")
    assert {row["task"] for row in layers} == {"2"}, "the first task trains the base, and has no set"
    assert all(float(row["delta_norm"]) > 0 for row in layers)


def test_a_diverging_loss_ends_the_run_with_a_reason(tmp_path):
    with pytest.raises(RunFailed, match="try a lower optimizer.lr") as caught:
        small_run(tmp_path, *NAIVE, "optimizer=sgd", "optimizer.lr=1e9", "optimizer.weight_decay=1")
    assert not caught.value.interrupted
    (folder,) = (tmp_path / "test").iterdir()
    assert "DivergedError" in (folder / "error.txt").read_text()
    assert summary_of(folder)["status"] == "failed" and not (folder / "DONE").exists()
    assert np.isfinite(matrix_of(folder)[0]).all() and np.isnan(matrix_of(folder)[1:]).all()


def ctrl_c() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("stop", [ctrl_c, lambda: os.kill(os.getpid(), signal.SIGTERM)], ids=["ctrl-c", "sigterm"])
def test_an_interruption_leaves_what_there_is_and_resuming_goes_on(stop, tmp_path):
    reference = small_run(tmp_path / "whole", *NAIVE)
    handler = signal.getsignal(signal.SIGTERM)
    with watched("2.1.1", stop), pytest.raises(RunFailed, match="resume=") as caught:
        small_run(tmp_path, *NAIVE)
    assert caught.value.interrupted and signal.getsignal(signal.SIGTERM) == handler
    (folder,) = (tmp_path / "test").iterdir()
    assert summary_of(folder)["status"] == "interrupted" and not (folder / "DONE").exists()
    assert np.isfinite(matrix_of(folder)[:2]).all() and np.isnan(matrix_of(folder)[2]).all()

    config = (folder / "config.yaml").read_bytes()
    with watched() as steps:
        resumed = run(compose([f"resume={folder}", "quiet=true"]), overrides=[f"resume={folder}", "quiet=true"])
    assert steps[0] == ("2.1.1" if stop is ctrl_c else "2.1.2"), "a signal has its step kept"
    assert resumed.folder == folder and {path.name for path in folder.iterdir()} == FILES
    assert (folder / "config.yaml").read_bytes() == config
    assert summary_of(folder)["status"] == "done" and summary_of(folder)["experiment"] == "test"
    assert resumed.matrix == reference.matrix
    events = (folder / "events.jsonl").read_text()
    assert events.count('"event": "run_started"') == 1 and events.count('"event": "resumed"') == 1
    assert "interrupted" not in events, "the first attempt's end is still there"


def test_resuming_a_finished_run_does_nothing(tmp_path, monkeypatch):
    done = small_run(tmp_path, *NAIVE)
    before = {path.name: path.stat().st_mtime_ns for path in done.folder.iterdir()}
    monkeypatch.setattr(learning, "learn", lambda *_, **__: pytest.fail("it was trained again"))
    result = run(compose([f"resume={done.folder}", "quiet=true"]))
    assert {path.name: path.stat().st_mtime_ns for path in done.folder.iterdir()} == before
    assert result.folder == done.folder and result.summary["acc"] == done.summary["acc"]


def test_resuming_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(RequestError, match="no run folder"):
        run(compose([f"resume={tmp_path}", "quiet=true"]))


@pytest.mark.parametrize("strategy", ["replay", "lwf", "ewc", "icarl"])
def test_librarys_notes_stay_off_the_screen(strategy, tmp_path):
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        small_run(tmp_path, "adapter=none", f"strategy={strategy}")
    assert [str(note.message) for note in notes if "avalanche" in note.filename] == []


@pytest.mark.parametrize("adapter", ["none", "convlora", "convlora_cp", "dclora", "hybrid"])
def test_a_summary_calls_the_adapter_what_the_user_typed(adapter, tmp_path):
    assert (
        small_run(tmp_path, f"adapter={adapter}", "adapter.base=frozen" if adapter != "none" else "seed=0").summary[
            "adapter"
        ]
        == adapter
    )
