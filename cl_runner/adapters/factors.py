"""What an adapter learns for one weight: DeltaW, and the low-rank factors that it is the product of."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def factor_dtype(weight: Tensor) -> torch.dtype:
    """The type in which factors learn: the weight's own, and float32 where that has too few bits for small steps."""
    return torch.float32 if weight.dtype in (torch.bfloat16, torch.float16) else weight.dtype


class Delta(nn.Module):
    """DeltaW of one weight: calling it gives DeltaW, rows first, in the shape of the layer's `base_weight`."""

    @property
    def rank(self) -> int | None:
        """The rank that is kept; None where the form has none."""
        return None


class LowRank(Delta):
    """DeltaW = L R, so that a linear layer may compute x R^T L^T instead of forming DeltaW.

    Attributes:
        shape: of the weight.
        dropout: probability with which an entry of the input of R is dropped in training.
    """

    shape: torch.Size
    dropout: float = 0.0

    def factors(self) -> tuple[Tensor, Tensor]:
        """(L, R) of shapes (rows, r) and (r, columns); the scale is in L."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        """DeltaW in the shape of the weight."""
        left, right = self.factors()
        return (left @ right).view(self.shape)


class LoRAFactors(LowRank):
    """DeltaW = scaling * B A (Hu et al., ICLR 2022).

    For a linear layer A is (r, d_in) and B (d_out, r); for a convolution A is (r, c_in / groups, k_h, k_w) and B
    (c_out, r, 1, 1), so that component i is (B[:, i], A[i]). A is Kaiming-uniform (a = sqrt 5), B zero. Over a weight
    in half precision both are float32.

    Only the first `limit` components count; the others are masked, so that shapes stay the same.

    Args:
        weight: (d_out, d_in) or (c_out, c_in / groups, k_h, k_w).
        rank: r.
        scaling: alpha / r.
        dropout: see `LowRank`.
    """

    def __init__(self, weight: Tensor, rank: int, scaling: float, dropout: float = 0.0) -> None:
        super().__init__()
        like: dict[str, Any] = {"device": weight.device, "dtype": factor_dtype(weight)}
        self.A = nn.Parameter(torch.empty(rank, *weight.shape[1:], **like))
        self.B = nn.Parameter(torch.zeros(weight.shape[0], rank, *([1] * (weight.dim() - 2)), **like))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))
        self.shape, self.scaling, self.dropout = weight.shape, scaling, dropout
        self.train_limit: int | None = None
        self.eval_limit: int | None = None

    @property
    def rank(self) -> int:
        """Components that are stored."""
        return self.A.shape[0]

    @property
    def limit(self) -> int:
        """Components that count now: in training all or as many as were drawn, at evaluation those asked for."""
        limit = self.train_limit if self.training else self.eval_limit
        return self.rank if limit is None else min(limit, self.rank)

    def factors(self) -> tuple[Tensor, Tensor]:
        """(scaling * B, A), flat, with masked columns of B where fewer components count than are stored."""
        left, right = self.B.flatten(1), self.A.flatten(1)
        if self.limit < self.rank:
            left = left * self.kept(left)
        return (left if self.scaling == 1 else left * self.scaling), right

    def kept(self, like: Tensor) -> Tensor:
        """The mask (r,): one for a component that counts, else zero."""
        return (torch.arange(self.rank, device=like.device) < self.limit).to(like.dtype)

    def truncate(self, rank: int) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Drops all components but the first ``rank``; returns (old, new) of every parameter."""
        return self.keep(torch.arange(min(rank, self.rank), device=self.A.device))

    def keep(self, components: Tensor) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Drops all components but these, given by index; returns (old, new) of every parameter."""
        old = (self.A, self.B)
        self.A = nn.Parameter(self.A.detach()[components].clone(), requires_grad=self.A.requires_grad)
        self.B = nn.Parameter(self.B.detach()[:, components].clone(), requires_grad=self.B.requires_grad)
        return list(zip(old, (self.A, self.B), strict=True))
