"""DyLoRA: LoRA whose every rank 1 .. r can be cut out of one training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.adapters.factors import LoRAFactors
from cl_runner.adapters.layers import Site
from cl_runner.adapters.lora import LAST, LoRA
from cl_runner.adapters.penalties import ordering
from cl_runner.errors import RequestError

ORDERING, RANDOM_RANK = "ordering", "random_rank"


class DyLoRA(LoRA):
    """LoRA whose components are ordered by importance.

    training=ordering adds lambda_order * sum over layers, over i = 0 .. r - 1, of i / (r - 1) * ||A_i||_2 ||B_i||_2
    to the loss. training=random_rank draws b from 1 .. r for every step and computes with the first b components
    (Valipour et al., EACL 2023); update=last trains component b alone. The scale stays alpha / r at every b, so that
    a truncated network is the masked one exactly.

    A rank schedule gives the rank of each epoch: before it begins, the components beyond are dropped, and what the
    optimiser knows of the rest starts over. After the schedule the last rank stays, also for later tasks.

    Args:
        training: ordering or random_rank.
        lambda_order: weight of the ordering penalty.
        update: all or last, with training=random_rank.
        rank_schedule: rank per epoch; empty: no schedule.
        schedule_from: the first task, from 1, that follows the schedule.
        rank, linear_rank, alpha, dropout, sharing, base, full, compute, task_inference, eval_rank, eval_ranks,
            eval_ranks_at: see `LoRA`. After a task those of the ranks are evaluated that the schedule has left.

    Source: Valipour et al., "DyLoRA: parameter-efficient tuning of pretrained models using dynamic search-free low
    rank adaptation", EACL 2023; the ordering penalty and the schedule are those of the two-stage hybrid study.
    """

    def __init__(
        self,
        *,
        rank: int = 8,
        linear_rank: int | None = None,
        alpha: float | None = None,
        dropout: float = 0.0,
        sharing: str = "shared",
        base: str = "auto",
        full: Sequence[str] = (),
        compute: str = "auto",
        task_inference: str = "auto",
        eval_rank: int | None = None,
        eval_ranks: Sequence[int] = (),
        eval_ranks_at: str = LAST,
        training: str = ORDERING,
        lambda_order: float = 1e-4,
        update: str = "all",
        rank_schedule: Sequence[int] = (),
        schedule_from: int = 1,
    ) -> None:
        super().__init__(
            rank=rank,
            linear_rank=linear_rank,
            alpha=alpha,
            dropout=dropout,
            sharing=sharing,
            base=base,
            full=full,
            compute=compute,
            task_inference=task_inference,
            eval_rank=eval_rank,
            eval_ranks=eval_ranks,
            eval_ranks_at=eval_ranks_at,
        )
        self.training, self.lambda_order, self.update = training, lambda_order, update
        self.rank_schedule, self.schedule_from = tuple(rank_schedule), schedule_from
        self.resizes = bool(self.rank_schedule)
        if list(self.rank_schedule) != sorted(self.rank_schedule, reverse=True):
            raise RequestError(
                f"adapter.rank_schedule={list(rank_schedule)} rises", "ranks that were dropped cannot come back"
            )
        last = min(self.rank_schedule, default=None)
        asked = (*(self.eval_ranks if eval_ranks_at == LAST else ()), eval_rank or 0)
        beyond = [wanted for wanted in asked if last is not None and wanted > last]
        if beyond:
            raise RequestError(
                f"adapter.rank_schedule={list(rank_schedule)} ends at {last}; rank {max(beyond)} is to be evaluated",
                f"adapter.eval_rank and eval_ranks at most {last}, or adapter.eval_ranks_at=every_task",
            )
        largest = max(rank, linear_rank or 0)
        if max(self.rank_schedule, default=0) > largest:
            raise RequestError(
                f"adapter.rank_schedule={list(rank_schedule)} exceeds the rank that is trained, {largest}",
                f"at most {largest}, or a higher adapter.rank",
            )

    def make_delta(self, layer: Site, rank: int, scaling: float) -> LoRAFactors:
        """A and B, of which a step may use or train a part."""
        factors = DyLoRAFactors(layer.base_weight, rank, scaling, self.dropout)
        factors.eval_limit, factors.last_only = self.eval_rank, self.update == "last"
        return factors

    def begin_epoch(self, epoch: int) -> list[tuple[nn.Parameter, nn.Parameter]]:
        """Follows the rank schedule."""
        if not self.rank_schedule or min(self.open_tasks, default=-1) + 1 < self.schedule_from:
            return []
        rank = self.rank_schedule[min(epoch, len(self.rank_schedule) - 1)]
        changed: list[tuple[nn.Parameter, nn.Parameter]] = []
        for factors in self.open_factors():
            if rank < factors.rank:
                changed += factors.truncate(rank)
        return changed

    @property
    def steady(self) -> bool:
        """Not where every step draws a rank of its own."""
        return self.training != RANDOM_RANK

    def before_step(self, progress: float) -> None:
        """Draws the rank of this step, the same for all layers."""
        if self.training != RANDOM_RANK:
            return
        drawn = list(self.open_factors())
        if drawn:
            rank = int(torch.randint(1, max(item.rank for item in drawn) + 1, ()))
            for item in drawn:
                item.train_limit = rank

    def penalty(self) -> Tensor | None:
        """The ordering penalty, with training=ordering."""
        if self.training != ORDERING:
            return None
        term = ordering(self.open_factors())
        return None if term is None else self.lambda_order * term

    def end_task(self) -> None:
        """Closes the task; from now on all components count."""
        for factors in self.open_factors():
            factors.train_limit = None
        super().end_task()


class DyLoRAFactors(LoRAFactors):
    """Factors of which a step may train the last counted component alone."""

    last_only = False

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *others: Any) -> None:
        """Takes over the rank of what is loaded, which a schedule may have lowered."""
        if f"{prefix}A" in state_dict:
            self.truncate(len(state_dict[f"{prefix}A"]))
        super()._load_from_state_dict(state_dict, prefix, *others)

    def factors(self) -> tuple[Tensor, Tensor]:
        """(L, R); gradients reach component b alone where only the last one is to learn."""
        if not (self.last_only and self.training and self.train_limit is not None):
            return super().factors()
        left, right = self.B.flatten(1), self.A.flatten(1)
        kept = self.kept(left)
        last = torch.zeros_like(kept)
        last[self.limit - 1] = 1
        left = (left * last + left.detach() * (1 - last)) * kept
        right = right * last[:, None] + right.detach() * (1 - last[:, None])
        return left * self.scaling, right
