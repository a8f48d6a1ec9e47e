"""What adapters that keep one set per task share: a frozen base, deltas, BatchNorm copies, modules in full."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from cl_runner.adapters.adapter import Adapter, LayerReport, ParameterReport, as_tasks
from cl_runner.adapters.layers import AdaptedLayer, adapt, full_rank, kind_of
from cl_runner.adapters.placement import Placement
from cl_runner.adapters.task_sets import TaskCopies
from cl_runner.backbones.heads import Head
from cl_runner.backbones.network import Network, set_module
from cl_runner.errors import RequestError, nearest


class PerTaskAdapter(Adapter):
    """A set of deltas for every task over a base that is frozen once it has been trained.

    With base=frozen the base never trains and the first task has a set like every other. With base=first_task the
    base trains in full on the first task (which then needs no set), and is frozen from the second on. What a task
    learned never changes afterwards, so that with task labels forgetting is exactly zero.

    Args:
        rank: rank of the deltas on convolutions.
        linear_rank: rank on linear layers; None: `rank`.
        alpha: the scale's numerator, scaling = alpha / rank; None: alpha = rank.
        base: frozen, first_task, or auto (frozen where the network says that its weights were loaded).
        full: names of modules trained in full per task. The head of a per-task network always is.
    """

    per_task = True
    CONV_RANK_KEY: ClassVar[str] = "adapter.rank"

    def __init__(
        self,
        *,
        rank: int = 4,
        linear_rank: int | None = None,
        alpha: float | None = None,
        base: str = "auto",
        full: Sequence[str] = (),
    ) -> None:
        self.rank = rank
        self.linear_rank = linear_rank
        self.alpha = alpha
        self.base = base
        self.full = tuple(full)
        self.layers: dict[str, nn.Module] = {}
        self.copies: dict[str, TaskCopies] = {}
        self.base_tasks: tuple[int, ...] = ()
        self.active: int | None = None
        self._unmerged: dict[str, Tensor] = {}
        self._notes: list[str] = []

    # ------------------------------------------------------------------------------------- for methods

    @abstractmethod
    def make_delta(self, layer: nn.Module, rank: int, scaling: float) -> nn.Module:
        """A fresh set for one layer: calling it gives DeltaW, zero at first, in the shape of the weight."""

    def own_rank(self, layer: nn.Module) -> int:
        """The rank from which this method's delta is no longer low-rank; beyond it the user is warned."""
        return full_rank(layer)

    # ------------------------------------------------------------------------------------------- life

    def attach(self, model: nn.Module, placement: Placement | str = "all") -> None:
        """Adapts the chosen layers and prepares BatchNorm layers and `full` modules for copies."""
        self.model = model
        self.root = model.backbone if isinstance(model, Network) else model
        if self.base == "auto":
            self.base = "frozen" if getattr(model, "pretrained", False) else "first_task"
        names = Placement.of(placement).choose(self.root)
        for name in self._full_names():
            self._copy_per_task(name)
        inside = tuple(f"{name}." for name in self.copies)
        names = [name for name in names if name not in self.copies and not name.startswith(inside)]
        self._check_ranks(names)
        for name in names:
            module = self.root.get_submodule(name)
            layers = module.classifiers if isinstance(module, Head) else [module]
            for layer in layers:
                adapt(layer, name)
            self.layers[name] = module
        for name, module in list(self.root.named_modules()):
            if _copied_per_task(module) and not name.startswith(inside):
                self._copy_per_task(name)
        if self.base == "frozen":
            self._freeze_base()

    def begin_task(self, tasks: int | Sequence[int]) -> None:
        """Opens the sets of these tasks, made here, and closes all others; or opens the base, on the first task."""
        tasks = as_tasks(tasks)
        self.unmerge()
        if self.base == "first_task" and (not self.base_tasks or set(tasks) <= set(self.base_tasks)):
            self.base_tasks = tasks
            return
        self._freeze_base()
        for name in self.layers:
            for task in tasks:
                layer = self._layer(name, task)
                if str(task) not in layer.deltas:
                    rank = self._rank_of(layer)
                    alpha = rank if self.alpha is None else self.alpha
                    layer.deltas[str(task)] = self.make_delta(layer, rank, alpha / rank)
                layer.deltas[str(task)].requires_grad_(True)
        for copies in self.copies.values():
            copies.begin_task(tasks)

    def end_task(self) -> None:
        """Closes everything that was open: no later task changes it."""
        self._freeze_base()

    def activate(self, task: int) -> None:
        """Switches every layer to the task's set, or to the base where it has none; a merged one stays merged."""
        if task != self.active:
            self.unmerge()
        self.active = task
        for name in self.layers:
            layer = self._layer(name, task)
            layer.active = str(task) if str(task) in layer.deltas else None
        for copies in self.copies.values():
            copies.activate(task)

    # ---------------------------------------------------------------------------------------- weights

    def adapted_layers(self) -> list[str]:
        """Names of the layers that have a delta."""
        return list(self.layers)

    def delta_weight(self, layer: str) -> Tensor:
        """DeltaW under the active task; zero where the task has no set."""
        adapted = self._active_layer(layer)
        if adapted.active is None:
            return adapted.base_weight.new_zeros(adapted.base_weight.shape)
        return adapted.deltas[adapted.active]()

    def merge(self) -> None:
        """Adds the active deltas to the weights; the forward pass then costs what the base's does."""
        for name in self.layers:
            layer = self._active_layer(name)
            if layer.active is not None and layer.merged is None:
                self._unmerged[name] = layer.base_weight.detach().clone()
                layer.base_weight.data += layer.deltas[layer.active]().detach()
                layer.merged = layer.active

    def unmerge(self) -> None:
        """Puts the base's weights back, bit for bit."""
        for name, weight in self._unmerged.items():
            for layer in self._layers_named(name):
                if layer.merged is not None:
                    layer.base_weight.data.copy_(weight)
                    layer.merged = None
        self._unmerged.clear()

    # ---------------------------------------------------------------------------------------- account

    def parameter_report(self) -> ParameterReport:
        """Factors and full copies, BatchNorm copies, and their running statistics."""
        factors = sum(_count(delta) for layer in self._all_layers() for delta in layer.deltas.values())
        norms = [copies for copies in self.copies.values() if _copied_per_task(copies.base)]
        fulls = [copies for copies in self.copies.values() if not _copied_per_task(copies.base)]
        statistics = sum(
            buffer.numel()
            for copies in norms
            for copied in copies.copies.values()
            for name, buffer in copied.named_buffers()
            if not name.endswith("num_batches_tracked")
        )
        return ParameterReport(
            adapter=factors + sum(_count(copies.copies) for copies in fulls),
            normalisation=sum(_count(copies.copies) for copies in norms),
            buffers=statistics,
        )

    def layer_report(self, task: int) -> list[LayerReport]:
        """One row a layer with a delta, and one a module trained in full, for the task's own set."""
        rows = []
        for name in self.layers:
            layer = self._layer(name, task)
            if str(task) in layer.deltas:
                delta = layer.deltas[str(task)]
                rows.append(
                    LayerReport(name, kind_of(layer), tuple(layer.weight.shape), self._rank_of(layer), _count(delta))
                )
        for name, copies in self.copies.items():
            if not _copied_per_task(copies.base) and str(task) in copies.copies:
                weight = next(copies.base.parameters())
                rows.append(LayerReport(name, "full", tuple(weight.shape), None, _count(copies.copies[str(task)])))
        return rows

    @property
    def warnings(self) -> list[str]:
        """Layers whose full rank is below the rank asked for."""
        return list(self._notes)

    # ----------------------------------------------------------------------------------------- inside

    def _layer(self, name: str, task: int) -> AdaptedLayer:
        module = self.layers[name]
        layer = module.classifier(task) if isinstance(module, Head) else module
        assert isinstance(layer, AdaptedLayer)
        return layer

    def _layers_named(self, name: str) -> Iterator[AdaptedLayer]:
        module = self.layers[name]
        for layer in module.classifiers if isinstance(module, Head) else [module]:
            assert isinstance(layer, AdaptedLayer)
            yield layer

    def _all_layers(self) -> Iterator[AdaptedLayer]:
        for name in self.layers:
            yield from self._layers_named(name)

    def _active_layer(self, name: str) -> AdaptedLayer:
        return self._layer(name, self.active or 0)

    def _freeze_base(self) -> None:
        self.root.requires_grad_(False)
        for copies in self.copies.values():
            copies.close()

    def _copy_per_task(self, name: str) -> None:
        copies = TaskCopies(self.root.get_submodule(name))
        copies.train(self.model.training)
        set_module(self.root, name, copies)
        self.copies[name] = copies

    def _full_names(self) -> list[str]:
        """Modules of `full`, none inside another; never the head, which is per task anyway."""
        modules = dict(self.root.named_modules())
        has_head = any(isinstance(module, Head) for module in modules.values())
        names: list[str] = []
        for wanted in self.full:
            if wanted == "head" and has_head:
                continue
            if not wanted or wanted not in modules or not any(True for _ in modules[wanted].parameters()):
                known = tuple(
                    name
                    for name, module in modules.items()
                    if name and not isinstance(module, Head) and any(True for _ in module.parameters())
                )
                raise RequestError(
                    f"adapter.full: there is no module '{wanted}' with parameters", nearest(wanted, known)
                )
            names += _without_head(wanted, modules[wanted])
        return [name for name in dict.fromkeys(names) if not any(name.startswith(f"{other}.") for other in names)]

    def _rank_of(self, layer: nn.Module) -> int:
        if isinstance(layer, nn.Linear) and self.linear_rank is not None:
            return self.linear_rank
        return self.rank

    def _check_ranks(self, names: list[str]) -> None:
        """Refuses a rank above the full rank of every layer that it is for; notes the layers that are smaller."""
        groups: dict[str, dict[str, nn.Module]] = {}
        for name in names:
            module = self.root.get_submodule(name)
            layer = module.classifier(0) if isinstance(module, Head) else module
            own = isinstance(layer, nn.Linear) and self.linear_rank is not None
            groups.setdefault("adapter.linear_rank" if own else self.CONV_RANK_KEY, {})[name] = layer
        for key, layers in groups.items():
            rank = self._rank_of(next(iter(layers.values())))
            largest = max(full_rank(layer) for layer in layers.values())
            if rank > largest:
                kinds = " and ".join(sorted({kind_of(layer) for layer in layers.values()}))
                raise RequestError(
                    f"{key}={rank} exceeds the full rank of every placed {kinds} layer", f"at most {largest} here"
                )
            limits = {name: min(full_rank(layer), self.own_rank(layer)) for name, layer in layers.items()}
            small = [f"{name} ({limit})" for name, limit in limits.items() if rank > limit]
            if small:
                self._notes.append(f"{key}={rank} is not low-rank for {', '.join(small)}")


def _without_head(name: str, module: nn.Module) -> list[str]:
    """The module, or where it holds the head, those of its parts that have parameters and do not."""
    if isinstance(module, Head) or not any(True for _ in module.parameters()):
        return []
    if not any(isinstance(inner, Head) for inner in module.modules()):
        return [name]
    return [part for leaf, child in module.named_children() for part in _without_head(f"{name}.{leaf}", child)]


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _copied_per_task(module: nn.Module) -> bool:
    """Every BatchNorm, and InstanceNorm with running statistics: what later tasks would move."""
    return isinstance(module, _BatchNorm) or (isinstance(module, _NormBase) and module.running_mean is not None)
