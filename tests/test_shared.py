"""Several cells at once in one process: each gives what it gives alone, and nobody pays for what becomes of another."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from builders import images, network
from sweep_helpers import CELLS, QUICK, cells, matrices, rows
from torch import nn

from cl_runner import cli
from cl_runner.benchmarks.store import ImageStore
from cl_runner.company import Company, Member, Process
from cl_runner.training import together
from cl_runner.training.stacked import Stack

pytestmark = pytest.mark.usefixtures("elsewhere")
SMALL = [*QUICK, "trainer.batch_size=6", "trainer.epochs=2", "trainer.log_every=1", "optimizer.lr=0.01"]
SHARED = ["launcher=gpu_shared"]
CLOSE = 1e-5  # relative, of single losses: sums in another order


def losses(cell: Path) -> list[float]:
    """The losses of all steps of a run, in order."""
    events = map(json.loads, (cell / "events.jsonl").read_text().splitlines())
    return [event["loss"] for event in events if event["event"] == "step"]


def told(cell: Path) -> list[str]:
    """The warnings of a run."""
    events = map(json.loads, (cell / "events.jsonl").read_text().splitlines())
    return [event["text"] for event in events if event["event"] == "warning"]


@pytest.fixture
def common(monkeypatch):
    """How many steps were computed together with others', for each company that comes to be."""
    made = []

    class Watched(together.CommonSteps):
        def __init__(self) -> None:
            super().__init__()
            made.append(self)

    monkeypatch.setattr(together, "CommonSteps", Watched)
    return made


@pytest.fixture
def switches(monkeypatch):
    """The companies that come to be."""
    made = []
    begin = Company.__init__
    monkeypatch.setattr(Company, "__init__", lambda self, *given: made.append(self) or begin(self, *given))
    return made


@pytest.fixture
def alone():
    """Runs a sweep cell by cell, in another folder, and returns its losses and matrices by seed."""

    def run(*typed: str) -> tuple[dict[int, list[float]], dict[int, str]]:
        here, there = Path.cwd(), Path("alone")
        there.mkdir()
        os.chdir(there)
        try:
            assert cli.execute(["-m", *SMALL, *typed]) == 0
            return {seed: losses(cell) for seed, cell in cells().items()}, matrices()
        finally:
            os.chdir(here)

    return run


def test_taking_turns_changes_no_number(alone, switches):
    """Augmentation, dropout and replay draw from every generator there is; each cell has its own."""
    drawing = ["seed=0,1,2", "strategy=replay", "strategy.mem_size=6", "benchmark.augmentation=flip"]
    expected, rows_of = alone(*drawing)
    assert (
        cli.execute(["-m", *SHARED, "hydra.launcher.mode=interleaved", "hydra.launcher.cells=2", *SMALL, *drawing]) == 0
    )
    assert {seed: losses(cell) for seed, cell in cells().items()} == expected
    assert matrices() == rows_of and len(set(rows_of.values())) > 1
    assert switches[-1].switches >= len(expected[0]), "they did take turns"


def test_stacked_seeds_and_rates_learn_what_each_learns_alone(alone, common):
    """Both sets of weights that train (task 1) and a frozen base (task 2); Adam over all, and rates of their own."""
    expected, rows_of = alone("seed=0,1,2")
    assert cli.execute(["-m", *SHARED, "hydra.launcher.mode=stacked", *SMALL, "seed=0,1,2"]) == 0
    (steps,) = common
    assert steps.together == sum(map(len, expected.values())), "every step of every cell was a common one"
    for seed, cell in cells().items():
        np.testing.assert_allclose(losses(cell), expected[seed], rtol=CLOSE)
    assert matrices() == rows_of


def test_what_cannot_be_stacked_is_said_once_and_takes_turns(alone, common):
    typed = ["seed=0,1", "strategy=ewc"]
    expected, rows_of = alone(*typed)
    assert cli.execute(["-m", *SHARED, "hydra.launcher.mode=stacked", *SMALL, *typed]) == 0
    assert {seed: losses(cell) for seed, cell in cells().items()} == expected and matrices() == rows_of
    found = [text for cell in cells().values() for text in told(cell) if "not computed together" in text]
    assert len(found) == 1 and "every step" in found[0]
    assert not common[0].together


