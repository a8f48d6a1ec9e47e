"""The adapter of docs/architecture.md, run as the page says."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from cl_runner.cli import execute

PAGE = Path(__file__).parent.parent / "docs" / "architecture.md"
SMALL = ["trainer.epochs=1", "benchmark.per_class=20", "trainer.threads=1", "quiet=true"]


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    page = PAGE.read_text(encoding="utf-8")
    code = re.search(r"## Your own adapter.*?```python\n(.*?)```", page, re.S)
    assert code is not None
    (tmp_path / "my" / "adapter").mkdir(parents=True)
    (tmp_path / "my" / "adapter" / "lora.yaml").write_text("_target_: my_lora.LoRA\nrank: 2\n")
    (tmp_path / "my" / "my_lora.py").write_text(code.group(1))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_lora", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_is_a_working_method_without_forgetting(own_folder):
    assert len((own_folder / "my" / "my_lora.py").read_text().splitlines()) < 60
    assert execute(["--config-dir", "my", "adapter=lora", "output_root=out", *SMALL]) == 0
    summary = json.loads(next(own_folder.rglob("summary.json")).read_text())
    assert summary["adapter"] == "lora"
    assert summary["forgetting"] == 0.0
    # small_cnn of width 32 on grey digits: rank * (c_out + c_in * 3 * 3) for its two convolutions, on tasks 2 to 5
    per_task = 2 * (32 + 1 * 9) + 2 * (64 + 32 * 9)
    rows = next(own_folder.rglob("parameters.csv")).read_text().splitlines()
    assert int(rows[-1].split(",")[rows[0].split(",").index("adapter")]) == 4 * per_task


@pytest.mark.parametrize(("typed", "named"), [("adapter.rank=abc", "adapter.rank"), ("adapter.rnk=3", "rank")])
def test_its_keys_are_checked_against_its_constructor(own_folder, capsys, typed, named):
    assert execute(["--config-dir", "my", "adapter=lora", typed, *SMALL]) == 2
    assert named in capsys.readouterr().err
