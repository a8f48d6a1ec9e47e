"""What a run of texts leaves: losses beside its scores, in files, on the terminal, at W&B and in reports."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from pathlib import Path

import matplotlib.figure
import pytest
from test_page import BINARY, READY, Browser, Reader, data_of, page_of
from test_recording import Terminal, record, recorder_in, rows_of

from cl_runner.errors import RequestError
from cl_runner.recording import Console, CsvTracker, EventLog, Recorder, RunFolder, read_events
from cl_runner.recording.losses import Losses
from cl_runner.recording.matrix_view import MatrixView
from cl_runner.recording.wandb_records import Define, Log, Table, Translation
from cl_runner.reports import figures, losses, run_figures, single
from cl_runner.reports.cli import main
from cl_runner.reports.collect import find_runs, group_runs, read_run
from cl_runner.reports.csv_files import AtRank, read_rank_curve
from cl_runner.reports.details import detail
from cl_runner.reports.sweep import SweepReport
from cl_runner.result import Outcome

NAN = float("nan")
NAMES = ("imdb", "yelp", "news")
# rows: before any training, after tasks 1 to 3
SCORES = [[0.10, 0.10, 0.10], [0.40, 0.12, 0.10], [0.30, 0.50, 0.11], [0.20, 0.45, 0.60]]
LOSSES = [[6.0, 6.5, 7.0], [4.0, 6.0, 6.8], [4.5, 3.5, 6.7], [4.75, 3.25, 3.0]]
# delta_loss ((4.75 - 4.0) + (3.25 - 3.5)) / 2 = 0.25; loss (4.75 + 3.25 + 3.0) / 3; retention (0.2/0.4 + 0.45/0.5) / 2
GOLDEN = {"loss": 11 / 3, "delta_loss": 0.25, "last_task_loss": 3.0, "retention": 0.7, "adapter_parameters": 590}


def figures_of(row, metric="token_accuracy", accuracies=None):
    """What the evaluation of texts gives besides the scores."""
    return [
        None
        if loss is None
        else {
            "loss": loss,
            "perplexity": math.exp(loss),
            "token_accuracy": 0.5 if accuracies is None else accuracies[task],
            "metric": metric,
            "tokens": 100 + task,
        }
        for task, loss in enumerate(row)
    ]


def learned(recorder: Recorder, scores=SCORES, losses=LOSSES, *, metric="token_accuracy", ranks=(), **labels):
    """A run of texts, told to a recorder."""
    names = NAMES[: len(scores) - 1]
    measure = "token accuracy" if metric == "token_accuracy" else "score"
    labels = {"experiment": "study", "benchmark": "texts", "backbone": "gpt2", "strategy": "naive"} | labels
    recorder.run_started({"adapter": "lora"}, names, labels, unit="texts", measure=measure)
    for after, (row, found) in enumerate(zip(scores, losses, strict=True)):
        if after:
            recorder.task_started(after, names[after - 1], 1, 2)
            recorder.batch(8)
            recorder.epoch_finished(after, 1, 1, 3.0, images=800, seconds=2.0)
            counts = {"base": 1000, "trainable": 5, "adapter": 2360 if after < len(names) else 590, "stored": 1590}
            recorder.task_finished(after, counts, [])
        recorder.evaluated(after, row, figures_of(found, metric))
        for rank, accuracies, at_rank in ranks if after else ():
            recorder.evaluated_at_rank(rank, accuracies, after_task=after, losses=[one + after for one in at_rank])
    return recorder.run_finished({"train_images_per_second": 400.0})


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", {"seed": 0}, [])


def events_of(folder: RunFolder, kind: str) -> list[dict]:
    return [event for event in read_events(folder.path / "events.jsonl") if event["event"] == kind]


# ------------------------------------------------------------------------------------------------ the run folder


def test_losses_are_a_table_events_and_figures_of_the_summary(folder):
    recorder, _ = recorder_in(folder)
    learned(recorder)
    rows = rows_of(folder.path / "losses.csv")
    assert list(rows[0]) == [
        "after_task", "task", "name", "metric", "score", "loss", "perplexity", "token_accuracy", "tokens"
    ]  # fmt: skip
    assert [(int(row["after_task"]), int(row["task"]), row["name"]) for row in rows] == [
        (after, task, NAMES[task - 1]) for after in range(4) for task in (1, 2, 3)
    ]
    last = rows[-2]
    assert (last["metric"], float(last["score"]), float(last["loss"])) == ("token_accuracy", 0.45, 3.25)
    assert float(last["perplexity"]) == math.exp(3.25) and (last["token_accuracy"], last["tokens"]) == ("0.5", "101")
    (event,) = [e for e in events_of(folder, "evaluated") if (e["after_task"], e["task"]) == (3, 2)]
    assert (event["accuracy"], event["loss"], event["metric"], event["tokens"]) == (0.45, 3.25, "token_accuracy", 101)
    assert event["perplexity"] == math.exp(3.25) and event["token_accuracy"] == 0.5
    summary = json.loads((folder.path / "summary.json").read_text())
    assert {key: summary[key] for key in GOLDEN} == pytest.approx(GOLDEN)
    assert summary["acc"] == pytest.approx(1.25 / 3) and summary["bwt"] == pytest.approx(-0.125)
    (started,) = events_of(folder, "run_started")
    assert (started["unit"], started["measure"]) == ("texts", "token accuracy")
    folder.restart()
    assert not (folder.path / "losses.csv").exists()


def test_retention_is_that_of_scores_where_tasks_have_their_own(folder):
    """Token accuracy is the same all along; the task's score is what retention tells of."""
    recorder, _ = recorder_in(folder)
    assert learned(recorder, metric="rouge_l")["retention"] == pytest.approx(0.7)
    assert {row["metric"] for row in rows_of(folder.path / "losses.csv")} == {"rouge_l"}


