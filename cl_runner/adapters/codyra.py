"""CoDyRA: low-rank updates with sparse gates, merged after every task (Lu et al., arXiv 2412.01004)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.adapters.adapter import LayerReport
from cl_runner.adapters.delta_adapter import SHARED, DeltaAdapter
from cl_runner.adapters.factors import LoRAFactors
from cl_runner.adapters.layers import Site, add_to

KAPPA_STEPS = 50


class CoDyRA(DeltaAdapter):
    """DeltaW = sum over i of g_i B[:, i] A[i], with gates g that a rising threshold sets to zero.

    A is Kaiming-uniform, B zero, g standard normal; there is no alpha / r. The first half of a task's steps is dense.
    At fraction f of the second half kappa = kappa_max * floor(50 f) / 50, and after every step the gates go through a
    soft threshold, sign(g) max(|g| - kappa, 0). At the end of a task components with g = 0 are dropped, the rest is
    added to W, and the next task starts with fresh A, B and g: after every task the network has exactly the base's
    architecture and parameters.

    Args:
        rank, linear_rank, base, full, compute: see `DeltaAdapter`.
        kappa_max: the last threshold.
        dense_fraction: share of a task's steps without a threshold.
        threshold: soft, or released: the published code also sets gates to zero that were below 2 kappa.

    Source: Lu et al., "Adaptive rank, reduced forgetting: knowledge retention in continual learning vision-language
    models with dynamic rank-selective LoRA", 2024.
    """

    renews = True
    keeps_last = True  # the threshold rises towards the end: an earlier epoch has hardly been pruned

    def __init__(
        self,
        *,
        rank: int = 16,
        linear_rank: int | None = None,
        base: str = "auto",
        full: Sequence[str] = (),
        compute: str = "auto",
        kappa_max: float = 0.005,
        dense_fraction: float = 0.5,
        threshold: str = "soft",
    ) -> None:
        super().__init__(rank=rank, linear_rank=linear_rank, base=base, full=full, sharing=SHARED, compute=compute)
        self.kappa_max, self.dense_fraction, self.threshold = kappa_max, dense_fraction, threshold
        self._closed: dict[int, list[LayerReport]] = {}
        self._moved: dict[Site, Tensor] = {}  # sum of what was merged, on the host, for the drift

    def set_of(self, task: int) -> str:
        """Every phase has a fresh set, so that no strategy takes its parameters for those of an earlier task."""
        return str(max(self.open_tasks)) if self.open_tasks else str(task)

    def make_delta(self, layer: Site, rank: int, scaling: float) -> GatedFactors:
        """A, B and g."""
        return GatedFactors(layer.base_weight, rank)

    def after_step(self, progress: float) -> None:
        """Thresholds the gates; nothing in the dense part."""
        kappa = self.kappa(progress)
        if kappa > 0:
            gates = [factors.g for _, factors in self.open_deltas() if isinstance(factors, GatedFactors)]
            shrink(gates, kappa, 2 * kappa if self.threshold == "released" else kappa)

    def kappa(self, progress: float) -> float:
        """The threshold at a share of the task's steps."""
        if progress <= self.dense_fraction:
            return 0.0
        part = (progress - self.dense_fraction) / (1 - self.dense_fraction)
        return self.kappa_max * math.floor(KAPPA_STEPS * part + 1e-9) / KAPPA_STEPS

    def end_task(self) -> None:
        """Drops components whose gate is zero, adds the rest to the weights and forgets the set."""
        self.unmerge()
        if self.open_tasks:
            last = max(self.open_tasks)
            for _, factors in self.open_deltas():
                assert isinstance(factors, GatedFactors)
                if not factors.g.is_meta:
                    factors.prune()
            kept = {row.name: row for row in super().layer_report(last)}
            rows = [
                dataclasses.replace(kept[name], delta_norm=self._absorb(site, self.set_of(last)))
                for name in self.layers
                for site in self._sites_named(name)
                if self.set_of(last) in site.deltas
            ]
            self._closed |= dict.fromkeys(self.open_tasks, rows)
        super().end_task()

    def _absorb(self, site: Site, which: str) -> float | None:
        """Adds a set to the weight itself and drops it; returns ||DeltaW||_F, None without real weights.

        A weight in half precision takes the sum rounded once; what is reported is what arrived.
        """
        delta: Tensor = site.deltas[which]().detach()
        before = None if delta.dtype == site.base_weight.dtype else site.base_weight.detach().to(delta.dtype)
        add_to(site, delta)
        if before is not None:
            delta = site.base_weight.detach().to(delta.dtype) - before
        del site.deltas[which]
        site.active = None
        if delta.is_meta:
            return None
        moved = delta.cpu()
        self._moved[site] = self._moved[site] + moved if site in self._moved else moved
        return float(moved.norm())

    def memory(self) -> dict[str, Any]:
        """What each task kept, and what was merged so far."""
        closed = {task: [dataclasses.asdict(row) for row in rows] for task, rows in self._closed.items()}
        return {"closed": closed, "moved": [self._moved.get(site) for site in self._every_site()]}

    def remember(self, memory: dict[str, Any]) -> None:
        """Takes it back."""
        self._closed = {task: [_report(row) for row in rows] for task, rows in memory["closed"].items()}
        pairs = zip(self._every_site(), memory["moved"], strict=True)
        self._moved = {site: moved for site, moved in pairs if moved is not None}

    def course(self) -> dict[str, Any]:
        """Nothing: what it remembers changes between two tasks only."""
        return {}

    def take_up(self, course: dict[str, Any]) -> None:
        """Has nothing to take back."""

    def drift(self) -> float | None:
        """||theta_t - theta_0||_F: what all tasks together have added to the weights."""
        return math.sqrt(sum(float(moved.norm()) ** 2 for moved in self._moved.values()))

    def layer_report(self, task: int) -> list[LayerReport]:
        """What the task kept before it was merged, where it is closed."""
        return self._closed[task] if task in self._closed else super().layer_report(task)


@torch.no_grad()
def shrink(gates: Sequence[Tensor], kappa: float, dead: float) -> None:
    """g <- sign(g) (|g| - kappa), and zero where |g| is below ``dead`` (with dead = kappa the soft threshold).

    All gates of a device and type go through it together, as one vector: one by one they would be five launches each.
    """
    if not gates:
        return
    if len({(gate.device, gate.dtype) for gate in gates}) > 1:
        for gate in gates:
            shrink([gate], kappa, dead)
        return
    together = torch.cat([gate.flatten() for gate in gates])
    size = together.abs()
    shrunk = torch.where(size >= dead, size - kappa, torch.zeros_like(size)).mul_(together.sign())
    torch._foreach_copy_(list(gates), list(shrunk.split([gate.numel() for gate in gates])))


def _report(row: dict[str, Any]) -> LayerReport:
    return LayerReport(**row | {"shape": tuple(row["shape"])})


class GatedFactors(LoRAFactors):
    """DeltaW = sum over i of g_i B[:, i] A[i]."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__(weight, rank, scaling=1.0)
        self.g = nn.Parameter(torch.randn(rank, device=weight.device, dtype=self.A.dtype))

    def factors(self) -> tuple[Tensor, Tensor]:
        """(B diag(g), A), flat."""
        return self.B.flatten(1) * self.g, self.A.flatten(1)

    def prune(self) -> None:
        """Drops the components whose gate is zero."""
        alive = torch.nonzero(self.g.detach()).flatten()
        self.keep(alive)
        self.g = nn.Parameter(self.g.detach()[alive].clone(), requires_grad=self.g.requires_grad)
