"""Sweeps: what a second call skips and starts over, cells that do not end well, interruptions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from sweep_helpers import CELLS, QUICK, cells, rows

from cl_runner import cli, learning, runner

pytestmark = pytest.mark.usefixtures("elsewhere")


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


# --------------------------------------------------------------------------------------- done, unfinished, bad


def test_a_second_call_trains_only_what_is_not_done(learned, capsys):
    quick = [*QUICK, "adapter.rank=1"]  # a higher one is warned of in a network this small
    assert cli.execute(["-m", "seed=0,1", *quick, "quiet=true"]) == 0
    assert [config.seed for config in learned] == [0, 1]
    before = {seed: contents(folder) for seed, folder in cells().items()}
    assert set(before) == {0, 1}
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err == "", "quiet"

    unfinished = cells()[1]
    (unfinished / "DONE").unlink()
    (unfinished / "error.txt").write_text("an earlier attempt")
    with (unfinished / "events.jsonl").open("a") as file:
        file.write('{"event": "left over"}\n')
    assert cli.execute(["-m", "seed=0,1,2", *quick, "data_root=elsewhere"]) == 0
    assert [config.seed for config in learned[2:]] == [1, 2], "seed 0 is done"
    after = cells()
    assert contents(after[0]) == before[0], "not a file of it was touched"
    assert after[1] == unfinished and (unfinished / "DONE").exists() and not (unfinished / "error.txt").exists()
    events = [json.loads(line)["event"] for line in (unfinished / "events.jsonl").read_text().splitlines()]
    assert events.count("run_started") == 1 and "left over" not in events, "started over, not appended to"
    config = yaml.safe_load((unfinished / "config.yaml").read_text())
    assert config["data_root"] == "elsewhere", "as this attempt ran"
    first = json.loads(before[1]["summary.json"][1])
    assert json.loads((unfinished / "summary.json").read_text())["acc"] == first["acc"]

    shown = capsys.readouterr().out
    assert shown.count("is done; skipped") == 1 and f"{after[0]} is done; skipped" in shown
    (row,) = rows(CELLS / "table.csv")
    assert row["seeds"] == "3", "what was done before counts"


def test_a_done_cell_with_a_damaged_summary_is_not_done(learned):
    arguments = ["-m", "seed=0", *QUICK, "quiet=true"]
    assert cli.execute(arguments) == 0
    (cells()[0] / "summary.json").write_text("{")
    assert cli.execute(arguments) == 0
    assert len(learned) == 2 and json.loads((cells()[0] / "summary.json").read_text())["status"] == "done"


def test_a_single_run_is_no_cell(learned):
    for _ in range(2):
        assert cli.execute([*QUICK, "quiet=true"]) == 0
    assert len(learned) == 2 and not Path("outputs/sweeps").exists()
    assert len(list(Path("outputs/quickstart").glob("*/DONE"))) == 2


PLAIN = ("adapter=none", "optimizer=sgd", "optimizer.weight_decay=1")  # with which a high learning rate diverges
BAD = [*PLAIN, "optimizer.lr=-1,0.01,1e9", "trainer.epochs=2", *QUICK[1:]]


def test_bad_cells_do_not_stop_the_others_and_are_rows_of_the_table(capsys):
    """A learning rate of -1 is refused (2), one of 1e9 fails (1): the good cell between them is done."""
    assert cli.execute(["-m", *BAD]) == 2, "the highest code"
    done = [file.parent for file in CELLS.glob("*/DONE")]
    assert [yaml.safe_load((folder / "config.yaml").read_text())["optimizer"]["lr"] for folder in done] == [0.01]
    captured = capsys.readouterr()
    *_, heading, first, second = captured.err.splitlines()
    assert "2 of 3 cells" in heading
    assert first.startswith("        optimizer.lr=-1: ") and "not possible" in first
    assert second.startswith("        optimizer.lr=1000000000.0: the run failed: ")
    assert "cl-run" not in first + second and "epochs" not in first
    table = rows(CELLS / "table.csv")
    assert [(row["settings"], row["status"], row["seeds"]) for row in table] == [
        ("optimizer.lr=0.01", "done", "1"),
        ("optimizer.lr=-1", "refused", ""),
        ("optimizer.lr=1000000000.0", "failed", ""),
    ]
    assert [row["error"] for row in table][:2] == ["", "optimizer.lr=-1 is not possible"]
    assert "DivergedError" in table[2]["error"] and table[2]["acc"] == "" and table[2]["adapter"] == "none"
    shown = captured.out[captured.out.rindex("quickstart: done") :]
    for row in table:
        assert row["settings"] in shown and f" {row['status']} " in shown and row["error"][:40] in shown


def test_a_failed_cell_keeps_its_traceback_and_is_tried_again(monkeypatch, capsys):
    learn = learning.learn

    def breaks(config, *args, **options):
        if config.seed == 1:
            raise ValueError("it broke\nsecond line")
        return learn(config, *args, **options)

    arguments = ["-m", "seed=0,1,2", *QUICK]
    monkeypatch.setattr(learning, "learn", breaks)
    assert cli.execute(arguments) == 1
    cell = cells()[1]
    assert "ValueError: it broke" in (cell / "error.txt").read_text()
    assert json.loads((cell / "summary.json").read_text())["status"] == "failed"
    good, bad = rows(CELLS / "table.csv")
    assert (good["seeds"], good["status"]) == ("2", "done")
    assert (bad["settings"], bad["status"], bad["error"]) == (
        "seed=1",
        "failed",
        "the run failed: ValueError: it broke",
    )
    ran = []
    monkeypatch.setattr(learning, "learn", lambda config, *a, **o: ran.append(config.seed) or learn(config, *a, **o))
    assert cli.execute(arguments) == 0 and ran == [1]
    (row,) = rows(CELLS / "table.csv")
    assert (row["seeds"], row["status"], row["error"]) == ("3", "done", "")
    assert not (cell / "error.txt").exists()


def test_a_mistake_of_ours_in_one_cell_does_not_stop_the_others(monkeypatch, learned, capsys):
    """It shows its traceback (exit code 1), and is not told as the user's; the next cell still runs."""
    run = runner.run

    def broken(config, **options):
        if config.seed == 0:
            raise KeyError("ours")
        return run(config, **options)

    monkeypatch.setattr(runner, "run", broken)
    assert cli.execute(["-m", "seed=0,1", *QUICK, "quiet=true"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" in error and "seed=0: KeyError: 'ours'" in error
    assert [config.seed for config in learned] == [1] and (cells()[1] / "DONE").exists()


def test_two_cells_of_one_configuration_are_run_once(learned):
    assert cli.execute(["-m", "optimizer.lr=0.01,1e-2", "seed=0", *QUICK]) == 0
    assert len(learned) == 1 and [row["seeds"] for row in rows(CELLS / "table.csv")] == ["1"]


# ------------------------------------------------------------------------------------------------ stopping early


@pytest.mark.parametrize(("first", "ran", "code"), [("1e9", 1, 1), ("-1", 0, 2)], ids=["failed", "refused"])
def test_fail_fast_stops_at_the_first_bad_cell(learned, capsys, first, ran, code):
    """A cell that fails is the last one; one that is refused when the sweep is submitted lets none begin."""
    arguments = ["-m", *PLAIN, f"optimizer.lr={first},0.01,0.02", *QUICK]
    assert cli.execute([*arguments, "fail_fast=true"]) == code
    assert len(learned) == ran and f"{3 - 1} of 3 cells were not begun" in capsys.readouterr().err
    assert [file.name for file in Path("outputs/sweeps").iterdir() if file.name.startswith(".")] == []
    assert cli.execute([*arguments, "fail_fast=false"]) == code
    assert len(list(CELLS.glob("*/DONE"))) == 2, "the same cells: fail_fast is no part of their names"


@pytest.mark.parametrize("where", ["in a run", "between two"])
def test_an_interrupted_sweep_reports_and_goes_on_later(monkeypatch, learned, capsys, where):
    """SIGTERM, as a scheduler sends it, or Ctrl-C."""
    from cl_runner.reports.sweep import SweepReport

    learn, told = learning.learn, SweepReport.told

    def interrupted(config, *args, **options):
        if config.seed == 1 and len(learned) == 2:
            signal.raise_signal(signal.SIGTERM)
        return learn(config, *args, **options)

    def between(self, number, ended):
        told(self, number, ended)
        if number == 0 and len(learned) == 1:
            signal.raise_signal(signal.SIGTERM)

    watched = learning.learn  # counts, then calls the original
    if where == "in a run":
        monkeypatch.setattr(learning, "learn", lambda c, *a, **o: watched(c, *a, **o) if c.seed != 1 else stop(c, a, o))
    else:
        monkeypatch.setattr(SweepReport, "told", between)

    def stop(config, args, options):
        learned.append(config)
        return interrupted(config, *args, **options)

    arguments = ["-m", "seed=0,1,2", *QUICK]
    before = signal.getsignal(signal.SIGTERM)
    assert cli.execute(arguments) == 130
    assert signal.getsignal(signal.SIGTERM) is before
    captured = capsys.readouterr()
    table = rows(CELLS / "table.csv")
    assert table[0]["status"] == "done" and table[0]["seeds"] == "1"
    if where == "in a run":
        assert [(row["settings"], row["status"]) for row in table[1:]] == [("seed=1", "interrupted")]
        assert " interrupted " in captured.out and "1 of 3 cells were not begun" in captured.err
    else:
        assert len(table) == 1 and "2 of 3 cells were not begun" in captured.err
    monkeypatch.setattr(learning, "learn", watched)
    monkeypatch.setattr(SweepReport, "told", told)
    learned.clear()
    assert cli.execute(arguments) == 0
    assert [config.seed for config in learned] == [1, 2]
    assert [row["seeds"] for row in rows(CELLS / "table.csv")] == ["3"]


QUICK_LEARNING = """
import sys, time, types

ran = []

def learn(config, folder, recorder, experiment, **kept):
    from cl_runner.result import RunResult
    ran.append((config.adapter.rank, config.seed))
    recorder.run_started({}, ["one"], {"experiment": experiment, "seed": config.seed})
    time.sleep(600 if STUCK and len(ran) > 2 else 0)
    recorder.evaluated(1, [0.5])
    return RunResult(folder.path, recorder.run_finished({"wall_seconds": 0.0}))

from cl_runner import cli
sys.modules["cl_runner.learning"] = types.SimpleNamespace(learn=learn)
code = cli.execute(sys.argv[1:])
print(ran)
sys.exit(code)
"""


def test_a_killed_sweep_is_finished_by_the_next_call():
    """SIGKILL in the middle of a cell: it leaves a folder, a lock and no summary. Nothing is trained here."""
    arguments = ["-m", "adapter.rank=1,2", "seed=0,1", *QUICK, "quiet=true"]
    process = subprocess.Popen([sys.executable, "-c", f"STUCK = True\n{QUICK_LEARNING}", *arguments])
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(list(CELLS.glob("*/events.jsonl"))) < 3:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = {file.parent: file.stat().st_mtime_ns for file in CELLS.glob("*/DONE")}
    assert len(finished) == 2 and len(list(CELLS.glob("*/.lock"))) == 1

    def call() -> str:
        command = [sys.executable, "-c", f"STUCK = False\n{QUICK_LEARNING}", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert call() == "[(2, 0), (2, 1)]\n", "exactly the rest"
    assert {file: (file / "DONE").stat().st_mtime_ns for file in finished} == finished
    assert len(list(CELLS.glob("*/DONE"))) == 4 and not list(CELLS.glob("*/.lock"))
    assert call() == "[]\n", "a third call does nothing"
