"""A language model, routed by task: what strategies train and evaluate on texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.backbones.generation import evaluating, greedy
from cl_runner.backbones.routing import EVERY_CLASS, TaskNetwork, count
from cl_runner.tokens import COUNTED, TOKENS

PROBED = 4  # tokens on which the short way to the logits is compared with the model's own
LOUD = 1e4  # logits at which a cap shows, whatever it is


class LanguageNetwork(TaskNetwork):
    """Logits of the next token, at the positions that count.

    The model is causal and texts are padded on the right, so that padding changes no answer before it and needs no
    mask. Only positions whose next token is a target reach the output layer: its (N, vocabulary) logits are most of
    the memory of a step.

    Args:
        model: a causal language model of transformers.
        n_tasks, task_labels, pretrained, precision: see `TaskNetwork`.

    Shapes: x (B, 2, L), token ids and marks (`cl_runner.tokens`); logits (N, vocabulary) float32, of the N positions
    marked, row by row.
    """

    reads_text = True

    def __init__(
        self, model: nn.Module, *, n_tasks: int, task_labels: bool, pretrained: bool, precision: str = "float32"
    ) -> None:
        super().__init__(model, n_tasks=n_tasks, task_labels=task_labels, pretrained=pretrained, precision=precision)
        self.base_parameters = count(model)
        self._short: bool | None = None

    def forward(self, x: Tensor, task_labels: Any = EVERY_CLASS) -> Any:
        """Logits (N, vocabulary).

        Args:
            x: ids and marks (B, 2, L).
            task_labels: task of each text (B,), on the host where possible; an int for all; None for a dict of the
                logits under every task learned so far; left out for the active task. They matter only where the
                adapter has a set for every task.
        """
        if not self.per_task or not self.task_labels or task_labels is EVERY_CLASS:
            logits = self.anchored(self._logits(x))
            return dict.fromkeys(sorted(self.known_tasks()), logits) if task_labels is None else logits
        if task_labels is None:
            return {task: self.for_task(x, task) for task in sorted(self.known_tasks())}
        tasks = [task_labels] if isinstance(task_labels, int) else torch.unique(task_labels).tolist()
        return self.for_task(x, tasks[0]) if len(tasks) == 1 else self._mixed(x, task_labels, tasks)

    def for_task(self, x: Tensor, task: int) -> Tensor:
        """Logits with one task's set."""
        self.activate(task)
        return self.anchored(self._logits(x))

    @torch.no_grad()
    def generate(self, prompts: Sequence[Tensor], *, most: int, eos: int, pad: int) -> list[list[int]]:
        """Greedy continuations of token ids, at most so many tokens, up to and without ``eos``."""
        with self.autocast(self.anchor.device):
            return greedy(self.backbone, prompts, most=most, eos=eos, pad=pad)

    def _mixed(self, x: Tensor, task_labels: Tensor, tasks: Iterable[int]) -> Tensor:
        """Each text under its own task's set; the answers in the order of the batch."""
        marked = x[:, COUNTED].bool()
        places = (marked.flatten().cumsum(0) - 1).view(marked.shape)  # which answer a marked position is
        pieces, order = [], []
        for task in tasks:
            rows = torch.nonzero(task_labels == task).flatten().to(x.device)
            pieces.append(self.for_task(x[rows], task))
            order.append(places[rows][marked[rows]])
        return torch.cat(pieces)[torch.argsort(torch.cat(order))]

    @torch.no_grad()
    def settle(self, x: Tensor) -> None:
        """Finds out, once, whether body and output layer alone give the model's logits.

        Args:
            x: ids and marks (B, 2, L) on the network's device, of which a few are made use of.
        """
        if self._short is None:
            with evaluating(self), self.autocast(x.device):
                self._short = self._agrees(x[:1, TOKENS, :PROBED])

    def _logits(self, x: Tensor) -> Tensor:
        ids, marked = x[:, TOKENS], x[:, COUNTED].bool()
        if x.is_meta:  # shapes do not say how many positions are marked: a plan takes all
            return self._whole(ids).flatten(0, 1).float()
        self.settle(x)
        with self.autocast(x.device):
            if not self._short:
                return self._whole(ids)[marked].float()
            return self.backbone.get_output_embeddings()(self._hidden(ids)[marked]).float()  # type: ignore[operator]

    def _hidden(self, ids: Tensor) -> Tensor:
        """(B, L, d) of the model below its output layer."""
        body: Any = self.backbone.base_model
        return body(input_ids=ids, use_cache=False).last_hidden_state  # type: ignore[no-any-return]

    def _whole(self, ids: Tensor) -> Tensor:
        """(B, L, vocabulary), as the model itself gives them."""
        return self.backbone(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]

    def _agrees(self, ids: Tensor) -> bool:
        """Whether the model's own logits are what its output layer makes of what its body gives.

        A few models scale the states before that layer, or scale or cap the logits behind it. A cap changes next to
        nothing in the small logits of a fresh model: the layer is therefore given states of a size at which it shows.
        """
        output: Any = self.backbone.get_output_embeddings()  # type: ignore[operator]
        if output is None:
            return False
        met: list[Tensor] = []
        loud: list[Tensor] = []

        def enlarge(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
            met.append(inputs[0])
            plain = module.forward(inputs[0])  # without this hook
            loud.append(inputs[0] * (LOUD / plain.float().abs().max().clamp(min=1e-30)).to(inputs[0].dtype))
            return (loud[-1], *inputs[1:])

        hook = output.register_forward_pre_hook(enlarge)
        try:
            own = self._whole(ids)
        finally:
            hook.remove()
        if len(met) != 1:  # the layer's weight is used without the layer
            return False
        try:
            hidden = self._hidden(ids)
        except (AttributeError, TypeError):  # the body is no model of its own, or gives something else
            return False
        return _alike(met[0], hidden) and _alike(own, output(loud[0]))


def _alike(first: Tensor, second: Tensor) -> bool:
    """Whether two results are one, up to rounding, which is relative to the largest of their numbers."""
    if first.shape != second.shape:
        return False
    tolerance = 1e-3 if torch.float32 in (first.dtype, second.dtype) else 2e-2
    largest = float(first.float().abs().max())
    return largest > 0 and float((first.float() - second.float()).abs().max()) <= tolerance * largest
