"""Causal language models of transformers, built with random weights or from files, and checked to be whole."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cl_runner.backbones.backbone import first_line
from cl_runner.backbones.configurations import library, quiet
from cl_runner.backbones.weights import few
from cl_runner.errors import RequestError, shown

ROBERTAS = (  # they count positions from behind the padding token's id
    "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "data2vec-text", "xmod",
)  # fmt: skip
LONGEST = ("max_position_embeddings", "max_seq_len", "max_sequence_length")
ATTENTION = ("sdpa", "eager")  # tried in this order


def vocabulary_of(model: Any) -> int:
    """Token ids that a model knows: 0 to this number, without it.

    Args:
        model: of transformers, or its configuration; where that has parts, the part that reads text decides.
    """
    return int(getattr(model, "config", model).get_text_config().vocab_size)


def longest_sequence(config: Any) -> int | None:
    """Tokens of the longest sequence; None where the configuration sets no limit."""
    text = config.get_text_config()
    for key in LONGEST:
        found = getattr(text, key, None)
        if isinstance(found, int) and found > 0:
            return found - (text.pad_token_id or 0) - 1 if text.model_type in ROBERTAS else found
    return None


def fresh(config: Any, dtype: str, request: str) -> Any:
    """The network with random weights, from torch's global generator alone.

    Args:
        config: transformers' configuration.
        dtype: of the weights.
        request: the key and its value, for messages.

    Raises:
        RequestError: it cannot be built.
    """
    for attention in ATTENTION:
        try:
            with quiet():
                return library().AutoModelForCausalLM.from_config(
                    config, attn_implementation=attention, dtype=getattr(torch, dtype), trust_remote_code=False
                )
        except Exception as error:  # constructors assert and raise in their own ways
            if attention == ATTENTION[-1] or "attention" not in str(error).lower():
                raise RequestError(
                    f"{request} cannot be built: {shown(first_line(error), 200)}",
                    "check backbone.layers, width and options against the configuration",
                ) from error
    raise AssertionError("the last attempt returns or raises")


def loaded(
    place: str | None, config: Any, dtype: str, request: str, state: dict[str, Tensor] | None = None, **options: Any
) -> Any:
    """The network with weights, every one of which is in the file and has a place.

    Args:
        place: a folder, or a name on the hub; None: ``state``.
        config: transformers' configuration.
        dtype: of the weights in memory.
        request: the key and its value, for messages.
        state: names to tensors.
        options: where the library may look.

    Raises:
        RequestError: they cannot be read, or are another network's.
    """
    kind = library().models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    for attention in ATTENTION:
        try:
            with quiet():
                model, report = kind.from_pretrained(
                    place, config=config, state_dict=state, attn_implementation=attention, weights_only=True,
                    dtype=getattr(torch, dtype), ignore_mismatched_sizes=True, output_loading_info=True,
                    adapter_kwargs=dict(options), **options,
                )  # fmt: skip
            break
        except Exception as error:  # damaged, cut, of another format, or not there
            if attention == ATTENTION[-1] or "attention" not in str(error).lower():
                raise RequestError(
                    f"{request}: cannot be read as weights: {shown(first_line(error), 200)}",
                    "a folder of save_pretrained, or a .safetensors file that export= wrote",
                ) from error
    _check_complete(report, request)
    return model


def checkpoint_blocks(model: Any) -> None:
    """Keeps the blocks' inputs alone; the library's switch also opens the embedding, which nothing here needs."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        with quiet():
            enable({"use_reentrant": False})
    except ValueError as error:
        raise RequestError(f"backbone.gradient_checkpointing=true: {first_line(error)}", "leave it at false") from error
    if hasattr(model, "_require_grads_hook") or hasattr(model, "_require_grads_hooks"):
        model.disable_input_require_grads()


def check_folder(folder: Path) -> None:
    """Refuses a folder that is no whole model."""
    request = f"backbone.pretrained={folder}"
    if (folder / "adapter_config.json").is_file():
        raise RequestError(f"{request} holds an adapter of PEFT, not a whole model", "merge it, and save the result")
    if not (folder / "config.json").is_file():
        raise RequestError(f"{request}: no config.json is there", "a folder that save_pretrained of transformers wrote")


def _check_complete(report: Mapping[str, Any], request: str) -> None:
    """Refuses weights that are not all of the network's and no others."""
    shapes = [f"{item[0]} is {'x'.join(map(str, item[1]))} in the file and {'x'.join(map(str, item[2]))} in the network"
              for item in sorted(report["mismatched_keys"])]  # fmt: skip
    if shapes:
        raise RequestError(f"{request}: {few(shapes)}", "check backbone.layers, width, vocab_size and options")
    found = [
        f"{word} {few(sorted(report[key]))}"
        for word, key in (("missing", "missing_keys"), ("unexpected", "unexpected_keys"))
        if report[key]
    ]
    if found:
        raise RequestError(f"{request}: {'; '.join(found)}", "the file is of another network")


@torch.no_grad()
def check_causal(model: Any, request: str) -> None:
    """Refuses a network that cannot read bare token ids, or in which a token changes what is predicted before it."""
    vocabulary = vocabulary_of(model)
    planned = any(item.is_meta for item in model.parameters())
    device = torch.device("meta") if planned else next(model.parameters()).device
    model.eval()
    try:
        with quiet(), without_values() if planned else nullcontext():
            ids = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]], device="cpu") % vocabulary
            logits = model(input_ids=ids.to(device), use_cache=False).logits.float()
    except Exception as error:  # networks that want images or sound beside the text, and sizes that do not meet
        if planned and needs_values(error):
            return
        raise RequestError(
            f"{request} cannot read token ids alone: {shown(first_line(error), 200)}",
            "another size (backbone.layers, width, options), or another model, for example gpt2",
        ) from error
    if planned:
        return
    first, second = logits[:, :3]
    tolerance = 1e-4 if model.dtype == torch.float32 else 3e-2  # experts take their tokens in another order
    if float((first - second).abs().max()) > tolerance * float(first.abs().max()):
        raise RequestError(
            f"{request} is no causal language model: a token changes what is predicted before it",
            "for example gpt2, llama, gpt_neox or qwen2",
        )


def without_values() -> AbstractContextManager[Any]:
    """Lets a network on the meta device compute shapes, without what looks at values being in the way.

    transformers reads packed texts off the position ids, which has no answer on the meta device itself; in here it
    knows that it is only asked for shapes.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    return FakeTensorMode(allow_non_fake_inputs=True)


def needs_values(error: Exception) -> bool:
    """Whether a network failed within `without_values` because what it computes depends on values."""
    from torch._subclasses import fake_tensor

    kinds = ("DataDependentOutputException", "DynamicOutputShapeException", "UnsupportedFakeTensorException",
             "UnsupportedOperatorException")  # fmt: skip
    unknown = tuple(getattr(fake_tensor, kind) for kind in kinds if hasattr(fake_tensor, kind))
    return isinstance(error, (*unknown, NotImplementedError)) or any(
        word in str(error) for word in ("meta tensor", "FakeTensor", "fake tensor")
    )
