"""Sweeps: what a cell is called, what a second call skips and starts over, what a sweep leaves besides its cells."""

from __future__ import annotations

import copy
import csv
import gc
import json
import logging
import subprocess
import sys
import weakref
from pathlib import Path

import pytest
import yaml
from hydra.core.plugins import Plugins
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_runner import cli, learning, runner
from cl_runner.config.checks import settle
from cl_runner.config.compose import compose
from cl_runner.config.identity import IDLE, cell_hash

QUICK = [
    "trainer.epochs=1", "benchmark.per_class=5", "benchmark.n_tasks=2", "backbone.width=4", "trainer.device=cpu",
    "strategy=naive",
]  # fmt: skip
CELLS = Path("outputs/sweeps/quickstart")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test works in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CL_DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


@pytest.fixture
def learned(monkeypatch):
    """The configurations of all runs that train from now on."""
    seen = []
    learn = learning.learn

    def watch(config, *args, **options):
        seen.append(config)
        return learn(config, *args, **options)

    monkeypatch.setattr(learning, "learn", watch)
    return seen


def cells() -> dict[int, Path]:
    """The cells on disk by their seed."""
    return {yaml.safe_load(file.read_text())["seed"]: file.parent for file in CELLS.glob("*/config.yaml")}


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in files}


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as stream:
        return list(csv.DictReader(stream))


# ------------------------------------------------------------------------------------------ the name of a cell

PLAIN = {
    "mode": "train", "seed": 0, "output_root": "outputs", "quiet": False, "data_root": None, "resume": None,
    "adapter": {"rank": 4, "alpha": None}, "trainer": {"device": "auto", "threads": None, "epochs": 2},
    "tracking": {"csv": False},
}  # fmt: skip


def shuffled(node, order):
    """The same mapping with its keys in another order, all the way down."""
    if not isinstance(node, dict):
        return node
    keys = sorted(node, key=lambda key: order.random())
    return {key: shuffled(node[key], order) for key in keys}


@given(st.randoms())
def test_the_order_of_keys_says_nothing(order):
    assert cell_hash(shuffled(PLAIN, order)) == cell_hash(PLAIN)


@settings(max_examples=25)
@given(st.sampled_from(IDLE), st.none() | st.booleans() | st.integers() | st.text(max_size=5))
def test_where_a_run_computes_says_nothing(path, value):
    *parents, leaf = path.split(".")
    other = copy.deepcopy(PLAIN)
    node = other[parents[0]] if parents else other
    node[leaf] = value
    assert cell_hash(other) == cell_hash(PLAIN)


@settings(max_examples=25)
@given(st.dictionaries(st.sampled_from(["seed", "rank", "device", "epochs"]), st.integers(0, 3)), st.data())
def test_two_requests_share_a_name_only_where_they_are_equal(content, data):
    other = data.draw(st.just(content) | st.fixed_dictionaries({key: st.integers(0, 3) for key in content}))
    for place in ("adapter", "benchmark"):  # `device` counts but in the trainer's group
        assert (cell_hash({place: content}) == cell_hash({place: other})) == (content == other)