@pytest.fixture
def spoiled(monkeypatch):
    """Weights of the second cell are no numbers as soon as it begins to train."""
    begin = together.SharedStep.begin_epoch

    def spoil(self, strategy):
        if self._member.number == 1:
            next(item for item in strategy.model.parameters() if item.requires_grad).data.fill_(float("nan"))
        begin(self, strategy)

    monkeypatch.setattr(together.SharedStep, "begin_epoch", spoil)


def test_one_bad_cell_leaves_the_others_alone(alone, common, spoiled):
    """That cell fails at its first step; the one that is stacked with it does not notice."""
    rates = "optimizer.lr=0.01,0.02,0.03"
    assert cli.execute(["-m", *SHARED, "hydra.launcher.mode=stacked", *SMALL[:-1], rates]) == 1
    assert common[0].together
    table = {row["settings"]: row for row in rows(CELLS / "table.csv")}
    assert [row["status"] for row in table.values()].count("done") == 2
    bad = table["optimizer.lr=0.02"]
    assert bad["status"] == "failed" and "step 1 of epoch 1" in bad["error"] and "optimizer.lr" in bad["error"]
    assert not list(CELLS.glob("*/.lock"))
    for cell in [place.parent for place in CELLS.glob("*/DONE")]:
        rate = yaml.safe_load((cell / "config.yaml").read_text())["optimizer"]["lr"]
        assert cli.execute([*SMALL[:-1], f"optimizer.lr={rate}", f"output_root=alone_{rate}"]) == 0
        (one,) = Path(f"alone_{rate}/quickstart").glob("*/DONE")
        np.testing.assert_allclose(losses(cell), losses(one.parent), rtol=CLOSE)


@pytest.mark.parametrize("mode", ["interleaved", "stacked"])
def test_interrupted_cells_go_on_where_they_were(alone, mode, monkeypatch):
    expected, rows_of = alone("seed=0,1")
    taken, learn = [], together.SharedStep.learn

    def press(self, strategy):
        taken.append(1)
        if len(taken) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)  # until the main thread has heard it
        return learn(self, strategy)

    monkeypatch.setattr(together.SharedStep, "learn", press)
    typed = ["-m", *SHARED, f"hydra.launcher.mode={mode}", *SMALL, "seed=0,1"]
    before = len(threading.enumerate())
    assert cli.execute(typed) == 130
    assert len(threading.enumerate()) == before and not list(CELLS.glob("*/.lock"))
    for cell in cells().values():
        assert json.loads((cell / "summary.json").read_text())["status"] == "interrupted"
        kept = [json.loads(file.read_text())["content"]["where"] for file in (cell / "checkpoints").glob("*.json")]
        assert any("in task 1" in where for where in kept), kept
    reached = {seed: len(losses(cell)) for seed, cell in cells().items()}
    assert all(0 < count < len(expected[seed]) for seed, count in reached.items())
    assert cli.execute(typed) == 0
    for seed, cell in cells().items():
        np.testing.assert_allclose(losses(cell), expected[seed], rtol=0 if mode == "interleaved" else CLOSE)
    assert matrices() == rows_of
    assert cli.execute(typed) == 0, "and then there is nothing to do"


def test_fail_fast_begins_no_further_cell(spoiled, capfd):
    assert cli.execute(["-m", *SHARED, "hydra.launcher.cells=1", *SMALL, "seed=0,1,2,3", "fail_fast=true"]) == 1
    assert "2 of 4 cells were not begun" in capfd.readouterr().err
    assert set(matrices()) == {0}


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["hydra.launcher.mode=stackd"], ["hydra.launcher.mode=stackd", "interleaved"]),
        (["hydra.launcher.cells=0"], ["hydra.launcher.cells=0", "1 to 64"]),
        (["+hydra.launcher.cell=3"], ["hydra.launcher.cell", "did you mean 'cells'?"]),
    ],
)
def test_wrong_keys_are_refused(typed, words, capfd):
    assert cli.execute(["-m", *SHARED, *typed, "seed=0,1"]) == 2
    said = capfd.readouterr().err
    assert all(word in said for word in words) and len(said.splitlines()) <= 2
    assert not CELLS.exists()


