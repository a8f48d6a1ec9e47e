"""The adapter of docs/add-an-adapter.md, run as the page says."""

from __future__ import annotations

import csv
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from cl_runner.cli import execute
from cl_runner.reports.cli import main as report

PAGE = (Path(__file__).parent.parent / "docs" / "add-an-adapter.md").read_text(encoding="utf-8")
SMALL = ["trainer.epochs=1", "benchmark.per_class=20", "trainer.threads=1", "quiet=true"]


def block(section: str, language: str = "") -> str:
    """The first code block of a section of the page."""
    found = re.search(rf"^## {section}.*?```{language}\n(.*?)```", PAGE, re.S | re.M)
    assert found is not None
    return found.group(1)


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    (tmp_path / "my" / "adapter").mkdir(parents=True)
    (tmp_path / "my" / "adapter" / "kron.yaml").write_text(block("1", "yaml"))
    (tmp_path / "my" / "my_kron.py").write_text(block("2", "python"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_kron", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_is_a_working_method_without_forgetting(own_folder):
    assert len((own_folder / "my" / "my_kron.py").read_text().splitlines()) < 60
    assert execute(["--config-dir", "my", "adapter=kron", "output_root=out", *SMALL]) == 0
    summary = json.loads(next(own_folder.rglob("summary.json")).read_text())
    assert summary["adapter"] == "kron"
    assert summary["forgetting"] == 0.0
    # small_cnn of width 32 on grey digits, 32 x 9 and 64 x 288 weights; A is 4 x 3 and 4 x 4, on tasks 2 to 5
    per_task = 4 * 3 + (32 // 4) * (9 // 3) + 4 * 4 + (64 // 4) * (288 // 4)
    rows = list(csv.DictReader(next(own_folder.rglob("parameters.csv")).open()))
    assert int(rows[-1]["adapter"]) == 4 * per_task


def test_every_command_of_the_page_runs(own_folder, capsys):
    lines = block("3").splitlines()
    assert len(lines) == 5
    for line in lines:
        command, *typed = shlex.split(line)
        if command == "cl-report":
            assert report(typed) == 0
        else:
            assert execute([*typed, *SMALL]) == 0
    shown = capsys.readouterr().out
    assert "kron" in shown and "convlora" in shown and "adapter.strength=0.1" in shown


def test_its_penalty_holds_the_factors_down(own_folder):
    norms = []
    for strength in (0, 10):
        typed = ["adapter=kron", f"adapter.strength={strength}", f"output_root=out{strength}"]
        assert execute(["--config-dir", "my", *typed, *SMALL, "trainer.epochs=5"]) == 0
        layers = list(csv.DictReader(next((own_folder / f"out{strength}").rglob("layers.csv")).open()))
        norms.append(sum(float(row["delta_norm"]) for row in layers))
    assert norms[1] < 0.5 * norms[0]


def test_the_pages_own_test_passes(own_folder):
    sys.path.insert(0, str(own_folder / "my"))
    space: dict = {}
    exec(compile(block("5", "python"), "the page", "exec"), space)
    space["test_kron_starts_at_the_base_and_merges_exactly"]()


@pytest.mark.parametrize(
    ("typed", "named"),
    [("adapter.blocks=abc", "adapter.blocks"), ("adapter.blcks=3", "blocks"), ("adapter=kro", "kron")],
)
def test_its_keys_are_checked_against_its_constructor(own_folder, capsys, typed, named):
    chosen = [] if typed.startswith("adapter=") else ["adapter=kron"]
    assert execute(["--config-dir", "my", *chosen, typed, *SMALL]) == 2
    assert named in capsys.readouterr().err
