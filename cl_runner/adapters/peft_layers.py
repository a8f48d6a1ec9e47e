"""Layers that PEFT has wrapped: which ones it can have, merging them with a way back, and whether they tell the truth.

PEFT's layers are taken as they are: `get_base_layer`, `merge` and `unmerge` are all that is used of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.adapters.layers import ELSEWHERE, refuse_tied
from cl_runner.backbones.heads import Head
from cl_runner.errors import RequestError

TEMPLATE = "template"  # the set with which the layers are wrapped; it goes when the first task has one
STARTS, MERGES = 8, 1000  # roundings by which outputs may differ: 1e-6 and 1e-4 in float32
WEIGHT_TAKERS = (  # modules that take their layers' weights without calling the layers
    "MultiheadAttention", "TransformerEncoderLayer", "ShiftedWindowAttention",
)  # fmt: skip


@dataclass
class Kept:
    """A parameter of the base, the memory it lives in, and what it held."""

    parameter: nn.Parameter
    place: Tensor
    value: Tensor


def check_layer(root: nn.Module, name: str) -> None:
    """Refuses what PEFT cannot adapt, or would adapt without any effect."""
    if name not in dict(root.named_modules()):
        raise RequestError(
            f"placement: '{name}' is a slice of a packed layer, and PEFT adapts whole layers",
            f"use adapter=lora, which adapts slices, or {ELSEWHERE}",
        )
    module = root.get_submodule(name)
    if isinstance(module, Head):
        raise RequestError(
            "placement.head=true: the head trains in full, and adapter=peft does not wrap it", "drop placement.head"
        )
    refuse_tied(root, name)
    parent = root.get_submodule(name.rpartition(".")[0])
    takers = [kind.__name__ for kind in type(parent).__mro__ if kind.__name__ in WEIGHT_TAKERS]
    if takers:
        raise RequestError(
            f"placement: {takers[0]} takes the weight of '{name}' without calling it, and PEFT's delta would be lost",
            f"use adapter=lora, which such a layer computes with, or {ELSEWHERE}",
        )


def keep(layer: Any) -> dict[str, Kept]:
    """What the base layer holds, with a copy."""
    return {
        name: Kept(item, item.data, item.detach().clone()) for name, item in layer.get_base_layer().named_parameters()
    }


def put_back(layer: Any, kept: dict[str, Kept]) -> None:
    """Unmerges, and puts back what the base layer held, bit for bit and into the same memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT says of rounding does not hold: the weights come from the copy
        layer.unmerge()
    for item in kept.values():
        item.place.copy_(item.value)
        item.parameter.data = item.place


@torch.no_grad()
def merged(layer: Any, which: str) -> Tensor:
    """The weight with a set merged into it; the layer stays as it is."""
    kept = keep(layer)
    layer.merge(adapter_names=[which])
    weight: Tensor = layer.get_base_layer().weight.detach().clone()
    put_back(layer, kept)
    return weight


@torch.no_grad()
def check_start(method: str, name: str, layer: Any, before: Tensor) -> None:
    """Computes a layer with a fresh set, as it is and merged: both have to be the base's output.

    Args:
        method: as the user has named it.
        name: of the layer.
        layer: as PEFT has wrapped it, with TEMPLATE active.
        before: the base weight before PEFT came.

    Raises:
        RequestError: the method does not start at the base, changes the base itself, or cannot be taken out again.
    """
    base = layer.get_base_layer()
    x = _example(base)
    expected, (apart, together) = base(x), _both_ways(layer, x)
    if layer.merged:
        raise RequestError(f"adapter.method={method}: PEFT merges it into layer '{name}' for good", "choose another")
    if expected.is_meta:
        return
    pairs = {
        "its output": (apart, expected),
        "its output with merged weights": (together, expected),
        "its weight": (base.weight, before),
    }
    for what, (found, wanted) in pairs.items():
        if not _apart(found, wanted) <= STARTS * torch.finfo(expected.dtype).eps:
            moved = f"{what} moves by {float((found - wanted).abs().max()):.1e}"
            raise RequestError(
                f"adapter.method={method}: layer '{name}' does not start at the base, {moved}",
                "have it start at zero with adapter.options (init_weights or the like), or place it on other layers",
            )


@torch.no_grad()
def disturb(layers: Iterable[Any]) -> None:
    """Moves all that trains of the set TEMPLATE, which no task uses; without it, every delta would be zero."""
    noise, seen = torch.Generator().manual_seed(1), set()
    for layer in layers:
        for key, item in layer.named_parameters():
            if TEMPLATE in key.split(".") and item.requires_grad and not item.is_meta and id(item) not in seen:
                seen.add(id(item))
                item.add_(0.1 * torch.randn(item.shape, generator=noise, device="cpu").to(item))


@torch.no_grad()
def check_merge(method: str, name: str, layer: Any) -> None:
    """Computes a layer with a set that is not fresh, as it is and merged: both have to be the same.

    Raises:
        RequestError: they are not; PEFT leaves some attributes of a convolution out of its forward pass.
    """
    apart, together = _both_ways(layer, _example(layer.get_base_layer()))
    if not apart.is_meta and not _apart(apart, together) <= MERGES * torch.finfo(apart.dtype).eps:
        raise RequestError(
            f"adapter.method={method}: on layer '{name}', a {type(layer.get_base_layer()).__name__}, PEFT computes "
            "something else than with merged weights",
            ELSEWHERE,
        )


def _both_ways(layer: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output as it is, and with merged weights; no dropout."""
    training = layer.training
    layer.eval()
    apart, kept = layer(x), keep(layer)
    layer.merge(adapter_names=[TEMPLATE])
    together = layer(x)
    put_back(layer, kept)
    layer.train(training)
    return apart, together


def _apart(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, relative to the largest entry where that is above one."""
    return float((found - wanted).abs().max()) / max(1.0, float(wanted.abs().max()))


def _example(layer: nn.Module) -> Tensor:
    """A small input for a layer; the same numbers every time, and none taken from the run's generators."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    if isinstance(layer, nn.Conv2d):
        sizes = [d * (k - 1) + 3 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        shape = [2, layer.in_channels, *sizes]
    else:
        shape = [2, layer.in_features if isinstance(layer, nn.Linear) else weight.shape[0]]
    drawn = torch.rand(shape, generator=torch.Generator().manual_seed(0), device="cpu")
    return drawn.to(weight)
