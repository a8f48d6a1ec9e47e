"""Every method and every kind of layer, with what each must compute written out in numpy and in plain arithmetic."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from builders import train  # noqa: F401  (sets one thread)
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from cl_runner.adapters import CoDyRA, ConvLoRA, ConvLoRACP, DCLoRA, DyLoRA, Hybrid, LoRA, Placement

RANK, ALPHA = 2, 3.0

# ------------------------------------------------------------------------------------------------- layers


@dataclass(frozen=True)
class Conv:
    """Sizes of one convolution's weight."""

    c_in: int
    c_out: int
    height: int
    width: int
    groups: int = 1


@dataclass(frozen=True)
class Linear:
    """Sizes of one linear weight, or of one slice of a packed one; transposed where it is stored (d_in, d_out)."""

    d_in: int
    d_out: int
    transposed: bool = False


@dataclass(frozen=True)
class Kind:
    """A small network around one layer.

    Attributes:
        make: builds it.
        shape: of its input.
        sites: name of each weight that takes a delta -> (parameter, which third of its rows or None, its sizes).
        placement: how they are chosen.
    """

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    sites: dict[str, tuple[str, int | None, Conv | Linear]]
    placement: dict[str, Any] = field(default_factory=dict)


class Single(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class TorchAttention(nn.Module):
    """torch's attention, whose q, k and v are one parameter."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(6, 2, bias=bias, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attn(x, x, x, need_weights=False)[0]


class FusedAttention(nn.Module):
    """One head of attention over a fused projection: timm's `qkv` or GPT-2's `c_attn`."""

    def __init__(self, name: str, layer: nn.Module) -> None:
        super().__init__()
        self.name = name
        setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = getattr(self, self.name)(x).chunk(3, dim=-1)
        return functional.scaled_dot_product_attention(q, k, v)


def conv(c_in: int, c_out: int, kernel: Any, **options: Any) -> Kind:
    height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
    sizes = Conv(c_in, c_out, height, width, options.get("groups", 1))
    return Kind(
        lambda: Single(nn.Conv2d(c_in, c_out, kernel, **options)),
        (2, c_in, 7, 7),
        {"layer": ("layer.weight", None, sizes)},
    )


def linear(shape: tuple[int, ...], **options: Any) -> Kind:
    return Kind(lambda: Single(nn.Linear(7, 5, **options)), shape, {"layer": ("layer.weight", None, Linear(7, 5))})


def conv1d(d_out: int, d_in: int) -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(d_out, d_in)


def packed(owner: str, parameter: str, transposed: bool = False) -> dict[str, Any]:
    return {f"{owner}.{piece}": (parameter, i, Linear(6, 6, transposed)) for i, piece in enumerate("qkv")}


OUT = {"attn.out_proj": ("attn.out_proj.weight", None, Linear(6, 6))}
ROLES = {"roles": ["q", "k", "v"]}
KINDS = {
    "linear": linear((4, 7)),
    "linear-no-bias": linear((4, 7), bias=False),
    "linear-on-tokens": linear((2, 3, 7)),
    "linear-on-tokens-no-bias": linear((2, 3, 7), bias=False),
    "linear-one-vector": linear((7,)),
    "conv3x3": conv(4, 6, 3, padding=1),
    "conv-no-bias": conv(4, 6, 3, bias=False),
    "conv-stride": conv(4, 6, 3, stride=2, padding=1),
    "conv-asymmetric": conv(4, 6, 3, stride=(2, 1), padding=(0, 2)),
    "conv-same": conv(4, 6, 3, padding="same"),
    "conv-same-2x3": conv(4, 6, (2, 3), padding="same"),
    "conv-dilation": conv(4, 6, 3, dilation=2),
    "conv-groups": conv(4, 6, 3, groups=2),
    "conv-depthwise": conv(4, 4, 3, groups=4, padding=1),
    "conv-depthwise-multiplier": conv(4, 8, 3, groups=4),
    "conv1x1": conv(4, 6, 1),
    "conv3x1": conv(4, 6, (3, 1)),
    "conv1x5": conv(4, 6, (1, 5)),
    "conv2x3": conv(4, 6, (2, 3)),
    "conv2x3-groups": conv(4, 6, (2, 3), groups=2),
    "conv-reflect": conv(4, 6, 3, padding=2, padding_mode="reflect"),
    "conv-replicate": conv(4, 6, 3, padding=(1, 2), padding_mode="replicate"),
    "conv-circular": conv(4, 6, 3, padding=(1, 2), padding_mode="circular"),
    "Conv1D": Kind(lambda: Single(conv1d(5, 7)), (2, 3, 7), {"layer": ("layer.weight", None, Linear(7, 5, True))}),
    "MultiheadAttention": Kind(TorchAttention, (2, 5, 6), packed("attn", "attn.in_proj_weight") | OUT),
    "MultiheadAttention-no-bias": Kind(
        lambda: TorchAttention(bias=False), (2, 5, 6), packed("attn", "attn.in_proj_weight") | OUT
    ),
    "fused-qkv": Kind(
        lambda: FusedAttention("qkv", nn.Linear(6, 18)), (2, 5, 6), packed("qkv", "qkv.weight"), ROLES
    ),
    "fused-c_attn": Kind(
        lambda: FusedAttention("c_attn", conv1d(18, 6)), (2, 5, 6), packed("c_attn", "c_attn.weight", True), ROLES
    ),
}  # fmt: skip

# ------------------------------------------------------------------------------------------------- methods


@dataclass(frozen=True)
class Method:
    """A method with what it must compute.

    Attributes:
        make: builds the adapter at rank 2.
        factors: names of its parameters on a convolution.
        on_linear: names of its parameters on a linear layer.
        conv_count: numbers that it stores for a convolution.
        conv_delta: DeltaW of a convolution (c_out, c_in / groups, k_h, k_w) from its factors.
        scale: of DeltaW.
        shared: whether one set serves all tasks.
        up: the factor that starts at zero on a convolution.
    """

    make: Callable[..., Any]
    factors: str = "AB"
    on_linear: str = "AB"
    conv_count: Callable[[Conv], int] = lambda s: RANK * (s.c_in // s.groups * s.height * s.width + s.c_out)
    conv_delta: Callable[[dict[str, np.ndarray], Conv], np.ndarray] = lambda f, s: rank_one_sum(f)
    scale: float = ALPHA / RANK
    shared: bool = True
    up: str = "B"

    def set_name(self, task: int) -> str:
        return "shared" if self.shared else str(task)

    def count(self, sizes: Conv | Linear) -> int:
        """Numbers that the method stores for one weight."""
        if isinstance(sizes, Conv):
            return self.conv_count(sizes)
        return RANK * (sizes.d_in + sizes.d_out) + (RANK if "g" in self.on_linear else 0)

    def delta(self, factors: dict[str, np.ndarray], sizes: Conv | Linear) -> np.ndarray:
        """DeltaW with outputs as rows."""
        if isinstance(sizes, Conv):
            return self.scale * self.conv_delta(factors, sizes)
        return self.scale * rank_one_sum(factors)


def rank_one_sum(factors: dict[str, np.ndarray]) -> np.ndarray:
    """Sum over i of g_i * (column i of B) times (row i of A), with g_i = 1 where there are no gates."""
    down, up = factors["A"], factors["B"]
    gates = factors.get("g", np.ones(len(down)))
    shape = (up.shape[0], *down.shape[1:])
    total = np.zeros(shape)
    for i in range(len(down)):
        total += gates[i] * np.multiply.outer(up[:, i].reshape(-1), down[i])
    return total


def convlora_delta(f: dict[str, np.ndarray], s: Conv) -> np.ndarray:
    return (f["B"] @ f["A"]).reshape(s.c_out, s.c_in // s.groups, s.height, s.width)


def separable_delta(f: dict[str, np.ndarray], s: Conv) -> np.ndarray:
    terms = f["a"][:, None, :, :, None] * f["b"][:, None, :, None, :] * f["c"][:, :, :, None, None]
    return terms.sum(0)


def shared_spatial_delta(f: dict[str, np.ndarray], s: Conv) -> np.ndarray:
    terms = f["a"][:, None, :, None] * f["b"][:, None, None, :] * f["c"][:, :, None, None]
    return np.repeat(terms.sum(0)[:, None], s.c_in // s.groups, axis=1)


def made(kind: type, **fixed: Any) -> Callable[..., Any]:
    return lambda **options: kind(**{"rank": RANK, "alpha": ALPHA, "base": "frozen"} | fixed | options)


METHODS = {
    "lora": Method(made(LoRA)),
    "lora-per_task": Method(made(LoRA, sharing="per_task"), shared=False),
    "convlora": Method(
        made(ConvLoRA),
        conv_count=lambda s: RANK * min(s.height, s.width) * (s.c_in * s.width + s.c_out // s.groups * s.height),
        conv_delta=convlora_delta,
        shared=False,
    ),
    "convlora_cp": Method(
        made(ConvLoRACP),
        factors="abc",
        conv_count=lambda s: RANK * s.c_in // s.groups * (s.height + s.width + s.c_out),
        conv_delta=separable_delta,
        shared=False,
        up="c",
    ),
    "convlora_cp-shared_spatial": Method(
        made(ConvLoRACP, shared_spatial=True),
        factors="abc",
        conv_count=lambda s: RANK * (s.height + s.width + s.c_out),
        conv_delta=shared_spatial_delta,
        shared=False,
        up="c",
    ),
    "dylora-ordering": Method(made(DyLoRA)),
    "dylora-random_rank": Method(made(DyLoRA, training="random_rank")),
    "dclora": Method(made(DCLoRA)),
    "hybrid": Method(made(Hybrid)),
    "codyra": Method(
        lambda **options: CoDyRA(**{"rank": RANK, "base": "frozen"} | options),
        factors="ABg",
        on_linear="ABg",
        conv_count=lambda s: RANK * (s.c_in // s.groups * s.height * s.width + s.c_out + 1),
        scale=1.0,
        shared=False,  # a fresh set for every task
    ),
}
PAIRS = [(method, kind) for method in METHODS for kind in KINDS]


def base_of(kind: str, dtype: torch.dtype = torch.float64, seed: int = 3) -> nn.Module:
    """The network of a kind without an adapter; its weights and its biases are random."""
    torch.manual_seed(seed)
    model = KINDS[kind].make().to(dtype)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def inputs_of(kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """An input for the network of a kind."""
    return torch.randn(KINDS[kind].shape, generator=torch.Generator().manual_seed(5), dtype=dtype)


def adapted(
    method: str,
    kind: str,
    tasks: Sequence[int] = (0, 1),
    dtype: torch.dtype = torch.float64,
    seed: int = 3,
    **options: Any,
) -> tuple[nn.Module, nn.Module, Any]:
    """(base, the same adapted, its adapter), with the last task open and active."""
    base = base_of(kind, dtype, seed)
    model = copy.deepcopy(base)
    adapter = METHODS[method].make(**options)
    adapter.attach(model, Placement(**KINDS[kind].placement))
    for task in tasks:
        if task:
            adapter.end_task()
        adapter.begin_task(task)
    return base, model.eval(), adapter


def randomise(adapter: Any, seed: int = 11) -> None:
    """Gives every factor of every set random values; at zero most checks would be empty."""
    generator = torch.Generator().manual_seed(seed)
    for _, site in named_sites(adapter):
        for delta in site.deltas.values():
            for parameter in delta.parameters():
                parameter.data = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def named_sites(adapter: Any) -> list[tuple[str, Any]]:
    """The adapted weights by layer, the classifiers of all tasks under the head's name."""
    layers = [(name, adapter.root.get_submodule(name)) for name in adapter.adapted_layers()]
    return [(name, site) for name, layer in layers for site in getattr(layer, "classifiers", [layer])]


def expected_delta(method: str, kind: str, adapter: Any, name: str, which: str) -> np.ndarray:
    """DeltaW of one site in the layout of its layer, by numpy from the factors alone."""
    sizes = KINDS[kind].sites[name][2]
    delta = adapter.root.get_submodule(name).deltas[which]
    factors = {key: item.detach().numpy() for key, item in delta.named_parameters()}
    by_rows = METHODS[method].delta(factors, sizes)
    return by_rows.T if isinstance(sizes, Linear) and sizes.transposed else by_rows


def expected_output(method: str, kind: str, base: nn.Module, adapter: Any, which: str, x: Tensor) -> Tensor:
    """The base's own forward pass with W + DeltaW in the place of W."""
    weights = {name: item.detach().clone() for name, item in base.named_parameters()}
    for name, (parameter, third, sizes) in KINDS[kind].sites.items():
        delta = torch.from_numpy(expected_delta(method, kind, adapter, name, which))
        columns = isinstance(sizes, Linear) and sizes.transposed
        place = weights[parameter] if third is None else weights[parameter].chunk(3, dim=int(columns))[third]
        place += delta
    return functional_call(base, weights, (x,))
