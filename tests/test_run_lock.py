"""Two processes never run the same cell, and a dead one leaves nothing that stops the next."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from sweep_helpers import QUICK, cells

from cl_runner import cli
from cl_runner.errors import RequestError
from cl_runner.recording.lock import NAME, held, holder, identity


@pytest.fixture
def gone():
    """The number of a process that ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def leave(folder, **fields) -> None:
    """A lock as another process would have left it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_text(json.dumps({**identity(), **fields}))


def born(pid: int) -> str:
    """When a process began, in the kernel's ticks."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def test_a_folder_is_held_once_and_is_free_afterwards(tmp_path):
    folder = tmp_path / "sweep" / "cell"
    with held(folder):
        assert holder(folder)["pid"] == os.getpid()
        with pytest.raises(RequestError, match=f"process {os.getpid()} on {socket.gethostname()}"), held(folder):
            pytest.fail("held twice")
        assert (folder / NAME).exists(), "the second one took nothing away"
        (folder / "config.yaml").touch()
    assert not (folder / NAME).exists() and holder(folder) is None
    (folder / "config.yaml").unlink()
    with pytest.raises(KeyError), held(folder):
        raise KeyError
    assert not folder.parent.exists(), "an empty folder does not stay"


def test_a_dead_process_holds_nothing(tmp_path, gone):
    leave(tmp_path / "cell", pid=gone)
    assert holder(tmp_path / "cell") is None
    with held(tmp_path / "cell"):
        assert holder(tmp_path / "cell")["pid"] == os.getpid()


def test_a_process_that_got_the_number_of_a_dead_one_is_another(tmp_path):
    leave(tmp_path / "cell", born="1")
    assert holder(tmp_path / "cell") is None
    with held(tmp_path / "cell"):
        assert holder(tmp_path / "cell")["born"] == born(os.getpid())


def test_a_process_that_nobody_has_waited_for_is_dead(tmp_path):
    process = subprocess.Popen(["sleep", "100"])
    leave(tmp_path / "cell", pid=process.pid, born=born(process.pid))
    assert holder(tmp_path / "cell")["pid"] == process.pid
    process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while holder(tmp_path / "cell") is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert holder(tmp_path / "cell") is None
    process.wait()


def test_another_host_is_believed_unless_slurm_started_the_job_again(tmp_path, monkeypatch, gone):
    cell = tmp_path / "cell"
    leave(cell, host="elsewhere", pid=gone, slurm=["17", "0"])
    with pytest.raises(RequestError, match="on elsewhere"), held(cell):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with pytest.raises(RequestError, match="on elsewhere"), held(cell):
        pass
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with held(cell):
        assert holder(cell)["slurm"] == ["17", "1"]


def test_a_lock_that_says_nothing_is_of_one_that_was_killed_as_it_made_it(tmp_path):
    """It is made and filled under flock: seen empty under flock, its maker is gone."""
    cell = tmp_path / "cell"
    cell.mkdir()
    (cell / NAME).touch()
    with held(cell):
        assert holder(cell)["pid"] == os.getpid()


def test_a_lock_that_says_nothing_is_believed_for_a_minute_where_nothing_locks(tmp_path, monkeypatch):
    def refuse(handle, how):
        raise OSError("no locks here")

    monkeypatch.setattr("cl_runner.recording.lock.fcntl.flock", refuse)
    cell = tmp_path / "cell"
    cell.mkdir()
    (cell / NAME).touch()
    with pytest.raises(RequestError, match="is at work in this run folder"), held(cell):
        pass
    os.utime(cell / NAME, (time.time() - 100,) * 2)
    with held(cell):
        pass


def contend(folder, start, entered) -> None:
    start.wait()
    try:
        with held(folder):
            entered.put(os.getpid())
            time.sleep(0.3)
    except RequestError:
        entered.put(None)


def test_of_many_that_find_a_stale_lock_one_gets_it(tmp_path, gone):
    fork = multiprocessing.get_context("fork")
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        leave(folder, pid=gone)
        start, entered = fork.Event(), fork.Queue()
        processes = [fork.Process(target=contend, args=(folder, start, entered)) for _ in range(12)]
        for process in processes:
            process.start()
        start.set()
        answers = [entered.get(timeout=20) for _ in processes]
        for process in processes:
            process.join()
        assert sum(answer is not None for answer in answers) == 1, answers


def storm(folder, seed, inside, together, entries) -> None:
    """Enters again and again, in a child that lets go in time or dies in there."""
    draw = random.Random(seed)
    deadline = time.monotonic() + 2
    while time.monotonic() < deadline:
        child = os.fork()
        if child == 0:
            with contextlib.suppress(RequestError), held(folder):
                with inside.get_lock():
                    inside.value += 1
                    together.value = max(together.value, inside.value)
                    entries.value += 1
                time.sleep(draw.random() * 0.003)
                with inside.get_lock():
                    inside.value -= 1
                if draw.random() < 0.7:
                    os._exit(0)
            os._exit(0)
        os.waitpid(child, 0)


def test_in_a_storm_of_processes_that_die_no_two_are_ever_inside(tmp_path):
    (tmp_path / "config.yaml").touch()
    fork = multiprocessing.get_context("fork")
    inside, together, entries = (fork.Value("i", 0) for _ in range(3))
    processes = [fork.Process(target=storm, args=(tmp_path, seed, inside, together, entries)) for seed in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert together.value == 1 and entries.value >= 5, (together.value, entries.value)


def test_a_cell_that_another_process_runs_is_left_alone(elsewhere, learned, capsys):
    arguments = ["-m", "seed=0,1", *QUICK]
    assert cli.execute(arguments) == 0
    cell = cells()[1]
    (cell / "DONE").unlink()
    before = (cell / "config.yaml").stat().st_mtime_ns
    process = subprocess.Popen(["sleep", "100"])
    try:
        leave(cell, pid=process.pid, born=born(process.pid))
        learned.clear()
        assert cli.execute(arguments) == 2
        assert f"process {process.pid} on" in capsys.readouterr().err
        assert cli.execute([f"resume={cell}"]) == 2, "nor is it resumed meanwhile"
        assert learned == [] and (cell / "config.yaml").stat().st_mtime_ns == before
    finally:
        process.kill()
        process.wait()
    assert cli.execute(arguments) == 0 and [config.seed for config in learned] == [1]