@pytest.mark.parametrize(
    ("rows", "missing"),
    [
        # evaluate=last: nothing to compare with
        ({3: (SCORES[3], LOSSES[3])}, {"delta_loss", "retention"}),
        # the diagonal of task 2 is missing
        ({1: (SCORES[1], LOSSES[1]), 2: ([0.3, NAN, 0.1], [4.5, None, 6.7]), 3: (SCORES[3], LOSSES[3])},
         {"delta_loss", "retention"}),
        # nothing was known of task 1: what is kept of nothing has no share
        ({1: ([0.0, 0.1, 0.1], LOSSES[1]), 2: (SCORES[2], LOSSES[2]), 3: (SCORES[3], LOSSES[3])}, {"retention"}),
        # the loss of task 1 is no number at the end
        ({1: (SCORES[1], LOSSES[1]), 2: (SCORES[2], LOSSES[2]), 3: (SCORES[3], [NAN, 3.25, 3.0])},
         {"loss", "delta_loss"}),
        # the run was interrupted after task 2
        ({1: (SCORES[1], LOSSES[1]), 2: (SCORES[2], LOSSES[2])}, {"loss", "delta_loss", "last_task_loss", "retention"}),
    ],
)  # fmt: skip
def test_a_figure_is_null_where_an_entry_it_needs_is_missing(rows, missing):
    found = Losses(NAMES)
    for after, (scores, row) in rows.items():
        found.add(after, scores, figures_of(row))
    summary = found.summary()
    assert {key for key, value in summary.items() if value is None} == missing
    assert {key: value for key, value in summary.items() if value is not None} == pytest.approx(
        {key: GOLDEN[key] for key in summary.keys() - missing}
    )


def test_one_domain_has_a_loss_and_nothing_to_forget(folder):
    recorder, _ = recorder_in(folder)
    summary = learned(recorder, [[0.1], [0.4]], [[6.0], [4.0]])
    assert (summary["loss"], summary["last_task_loss"]) == (4.0, 4.0)
    assert summary["delta_loss"] is None and summary["retention"] is None


def test_a_loss_that_is_no_number_is_empty(folder):
    recorder, _ = recorder_in(folder)
    recorder.run_started({}, ["a", "b"], unit="texts", measure="score")
    figures = [{"loss": math.inf, "perplexity": NAN, "metric": "sari"}, None]
    recorder.evaluated(1, [NAN, NAN], figures)
    (row,) = rows_of(folder.path / "losses.csv")
    assert (row["task"], row["metric"], row["score"], row["loss"], row["tokens"]) == ("1", "sari", "", "", "")
    (event,) = events_of(folder, "evaluated")
    assert (event["accuracy"], event["loss"], event["perplexity"]) == (None, None, None)


