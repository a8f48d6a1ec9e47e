"""Modules that exist once per task: BatchNorm copies, and layers trained in full."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from cl_runner.adapters.adapter import LayerReport
from cl_runner.backbones.heads import Head
from cl_runner.backbones.routing import set_module
from cl_runner.errors import RequestError, nearest


class TaskCopies(nn.Module):
    """A module of the base with a copy for each task that wants its own.

    Tasks without a copy (before their training, and the task that trained the base) use the base itself. Closed
    copies stay in evaluation mode whatever `train()` says, so that no later task moves their running statistics.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.copies = nn.ModuleDict()
        self.active: str | None = None
        self.open: tuple[str, ...] = ()
        self.base_open = True

    def begin_task(self, tasks: Sequence[int]) -> None:
        """Adds and opens the tasks' copies, starting from the base, and closes everything else."""
        self.close()
        for task in tasks:
            if str(task) not in self.copies:
                self.copies[str(task)] = copy.deepcopy(self.base)
            self.copies[str(task)].requires_grad_(True)
        self.open = tuple(str(task) for task in tasks)
        self.train(self.training)

    def close(self) -> None:
        """Nothing here trains any more."""
        self.requires_grad_(False)
        self.open, self.base_open = (), False
        self.train(self.training)

    def activate(self, task: int) -> None:
        """Computes with the task's copy, or with the base where it has none."""
        self.active = str(task) if str(task) in self.copies else None

    def train(self, mode: bool = True) -> TaskCopies:
        """Training mode reaches only what is open."""
        super().train(mode)
        for name, module in self.copies.items():
            module.train(mode and name in self.open)
        self.base.train(mode and self.base_open)
        return self

    @property
    def module(self) -> nn.Module:
        """The module in use."""
        return self.base if self.active is None else self.copies[self.active]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The active module's output."""
        return self.module(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        """What the module in use has: some networks take a layer's weight without calling the layer."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "base" not in self.__dict__.get("_modules", {}):  # being copied or built
                raise
            return getattr(self.module, name)


class CopiedModules:
    """The modules of one network that exist once per task, by name.

    Args:
        root: the network that they are put into, in the place of the modules they copy.
    """

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        self.named: dict[str, TaskCopies] = {}

    def add(self, name: str) -> None:
        """Makes a module exist once per task."""
        copies = TaskCopies(self.root.get_submodule(name))
        copies.train(self.root.training)
        set_module(self.root, name, copies)
        self.named[name] = copies

    def add_norms(self, outside: Sequence[str] = ()) -> None:
        """Makes every layer with running statistics exist once per task, but for those inside the named modules."""
        inside = tuple(f"{name}." for name in (*self.named, *outside))
        for name, module in list(self.root.named_modules()):
            if keeps_statistics(module) and not name.startswith(inside) and name not in outside:
                self.add(name)

    def begin_task(self, tasks: Sequence[int]) -> None:
        """Opens the tasks' copies, made here."""
        for copies in self.named.values():
            copies.begin_task(tasks)

    def close(self) -> None:
        """Nothing here trains any more."""
        for copies in self.named.values():
            copies.close()

    def activate(self, task: int) -> None:
        """Computes with the task's copies."""
        for copies in self.named.values():
            copies.activate(task)

    def owned(self, task: int) -> Iterator[nn.Module]:
        """The task's copies."""
        return (item.copies[str(task)] for item in self.named.values() if str(task) in item.copies)

    def count(self) -> tuple[int, int, int]:
        """(parameters of full copies, parameters of normalisation copies, their running means and variances)."""
        norms = [copies for copies in self.named.values() if keeps_statistics(copies.base)]
        fulls = [copies for copies in self.named.values() if not keeps_statistics(copies.base)]
        statistics = sum(
            buffer.numel()
            for copies in norms
            for copied in copies.copies.values()
            for name, buffer in copied.named_buffers()
            if not name.endswith("num_batches_tracked")
        )
        return sum(count(item.copies) for item in fulls), sum(count(item.copies) for item in norms), statistics

    def layer_report(self, task: int) -> Iterator[LayerReport]:
        """A row for every module that the task trains in full."""
        for name, copies in self.named.items():
            if not keeps_statistics(copies.base) and str(task) in copies.copies:
                weight = next(copies.base.parameters())
                yield LayerReport(name, "full", tuple(weight.shape), None, count(copies.copies[str(task)]))


def full_modules(root: nn.Module, wanted_names: Sequence[str]) -> list[str]:
    """The modules that `adapter.full` names, none inside another; never the head, which trains anyway.

    Raises:
        RequestError: there is no such module, or it has no parameters.
    """
    modules = dict(root.named_modules())
    has_head = any(isinstance(module, Head) for module in modules.values())
    names: list[str] = []
    for wanted in wanted_names:
        if wanted == "head" and has_head:
            continue
        heads = tuple(name for name, module in modules.items() if isinstance(module, Head))
        inside = tuple(f"{name}." for name in heads)
        if wanted in heads:
            continue
        if wanted.startswith(inside):
            raise RequestError(
                f"adapter.full: '{wanted}' is part of the head, which trains in full in any case",
                "leave it out, or write head",
            )
        if not wanted or wanted not in modules or not count(modules[wanted]):
            known = tuple(
                name
                for name, module in modules.items()
                if name and name not in heads and not name.startswith(inside) and count(module)
            )
            raise RequestError(f"adapter.full: there is no module '{wanted}' with parameters", nearest(wanted, known))
        names += _without_head(wanted, modules[wanted])
        _refuse_shared(root, wanted)
    return [name for name in dict.fromkeys(names) if not any(name.startswith(f"{other}.") for other in names)]


def _refuse_shared(root: nn.Module, wanted: str) -> None:
    """Raises RequestError where a parameter of the module is that of a module outside too."""
    own = {id(item) for item in root.get_submodule(wanted).parameters()}
    for name, parameter in root.named_parameters(remove_duplicate=False):
        if id(parameter) in own and not name.startswith(f"{wanted}."):
            raise RequestError(
                f"adapter.full: '{wanted}' shares its weight with '{name.rpartition('.')[0]}', which would train too",
                "leave it out, or untie the two (backbone.options.tie_word_embeddings=false)",
            )


def keeps_statistics(module: nn.Module) -> bool:
    """Every BatchNorm, and InstanceNorm with running statistics: what later tasks would move."""
    return isinstance(module, _BatchNorm) or (isinstance(module, _NormBase) and module.running_mean is not None)


def count(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(parameter.numel() for parameter in module.parameters())


def _without_head(name: str, module: nn.Module) -> list[str]:
    """The module, or where it holds the head, those of its parts that have parameters and do not."""
    if isinstance(module, Head) or not count(module):
        return []
    if not any(isinstance(inner, Head) for inner in module.modules()):
        return [name]
    return [part for leaf, child in module.named_children() for part in _without_head(f"{name}.{leaf}", child)]
