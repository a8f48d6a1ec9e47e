"""The run folder, the event log and the terminal view: read back with tools that are not ours."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from cl_runner.errors import RequestError
from cl_runner.recording import Console, CsvTracker, EventLog, Recorder, RunFolder, describe, read_events
from cl_runner.recording.matrix_view import MatrixView, shortened
from cl_runner.recording.run_folder import LAYER_COLUMNS, PARAMETER_COLUMNS, SUMMARY_KEYS

NAN = float("nan")
ROOT = Path(__file__).parents[1]
CONTRACT_SUMMARY = [
    "status", "experiment", "benchmark", "backbone", "adapter", "strategy", "seed", "acc", "learning_accuracy",
    "bwt", "fwt", "forgetting", "transfer", "average", "last", "parameter_growth", "base_parameters",
    "trainable_parameters", "stored_parameters", "inference_parameters", "wall_seconds", "train_images_per_second",
    "peak_memory_bytes", "retention", "loss", "drift", "task_inference_accuracy",
    "delta_loss", "last_task_loss", "adapter_parameters",  # came later
]  # fmt: skip


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", {"seed": 0}, [])


# --- the run folder ---------------------------------------------------------------------------------------------


def test_create_writes_what_was_asked(tmp_path):
    config = {"seed": 0, "optimizer": {"lr": 1e-05}, "name": "naïve"}
    folder = RunFolder.create(tmp_path / "a" / "b", config, ["seed=0", "adapter.rank=[1,2]"])
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == config
    assert yaml.safe_load((folder.path / "overrides.yaml").read_text()) == ["seed=0", "adapter.rank=[1,2]"]
    assert not folder.done


def test_create_takes_text_and_omegaconf(tmp_path):
    from omegaconf import OmegaConf

    text = "# kept\nseed: 3\n"
    assert (RunFolder.create(tmp_path / "text", text, []).path / "config.yaml").read_text() == text
    node = OmegaConf.create({"a": 1, "b": "${a}"})
    folder = RunFolder.create(tmp_path / "node", node, [])
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == {"a": 1, "b": 1}


@pytest.mark.parametrize("mark", ["config.yaml", "events.jsonl", "summary.json", "DONE"])
def test_a_folder_with_a_run_is_left_alone(tmp_path, mark):
    (tmp_path / mark).write_text("mine")
    with pytest.raises(RequestError, match="output_root: .* already holds a run") as caught:
        RunFolder.create(tmp_path, {}, [])
    assert mark in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == [mark]
    assert (tmp_path / mark).read_text() == "mine"


def test_a_folder_with_other_files_is_fine(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    assert RunFolder.create(tmp_path, {}, []).path == tmp_path


def test_of_two_runs_that_claim_a_folder_one_is_refused(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text("first")
    monkeypatch.setattr("cl_runner.recording.run_folder._MARKS_OF_A_RUN", ())  # as if it came after the look
    with pytest.raises(RequestError, match="already holds a run"):
        RunFolder.create(tmp_path, {}, [])
    assert (tmp_path / "config.yaml").read_text() == "first"


@pytest.mark.parametrize("where", ["blocked", "blocked/run"])
def test_a_file_in_the_way_is_named(tmp_path, where):
    (tmp_path / "blocked").write_text("a file")
    with pytest.raises(RequestError, match="output_root.*blocked is in the way"):
        RunFolder.create(tmp_path / where, {}, [])


@pytest.mark.parametrize(
    ("number", "said"), [(errno.EACCES, "no permission"), (errno.ENOSPC, "no space left"), (errno.EROFS, "read-only")]
)
def test_a_folder_that_cannot_be_made_is_a_request_error(tmp_path, monkeypatch, number, said):
    def refuse(*_args, **_options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(RequestError, match=f"output_root: .*{said}.*run") as caught:
        RunFolder.create(tmp_path / "run", {}, [])
    assert "output_root=" in caught.value.hint


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_a_full_disk_is_named_and_leaves_the_old_file(folder):
    folder.write_matrix(None, [[0.5]], ["a"])
    before = (folder.path / "accuracy_matrix.csv").read_text()
    (folder.path / ".accuracy_matrix.csv.partial").symlink_to("/dev/full")
    with pytest.raises(RequestError, match=r"no space left on device while writing .*accuracy_matrix\.csv"):
        folder.write_matrix(None, [[0.75]], ["a"])
    assert (folder.path / "accuracy_matrix.csv").read_text() == before
    assert not (folder.path / ".accuracy_matrix.csv.partial").is_symlink()


def test_the_matrix_reads_back_exactly(folder):
    rows = [[0.1 + 0.2, NAN, 1 / 3], [1.0, np.float32(0.1), 0.0], [NAN, None, 2 / 3]]
    names = ["a, b", 'c "d"', "e"]
    folder.write_matrix([0.5, NAN, 0.25], rows, names)
    read = rows_of(folder.path / "accuracy_matrix.csv")
    assert list(read[0]) == ["after_task", *names]
    assert [row["after_task"] for row in read] == ["0", "1", "2", "3"]
    assert [row["a, b"] for row in read] == ["0.5", repr(0.1 + 0.2), "1.0", ""]
    assert [float(row["e"]) for row in read] == [0.25, 1 / 3, 0.0, 2 / 3]
    assert [row['c "d"'] for row in read][::3] == ["", ""]
    assert float(read[2]['c "d"']) == float(np.float32(0.1))
    folder.write_matrix(None, rows, names)
    assert list(rows_of(folder.path / "accuracy_matrix.csv")[0].values()) == ["0", "", "", ""]


def test_parameters_and_layers_have_the_contract_columns_first(folder):
    folder.write_parameters([{"task": 1, "own": 5, "seconds": 0.1, "base": 10, "growth": NAN, "best_epoch": None}])
    (row,) = rows_of(folder.path / "parameters.csv")
    assert list(row) == [
        "task", "base", "trainable", "adapter", "normalisation", "head", "stored", "inference", "growth",
        "epochs", "best_epoch", "seconds", "own",
    ]  # fmt: skip
    assert (row["base"], row["seconds"], row["own"]) == ("10", "0.1", "5")
    assert row["growth"] == row["best_epoch"] == row["adapter"] == ""
    folder.write_layers([{"name": "conv", "shape": (64, 3, 3, 3), "rank": 0, "task": 1, "kind": "conv"}])
    (row,) = rows_of(folder.path / "layers.csv")
    assert list(row) == ["task", "name", "kind", "shape", "rank", "parameters", "delta_norm"]
    assert (row["shape"], row["rank"], row["delta_norm"]) == ("64x3x3x3", "0", "")


def test_the_summary_has_the_contract_keys_in_order_and_no_nan(folder):
    folder.write_summary({"own": [1.0, NAN, float("inf")], "acc": np.float64(0.5), "bwt": NAN, "seed": np.int64(0)})
    text = (folder.path / "summary.json").read_text()
    summary = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert list(summary) == [*CONTRACT_SUMMARY, "own"] == [*SUMMARY_KEYS, "own"]
    assert (summary["acc"], summary["bwt"], summary["seed"]) == (0.5, None, 0)
    assert summary["own"] == [1.0, None, None]
    assert summary["retention"] is None


def test_done(folder):
    folder.mark_done()
    assert folder.done
    assert (folder.path / "DONE").exists()
    assert not [path for path in folder.path.iterdir() if path.suffix == ".partial"]


# --- the event log ----------------------------------------------------------------------------------------------


def test_events_are_on_disk_at_once(tmp_path):
    log = EventLog(tmp_path / "events.jsonl")
    before = time.time()
    record = log.write("epoch", task=1, loss=NAN, accuracy=np.float32(0.5), shape=(1, 2))
    (line,) = (tmp_path / "events.jsonl").read_text().splitlines()  # not closed, not flushed by us
    assert json.loads(line) == record
    assert before <= record["time"] <= time.time()
    assert {key: record[key] for key in record if key != "time"} == {
        **{"event": "epoch", "task": 1, "loss": None, "accuracy": 0.5, "shape": [1, 2]}
    }


@pytest.mark.parametrize("name", ["time", "event"])
def test_reserved_names_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match=name):
        EventLog(tmp_path / "events.jsonl").write("x", **{name: 1})


@pytest.mark.parametrize("torn", [b'{"time": 1, "ev', b'{"a": "\xc3', b"\0\0\0\0", b"7"])
def test_a_torn_last_line_is_left_out_and_does_not_spoil_the_next(tmp_path, torn):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.write("first")
    log.close()
    path.write_bytes(path.read_bytes() + torn)
    assert [record["event"] for record in read_events(path)] == ["first"]
    EventLog(path).write("second")
    assert [record["event"] for record in read_events(path)] == ["first", "second"]
    assert path.read_bytes().count(b"\n") == 2


def test_a_whole_last_line_without_newline_is_kept(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "first"}')
    EventLog(path).write("second")
    assert [record["event"] for record in read_events(path)] == ["first", "second"]


def test_a_damaged_line_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "first"}\n{"ev\n{"event": "third"}\n')
    with pytest.raises(RequestError, match="line 2"):
        list(read_events(path))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full device")
def test_a_full_disk_stops_the_log_with_its_name():
    with pytest.raises(RequestError, match="no space left on device while writing /dev/full"):
        EventLog(Path("/dev/full")).write("x")


def test_csv_tracker_is_a_long_table(tmp_path):
    tracker = CsvTracker(tmp_path / "metrics.csv")
    tracker.log({"time": 1.5, "event": "epoch", "task": 2, "epoch": 3, "loss": 0.1, "name": "text", "flag": True})
    tracker.log({"time": 2.0, "event": "evaluated", "after_task": 2, "task": 1, "accuracy": 1 / 3})
    CsvTracker(tmp_path / "metrics.csv").log({"time": 3.0, "event": "other", "loss": 7})
    with (tmp_path / "metrics.csv").open() as file:
        assert list(csv.reader(file)) == [
            ["time", "event", "task", "epoch", "name", "value"],
            ["1.5", "epoch", "2", "3", "loss", "0.1"],
            ["2.0", "evaluated", "1", "", "accuracy_after_task_2", repr(1 / 3)],
            ["3.0", "other", "", "", "loss", "7"],
        ]


# --- the environment --------------------------------------------------------------------------------------------


def _git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    return subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout


def test_environment_says_what_a_run_ran_on(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "do-not-write-me")
    monkeypatch.chdir(tmp_path)
    assert describe("cpu", {"seed": 0}, None, False)["git"] is None
    _git(tmp_path, "init", "-q")
    (tmp_path / "file").write_text("1")
    _git(tmp_path, "add", "file")
    _git(tmp_path, "commit", "-qm", "first")
    commit = _git(tmp_path, "rev-parse", "HEAD").strip()
    found = describe("cpu", {"seed": 0, "class_order": 1}, [2, 0, 1], True)
    assert found["git"] == {"commit": commit, "dirty": False}
    (tmp_path / "file").write_text("2")
    assert describe("cpu", {}, None, False)["git"] == {"commit": commit, "dirty": True}
    assert found["versions"]["numpy"] == np.__version__
    assert set(found["versions"]) >= {"torch", "torchvision", "avalanche-lib", "pytorchcv", "hydra-core", "cl-runner"}
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert (found["seeds"], found["class_order"]) == ({"seed": 0, "class_order": 1}, [2, 0, 1])
    assert found["deterministic"] is True
    assert found["cpu"]["count"] == os.cpu_count()
    assert "do-not-write-me" not in json.dumps(found)


def test_nothing_here_loads_torch():
    code = (
        "import sys, cl_runner.metrics, cl_runner.recording, cl_runner.reports.cli\n"
        "found = cl_runner.recording.describe('cpu', {}, None, False)\n"
        "assert found['threads'] is None\n"
        "assert not {'torch', 'avalanche', 'wandb'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_metrics_know_numpy_only():
    code = (
        "import sys; before = set(sys.modules); import cl_runner.metrics\n"
        "cl_runner.metrics.summarize([[1.0]])\n"
        "assert 'cl_runner.recording' not in sys.modules and 'rich' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --- the terminal view ------------------------------------------------------------------------------------------


def play(console: Console, n_tasks: int = 3, epochs: int = 4, name: str = "classes") -> None:
    tasks = [f"{name} {number}" for number in range(1, n_tasks + 1)]
    console.header({"adapter": "convlora [4]"}, tasks)
    console.evaluation(0, [0.1] * n_tasks)
    for index, task in enumerate(tasks, start=1):
        console.task_started(index, n_tasks, task, epochs, 5)
        for epoch in range(1, epochs + 1):
            for _ in range(5):
                console.batch(8)
            console.epoch_finished(epoch, epochs, 0.5, 0.25, 0.75, 1e-3)
        console.evaluation(index, [1.0] * index + [None] * (n_tasks - index))
    console.closing({"acc": 1.0, "bwt": None, "forgetting": 0.0}, [{"stored": 1234567, "growth": 0.5}], Path("out/x"))


def test_plain_lines_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    out, err = io.StringIO(), io.StringIO()
    console = Console(stdout=out, stderr=err)
    play(console)
    console.warning("odd [bold]")
    text = out.getvalue()
    assert "\x1b" not in text + err.getvalue()
    assert "\r" not in text
    assert "━" not in text
    lines = text.splitlines()
    assert sum("epoch " in line for line in lines) == 3  # fast epochs: the last of each task, no more
    assert sum(line.startswith("after ") for line in lines) == 3
    assert any(line.startswith("before") for line in lines)
    assert "convlora [4]" in text  # no markup
    assert "odd" not in text
    assert err.getvalue() == "warning: odd [bold]\n"
    values = {line.split("  ")[1]: line.split("  ")[-1].strip() for line in lines if line.startswith("  ")}
    assert values["accuracy"] == "100.00 %"
    assert values["backward transfer"] == "N/A"
    assert values["forgetting"] == "0.00 points"
    assert values["stored"] == "1.23 M"
    assert values["parameter growth"] == "+50.00 %"
    assert lines[-1] == "run folder: out/x"


def test_slow_epochs_each_have_a_line(monkeypatch):
    monkeypatch.setattr("cl_runner.recording.console.PLAIN_EPOCH_SECONDS", 0.0)
    out = io.StringIO()
    play(Console(stdout=out), n_tasks=2, epochs=4)
    assert sum("epoch " in line for line in out.getvalue().splitlines()) == 8


def test_a_terminal_shows_progress_and_leaves_no_trace_of_it(monkeypatch):
    monkeypatch.setattr("cl_runner.recording.console.REFRESH_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm-256color")
    out = Terminal()
    console = Console(stdout=out, stderr=out, width=80)
    play(console)
    text = out.getvalue()
    assert "task 2/3" in text
    assert "epoch 3/4" in text
    assert "images/s" in text
    assert text.rindex("images/s") < text.rindex("run folder")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") > 0  # the cursor is given back
    assert max(len(line) for line in text.split("\n")[-3:]) < 200


def test_a_dumb_terminal_gets_plain_lines(monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    out = Terminal()
    play(Console(stdout=out))
    assert "\x1b" not in out.getvalue()
    assert out.getvalue().splitlines()[0] == "cl-run"


def test_quiet_says_nothing_but_warnings():
    for stream in (io.StringIO(), Terminal()):
        err = io.StringIO()
        console = Console(quiet=True, stdout=stream, stderr=err)
        play(console)
        console.note("hidden")
        console.warning("seen")
        assert stream.getvalue() == ""
        assert err.getvalue() == "warning: seen\n"


def test_a_batch_draws_only_now_and_then(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("cl_runner.recording.console.time.monotonic", lambda: now[0])
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    console = Console(stdout=out, width=80)
    console.header({}, ["a"])
    console.task_started(1, 1, "a", 1, 1000)
    console.batch(1)
    drawn = len(out.getvalue())
    for _ in range(1000):
        console.batch(1)
    assert len(out.getvalue()) == drawn
    now[0] += 0.21
    console.batch(1)
    assert len(out.getvalue()) > drawn
    console.close()


def test_a_batch_costs_about_a_microsecond():
    console = Console(stdout=io.StringIO())
    best = min(_timed(console) for _ in range(5))
    assert best < 3e-6  # 0.15e-6 measured; room for a slow, shared machine


def _timed(console: Console) -> float:
    start = time.perf_counter()
    for _ in range(2000):
        console.batch(32)
    return (time.perf_counter() - start) / 2000


def test_time_left_counts_the_tasks_to_come(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("cl_runner.recording.console.time.monotonic", lambda: now[0])
    out = io.StringIO()
    console = Console(stdout=out)
    console.task_started(1, 3, "a", 1, 10)
    for _ in range(10):
        now[0] += 2.0
        console.batch(8)
    console.epoch_finished(1, 1, 0.5)
    # 10 of 30 steps took 20 s, so 20 steps take 40 s; 80 images in 20 s are 4 images/s
    assert "4 images/s  40.0 s left" in out.getvalue()


@pytest.mark.parametrize(("width", "n_tasks"), [(80, 5), (80, 20), (120, 20), (80, 50), (40, 20)])
def test_the_matrix_fits_the_width_and_stays_complete(width, n_tasks):
    names = [f"a long and winding name of task {number}" for number in range(n_tasks)]
    view = MatrixView.fit(names, width)
    lines = [*view.title()[1:], *view.row(n_tasks, [1.0] * (n_tasks - 1) + [0.5])]
    assert max(len(line.plain) for line in lines) <= width
    cells = " ".join(line.plain for line in view.row(n_tasks, [1.0] * (n_tasks - 1) + [0.5])).split()
    assert cells[:2] == ["after", str(n_tasks)]
    assert cells[2] in ("100.0", "100", "**")
    assert len(cells) == 2 + n_tasks + 1  # label, a cell a task, the mean
    if n_tasks <= 20 and width >= 80:
        assert len(view.row(1, [0.5] * n_tasks)) == 1


def test_the_mean_is_over_the_tasks_seen():
    view = MatrixView.fit(["a", "b", "c"], 80)
    assert view.row(2, [0.5, 1.0, 0.0])[-1].plain.split()[-1] == "75.0"
    assert view.row(0, [0.5, 1.0, 0.0])[-1].plain.split() == ["before", "50.0", "100.0", "0.0"]
    assert view.row(2, [0.5, None, 0.0])[-1].plain.split() == ["after", "2", "50.0", "-", "0.0"]


def test_long_names_keep_their_end():
    assert shortened("superlong classes 10, 11", 12) == "super..0, 11"
    assert shortened("short", 12) == "short"
    assert all(len(shortened("x" * 50, width)) == width for width in range(4, 20))


# --- the recorder -----------------------------------------------------------------------------------------------


class Broken:
    """A tracker whose service is down."""

    calls = 0

    def log(self, event):
        self.calls += 1
        raise ConnectionError("service down")

    def close(self):
        pytest.fail("a dropped tracker is told nothing more")


class Kept:
    """A tracker that remembers."""

    def __init__(self):
        self.events, self.closed = [], False

    def log(self, event):
        self.events.append(event)

    def close(self):
        self.closed = True


def recorder_in(folder: RunFolder, **options) -> tuple[Recorder, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    return Recorder(folder, EventLog(folder.path / "events.jsonl"), Console(stdout=out, stderr=err), **options), err


MATRIX = [[0.9, 0.2], [0.5, 0.8]]


def record(recorder: Recorder, tasks: int = 2) -> None:
    recorder.run_started({"adapter": "lora"}, ["a", "b"], {"experiment": "e", "seed": 0})
    recorder.evaluated(0, [0.1, 0.1])
    for task in range(1, tasks + 1):
        recorder.task_started(task, "ab"[task - 1], 1, 2)
        recorder.batch(4)
        recorder.epoch_finished(task, 1, 1, 0.5, learning_rate=0.1, images=8, seconds=0.5)
        counts = {"base": 100, "stored": 100 + 10 * task, "growth": 0.1 * task, "trainable": 7, "seconds": 0.5}
        recorder.task_finished(task, counts, [{"name": "conv", "rank": 2}, {"name": "fc", "rank": 1}])
        recorder.evaluated(task, MATRIX[task - 1])


def test_a_whole_run_leaves_every_file_and_done_last(folder):
    kept = Kept()
    recorder, _ = recorder_in(folder, trackers=[kept])
    record(recorder)
    assert not folder.done
    recorder.run_finished({"wall_seconds": 2.0, "bwt": 99.0})
    assert folder.done

    summary = json.loads((folder.path / "summary.json").read_text())
    assert (summary["status"], summary["experiment"], summary["seed"]) == ("done", "e", 0)
    assert summary["acc"] == pytest.approx(0.65)
    assert summary["bwt"] == pytest.approx(-0.4)  # the matrix decides, whatever the runner passes
    assert summary["fwt"] == pytest.approx(0.1)
    assert (summary["base_parameters"], summary["stored_parameters"]) == (100, 120)
    assert (summary["parameter_growth"], summary["wall_seconds"]) == (0.2, 2.0)

    matrix = rows_of(folder.path / "accuracy_matrix.csv")
    assert [list(row.values()) for row in matrix] == [["0", "0.1", "0.1"], ["1", "0.9", "0.2"], ["2", "0.5", "0.8"]]
    assert [row["task"] for row in rows_of(folder.path / "parameters.csv")] == ["1", "2"]
    layers = rows_of(folder.path / "layers.csv")
    assert [(row["task"], row["name"]) for row in layers] == [("1", "conv"), ("1", "fc"), ("2", "conv"), ("2", "fc")]

    events = list(read_events(folder.path / "events.jsonl"))
    assert events == kept.events
    assert kept.closed
    accuracies = {(e["after_task"], e["task"]): e["accuracy"] for e in events if e["event"] == "evaluated"}
    assert accuracies == {(0, 1): 0.1, (0, 2): 0.1, (1, 1): 0.9, (1, 2): 0.2, (2, 1): 0.5, (2, 2): 0.8}
    (epoch,) = [e for e in events if e["event"] == "epoch" and e["task"] == 2]
    assert (epoch["train_loss"], epoch["images"], epoch["validation_loss"]) == (0.5, 8, None)
    assert (
        max((folder.path / name).stat().st_mtime_ns for name in ("summary.json", "events.jsonl"))
        <= (folder.path / "DONE").stat().st_mtime_ns
    )
    assert LAYER_COLUMNS[0] == PARAMETER_COLUMNS[0] == "task"


def test_the_tables_are_there_while_the_run_goes_on(folder):
    recorder, _ = recorder_in(folder)
    record(recorder, tasks=1)
    matrix = rows_of(folder.path / "accuracy_matrix.csv")
    assert [list(row.values()) for row in matrix] == [["0", "0.1", "0.1"], ["1", "0.9", "0.2"], ["2", "", ""]]
    assert len(rows_of(folder.path / "parameters.csv")) == 1
    assert np.isnan(recorder.matrix[1]).all()
    assert recorder.initial.tolist() == [0.1, 0.1]


def test_tasks_that_were_not_evaluated_are_no_events(folder):
    recorder, _ = recorder_in(folder)
    recorder.run_started({}, ["a", "b"])
    recorder.evaluated(1, [0.5, NAN])
    assert sum(event["event"] == "evaluated" for event in read_events(folder.path / "events.jsonl")) == 1


@pytest.mark.parametrize(("after", "row"), [(1, [0.5]), (3, [0.5, 0.5]), (-1, [0.5, 0.5])])
def test_a_row_that_cannot_belong_to_the_stream_is_refused(folder, after, row):
    recorder, _ = recorder_in(folder)
    recorder.run_started({}, ["a", "b"])
    with pytest.raises(ValueError, match="stream of 2 tasks"):
        recorder.evaluated(after, row)


@pytest.mark.parametrize("status", ["failed", "interrupted"])
def test_a_run_that_ends_early_says_so(folder, status):
    recorder, _ = recorder_in(folder)
    record(recorder, tasks=1)
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError as error:
        recorder.run_failed(error, status)
    summary = json.loads((folder.path / "summary.json").read_text())
    assert (summary["status"], summary["experiment"], summary["acc"]) == (status, "e", None)
    assert summary["error"] == "ZeroDivisionError: by zero"
    assert summary["stored_parameters"] == 110
    (event,) = [e for e in read_events(folder.path / "events.jsonl") if e["event"] == "error"]
    assert event["status"] == status
    assert "raise ZeroDivisionError" in event["traceback"]
    assert not folder.done


def test_a_run_that_fails_before_it_starts_has_a_summary(folder):
    recorder, _ = recorder_in(folder)
    recorder.run_failed(RuntimeError("early"), "failed")
    assert json.loads((folder.path / "summary.json").read_text())["status"] == "failed"


def test_a_full_disk_does_not_hide_the_error_of_the_run(folder, monkeypatch):
    recorder, err = recorder_in(folder)
    record(recorder, tasks=1)

    def full(*_args):
        raise RequestError("output_root: no space left on device while writing summary.json")

    monkeypatch.setattr(folder, "write_summary", full)
    recorder.run_failed(RuntimeError("first"), "failed")
    assert "no space left" in err.getvalue()


def test_a_tracker_that_fails_is_dropped_with_one_warning(folder):
    broken, kept = Broken(), Kept()
    recorder, err = recorder_in(folder, trackers=[broken, kept])
    record(recorder)
    recorder.run_finished({})
    assert broken.calls == 1
    assert err.getvalue().count("Broken failed: service down") == 1
    assert len(kept.events) == len(list(read_events(folder.path / "events.jsonl")))
    assert folder.done


# --- probe domains ----------------------------------------------------------------------------------------------


def probing(recorder: Recorder, rows: list[dict[str, float] | None], domains=("dtd", "pets")) -> None:
    """A run of two tasks whose probe domains gave these rows; None: not probed."""
    recorder.run_started({}, ["a", "b"], {"experiment": "e"}, probes=domains)
    for after, row in enumerate(rows):
        recorder.evaluated(after, [[0.1, 0.1], *MATRIX][after])
        if row is not None:
            recorder.probed(after, row)


def test_probe_domains_are_events_a_table_and_a_figure(folder):
    kept = Kept()
    recorder, _ = recorder_in(folder, trackers=[kept])
    probing(recorder, [{"pets": 0.5, "dtd": 0.8}, {"dtd": 0.1 + 0.2, "pets": NAN}, {"dtd": 0.6, "pets": 0.4}])
    recorder.run_finished({})
    rows = rows_of(folder.path / "probes.csv")
    assert [list(row.values()) for row in rows] == [
        ["0", "0.8", "0.5"],
        ["1", repr(0.1 + 0.2), ""],
        ["2", "0.6", "0.4"],
    ]
    assert list(rows[0]) == ["after_task", "dtd", "pets"]
    events = [event for event in read_events(folder.path / "events.jsonl") if event["event"] == "probed"]
    assert [(event["after_task"], event["domain"], event["accuracy"]) for event in events] == [
        (0, "dtd", 0.8), (0, "pets", 0.5), (1, "dtd", 0.1 + 0.2), (2, "dtd", 0.6), (2, "pets", 0.4)
    ]  # fmt: skip
    assert [event for event in kept.events if event["event"] == "probed"] == events
    summary = json.loads((folder.path / "summary.json").read_text())
    assert summary["retention"] == pytest.approx(0.775)  # (0.6 / 0.8 + 0.4 / 0.5) / 2
    assert (summary["acc"], summary["bwt"]) == (pytest.approx(0.65), pytest.approx(-0.4)), "probes are outside both"


@pytest.mark.parametrize(
    "rows",
    [
        [None, None, {"dtd": 0.6, "pets": 0.4}],
        [{"dtd": 0.8, "pets": 0.5}, {"dtd": 0.6, "pets": 0.4}],
        [{"dtd": 0.8, "pets": 0.0}, None, {"dtd": 0.6, "pets": 0.4}],
        [{"dtd": 0.8, "pets": NAN}, None, {"dtd": 0.6, "pets": 0.4}],
        [{"dtd": 0.8, "pets": 0.5}, None, {"dtd": 0.6}],
    ],
)
def test_retention_needs_every_domain_before_and_after(folder, rows):
    recorder, _ = recorder_in(folder)
    probing(recorder, rows)
    recorder.run_finished({})
    assert json.loads((folder.path / "summary.json").read_text())["retention"] is None


@pytest.mark.parametrize(("given", "kept"), [(0.25, 0.25), (0.0, 0.0), (None, 0.5)])
def test_a_stream_that_measures_its_own_retention_wins(folder, given, kept):
    recorder, _ = recorder_in(folder)
    probing(recorder, [{"dtd": 0.8}, None, {"dtd": 0.4}], domains=["dtd"])
    assert recorder.run_finished({"retention": given})["retention"] == kept


def test_a_run_without_probe_domains_has_no_trace_of_them(folder):
    recorder, _ = recorder_in(folder)
    record(recorder)
    recorder.probed(2, {})
    assert "retention" not in recorder.run_finished({})
    assert not (folder.path / "probes.csv").exists()
    assert "probes" not in next(read_events(folder.path / "events.jsonl"))


@pytest.mark.parametrize(
    ("after", "row", "said"),
    [(0, {"cars": 0.5}, "'cars' was not announced"), (3, {"dtd": 0.5}, "2 tasks"), (0, {"dtd": 50.0}, "found 50.0")],
)
def test_what_cannot_be_a_probe_is_refused(folder, after, row, said):
    recorder, _ = recorder_in(folder)
    recorder.run_started({}, ["a", "b"], probes=["dtd"])
    with pytest.raises(ValueError, match=said):
        recorder.probed(after, row)
    assert not (folder.path / "probes.csv").exists()


def test_the_table_goes_when_a_run_starts_over(folder):
    recorder, _ = recorder_in(folder)
    probing(recorder, [{"dtd": 0.8, "pets": 0.5}])
    folder.restart()
    assert not (folder.path / "probes.csv").exists()


def test_the_csv_tracker_tells_the_domains_apart(folder, tmp_path):
    recorder, _ = recorder_in(folder, trackers=[CsvTracker(tmp_path / "metrics.csv")])
    probing(recorder, [None, {"dtd": 0.75, "pets": 0.5}])
    named = {row["name"]: row["value"] for row in rows_of(tmp_path / "metrics.csv") if row["event"] == "probed"}
    assert named == {"accuracy_on_dtd_after_task_1": "0.75", "accuracy_on_pets_after_task_1": "0.5"}


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_the_terminal_shows_what_the_probes_kept(folder, monkeypatch, stream):
    monkeypatch.setenv("TERM", "xterm-256color")
    out = stream()
    console = Console(stdout=out, stderr=io.StringIO(), width=100)
    recorder = Recorder(folder, EventLog(folder.path / "events.jsonl"), console)
    probing(recorder, [{"dtd": 0.8, "pets": 0.5}, {"dtd": 0.7, "pets": 0.5}, {"dtd": 0.6, "pets": NAN}])
    recorder.run_finished({"retention": 0.5})
    text = out.getvalue()
    lines = [line.split("probes")[1].split("\x1b")[0].split() for line in text.splitlines() if "  probes " in line]
    assert lines == [["65.0"], ["60.0", "-5.0"], ["-"]]  # in %, and points since before
    assert "80.00 -> 60.00 %" in text and "50.00 -> N/A" in text and "0.5000" in text
    assert text.count("probe dtd") == 1


# --- what evaluation leaves out ---------------------------------------------------------------------------------

SEEN = [[0.9, NAN, NAN], [0.7, 0.8, NAN], [0.5, 0.6, 0.7]]


@pytest.mark.parametrize(
    ("rows", "there", "missing"),
    [
        # seen: acc (0.5 + 0.6 + 0.7) / 3, bwt (-0.4 - 0.2) / 2; nothing above the diagonal: no transfer, no average
        (SEEN, {"acc": 0.6, "last": 0.6, "bwt": -0.3, "learning_accuracy": 0.8, "forgetting": 0.3},
         ["transfer", "average", "fwt"]),
        ([[NAN] * 3, [NAN] * 3, SEEN[2]], {"acc": 0.6, "last": 0.6},
         ["bwt", "forgetting", "learning_accuracy", "transfer", "average", "fwt"]),
    ],
)  # fmt: skip
def test_a_metric_is_null_where_its_entries_were_not_evaluated(folder, rows, there, missing):
    recorder, _ = recorder_in(folder)
    recorder.run_started({}, ["a", "b", "c"])
    for after, row in enumerate(rows, start=1):
        if not np.isnan(row).all():
            recorder.evaluated(after, row)
    recorder.run_finished({})
    summary = json.loads((folder.path / "summary.json").read_text())
    assert {key: summary[key] for key in there} == pytest.approx(there)
    assert [summary[key] for key in missing] == [None] * len(missing)
    matrix = rows_of(folder.path / "accuracy_matrix.csv")
    assert [row["c"] for row in matrix] == ["", "", "", "0.7"]


def test_decoding_is_shown_where_it_takes_time(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    out = io.StringIO()
    console = Console(stdout=out)
    for done in range(1, 1001):
        clock[0] += 0.03
        console.reading(done, 1000)
    lines = out.getvalue().splitlines()
    assert lines[0].startswith("decoding images: ") and lines[0].endswith("of 1,000")
    assert 2 <= len(lines) <= 4, "a line now and then"
    quick = io.StringIO()
    console = Console(stdout=quick)
    for done in range(1, 11):
        console.reading(done, 10)
    assert quick.getvalue() == "", "what takes no time is not worth a line"


def test_a_terminal_shows_a_bar_while_images_are_decoded(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    console = Console(stdout=out, width=80)
    for done in (1, 50, 99):
        console.reading(done, 100)
    assert "decoding images" in out.getvalue()
    console.reading(100, 100)
    console.note("and on")
    assert out.getvalue().rstrip().endswith("and on")