@pytest.mark.parametrize(("figures", "said"), [([None], "1 figures for 2 tasks"), ([{"los": 1.0}, None], "'los'")])
def test_figures_that_do_not_fit_are_refused(folder, figures, said):
    recorder, _ = recorder_in(folder)
    recorder.run_started({}, ["a", "b"])
    with pytest.raises(ValueError, match=said):
        recorder.evaluated(0, [0.1, 0.1], figures)


def test_a_run_of_images_has_no_trace_of_losses(folder):
    recorder, _ = recorder_in(folder)
    record(recorder)
    recorder.evaluated(2, [0.5, 0.8], [None, None])
    recorder.evaluated_at_rank(2, [0.4, 0.6])
    summary = recorder.run_finished({})
    assert not {"loss", "delta_loss", "last_task_loss", "retention"} & summary.keys()
    assert not (folder.path / "losses.csv").exists()
    assert "unit" not in events_of(folder, "run_started")[0]
    assert [event.keys() for event in events_of(folder, "evaluated_at_rank")] == [
        {"time", "event", "rank", "task", "accuracy"}
    ] * 2
    assert [list(row.values()) for row in rows_of(folder.path / "rank_curve.csv")] == [
        ["2", "1", "0.4", "2", ""], ["2", "2", "0.6", "2", ""]
    ]  # fmt: skip


def test_the_rank_curve_says_after_which_task_and_with_what_loss(folder):
    recorder, _ = recorder_in(folder)
    learned(recorder, ranks=[(8, [0.2, 0.1, NAN], [5.0, 6.0, 6.5])])
    rows = read_rank_curve(folder.path)
    assert rows[3] == AtRank(8.0, 1, 2, 0.2, 7.0) and rows[2] == AtRank(8.0, 3, 1, None, 7.5)
    assert [(row.after_task, row.task) for row in rows] == [(after, task) for after in (1, 2, 3) for task in (1, 2, 3)]
    run = read_run(folder.path)
    assert run.rank_curve("loss") == {8.0: pytest.approx((5.0 + 6.0 + 6.5) / 3 + 3)}, "after the last task alone"
    assert run.rank_curve() == {}, "a mean over other tasks would be another figure"


def test_rank_curves_of_older_runs_are_read(tmp_path):
    (tmp_path / "rank_curve.csv").write_text("rank,task,accuracy\n4,1,0.5\n4,2,0.75\n")
    assert read_rank_curve(tmp_path) == [AtRank(4.0, 1, 2, 0.5, None), AtRank(4.0, 2, 2, 0.75, None)]
    (tmp_path / "rank_curve.csv").write_text("rank,task\n4,1\n")
    with pytest.raises(RequestError, match="rank_curve.csv is damaged"):
        read_rank_curve(tmp_path)


def test_the_csv_tracker_names_losses(folder, tmp_path):
    recorder, _ = recorder_in(folder, trackers=[CsvTracker(tmp_path / "metrics.csv")])
    learned(recorder)
    found = {(row["task"], row["name"]): row["value"] for row in rows_of(tmp_path / "metrics.csv")}
    assert found["2", "loss_after_task_3"] == "3.25" and found["2", "accuracy_after_task_3"] == "0.45"


# ------------------------------------------------------------------------------------------------- the terminal


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_the_terminal_speaks_of_texts_and_their_losses(folder, monkeypatch, stream):
    monkeypatch.setenv("TERM", "xterm-256color")
    out = stream()
    console = Console(stdout=out, stderr=io.StringIO(), width=100)
    learned(Recorder(folder, EventLog(folder.path / "events.jsonl"), console))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", out.getvalue())
    rows = [line.split() for line in text.splitlines() if re.match(r" +loss +\d+\.\d+ +\d", line)]
    assert rows == [
        ["loss", "6.000", "6.500", "7.000"],  # before any task there is none seen
        ["loss", "4.000", "6.000", "6.800", "4.000"],
        ["loss", "4.500", "3.500", "6.700", "4.000"],  # (4.5 + 3.5) / 2
        ["loss", "4.750", "3.250", "3.000", "3.667"],
    ]
    assert "token accuracy in % after each task" in text and "400 texts/s" in text and "images" not in text
    closing = text[text.index("study: done") :]
    for name, value in (
        ("token accuracy", "41.67 %"), ("learning accuracy", "50.00 %"), ("loss", "3.6667"),
        ("change of loss", "+0.2500"), ("loss of last task", "3.0000"), ("retention", "0.7000"),
    ):  # fmt: skip
        assert re.search(rf"{name}[ │]+{re.escape(value)}", closing), name
    assert not re.search(r"(?<!token )(?<!learning )accuracy", text)


