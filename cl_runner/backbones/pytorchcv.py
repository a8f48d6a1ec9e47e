"""Every image-classification network of the pytorchcv library, by name."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from cl_runner.backbones.backbone import Backbone, classifier_name, construct_checked
from cl_runner.backbones.stem import Stem, check_stem, set_stem
from cl_runner.backbones.weights import load_state, read_state
from cl_runner.downloads import download
from cl_runner.errors import RequestError, nearest
from cl_runner.unpacking import unpack_member

STORE = Path("~/.torch/models")


class PytorchCV(Backbone):
    """A network of ``pytorchcv.model_provider``, such as ``resnet20_cifar10``.

    The average pool that ends the features is made to take a map of any size: with its published size it gives the
    same values, and other image sizes run.

    Args:
        name: pytorchcv's name of the network.
        pretrained: False, True (pytorchcv's model store), or the path of a weights file.
        stem: "original"; "small" (3x3, stride 1, no max-pool); or "auto", small for images of at most 64 pixels when
            not pretrained. Networks made for small images (``*_cifar10``) have nothing to change and stay as they are.

    Raises:
        RequestError: ``stem`` is unknown.
    """

    def __init__(self, *, name: str, pretrained: bool | str = False, stem: Stem = "auto") -> None:
        self.name = name
        self.pretrained = pretrained
        self.stem = check_stem(stem)

    def build(self, *, in_channels: int, image_size: int, n_classes: int, load_weights: bool = True) -> nn.Module:
        """Builds the network; see `Backbone.build`."""
        from pytorchcv import model_provider

        if self.name not in model_provider._models:
            raise RequestError(
                f"backbone.name={self.name}: pytorchcv has no network of this name",
                nearest(self.name, list(model_provider._models)),
            )
        stem = "original" if self.stem == "auto" and self.pretrained else self.stem

        def construct(size: int) -> nn.Module:
            network = self._construct(in_channels, size, n_classes)
            set_stem(network, stem, in_channels=in_channels, image_size=size, n_classes=n_classes)
            return network

        network = construct_checked(
            construct, self.name, in_channels=in_channels, image_size=image_size, n_classes=n_classes
        )
        if load_weights and self.pretrained:
            if self.pretrained is True:
                path, own = self._published(), network.state_dict()
                # As pytorchcv itself does, names that only the published network has are left out.
                state: dict[str, Tensor] = {key: value for key, value in read_state(path).items() if key in own}
            else:
                path, state = Path(self.pretrained), read_state(self.pretrained)
            load_state(network, state, classifier_name(network, n_classes), path)
        return network

    def _construct(self, in_channels: int, image_size: int, n_classes: int) -> nn.Module:
        network = self._first_that_builds(in_channels, n_classes, image_size)
        published: Any = network.num_classes
        if published != n_classes:
            name = classifier_name(network, published)
            network.set_submodule(name, _with_classes(network.get_submodule(name), n_classes))
        for name, module in list(network.named_modules()):
            if _is_global_pool(name, module):
                network.set_submodule(name, nn.AdaptiveAvgPool2d(1))
        return network

    def _first_that_builds(self, in_channels: int, n_classes: int, image_size: int) -> nn.Module:
        """Some networks assert 10 or 100 classes (CIFAR), some their published size (EfficientNet), in vain."""
        from pytorchcv.model_provider import get_model

        classes: dict[str, Any] = {"num_classes": n_classes}
        size: dict[str, Any] = {"in_size": (image_size, image_size)}
        refusal: Exception | None = None
        for options in (classes | size, classes, size, {}):
            try:
                return get_model(self.name, in_channels=in_channels, **options)
            except (AssertionError, TypeError) as error:
                refusal = refusal or error
        raise refusal or AssertionError(self.name)

    def _published(self) -> Path:
        """Returns the file of the published weights, downloaded into pytorchcv's store where it is not there yet."""
        from pytorchcv.models.common import model_store

        try:
            error, checksum, release = model_store.get_model_name_suffix_data(self.name)
        except ValueError:
            checksum = release = "NA"
        if "NA" in (checksum, release):
            raise RequestError(
                f"backbone.pretrained=true: pytorchcv publishes no weights for {self.name}",
                "use backbone.pretrained=false, or backbone.pretrained=PATH with a weights file",
            )
        file = STORE.expanduser() / f"{self.name}-{error}-{checksum[:8]}.pth"
        if file.is_file() and _sha1(file) == checksum:
            return file
        hint = (
            f"place {file.name} (SHA-1 {checksum}) at {file}, or name a weights file you have: backbone.pretrained=PATH"
        )
        packed, request = file.with_name(f"{file.name}.zip"), "backbone.pretrained=true"
        url = f"{model_store.imgclsmob_repo_url}/releases/download/{release}/{packed.name}"
        download(url, packed, "", request, by_hand=hint)
        try:
            unpack_member(packed, file.name, request)
        finally:
            packed.unlink(missing_ok=True)
        if _sha1(file) != checksum:
            file.unlink()
            raise RequestError(f"{request}: what {url} holds is altered: SHA-1 {checksum} expected", hint)
        return file


def _sha1(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha1").hexdigest()


def _is_global_pool(name: str, module: nn.Module) -> bool:
    """True for the average pool that the published image size reduces to 1x1."""
    if not isinstance(module, nn.AvgPool2d) or module.stride not in (1, (1, 1)) or module.padding not in (0, (0, 0)):
        return False
    kernel = module.kernel_size if isinstance(module.kernel_size, int) else module.kernel_size[0]
    # Inside a network, pools of stride 1 are 3x3.
    return name.endswith("final_pool") or kernel > 3


def _with_classes(classifier: Any, n_classes: int) -> nn.Module:
    """Returns a classifier like ``classifier`` with ``n_classes`` outputs and PyTorch's default initialisation."""
    bias = classifier.bias is not None
    if isinstance(classifier, nn.Linear):
        return nn.Linear(classifier.in_features, n_classes, bias=bias)
    return nn.Conv2d(
        classifier.in_channels, n_classes, classifier.kernel_size, classifier.stride, classifier.padding, bias=bias
    )
