"""Terms that adapters add to the loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from cl_runner.adapters.factors import LoRAFactors


def ordering(factors: Iterable[LoRAFactors]) -> Tensor | None:
    """Sum over layers and components i = 0 .. r - 1 of i / (r - 1) * ||A_i||_2 ||B_i||_2; None without layers.

    A_i is row i of A, B_i column i of B. Late components cost more, so that what matters moves to the first ones.
    """
    total: Tensor | None = None
    for item in factors:
        steps = torch.arange(item.rank, device=item.A.device, dtype=item.A.dtype) / max(1, item.rank - 1)
        term = (steps * _norms(item.A.flatten(1), 1) * _norms(item.B.flatten(1), 0)).sum()
        total = term if total is None else total + term
    return total


def direction(previous: Sequence[Tensor], current: Sequence[Tensor]) -> Tensor:
    """1 - cos(w_prev, w_cur), where w concatenates all the given tensors; 0 where either has no length."""
    products = torch.stack([(old * new).sum() for old, new in zip(previous, current, strict=True)]).sum()
    before = torch.stack([old.square().sum() for old in previous]).sum()
    now = torch.stack([new.square().sum() for new in current]).sum()
    lengths = (before * now).clamp_min(torch.finfo(now.dtype).tiny).sqrt()
    return torch.where(before * now > 0, 1 - products / lengths, torch.zeros_like(products))


def _norms(matrix: Tensor, dim: int) -> Tensor:
    """||.||_2 along a dimension, with gradient 0 instead of NaN where a component is zero, as B's are at first."""
    squares = matrix.square().sum(dim)
    zero = squares == 0
    return torch.where(zero, torch.zeros_like(squares), torch.where(zero, torch.ones_like(squares), squares).sqrt())