def test_scores_are_not_called_accuracy(folder):
    out = io.StringIO()
    recorder = Recorder(folder, EventLog(folder.path / "events.jsonl"), Console(stdout=out, stderr=io.StringIO()))
    learned(recorder, metric="rouge_l")
    assert "score in %" in out.getvalue() and "learning score" in out.getvalue() and "accuracy" not in out.getvalue()


def test_a_run_of_images_says_what_it_always_said(folder):
    out = io.StringIO()
    recorder = Recorder(folder, EventLog(folder.path / "events.jsonl"), Console(stdout=out, stderr=io.StringIO()))
    record(recorder)
    recorder.run_finished({"train_images_per_second": 7.0})
    text = out.getvalue()
    assert "accuracy in % after each task" in text and "7 images/s" in text and "text" not in text
    assert not re.search(r"(?m)^ *(loss|change of loss) ", text)


@pytest.mark.parametrize(("n_tasks", "width"), [(1, 40), (8, 80), (10, 80), (20, 80), (40, 80), (100, 60)])
def test_losses_fit_below_their_row(n_tasks, width):
    view = MatrixView.fit([f"classes {i}, {i + 1}" for i in range(n_tasks)], width)
    rows, below = view.row(n_tasks, [0.5] * n_tasks), view.losses(n_tasks, [12.3456] * (n_tasks - 1) + [None])
    assert len(rows) == len(below) and all(len(line.plain) <= width for line in below)
    cells = " ".join(line.plain for line in below).split()
    assert len(cells) == n_tasks + 1 and cells[-1] == "-", "no mean over other tasks"
    assert all(cell == "12.346"[: len(cell)].rstrip(".") or cell in ("12.35", "12.3", "12") for cell in cells[1:-1])


def test_reading_says_what_is_read(monkeypatch):
    import time

    clock = iter(range(100, 10_000, 5))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    out = io.StringIO()
    console = Console(stdout=out)
    for done in (1, 2):
        console.reading(done, 100, "encoding texts")
    assert "encoding texts: 2 of 100" in out.getvalue()


# --------------------------------------------------------------------------------------------------------- W&B


def test_wandb_is_told_losses_by_task_and_rank_curves_by_stage(folder):
    recorder, _ = recorder_in(folder)
    learned(recorder, ranks=[(8, [0.2, 0.1, 0.3], [5.0, 6.0, 6.5])])
    records = list(read_events(folder.path / "events.jsonl"))
    translation = Translation(records[0]["time"])
    calls = [*translation.opening(), *(call for one in records for call in translation.feed(one))]
    calls += translation.closing()
    logged = [call.values for call in calls if isinstance(call, Log)]
    (after,) = [values for values in logged if values.get("task") == 2 and "loss/task_1" in values]
    told = {"loss/task_2": 3.5, "loss/mean_seen": 4.0, "token_accuracy/task_1": 0.5, "tokens/task_3": 102}
    assert {key: after[key] for key in told} == pytest.approx(told) and after["accuracy/task_2"] == 0.5
    assert after["perplexity/task_2"] == pytest.approx(math.exp(3.5))
    (before,) = [values for values in logged if values.get("task") == 0]
    assert "loss/task_1" in before and "loss/mean_seen" not in before
    curves = [values for values in logged if "rank_curve/rank" in values]
    assert [sorted(name.rpartition("/")[0] for name in values if name.endswith("/mean")) for values in curves] == [
        ["rank_curve_after_1"], ["rank_curve_after_2"], ["rank_curve"]
    ]  # fmt: skip
    assert curves[2]["rank_curve/loss_task_2"] == 9.0 and curves[2]["rank_curve/mean"] == pytest.approx(0.2)
    assert curves[0]["rank_curve_after_1/mean_loss"] == pytest.approx(17.5 / 3 + 1)
    defined = {call.section: call.axis for call in calls if isinstance(call, Define)}
    assert defined["loss"] == defined["perplexity"] == "task" and defined["rank_curve_after_1"] == "rank_curve/rank"
    (table,) = [call for call in calls if isinstance(call, Table) and call.name == "losses"]
    assert (3, "2 yelp", 3.25) in table.rows and len(table.rows) == 12
    (epoch, *_) = [values for values in logged if "train/loss" in values]
    assert epoch["train/texts_per_second"] == 400 and "train/images_per_second" not in epoch


