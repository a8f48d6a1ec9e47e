"""DC-LoRA: LoRA that keeps the direction which the task before gave it; alone, and together with DyLoRA."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from cl_runner.adapters.delta_adapter import SHARED
from cl_runner.adapters.dylora import DyLoRA
from cl_runner.adapters.factors import LoRAFactors
from cl_runner.adapters.lora import LoRA
from cl_runner.adapters.penalties import direction


class _Direction:
    """w_prev, all A and B at the end of the task before, and the penalty for turning away from it."""

    def __init__(self) -> None:
        self.previous: dict[LoRAFactors, tuple[Tensor, Tensor]] = {}
        self.figures: dict[str, float] = {}

    def keep(self, named: Iterator[tuple[str, LoRAFactors]]) -> None:
        """Freezes copies of the factors, and tells how far they turned in the task that ends."""
        factors = [item for _, item in named]
        turned = self.penalty(("", item) for item in factors)
        if turned is not None and not turned.is_meta:
            self.figures = {"direction_change": float(turned.detach())}
        self.previous = {item: (item.A.detach().clone(), item.B.detach().clone()) for item in factors}

    def penalty(self, named: Iterator[tuple[str, LoRAFactors]]) -> Tensor | None:
        """1 - cos(w_prev, w_cur) over the components that still exist; None before there is a task before."""
        before: list[Tensor] = []
        now: list[Tensor] = []
        for _, item in named:
            if item in self.previous:
                old_a, old_b = self.previous[item]
                before += [old_a[: item.rank], old_b[:, : item.rank]]
                now += [item.A, item.B]
        return direction(before, now) if before else None


class DCLoRA(LoRA):
    """One shared LoRA set with L_DC = lambda_dc * (1 - cos(w_prev, w_cur)) in the loss from its second task on.

    w is the concatenation of all A and B; w_prev was frozen at the end of the previous task.

    Args:
        lambda_dc: weight of the penalty.
        rank, linear_rank, alpha, dropout, base, full, compute, eval_rank, eval_ranks: see `LoRA`.

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
        )
        self.lambda_dc = lambda_dc
        self.direction = _Direction()

    def penalty(self) -> Tensor | None:
        """L_DC."""
        term = self.direction.penalty(_factors(self))
        return None if term is None else self.lambda_dc * term

    def figures(self) -> dict[str, float]:
        """direction_change: 1 - cos(w_prev, w_cur) at the end of the last task, from its second set on."""
        return self.direction.figures

    def end_task(self) -> None:
        """Keeps the factors as the direction for the next task."""
        if self.open_tasks:
            self.direction.keep(_factors(self))
        super().end_task()


class Hybrid(DyLoRA):
    """DyLoRA and DC-LoRA together: L_order in every task, L_DC from the second on, and the rank schedule.

    One shared set. The published schedule drops from rank 64 over 32 to 16 in the epochs of the second task.

    Args:
        lambda_order, lambda_dc: weights of the two penalties.
        rank_schedule, schedule_from: see `DyLoRA`.
        rank, linear_rank, alpha, dropout, base, full, compute, eval_rank, eval_ranks: see `LoRA`.

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
            lambda_order=lambda_order,
            rank_schedule=rank_schedule,
            schedule_from=schedule_from,
        )
        self.lambda_dc = lambda_dc
        self.direction = _Direction()

    def penalty(self) -> Tensor | None:
        """L_order + L_DC."""
        order, turned = super().penalty(), self.direction.penalty(_factors(self))
        if turned is None:
            return order
        turned = self.lambda_dc * turned
        return turned if order is None else order + turned

    def figures(self) -> dict[str, float]:
        """direction_change: 1 - cos(w_prev, w_cur) at the end of the last task, from its second set on."""
        return self.direction.figures

    def end_task(self) -> None:
        """Keeps the factors as the direction for the next task."""
        if self.open_tasks:
            self.direction.keep(_factors(self))
        super().end_task()


def _factors(adapter: LoRA) -> Iterator[tuple[str, LoRAFactors]]:
    for name, delta in adapter.open_deltas():
        assert isinstance(delta, LoRAFactors)
        yield name, delta
