"""SenaCNN: a frozen trunk, and a branch of its own for every task (Zacarias and Alexandre, 2018)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from cl_runner.adapters.adapter import Adapter, LayerReport, ParameterReport, as_tasks
from cl_runner.adapters.placement import Placement
from cl_runner.adapters.task_sets import CopiedModules, keeps_statistics
from cl_runner.backbones.heads import Head
from cl_runner.backbones.routing import TaskNetwork
from cl_runner.errors import RequestError, nearest

NOT_COUNTED = (_NormBase, nn.GroupNorm, nn.LayerNorm, nn.Embedding)


class SenaCNN(Adapter):
    """Layers up to a cut are frozen; those after it, and the head, exist once per task.

    y = head_t(branch_t(trunk(x))). The base (trunk, and the branch and head of the first task) learns the first task in
    full; from the second task on the trunk is frozen and only the task's own branch and head train. With base=frozen
    the base never trains, and the first task has a branch like every other. Nothing that a task learned ever changes.
    Without task labels every branch answers, and the one with the largest output wins (`task_inference`).

    Replicated are leaf modules, each in its place (a `MultiheadAttention` as one), which is the same as replicating the
    tail as a whole: activation switches all of them together. The order of layers is that of their definition. A
    normalisation layer belongs to the layer that it follows. What has no layer of its own (a position embedding, a
    layer scale) stays the base's, and `warnings` says so. Heads are the network's, drawn afresh for every task.

    Args:
        cut: the share of the layers with weights (convolutions and linear layers, the head counted too) that is frozen:
            of n layers the first floor(cut * n); or the name of the first replicated layer, or of a part of the network
            that begins with it. The head's name replicates nothing else. Naming the first layer freezes nothing (one
            network per task); a share that freezes nothing is refused.
        branch_init: first_task copies the base's weights as the first task left them, scratch the weights with which
            the base was built.
        base: frozen, first_task, or auto (frozen where the network says that its weights were loaded).
        task_inference: auto, oracle, max_output, entropy or prototype; see `Adapter`.
    """

    takes_text = False

    per_task = True

    def __init__(
        self,
        *,
        cut: float | str = 0.5,
        branch_init: str = "first_task",
        base: str = "auto",
        task_inference: str = "auto",
    ) -> None:
        self.cut, self.branch_init, self.base, self.task_inference = cut, branch_init, base, task_inference
        self.base_tasks: tuple[int, ...] = ()
        self.active: int | None = None
        self._initial: dict[str, dict[str, Tensor]] = {}
        self._notes: list[str] = []

    # ------------------------------------------------------------------------------------------- life

    def attach(self, model: nn.Module, placement: Placement | str = "all") -> None:
        """Cuts the network in two; the placement has no part in it.

        Raises:
            RequestError: the cut is no layer, or leaves nothing frozen, or the options contradict each other.
        """
        self.model = model
        self.root = model.backbone if isinstance(model, TaskNetwork) else model
        if self.base == "auto":
            self.base = "frozen" if getattr(model, "pretrained", False) else "first_task"
        if self.base == "frozen" and self.branch_init == "scratch":
            raise RequestError(
                "adapter.branch_init=scratch: with adapter.base=frozen no task trains the base, and a branch always "
                "starts from the weights it was given",
                "drop it, or set adapter.base=first_task",
            )
        self._note_loose_parameters()
        modules = _units(self.root)
        names = list(modules)
        first = names.index(self._first_replicated(modules))
        self.branches, self.trunk_norms = CopiedModules(self.root), CopiedModules(self.root)
        for name in names[first:]:
            if not isinstance(modules[name], Head):
                if self.branch_init == "scratch":
                    self._initial[name] = {key: item.clone() for key, item in modules[name].state_dict().items()}
                self.branches.add(name)
        for name in names[:first]:
            if keeps_statistics(modules[name]):
                self.trunk_norms.add(name)  # never copied: closed, they no longer follow `train()`
        if self.base == "frozen":
            self._freeze()

    def begin_task(self, tasks: int | Sequence[int]) -> None:
        """Opens the branches of these tasks, made here, and closes all others; or opens the base, on the first task."""
        tasks = as_tasks(tasks)
        if self.base == "first_task" and (not self.base_tasks or set(tasks) <= set(self.base_tasks)):
            self.base_tasks = tasks
            return
        self._freeze()
        new = [task for task in tasks if not any(str(task) in item.copies for item in self.branches.named.values())]
        self.branches.begin_task(tasks)
        for name, state in self._initial.items():
            for task in new:
                self.branches.named[name].copies[str(task)].load_state_dict(state)
        self.activate(tasks[-1])

    def end_task(self) -> None:
        """Closes everything that was open."""
        self._freeze()

    def activate(self, task: int) -> None:
        """Switches every replicated layer to the task's copy, or to the base's where it has none."""
        self.active = task
        self.branches.activate(task)

    # ---------------------------------------------------------------------------------------- weights

    def adapted_layers(self) -> list[str]:
        """Names of the replicated layers with a weight; the head is the network's."""
        return [name for name, item in self.branches.named.items() if has_weight(item.base)]

    def delta_weight(self, layer: str) -> Tensor:
        """W of the active branch minus W of the base; zero where the task has no branch; an attention as a vector."""
        copies = self.branches.named.get(layer)
        if copies is None or not has_weight(copies.base):
            raise KeyError(layer)
        return _weight(copies.module) - _weight(copies.base)

    def merge(self) -> None:
        """Does nothing: a branch takes the place of the base's layers, there is nothing to add and no cost to save."""

    def unmerge(self) -> None:
        """Does nothing, like `merge`."""

    def owned(self, task: int) -> Iterator[nn.Module]:
        """The task's branch."""
        return self.branches.owned(task)

    def drift(self) -> float | None:
        """||theta - theta_0||_F over the replicated layers under the active task."""
        norms = [float(self.delta_weight(name).detach().norm()) for name in self.adapted_layers()]
        return math.sqrt(sum(norm**2 for norm in norms))

    # ---------------------------------------------------------------------------------------- account

    def parameter_report(self) -> ParameterReport:
        """Copied weights, BatchNorm copies, and their running statistics."""
        weights, norms, statistics = self.branches.count()
        return ParameterReport(adapter=weights, normalisation=norms, buffers=statistics)

    def layer_report(self, task: int) -> list[LayerReport]:
        """A row for every module of the task's branch, but for its BatchNorm layers."""
        return list(self.branches.layer_report(task))

    @property
    def warnings(self) -> list[str]:
        """Parameters that no branch replicates although they belong to no layer."""
        return list(self._notes)

    # ----------------------------------------------------------------------------------------- inside

    def _freeze(self) -> None:
        self.root.requires_grad_(False)
        self.branches.close()
        self.trunk_norms.close()

    def _first_replicated(self, modules: dict[str, nn.Module]) -> str:
        """The name of the layer at the cut."""
        layers = [name for name, module in modules.items() if has_weight(module)]
        if isinstance(self.cut, str):
            inside = [name for name in layers if name == self.cut or name.startswith(f"{self.cut}.")]
            if not inside:
                raise RequestError(
                    f"adapter.cut={self.cut}: there is no such layer with weights", nearest(self.cut, layers, limit=30)
                )
            return inside[0]
        frozen = math.floor(self.cut * len(layers) + 1e-9)  # 0.29 * 100 is 28.999999999999996
        if not 0 < frozen < len(layers):
            what = "nothing is frozen" if frozen < 1 else "nothing is left to replicate"
            raise RequestError(
                f"adapter.cut={self.cut:g} of {len(layers)} layers with weights: {what}",
                f"a share from {1 / len(layers):.3g} to below 1, or the name of the first replicated layer",
            )
        return layers[frozen]

    def _note_loose_parameters(self) -> None:
        inside = tuple(f"{name}." for name in _units(self.root))
        loose = [name for name, _ in self.root.named_parameters() if not name.startswith(inside)]
        if loose:
            self._notes.append(
                f"belongs to no layer and is not replicated: {', '.join(loose[:5])}"
                + (f" and {len(loose) - 5} more" if len(loose) > 5 else "")
            )


def has_weight(module: nn.Module) -> bool:
    """Whether a module counts as a layer: a convolution, a linear layer, an attention or the head."""
    if isinstance(module, Head | nn.MultiheadAttention):
        return True
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.dim() > 1 and not isinstance(module, NOT_COUNTED)


def _weight(layer: nn.Module) -> Tensor:
    if isinstance(layer, nn.MultiheadAttention):
        return torch.cat([item.flatten() for item in layer.parameters() if item.dim() > 1])
    assert isinstance(layer.weight, Tensor)
    return layer.weight


def _units(root: nn.Module) -> dict[str, nn.Module]:
    """What is replicated as one: leaves with parameters or running statistics, attentions, and the head."""
    found: dict[str, nn.Module] = {}
    for name, module in root.named_modules():
        if name.startswith(tuple(f"{unit}." for unit in found)):
            continue
        whole = isinstance(module, Head | nn.MultiheadAttention)
        leaf = not any(True for _ in module.children())
        if whole or (leaf and (any(True for _ in module.parameters()) or keeps_statistics(module))):
            found[name] = module
    return found