# --------------------------------------------------------------------------------------------------- comparisons


@pytest.fixture
def study(tmp_path) -> Path:
    """Two methods with two seeds each, cut to two ranks after each of two tasks, as their runs leave them."""
    for adapter, steep in (("lora", 0.5), ("hybrid", 0.0)):
        for seed, shift in enumerate((0.0, 0.2)):
            name = f"{adapter}_{seed}"
            folder = RunFolder.create(tmp_path / "runs" / name, {"seed": seed, "adapter": adapter}, [])
            recorder, _ = recorder_in(folder)
            end = [[0.1, 0.1], [0.4, 0.1], [0.4 - 0.4 * steep - shift, 0.5]]
            rows = [[6.0, 6.5], [4.0, 6.0], [4.0 + steep + shift, 3.5 - shift]]
            ranks = [(4, [0.1, 0.3], [3.0 + 2 * steep + shift, 2.0]), (16, [0.3, 0.5], [3.0 + shift, 2.0])]
            learned(recorder, end, rows, ranks=ranks, adapter=adapter, seed=seed)
    return tmp_path / "runs"


def groups_of(folder: Path):
    groups, left_out = group_runs(find_runs([folder])[0])
    assert not left_out
    return groups


@pytest.fixture
def drawn(monkeypatch):
    """Every figure that is saved."""
    seen = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(
        matplotlib.figure.Figure, "savefig", lambda one, *rest, **more: (seen.append(one), save(one, *rest, **more))[1]
    )
    return seen


def shown(capsys, *arguments) -> str:
    assert main([str(argument) for argument in arguments]) == 0
    return capsys.readouterr().out


def test_the_table_shows_losses_of_texts(study, capsys):
    text = shown(capsys, study)
    heads = ("retention", "loss", "delta loss", "last task loss", "adapter size")
    assert all(head in text for head in heads)
    (line,) = [line for line in text.splitlines() if line.strip().startswith("lora ")]
    # loss (4.5 + 3.5) / 2 and (4.7 + 3.3) / 2; delta +0.5 and +0.7; retention 0.2 / 0.4 and 0 / 0.4
    for cell in ("0.2500 ± 0.3536", "4.0000 ± 0.0000", "+0.6000 ± 0.1414", "3.4000 ± 0.1414", "590"):
        assert cell in line
    asked = shown(capsys, study, "--columns", "delta_loss,last_task_loss,adapter_parameters", "--sort", "delta_loss")
    assert [line.split()[0] for line in asked.splitlines() if "±" in line] == ["hybrid", "lora"], "lower is better"
    assert "acc %" not in asked


def test_every_format_holds_the_losses(study, capsys):
    rows = list(csv.DictReader(io.StringIO(shown(capsys, study, "--format", "csv"))))
    lora = next(row for row in rows if row["adapter"] == "lora")
    assert float(lora["delta_loss"]) == pytest.approx(0.6) and float(lora["delta_loss_std"]) == pytest.approx(0.02**0.5)
    assert float(lora["last_task_loss"]) == pytest.approx(3.4) and float(lora["adapter_parameters"]) == 590
    (lora,) = [row for row in json.loads(shown(capsys, study, "--format", "json")) if row["adapter"] == "lora"]
    assert lora["loss"] == pytest.approx(4.0) and lora["adapter_parameters_std"] == 0
    latex = shown(capsys, study, "--format", "latex", "--columns", "retention,delta_loss,last_task_loss")
    assert latex.isascii()
    best = {line.split(" & ")[3]: line.count("textbf") for line in latex.splitlines() if "naive" in line}
    assert best == {"hybrid": 3, "lora": 1}, "of losses the lowest; both end at the same loss on the last task"


