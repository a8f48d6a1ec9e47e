"""How a weight delta meets a layer: W + DeltaW, with DeltaW from the set that is active.

An adapted layer keeps its parameters and its place in the network; it only gains a dictionary of deltas. Its `weight`
reads as W + DeltaW, so that code that takes the weight without calling the layer (torch's MultiheadAttention, Swin's
windows) computes with the delta too. A packed projection (q, k and v in one weight) gains up to three slices, each a
site of its own.
"""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cl_runner.adapters import compute
from cl_runner.adapters.factors import LowRank
from cl_runner.errors import RequestError

PIECES = ("q", "k", "v")
ELSEWHERE = "leave it out with placement.pattern or placement.names"


class Site(nn.Module):
    """One weight that takes deltas: a layer's own, or the rows of q, k or v in a packed one.

    Attributes:
        deltas: set name -> module whose call gives DeltaW, rows first.
        active: the set in use, or None for the base weight alone.
        merged: the set whose DeltaW is added to the base weight itself, or None.
        compute: how a linear layer computes a low-rank delta: auto, two_path or merged.
    """

    deltas: nn.ModuleDict
    active: str | None
    merged: str | None
    compute: str
    transposed: ClassVar[bool] = False

    @property
    def base_weight(self) -> Tensor:
        """W with outputs as rows, (d_out, d_in) or (c_out, c_in / groups, k_h, k_w); shares the layer's memory."""
        raise NotImplementedError

    def current(self) -> nn.Module | None:
        """The delta that the forward pass has to add; None where there is none or it is merged."""
        if self.active is None or self.active not in self.deltas or self.merged == self.active:
            return None
        return self.deltas[self.active]

    def in_layout(self, delta: Tensor) -> Tensor:
        """A delta with rows first, in the layout of the layer's own weight."""
        return delta.t() if self.transposed else delta


@torch.no_grad()
def add_to(site: Site, delta: Tensor) -> None:
    """W += DeltaW, counted as a change of W: whoever has kept something computed from W sees it by its version."""
    site.base_weight.add_(delta)


def prepare(site: Site, how: str) -> None:
    """Gives a site its empty dictionary of deltas."""
    site.deltas, site.active, site.merged, site.compute = nn.ModuleDict(), None, None, how


class AdaptedLayer(Site):
    """What every layer that is adapted as a whole has besides its own weight."""

    @property
    def base_weight(self) -> Tensor:
        """W, the parameter that `weight` names in the state dict, rows first."""
        weight = self._parameters["weight"]
        assert weight is not None
        return weight.t() if self.transposed else weight

    @property
    def weight(self) -> Tensor:
        """W + DeltaW, the weight that the layer computes with, in the layer's own layout."""
        own = self._parameters["weight"]
        assert own is not None
        delta = self.current()
        return own if delta is None else (own + self.in_layout(delta())).to(own.dtype)


class AdaptedLinear(AdaptedLayer, nn.Linear):  # type: ignore[misc,override]
    """Linear layer with weight (d_out, d_in) + DeltaW."""

    def forward(self, x: Tensor) -> Tensor:
        """x (W + DeltaW)^T + b."""
        delta = self.current()
        if isinstance(delta, LowRank):
            return compute.linear(x, self.base_weight, self.bias, delta, self.compute)
        return super().forward(x)


class AdaptedConv2d(AdaptedLayer, nn.Conv2d):  # type: ignore[misc,override]
    """Convolution with weight (c_out, c_in / groups, k_h, k_w) + DeltaW; stride, padding and groups as before."""


class Slice(Site):
    """The rows of q, k or v in a packed projection."""

    def __init__(self, owner: Packed, piece: str, how: str) -> None:
        super().__init__()
        self.__dict__["owner"] = (owner,)  # in a tuple: the owner is no submodule of its slice
        self.piece = PIECES.index(piece)
        prepare(self, how)

    @property
    def base_weight(self) -> Tensor:
        """The rows of W that this slice stands for, (d_out / 3, d_in)."""
        rows: Tensor = self.__dict__["owner"][0].packed_rows().chunk(3)[self.piece]
        return rows

    def in_layout(self, delta: Tensor) -> Tensor:
        """A delta with rows first, in the layout of the packed weight."""
        owner: Packed = self.__dict__["owner"][0]
        return delta.t() if owner.packed_transposed else delta


