"""Every image-classification network of torchvision, by name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.backbones.backbone import Backbone, classifier_name, construct_checked
from cl_runner.backbones.stem import Stem, check_stem, set_channels, set_stem
from cl_runner.backbones.weights import load_state, published, read_state
from cl_runner.errors import RequestError, nearest

# Files saved under names that torchvision has since changed, as its own loaders translate them.
RENAMED = (
    (re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)"), r"\1\2"),
    (re.compile(r"(encoder\.layers\..*\.mlp\.)linear_1(\..*)"), r"\g<1>0\2"),
    (re.compile(r"(encoder\.layers\..*\.mlp\.)linear_2(\..*)"), r"\g<1>3\2"),
)
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


class TorchVision(Backbone):
    """A classification network of ``torchvision.models``, such as ``vgg19_bn``.

    Auxiliary classifiers and the input transformation of GoogLeNet and Inception are off. Vision transformers are
    built for the image size asked for.

    Args:
        name: torchvision's name of the network.
        pretrained: False, True (torchvision's default weights), or the path of a weights file.
        stem: "original"; "small" (3x3, stride 1, no max-pool); or "auto", small for images of at most 64 pixels when
            not pretrained and the network reduces the image early.

    Raises:
        RequestError: ``stem`` is unknown.
    """

    def __init__(self, *, name: str, pretrained: bool | str = False, stem: Stem = "auto") -> None:
        self.name = name
        self.pretrained = pretrained
        self.stem = check_stem(stem)

    def build(self, *, in_channels: int, image_size: int, n_classes: int, load_weights: bool = True) -> nn.Module:
        """Builds the network; see `Backbone.build`."""
        self._check_name()
        stem = "original" if self.stem == "auto" and self.pretrained else self.stem

        def construct(size: int) -> nn.Module:
            network = self._construct(size, n_classes)
            set_channels(network, in_channels)
            set_stem(network, stem, in_channels=in_channels, image_size=size, n_classes=n_classes)
            return network

        network = construct_checked(
            construct, self.name, in_channels=in_channels, image_size=image_size, n_classes=n_classes
        )
        if load_weights and self.pretrained:
            path = self._published() if self.pretrained is True else Path(self.pretrained)
            state = _fit_layout(network, read_state(path))
            load_state(network, state, classifier_name(network, n_classes), path)
        return network

    def _check_name(self) -> None:
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models)
        if self.name in known:
            return
        if self.name in torchvision.models.list_models():
            raise RequestError(
                f"backbone.name={self.name}: this torchvision model does not classify images in floating point",
                "detection, segmentation, video, flow and quantised models are not backbones; "
                + nearest(self.name.removeprefix("quantized_"), known),
            )
        raise RequestError(
            f"backbone.name={self.name}: torchvision has no classification network of this name",
            nearest(self.name, known),
        )

    def _construct(self, image_size: int, n_classes: int) -> nn.Module:
        import torchvision

        options: dict[str, Any] = {}
        if self.name in ("googlenet", "inception_v3"):
            options = {"aux_logits": False, "transform_input": False, "init_weights": True}
        elif self.name.startswith("vit_"):
            options = {"image_size": image_size}
        elif self.name.startswith("maxvit_"):
            options = {"input_size": (image_size, image_size)}
        return torchvision.models.get_model(self.name, weights=None, num_classes=n_classes, **options)

    def _published(self) -> Path:
        """Returns the file of the default weights, downloaded into the hub's cache where it is not there yet."""
        import torchvision

        url = torchvision.models.get_model_weights(self.name).DEFAULT.url
        return published(url, Path(torch.hub.get_dir()) / "checkpoints")


def _fit_layout(network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Brings published weights to the network's layout: no auxiliary heads, today's names, its position embedding."""
    fitted: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.startswith(AUXILIARY):
            continue
        for pattern, replacement in RENAMED:
            key = pattern.sub(replacement, key)
        fitted[key] = value
    position = "encoder.pos_embedding"
    if position in fitted and fitted[position].shape != network.state_dict()[position].shape:
        from torchvision.models.vision_transformer import interpolate_embeddings

        fitted = interpolate_embeddings(network.image_size, network.patch_size, fitted)
    return fitted