def test_runs_of_images_have_no_columns_for_texts(tmp_path, capsys):
    folder = RunFolder.create(tmp_path / "run", {}, [])
    recorder, _ = recorder_in(folder)
    record(recorder)
    recorder.run_finished({"adapter_parameters": 7})
    text = shown(capsys, tmp_path)
    assert "loss" not in text and "adapter size" not in text and "retention" not in text


def test_details_of_texts(study):
    (group,) = [one for one in groups_of(study) if one.identity("adapter") == "lora"]
    content, problems = detail(group)
    assert not problems and content["measure"] == "token accuracy"
    found = content["losses"]
    assert found["values"] == [pytest.approx([6.0, 4.0, 4.6]), pytest.approx([6.5, 6.0, 3.4])]
    assert found["mean"] == pytest.approx([4.0, 4.0]) and found["std"] == pytest.approx([0.0, 0.0])
    assert found["tasks"][1]["metric"] == "token_accuracy" and found["tasks"][1]["end"]["tokens"] == 101
    assert content["rank_curve"] == [
        {"rank": 4.0, "accuracy": pytest.approx(0.2), "loss": pytest.approx((4.0 + 4.2 + 2 + 2) / 4 + 2)},
        {"rank": 16.0, "accuracy": pytest.approx(0.4), "loss": pytest.approx((3.0 + 3.2 + 2 + 2) / 4 + 2)},
    ]


def test_measures_have_one_name():
    def rows(*metrics):
        return [run_row(metric) for metric in metrics]

    def run_row(metric):
        from cl_runner.reports.run_files import TaskLoss

        return TaskLoss(1, 1, metric, 1.0, None, None, None)

    assert losses.measure_of([]) == "accuracy"
    assert losses.measure_of(rows("token_accuracy")) == "token accuracy"
    assert losses.measure_of(rows("token_accuracy", "sari")) == "score"
    assert losses.common_measure(["score", "token accuracy"]) == "score"
    assert losses.common_measure(["score", "accuracy"]) == losses.common_measure([]) == "accuracy"
    assert losses.said("Accuracy of accuracy", "token accuracy") == "Token accuracy of token accuracy"


# ------------------------------------------------------------------------------------------------------ pictures


def test_losses_over_the_rank_are_panels_by_stage_and_task(study, tmp_path, drawn):
    groups = groups_of(study)
    panels, left_out = losses.rank_panels(groups)
    assert not left_out and [(one.after_task, one.task, one.name) for one in panels] == [
        (1, 1, "imdb"), (1, 2, "yelp"), (2, 1, "imdb"), (2, 2, "yelp")
    ]  # fmt: skip
    curves = {curve.label: curve for curve in panels[2].curves}
    assert curves["lora"].ranks == [4.0, 16.0]
    assert [value.mean for value in curves["lora"].values] == pytest.approx([6.1, 5.1])  # 3 + 2 + 0.1, and + 1
    assert curves["lora"].values[0].std == pytest.approx(0.2 / 2**0.5)
    assert [value.mean for value in curves["hybrid"].values] == pytest.approx([5.1, 5.1])

    assert figures.rank_loss(groups, tmp_path / "x.png") == []
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == [
        f"{name}, after task {after}" for after in (1, 2) for name in ("imdb", "yelp")
    ]
    third = figure.axes[2]
    lines = {line.get_label(): list(line.get_ydata()) for line in third.lines}
    assert lines == {"lora": pytest.approx([6.1, 5.1]), "hybrid": pytest.approx([5.1, 5.1])}
    assert third.get_ylim() == figure.axes[0].get_ylim() != figure.axes[1].get_ylim(), "a task has one axis"
    assert third.get_xscale() == "log" and "loss" in third.get_ylabel() and len(third.collections) == 2
    colours = [{line.get_label(): line.get_color() for line in axes.lines} for axes in figure.axes]
    assert all(one == colours[0] for one in colours), "a method looks the same everywhere"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["hybrid", "lora"]


def test_ranks_that_not_all_seeds_have_and_groups_without_losses_are_left_out(study, tmp_path):
    place = study / "lora_0" / "rank_curve.csv"
    place.write_text("".join(line for line in place.open() if not line.startswith("4,")))
    (study / "hybrid_1" / "rank_curve.csv").write_text("rank,task,accuracy\n4,1,0.5\n")
    panels, (left,) = losses.rank_panels(groups_of(study))
    assert "hybrid_0" in left and "no losses that all seeds have" in left
    assert [curve.label for panel in panels for curve in panel.curves] == ["lora"] * 4
    assert all(curve.ranks == [16.0] for panel in panels for curve in panel.curves)
    (study / "lora_1" / "rank_curve.csv").unlink()
    with pytest.raises(RequestError, match="nothing to draw"):
        losses.rank_panels(groups_of(study))


