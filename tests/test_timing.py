"""The account of a run's time adds up and names the parts; the trace is whole; neither changes what is learned."""

from __future__ import annotations

import json
import subprocess
import sys
import types
from collections import Counter

import pytest
import torch
from resume_helpers import EVERY_STEP, hurry, killed_at, same_run, start
from resume_helpers import resume as go_on
from runs_helpers import asked, network_state, same, small_run, watch_assembly

from cl_runner import runner
from cl_runner.config.compose import compose
from cl_runner.config.taken_up import taken_up
from cl_runner.errors import RequestError
from cl_runner.keeping.keeper import Keeper
from cl_runner.recording.console import Console
from cl_runner.training import timing
from cl_runner.training.meter import Meter
from cl_runner.training.monitor import TrainingMonitor
from cl_runner.training.timing import NoTimer, Timer

TINY = ("backbone.width=4", "benchmark.per_class=8", "trainer.log_every=1", "benchmark.validation_fraction=0.2")
STEPS = 4  # 2 tasks of 5 classes, 6 images of each after the split: 30 images, two batches of 16 or fewer


def events(result, name):
    lines = (result.folder / "events.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["event"] == name]


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless it is told to move: ``clock(seconds)``."""
    now = [100.0]

    def move(seconds):
        now[0] += seconds

    monkeypatch.setattr(timing, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    return move


# --------------------------------------------------------------------------------------------------- the account


def test_time_belongs_to_the_mark_that_ends_it(clock):
    timer = Timer()
    for seconds, name in ((1, "data"), (2, "forward"), (4, "data"), (8, "backward")):
        clock(seconds)
        timer.mark(name)
    clock(16)
    account = timer.account()
    assert account["parts"] == {"data": 5, "forward": 2, "backward": 8, "other": 16}
    assert account["wall_seconds"] == 31 and account["steps"] == 2


def test_what_is_apart_is_counted_once(clock):
    """A checkpoint within a step, and what it tells the recorder within that: 1 + 2 + 4 + 8 + 16."""
    timer = Timer()
    clock(1)
    with timer.apart("checkpoint"):
        clock(2)
        with timer.apart("tracking"):
            clock(4)
        clock(8)
    clock(16)
    timer.mark("forward")
    assert timer.account()["parts"] == {"forward": 17, "checkpoint": 10, "tracking": 4, "other": 0}


def test_a_mark_within_is_a_part_of_what_is_apart(clock):
    timer = Timer()
    clock(1)
    with timer.apart("evaluation"):
        clock(2)
        timer.mark("forward")
        clock(4)
    timer.mark("tasks")
    assert timer.account()["parts"] == {"tasks": 1, "evaluation: forward": 2, "evaluation": 4, "other": 0}


def test_an_account_in_the_middle_adds_up(clock):
    timer = Timer()
    clock(1)
    with timer.apart("tracking"):
        clock(2)
        with timer.apart("report"):
            clock(4)
            parts = timer.account()["parts"]
    assert parts == {"tracking": 2, "report": 4, "other": 1}
    assert timer.account()["parts"] == parts


def test_an_error_leaves_the_account_whole(clock):
    timer = Timer()
    with pytest.raises(ValueError), timer.apart("checkpoint"):
        clock(3)
        raise ValueError
    clock(1)
    timer.mark("data")
    assert timer.account()["parts"] == {"data": 1, "checkpoint": 3, "other": 0}


def test_a_gpu_is_waited_for_except_while_it_records(monkeypatch):
    """Waiting within a capture is an error; the device itself is not needed to see who would be waited for."""
    waited, capturing = [], [False]
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing[0])
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    timer = Timer()
    timer.on(torch.device("cpu"))
    timer.mark("data")
    assert waited == []
    timer.on(torch.device("cuda", 1))
    timer.mark("forward")
    assert waited == [torch.device("cuda", 1)]
    capturing[0] = True
    timer.mark("backward")
    assert len(waited) == 1


def test_no_timer_says_nothing():
    timer, thing = NoTimer(), types.SimpleNamespace(method=len)
    timer.mark("data")
    with timer.apart("checkpoint"):
        timer.around(thing, "tracking", "method")
    assert thing.method is len and timer.account() is None


def test_the_start_of_a_process_is_known():
    code = "import time; time.sleep(0.2); from cl_runner.process import process_start as p; b = p(); "
    code += "print(-1 if b is None else time.perf_counter() - b)"
    age = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert (0.15 < age < 30) if sys.platform.startswith("linux") else age == -1


# -------------------------------------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run without and with both keys: its result, its strategy."""
    found = {}
    for name, keys in (("plain", ()), ("watched", ("trainer.profile=true", "trainer.trace_steps=2"))):
        with pytest.MonkeyPatch.context() as patch:
            hurry(patch)
            made = watch_assembly(patch)
            result = small_run(tmp_path_factory.mktemp(name), *TINY, *keys)
            found[name] = (result, made[0])
    return found


def test_neither_key_changes_what_is_learned(runs):
    (plain, _), (watched, _) = runs["plain"], runs["watched"]
    losses = [[record["loss"] for record in events(result, "step")] for result in (plain, watched)]
    assert len(losses[0]) == STEPS and losses[0] == losses[1]
    assert same(network_state(plain.network), network_state(watched.network))
    assert (plain.matrix, plain.initial) == (watched.matrix, watched.initial)
    for name in ("accuracy_matrix.csv", "layers.csv"):
        assert (plain.folder / name).read_text() == (watched.folder / name).read_text()


def test_a_plain_run_is_not_watched(runs):
    result, strategy = runs["plain"]
    assert type(strategy.timer) is NoTimer and not events(result, "time_account")
    assert "stepped" not in vars(strategy.keeper) and "keep_step" not in vars(strategy.keeper)
    assert not (result.folder / "trace.json").exists()


def test_the_account_of_a_run_adds_up(runs):
    result, strategy = runs["watched"]
    (account,) = events(result, "time_account")
    parts = account["parts"]
    assert sum(parts.values()) == pytest.approx(account["wall_seconds"], rel=1e-9)
    assert account["steps"] == STEPS and type(strategy.timer) is Timer
    expected = {"start", "imports", "building", "reading data", "data", "forward", "loss", "backward", "optimiser"}
    expected |= {"adapter", "monitor", "tasks", "validation", "evaluation", "checkpoint", "tracking", "other"}
    assert expected <= parts.keys() and all(parts[name] > 0 for name in expected - {"other"})
    assert parts["other"] < 0.2 * account["wall_seconds"]
    assert result.summary["wall_seconds"] < account["wall_seconds"]  # which begins with the request
    counts = strategy.timer.counts
    assert [counts[name] for name in ("data", "forward", "backward", "optimiser", "monitor")] == [STEPS] * 5
    assert counts["validation"] == 2  # once an epoch of either task
    assert counts["evaluation"] == 5  # before the first task and after each, and twice the question for lower ranks


def test_every_second_goes_to_the_part_that_took_it(tmp_path, monkeypatch, clock):
    """The clock moves only where these parts move it, by amounts that tell them apart."""
    hurry(monkeypatch)

    def takes(owner, method, seconds):
        original = getattr(owner, method)

        def slow(*args, **kwargs):
            clock(seconds)
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, method, slow)

    takes(TrainingMonitor, "_validate", 1)  # twice
    takes(TrainingMonitor, "after_training_iteration", 10)  # each step
    takes(Keeper, "_write", 1000)  # 5 times: at the beginning, trained and evaluated
    takes(Meter, "clear", 10_000)  # three evaluations
    takes(Console, "epoch_finished", 100_000)  # twice
    made = watch_assembly(
        monkeypatch,
        lambda strategy: (
            takes(strategy.model.adapter, "after_step", 1e6),
            takes(strategy, "optimizer_step", 1e7),
            takes(strategy, "backward", 1e8),
            takes(strategy, "forward", 1e9),
        ),
    )
    typed = [*asked(*TINY, "trainer.profile=true"), f"output_root={tmp_path}"]
    result = runner.run(compose(typed), overrides=typed, began=90.0)
    parts = events(result, "time_account")[0]["parts"]
    evaluation = sum(seconds for name, seconds in parts.items() if name.startswith("evaluation"))
    passes = round(evaluation // 1e9)  # however an evaluation cuts its batches
    assert made and passes >= 6 and evaluation == 3 * 10_000 + passes * 1e9  # both tasks, three times
    assert {name: seconds for name, seconds in parts.items() if seconds and not name.startswith("evaluation")} == {
        "start": 10, "validation": 2, "monitor": 10 * STEPS, "checkpoint": 5000, "tracking": 200_000,
        "adapter": 1e6 * STEPS, "optimiser": 1e7 * STEPS, "backward": 1e8 * STEPS, "forward": 1e9 * STEPS,
    }  # fmt: skip


def test_the_terminal_shows_the_account_and_the_trace(tmp_path, monkeypatch, capsys):
    hurry(monkeypatch)
    result = small_run(tmp_path, *TINY, "quiet=false", "trainer.profile=true", "trainer.trace_steps=1")
    shown = capsys.readouterr().out
    table = shown[shown.index("where the time went") :]
    (account,) = events(result, "time_account")
    rows = {line.split("  ")[0].strip(): line.split() for line in table.splitlines() if line.strip()}
    for name in ("forward", "backward", "checkpoint", "other"):
        assert name in rows, table
    each = 1000 * account["parts"]["forward"] / STEPS
    assert rows["forward"][-1] == f"{each:.3f}" and rows["forward"][-3] == f"{account['parts']['forward']:.3f}"
    assert rows["checkpoint"][-1].endswith("%"), "what is no part of a step has no milliseconds a step"
    assert rows["all"][-1] == "100.0%" and rows["all"][-2] == f"{account['wall_seconds']:.3f}"
    assert f"trace of 1 steps: {result.folder / 'trace.json'}" in shown


# ------------------------------------------------------------------------------------------------------ the trace


def names_in(file):
    trace = json.loads(file.read_text())
    assert trace["traceEvents"], "Chrome's format: a list of events"
    return Counter(item["name"] for item in trace["traceEvents"] if item.get("ph") == "X" and item["dur"] >= 0)


def test_the_trace_holds_the_operations_of_its_steps(runs):
    result, _ = runs["watched"]
    names = names_in(result.folder / "trace.json")
    assert sum(name.startswith("ProfilerStep#") for name in names) == 2
    assert names["aten::conv2d"] >= 2 and names["aten::native_batch_norm"] >= 2  # forward
    assert any(name.startswith("autograd::engine::evaluate_function: Convolution") for name in names)
    assert any("adam" in name.lower() for name in names)
    (told,) = events(result, "traced")
    assert told["steps"] == 2 and told["file"] == str(result.folder / "trace.json")


def test_a_run_shorter_than_its_trace_leaves_what_there_is(tmp_path, monkeypatch):
    hurry(monkeypatch)
    result = small_run(tmp_path, *TINY, "trainer.iterations=1", "trainer.trace_steps=50", "evaluate=last")
    names = names_in(result.folder / "trace.json")
    assert events(result, "traced")[0]["steps"] == 2  # one of each task
    assert sum(name.startswith("ProfilerStep#") for name in names) >= 2


def test_a_trace_that_cannot_be_written_costs_a_warning(tmp_path, monkeypatch):
    hurry(monkeypatch)
    from torch.profiler import profile

    def full(self, path):
        raise RuntimeError("no space")

    monkeypatch.setattr(profile, "export_chrome_trace", full)
    result = small_run(tmp_path, *TINY, "trainer.trace_steps=1", "evaluate=last")
    assert (result.folder / "DONE").exists() and not events(result, "traced")
    assert any("no trace" in record["text"] and "no space" in record["text"] for record in events(result, "warning"))


# ------------------------------------------------------------------------------------------------------- requests


def test_a_run_that_is_taken_up_is_watched_from_there(tmp_path, monkeypatch):
    """Killed in its last task: the account and the trace are of the second attempt, and the result of one run."""
    hurry(monkeypatch)
    typed = asked(*TINY)
    start(tmp_path / "calm", typed)
    watched = [*typed, "trainer.profile=true", "trainer.trace_steps=3"]
    folder = killed_at("2.1.2", tmp_path / "killed", watched, EVERY_STEP)
    result = go_on(folder)
    (account,) = events(result, "time_account")
    assert account["steps"] == 1 and account["parts"]["checkpoint"] > 0
    assert events(result, "traced")[0]["steps"] == 1
    for name in ("time_account", "traced"):  # which a run that nobody watches has not
        lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
        (folder / "events.jsonl").write_text("".join(line for line in lines if f'"event": "{name}"' not in line))
    (calm,) = (path.parent for path in (tmp_path / "calm").rglob("DONE"))
    same_run(calm, folder)


def test_both_keys_may_be_said_anew():
    begun, now = compose(asked()), compose([*asked(), "trainer.profile=true", "trainer.trace_steps=7"])
    merged = taken_up(begun, now, ["trainer.profile=true", "trainer.trace_steps=7"])
    assert merged.trainer.profile is True and merged.trainer.trace_steps == 7


CLIP = ["benchmark=xtail", "backbone=clip_vit_b16", "adapter=none", "strategy=rail"]


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["mode=plan", "trainer.profile=true"], ["trainer.profile has no use here", "mode=plan trains nothing"]),
        (["mode=plan", "trainer.trace_steps=3"], ["trainer.trace_steps has no use here", "mode=plan"]),
        (["mode=eval", "checkpoint=x", "trainer.profile=true"], ["trainer.profile has no use here", "mode=eval"]),
        (["mode=eval", "checkpoint=x", "trainer.trace_steps=3"], ["trainer.trace_steps has no use", "mode=eval"]),
        ([*CLIP, "trainer.trace_steps=3"], ["trainer.trace_steps has no use here", "rail trains nothing"]),
        (["trainer.trace_steps=0"], ["trainer.trace_steps=0 is not possible"]),
    ],
)
def test_a_key_without_a_use_is_refused(typed, words):
    from cl_runner.config.checks import settle

    with pytest.raises(RequestError) as refused:
        settle(compose(typed), typed)
    assert all(word in refused.value.text for word in words), refused.value.text
