"""Configurations of transformers' causal language models: found by name without a network, and cut to a wanted size."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from cl_runner import optional
from cl_runner.backbones.backbone import first_line
from cl_runner.errors import RequestError, nearest, shown, told

SHIPPED = Path(__file__).parent / "shipped"
LLAMA_2 = "llama-2-7b"
GPT_2 = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")
KNOWN = "gpt2, gpt2-medium, gpt2-large, gpt2-xl, distilgpt2, meta-llama/Llama-2-7b-hf"
NAMES = {  # what experiments name: the file in `SHIPPED` that holds its configuration
    **{name: name for name in GPT_2},
    **{f"openai-community/{name}": name for name in GPT_2},
    **dict.fromkeys(("distilgpt2", "distilbert/distilgpt2"), "distilgpt2"),
    **dict.fromkeys(("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf"), LLAMA_2),
}
PATH_STARTS = ("/", "./", "../", "~")
OF_NO_SHAPE = ("model_type", "transformers_version", "architectures", "id2label", "label2id")


def library() -> Any:
    """The package transformers.

    Raises:
        RequestError: it is not installed.
    """
    return optional.library("transformers", "backbone=transformers", "text")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' remarks and progress bars off the screen: what matters is checked and refused by us."""
    chatter = library().utils.logging
    disabled, bars = logging.root.manager.disable, chatter.is_progress_bar_enabled()
    logging.disable(logging.ERROR)
    chatter.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        if bars:
            chatter.enable_progress_bar()


def from_hub(read: Callable[[bool], Any], name: str, request: str, hint: str) -> Any:
    """What ``read(local_files_only)`` gives from the local cache, else from the hub.

    The hub is asked for the name first: the libraries try for half a minute where there is no network.

    Args:
        read: transformers' own ``from_pretrained`` of what is wanted.
        name: of the model on the hub.
        request: the key and its value, for messages.
        hint: what works without a network.

    Raises:
        RequestError: there is no network, no such name, or it may not be read.
    """
    import huggingface_hub

    with contextlib.suppress(Exception):  # not in the cache, in whatever way the library says so
        return read(True)
    try:
        if huggingface_hub.constants.is_offline_mode():
            raise OSError("HF_HUB_OFFLINE is set")
        huggingface_hub.HfApi().model_info(name, timeout=10)
        return read(False)
    except Exception as error:  # connections, permissions, formats
        raise RequestError(
            f"{request} is not on this machine, and cannot be had from the hub: {shown(first_line(error), 160)}", hint
        ) from error


def named_configuration(name: str, *, online: bool = True) -> Any:
    """The configuration that ``backbone.name`` stands for.

    In this order: a folder with config.json, one shipped with this package, a model type of transformers with its
    default configuration, the hub.

    Args:
        name: see above.
        online: False gives None instead of asking the hub.

    Raises:
        RequestError: there is none.
    """
    if not name:
        raise RequestError("backbone.name is empty", f"a folder, a model type such as llama, or {KNOWN}")
    request, folder = f"backbone.name={name}", Path(name).expanduser()
    if (folder / "config.json").is_file():
        return folder_configuration(folder, request)
    if name.startswith(PATH_STARTS) or folder.is_dir():
        raise RequestError(f"{request}: no config.json is there", "a folder that save_pretrained of transformers wrote")
    if name in NAMES:
        return read_settings(json.loads((SHIPPED / f"{NAMES[name]}.json").read_text(encoding="utf-8")), request)
    if name in model_types():
        return read_settings({"model_type": name}, request)
    return _hub_configuration(name, request) if online else None


def model_types() -> Any:
    """The names of all kinds of model that transformers has."""
    return library().models.auto.configuration_auto.CONFIG_MAPPING_NAMES


def _hub_configuration(name: str, request: str) -> Any:
    known = [*NAMES, *library().models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    similar = nearest(name, known)
    hint = similar if similar.startswith("did") else f"without a network: a folder, a model type such as llama, {KNOWN}"

    def read(local: bool) -> Any:
        with quiet():
            return library().AutoConfig.from_pretrained(name, local_files_only=local, trust_remote_code=False)

    return checked(from_hub(read, name, request, hint), request)


def folder_configuration(folder: Path, request: str) -> Any:
    """The configuration in a folder's config.json; nothing is run that the folder brings.

    Raises:
        RequestError: it cannot be read, or is of no causal language model.
    """
    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{request}: config.json cannot be read: {first_line(error)}", "a configuration of transformers (JSON)"
        ) from error
    return read_settings(settings, request)


def read_settings(settings: Any, request: str) -> Any:
    """A configuration from its JSON content, checked to be of a causal language model.

    Raises:
        RequestError: it is not.
    """
    kinds = library().models.auto.configuration_auto.CONFIG_MAPPING
    kind = settings.get("model_type") if isinstance(settings, dict) else None
    if kind not in kinds:
        raise RequestError(
            f"{request}: its model_type {shown(kind)} is none of the installed transformers",
            "code that comes with weights is never run; use a model type of transformers itself",
        )
    return checked(make(kinds[kind], settings, request), request)


def make(kind: Any, settings: Mapping[str, Any], request: str) -> Any:
    """A configuration of class ``kind``.

    Raises:
        RequestError: a value is impossible.
    """
    try:
        with quiet():
            return kind.from_dict(dict(settings))
    except Exception as error:  # every class checks its own values in its own ways
        lines = told(str(error).rpartition("ValueError: ")[2])
        hint = "check backbone.layers, width and options against it"
        raise RequestError(f"{request}: the configuration is impossible: {shown(lines, 200)}", hint) from error


