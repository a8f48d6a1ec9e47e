"""A small convolutional network for small images."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from cl_runner.backbones.backbone import Backbone
from cl_runner.backbones.weights import load_state, read_state
from cl_runner.errors import RequestError


class SmallCNN(Backbone):
    """Blocks of 3x3 convolution, BatchNorm and ReLU for images of about 8 to 64 pixels.

    Block i has ``width * 2**i`` channels; a 2x2 max-pool follows it while the map is larger than 4x4. The classifier
    is linear on a 2x2 average of the last map: a global average would lose where a stroke is, which digits need.

    Args:
        name: what to call it.
        pretrained: False, or the path of a weights file of the same network; nobody publishes weights for it.
        layers: number of blocks, at least 1.
        width: channels of the first block, at least 1.

    Raises:
        RequestError: an argument is out of its range.
    """

    def __init__(
        self, *, name: str = "small_cnn", pretrained: bool | str = False, layers: int = 2, width: int = 32
    ) -> None:
        for key, value, example in (("layers", layers, 2), ("width", width, 32)):
            if value < 1:
                raise RequestError(
                    f"backbone.{key}={value}: must be at least 1", f"for example backbone.{key}={example}"
                )
        if pretrained is True:
            raise RequestError(
                f"backbone.pretrained=true: there are no published weights for {name}",
                "use backbone.pretrained=false, or backbone.pretrained=PATH with a weights file",
            )
        self.name = name
        self.pretrained = pretrained
        self.layers = layers
        self.width = width

    def build(self, *, in_channels: int, image_size: int, n_classes: int, load_weights: bool = True) -> nn.Module:
        """Builds the network; see `Backbone.build`."""
        if image_size < 2:
            raise RequestError(
                f"backbone.name={self.name} cannot run at benchmark.image_size={image_size}",
                "it needs at least 2 pixels; 8 to 64 are its range",
            )
        blocks: OrderedDict[str, nn.Module] = OrderedDict()
        size, channels = image_size, in_channels
        for i in range(self.layers):
            width, reduce = self.width * 2**i, size > 4
            blocks[f"block{i + 1}"] = self._block(channels, width, reduce)
            size, channels = size // 2 if reduce else size, width
        # Cells of an adaptive 2x2 average, written with fixed sizes because the adaptive one has no deterministic
        # backward pass on CUDA.
        blocks["pool"] = nn.AvgPool2d(kernel_size=size - size // 2, stride=size // 2)
        blocks["flatten"] = nn.Flatten()
        blocks["classifier"] = nn.Linear(4 * channels, n_classes)
        network = nn.Sequential(blocks)
        if load_weights and isinstance(self.pretrained, str):
            load_state(network, read_state(self.pretrained), "classifier", self.pretrained)
        return network

    @staticmethod
    def _block(in_channels: int, out_channels: int, reduce: bool) -> nn.Sequential:
        parts: OrderedDict[str, nn.Module] = OrderedDict(
            # BatchNorm takes the mean away, so a bias before it would do nothing.
            conv=nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
            norm=nn.BatchNorm2d(out_channels),
            relu=nn.ReLU(inplace=True),
        )
        if reduce:
            parts["pool"] = nn.MaxPool2d(2)
        return nn.Sequential(parts)
