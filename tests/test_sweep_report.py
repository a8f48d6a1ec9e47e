"""What a sweep leaves besides its cells, and studies: experiments that carry their sweep."""

from __future__ import annotations

import gc
import json
import weakref
from pathlib import Path

import pytest
import yaml
from hydra.core.plugins import Plugins
from sweep_helpers import CELLS, QUICK, cells, rows

from cl_runner import cli, learning, runner

pytestmark = pytest.mark.usefixtures("elsewhere")


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
    assert not list(CELLS.glob("plots/*")), "figures are for experiments that ask for them"


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
        stability, plasticity = map(float, second.split(",")[1:])
        assert (float(row["stability"]), float(row["plasticity"])) == (stability, plasticity) and first
    assert (folder / "plots" / "probe.png").read_bytes()[:4] == b"\x89PNG"
    shown = capsys.readouterr().out
    assert "cell 2: placement=last_half" in shown and "task 1" not in shown, "one line a cell"
    assert str(folder / "probe.csv") in shown and str(folder / "plots" / "probe.png") in shown
