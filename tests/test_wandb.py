"""W&B as a tracker: what its files hold, read back through its own protobuf, and that no trouble of its reaches a run.

The real service is never contacted: runs are offline, or talk to a service on loopback (`wandb_server.py`).
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs_helpers import asked, small_run
from wandb_files import Seen, only_run
from wandb_server import Service, serving

from cl_runner import learning
from cl_runner.cli import execute
from cl_runner.config.checks import settle
from cl_runner.config.compose import compose
from cl_runner.recording.events import read_events
from cl_runner.recording.redact import is_secret, redact, redact_text
from cl_runner.recording.wandb import WandbTracker, resolved_mode
from cl_runner.recording.wandb_identity import derived_id
from cl_runner.recording.wandb_records import Define, End, Log, Summarise, Table, Translation
from cl_runner.reports.cli import main as report

ROOT = Path(__file__).parents[1]
PATIENT = "tracking.wandb.timeout=60"  # the machine may be busy
OFFLINE = ("tracking=wandb", "tracking.wandb.mode=offline", PATIENT)


def fake(length: int = 40) -> str:
    """A key that no service knows and no file holds."""
    return "".join(random.SystemRandom().choices("abcdefghijklmnopqrstuvwxyz", k=length))


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    """No credentials of whoever runs the tests, and no way to the real service."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "no-config"))
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def numbers(value: Any) -> set[float]:
    """Every number anywhere in a nest."""
    if isinstance(value, dict):
        return set().union(*map(numbers, value.values()))
    if isinstance(value, list):
        return set().union(*map(numbers, value))
    return {float(value)} if isinstance(value, int | float) and not isinstance(value, bool) else set()


# ------------------------------------------------------------------------------------------- what the files hold


@pytest.fixture(scope="module")
def tracked(tmp_path_factory) -> tuple[Path, Seen, dict[str, str], str]:
    """A finished offline run, what W&B's files hold, the secrets around it, and what was said."""
    secrets = {"WANDB_API_KEY": fake(), "HF_TOKEN": fake(20), "in a URL": fake(12)}
    saved = dict(os.environ)
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cl_runner.recording.console.Console.note", lambda self, text: said.append(text))
        os.environ.update({key: value for key, value in secrets.items() if key != "in a URL"})
        os.environ["WANDB_BASE_URL"] = "http://127.0.0.1:9"
        try:
            folder = small_run(
                tmp_path_factory.mktemp("tracked"),
                *OFFLINE,
                "trainer.epochs=2",
                "benchmark.validation_fraction=0.2",
                "tracking.wandb.artifacts=true",
                f"tracking.wandb.tags=[mine,{secrets['HF_TOKEN']}]",
                f"tracking.wandb.group='https://someone:{secrets['in a URL']}@example.org/x'",
            ).folder
        finally:
            os.environ.clear()
            os.environ.update(saved)
    return folder, only_run(folder), secrets, "\n".join(said)


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    return [record for record in read_events(folder / "events.jsonl") if record["event"] == kind]


def test_training_metrics_arrive_value_by_value(tracked):
    folder, seen, *_ = tracked
    epochs = events(folder, "epoch")
    assert len(epochs) == 4
    for name, key in {
        "train/loss": "train_loss", "train/learning_rate": "learning_rate", "train/images": "images",
        "train/seconds": "seconds", "validation/loss": "validation_loss", "validation/accuracy": "validation_accuracy",
    }.items():  # fmt: skip
        assert seen.values(name) == [record[key] for record in epochs], name
    batches = {record["task"]: record["batches"] for record in events(folder, "task_started")}
    steps = [sum(batches[record["task"]] for record in epochs[:count]) for count in range(1, 5)]
    assert seen.values("train/step") == steps
    assert seen.values("train/epoch") == [1, 2, 3, 4]


