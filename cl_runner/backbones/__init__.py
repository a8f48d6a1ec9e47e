"""Backbones: recipes for the networks that learn the stream, one file a source."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cl_runner.backbones.backbone import Backbone, classifier_name
    from cl_runner.backbones.pytorchcv import PytorchCV
    from cl_runner.backbones.small import SmallCNN
    from cl_runner.backbones.torchvision import TorchVision

__all__ = ["Backbone", "PytorchCV", "SmallCNN", "TorchVision", "classifier_name"]

_HOME = {
    "Backbone": "backbone",
    "PytorchCV": "pytorchcv",
    "SmallCNN": "small",
    "TorchVision": "torchvision",
    "classifier_name": "backbone",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