def test_many_panels_are_those_after_the_last_task(tmp_path, drawn):
    names = [f"task {index}" for index in range(6)]
    folder = RunFolder.create(tmp_path / "runs" / "a", {}, [])
    recorder, _ = recorder_in(folder)
    recorder.run_started({}, names, {"adapter": "lora"}, unit="texts", measure="score")
    for after in (1, 3, 6):
        recorder.evaluated(after, [0.5] * 6, figures_of([3.0] * 6, "sari"))
        recorder.evaluated_at_rank(4, [0.5] * 6, after_task=after, losses=[float(after)] * 6)
    recorder.run_finished({})
    (said,) = figures.rank_loss(groups_of(tmp_path / "runs"), tmp_path / "x.svg")
    assert "18 panels are too many" in said
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == [f"{name}, after task 6" for name in names]
    places = [axes.get_subplotspec() for axes in figure.axes]
    assert [(place.rowspan.start, place.colspan.start) for place in places] == [
        (0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)
    ]  # fmt: skip
    assert not figure.legends, "one line needs no key"


def test_the_numbers_of_the_rank_curve_come_as_a_table(study, tmp_path, capsys):
    out = tmp_path / "rank_loss.csv"
    assert main([str(study), "--plot", "rank_loss", "--out", str(out)]) == 0
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == 2 * 2 * 2 * 2  # methods, stages, tasks, ranks
    (row,) = [
        one
        for one in rows
        if (one["adapter"], one["after_task"], one["name"], one["rank"]) == ("lora", "2", "imdb", "4.0")
    ]
    assert float(row["loss"]) == pytest.approx(6.1) and float(row["loss_std"]) == pytest.approx(0.2 / 2**0.5)
    assert (float(row["score"]), row["score_std"], row["seeds"], row["task"]) == (pytest.approx(0.1), "0.0", "2", "1")


@pytest.mark.parametrize("name", ["ranks", "rank_loss", "losses", "tasks"])
def test_the_command_draws(study, tmp_path, capsys, name):
    assert shown(capsys, study, "--plot", name, "--out", tmp_path / f"{name}.png") == ""
    assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_pictures_say_what_was_measured(study, tmp_path, drawn):
    groups = groups_of(study)
    figures.rank_curves(groups, tmp_path / "a.png")
    run_figures.draw("tasks", groups, tmp_path / "b.png")
    run_figures.draw("matrix", groups[:1], tmp_path / "c.png")
    ranks, tasks, matrix = drawn
    assert ranks.axes[0].get_ylabel() == "token accuracy, mean over the tasks (%)"
    assert tasks.axes[0].get_ylabel() == "token accuracy on tasks seen (%)"
    assert matrix.axes[1].get_ylabel() == "token accuracy (%)"
    assert list(ranks.axes[0].lines[0].get_ydata()) == pytest.approx([20.0, 40.0]), "after the last task alone"


def test_losses_over_tasks(study, tmp_path, drawn):
    groups = groups_of(study)
    run_figures.draw("losses", [group for group in groups if group.identity("adapter") == "lora"], tmp_path / "one.png")
    run_figures.draw("losses", groups, tmp_path / "several.png")
    one, several = (figure.axes[0] for figure in drawn)
    assert {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in one.lines} == {
        "imdb": ([0, 1, 2], pytest.approx([6.0, 4.0, 4.6])), "yelp": ([0, 1, 2], pytest.approx([6.5, 6.0, 3.4]))
    }  # fmt: skip
    assert [list(line.get_ydata()) for line in several.lines] == [
        pytest.approx([4.0, 3.75]), pytest.approx([4.0, 4.0])
    ]  # fmt: skip
    assert "loss (nats a token)" in one.get_ylabel() and "tasks seen" in several.get_ylabel()


