"""A disk that fills up: the run says so, what was written is whole, and with space again it goes on."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs_helpers import asked, small_run, watch_assembly

from cl_runner import cli
from cl_runner.config.compose import compose
from cl_runner.errors import RequestError
from cl_runner.keeping.keeper import Keeper
from cl_runner.recording import Console, CsvTracker, EventLog, durable, events, read_events
from cl_runner.runner import RunFailed, run

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import chaos  # noqa: E402
import full_disk  # noqa: E402
from full_disk import Disk  # noqa: E402

TYPED = ("strategy=ewc", "trainer.checkpoint_minutes=null", "trainer.checkpoint_epochs=1", "trainer.log_every=3")


@pytest.fixture
def on(monkeypatch):
    """Puts a disk under everything that a run records with, until the test ends."""

    def put(disk: Disk) -> Disk:
        monkeypatch.undo()
        monkeypatch.setattr(durable, "os", os)
        monkeypatch.setattr(events.EventLog, "__init__", events.EventLog.__init__)
        return disk.under()

    return put


def resume(folder: Path) -> Any:
    given = [f"resume={folder}", "quiet=true"]
    return run(compose(given), overrides=given)


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A run that has space all along, and how often it writes."""
    disk = Disk()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "os", os)
        patch.setattr(events.EventLog, "__init__", events.EventLog.__init__)
        disk.under()
        folder = small_run(tmp_path_factory.mktemp("calm"), *TYPED).folder
    assert disk.writes > 40, "the event log and the files that are written whole"
    return folder, disk.writes


@pytest.mark.parametrize("part", range(8))
def test_wherever_the_disk_is_full_nothing_is_damaged(part, calm, on, tmp_path):
    expected, writes = calm
    for number in range(1 + part, writes + 1, 16):
        root = tmp_path / str(number)
        on(Disk(number, half=number % 2 == 0))
        with pytest.raises(RequestError, match="no space left on device while writing") as refused:
            small_run(root, *TYPED)
        assert str(root) in refused.value.message, "the file is named"
        on(Disk())
        kept, problems = full_disk.judged(root)
        assert not problems, number
        folder = next(root.glob("*/*/config.yaml"), None)
        if folder is None:
            assert not [item for item in root.rglob("*") if item.is_file()]
            assert number < 5, "later a run has begun, and is kept"
        else:
            assert kept is not None or number < 20, "the last checkpoint is there"
            assert chaos.compare(expected, resume(folder.parent).folder) == []


def test_a_run_that_is_resumed_on_a_full_disk_loses_nothing_either(calm, on, tmp_path):
    expected, writes = calm
    on(Disk(2 * writes // 3))
    with pytest.raises(RequestError):
        small_run(tmp_path, *TYPED)
    folder = next(tmp_path.glob("*/*/config.yaml")).parent
    for number in (1, 2, 5, 9):
        on(Disk(number))
        with pytest.raises(RequestError, match="no space left on device"):
            resume(folder)
        on(Disk())
        kept, problems = full_disk.judged(tmp_path)
        assert kept is not None and not problems
    assert chaos.compare(expected, resume(folder).folder) == []


def test_the_command_says_it_in_two_lines(elsewhere, on, tmp_path, capfd):
    on(Disk(30))
    assert cli.execute([*asked(*TYPED), f"output_root={tmp_path}"]) == 2
    lines = capfd.readouterr().err.strip().splitlines()
    said = [line for line in lines if not line.startswith("warning: adapter.rank")]
    assert len(said) == 2 and said[0].startswith("cl-run: output_root: no space left on device while writing ")
    assert str(tmp_path) in said[0]


def test_a_full_disk_does_not_hide_why_a_run_failed(elsewhere, on, tmp_path, monkeypatch, capfd):
    disk = Disk()
    on(disk)

    def broken(strategy: Any) -> None:
        def criterion(*given: Any) -> Any:
            disk.full_at = 1
            raise ZeroDivisionError("the real reason")

        strategy._criterion = criterion

    watch_assembly(monkeypatch, broken)
    with pytest.raises(RunFailed) as failed:
        small_run(tmp_path, *TYPED, "evaluate=last")
    assert "the real reason" in str(failed.value) and "no space left on device" in str(failed.value)
    assert "ZeroDivisionError" in str(failed.value) and "error.txt" in str(failed.value)
    assert "no space left" in capfd.readouterr().err, "nor why there is no summary of it"


def test_a_table_of_the_tracker_does_not_cost_the_run(tmp_path, monkeypatch):
    """A file of a tracker is not the run's: it is given up, and what is in its buffer is not tried again."""
    warnings: list[str] = []
    monkeypatch.setattr(Console, "warning", lambda self, text: warnings.append(text))

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.closed = file, 0

        def write(self, text: str) -> int:
            return self.file.write(text)

        def flush(self) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def close(self) -> None:
            self.closed += 1

    opened: list[Full] = []
    log = CsvTracker.log

    def filled(self: CsvTracker, event: dict[str, Any]) -> None:
        if event["event"] == "evaluated" and not opened:
            opened.append(Full(self._file))
            self._file = opened[0]  # type: ignore[assignment]
        log(self, event)

    monkeypatch.setattr(CsvTracker, "log", filled)
    result = small_run(tmp_path, "tracking=csv")
    assert (result.folder / "DONE").exists() and opened[0].closed == 1
    (told,) = [text for text in warnings if "tracking" in text]
    assert "no space left on device while writing" in told and "metrics.csv" in told


def test_an_event_that_does_not_fit_leaves_no_half_line(tmp_path, monkeypatch):
    log = EventLog(tmp_path / "events.jsonl")
    log.write("first")
    until = log.settled()
    real, left = log._file, [5]

    class Full:
        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

        def write(self, data: bytes) -> int:
            if not left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real.write(data[: left.pop()])

    log._file = Full()  # type: ignore[assignment]
    with pytest.raises(RequestError, match=r"no space left on device while writing .*events\.jsonl"):
        log.write("second")
    assert log.settled() == until
    log._file = real
    log.write("third")
    assert [event["event"] for event in read_events(log.path)] == ["first", "third"]


def test_a_checkpoint_that_did_not_fit_is_not_the_last_one(tmp_path, on, monkeypatch):
    """A disk that is full at every checkpoint, and at nothing else."""
    disk = on(Disk())
    write = Keeper._write

    def full(self: Keeper, where: str, *given: Any, **named: Any) -> int:
        if where.startswith("in task 2"):
            disk.full_at = disk.writes + 1
        return write(self, where, *given, **named)

    monkeypatch.setattr(Keeper, "_write", full)
    with pytest.raises(RequestError, match="while writing .*checkpoints"):
        small_run(tmp_path, *TYPED)
    kept, problems = full_disk.judged(tmp_path)
    assert kept == "after task 1, evaluated" and not problems


@pytest.mark.skipif(not full_disk.may_mount(), reason="file systems cannot be mounted here")
@pytest.mark.parametrize("kilobytes", [40, 300])
def test_a_real_file_system_that_is_too_small(kilobytes, elsewhere, tmp_path, capfd):
    disk = tmp_path / "disk"
    disk.mkdir()
    size = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    subprocess.run(size, check=True)
    try:
        assert cli.execute([*asked(*TYPED, "report=true", "tracking=csv"), f"output_root={disk}"]) == 2
        said = capfd.readouterr().err
        assert "no space left on device while writing" in said and "Traceback" not in said
        kept, problems = full_disk.judged(disk)
        assert not problems and (kept is not None) == (kilobytes > 40)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
