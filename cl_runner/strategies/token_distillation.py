"""Learning without forgetting for language models: the old network's next-token distributions as targets."""

from __future__ import annotations

import copy
from typing import Any

import torch
from avalanche.models import avalanche_forward
from avalanche.training.plugins import SupervisedPlugin
from torch import nn
from torch.nn.functional import kl_div


class TokenDistillation(SupervisedPlugin):
    """Adds alpha KL(p_old || p_new) to the loss, the mean over the tokens that count.

    p = softmax(logits / T) over the vocabulary; p_old is that of the network at the end of the task before, on the
    texts of the present one (Li and Hoiem, 2016; Avalanche's plugin does the same over the classes seen).

    Args:
        alpha: weight.
        temperature: T.
    """

    def __init__(self, *, alpha: float, temperature: float) -> None:
        super().__init__()
        self.alpha, self.temperature = alpha, temperature
        self.teacher: nn.Module | None = None

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Compares the two networks on the batch."""
        if self.teacher is None:
            return
        with torch.no_grad():
            wanted = avalanche_forward(self.teacher, strategy.mb_x, strategy.mb_task_id) / self.temperature
        found = strategy.mb_output / self.temperature
        term = kl_div(found.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True)
        strategy.loss += self.alpha * term

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Copies the network as the task before left it."""
        if strategy.clock.train_exp_counter:
            self.teacher = copy.deepcopy(strategy.model).eval().requires_grad_(False)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Keeps no teacher between two tasks."""
        self.teacher = None
