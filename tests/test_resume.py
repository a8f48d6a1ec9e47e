"""A run that is killed and taken up again is the run that nobody killed: strategies, adapters and options on images."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from resume_helpers import (
    EVERY_EPOCH,
    EVERY_STEP,
    EVERY_TASK,
    killed_at,
    resume,
    same_run,
    small,
    start,
    tormented,
)
from runs_helpers import table

from cl_runner.errors import RequestError
from cl_runner.keeping.reading import last_of

pytestmark = pytest.mark.usefixtures("hurried")
THREE = (
    "trainer.epochs=2", "benchmark.per_class=8", "benchmark.n_tasks=3", "benchmark.first_task_classes=4",
    "benchmark.augmentation=crop", "backbone.width=4", "optimizer=adam", "adapter=none",
)  # fmt: skip
ALL = ("1.1.1", "2.evaluate", "3.1.2", "3.2.1")
MEMORY = "strategy.mem_size=20"
VALIDATION = "benchmark.validation_fraction=0.2"
SCHEDULE = ("adapter.rank=4", "adapter.rank_schedule=[4,2]")
CODYRA = ("adapter=codyra", "adapter.rank=4", "adapter.kappa_max=1.0")
SHARED = ("adapter=lora", "adapter.rank=2", "adapter.sharing=shared")


def tiny(*overrides: str) -> tuple[str, ...]:
    """Three small tasks, with some of the settings replaced."""
    given = {item.split("=")[0] for item in overrides}
    if given & {"trainer.iterations", "trainer.task_epochs"}:
        given.add("trainer.epochs")
    return small(*[item for item in THREE if item.split("=")[0] not in given], *overrides)


def case(*typed: str, places: tuple[str, ...] = ("3.2.1",), interval: tuple[str, ...] = EVERY_STEP) -> object:
    name = "-".join(item.rpartition("=")[2] for item in typed)
    return pytest.param(typed, places, interval, id=f"{name}-{interval[-1].rpartition('=')[2]}")


BOTH_ENDS = ("1.2.end", "2.trained", "2.evaluated", "3.2.1")
CASES = [
    # every strategy: at the very first step, before an evaluation, in the middle of an epoch, after one
    *(case(f"strategy={name}", places=ALL) for name in ("naive", "ewc", "lwf", "si", "cumulative")),
    case("strategy=ewc", "strategy.variant=online", "strategy.decay_factor=0.5", places=ALL),
    *(case(f"strategy={name}", MEMORY, places=ALL) for name in ("replay", "gem", "agem", "icarl")),
    case("strategy=der", MEMORY, "strategy.batch_size_mem=8", places=ALL),
    case("strategy=joint", places=("1.1.1", "1.2.2", "3.evaluate")),
    # with checkpoints at the ends of epochs, or of tasks
    *(case(f"strategy={name}", MEMORY, places=BOTH_ENDS, interval=EVERY_EPOCH) for name in ("agem", "icarl")),
    case("strategy=der", MEMORY, "strategy.batch_size_mem=8", places=BOTH_ENDS, interval=EVERY_EPOCH),
    case("strategy=replay", MEMORY, places=BOTH_ENDS, interval=EVERY_TASK),
    case("adapter=dylora", *SCHEDULE, places=BOTH_ENDS, interval=EVERY_EPOCH),
    # every adapter
    case("adapter=convlora", "adapter.rank=1", places=("2.1.2", "3.2.1")),
    case("adapter=convlora_cp", "adapter.rank=1", places=("2.1.2", "3.2.1")),
    case(*SHARED, places=("2.1.2", "3.2.1")),
    case("adapter=lora", "adapter.rank=2", "adapter.sharing=per_task", "strategy=ewc", places=("2.1.2", "3.2.1")),
    case("adapter=dylora", *SCHEDULE, "adapter.schedule_from=2", places=("1.trained", "2.2.end", "3.1.2")),
    case("adapter=dylora", "adapter.rank=4", "adapter.training=random_rank", "adapter.eval_ranks=[1,2]",
         "adapter.eval_ranks_at=every_task", places=("2.evaluated", "3.2.1")),
    case("adapter=dclora", "adapter.rank=2", places=("2.1.2", "3.2.1")),
    case("adapter=hybrid", *SCHEDULE, places=("2.2.end", "3.1.2", "3.2.2")),
    case(*CODYRA, places=("2.1.2", "3.2.1")),
    case("adapter=senacnn", "adapter.branch_init=scratch", places=("2.1.2", "3.2.1")),
    case("adapter=peft", places=("2.1.2", "3.2.1")),
    # adapters with strategies
    case("adapter=convlora", "adapter.rank=1", "strategy=gem", MEMORY, places=("2.1.2",)),
    case(*SHARED, "strategy=der", MEMORY, "strategy.batch_size_mem=8"),
    case(*SHARED, "strategy=icarl", MEMORY),
    case("adapter=dylora", *SCHEDULE, "strategy=lwf"),
    case(*CODYRA, "strategy=si", places=("2.1.2",)),  # whose copies of weights saw what was merged into them
    # options
    case("trainer.reset_optimizer=false"),
    case("trainer.reset_optimizer=false", "scheduler=cosine", "optimizer=sgd", "optimizer.momentum=0.9"),
    case("scheduler=multistep", "scheduler.milestones=[1]", interval=EVERY_EPOCH),
    case("scheduler=plateau", "scheduler.patience=0", "optimizer.lr=0.1", VALIDATION, "trainer.epochs=3"),
    case("trainer.patience=1", "trainer.epochs=6", "optimizer.lr=0.05", "trainer.restore_best=false", VALIDATION,
         places=("2.trained", "3.1.2")),
    case("trainer.patience=1", "trainer.epochs=6", "optimizer.lr=0.05", VALIDATION, places=("2.trained", "3.trained"),
         interval=EVERY_EPOCH),
    case("trainer.iterations=5", "strategy=replay", MEMORY, places=("3.1.2",)),
    case("trainer.channels_last=true", "strategy=ewc"),
    case("trainer.precision=bfloat16", "trainer.task_epochs=[1,2,2]", "benchmark.augmentation=crop_flip"),
    case("benchmark.task_labels=false", "adapter=convlora", "adapter.rank=1", "adapter.task_inference=prototype",
         places=("2.trained", "3.1.2")),
    case("evaluate=seen", "trainer.label_smoothing=0.1"),
    case("evaluate=last", places=("2.trained", "3.evaluate")),
    case("backbone.head=per_task", "backbone.head_classes=task"),
    case("on_nan=skip", "optimizer=sgd", "optimizer.lr=1e9", "optimizer.weight_decay=1", places=("1.2.1", "3.2.1")),
]  # fmt: skip


@pytest.mark.parametrize(("typed", "places", "interval"), CASES)
def test_a_run_that_was_killed_is_the_same_run(typed, places, interval, calm, tmp_path):
    found, steps = tormented(tmp_path, tiny(*typed), places, interval)
    same_run(calm(*tiny(*typed)), found)
    last = places[-1]
    if last[-1].isdigit():
        assert steps[0] == (f"{last[0]}.1.1" if interval == EVERY_TASK else last), "what was done is done again"
    elif interval != EVERY_TASK:
        assert not steps or steps[0][0] > last[0], "what was done is done again"
    if "on_nan=skip" in typed:
        assert json.loads((found / "summary.json").read_text())["skipped_steps"] > 1


def test_each_interval_keeps_what_it_promises(tmp_path):
    expected = {
        EVERY_STEP: "task 2, epoch 2, step 1",
        EVERY_EPOCH: "task 2, after epoch 1",
        EVERY_TASK: "after task 1, evaluated",
    }
    for number, (interval, where) in enumerate(expected.items()):
        folder = killed_at("2.2.2", tmp_path / str(number), tiny(), interval)
        assert last_of(folder, pytest.fail).where.endswith(where)


def test_a_table_of_metrics_has_every_row_once(calm, tmp_path):
    typed = tiny("tracking=csv")
    found, _ = tormented(tmp_path, typed, ("2.evaluate", "3.1.2", "3.2.1"), EVERY_EPOCH)
    expected, rows = ([{**row, "time": ""} for row in table(run / "metrics.csv")] for run in (calm(*typed), found))
    timed = ("seconds", "wall_seconds", "train_images_per_second", "peak_memory_bytes")
    assert [row["name"] for row in rows] == [row["name"] for row in expected] and len(rows) > 50
    assert [row for row in rows if row["name"] not in timed] == [row for row in expected if row["name"] not in timed]


# -------------------------------------------------------------------------------------------- parts of one's own


@pytest.mark.parametrize(
    "typed",
    [
        ("adapter._target_=own_parts.Offsets",),
        ("adapter._target_=own_parts.Fading",),
        ("strategy._target_=own_parts.Decaying", "+strategy.tells=true"),
    ],
)
def test_a_class_of_ones_own_goes_on(typed, calm, tmp_path):
    found, steps = tormented(tmp_path, tiny(*typed), ("2.1.2", "3.2.1"))
    assert steps[0] == "3.2.1"
    same_run(calm(*tiny(*typed)), found)


def test_a_plugin_that_says_nothing_of_its_memory_makes_a_run_start_over(calm, tmp_path, capsys):
    typed = tiny("strategy._target_=own_parts.Decaying", "+strategy.tells=false")
    folder = killed_at("2.1.2", tmp_path, typed)
    assert "no checkpoints: Decay has no method `memory`" in capsys.readouterr().err
    assert not list(folder.glob("checkpoints/*"))
    found, steps = tormented(tmp_path, typed, ())
    assert steps[0] == "1.1.1" and found == folder
    for part in ("accuracy_matrix.csv", "layers.csv"):
        assert (found / part).read_text() == (calm(*typed) / part).read_text()


# ----------------------------------------------------------------------------------------------------- refusals


def test_checkpoints_that_are_whole_are_not_thrown_away_for_a_damaged_log(tmp_path):
    folder = killed_at("2.1.2", tmp_path, tiny("strategy=naive"))
    log = folder / "events.jsonl"
    written, before = log.read_bytes(), {place: place.read_bytes() for place in folder.glob("checkpoints/*")}
    log.write_bytes(b"#" + written[1:])
    with pytest.raises(RequestError, match="its checkpoints are whole .* but events.jsonl is not what it was"):
        resume(folder)
    assert {place: place.read_bytes() for place in folder.glob("checkpoints/*")} == before
    log.write_bytes(written)
    assert resume(folder).summary["status"] == "done"


def test_a_configuration_edited_by_hand_is_refused(tmp_path):
    folder = killed_at("2.1.2", tmp_path, tiny("strategy=ewc"))
    place = folder / "config.yaml"
    written = place.read_text()
    place.write_text(written.replace("ewc_lambda: 100.0", "ewc_lambda: 7.0"))
    before = {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(RequestError, match=r"strategy.ewc_lambda was 100.0 and is 7.0\n.*config.yaml"):
        resume(folder)
    assert {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    place.write_text(written.replace("quiet: true", "quiet: false").replace("log_every: 1", "log_every: 2"))
    assert resume(folder).summary["status"] == "done", "what does not matter may change"


@pytest.mark.parametrize("how", ["another label", "an image more"])
def test_other_data_is_refused(how, tmp_path):
    data, rng = tmp_path / "data", np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        for label in range(4):
            (data / part / f"class_{label}").mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(data / part / f"class_{label}" / f"{number}.png")
    typed = [
        item
        for item in tiny("benchmark=split_folder", f"benchmark.root={data}", "benchmark.image_size=8")
        if "first_task_classes" not in item and "n_tasks" not in item and "per_class" not in item
    ]
    folder = killed_at("2.1.1", tmp_path / "runs", (*typed, "benchmark.n_tasks=2", f"data_root={tmp_path}"))
    source, target = data / "train" / "class_0" / "5.png", data / "train" / "class_1" / "6.png"
    (shutil.move if how == "another label" else shutil.copy)(source, target)
    with pytest.raises(RequestError, match="resume: the data is not what it was when the run began\nput it back"):
        resume(folder)
    target.unlink()
    if how == "another label":
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(source)
    assert resume(folder).summary["status"] == "done"


def test_what_was_damaged_or_never_written_is_started_over(calm, tmp_path, capsys):
    typed = tiny("strategy=lwf")
    folder = killed_at("2.1.2", tmp_path, typed)
    for place in folder.glob("checkpoints/*.json"):
        place.write_bytes(place.read_bytes()[:-9])
    found, steps = tormented(tmp_path, typed, ())
    assert steps[0] == "1.1.1" and "the run starts over" in capsys.readouterr().err
    same_run(calm(*typed), found)
    before = json.loads((found / "summary.json").read_text())
    assert resume(found).summary == before, "what is done is done"
    assert start(tmp_path / "again", typed).folder != found
