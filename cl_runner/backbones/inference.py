"""Which task is a sample of, where no label says so: rules over the answers or the features of a network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from cl_runner.errors import RequestError, nearest

RULES = ("oracle", "max_output", "entropy", "prototype")


class TaskInference(nn.Module):
    """Chooses the task of each sample among the tasks learned so far; ties go to the earliest task.

    ============  =====================================================================================
    max_output    the task with the largest logit over its own classes (Zacarias and Alexandre, 2018)
    entropy       the task with the lowest H(softmax of its own logits) / log(number of its own classes)
    prototype     the task of the nearest class mean (Euclidean) in the features of the base, which no task's set
                  changes
    oracle        the true task, told from outside: the upper bound of the others
    ============  =====================================================================================

    Args:
        rule: one of the above.
        task_classes: the classes of each task.
        n_classes: of the stream.
        n_features: what the classifier takes, for the prototypes.

    Attributes:
        prototypes: (n_classes, n_features), NaN for a class not learned yet; only with the rule `prototype`, and then
            part of the state dict.

    Raises:
        RequestError: there is no such rule.
    """

    prototypes: Tensor | None

    def __init__(self, rule: str, task_classes: Sequence[Sequence[int]], n_classes: int, n_features: int) -> None:
        super().__init__()
        if rule not in RULES:
            raise RequestError(f"adapter.task_inference={rule}: there is no such rule", nearest(rule, ("auto", *RULES)))
        self.rule = rule
        self.task_classes = [list(classes) for classes in task_classes]
        stored = torch.full((n_classes, n_features), math.nan) if rule == "prototype" else None
        self.register_buffer("prototypes", stored)

    def from_answers(self, answers: dict[int, Tensor]) -> Tensor:
        """The task (B,) of each sample, from its logits (B, n_classes) under every task learned."""
        own = [logits[:, self.task_classes[task]] for task, logits in answers.items()]
        chosen = largest_output(own) if self.rule == "max_output" else lowest_entropy(own)
        return torch.tensor(list(answers), device=chosen.device)[chosen]

    def from_features(self, features: Tensor, tasks: Sequence[int]) -> Tensor:
        """The task (B,) of each sample, from its features (B, n_features) and the prototypes of the tasks learned."""
        assert self.prototypes is not None
        classes = [label for task in tasks for label in self.task_classes[task]]
        owners = [task for task in tasks for _ in self.task_classes[task]]
        chosen = nearest_prototype(features, self.prototypes[classes])
        return torch.tensor(owners, device=chosen.device)[chosen]

    def learn(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Stores the class means of batches of features (B, n_features) and labels (B,)."""
        assert self.prototypes is not None
        sums, counts = torch.zeros_like(self.prototypes), self.prototypes.new_zeros(len(self.prototypes), 1)
        for features, labels in batches:
            members = nn.functional.one_hot(labels, len(sums)).to(sums.dtype)
            sums += members.T @ features
            counts += members.sum(0)[:, None]
        seen = counts[:, 0] > 0
        self.prototypes[seen] = sums[seen] / counts[seen]

    def stored_numbers(self, tasks: Iterable[int]) -> int:
        """How many numbers the prototypes of these tasks are."""
        if self.prototypes is None:
            return 0
        return sum(len(self.task_classes[task]) for task in tasks) * self.prototypes.shape[1]


def largest_output(own_logits: Sequence[Tensor]) -> Tensor:
    """Index (B,) of the task with the largest logit, from T tensors (B, own classes)."""
    return torch.stack([logits.amax(1) for logits in own_logits]).argmax(0)


def lowest_entropy(own_logits: Sequence[Tensor]) -> Tensor:
    """Index (B,) of the task that is surest of its answer, from T tensors (B, own classes).

    Entropies are divided by their largest possible value log C, so that tasks with few classes have no advantage;
    a task with one class is always sure (0).
    """
    return torch.stack([_relative_entropy(logits) for logits in own_logits]).argmin(0)


def nearest_prototype(features: Tensor, prototypes: Tensor) -> Tensor:
    """Index (B,) of the nearest row of ``prototypes`` (N, d) to each of ``features`` (B, d); rows of NaN are none."""
    # by differences: the faster expansion |a|^2 - 2ab + |b|^2 loses small distances between long vectors
    distances = torch.cdist(features, prototypes, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.masked_fill(prototypes.isnan().any(1), math.inf).argmin(1)


def _relative_entropy(logits: Tensor) -> Tensor:
    if logits.shape[1] == 1:
        return logits.new_zeros(len(logits))
    log_probabilities = logits.log_softmax(1)
    return -(log_probabilities.exp() * log_probabilities).sum(1) / math.log(logits.shape[1])
