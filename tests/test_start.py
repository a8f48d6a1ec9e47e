"""What is imported before the first training step, and how the process of the command begins and ends."""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
import threading
import types

import numpy as np
import pytest

from cl_runner import process
from cl_runner.benchmarks.sources import digits

NEEDED = {"cl_runner", "hydra", "hydra_plugins", "omegaconf", "antlr4", "rich", "safetensors", "torch", "cloudpickle"}
UNUSED = {"sklearn", "pandas", "joblib", "pyarrow", "peft", "open_clip", "plotly", "submitit", "ray", "datasets"}

FIRST_STEP = """
import os, sys
import torch, avalanche.training.supervised, avalanche.benchmarks, hydra  # what nothing can avoid
unavoidable = set(sys.modules)
from cl_runner.training import strategy

def first_step(self, **kwargs):
    next(iter(self.keeper.batches(self)))
    print(*sorted(set(sys.modules) - unavoidable), flush=True)
    os._exit(0)

strategy.LaneMixin.training_epoch = first_step
from cl_runner.cli import execute
execute(["quiet=true"])
"""


def test_the_quickstart_imports_what_it_uses(tmp_path):
    """Beyond torch, Avalanche (which imports matplotlib, wandb, transformers, ...) and Hydra: our own, and few others.

    `tests/test_house.py` has the same of --help and of refusals, where neither torch nor Avalanche is imported.
    """
    done = subprocess.run([sys.executable, "-c", FIRST_STEP], capture_output=True, text=True, check=False, cwd=tmp_path)
    modules = done.stdout.split()
    assert done.returncode == 0 and "cl_runner.learning" in modules, done.stderr
    roots = {name.split(".")[0] for name in modules} - sys.stdlib_module_names
    assert not roots & UNUSED
    assert {name for name in roots if not name.startswith("_")} <= NEEDED
    assert not {"cl_runner.reports.drawing", "cl_runner.planning", "cl_runner.training.trace"} & set(modules)


# --------------------------------------------------------------------------------------------------- the digits


def test_the_digits_are_scikit_learns(monkeypatch):
    from sklearn.datasets import load_digits

    expected = load_digits()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "sklearn.datasets", None)  # importing it is an error
        levels, labels = digits._bundled()
    np.testing.assert_array_equal(levels, expected.images)
    np.testing.assert_array_equal(labels, expected.target)
    assert levels.shape == (1797, 8, 8) and labels.dtype == np.int64


def test_digits_that_lie_elsewhere_are_scikit_learns_concern(monkeypatch, tmp_path):
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    expected = digits._bundled()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    for one, other in zip(digits._bundled(), expected, strict=True):
        np.testing.assert_array_equal(one, other)


# ------------------------------------------------------------------------------------- imports without a search


@pytest.fixture
def frozen(monkeypatch):
    """How often everything was left out of the search; nothing is."""
    found = []
    monkeypatch.setattr(gc, "freeze", lambda: found.append(gc.isenabled()))
    monkeypatch.setattr(process.atexit, "register", lambda function: None)
    yield found
    gc.enable()


def test_nothing_is_searched_while_torch_comes(monkeypatch, frozen):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    with process.importing():
        assert not gc.isenabled()
        monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    assert gc.isenabled() and frozen == [False]


def test_what_others_made_is_searched(monkeypatch, frozen):
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    with pytest.raises(ImportError), process.importing():
        raise ImportError
    assert gc.isenabled() and not frozen


def test_who_switched_the_search_off_keeps_it_off(monkeypatch, frozen):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    gc.disable()
    with process.importing():
        pass
    assert not gc.isenabled() and not frozen, "torch never came"


# ------------------------------------------------------------------------------------------------- how it ends

LEAVE = """
import atexit, sys, types
from cl_runner.process import leave

class Kept:
    def __del__(self):
        sys.stderr.write("taken apart")

kept = types.SimpleNamespace(itself=Kept())
if {heavy}:
    sys.modules["torch"] = types.ModuleType("torch")
atexit.register(lambda: sys.stdout.write("registered"))
sys.stdout.write("said ")
leave(3)
"""


@pytest.mark.parametrize("heavy", [True, False])
def test_the_process_ends_with_what_was_said_and_registered(heavy):
    """With torch nothing is taken apart, which takes Python 1.5 s; without it Python ends the process."""
    done = subprocess.run([sys.executable, "-c", LEAVE.format(heavy=heavy)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "said registered")
    assert ("taken apart" in done.stderr) is not heavy


class Left(BaseException):
    """The process has ended."""


@pytest.fixture
def hard(monkeypatch):
    """The codes with which the process ended at once."""
    codes = []

    def ended(code):
        codes.append(code)
        raise Left

    monkeypatch.setattr(os, "_exit", ended)
    monkeypatch.setattr(process.atexit, "_run_exitfuncs", lambda: None)
    monkeypatch.setitem(sys.modules, "torch", types.ModuleType("torch"))
    return codes


def test_the_code_is_passed_on(hard):
    with pytest.raises(Left):
        process.leave(130)
    assert hard == [130]


def test_a_thread_that_must_end_is_waited_for(hard):
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    try:
        with pytest.raises(SystemExit) as stopped:
            process.leave(1)
    finally:
        go.set()
        thread.join()
    assert stopped.value.code == 1 and not hard


def test_a_process_that_was_started_is_waited_for(hard, monkeypatch):
    monkeypatch.setattr("multiprocessing.active_children", lambda: ["a cell of a sweep"])
    with pytest.raises(SystemExit) as stopped:
        process.leave(0)
    assert stopped.value.code == 0 and not hard


def test_output_that_nobody_reads_is_left_to_python(hard, monkeypatch):
    def closed():
        raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", types.SimpleNamespace(flush=closed, write=len))
    with pytest.raises(SystemExit) as stopped:
        process.leave(0)
    assert stopped.value.code == 0 and not hard