def test_the_matrix_arrives_as_metrics_and_as_a_table(tracked):
    folder, seen, *_ = tracked
    matrix = rows_of(folder / "accuracy_matrix.csv")
    names = list(matrix[0])[1:]
    rows = [row for row in seen.history if "accuracy/task_1" in row]
    assert [row["task"] for row in rows] == [0, 1, 2]
    assert [[row[f"accuracy/task_{j}"] for j in (1, 2)] for row in rows] == [
        [float(row[name]) for name in names] for row in matrix
    ]
    table = {(row["after_task"], row["task"]): row["accuracy"] for row in seen.table("accuracy_matrix")}
    assert table == {
        (i, f"{j} {name}"): float(row[name]) for i, row in enumerate(matrix) for j, name in enumerate(names, 1)
    }
    summary = json.loads((folder / "summary.json").read_text())
    last = rows[-1]
    assert last["accuracy/mean_seen"] == summary["acc"]
    assert last["forgetting/mean"] == summary["forgetting"]
    assert last["transfer/backward"] == summary["bwt"]
    assert last["forgetting/task_1"] == pytest.approx(rows[1]["accuracy/task_1"] - last["accuracy/task_1"])


def test_parameters_layers_and_classes_arrive(tracked):
    folder, seen, *_ = tracked
    account = rows_of(folder / "parameters.csv")
    rows = [row for row in seen.history if "parameters/stored" in row]
    assert [row["task"] for row in rows] == [1, 2]
    for key in ("base", "trainable", "adapter", "normalisation", "head", "stored", "inference", "growth"):
        assert [row[f"parameters/{key}"] for row in rows] == [float(line[key]) for line in account], key
    layers = rows_of(folder / "layers.csv")
    table = seen.table("layers")
    assert [(row["task"], row["name"], row["shape"], row["rank"]) for row in table] == [
        (int(row["task"]), row["name"], row["shape"], int(row["rank"])) for row in layers
    ]
    for row in layers:
        (at,) = [item for item in seen.history if f"rank/{row['name']}" in item and item["task"] == int(row["task"])]
        assert at[f"rank/{row['name']}"] == int(row["rank"])
        assert at[f"delta_norm/{row['name']}"] == float(row["delta_norm"])
    for line in rows_of(folder / "per_class_accuracy.csv"):
        rows = [row for row in seen.history if f"class_accuracy/{line['class_id']}" in row]
        at = {row["task"]: row[f"class_accuracy/{line['class_id']}"] for row in rows}
        assert at[int(line["after_task"])] == float(line["accuracy"])


def test_not_one_number_of_the_event_log_is_missing(tracked):
    folder, seen, *_ = tracked
    logged = [{k: v for k, v in record.items() if k != "time"} for record in read_events(folder / "events.jsonl")]
    arrived = (
        numbers(seen.history) | numbers(seen.summary) | numbers([seen.table("layers"), seen.table("accuracy_matrix")])
    )
    for record in logged:  # no measurements: a shape is a text in the table, a class id a metric's name
        record.pop("shape", None)
        record.pop("class_ids", None)
    assert not numbers(logged) - arrived
    assert len(numbers(logged)) > 50


def test_the_summary_holds_the_summary(tracked):
    folder, seen, *_ = tracked
    summary = {
        key: value for key, value in json.loads((folder / "summary.json").read_text()).items() if value is not None
    }
    assert {"acc", "forgetting", "parameter_growth", "wall_seconds"} <= summary.keys()
    assert {key: seen.summary.get(key) for key in summary} == summary


def test_metrics_are_drawn_against_their_axis(tracked):
    _, seen, *_ = tracked
    sections = {name.removesuffix("/*"): axis for name, axis in seen.axes.items() if name.endswith("/*")}
    for row in seen.history:
        for key in row:
            section = key.split("/")[0]
            if section in sections:
                assert sections[section] in row, key  # a metric without its axis is not drawn
    assert (sections["train"], sections["accuracy"], sections["parameters"]) == ("train/step", "task", "task")
    logged = {key.split("/")[0] for row in seen.history for key in row if "/" in key}
    assert logged - {"run", "pictures", "plots"} <= sections.keys()


