"""The loss of a language model and what is counted of its answers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cl_runner.tokens import IGNORED

TOKEN_ACCURACY = "token_accuracy"  # the metric of a task whose answers are not generated


class TokenCrossEntropy(nn.Module):
    """The next-token objective: the mean cross-entropy over the tokens that count, in nats.

    Args:
        smoothing: of the targets, spread over the vocabulary.

    Shapes: logits (N, V) of the N positions that count; targets (B, L), `IGNORED` elsewhere.
    """

    def __init__(self, smoothing: float = 0.0) -> None:
        super().__init__()
        self.smoothing = smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The mean over the tokens."""
        return nn.functional.cross_entropy(logits, counted(targets), label_smoothing=self.smoothing)


def counted(targets: Tensor) -> Tensor:
    """The targets (N,) that count, of (B, L)."""
    return targets[targets != IGNORED]


def amount(targets: Tensor) -> Tensor:
    """How many tokens count."""
    return (targets != IGNORED).sum()


def token_totals(logits: Tensor, targets: Tensor) -> Tensor:
    """(sum of the cross-entropies in nats, tokens that are right, tokens) of logits (N, V) and targets (B, L)."""
    wanted = counted(targets)
    loss = nn.functional.cross_entropy(logits, wanted, reduction="sum").double()
    return torch.stack([loss, (logits.argmax(1) == wanted).sum().double(), torch.full_like(loss, len(wanted))])
