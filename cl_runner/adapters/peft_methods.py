"""Methods of the PEFT library by their names, and the options that they take."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from cl_runner import optional
from cl_runner.errors import RequestError, nearest, shown

LARGEST = 1_000_000_000  # of numbers among the options: beyond it sizes of tensors overflow
APART = ("ADAPTION_PROMPT", "POLY", "SHADOW", "TRAINABLE_TOKENS")  # of language models, or told a task by PEFT
PLACED = ("target_modules", "target_parameters", "exclude_modules", "layers_to_transform", "layers_pattern")
OURS = (  # fields of PEFT's configurations that the run decides
    "auto_mapping", "base_model_name_or_path", "bias", "inference_mode", "layer_replication", "modules_to_save",
    "peft_type", "peft_version", "revision", "runtime_config", "task_type", "trainable_token_indices",
)  # fmt: skip


def library() -> Any:
    """The PEFT library, imported when it is first needed.

    Raises:
        RequestError: it is not installed.
    """
    return optional.library("peft", "adapter=peft", "peft")


def exactly(names: Iterable[str]) -> str:
    """A regular expression for these names alone: PEFT matches a text in full, and the names of a list at their end."""
    return "|".join(re.escape(name) for name in names) or "(?!)"


def _check_type(key: str, value: Any, annotation: Any) -> None:
    """Refuses a value that PEFT would take for something else: it computes with whatever it is given."""
    name = getattr(annotation, "__name__", str(annotation))
    kinds: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "bool": (bool,), "str": (str,)}
    fitting = name not in kinds or (isinstance(value, kinds[name]) and (name == "bool" or not isinstance(value, bool)))
    if not fitting or (isinstance(value, (int, float)) and not abs(value) <= LARGEST):
        words = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
        raise RequestError(
            f"adapter.options.{key}={shown(value)} is not possible",
            f"{key} of PEFT takes {words.get(name, 'another value')}"
            + f" up to {LARGEST:,}" * (name in ("int", "float")),
        )


def resolve(method: str, options: Mapping[str, Any]) -> tuple[str, Any, dict[str, Any]]:
    """(PEFT type, its configuration class, its fields) of a method by its name.

    Raises:
        RequestError: PEFT knows no such method or option, or it cannot be an adapter here.
    """
    mapping = library().mapping
    kind = "LORA" if method.lower() == "dora" else method.upper()
    tuners = {item.value: tuner for item, tuner in mapping.PEFT_TYPE_TO_TUNER_MAPPING.items() if tuner is not None}
    classes = {item.value: known for item, known in mapping.PEFT_TYPE_TO_CONFIG_MAPPING.items()}
    usable = [
        name
        for name, tuner in tuners.items()
        if name not in APART
        and "target_modules" in classes[name].__dataclass_fields__
        and not hasattr(tuner, "update_and_allocate")
    ]
    if kind not in usable:
        if kind in classes:
            placed = "target_modules" in classes[kind].__dataclass_fields__
            why = "needs a training loop or a model of its own" if placed else "has no layers to place"
            raise RequestError(
                f"adapter.method={method}: this method of PEFT {why}, and cannot be an adapter here",
                f"one of: {', '.join(sorted(name.lower() for name in usable))}",
            )
        known = [*(name.lower() for name in usable), "dora"]
        raise RequestError(
            f"adapter.method={method}: PEFT has no such method", nearest(method.lower(), known, limit=50)
        )
    fields = dict(options) | ({"use_dora": True} if method.lower() == "dora" else {})
    known = [name for name in classes[kind].__dataclass_fields__ if name not in (*OURS, *PLACED)]
    for key in fields:
        if key in PLACED or key in OURS:
            hint = "choose layers with placement" if key in PLACED else f"one of: {', '.join(sorted(known))}"
            raise RequestError(f"adapter.options.{key} is not for the method to say", hint)
        if key not in known:
            raise RequestError(
                f"adapter.options.{key}: {classes[kind].__name__} of PEFT has no such field",
                nearest(str(key), known, limit=30),
            )
        _check_type(key, fields[key], classes[kind].__dataclass_fields__[key].type)
    return kind, classes[kind], fields