def test_the_run_is_named_and_configured(tracked):
    folder, seen, *_ = tracked
    settled = yaml.safe_load((folder / "config.yaml").read_text())
    assert {key: seen.config[key] for key in ("seed", "benchmark", "adapter", "trainer")} == {
        key: settled[key] for key in ("seed", "benchmark", "adapter", "trainer")
    }
    assert seen.run.project == "cl-run"
    assert seen.run.job_type == "convlora"
    assert list(seen.run.tags) == ["split_digits", "small_cnn", "convlora", "naive", "mine", "***"]
    assert seen.run.run_group == "https://***@example.org/x"
    assert folder.name in seen.run.display_name
    assert seen.run.run_id == json.loads((folder / "wandb.json").read_text())["id"]
    assert seen.exit_code == 0


def test_pictures_and_small_files_are_there(tracked):
    folder, seen, *_ = tracked
    for name in ("accuracy_matrix", "layers"):
        (entry,) = seen.values(f"pictures/{name}")
        assert (seen.folder / "files" / entry["path"]).read_bytes().startswith(b"\x89PNG")
    (artifact,) = [item for item in seen.artifacts if item.type == "run-folder"]
    names = {entry.path for entry in artifact.manifest.contents}
    assert {"config.yaml", "events.jsonl", "summary.json", "accuracy_matrix.csv"} <= names
    assert "wandb.json" not in names


def test_no_secret_is_in_any_file_of_wandb(tracked):
    folder, seen, secrets, _ = tracked
    files = [path for path in (folder / "wandb").rglob("*") if path.is_file()]
    assert len(files) > 5
    held = (folder / "config.yaml").read_text()
    assert "${oc.env:HF_TOKEN}" in held and "***" in held  # or there was nothing to leave out
    assert not any(secret in held for secret in secrets.values())
    for path in files:
        content = path.read_bytes()
        for name, secret in secrets.items():
            assert secret.encode() not in content, f"{name} is in {path.name}"


def test_one_line_says_how_to_upload(tracked):
    folder, _, _, said = tracked
    (line,) = [line for line in said.splitlines() if "W&B" in line]
    assert f"cl-report sync {folder}" in line
    place = line.partition("wandb sync ")[2].rstrip(")")
    assert list(Path(place).glob("run-*.wandb"))


def comparable(seen: Seen) -> list[dict[str, Any]]:
    """The history without what depends on the moment it was sent."""
    rows = []
    for row in seen.history:
        kept = {key: value for key, value in row.items() if key not in ("_timestamp", "_runtime")}
        for value in kept.values():
            if isinstance(value, dict):  # a table or picture, whose content has a checksum
                for name in ("artifact_path", "_latest_artifact_path"):
                    value.pop(name, None)
        rows.append(kept)
    return rows


def test_a_sync_says_what_live_tracking_said(tracked, tmp_path, capsys):
    folder, live, *_ = tracked
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("wandb", "wandb.json"))
    assert report(["sync", "--offline", str(copy)]) == 0
    assert str(copy) in capsys.readouterr().out
    later = only_run(copy)
    assert comparable(later) == comparable(live)
    numbers_of = [{key: value for key, value in seen.summary.items() if key[0] != "_"} for seen in (later, live)]
    assert [key for key in numbers_of[0] if not isinstance(numbers_of[0][key], dict)]
    for mine in numbers_of:
        for key in [key for key, value in mine.items() if isinstance(value, dict)]:
            del mine[key]
    assert numbers_of[0] == numbers_of[1]
    assert later.exit_code == 0
    assert (later.run.job_type, later.run.project) == (live.run.job_type, live.run.project)
    elsewhere = derived_id(folder, next(read_events(folder / "events.jsonl")))
    assert later.run.run_id == elsewhere  # the same run wherever it is sent from


# ------------------------------------------------------------------------------------------- trouble


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def services_of(pid: int) -> list[int]:
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            name, _, rest = (place / "stat").read_text().rpartition(")")
            if int(rest.split()[1]) == pid and "wandb-core" in name:
                found.append(int(place.name))
        except (OSError, IndexError, ValueError):
            continue
    return found