def checked(config: Any, request: str) -> Any:
    """The configuration, where it is of a network that predicts the next token.

    Raises:
        RequestError: it is of another kind.
    """
    auto = library().models.auto.modeling_auto
    kind, reason = config.model_type, None
    if getattr(config, "is_encoder_decoder", False) or kind in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        reason = "an encoder with a decoder"
    elif kind in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False):
        reason = "an encoder, which sees the tokens that it would have to predict"
    elif kind not in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        reason = "for another task"
    if reason is not None:
        raise RequestError(
            f"{request} is no causal language model: {kind} is {reason}", "for example gpt2, llama, gpt_neox or qwen2"
        )
    return config


# ---------------------------------------------------------------------------------------------------- sizes


def resized(config: Any, request: str, *, layers: int | None, width: int | None, options: Mapping[str, Any]) -> Any:
    """The configuration with another size and further keys.

    Args:
        config: as it was found; it stays as it is. Where it has parts, the size is that of the part that reads text.
        request: the key and its value, for messages.
        layers: transformer blocks; None: the configuration's.
        width: of the hidden states; the size of a head is kept where it divides the width, else it is the largest
            that divides both; the inner width of the MLP stays in proportion. None: the configuration's.
        options: further keys of the configuration, under their names in transformers; they go last. Of a
            configuration with parts a key belongs to the part that reads text, where that has it.

    Raises:
        RequestError: the configuration has no such key or cannot have this size.
    """
    settings = config.to_dict()
    text = config.get_text_config()
    part = next((settings[name] for name in config.sub_configs if getattr(config, name, None) is text), settings)
    if layers is not None:
        _set_layers(part, text, request, layers)
    if width is not None:
        _set_width(part, text, request, width)
    inner = {name: value for name, value in options.items() if part is not settings and name in _keys(part, text)}
    _set_options(part, text, inner)
    _set_options(settings, config, {name: value for name, value in options.items() if name not in inner})
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):  # ids that a smaller vocabulary does not have
        for found in (settings, part):
            if isinstance(found.get(name), int) and found[name] >= part.get("vocab_size", math.inf):
                found[name] = None
    return make(type(config), settings, request)


def _keys(settings: Mapping[str, Any], config: Any) -> dict[str, str]:
    """What a configuration's keys are called, and what they are called in its file."""
    known = {name: name for name in settings if name not in OF_NO_SHAPE and name[0] != "_"}
    return known | dict(type(config).attribute_map)


def _set_options(settings: dict[str, Any], config: Any, options: Mapping[str, Any]) -> None:
    """Sets further keys; what is written twice in a configuration, the heads and their size, follows."""
    known = _keys(settings, config)
    width, heads = _own(config, "hidden_size"), _own(config, "num_attention_heads")
    shared, size = settings.get("num_key_value_heads"), settings.get("head_dim")
    alike = shared is not None and shared == settings.get(heads)
    plain = isinstance(size, int) and size * (settings.get(heads) or 0) == settings.get(width)
    for name, value in options.items():
        if name not in known:
            raise RequestError(
                f"backbone.options.{name}: the configuration of {config.model_type} has no key '{name}'",
                nearest(str(name), sorted(known), limit=30),
            )
        if known[name] == known.get("max_position_embeddings") and isinstance(value, int) and value < 1:
            raise RequestError(f"backbone.options.{name}={value} leaves no room for a text", "at least 1")
        settings[known[name]] = value
    if alike and "num_key_value_heads" not in options:
        settings["num_key_value_heads"] = settings[heads]
    if plain and "head_dim" not in options and all(isinstance(settings[key], int) for key in (width, heads)):
        settings["head_dim"] = settings[width] // max(1, settings[heads])


def _own(config: Any, name: str) -> str:
    """What this kind of configuration calls a key."""
    return str(type(config).attribute_map.get(name, name))


def _set_layers(settings: dict[str, Any], config: Any, request: str, layers: int) -> None:
    key = _own(config, "num_hidden_layers")
    if not isinstance(settings.get(key), int):
        raise RequestError(f"backbone.layers={layers}: {request} does not say its layers in one number", "leave it out")
    kinds = settings.get("layer_types")
    if kinds is not None:  # one word a layer; where there are too few, the configuration makes them again
        settings["layer_types"] = kinds[:layers] if layers <= len(kinds) else None
    settings[key] = layers


def _set_width(settings: dict[str, Any], config: Any, request: str, width: int) -> None:
    key, heads_key = _own(config, "hidden_size"), _own(config, "num_attention_heads")
    old, heads = settings.get(key), settings.get(heads_key)
    if not isinstance(old, int) or not isinstance(heads, int):
        raise RequestError(f"backbone.width={width}: {request} does not say its width in one number", "leave it out")
    size = old // heads
    new_heads = width // math.gcd(size, width)
    for name, value in list(settings.items()):
        if name in ("word_embed_proj_dim", "embedding_size") and value == old:
            settings[name] = width
    settings[key], settings[heads_key] = width, new_heads
    if isinstance(settings.get("head_dim"), int):
        wanted = settings["head_dim"] * width * heads // (old * new_heads)
        settings["head_dim"] = max(2, wanted - wanted % 2)  # rotary positions turn pairs of numbers
    shared = settings.get("num_key_value_heads")
    if isinstance(shared, int):
        group = max(1, heads // shared)
        settings["num_key_value_heads"] = new_heads // group if new_heads % group == 0 else math.gcd(new_heads, shared)
    for name in ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"):
        if isinstance(settings.get(name), int):
            settings[name] = max(1, round(settings[name] * width / old))