class Packed(nn.Module):
    """A layer whose one weight holds the rows of q, k and v; slices are its submodules of these names."""

    packed_name: ClassVar[str] = "weight"
    packed_transposed: ClassVar[bool] = False

    def packed_rows(self) -> Tensor:
        """The packed W, rows first, (3 d, d_in)."""
        weight = self._parameters[self.packed_name]
        assert weight is not None
        return weight.t() if self.packed_transposed else weight

    def packed_weight(self) -> Tensor:
        """The packed W + DeltaW in the layer's own layout."""
        slices: list[Any] = [self._modules.get(piece) for piece in PIECES]
        deltas = [None if piece is None else piece.current() for piece in slices]
        own = self._parameters[self.packed_name]
        assert own is not None
        if all(delta is None for delta in deltas):
            return own
        side = 1 if self.packed_transposed else 0  # in W's own memory order, so that DeltaW = 0 changes no bit
        parts = [
            part if delta is None else (part + (delta().t() if side else delta())).to(own.dtype)
            for part, delta in zip(own.chunk(3, side), deltas, strict=True)
        ]
        return torch.cat(parts, side)

    def finer(self) -> list[tuple[int, LowRank]]:
        """Slices whose factors have more bits than the weight, which would swallow them: they take a path apart."""
        slices: list[Any] = [self._modules.get(piece) for piece in PIECES]
        deltas = [None if piece is None else piece.current() for piece in slices]
        kind = self.packed_rows().dtype
        return [
            (place, delta)
            for place, delta in enumerate(deltas)
            if isinstance(delta, LowRank) and next(delta.parameters()).dtype != kind
        ]

    def two_path(self, x: Tensor, bias: Tensor | None, slices: list[tuple[int, LowRank]]) -> Tensor:
        """x W^T + b, and for each of these slices the low-rank path onto its own third of the outputs."""
        whole = compute.plain(x, self.packed_rows(), bias, self.packed_transposed)
        pieces = list(whole.chunk(3, -1))
        for place, delta in slices:
            pieces[place] = pieces[place] + compute.low_rank(x, delta, *delta.factors())
        return torch.cat(pieces, -1)


class SlicedLinear(Packed, nn.Linear):
    """A fused qkv layer with weight (3 d, d_in), adapted slice by slice."""

    def forward(self, x: Tensor) -> Tensor:
        """x (W + DeltaW)^T + b."""
        slices = self.finer()
        return self.two_path(x, self.bias, slices) if slices else super().forward(x)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """W + DeltaW."""
        return self.packed_weight()


class SlicedAttention(Packed, nn.MultiheadAttention):
    """torch's attention with packed projections (3 d, d), adapted slice by slice."""

    packed_name = "in_proj_weight"

    @property
    def in_proj_weight(self) -> Tensor:  # type: ignore[override]
        """W + DeltaW."""
        return self.packed_weight()


@functools.cache
def conv1d_classes(kind: type[nn.Module]) -> tuple[type[AdaptedLayer], type[Packed]]:
    """The adapted and the sliced form of transformers' Conv1D, y = x W + b with W (d_in, d_out)."""

    class AdaptedConv1D(AdaptedLayer, kind):  # type: ignore[misc,valid-type]
        """Conv1D with weight (d_in, d_out) + DeltaW^T."""

        transposed = True

        def forward(self, x: Tensor) -> Tensor:
            delta = self.current()
            if isinstance(delta, LowRank):
                return compute.linear(x, self.base_weight, self.bias, delta, self.compute, transposed=True)  # type: ignore[arg-type]
            y: Tensor = super().forward(x)
            return y

    class SlicedConv1D(Packed, kind):  # type: ignore[misc,valid-type]
        """Fused Conv1D with weight (d_in, 3 d), adapted slice by slice."""

        packed_transposed = True

        def forward(self, x: Tensor) -> Tensor:
            slices = self.finer()
            if slices:
                return self.two_path(x, self.bias, slices)  # type: ignore[arg-type]
            y: Tensor = super().forward(x)
            return y

        @property
        def weight(self) -> Tensor:
            return self.packed_weight()

    return AdaptedConv1D, SlicedConv1D


