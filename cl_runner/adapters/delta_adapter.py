"""What adapters that add deltas to weights share: a frozen base, sets of deltas, merging, the account."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from cl_runner.adapters.adapter import LayerReport, ParameterReport, as_tasks
from cl_runner.adapters.compute import AUTO, TWO_PATH
from cl_runner.adapters.factors import Delta, LowRank
from cl_runner.adapters.frozen_base import PER_TASK, SHARED, FrozenBase
from cl_runner.adapters.layers import AdaptedLinear, Site, adapt, adapt_layer, add_to, full_rank, is_conv1d, kind_of
from cl_runner.adapters.placement import Placement
from cl_runner.adapters.ranks import check_ranks, rank_of
from cl_runner.adapters.task_sets import count, full_modules
from cl_runner.backbones.heads import Head
from cl_runner.errors import RequestError

__all__ = ["PER_TASK", "SHARED", "DeltaAdapter"]


class DeltaAdapter(FrozenBase):
    """Deltas over a base that is frozen once it has been trained, as `FrozenBase` says.

    Args:
        rank: rank of the deltas.
        linear_rank: rank on linear layers; None: `rank`.
        alpha: the scale's numerator, scaling = alpha / rank; None: alpha = rank.
        full: names of modules trained in full (per task, where sets are). A head always is.
        compute: how linear layers compute a low-rank delta: two_path, merged or auto.
        base, sharing, task_inference: see `FrozenBase`.
    """

    def __init__(
        self,
        *,
        rank: int = 4,
        linear_rank: int | None = None,
        alpha: float | None = None,
        base: str = "auto",
        full: Sequence[str] = (),
        sharing: str = PER_TASK,
        compute: str = AUTO,
        task_inference: str = "auto",
    ) -> None:
        super().__init__(base=base, sharing=sharing, task_inference=task_inference)
        self.rank, self.linear_rank, self.alpha = rank, linear_rank, alpha
        self.full, self.compute = tuple(full), compute
        self.layers: dict[str, Site | Head] = {}
        self._unmerged: dict[Site, Tensor] = {}

    # ------------------------------------------------------------------------------------- for methods

    @abstractmethod
    def make_delta(self, layer: Site, rank: int, scaling: float) -> Delta:
        """A fresh set for one layer: calling it gives DeltaW, zero at first, in the shape of `base_weight`."""

    def own_rank(self, layer: Site) -> int:
        """The rank from which this method's delta is no longer low-rank; beyond it the user is warned."""
        return full_rank(layer)

    def check_layer(self, name: str, layer: Site) -> None:
        """Raises RequestError where the method's form cannot do this layer."""

    def open_deltas(self) -> Iterator[tuple[str, Delta]]:
        """The deltas that train now, with the names of their layers."""
        seen = set()
        for name in self.layers:
            for task in self.open_tasks:
                delta = self._site(name, task).deltas[self.set_of(task)]
                if id(delta) not in seen:
                    seen.add(id(delta))
                    assert isinstance(delta, Delta)
                    yield name, delta

    def deltas_of(self, task: int) -> dict[str, tuple[Site, Delta]]:
        """The sites and deltas of a task's set, by the names of their layers."""
        found: dict[str, tuple[Site, Delta]] = {}
        for name in self.layers:
            site = self._site(name, task)
            if self.set_of(task) in site.deltas:
                delta = site.deltas[self.set_of(task)]
                assert isinstance(delta, Delta)
                found[name] = (site, delta)
        return found

    # ------------------------------------------------------------------------------------------- life

    def attach(self, model: nn.Module, placement: Placement | str = "all") -> None:
        """Adapts the chosen layers and prepares BatchNorm layers and `full` modules."""
        self._meet(model)
        names = Placement.of(placement).choose(self.root)
        self.full = tuple(full_modules(self.root, self.full))
        inside = tuple(f"{name}." for name in self.full)
        placed = names
        names = [name for name in placed if name not in self.full and not name.startswith(inside)]
        if not names:
            self._notes.append(f"adapter.full={list(self.full)} holds every placed layer and leaves none to adapt")
        for name in names:
            module = self.root.get_submodule(name) if self._is_head(name) else None
            if isinstance(module, Head):
                for layer in module.classifiers:
                    adapt_layer(layer, name, self.compute)
                self.layers[name] = module
            else:
                self.layers[name] = adapt(self.root, name, self.compute)
        self._check(names)
        if self.per_task:
            for name in self.full:
                self.copies.add(name)
        self.copies.add_norms(outside=self.full)
        if self.base == "frozen":
            self._freeze()

    def begin_task(self, tasks: int | Sequence[int]) -> None:
        """Opens the sets of these tasks, made here, and closes all others; or opens the base, on the first task."""
        tasks = as_tasks(tasks)
        self.unmerge()
        if self._base_learns(tasks):
            return
        self._freeze()
        self.open_tasks = tasks
        for name in self.layers:
            for task in tasks:
                site, which = self._site(name, task), self.set_of(task)
                if which not in site.deltas:
                    rank = rank_of(site, self.rank, self.linear_rank)
                    alpha = rank if self.alpha is None else self.alpha
                    site.deltas[which] = self.make_delta(site, rank, alpha / rank).train(site.training)
                site.deltas[which].requires_grad_(True)
        if self.per_task:
            self.copies.begin_task(tasks)
        else:
            for name in self.full:
                self.root.get_submodule(name).requires_grad_(True)
        self.activate(tasks[-1])

    def activate(self, task: int) -> None:
        """Switches every layer to the task's set, or to the base where it has none; a merged one stays merged."""
        if self.active is None or self.set_of(task) != self.set_of(self.active):
            self.unmerge()
        self.active = task
        for name in self.layers:
            site, which = self._site(name, task), self.set_of(task)
            site.active = which if which in site.deltas else None
        if self.per_task:
            self.copies.activate(task)

    # ---------------------------------------------------------------------------------------- weights

    def adapted_layers(self) -> list[str]:
        """Names of the layers that have a delta."""
        return list(self.layers)

    def delta_weight(self, layer: str) -> Tensor:
        """DeltaW under the active task in the layout of the layer's weight; zero where the task has no set."""
        site = self._active_site(layer)
        if site.active is None:
            return site.in_layout(torch.zeros_like(site.base_weight))
        delta: Tensor = site.deltas[site.active]()
        return site.in_layout(delta)

    def merge(self) -> None:
        """Adds the active deltas to the weights; the forward pass then costs what the base's does."""
        for name in self.layers:
            site = self._active_site(name)
            if site.active is not None and site.merged is None:
                self._unmerged[site] = site.base_weight.detach().clone()
                add_to(site, site.deltas[site.active]().detach())
                site.merged = site.active

    def unmerge(self) -> None:
        """Puts the base's weights back, bit for bit."""
        with torch.no_grad():
            for site, weight in self._unmerged.items():
                site.base_weight.copy_(weight)
                site.merged = None
        self._unmerged.clear()

    def may_merge(self, *, halved: bool = False) -> bool:
        """Not where the deltas have more bits than W, nor where in half precision they have a path of their own."""
        for name in self.layers:
            site = self._active_site(name)
            delta = site.deltas[site.active] if site.active is not None else None
            apart = isinstance(delta, LowRank) and (isinstance(site, AdaptedLinear) or is_conv1d(site))
            kinds = set() if delta is None else {item.dtype for item in delta.parameters()}
            if (halved and apart) or kinds - {site.base_weight.dtype}:
                return False
        return True

    def owned(self, task: int) -> Iterator[nn.Module]:
        """The task's deltas and copies, where it has its own."""
        if self.per_task:
            yield from (delta for _, delta in self.deltas_of(task).values())
            yield from self.copies.owned(task)

    # ---------------------------------------------------------------------------------------- account

    def parameter_report(self) -> ParameterReport:
        """Factors and full copies, BatchNorm copies, and their running statistics."""
        sites = [site for name in self.layers for site in self._sites_named(name)]
        factors = sum(count(delta) for site in sites for delta in site.deltas.values())
        full, norms, statistics = self.copies.count()
        return ParameterReport(adapter=factors + full, normalisation=norms, buffers=statistics)

    def layer_report(self, task: int) -> list[LayerReport]:
        """One row a layer with a delta, and one a module trained in full, for the task's own set."""
        rows = []
        for name in self.layers:
            site = self._site(name, task)
            if self.set_of(task) in site.deltas and task not in self.base_tasks:
                delta = site.deltas[self.set_of(task)]
                rank = getattr(delta, "rank", None)
                if rank is None:
                    rank = rank_of(site, self.rank, self.linear_rank)
                shape = tuple(site.in_layout(site.base_weight).shape)
                rows.append(LayerReport(name, kind_of(site), shape, rank, count(delta)))
        return rows + list(self.copies.layer_report(task))

    # ----------------------------------------------------------------------------------------- inside

    def _is_head(self, name: str) -> bool:
        module = dict(self.root.named_modules()).get(name)
        return isinstance(module, Head)

    def _site(self, name: str, task: int) -> Site:
        module = self.layers[name]
        site = module.classifier(task) if isinstance(module, Head) else module
        assert isinstance(site, Site)
        return site

    def _sites_named(self, name: str) -> Iterator[Site]:
        module = self.layers[name]
        for site in module.classifiers if isinstance(module, Head) else [module]:
            assert isinstance(site, Site)
            yield site

    def _every_site(self) -> list[Site]:
        return [site for name in self.layers for site in self._sites_named(name)]

    def _active_site(self, name: str) -> Site:
        return self._site(name, self.active or 0)

    def _check(self, names: list[str]) -> None:
        sites = {name: self._site(name, 0) for name in names}
        for name, site in sites.items():
            self.check_layer(name, site)
        if self.linear_rank is not None and not any(kind_of(site) == "linear" for site in sites.values()):
            self._notes.append(f"adapter.linear_rank={self.linear_rank} has no linear layer to act on")
        self._notes += check_ranks(sites, self.rank, self.linear_rank, self.own_rank)
        if self.compute == TWO_PATH and not any(
            isinstance(site, AdaptedLinear) or is_conv1d(site) for site in sites.values()
        ):
            raise RequestError(
                "adapter.compute=two_path has no layer to act on: convolutions and packed attention compute merged",
                "use adapter.compute=auto, or place the adapter on linear layers",
            )
