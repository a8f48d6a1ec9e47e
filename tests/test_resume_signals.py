"""Signals, sweeps and a second process: who ends a run, where it then stands, and who may go on with it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from resume_helpers import folder_in, resume, same_run, start, watched
from sweep_helpers import QUICK, cells, matrices
from test_resume import tiny

from cl_runner import cli
from cl_runner.errors import RequestError
from cl_runner.keeping.reading import last_of
from cl_runner.recording.checkpoints import Checkpoints
from cl_runner.runner import RunFailed
from cl_runner.signals import STOP

pytestmark = pytest.mark.usefixtures("elsewhere", "hurried")
TYPED = tiny("strategy=replay", "strategy.mem_size=20")


def sending(*names: str):
    """Sends signals to this process, which has heard them by the end."""

    def act() -> None:
        for name in names:
            os.kill(os.getpid(), getattr(signal, name))
            for _ in range(100):  # signals are handled between two instructions
                pass

    return act


def interrupted(place: str, *names: str) -> Path:
    """Runs the command up to a place where it gets signals; returns the run folder."""
    with watched(place, sending(*names)):
        assert cli.execute([*TYPED, "output_root=out"]) == 130
    assert STOP.requested is None
    return folder_in(Path("out"))


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_in_training_keeps_the_run_at_that_very_step(name, calm, capsys, monkeypatch):
    monkeypatch.setenv("CL_RUN_CONFIG_DIR", "of_an_earlier_request_in_this_process")
    handlers = {item: signal.getsignal(getattr(signal, item)) for item in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2")}
    folder = interrupted("2.1.1", name)
    assert f"continue with cl-run resume={folder}" in capsys.readouterr().err
    assert last_of(folder, pytest.fail).where == "in task 2, epoch 1, step 1"
    assert {item: signal.getsignal(getattr(signal, item)) for item in handlers} == handlers
    with watched() as steps:
        assert cli.execute([f"resume={folder}", "quiet=true"]) == 0
    assert steps[0] == "2.1.2"
    same_run(calm(*TYPED), folder)


def test_a_signal_at_the_end_of_an_epoch_keeps_the_epoch(calm):
    folder = interrupted("2.1.end", "SIGTERM")
    assert last_of(folder, pytest.fail).where == "in task 2, after epoch 1"
    with watched() as steps:
        resume(folder)
    assert steps[0] == "2.2.1"
    same_run(calm(*TYPED), folder)


def test_a_signal_in_an_evaluation_ends_it_at_once_and_it_alone_is_repeated(calm):
    folder = interrupted("2.evaluate", "SIGTERM")
    assert last_of(folder, pytest.fail).where == "after task 2"
    evaluations = []
    with watched("2.evaluate", lambda: evaluations.append(2)) as steps:
        resume(folder)
    assert evaluations == [2] and steps[0] == "3.1.1"
    same_run(calm(*TYPED), folder)


def test_a_signal_before_anything_is_kept_leaves_a_run_that_starts_over(calm):
    folder = interrupted("0.evaluate", "SIGINT")
    assert not list(folder.glob("checkpoints/*.json"))
    with watched() as steps:
        resume(folder)
    assert steps[0] == "1.1.1"
    same_run(calm(*TYPED), folder)


def test_a_second_signal_ends_a_run_at_once(calm):
    folder = interrupted("2.1.2", "SIGINT", "SIGINT")
    assert last_of(folder, pytest.fail).where == "after task 1, evaluated"
    resume(folder)
    same_run(calm(*TYPED), folder)


def test_a_launchers_own_handler_is_called_once_the_run_is_kept():
    seen = []

    def requeue(signum, frame) -> None:
        seen.append((signum, Checkpoints(folder_in(Path("out"))).latest(pytest.fail).where))

    earlier = signal.signal(signal.SIGUSR2, requeue)
    try:
        interrupted("2.1.2", "SIGUSR2")
        assert seen == [(signal.SIGUSR2, "in task 2, epoch 1, step 2")]
        assert signal.getsignal(signal.SIGUSR2) == requeue
    finally:
        signal.signal(signal.SIGUSR2, earlier)


def test_a_signal_that_a_failing_run_did_not_heed_does_not_end_the_next_one():
    def both() -> None:
        sending("SIGINT")()
        raise RuntimeError("something else")

    with watched("1.1.1", both), pytest.raises(RunFailed, match="something else"):
        start(Path("out"), TYPED)
    assert start(Path("again"), TYPED).summary["status"] == "done"


def test_a_cell_of_a_sweep_goes_on_from_its_checkpoint(capsys):
    arguments = ["-m", "seed=0,1", *QUICK, "quiet=true", "trainer.batch_size=16"]
    with watched("2.1.1", sending("SIGINT")):
        assert cli.execute(arguments) == 130
    assert "1 of 2 cells were not begun" in capsys.readouterr().err
    assert [*cells()] == [0] and not matrices()
    with watched() as steps:
        assert cli.execute(arguments) == 0
    assert steps[0] == "2.1.2" and steps.count("1.1.1") == 1, "seed 1's alone"
    went_on = matrices()
    assert cli.execute([*arguments, "output_root=calm"]) == 0
    calm = {cell.name: cell for cell in Path("calm").glob("sweeps/*/*") if (cell / "DONE").exists()}
    assert len(went_on) == len(calm) == 2
    for cell in cells().values():
        assert (cell / "accuracy_matrix.csv").read_text() == (calm[cell.name] / "accuracy_matrix.csv").read_text()


def test_a_second_process_is_refused_the_folder_of_a_run_that_goes_on(calm):
    told, tell = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with watched("2.1.2", lambda: (os.write(tell, b"."), time.sleep(100))):
                start(Path("out"), TYPED, ("trainer.checkpoint_minutes=0",))
        finally:
            os._exit(0)
    try:
        assert os.read(told, 1) == b"."
        folder = folder_in(Path("out"))
        before = {place: place.read_bytes() for place in folder.rglob("*") if place.is_file()}
        with pytest.raises(RequestError, match=f"process {child} on"):
            resume(folder)
        assert cli.execute([f"resume={folder}"]) == 2
        assert {place: place.read_bytes() for place in folder.rglob("*") if place.is_file()} == before
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told)
        os.close(tell)
    with watched() as steps:
        resume(folder)
    assert steps[0] == "2.1.2", "its own kill left the lock, which is taken over"
    same_run(calm(*TYPED), folder)
