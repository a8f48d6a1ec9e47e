"""The first layers of a network: other input channels, and a stem for small images."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from cl_runner.backbones.backbone import probe
from cl_runner.errors import RequestError

Stem = Literal["auto", "original", "small"]
SMALL_IMAGE = 64
# The deepest published stems (ResNet-D, Inception) hold three convolutions before their max-pool.
STEM_CONVOLUTIONS = 3


def check_stem(stem: str) -> Stem:
    """Returns ``stem`` where it is a known one.

    Raises:
        RequestError: names ``backbone.stem`` and the known ones.
    """
    if stem not in ("auto", "original", "small"):
        raise RequestError(f"backbone.stem={stem}: unknown", "one of: auto, original, small")
    return stem  # type: ignore[return-value]


def first_convolution(network: nn.Module) -> str | None:
    """Returns the dotted name of the first convolution in order of registration, None where there is none."""
    return next((name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)), None)


def set_channels(network: nn.Module, in_channels: int) -> None:
    """Gives the first convolution ``in_channels`` inputs where it has another number, drawn anew."""
    name = first_convolution(network)
    convolution = network.get_submodule(name) if name is not None else None
    if name is not None and isinstance(convolution, nn.Conv2d) and convolution.in_channels != in_channels:
        network.set_submodule(name, _redrawn(convolution, in_channels=in_channels))


def set_stem(network: nn.Module, stem: Stem, *, in_channels: int, image_size: int, n_classes: int) -> None:
    """Keeps the resolution of small images: a first convolution of 3x3, stride 1, and no max-pool after it.

    With "auto" this happens for images of at most 64 pixels; a network whose first convolution has stride 1 (VGG,
    the CIFAR networks) or cuts the image into patches (Swin, ConvNeXt, ViT) stays as it is. Where the network does not
    run without its max-pool (a branch of another stride runs beside it) the pool stays; where it does not run with
    the new convolution either, the stem stays as published.

    Raises:
        RequestError: ``stem`` is "small" and the network has no stem to change.
    """
    if stem == "original" or (stem == "auto" and image_size > SMALL_IMAGE):
        return
    sizes = {"in_channels": in_channels, "image_size": image_size, "n_classes": n_classes}
    name = first_convolution(network)
    published = network.get_submodule(name) if name is not None else None
    if name is not None and isinstance(published, nn.Conv2d) and _reduces(published):
        network.set_submodule(name, _redrawn(published, small=True))
        pool = _stem_pool(network, name)
        if pool is not None:
            published_pool = network.get_submodule(pool)
            network.set_submodule(pool, nn.Identity())
            if probe(network, **sizes) is None:
                return
            network.set_submodule(pool, published_pool)
        if probe(network, **sizes) is None:
            return
        network.set_submodule(name, published)
    if stem == "small":
        raise RequestError(
            f"backbone.stem=small: {type(network).__name__} has no stem that can be made small",
            "its first convolution does not reduce the image, or the network does not run without the reduction; "
            "use backbone.stem=original",
        )


def _reduces(convolution: nn.Conv2d) -> bool:
    """True for an overlapping convolution of stride 2 or more; one that cuts patches has stride = kernel."""
    stride, kernel = convolution.stride[0], convolution.kernel_size[0]
    return convolution.groups == 1 and 1 < stride < kernel


def _stem_pool(network: nn.Module, convolution: str) -> str | None:
    """Returns the dotted name of the max-pool that ends the stem begun by ``convolution``."""
    names = [name for name, _ in network.named_modules()]
    convolutions = 0
    for name in names[names.index(convolution) :]:
        module = network.get_submodule(name)
        convolutions += isinstance(module, nn.Conv2d)
        if convolutions > STEM_CONVOLUTIONS:
            return None
        if isinstance(module, nn.MaxPool2d) and module.stride in (2, (2, 2)):
            return name
    return None


def _redrawn(convolution: nn.Conv2d, *, in_channels: int | None = None, small: bool = False) -> nn.Conv2d:
    """Returns a like convolution with other input channels or, if ``small``, of 3x3 and stride 1.

    The weights are normal with the old ones' standard deviation times the root of old over new fan-in, which keeps
    the variance of the output whatever scheme the network was initialised with; the bias is kept.
    """
    weight = convolution.weight
    fresh = nn.utils.skip_init(
        nn.Conv2d,
        convolution.in_channels if in_channels is None else in_channels,
        convolution.out_channels,
        kernel_size=3 if small else convolution.kernel_size,
        stride=1 if small else convolution.stride,
        padding=1 if small else convolution.padding,
        dilation=1 if small else convolution.dilation,
        bias=convolution.bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    if weight.is_meta:
        return fresh
    with torch.no_grad():
        spread = weight.std() * (weight[0].numel() / fresh.weight[0].numel()) ** 0.5
        fresh.weight.normal_().mul_(spread)
        if convolution.bias is not None:
            fresh.bias.copy_(convolution.bias)
    return fresh
