"""A run that ends for want of memory names the settings to change."""

from __future__ import annotations

import errno
import subprocess
import sys

import numpy as np
import pytest
import torch
from runs_helpers import settled

from cl_runner.faults import explain

CUDA = "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1 GiB is free."
CPU = "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 400000000000 bytes. Error code 12 (Cannot allocate memory)"  # noqa: E501
TRAIN = ("/site/cl_runner/learning.py", "_train")
LOOP = ("/site/avalanche/training/templates/base.py", "train")
EVALUATE = ("/site/cl_runner/evaluation.py", "evaluate")
VALIDATE = ("/site/cl_runner/training/monitor.py", "_validate")
GEM = ("/site/avalanche/training/plugins/gem.py", "before_training_iteration")
STORE = ("/site/cl_runner/benchmarks/store.py", "_moved")
RIDGE = ("/site/cl_runner/strategies/ridge.py", "add")
PREPARE = ("/site/cl_runner/learning.py", "_prepare")


def raised(error: BaseException, *frames: tuple[str, str]) -> BaseException:
    """The error as it comes out of functions of these files and names, the outermost first."""

    def innermost() -> None:
        raise error

    call = innermost
    for file, name in reversed(frames):
        place: dict = {"inner": call}
        exec(compile(f"def {name}():\n    inner()", file, "exec"), place)
        call = place[name]
    try:
        call()
    except BaseException as caught:
        return caught
    raise AssertionError("nothing was raised")


@pytest.fixture(scope="module")
def config():
    return settled("strategy=gem", "trainer.batch_size=64", "strategy.mem_size=500", "trainer.eval_batch_size=512")


@pytest.mark.parametrize(
    ("frames", "first", "second"),
    [
        ([TRAIN, LOOP], ["device memory in training", "trainer.batch_size=64"], ["trainer.batch_size=32", "bfloat16"]),
        ([EVALUATE, LOOP], ["in evaluation", "eval_batch_size=512"], ["trainer.eval_batch_size=256"]),
        ([TRAIN, LOOP, VALIDATE], ["in evaluation"], ["trainer.eval_batch_size=256"]),
        ([TRAIN, LOOP, GEM], ["samples that the strategy keeps", "mem_size=500"], ["strategy.mem_size=250"]),
        ([PREPARE, STORE], ["data went to the device"], ["trainer.data_placement=host"]),
        ([PREPARE], ["in setting up"], ["trainer.precision=bfloat16"]),
        ([], ["in setting up"], ["trainer.precision=bfloat16"]),
    ],
)
def test_the_setting_belongs_to_the_place(config, frames, first, second):
    lines = explain(raised(torch.cuda.OutOfMemoryError(CUDA), *frames), config).splitlines()
    assert len(lines) == 2
    assert all(word in lines[0] for word in [*first, "asked for 2.50 GiB more"]), lines
    assert all(word in lines[1] for word in second), lines
    assert ("trainer.batch_size" in lines[1]) is (frames == [TRAIN, LOOP])


def test_a_number_of_samples_that_nobody_chose_is_named_too():
    error, here = torch.cuda.OutOfMemoryError(CUDA), settled()
    assert "try trainer.eval_batch_size=64" in explain(raised(error, EVALUATE, LOOP), here)
    told = explain(raised(MemoryError(), EVALUATE, LOOP), here)
    assert "eval_batch_size=64" in told and "trainer.eval_batch_size=32" in told


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError(CUDA),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB). Tried to allocate 1.50 GB on private pool."),
    ],
)
def test_a_device_is_told_from_the_machine(config, error):
    assert explain(raised(error, TRAIN), config).startswith("out of device memory in training")


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(CPU),
        MemoryError(),
        np._core._exceptions._ArrayMemoryError((10**12,), np.dtype("float64")),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_main_memory(config, error):
    told = explain(raised(error, TRAIN), config)
    assert told.startswith("out of main memory in training") and "trainer.batch_size=32" in told
    assert "data_placement" not in told  # the images are there already


def test_an_import_is_no_evaluation(config):
    place: dict = {"error": MemoryError()}
    try:
        exec(compile("raise error", "/site/cl_runner/evaluation.py", "exec"), place)
    except MemoryError as error:
        assert "in setting up" in explain(error, config)


def test_the_amount_is_told():
    config = settled()
    assert "asked for 400000000000 bytes more" in explain(raised(RuntimeError(CPU), TRAIN), config)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        OSError(errno.ENOSPC, "No space left on device"),
        ValueError("out of memory is only a word here"),
        KeyboardInterrupt(),
    ],
)
def test_other_errors_are_not_explained(config, error):
    assert explain(raised(error, TRAIN), config) is None


def test_an_error_that_was_raised_over_it(config):
    try:
        try:
            raise raised(torch.cuda.OutOfMemoryError(CUDA), GEM)
        except RuntimeError as error:
            raise ValueError("the step failed") from error
    except ValueError as wrapped:
        assert "strategy.mem_size=250" in explain(wrapped, config)


@pytest.mark.parametrize(
    ("overrides", "frames", "there", "absent"),
    [
        (["trainer.batch_size=1"], [TRAIN], ["trainer.precision=bfloat16"], ["batch_size"]),
        (["trainer.precision=bfloat16"], [TRAIN], ["data_placement=host"], ["precision"]),
        (["trainer.data_placement=host"], [TRAIN], ["batch_size=8"], ["data_placement"]),
        (["strategy=replay", "strategy.batch_size_mem=40"], [TRAIN], ["strategy.batch_size_mem=20"], []),
    ],
)
def test_only_what_would_help_is_proposed(overrides, frames, there, absent):
    proposal = explain(raised(torch.cuda.OutOfMemoryError(CUDA), *frames), settled(*overrides)).splitlines()[1]
    assert all(word in proposal for word in there) and not any(word in proposal for word in absent), proposal


def test_language_models_and_regressions():
    text = {"trainer": {"batch_size": 8, "precision": "bfloat16"}, "backbone": {"gradient_checkpointing": False}}
    assert "backbone.gradient_checkpointing=true" in explain(raised(torch.cuda.OutOfMemoryError(CUDA), TRAIN), text)
    rail = {"strategy": {"hidden": 15000, "dtype": "float32"}}
    assert "strategy.hidden=7500" in explain(raised(torch.cuda.OutOfMemoryError(CUDA), TRAIN, RIDGE), rail)


def test_a_configuration_of_ones_own_need_not_have_the_keys():
    assert "smaller backbone" in explain(raised(MemoryError(), TRAIN), {})
    assert "smaller backbone" in explain(MemoryError(), None)


def test_it_imports_nothing_heavy():
    code = "import sys, cl_runner.faults; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="other systems promise any amount")
def test_what_torch_really_raises():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert explain(caught.value, {}).startswith("out of main memory")
    with pytest.raises(MemoryError) as gone:
        np.empty(2**55)
    assert explain(gone.value, {}).startswith("out of main memory")