# ------------------------------------------------------------------------------------------------ the parts


def test_the_process_is_as_it_was_left():
    """Two threads draw and set flags in turn; each finds what it left."""
    company, found = Company(), {}

    def work(member: Member) -> None:
        with member.at_work():
            torch.manual_seed(member.number)
            np.random.seed(member.number)
            torch.use_deterministic_algorithms(member.number == 1)
            drawn = []
            for _ in range(3):
                member.pass_on()
                drawn.append((torch.rand(2).tolist(), np.random.rand(), torch.are_deterministic_algorithms_enabled()))
            found[member.number] = drawn

    before = Process.now()
    threads = [threading.Thread(target=work, args=(Member(company, number),)) for number in (1, 2)]
    with Member(company).at_work():  # until both wait for their turn
        for thread in threads:
            thread.start()
        while len(company._queue) < 2:
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    before.put_back()
    assert company.switches >= 4
    for number in (1, 2):
        torch.manual_seed(number)
        np.random.seed(number)
        assert found[number] == [(torch.rand(2).tolist(), np.random.rand(), number == 1) for _ in range(3)]
    before.put_back()


@pytest.mark.parametrize("options", [{}, {"compute": "merged"}, {"head": "shared"}, {"adapter": "none"}])
def test_gradients_and_statistics_of_stacked_networks(options):
    """One forward and backward pass over three networks gives what three give, also of a MergedLinear."""

    class Run:
        def __init__(self, seed: int) -> None:
            self.model = network(seed=seed, **options).train()
            self.model.begin_task([1])
            self._criterion = nn.functional.cross_entropy
            open_ = [item for item in self.model.parameters() if item.requires_grad]
            self.optimizer = torch.optim.SGD(open_, lr=0.05, momentum=0.9, fused=True)
            labels = torch.randint(2, (6,), generator=torch.Generator().manual_seed(seed)) + 2
            self.mbatch = [images(6, seed=seed), labels, torch.ones(1, dtype=torch.long).expand(6)]

        def step(self) -> float:
            self.optimizer.zero_grad()
            loss = self._criterion(self.model(self.mbatch[0], self.mbatch[2]), self.mbatch[1])
            loss.backward()
            self.optimizer.step()
            return loss.item()

    stacked, single = [Run(seed) for seed in range(3)], [Run(seed) for seed in range(3)]
    stack = Stack(stacked)
    for _ in range(3):
        answers = stack.update(stack.losses())
        for answer, run in zip(answers, single, strict=True):
            assert answer.loss.item() == pytest.approx(run.step(), rel=CLOSE)
    assert stack.current
    for run, other in zip(stacked, single, strict=True):
        state = other.model.state_dict()
        assert run.model.state_dict().keys() == state.keys()
        for name, value in run.model.state_dict().items():
            torch.testing.assert_close(value, state[name], rtol=1e-4, atol=1e-6)
    moved = dict(stacked[0].model.named_parameters())
    assert all(torch.equal(moved[name].detach(), item[0]) for name, item in stack.learned.items()), "views, no copies"


def test_runs_at_the_same_time_hold_the_images_once():
    """The meta device stands for a GPU: another device, to which images are sent."""
    pixels = torch.zeros(4, 1, 2, 2, dtype=torch.uint8)
    rest = {"labels": np.zeros(4), "tasks": np.zeros(4), "mean": (0.5,), "std": (0.5,)}
    first, second, other = (ImageStore(images=of, **rest) for of in (pixels, pixels, pixels.clone()))
    sent = [store.to(torch.device("meta")).images_NCHW for store in (first, second, other)]
    assert sent[0] is sent[1] and sent[0] is not sent[2] and sent[0].device.type == "meta"
