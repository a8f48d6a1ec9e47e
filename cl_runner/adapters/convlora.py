"""ConvLoRA: low-rank updates of convolutions, one set per task (Aleem et al., ISBI 2024)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.adapters.factors import Delta, LoRAFactors
from cl_runner.adapters.layers import Site, full_rank
from cl_runner.adapters.per_task import PerTaskAdapter


class ConvLoRA(PerTaskAdapter):
    """DeltaW = alpha / r * (B A), reshaped to the convolution's weight.

    For a weight (c_out, c_in / groups, k, k): A is (r k, c_in k), Kaiming-uniform (a = sqrt 5), and B is
    (c_out / groups * k, r k), zero, so that DeltaW starts at zero; r k^2 (c_in + c_out) parameters where groups = 1.
    A rectangular kernel (k_h, k_w) takes A (r m, c_in k_w) and B (c_out / groups * k_h, r m) with m = min(k_h, k_w).
    Linear layers get LoRA's A (r, d_in) and B (d_out, r).

    Every task has its own A and B, its own copy of every BatchNorm layer and its own head. Constructor arguments
    are those of `PerTaskAdapter`.

    Source: Aleem et al., "ConvLoRA and AdaBN based domain adaptation via self-training", ISBI 2024; the continual
    setting with per-task state is that of the PeerJ study of low-rank adapters against forgetting.
    """

    def make_delta(self, layer: Site, rank: int, scaling: float) -> Delta:
        """ConvLoRA's factors for a convolution, LoRA's for a linear layer."""
        if isinstance(layer, nn.Conv2d):
            return ConvFactors(layer.base_weight, layer.groups, rank, scaling)
        return LoRAFactors(layer.base_weight, rank, scaling)

    def own_rank(self, layer: Site) -> int:
        """Rank at which B A reaches full rank: r m = min(c_out / groups * k_h, c_in * k_w) on a convolution."""
        if not isinstance(layer, nn.Conv2d):
            return full_rank(layer)
        rows, inner, columns = factor_shape(layer.base_weight.shape, layer.groups)
        return min(rows, columns) // inner


class ConvFactors(Delta):
    """The pair A, B of one convolution under one task; see `ConvLoRA` for their shapes."""

    def __init__(self, weight: Tensor, groups: int, rank: int, scaling: float) -> None:
        super().__init__()
        rows, inner, columns = factor_shape(weight.shape, groups)
        like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        self.A = nn.Parameter(torch.empty(rank * inner, columns, **like))
        self.B = nn.Parameter(torch.zeros(rows, rank * inner, **like))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.shape, self.scaling, self.inner = weight.shape, scaling, inner

    @property
    def rank(self) -> int:
        """r, of which A has m = min(k_h, k_w) rows each."""
        return self.A.shape[0] // self.inner

    def forward(self) -> Tensor:
        """DeltaW in the shape of the weight."""
        delta = (self.B @ self.A).view(self.shape)
        return delta if self.scaling == 1 else delta * self.scaling


def factor_shape(shape: torch.Size, groups: int) -> tuple[int, int, int]:
    """(rows of B, rows of A per rank, columns of A) for a weight (c_out, c_in / groups, k_h, k_w)."""
    out_channels, group_channels, height, width = shape
    return out_channels // groups * height, min(height, width), group_channels * groups * width
