"""The small edition of scripts/chaos.py: runs that are killed and resumed are those that nobody interrupted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parent.parent / "scripts" / "chaos.py"
CASES = ("replay+none", "ewc+codyra", "gem+convlora")


def test_killed_runs_are_those_that_nobody_interrupted(tmp_path):
    command = [sys.executable, str(SCRIPT), "--kills", "3", "--seed", "5", "--json", str(tmp_path / "chaos.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--cases", *CASES], capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "chaos.json").read_text())
    assert [case["name"] for case in found] == list(CASES)
    assert all(case["differences"] == [] and case["done"] == case["steps"] for case in found)
    assert sum(case["kills"] for case in found) >= 5, "hardly anything was killed"
    assert all(case["most_again"] < case["steps"] / 2 for case in found), "an attempt started over"
