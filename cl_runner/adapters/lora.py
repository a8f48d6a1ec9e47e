"""LoRA: low-rank updates of frozen weights, one set carried on or one per task (Hu et al., ICLR 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from cl_runner.adapters.compute import MERGED
from cl_runner.adapters.delta_adapter import SHARED, DeltaAdapter
from cl_runner.adapters.factors import LoRAFactors
from cl_runner.adapters.layers import Site, Slice
from cl_runner.errors import RequestError

LAST = "last"  # of `eval_ranks_at`


class LoRA(DeltaAdapter):
    """W' = W + alpha / r * B A, with A Kaiming-uniform (a = sqrt 5) and B zero, over a frozen W.

    On a linear layer A is (r, d_in) and B (d_out, r). On a convolution A is (r, c_in / groups, k_h, k_w) and B
    (c_out, r, 1, 1): the update is a convolution to r channels followed by one of size 1.

    Args:
        rank, linear_rank, alpha, base, full, compute, task_inference: see `DeltaAdapter`.
        sharing: shared (one set, carried on from task to task) or per_task.
        dropout: of the input of A in training, on linear layers.
        eval_rank: components that count at evaluation, the first ones; None: all.
        eval_ranks: ranks at which the trained network is evaluated once more, for `rank_curve.csv`.
        eval_ranks_at: last (after the last task) or every_task.
    """

    def __init__(
        self,
        *,
        rank: int = 4,
        linear_rank: int | None = None,
        alpha: float | None = None,
        dropout: float = 0.0,
        sharing: str = SHARED,
        base: str = "auto",
        full: Sequence[str] = (),
        compute: str = "auto",
        task_inference: str = "auto",
        eval_rank: int | None = None,
        eval_ranks: Sequence[int] = (),
        eval_ranks_at: str = LAST,
    ) -> None:
        super().__init__(
            rank=rank,
            linear_rank=linear_rank,
            alpha=alpha,
            base=base,
            full=full,
            sharing=sharing,
            compute=compute,
            task_inference=task_inference,
        )
        self.dropout, self.eval_rank, self.eval_ranks = dropout, eval_rank, tuple(eval_ranks)
        self.eval_ranks_at = eval_ranks_at
        largest = max(rank, linear_rank or 0)
        for key, wanted in (("eval_rank", eval_rank), ("eval_ranks", max(self.eval_ranks, default=None))):
            if wanted is not None and wanted > largest:
                raise RequestError(
                    f"adapter.{key}: {wanted} exceeds the rank that is trained, {largest}", f"at most {largest}"
                )
        if dropout and compute == MERGED:
            raise RequestError(
                f"adapter.dropout={dropout} drops inputs of the low-rank path, which compute=merged does not have",
                "use adapter.compute=auto, or adapter.dropout=0",
            )

    def make_delta(self, layer: Site, rank: int, scaling: float) -> LoRAFactors:
        """A and B."""
        factors = LoRAFactors(layer.base_weight, rank, scaling, self.dropout)
        factors.eval_limit = self.eval_rank
        return factors

    def open_factors(self) -> Iterator[LoRAFactors]:
        """The factors that train now."""
        for _, delta in self.open_deltas():
            assert isinstance(delta, LoRAFactors)
            yield delta

    def check_layer(self, name: str, layer: Site) -> None:
        """Dropout needs the two-path form."""
        if self.dropout and (isinstance(layer, nn.Conv2d | Slice)):
            raise RequestError(
                f"adapter.dropout={self.dropout}: layer '{name}' computes with merged weights, which have no input to "
                "drop",
                "use adapter.dropout=0, or place the adapter on linear layers only",
            )

    def kept_rank(self) -> int:
        """The largest rank that any set still has; 0 before there is one."""
        ranks = [
            factors.rank
            for name in self.layers
            for site in self._sites_named(name)
            for factors in site.deltas.values()
            if isinstance(factors, LoRAFactors)
        ]
        return max(ranks, default=0)

    def truncate(self, rank: int | None) -> None:
        """Evaluates every set with its first ``rank`` components."""
        for name in self.layers:
            for site in self._sites_named(name):
                for factors in site.deltas.values():
                    assert isinstance(factors, LoRAFactors)
                    factors.eval_limit = self.eval_rank if rank is None else rank