class Spy:
    """Keeps every process that a tracker starts, and calls `then` at the record `at`."""

    def __init__(self, monkeypatch: Any, at: str = "", then: Any = None) -> None:
        self.pids: list[int] = []
        self.closing = 0.0
        log, close = WandbTracker.log, WandbTracker.close

        def watched_log(tracker: WandbTracker, event: dict[str, Any]) -> None:
            if tracker._process is not None and event["event"] == at:
                then(tracker._process.pid)
            log(tracker, event)
            if tracker._process is not None and tracker._process.pid not in self.pids:
                self.pids.append(tracker._process.pid)

        def watched_close(tracker: WandbTracker) -> None:
            started = time.perf_counter()
            try:
                close(tracker)
            finally:
                self.closing = time.perf_counter() - started

        monkeypatch.setattr(WandbTracker, "log", watched_log)
        monkeypatch.setattr(WandbTracker, "close", watched_close)


def ends_well_with_one_warning(tmp_path: Path, capfd: Any, *overrides: str) -> str:
    """Runs through the door; checks exit 0, DONE and a single warning, and returns that."""
    assert execute([*asked("tracking=wandb", "adapter.rank=1", *overrides), f"output_root={tmp_path}"]) == 0
    (done,) = tmp_path.rglob("DONE")
    assert len(rows_of(done.parent / "accuracy_matrix.csv")) == 3
    assert json.loads((done.parent / "summary.json").read_text())["status"] == "done"
    captured = capfd.readouterr()
    lines = captured.err.splitlines()
    assert len(lines) == 1, captured.err
    assert lines[0].startswith("warning: tracking")
    assert f"cl-report sync {done.parent}" in lines[0]
    assert "wandb" not in captured.out.lower()
    return lines[0]


def gone(pids: list[int]) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if not any(map(alive, pids)):
            return True
        time.sleep(0.05)
    return False


