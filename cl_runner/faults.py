"""What an error that ended a run means for its settings: no memory left. Imports nothing heavy."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from cl_runner.errors import shown

# what torch, its libraries and the system say; one of them in the text of a RuntimeError means that memory is used up
_WORDS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "alloc_failed",
    "bad_alloc",
)
_ON_DEVICE = re.compile(r"(?i)\b(cuda|cublas|cudnn|cusolver|cufft|hip|mps|xpu|nvrtc)")
_ASKED_FOR = re.compile(r"(?i)tried to allocate (?:about )?([\d.,]+ ?[kmgt]?i?b(?:ytes)?)\b|allocate ([\d,]+ bytes)")

# where it happened, by the file and the function of a frame, the most telling first
_STAGES = (
    ("data", "benchmarks/store.py", ("to", "_moved", "_streamed")),
    ("data", "benchmarks/segments.py", ("upload",)),
    ("data", "text/store.py", ("to",)),
    ("regression", "strategies/ridge.py", ()),
    ("reference", "training/reference.py", ()),
    ("memory", "plugins/gem.py", ()),
    ("memory", "supervised/icarl.py", ("construct_exemplar_set", "compute_class_means")),
    ("evaluation", "cl_runner/evaluation.py", ()),
    ("evaluation", "training/monitor.py", ("_validate",)),
    ("evaluation", "templates/base.py", ("eval",)),
    ("training", "cl_runner/learning.py", ("_train",)),
    ("training", "templates/base.py", ("train",)),
)
_TOLD = {
    "data": "while the data went to the device",
    "regression": "in the regression",
    "reference": "in reading the reference images",
    "memory": "over the samples that the strategy keeps",
    "evaluation": "in evaluation",
    "training": "in training",
    "": "in setting up the run",
}


def explain(error: BaseException, config: Any) -> str | None:
    """One or two lines that name the settings to change where a run ended for want of memory.

    Args:
        error: what ended it; what it was raised from is looked at as well.
        config: the settled configuration.

    Returns:
        None where memory was not the reason.
    """
    source = next((link for link in _chain(error) if _is_want_of_memory(link)), None)
    if source is None:
        return None
    stage, on_device = _stage(error, source), _on_device(source)
    found = _ASKED_FOR.search(str(source))
    amount = f", which asked for {found[1] or found[2]} more" if found else ""
    place = "device" if on_device else "main"
    ways = [way for way in _ways(stage, config, on_device=on_device) if way]
    now = f" with {', '.join(way[0] for way in ways if way[0])}" if any(way[0] for way in ways) else ""
    what = f"out of {place} memory {_TOLD[stage]}{now}{amount}"
    tried = list(dict.fromkeys(way[1] for way in ways))
    return f"{what}\ntry {_either(tried)}" if tried else f"{what}\ntry a smaller backbone, or a machine with more of it"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it was raised from or over."""
    link: BaseException | None = error
    for _ in range(10):
        if link is None:
            return
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _is_want_of_memory(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    if isinstance(error, MemoryError) or "OutOfMemoryError" in names:
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)


def _on_device(error: BaseException) -> bool:
    if isinstance(error, MemoryError | OSError) or "DefaultCPUAllocator" in str(error):
        return False
    return "OutOfMemoryError" in type(error).__name__ or bool(_ON_DEVICE.search(str(error)))


def _stage(*errors: BaseException) -> str:
    """Where memory ran out, as far as the frames tell; empty where they do not."""
    frames = {frame for error in errors for frame in _frames(error.__traceback__)}
    for stage, file, functions in _STAGES:
        if any(place.endswith(file) and (not functions or name in functions) for place, name in frames):
            return stage
    return ""


def _frames(trace: TracebackType | None) -> Iterator[tuple[str, str]]:
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_name != "<module>":  # an import, which tells nothing
            yield code.co_filename.replace("\\", "/"), code.co_name
        trace = trace.tb_next


Way = tuple[str, str] | None
"""A setting as it is (empty: not worth a word) and as it might be."""


def _ways(stage: str, config: Any, *, on_device: bool) -> list[Way]:
    halved = _Halving(config)
    if stage == "data":
        where = config_value(config, "trainer.data_placement")
        host = ("trainer.data_placement=" + shown(where), "trainer.data_placement=host")
        return [host if on_device and where != "host" else None, halved("benchmark.image_size"), _fewer(config)]
    if stage == "regression":
        return [halved("strategy.hidden"), _changed(config, "strategy.dtype", "float64", "float32")]
    if stage == "reference":
        return [halved("strategy.reference_size")]
    if stage == "memory":
        return [halved("strategy.mem_size"), *_lighter(config, on_device=on_device)]
    if stage == "evaluation":
        return [_smaller_evaluation(halved, on_device=on_device), *_lighter(config, on_device=on_device)]
    if stage == "training":
        other = [halved(f"strategy.{key}") for key in ("batch_size_mem", "batch_size_ref", "sample_size")]
        light = _lighter(config, on_device=on_device)
        return [halved("trainer.batch_size"), *other, _checkpointed(config), *light]
    return [_changed(config, "backbone.dtype", "float32", "bfloat16"), *_lighter(config, on_device=on_device)]


class _Halving:
    """Half of a number of the configuration; None where there is no such number, or none smaller."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def __call__(self, key: str) -> Way:
        value = config_value(self.config, key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 2:
            return None
        return f"{key}={value}", f"{key}={value // 2}"


def _smaller_evaluation(halved: _Halving, *, on_device: bool) -> Way:
    """Fewer samples at once; where the number was left to the device, one that is small on any GPU."""
    key = "trainer.eval_batch_size"
    if config_value(halved.config, key) is not None:
        return halved(key)
    return (f"{key}=null", f"{key}=64") if on_device else (f"{key}=64", f"{key}=32")


def _lighter(config: Any, *, on_device: bool) -> list[Way]:
    """What makes every pass smaller, and takes the images off the device."""
    ways = [_changed(config, "trainer.precision", "float32", "bfloat16", quiet=True)]
    if on_device:
        for value in ("auto", "device"):
            ways.append(_changed(config, "trainer.data_placement", value, "host", quiet=True))
    return ways


def _checkpointed(config: Any) -> Way:
    return _changed(config, "backbone.gradient_checkpointing", False, "true", quiet=True)


def _fewer(config: Any) -> Way:
    for key in ("per_class", "shots", "n_train"):
        if key in (config_value(config, "benchmark") or {}):
            return "", f"a smaller benchmark.{key}"
    return None


def _changed(config: Any, key: str, now: object, then: str, *, quiet: bool = False) -> Way:
    if config_value(config, key) != now:
        return None
    return "" if quiet else f"{key}={shown(now)}", f"{key}={then}"


def config_value(config: Any, key: str) -> Any:
    """The value of a dotted key; None where it is not there."""
    for part in key.split("."):
        if not isinstance(config, Mapping) and not hasattr(config, "get"):
            return None
        config = config.get(part)
    return config


def _either(ways: list[str]) -> str:
    return ways[0] if len(ways) == 1 else f"{', '.join(ways[:-1])} or {ways[-1]}"