def test_a_name_is_the_same_in_every_process_and_for_every_way_of_saying_it():
    typed = ["adapter.rank=3", "optimizer.lr=0.01"]
    config = settle(compose(typed))
    name = cell_hash(config)
    assert len(name) == 12 and set(name) <= set("0123456789abcdef")
    assert cell_hash(settle(compose(["optimizer.lr=1e-2", "adapter.rank=${seed}", "seed=3"]))) != name
    assert cell_hash(settle(compose(["optimizer.lr=1e-2", "adapter.rank=3", "adapter=convlora"]))) == name
    code = f"""from cl_runner.config.compose import compose
from cl_runner.config.checks import settle
from cl_runner.config.identity import cell_hash
print(cell_hash(settle(compose({typed!r}))))"""
    environment = {"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.strip() == name


@pytest.mark.parametrize(
    ("typed", "same"),
    [
        (["output_root=elsewhere"], True),
        (["quiet=true"], True),
        (["data_root=/x"], True),
        (["tracking=csv"], True),
        (["trainer.device=cpu", "trainer.threads=2"], True),
        (["seed=1"], False),
        (["adapter.rank=5"], False),
        (["placement=last_half"], False),
        (["trainer.precision=bfloat16"], False),
        (["evaluate=last"], False),
    ],
    ids=lambda item: " ".join(item) if isinstance(item, list) else "",
)
def test_what_changes_a_result_changes_the_name(typed, same):
    assert (cell_hash(settle(compose(typed))) == cell_hash(settle(compose([])))) == same


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
    assert cli.execute(["-m", "seed=0,1,2", *quick, "trainer.threads=1"]) == 0
    assert [config.seed for config in learned[2:]] == [1, 2], "seed 0 is done"
    after = cells()
    assert contents(after[0]) == before[0], "not a file of it was touched"
    assert after[1] == unfinished and (unfinished / "DONE").exists() and not (unfinished / "error.txt").exists()
    events = [json.loads(line)["event"] for line in (unfinished / "events.jsonl").read_text().splitlines()]
    assert events.count("run_started") == 1 and "left over" not in events, "started over, not appended to"
    config = yaml.safe_load((unfinished / "config.yaml").read_text())
    assert config["trainer"]["threads"] == 1, "as this attempt ran"
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


def test_bad_cells_do_not_stop_the_others_and_are_named_at_the_end(capsys):
    """adapter.rank=0 is refused (2), a learning rate of 1e30 fails (1): the good cell between them is done."""
    arguments = ["-m", "adapter=none", "optimizer=sgd", "optimizer.lr=-1,0.01,1e30", "trainer.epochs=2", *QUICK[1:]]
    assert cli.execute([*arguments, "quiet=true"]) == 2
    done = [file.parent for file in CELLS.glob("*/DONE")]
    assert [yaml.safe_load((folder / "config.yaml").read_text())["optimizer"]["lr"] for folder in done] == [0.01]
    assert len(rows(CELLS / "table.csv")) == 1, "the cell that failed has no place in the table"
    *_, heading, first, second = capsys.readouterr().err.splitlines()
    assert "2 of 3 cells" in heading
    assert first.startswith("        optimizer.lr=-1: ") and "not possible" in first
    assert second.startswith("        optimizer.lr=1e+30: the run failed: ")
    assert "cl-run" not in first + second and "epochs" not in first


def test_a_mistake_of_ours_in_one_cell_does_not_stop_the_others(monkeypatch, learned):
    """It ends with its traceback (exit code 1), and is not told as the user's; the next cell still runs."""
    run = runner.run

    def broken(config, **options):
        if config.seed == 0:
            raise KeyError("ours")
        return run(config, **options)

    monkeypatch.setattr(runner, "run", broken)
    with pytest.raises(KeyError, match="ours"):
        cli.execute(["-m", "seed=0,1", *QUICK, "quiet=true"])
    assert [config.seed for config in learned] == [1] and (cells()[1] / "DONE").exists()


# ------------------------------------------------------------------------------------------- what a sweep leaves


def test_the_table_has_the_cells_of_this_sweep_alone(capsys):
    assert cli.execute(["-m", "adapter.rank=1,2", "seed=0,1", *QUICK, "quiet=true"]) == 0
    table = rows(CELLS / "table.csv")
    assert [(row["settings"], row["seeds"]) for row in table] == [("adapter.rank=1", "2"), ("adapter.rank=2", "2")]
    accs = [
        json.loads((file.parent / "summary.json").read_text())["acc"]
        for file in CELLS.glob("*/config.yaml")
        if yaml.safe_load(file.read_text())["adapter"]["rank"] == 1
    ]
    assert float(table[0]["acc"]) == pytest.approx(sum(accs) / 2) and len(accs) == 2
    capsys.readouterr()
    assert cli.execute(["-m", "adapter.rank=2", "seed=1", *QUICK]) == 0
    (row,) = rows(CELLS / "table.csv")
    assert row["seeds"] == "1"
    shown = capsys.readouterr().out
    assert "cell 1: " in shown and "acc %" in shown and str(CELLS / "table.csv") in shown
    assert not list(CELLS.rglob("*.png")), "figures are for experiments that ask for them"


def test_plans_are_no_cells(capsys):
    assert cli.execute(["-m", "mode=plan", "adapter.rank=1,2", "quiet=true"]) == 0
    assert not CELLS.exists() and len(list(Path("outputs/quickstart").glob("*/parameters.csv"))) == 2


def test_a_table_that_cannot_be_written_is_said(capsys):
    (CELLS / "table.csv").mkdir(parents=True)
    assert cli.execute(["-m", "seed=0", *QUICK, "quiet=true"]) == 2
    message = capsys.readouterr().err
    assert str(CELLS / "table.csv") in message and "Traceback" not in message
    assert (cells()[0] / "DONE").exists()


def test_networks_of_earlier_cells_are_not_kept(monkeypatch):
    alive = []
    learn = learning.learn

    def watch(*args, **options):
        gc.collect()
        assert not [one for one in alive if one() is not None], "an earlier cell's network is still in memory"
        result = learn(*args, **options)
        alive.append(weakref.ref(result.network))
        return result

    monkeypatch.setattr(learning, "learn", watch)
    assert cli.execute(["-m", "seed=0,1", *QUICK, "quiet=true"]) == 0
    assert len(alive) == 2


def test_cl_run_names_the_folders_of_a_sweep(capsys):
    assert cli.execute(["-m", "hydra.sweep.dir=mine", "seed=0", "mode=plan"]) == 2
    assert "hydra.sweep.dir has no use here" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- the study

STUDY = "rank_placement_probe"


def test_a_study_carries_its_sweep_and_typed_values_win(monkeypatch, learned):
    """Of the cells that Hydra makes of the study and the command line only the first is run here."""
    made = []
    basic = Plugins.instance().class_name_to_class["hydra._internal.core_plugins.basic_sweeper.BasicSweeper"]
    split = basic.split_arguments

    def first_only(overrides, max_batch_size):
        (batch,) = split(overrides, max_batch_size)
        made[:] = [dict(item.split("=") for item in cell) for cell in batch]
        return [batch[:1]]

    monkeypatch.setattr(basic, "split_arguments", staticmethod(first_only))
    monkeypatch.setattr(learning, "learn", lambda config, *_, **__: learned.append(config) or runner.RunResult("x", {}))

    def cells_of_study(*typed):
        assert cli.execute([*typed, f"+experiment={STUDY}", "hydra.callbacks.sweep_report.quiet=true"]) == 0
        return [(int(one["adapter.rank"]), one["placement"], int(one["seed"])) for one in made]

    parts = ("all", "first_half", "last_half")
    assert cells_of_study("-m") == [(r, p, s) for r in (1, 2, 4, 8, 16) for p in parts for s in (0, 1, 2)]
    assert cells_of_study("-m", "adapter.rank=3,5", "placement=last_half", "seed=7", "adapter=convlora") == [
        (3, "last_half", 7),
        (5, "last_half", 7),
    ]
    assert (learned[-1].adapter.rank, learned[-1].placement.part, learned[-1].seed) == (3, "last_half", 7)
    assert learned[-1].adapter._target_.endswith("ConvLoRA")
    made.clear()
    assert cells_of_study() == [] and len(learned) == 3, "without -m a single run of its defaults"


def test_the_probe_leaves_its_table_and_figure(capsys):
    typed = ["adapter.rank=2", "placement=all,last_half", "seed=0", "trainer.epochs=1", "benchmark.per_class=5"]
    assert cli.execute(["-m", f"+experiment={STUDY}", *typed, "backbone.width=4"]) == 0
    folder = Path("outputs/sweeps") / STUDY
    table = rows(folder / "probe.csv")
    assert [(row["rank"], row["placement"]) for row in table] == [("2", "all"), ("2", "last_half")]
    for row in table:
        (cell,) = [
            file.parent
            for file in folder.glob("*/overrides.yaml")
            if {f"adapter.rank={row['rank']}", f"placement={row['placement']}"} <= set(yaml.safe_load(file.read_text()))
        ]
        _, _, first, second = (cell / "accuracy_matrix.csv").read_text().splitlines()
        kept, learned = map(float, second.split(",")[1:])
        assert (float(row["stability"]), float(row["plasticity"])) == (kept, learned) and first
    assert (folder / "plots" / "probe.png").read_bytes()[:4] == b"\x89PNG"
    shown = capsys.readouterr().out
    assert "cell 2: placement=last_half" in shown and "task 1" not in shown, "one line a cell"
    assert str(folder / "probe.csv") in shown and str(folder / "plots" / "probe.png") in shown
