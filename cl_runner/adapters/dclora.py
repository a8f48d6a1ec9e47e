"""DC-LoRA: LoRA that keeps the direction which the task before gave it; alone, and together with DyLoRA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from cl_runner.adapters.delta_adapter import SHARED
from cl_runner.adapters.dylora import DyLoRA
from cl_runner.adapters.factors import LoRAFactors
from cl_runner.adapters.lora import LAST, LoRA
from cl_runner.adapters.penalties import direction


class KeepsDirection(LoRA):
    """Adds lambda_dc * (1 - cos(w_prev, w_cur)) to the penalties of the LoRA that comes after it in the bases.

    w is the concatenation of all A and B; w_prev are copies from the end of the task before.
    """

    lambda_dc: float
    acts_from_set = 2

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.previous: dict[LoRAFactors, tuple[Tensor, Tensor]] = {}
        self._change: dict[str, float] = {}

    def penalty(self) -> Tensor | None:
        """What the other base asks for, and L_DC."""
        other, turned = super().penalty(), self._turned()
        if turned is None:
            return other
        return self.lambda_dc * turned if other is None else other + self.lambda_dc * turned

    def figures(self) -> dict[str, float]:
        """direction_change: 1 - cos(w_prev, w_cur) at the end of the last task, from its second set on."""
        return self._change

    def end_task(self) -> None:
        """Keeps the factors as the direction for the next task."""
        if self.open_tasks:
            turned = self._turned()
            if turned is not None and not turned.is_meta:
                self._change = {"direction_change": float(turned.detach())}
            self.previous = {item: (item.A.detach().clone(), item.B.detach().clone()) for item in self.open_factors()}
        super().end_task()

    def memory(self) -> dict[str, Any]:
        """The factors that give the direction, by their places among all, and by how much it last changed."""
        kept = {place: list(self.previous[item]) for place, item in self._places() if item in self.previous}
        return super().memory() | {"previous": kept, "change": self._change}

    def remember(self, memory: dict[str, Any]) -> None:
        """Takes them back."""
        super().remember(memory)
        found, self._change = dict(self._places()), memory["change"]
        self.previous = {found[place]: (a, b) for place, (a, b) in memory["previous"].items()}

    def course(self) -> dict[str, Any]:
        """Nothing: what it remembers changes between two tasks only."""
        return {}

    def take_up(self, course: dict[str, Any]) -> None:
        """Has nothing to take back."""

    def _places(self) -> Iterator[tuple[int, LoRAFactors]]:
        deltas = [delta for site in self._every_site() for delta in site.deltas.values()]
        return ((place, item) for place, item in enumerate(deltas) if isinstance(item, LoRAFactors))

    def _turned(self) -> Tensor | None:
        """1 - cos(w_prev, w_cur) over the components that still exist; None before there is a task before."""
        before: list[Tensor] = []
        now: list[Tensor] = []
        for item in self.open_factors():
            if item in self.previous:
                old_a, old_b = self.previous[item]
                before += [old_a[: item.rank], old_b[:, : item.rank]]
                now += [item.A, item.B]
        return direction(before, now) if before else None


class DCLoRA(KeepsDirection):
    """One shared LoRA set with L_DC = lambda_dc * (1 - cos(w_prev, w_cur)) in the loss from its second task on.

    w is the concatenation of all A and B; w_prev was frozen at the end of the previous task.

    Args:
        lambda_dc: weight of the penalty.
        rank, linear_rank, alpha, dropout, base, full, compute, eval_rank, eval_ranks,
            eval_ranks_at: see `LoRA`.

    Source: the two-stage hybrid study of DyLoRA and DC-LoRA.
    """

    def __init__(
        self,
        *,
        rank: int = 8,
        linear_rank: int | None = None,
        alpha: float | None = None,
        dropout: float = 0.0,
        base: str = "auto",
        full: Sequence[str] = (),
        compute: str = "auto",
        eval_rank: int | None = None,
        eval_ranks: Sequence[int] = (),
        eval_ranks_at: str = LAST,
        lambda_dc: float = 0.1,
    ) -> None:
        super().__init__(
            rank=rank,
            linear_rank=linear_rank,
            alpha=alpha,
            dropout=dropout,
            sharing=SHARED,
            base=base,
            full=full,
            compute=compute,
            eval_rank=eval_rank,
            eval_ranks=eval_ranks,
            eval_ranks_at=eval_ranks_at,
        )
        self.lambda_dc = lambda_dc


class Hybrid(KeepsDirection, DyLoRA):
    """DyLoRA and DC-LoRA together: L_order in every task, L_DC from the second on, and the rank schedule.

    One shared set. The published schedule drops from rank 64 over 32 to 16 in the epochs of the second task.

    Args:
        lambda_order, lambda_dc: weights of the two penalties.
        rank_schedule, schedule_from: see `DyLoRA`.
        rank, linear_rank, alpha, dropout, base, full, compute, eval_rank, eval_ranks,
            eval_ranks_at: see `LoRA`.

    Source: the two-stage hybrid study of DyLoRA and DC-LoRA.
    """

    def __init__(
        self,
        *,
        rank: int = 8,
        linear_rank: int | None = None,
        alpha: float | None = None,
        dropout: float = 0.0,
        base: str = "auto",
        full: Sequence[str] = (),
        compute: str = "auto",
        eval_rank: int | None = None,
        eval_ranks: Sequence[int] = (),
        eval_ranks_at: str = LAST,
        lambda_order: float = 1e-4,
        lambda_dc: float = 0.1,
        rank_schedule: Sequence[int] = (),
        schedule_from: int = 2,
    ) -> None:
        super().__init__(
            rank=rank,
            linear_rank=linear_rank,
            alpha=alpha,
            dropout=dropout,
            sharing=SHARED,
            base=base,
            full=full,
            compute=compute,
            eval_rank=eval_rank,
            eval_ranks=eval_ranks,
            eval_ranks_at=eval_ranks_at,
            lambda_order=lambda_order,
            rank_schedule=rank_schedule,
            schedule_from=schedule_from,
        )
        self.lambda_dc = lambda_dc
