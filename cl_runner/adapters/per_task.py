"""What adapters that always keep one set per task share."""

from __future__ import annotations

from collections.abc import Sequence

from cl_runner.adapters.delta_adapter import PER_TASK, DeltaAdapter


class PerTaskAdapter(DeltaAdapter):
    """A set of deltas, BatchNorm copies and a head for every task; see `DeltaAdapter` for the arguments."""

    def __init__(
        self,
        *,
        rank: int = 4,
        linear_rank: int | None = None,
        alpha: float | None = None,
        base: str = "auto",
        full: Sequence[str] = (),
        compute: str = "auto",
        task_inference: str = "auto",
    ) -> None:
        super().__init__(
            rank=rank,
            linear_rank=linear_rank,
            alpha=alpha,
            base=base,
            full=full,
            sharing=PER_TASK,
            compute=compute,
            task_inference=task_inference,
        )
