"""How a weight delta meets a layer: W + DeltaW, with DeltaW from the set that is active.

An adapted layer keeps its parameters and its place in the network; it only gains a dictionary of deltas. Its `weight`
reads as W + DeltaW, so that code that takes the weight without calling the layer (torch's MultiheadAttention, Swin's
windows) computes with the delta too.
"""

from __future__ import annotations

from torch import Tensor, nn

from cl_runner.errors import RequestError


class AdaptedLayer(nn.Module):
    """What every adapted layer has besides its own weight.

    Attributes:
        deltas: set name -> module whose call gives DeltaW in the shape of the weight.
        active: the set in use, or None for the base weight alone.
        merged: the set whose DeltaW is added to the base weight itself, or None.
    """

    deltas: nn.ModuleDict
    active: str | None
    merged: str | None

    @property
    def base_weight(self) -> Tensor:
        """W, the parameter that `weight` names in the state dict."""
        weight = self._parameters["weight"]
        assert weight is not None
        return weight

    @property
    def weight(self) -> Tensor:
        """W + DeltaW, the weight that the layer computes with."""
        if self.active is None or self.active not in self.deltas or self.merged == self.active:
            return self.base_weight
        return self.base_weight + self.deltas[self.active]()


class AdaptedLinear(AdaptedLayer, nn.Linear):  # type: ignore[misc,override]
    """Linear layer with weight (d_out, d_in) + DeltaW."""


class AdaptedConv2d(AdaptedLayer, nn.Conv2d):  # type: ignore[misc,override]
    """Convolution with weight (c_out, c_in / groups, k_h, k_w) + DeltaW; stride, padding and groups as before."""


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
