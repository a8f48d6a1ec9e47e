"""A language model, routed by task: what strategies train and evaluate on texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.backbones.routing import EVERY_CLASS, TaskNetwork, count
from cl_runner.tokens import COUNTED, TOKENS

PROBED = 4  # tokens on which the short way to the logits is compared with the model's own


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
        from cl_runner.backbones.generation import greedy

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

    def _logits(self, x: Tensor) -> Tensor:
        ids, marked = x[:, TOKENS], x[:, COUNTED].bool()
        with self.autocast(x.device):
            if not self._is_short(ids):
                return self._whole(ids)[marked].float()
            hidden = self._hidden(ids)
            # shapes alone do not say how many positions are marked: a plan takes all
            chosen = hidden.flatten(0, 1) if x.is_meta else hidden[marked]
            return self.backbone.get_output_embeddings()(chosen).float()  # type: ignore[operator]

    def _hidden(self, ids: Tensor) -> Tensor:
        """(B, L, d) of the model below its output layer."""
        body: Any = self.backbone.base_model
        # without a mask transformers looks into the position ids for packed texts, which a plan's do not have
        mask = ids.new_ones(len(ids), 1, ids.shape[1], ids.shape[1], dtype=torch.bool) if ids.is_meta else None
        return body(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state  # type: ignore[no-any-return]

    def _whole(self, ids: Tensor) -> Tensor:
        """(B, L, vocabulary), as the model itself gives them."""
        return self.backbone(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]

    def _is_short(self, ids: Tensor) -> bool:
        """Whether body and output layer alone give the model's logits; a few models scale or cap them besides."""
        if self._short is None and not ids.is_meta:
            training = self.training
            self.eval()
            with torch.no_grad():
                few = ids[:1, :PROBED]
                own = self._whole(few)
                short = self.backbone.get_output_embeddings()(self._hidden(few))  # type: ignore[operator]
                self._short = torch.allclose(own.float(), short.float(), rtol=1e-3, atol=1e-3)
            self.train(training)
        return self._short is not False
