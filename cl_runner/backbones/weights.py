"""Weights from files: read without running code, adapted to the classes and channels, refused by name."""

from __future__ import annotations

import pickle
import re
import warnings
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn

from cl_runner.backbones.stem import first_convolution
from cl_runner.downloads import download
from cl_runner.errors import RequestError

SUFFIXES = (".safetensors", ".pth", ".pt")
NEST_KEYS = ("state_dict", "model")
KEPT = 2  # weight files that a process holds
_kept: OrderedDict[tuple[str, int, int], dict[str, Tensor]] = OrderedDict()


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Reads the state dict of a weights file, also one nested under ``state_dict`` or ``model``.

    The prefix ``module.`` of a data-parallel network is taken off. A file is read once a process as long as it stays
    the same: nobody may write into the tensors.

    Raises:
        RequestError: the file is missing, damaged, holds code, or holds no state dict; the message names it.
    """
    file = Path(path).expanduser()
    request = f"backbone.pretrained={file}"
    if not file.is_file():
        raise RequestError(f"{request}: no such file", f"a weights file ends in {', '.join(SUFFIXES)}")
    if file.suffix not in SUFFIXES:
        raise RequestError(f"{request}: not a weights file by its name", f"it must end in {', '.join(SUFFIXES)}")
    found = file.stat()
    key = (str(file.resolve()), found.st_size, found.st_mtime_ns)
    if key not in _kept:
        _kept[key] = _state(file, request)
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    _kept.move_to_end(key)
    return dict(_kept[key])


def read_metadata(file: Path) -> dict[str, str]:
    """What a .safetensors file says besides its tensors; empty for other files, and where it cannot be read."""
    if file.suffix != ".safetensors":
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return dict(opened.metadata() or {})
    except (OSError, SafetensorError):  # reading the weights will say what is wrong
        return {}


def published(url: str, folder: Path) -> Path:
    """The file of published weights, downloaded into ``folder`` where it is not there.

    The publisher ends a file's name with the first digits of its SHA-256.

    Raises:
        RequestError: it cannot be had, or is not what was published; the hint says where to place it.
    """
    file = folder / url.rsplit("/", 1)[-1]
    if not file.is_file():
        digits = re.search(r"-([a-f0-9]{8,})$", file.stem)
        hint = f"place {file.name} at {file}, or name a weights file you have: backbone.pretrained=PATH"
        download(url, file, f"sha256:{digits[1]}" if digits else "", "backbone.pretrained=true", by_hand=hint)
    return file


def _state(file: Path, request: str) -> dict[str, Tensor]:
    try:
        loaded = _read(file)
    except pickle.UnpicklingError as error:
        raise RequestError(
            f"{request}: it is damaged, or holds Python objects that could run code, not only tensors",
            "save the network's state_dict() alone, best as .safetensors",
        ) from error
    except Exception as error:  # a cut or altered file fails anywhere in the reader
        raise RequestError(
            f"{request}: cannot be read as weights, it is damaged or of another format",
            f"get the file again and compare its size ({file.stat().st_size:,} bytes) and checksum with its source's",
        ) from error
    nested = next((loaded[key] for key in NEST_KEYS if isinstance(loaded, dict) and key in loaded), None)
    state = nested if isinstance(nested, dict) else loaded
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise RequestError(f"{request}: holds no state dict", "save the network's state_dict(), names to tensors")
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return dict(state)


def forget() -> None:
    """Lets go of every file that was read."""
    _kept.clear()


def _read(file: Path) -> object:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle's versions: what cannot be read is refused
        return torch.load(file, map_location="cpu", weights_only=True)


def load_state(network: nn.Module, state: dict[str, Tensor], classifier: str, source: str | Path) -> None:
    """Loads ``state`` into ``network``.

    A classifier with another number of classes is skipped, so the network keeps its own; a first convolution with
    other input channels is adapted (`adapt_channels`).

    Args:
        network: the network as it will be trained.
        state: names to tensors; not modified.
        classifier: dotted name of the network's classifier.
        source: the file, for messages.

    Raises:
        RequestError: any other name is missing, unexpected or of another shape.
    """
    state, own = dict(state), network.state_dict()
    skipped = _skip_other_classes(state, own, classifier)
    first = first_convolution(network)
    if first is not None and f"{first}.weight" in state:
        key = f"{first}.weight"
        state[key] = adapt_channels(state[key], own[key].shape)
    shapes = [
        f"{key} is {_shape(value)} in the file and {_shape(own[key])} in the network"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    if shapes:
        hint = "the file is of another network"
        if first is not None and shapes[0].startswith(f"{first}."):
            hint += ", or was trained with another backbone.stem (original or small)"
        raise RequestError(f"backbone.pretrained={source}: {few(shapes)}", hint)
    missing, unexpected = _load(network, state, source)
    # Files from before 2018 lack BatchNorm's step counters, which evaluation and momentum do not use.
    missing = [key for key in missing if key not in skipped and not key.endswith("num_batches_tracked")]
    if missing or unexpected:
        found = [f"missing {few(missing)}"] * bool(missing) + [f"unexpected {few(unexpected)}"] * bool(unexpected)
        raise RequestError(f"backbone.pretrained={source}: {'; '.join(found)}", "the file is of another network")


def adapt_channels(weight: Tensor, shape: torch.Size) -> Tensor:
    """Fits a first convolution's weights (out, in, h, w) to the input channels of ``shape``.

    Colour to grey sums over the channels, exactly what the layer gives for a grey image shown as colour; to another
    number, every channel gets an equal part of that sum. Weights that differ in more than channels come back as
    they are.
    """
    if weight.ndim != 4 or weight.shape[1] == shape[1] or weight.shape[:1] + weight.shape[2:] != shape[:1] + shape[2:]:
        return weight
    return (weight.sum(dim=1, keepdim=True) / shape[1]).expand(shape).contiguous()


def _skip_other_classes(state: dict[str, Tensor], own: dict[str, Tensor], classifier: str) -> set[str]:
    """Takes the classifier out of ``state`` where only its number of classes differs; returns the names."""
    weight, bias = f"{classifier}.weight", f"{classifier}.bias"
    if weight not in state or state[weight].shape[1:] != own[weight].shape[1:]:
        return set()
    if state[weight].shape[0] == own[weight].shape[0]:
        return set()
    for key in (weight, bias):
        state.pop(key, None)
    return {weight, bias}


def _load(network: nn.Module, state: dict[str, Tensor], source: str | Path) -> tuple[list[str], list[str]]:
    """Loads what fits; returns the names that are missing and unexpected."""
    # MNASNet and ViT read their layout's version from the metadata that safetensors and plain dicts lack.
    layout = network.state_dict()
    layout.clear()
    layout.update(state)
    try:
        result = network.load_state_dict(layout, strict=False)
    except (RuntimeError, ValueError, KeyError) as error:
        raise RequestError(f"backbone.pretrained={source}: {error}", "the file is of another network") from error
    return list(result.missing_keys), list(result.unexpected_keys)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"


def few(items: list[str], limit: int = 3) -> str:
    """The first of several names, and how many more there are."""
    return ", ".join(items[:limit]) + (f" and {len(items) - limit} more" if len(items) > limit else "")