def test_runs_without_losses_have_no_such_picture(tmp_path, capsys):
    folder = RunFolder.create(tmp_path / "run", {}, [])
    recorder, _ = recorder_in(folder)
    record(recorder)
    recorder.evaluated_at_rank(2, [0.5, 0.5])
    recorder.run_finished({})
    for name, said in (("losses", "losses.csv"), ("rank_loss", "holds no losses")):
        assert main([str(tmp_path), "--plot", name, "--out", str(tmp_path / "x.png")]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "x.png").exists()


def test_a_study_leaves_its_table_and_curves(study, tmp_path, capsys):
    columns = ["delta_loss", "retention", "last_task_loss", "adapter_parameters"]
    report = SweepReport(plots=["ranks", "rank_loss", "losses"], columns=columns)
    report.cells = [Outcome("done", (), folder, tmp_path) for folder in sorted(study.iterdir())]
    report.finish()
    text = capsys.readouterr().out
    assert "+0.6000 ± 0.1414" in text and "acc %" not in text
    for name in ("ranks", "rank_loss", "losses"):
        assert (tmp_path / "plots" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    assert len(list(csv.DictReader((tmp_path / "rank_loss.csv").open()))) == 16
    table = {row["adapter"]: row for row in csv.DictReader((tmp_path / "table.csv").open())}
    assert float(table["lora"]["delta_loss"]) == pytest.approx(0.6)
    report = SweepReport(columns=["los"])
    with pytest.raises(RequestError, match="no metric 'los'"):
        report.finish()


# --------------------------------------------------------------------------------------------------------- pages


def test_the_report_of_a_run_of_texts(study):
    single.write_report(study / "lora_0")
    page = (study / "lora_0" / "report.html").read_text()
    reader = Reader(page)
    assert (study / "lora_0" / "plots" / "losses.png").read_bytes()[:4] == b"\x89PNG"
    assert "losses" in [one["id"] for one in reader.of("figure")]
    assert reader.tables["losses-table"][1:] == [
        ["imdb", "token accuracy", "6.0000", "4.0000", "4.5000", "+0.5000", "90.02", "50.00", "100"],
        ["yelp", "token accuracy", "6.5000", "3.5000", "3.5000", "+0.0000", "33.12", "50.00", "101"],
    ]
    assert "<span>delta loss</span><b>+0.5000</b>" in page and "<span>retention</span><b>0.5000</b>" in page
    assert "Token accuracy and forgetting over tasks" in page and not re.search(r"(?<!oken )(?i:accuracy)", body(page))


def body(page: str) -> str:
    """The words of a page, without its pictures, styles and scripts."""
    return re.sub(r"<(style|script|svg).*?</\1>", "", page, flags=re.DOTALL)


def test_a_damaged_table_of_losses_is_refused_by_name(study):
    (study / "lora_0" / "losses.csv").write_text("after_task,task,metric\n1,1,sari\n")
    with pytest.raises(RequestError, match="losses.csv is damaged"):
        single.write_report(study / "lora_0")


def test_the_comparison_holds_the_losses(study):
    page = page_of(study)
    found = {group["label"]: group for group in data_of(page)}
    assert found["lora"]["losses"]["values"][0] == [6, 4, 4.6] and found["lora"]["rank_curve"][1]["loss"] == 4.55
    heads, *rows = Reader(page).tables["groups"]
    assert {"loss", "delta loss", "last task loss", "retention", "adapter size"} <= set(heads)
    assert "Token accuracy on the tasks seen, over tasks" in page and 'data-measure="token accuracy"' in page


@pytest.mark.skipif(BINARY is None, reason="no Chromium is installed (apt install chromium)")
def test_the_comparison_draws_losses_in_a_browser(study, tmp_path):
    page_of(study)
    with Browser(tmp_path / "profile") as browser:
        browser.open(study.parent / "runs.html")
        browser.wait(READY)
        read = 'document.getElementById("plot-{}").data.map((one) => [one.name, one.x, one.y])'
        assert browser.run(read.format("losses"))[1] == ["lora", [1, 2], [4, 4]]
        assert browser.run(read.format("rank_loss"))[1] == ["lora", [4, 16], [5.05, 4.55]]
        assert browser.run(read.format("rank_curve"))[1] == ["lora", [4, 16], [20, 40]]
        title = browser.run('document.getElementById("plot-accuracy").layout.yaxis.title.text')
        assert title == "token accuracy (%)" and not browser.errors