def is_conv1d(layer: nn.Module) -> bool:
    """Whether the layer is transformers' Conv1D; says so without importing transformers."""
    return any(
        base.__name__ == "Conv1D" and base.__module__.startswith("transformers.") for base in type(layer).__mro__
    )


def adapt(root: nn.Module, name: str, how: str = compute.AUTO) -> Site:
    """Turns the layer ``name`` of a network, or a slice of it, into a site in place; its output does not change.

    Args:
        root: the network.
        name: of a layer, or of a packed layer and ".q", ".k" or ".v".
        how: see `Site.compute`.

    Raises:
        RequestError: the layer is a subclass with a forward of its own, which a delta would bypass.
    """
    parent, _, piece = name.rpartition(".")
    owner = root.get_submodule(parent)
    if piece in PIECES and (isinstance(owner, Packed) or piece not in owner._modules):
        refuse_tied(root, parent)
        return _slice(owner, parent, piece, how)
    refuse_tied(root, name)
    return adapt_layer(root.get_submodule(name), name, how)


def refuse_tied(root: nn.Module, name: str) -> None:
    """Raises RequestError where a layer's weight is another module's too: merging would change both."""
    layer = root.get_submodule(name)
    own = [layer._parameters.get(leaf) for leaf in ("weight", "in_proj_weight")]
    for other, parameter in root.named_parameters(remove_duplicate=False):
        where = other.rpartition(".")[0]
        if where != name and any(parameter is item for item in own):
            raise RequestError(
                f"placement: '{name}' shares its weight with '{where}', and merging would change both", ELSEWHERE
            )


def adapt_layer(layer: nn.Module, name: str, how: str = compute.AUTO) -> Site:
    """Turns a whole layer into a site in place."""
    if isinstance(layer, Site):
        return layer
    layer.__class__ = _form(layer, name, {nn.Linear: AdaptedLinear, nn.Conv2d: AdaptedConv2d}, 0)
    assert isinstance(layer, Site)
    prepare(layer, how)
    return layer


def _slice(owner: nn.Module, name: str, piece: str, how: str) -> Slice:
    if not isinstance(owner, Packed):
        if isinstance(owner, nn.MultiheadAttention) and not owner._qkv_same_embed_dim:
            raise RequestError(f"placement: the attention '{name}' keeps q, k and v apart (kdim or vdim)", ELSEWHERE)
        forms = {nn.Linear: SlicedLinear, nn.MultiheadAttention: SlicedAttention}
        owner.__class__ = _form(owner, name, forms, 1)
    assert isinstance(owner, Packed)
    if piece not in owner._modules:
        owner.add_module(piece, Slice(owner, piece, how))
    found = owner._modules[piece]
    assert isinstance(found, Slice)
    return found


def _form(layer: nn.Module, name: str, forms: dict[Any, Any], which: int) -> Any:
    """The class that the layer becomes: one of ``forms``, or that of Conv1D (0 adapted, 1 sliced)."""
    kind = next((known for known in forms if isinstance(layer, known) and type(layer).forward is known.forward), None)
    if kind is not None:
        return forms[kind]
    if is_conv1d(layer) and type(layer).__name__ == "Conv1D":
        return conv1d_classes(type(layer))[which]  # type: ignore[arg-type]
    raise RequestError(
        f"placement: layer '{name}' is a {type(layer).__name__}, which computes its own forward", ELSEWHERE
    )


def kind_of(site: nn.Module) -> str:
    """conv or linear, as `layers.csv` says it."""
    return "conv" if isinstance(site, nn.Conv2d) else "linear"


def full_rank(site: Site) -> int:
    """Largest rank that a delta of the weight can have.

    min(d_out, d_in) for a linear layer, min(c_out, c_in / groups * k_h * k_w) for a convolution.
    """
    weight = site.base_weight
    return min(weight.shape[0], weight[0].numel())