def test_no_network(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", fake())
    spy = Spy(monkeypatch)
    warning = ends_well_with_one_warning(tmp_path, capfd, "tracking.wandb.mode=online", PATIENT)
    assert "cannot be reached: connection refused" in warning
    assert spy.pids and gone(spy.pids)
    assert spy.closing < 30


def test_no_credentials(tmp_path, capfd):
    assert "no credentials" in ends_well_with_one_warning(tmp_path, capfd, "tracking.wandb.mode=online", PATIENT)


def test_a_wrong_key(tmp_path, capfd, monkeypatch):
    key = fake()
    monkeypatch.setenv("WANDB_API_KEY", key)
    service = Service(status=401)
    with serving(service) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        warning = ends_well_with_one_warning(tmp_path, capfd, "tracking.wandb.mode=online", PATIENT)
    assert "credentials are refused" in warning
    assert key not in warning
    assert service.requests


def test_a_service_that_never_answers(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", fake())
    service = Service(silent=True)
    spy = Spy(monkeypatch)
    with serving(service) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        ends_well_with_one_warning(tmp_path, capfd, "tracking.wandb.mode=online", "tracking.wandb.timeout=2")
    assert service.requests
    assert spy.closing < 4
    assert gone(spy.pids)


def test_a_folder_that_cannot_be_written(tmp_path, capfd, monkeypatch):
    """A file in the place of W&B's folder, since permissions stop nobody where tests run as root."""
    from cl_runner.recording.run_folder import RunFolder

    create = RunFolder.create

    def blocked(path: Path, *rest: Any) -> RunFolder:
        folder = create(path, *rest)
        (path / "wandb").write_text("")
        return folder

    monkeypatch.setattr(RunFolder, "create", blocked)
    warning = ends_well_with_one_warning(tmp_path, capfd, "tracking.wandb.mode=offline", PATIENT)
    assert "cannot write" in warning


@pytest.mark.parametrize("whom", ["feed", "service"])
def test_a_process_that_is_killed_in_the_middle(tmp_path, capfd, monkeypatch, whom):
    killed: list[int] = []

    def kill(pid: int) -> None:
        if killed:
            return
        deadline = time.monotonic() + 20
        while not (services := services_of(pid)) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)  # it is at work
        killed.extend(services if whom == "service" else [pid])
        for item in killed:
            os.kill(item, signal.SIGKILL)

    spy = Spy(monkeypatch, at="epoch", then=kill)
    warning = ends_well_with_one_warning(tmp_path, capfd, "tracking.wandb.mode=offline", PATIENT)
    assert killed
    assert "ended" in warning
    assert gone([*spy.pids, *killed])
    assert spy.closing < 30


def test_a_tracker_that_raises(tmp_path, capfd, monkeypatch):
    def broken(self: WandbTracker, event: dict[str, Any]) -> None:
        raise OSError(28, f"No space left on device; cl-report sync {self._folder}")

    monkeypatch.setattr(WandbTracker, "log", broken)
    assert "No space left" in ends_well_with_one_warning(tmp_path, capfd, "tracking.wandb.mode=offline")


# ------------------------------------------------------------------------------------------- runs that end badly


def test_a_failed_run_is_marked_and_a_resumed_one_goes_on(tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", fake())
    service, train = Service(), learning._train

    def fails_at_task_2(strategy: Any, phase: Any, *rest: Any) -> Any:
        if phase[-1].current_experience == 1:
            raise RuntimeError("the second task")
        return train(strategy, phase, *rest)

    with serving(service) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        with monkeypatch.context() as patch:
            patch.setattr(learning, "_train", fails_at_task_2)
            arguments = asked("tracking=wandb", "tracking.wandb.mode=online", PATIENT, "adapter.rank=1")
            assert execute([*arguments, f"output_root={tmp_path}"]) == 1
        (log,) = tmp_path.rglob("events.jsonl")
        ((name, run),) = service.runs.items()
        assert run["exit"] == [1]
        assert run["summary"]["status"] == "failed"
        assert "the second task" in run["summary"]["error"]
        first = [row["accuracy/task_1"] for row in run["history"] if "accuracy/task_1" in row]
        assert len(first) == 2  # before training, after task 1
        assert execute([f"resume={log.parent}", "quiet=true"]) == 0
        assert list(service.runs) == [name] == [json.loads((log.parent / "wandb.json").read_text())["id"]]
        assert run["exit"] == [1, 0]
        assert run["summary"]["status"] == "done"
        rows = [row for row in run["history"] if "accuracy/task_1" in row]
        assert [row["task"] for row in rows] == [0, 1, 2]
        steps = [row["_step"] for row in run["history"]]
        assert steps == sorted(set(steps))
        count = len(run["history"])
        assert report(["sync", str(tmp_path)]) == 0  # and sent again it stays as it is
        assert len(run["history"]) == count
        assert run["exit"] == [1, 0, 0]
    assert not service.unknown or set(service.unknown) <= {"query OrganizationCoreWeaveOrganizationID", SERVER_FEATURES}
    assert "warning" not in capfd.readouterr().err


SERVER_FEATURES = (
    "query ServerFeaturesQuery {\n\tserverInfo {\n\t\tfeatures {\n\t\t\tname\n\t\t\tisEnabled\n\t\t}\n\t}\n}"
)


@pytest.mark.parametrize(("status", "code"), [("done", 0), ("failed", 1), ("interrupted", 130), (None, 1)])
def test_how_a_run_ended(status, code):
    translation = Translation(origin=0.0)
    calls = translation.feed({"time": 1.0, "event": "run_started", "tasks": ["a"]})
    if status is not None:
        calls += translation.feed({"time": 2.0, "event": "run_ended", "status": status, "acc": None})
    assert translation.closing()[-1] == End(code)
    translation.feed({"time": 3.0, "event": "run_started", "tasks": ["a"]})  # resumed, and killed this time
    assert translation.closing()[-2:] == [Summarise({"status": "unfinished"}), End(1)]


def test_a_killed_run_is_sent_as_far_as_it_got(tracked, tmp_path):
    folder, live, *_ = tracked
    copy = tmp_path / "killed"
    copy.mkdir()
    shutil.copy(folder / "config.yaml", copy)
    lines = (folder / "events.jsonl").read_bytes().splitlines(keepends=True)
    kept = next(number for number, line in enumerate(lines) if b'"task_finished"' in line)
    (copy / "events.jsonl").write_bytes(b"".join(lines[:kept]) + b'{"time": 1, "ev')
    assert report(["sync", "--mode", "offline", str(copy)]) == 0
    seen = only_run(copy)
    assert seen.exit_code == 1
    assert seen.run.run_id == derived_id(folder, next(read_events(folder / "events.jsonl")))
    assert seen.values("train/loss") == live.values("train/loss")[:2]


# ------------------------------------------------------------------------------------------- one record, many calls


def test_a_record_of_an_unknown_kind_loses_no_number():
    translation = Translation(origin=0.0)
    calls = translation.feed(
        {"time": 1.0, "event": "speed", "task": 2, "rates": [1.5, {"low": 2}], "ok": True, "t": "x"}
    )
    assert calls[0] == Define("speed", "task")
    (log,) = [call for call in calls if isinstance(call, Log)]
    assert log.values == {"task": 2, "speed/task": 2, "speed/rates/0": 1.5, "speed/rates/1/low": 2, "run/seconds": 1.0}


def test_steps_grow_and_are_the_same_the_second_time():
    records = [{"time": 10.0 + 0.0001 * i, "event": "epoch", "task": 1, "epoch": i, "train_loss": i} for i in range(5)]
    first, second = Translation(10.0), Translation(10.0)
    steps = [call.step for record in records for call in first.feed(record) if isinstance(call, Log)]
    assert steps == [0, 1, 2, 3, 4]
    later = [{**record, "time": record["time"] + 60} for record in records]
    steps = [call.step for record in [*records, *later] for call in second.feed(record) if isinstance(call, Log)]
    assert steps == [0, 1, 2, 3, 4, 60000, 60001, 60002, 60003, 60004]


def test_curves_need_what_they_are_made_of():
    """Tasks evaluated only when they were learned: no forgetting, no backward transfer, and no guess at them."""
    translation = Translation(0.0)
    for after in (1, 2):
        translation.feed(
            {"time": 1.0 * after, "event": "evaluated", "after_task": after, "task": after, "accuracy": 0.5}
        )
    (log,) = [call for call in translation.closing() if isinstance(call, Log)]
    assert log.values.keys() == {"task", "accuracy/task_2", "accuracy/learning", "run/seconds"}


def test_probe_domains_are_curves_over_the_tasks():
    """A row an evaluation; their mean only where all of them were evaluated; the same when events are sent later."""
    events = [{"event": "run_started", "tasks": ["a"], "probes": ["dtd", "pets"]}]
    events += [{"event": "probed", "after_task": 0, "domain": name, "accuracy": 0.5} for name in ("dtd", "pets")]
    events += [{"event": "probed", "after_task": 1, "domain": "dtd", "accuracy": 0.25}]
    events = [{"time": float(second), **event} for second, event in enumerate(events)]
    translation = Translation(0.0)
    calls = [*translation.opening(), *(call for event in events for call in translation.feed(event))]
    calls += translation.closing()
    assert Define("probe", "task") in calls
    rows = [{k: v for k, v in call.values.items() if k != "run/seconds"} for call in calls if isinstance(call, Log)]
    assert rows == [
        {"task": 0, "probe/dtd": 0.5, "probe/pets": 0.5, "probe/mean": 0.5},
        {"task": 1, "probe/dtd": 0.25},
    ]
    (table,) = [call for call in calls if isinstance(call, Table)]
    assert (table.name, table.rows) == ("probes", ((0, "dtd", 0.5), (0, "pets", 0.5), (1, "dtd", 0.25)))


# ------------------------------------------------------------------------------------------- modes, keys, secrets


def test_auto_is_online_where_there_are_credentials(monkeypatch, tmp_path):
    assert resolved_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", fake())
    assert resolved_mode("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert resolved_mode("auto") == "disabled"
    assert resolved_mode("offline") == "offline"
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    (tmp_path / "netrc").write_text(f"machine api.wandb.ai\n  login user\n  password {fake()}\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert resolved_mode("auto") == "offline"  # the key is another server's
    monkeypatch.delenv("WANDB_BASE_URL")
    assert resolved_mode("auto") == "online"
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path))
    (tmp_path / "settings").write_text("[default]\nbase_url = https://wandb.example.org\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert resolved_mode("auto") == "offline"


def test_disabled_starts_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(WandbTracker, "log", lambda *_: pytest.fail("W&B is told"))
    folder = small_run(tmp_path, "tracking=wandb", "tracking.wandb.mode=disabled", "trainer.iterations=1").folder
    assert not (folder / "wandb.json").exists()


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("tracking.wandb.mode=sometimes", "mode takes one of: auto, online, offline, disabled"),
        ("tracking.wandb.timeout=0", "timeout takes a number at least 1"),
        ("tracking.wandb.tags=3", "tracking.wandb.tags=3 is not possible"),
        ("tracking.wandb.entty=me", "did you mean 'entity'"),
    ],
)
def test_a_wrong_key_of_the_configuration_is_named(capfd, typed, said, tmp_path):
    assert execute(["tracking=wandb", typed, f"output_root={tmp_path}"]) == 2
    assert said in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_key_without_its_choice_says_what_to_add(capfd):
    assert execute(["tracking.wandb.project=mine"]) == 2
    assert capfd.readouterr().err.splitlines() == [
        "cl-run: tracking.wandb.project: tracking=wandb is not chosen",
        "        add tracking=wandb",
    ]


def test_every_key_is_listed_in_the_configuration():
    from cl_runner.config.schema import Wandb

    listed = yaml.safe_load((ROOT / "configs/tracking/wandb.yaml").read_text())["wandb"]
    assert listed == {name: field for name, field in vars(Wandb()).items()}


def test_secrets_are_told_from_words():
    assert all(map(is_secret, ["api_key", "apiKey", "WANDB_API_KEY", "hf_token", "password", "aws.secret_access_key"]))
    assert not any(map(is_secret, ["tokenizer", "max_tokens", "class_order_seed", "key", "author", "keyword"]))
    given = {
        "a": {"token": "x1", "url": "https://me:pw@host/p?q=1"},
        "tokenizer": "gpt2",
        "l": [{"password": "y"}],
        "n": 3,
    }
    assert redact(given) == {
        "a": {"token": "***", "url": "https://***@host/p?q=1"}, "tokenizer": "gpt2", "l": [{"password": "***"}], "n": 3,
    }  # fmt: skip
    assert redact({"token": None}) == {"token": None}
    assert redact_text('{"hf_token": "abc", "loss": 0.5}') == '{"hf_token": "***", "loss": 0.5}'
    assert redact_text("GET https://host/x?sig=1&api_key=abc&b=2") == "GET https://host/x?sig=1&api_key=***&b=2"
    assert redact_text("Authorization: Bearer abc.def") == "Authorization: Bearer ***"


# ------------------------------------------------------------------------------------------- what stays untouched


def test_our_code_does_not_import_wandb():
    code = (
        "import sys, cl_runner.runner, cl_runner.recording.wandb, cl_runner.reports.sync\n"
        "found = {'wandb', 'matplotlib', 'torch'} & sys.modules.keys()\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_tracked_run_is_the_same_run(tracked, tmp_path):
    folder, *_ = tracked
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    plain = small_run(tmp_path, "trainer.epochs=2", "benchmark.validation_fraction=0.2").folder
    assert (plain / "accuracy_matrix.csv").read_text() == (folder / "accuracy_matrix.csv").read_text()
    assert not (plain / "wandb").exists() and not (plain / "wandb.json").exists()
    assert {number: signal.getsignal(number) for number in handlers} == handlers


# ------------------------------------------------------------------------------------------- cl-report sync, sweeps


@pytest.mark.parametrize("online", [True, False])
def test_sync_says_in_a_line_what_is_wrong(tracked, tmp_path, capfd, monkeypatch, online):
    folder, *_ = tracked
    if online:
        monkeypatch.setenv("WANDB_API_KEY", fake())
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("wandb"))
    assert report(["sync", str(copy)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert str(copy) in line
    assert ("cannot be reached" if online else "set WANDB_API_KEY") in line


def test_sync_of_what_is_no_run(tmp_path, capfd):
    assert report(["sync", str(tmp_path)]) == 2
    assert "no run found under" in capfd.readouterr().err
    assert report(["sync", str(tmp_path / "x")]) == 2
    assert "does not exist" in capfd.readouterr().err


def test_the_sweep_file_drives_cl_run():
    """By W&B's own reader of sweep files and maker of commands; its schema is the server's and not in the package."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args, load_sweep_config

    sweep = load_sweep_config(str(ROOT / "docs/wandb/sweep.yaml"))
    assert sweep["method"] in ("grid", "random", "bayes")
    assert sweep["metric"] == {"name": "acc", "goal": "maximize"}
    drawn = {
        name: {"value": given["values"][-1] if "values" in given else given["value"]}
        for name, given in sweep["parameters"].items()
    }
    made = create_sweep_command_args({"args": drawn})
    words = [word for part in create_sweep_command(sweep["command"]) for word in made.get(part[2:-1], [part])]
    assert words[:2] == ["${env}", "cl-run"]
    typed = words[2:]
    settled = settle(compose(typed), typed)
    assert settled.tracking.wandb is not None
    assert all(str(value["value"]) in str(settled) for value in drawn.values())


def test_a_trial_of_a_sweep_is_the_run_that_the_agent_named(tmp_path, monkeypatch):
    (tmp_path / "trial.yaml").write_text("wandb_version: 1\nadapter.rank: {value: 1}\n")
    given = {"SWEEP_ID": "s1", "RUN_ID": "trial7", "PROJECT": "theirs", "ENTITY": "someone"}
    for name, value in {**given, "SWEEP_PARAM_PATH": str(tmp_path / "trial.yaml")}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    folder = small_run(tmp_path, *OFFLINE, "adapter.rank=1", "benchmark.n_tasks=1").folder
    seen = only_run(folder)
    assert (seen.run.sweep_id, seen.run.run_id, seen.run.project, seen.run.entity) == tuple(given.values())
    known = json.loads((folder / "wandb.json").read_text())
    assert (known["id"], known["project"], known["entity"]) == ("trial7", "theirs", "someone")
    assert seen.config["adapter.rank"] == 1


def report_script() -> Any:
    spec = importlib.util.spec_from_file_location("wandb_report", ROOT / "scripts/wandb_report.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_report_draws_what_runs_log(tracked):
    _, seen, *_ = tracked
    script = report_script()
    logged = set().union(*seen.history)
    assert {*script.CURVES, *script.TRAINING, *script.PICTURES} <= logged
    assert {key for pair in script.SCATTERS for key in pair} <= seen.summary.keys()
    assert all("task" in row for row in seen.history if set(script.CURVES) & row.keys())


def test_the_report_is_saved(monkeypatch):
    """By W&B's own library, against the service on loopback."""
    pytest.importorskip("wandb_workspaces")
    monkeypatch.setenv("WANDB_API_KEY", fake())
    service = Service()
    with serving(service) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        command = [sys.executable, "scripts/wandb_report.py", "--entity", "someone", "--group", "quickstart"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(url)
    (saved,) = service.reports
    text = json.dumps(json.loads(saved["spec"]))
    for words in (
        "accuracy/mean_seen",
        "forgetting/mean",
        "parameter_growth",
        "pictures/accuracy_matrix",
        "quickstart",
    ):
        assert words in text
    assert text.count('"Scatter Plot"') == 3
