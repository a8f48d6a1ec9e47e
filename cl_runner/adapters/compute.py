"""How a linear layer with a low-rank delta is computed: along two paths, or with merged weights.

Two paths: y = x W^T + (x R^T) L^T. Merged: y = x (W + L R)^T, whose backward pass forms only the gradients of L and R,
(g^T (x R^T)) and ((g L)^T x), never the full weight gradient g^T x. Both give the same result; the cheaper one depends
on the number of rows of x, and is chosen by counting.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from cl_runner.adapters.factors import LowRank

TWO_PATH, MERGED, AUTO = "two_path", "merged", "auto"
ELEMENT_COST = 16  # operations that a core does while it reads, adds and writes one element that is in memory


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, delta: LowRank, compute: str = AUTO, transposed: bool = False
) -> Tensor:
    """x (W + DeltaW)^T + b.

    Args:
        x: (..., d_in).
        weight: W, (d_out, d_in).
        bias: (d_out,) or None.
        delta: low-rank; its dropout, where it has one, acts on the low-rank path in training.
        compute: two_path, merged, or auto: the cheaper one, and two paths over a weight in half precision, whose
            few bits would swallow a small delta.
        transposed: the layer keeps W as (d_in, d_out) and multiplies with that, as Conv1D does; bit for bit the same.
    """
    left, right = delta.factors()
    drops = delta.training and delta.dropout > 0
    learns = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)
    finer = left.dtype != weight.dtype
    if compute == AUTO and finer:
        compute = TWO_PATH
    elif compute == AUTO:
        rows = x.numel() // max(1, x.shape[-1])
        two_path, merged = costs(rows, weight.shape[1], weight.shape[0], right.shape[0], training=learns)
        compute = TWO_PATH if two_path <= merged else MERGED
    if drops or compute == TWO_PATH:
        return plain(x, weight, bias, transposed) + low_rank(x, delta, left, right)
    if finer and not autocasts(x):
        left, right = left.to(weight.dtype), right.to(weight.dtype)
    if not learns or weight.requires_grad:
        return plain(x, merge(weight, left, right, transposed), bias, transposed)
    if autocasts(x):  # a backward pass runs outside autocast: one type from here on
        kind = torch.get_autocast_dtype(x.device.type)
        x, left, right = x.to(kind), left.to(kind), right.to(kind)
        bias = None if bias is None else bias.to(kind)
    y: Tensor = MergedLinear.apply(x, weight, bias, left, right, transposed)[0]  # type: ignore[no-untyped-call]
    return y


def autocasts(x: Tensor) -> bool:
    """Whether operations on ``x`` choose their type themselves; the meta device has no such thing."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def low_rank(x: Tensor, delta: LowRank, left: Tensor, right: Tensor) -> Tensor:
    """x R^T L^T, with the delta's dropout in training; outside autocast computed in the factors' type.

    Args:
        x: (..., d_in).
        delta: whose dropout counts.
        left, right: its factors (d_out, r) and (r, d_in).
    """
    low = functional.dropout(x, delta.dropout) if delta.training and delta.dropout > 0 else x
    if autocasts(x):
        return functional.linear(functional.linear(low, right), left)
    return functional.linear(functional.linear(low.to(right.dtype), right), left).to(x.dtype)


def plain(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """x W^T + b with the operation that the layer without a delta uses, so that DeltaW = 0 changes no bit."""
    if not transposed:
        return functional.linear(x, weight, bias)
    assert bias is not None
    return torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight.t()).view(*x.shape[:-1], -1)


def merge(weight: Tensor, left: Tensor, right: Tensor, transposed: bool) -> Tensor:
    """W + L R in the memory order of W.

    Where W is more precise than L and R, the sum is formed in W's type and rounded once: a small delta would vanish
    beside a W that is rounded first.
    """
    if transposed:
        return merge(weight.t(), right.t(), left.t(), False).t()
    if weight.dtype == left.dtype and not autocasts(weight):
        return torch.addmm(weight, left, right)
    return (weight + left @ right).to(left.dtype)


def costs(rows: int, d_in: int, d_out: int, rank: int, *, training: bool) -> tuple[float, float]:
    """Operations beyond those of the layer without a delta: (two paths, merged).

    Two paths multiply 2 n r (d_in + d_out) forwards and twice that backwards, and add n d_out elements. Merged
    weights multiply 2 r d_in d_out and add d_in d_out elements; their low-rank gradients cost 4 n r (d_in + d_out).
    """
    path = 2.0 * rows * rank * (d_in + d_out)
    two_path = path * (3 if training else 1) + ELEMENT_COST * rows * d_out
    merged = 2.0 * rank * d_in * d_out + ELEMENT_COST * d_in * d_out + (2 * path if training else 0)
    return two_path, merged


class MergedLinear(torch.autograd.Function):
    """y = x (W + L R)^T + b over a frozen W, with gradients of x, b, L and R; under vmap too."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, left: Tensor, right: Tensor, transposed: bool
    ) -> tuple[Tensor, Tensor]:
        """Forms W + L R once; the backward pass uses it again for the gradient of x."""
        merged = merge(weight, left, right, transposed)
        return plain(x, merged, bias, transposed), merged

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        """Keeps what the backward pass needs."""
        x, _, _, left, right, _ = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, output[1], left, right)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """dx = g (W + L R); dL = g^T (x R^T); dR = (g L)^T x."""
        x, merged, left, right = ctx.saved_tensors
        g, flat = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
        wanted = ctx.needs_input_grad
        return (
            gradient @ merged if wanted[0] else None,
            None,
            g.sum(0) if wanted[2] else None,
            g.t() @ (flat @ right.t()) if wanted[3] else None,
            (g @ left).t() @ flat if wanted[4] else None,
            None,
        )
