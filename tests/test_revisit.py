"""A trained network taken back from its run folder: the very one that was trained, without data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from runs_helpers import small_run
from safetensors.torch import load_file

import cl_runner
from cl_runner import cli
from cl_runner.benchmarks.sources.digits import Digits
from cl_runner.errors import RequestError
from cl_runner.reports.cli import main as report
from cl_runner.runner import RunFailed

X = torch.rand(6, 1, 8, 8, generator=torch.Generator().manual_seed(0))
CASES = {
    "convlora": ["adapter=convlora"],
    "convlora, tasks inferred": ["adapter=convlora", "benchmark.task_labels=false"],
    "lora shared": ["adapter=lora", "benchmark.task_labels=false"],
    "codyra": ["adapter=codyra"],
    "dylora, shrunk": ["adapter=dylora", "adapter.rank=4", "adapter.rank_schedule=[2]", "adapter.schedule_from=2"],
    "senacnn": ["adapter=senacnn"],
    "none": ["adapter=none", "backbone.head=shared"],
    "peft": ["adapter=peft"],
}


@pytest.mark.parametrize("name", CASES)
def test_a_loaded_network_answers_as_the_trained_one(name, tmp_path, monkeypatch):
    done = small_run(tmp_path, *CASES[name])
    monkeypatch.setattr(Digits, "load", lambda *a, **k: pytest.fail("data was read"))
    before = torch.get_rng_state()
    loaded = cl_runner.load(done.folder)
    assert torch.equal(torch.get_rng_state(), before), "loading drew random numbers"
    assert not loaded.training and not any(item.requires_grad for item in loaded.parameters())
    trained = done.network.eval()
    for task in (0, 1):
        labels = torch.full((6,), task)
        assert torch.equal(loaded(X, labels), trained(X, labels))
        one = cl_runner.load(done.folder, task=task + 1)(X)
        assert torch.equal(one, trained.for_task(X, task))
        own = range(5 * task, 5 * task + 5)
        assert all(bool(one[:, label].isfinite().all()) == (label in own) for label in range(10))


def test_an_interrupted_run_can_be_loaded_as_its_last_task_left_it(tmp_path, monkeypatch):
    from cl_runner import learning

    whole = small_run(tmp_path / "whole", "adapter=convlora", "benchmark.n_tasks=5")
    train, calls = learning._train, []

    def second(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return train(*args)

    monkeypatch.setattr(learning, "_train", second)
    with pytest.raises(RunFailed):
        small_run(tmp_path / "half", "adapter=convlora", "benchmark.n_tasks=5")
    (folder,) = (tmp_path / "half" / "test").iterdir()
    loaded, labels = cl_runner.load(folder), torch.ones(6, dtype=torch.int64)
    assert torch.equal(loaded(X, labels), whole.network.eval()(X, labels))


def test_a_run_is_evaluated_again(tmp_path, capsys):
    done = small_run(tmp_path / "runs", "adapter=convlora", "trainer.epochs=3")
    files = {place: place.read_bytes() for place in done.folder.rglob("*") if place.is_file()}
    capsys.readouterr()
    typed = ["mode=eval", f"checkpoint={done.folder}", f"output_root={tmp_path / 'again'}", "report=false"]
    assert cli.execute(typed) == 0
    assert "accuracies after task 2: the same as the recorded ones" in capsys.readouterr().out
    (again,) = (tmp_path / "again" / "eval").iterdir()
    summary = json.loads((again / "summary.json").read_text())
    assert summary["status"] == "evaluated" and summary["largest_difference"] == 0 and summary["after_task"] == 2
    last = (done.folder / "accuracy_matrix.csv").read_text().splitlines()[-1]
    assert (again / "accuracy_matrix.csv").read_text().splitlines()[-1] == last
    assert {place: place.read_bytes() for place in done.folder.rglob("*") if place.is_file()} == files

    text = (done.folder / "accuracy_matrix.csv").read_text().splitlines()
    text[-1] = ",".join(["2", *["0.25"] * 2])
    (done.folder / "accuracy_matrix.csv").write_text("\n".join(text))
    assert cli.execute(typed) == 0
    assert "points apart from the recorded ones" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["mode=eval"], ["checkpoint"]),
        (["mode=eval", "checkpoint={empty}"], ["checkpoint=", "no such folder"]),
        (["mode=eval", "checkpoint={run}", "trainer.epochs=7"], ["trainer.epochs was 1 and is 7"]),
        (["checkpoint={run}"], ["checkpoint", "mode=eval"]),
    ],
)
def test_what_cannot_be_evaluated_is_refused(typed, words, tmp_path, capsys):
    run = small_run(tmp_path, "adapter=none").folder
    assert cli.execute([item.format(empty=tmp_path / "no", run=run) for item in typed]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words), error


def test_without_a_checkpoint_there_is_nothing_to_load(tmp_path):
    run = small_run(tmp_path, "adapter=none").folder
    for place in (run / "checkpoints").iterdir():
        place.write_bytes(place.read_bytes()[:-3])
    with pytest.raises(RequestError, match="no checkpoint"):
        cl_runner.load(run)
    with pytest.raises(RequestError, match="no run folder|no checkpoint"):
        cl_runner.load(tmp_path / "nowhere")


def test_exported_weights_are_the_networks_own(tmp_path, capsys):
    few = ["benchmark.n_tasks=2", "benchmark.per_class=8", "trainer.batch_size=16", "trainer.epochs=2"]
    options = ["quiet=true", "report=false", "benchmark.validation_fraction=0", *few]
    done = small_run(tmp_path, *options, "adapter=convlora", "backbone=resnet20", plain=True)
    file = tmp_path / "two.safetensors"
    assert report(["export", str(done.folder), "--merged", str(file)]) == 2
    assert "--task" in capsys.readouterr().err
    assert report(["export", str(done.folder), "--merged", str(file), "--task", "9"]) == 2
    assert report(["export", str(done.folder), "--merged", str(file), "--task", "2"]) == 0
    from pytorchcv.model_provider import get_model

    theirs = get_model("resnet20_cifar10", in_channels=1, num_classes=10)
    state = load_file(file)
    theirs.load_state_dict(state, strict=True)
    x = torch.rand(4, 1, 32, 32)
    labels = torch.ones(4, dtype=torch.int64)
    expected = done.network.eval()(x, labels)
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(x)[:, 5:], expected[:, 5:], rtol=1e-4, atol=1e-5)


def test_a_shared_set_needs_no_task(tmp_path):
    done = small_run(tmp_path, "adapter=lora", "benchmark.task_labels=false", "trainer.epochs=2")
    file = Path(tmp_path / "shared.safetensors")
    assert report(["export", str(done.folder), "--merged", str(file)]) == 0
    assert not any("deltas" in name for name in load_file(file))
