"""How a weight delta meets a layer: W + DeltaW, with DeltaW from the set that is active.

An adapted layer keeps its class's name, parameters and place in the network; it only gains a dictionary of deltas.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from cl_runner.errors import RequestError


class AdaptedLayer(nn.Module):
    """What every adapted layer has besides its own weight.

    Attributes:
        deltas: set name -> module whose call gives DeltaW in the shape of the weight.
        active: the set in use, or None for the base weight alone.
        merged: the set whose DeltaW is added to the weight itself, or None.
    """

    deltas: nn.ModuleDict
    active: str | None
    merged: str | None
    weight: Tensor

    def effective_weight(self) -> Tensor:
        """The weight that the layer computes with."""
        if self.active is None or self.active not in self.deltas or self.merged == self.active:
            return self.weight
        return self.weight + self.deltas[self.active]()


class AdaptedLinear(nn.Linear, AdaptedLayer):
    """Linear layer with weight (d_out, d_in) + DeltaW."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) to (..., d_out)."""
        return functional.linear(x, self.effective_weight(), self.bias)


class AdaptedConv2d(nn.Conv2d, AdaptedLayer):
    """Convolution with weight (c_out, c_in / groups, k_h, k_w) + DeltaW; stride, padding and groups as before."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, W) to (B, c_out, H', W')."""
        return self._conv_forward(x, self.effective_weight(), self.bias)


ADAPTED: dict[type[nn.Module], type[AdaptedLayer]] = {nn.Linear: AdaptedLinear, nn.Conv2d: AdaptedConv2d}


def adapt(layer: nn.Module, name: str) -> AdaptedLayer:
    """Turns a layer into an adapted one in place; its output does not change.

    Raises:
        RequestError: the layer is a subclass with a forward of its own, which a delta would bypass.
    """
    if isinstance(layer, AdaptedLayer):
        return layer
    kind = next((known for known in ADAPTED if type(layer).forward is known.forward and isinstance(layer, known)), None)
    if kind is None:
        raise RequestError(
            f"placement: layer '{name}' is a {type(layer).__name__}, which computes its own forward",
            "leave it out with placement.pattern or placement.names",
        )
    layer.__class__ = ADAPTED[kind]
    assert isinstance(layer, AdaptedLayer)
    layer.deltas, layer.active, layer.merged = nn.ModuleDict(), None, None
    return layer


def kind_of(layer: nn.Module) -> str:
    """conv or linear, as `layers.csv` says it."""
    return "conv" if isinstance(layer, nn.Conv2d) else "linear"


def full_rank(layer: nn.Module) -> int:
    """Largest rank that a delta of the layer's weight can have.

    min(d_out, d_in) for a linear layer, min(c_out, c_in / groups * k_h * k_w) for a convolution.
    """
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return min(weight.shape[0], weight[0].numel())
