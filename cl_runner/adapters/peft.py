"""Any method of the PEFT library, through the same life as the adapters of this project."""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.adapters.adapter import LayerReport, ParameterReport, as_tasks
from cl_runner.adapters.frozen_base import SHARED, FrozenBase
from cl_runner.adapters.layers import kind_of
from cl_runner.adapters.peft_layers import (
    TEMPLATE,
    check_layer,
    check_merge,
    check_start,
    disturb,
    keep,
    merged,
    put_back,
)
from cl_runner.adapters.peft_methods import exactly, library, resolve
from cl_runner.adapters.placement import Placement
from cl_runner.adapters.roles import role_of
from cl_runner.errors import RequestError, shown, told

NOTHING: Mapping[str, Any] = MappingProxyType({})
RANKLESS = ("OFT", "BOFT")  # their r is a number of blocks
FAILURES = (ImportError, TypeError, ValueError, KeyError, AttributeError, AssertionError, RuntimeError)


class PEFT(FrozenBase):
    """W' as the method says, over a frozen W: LoHa, LoKr, IA3, OFT, BOFT, VeRA, HRA, DoRA, LoRA and others.

    The layers are those of the placement; one PEFT adapter is carried on from task to task, or every task has one of
    its own, with its own BatchNorm copies and head. The method must start at the base: the output may not change by
    more than 1e-6, and merged weights must give it too; what cannot is refused when it attaches. Weights on the meta
    device (mode=plan) are only counted, which some methods of PEFT do not allow (BOFT, HiRA, SHiRA, FRoD).

    Refused: slices of packed attention (PEFT adapts whole layers), layers whose weight is read without a call (PEFT's
    delta would be bypassed without a word), the head (it trains in full), and methods with a training loop of their
    own (AdaLoRA, AdaMSS), or without layers to place (prompt tuning).

    Args:
        method: a PEFT type by its name, in any case; dora is lora with use_dora.
        options: fields of that method's configuration class in PEFT.
        base, sharing, task_inference: see `FrozenBase`.

    Raises:
        RequestError: PEFT is not installed, or knows no such method or option.

    Source: Mangrulkar et al., "PEFT: state-of-the-art parameter-efficient fine-tuning methods", 2022.
    """

    def __init__(
        self,
        *,
        method: str = "lora",
        options: Mapping[str, Any] = NOTHING,
        sharing: str = SHARED,
        base: str = "auto",
        task_inference: str = "auto",
    ) -> None:
        super().__init__(base=base, sharing=sharing, task_inference=task_inference)
        self.method, self.options = method, dict(options)
        self.kind, self.config_class, self.fields = resolve(method, self.options)
        self.layers: dict[str, Any] = {}
        self.sets: set[str] = set()
        self._wrapped: Any = None  # PEFT's own view of the network; its layers are in the network itself
        self._learns: list[str] = []  # names of what PEFT trains, for the set TEMPLATE
        self._open: list[nn.Parameter] = []
        self._current: str | None = None
        self._kept: dict[str, Any] = {}

    def set_of(self, task: int) -> str:
        """The name of the PEFT adapter that a task uses."""
        return f"task{task}" if self.per_task else SHARED

    # ------------------------------------------------------------------------------------------- life

    def attach(self, model: nn.Module, placement: Placement | str = "all") -> None:
        """Wraps the chosen layers with a set that no task uses, and prepares BatchNorm layers.

        Raises:
            RequestError: PEFT cannot adapt a chosen layer with this method, or its output would change.
        """
        self._meet(model)
        names = Placement.of(placement).choose(self.root)
        for name in names:
            check_layer(self.root, name)
        self.layers = dict.fromkeys(names)
        opened = [item for item in self.root.parameters() if item.requires_grad]
        before = {name: self.root.get_submodule(name).weight.detach().clone() for name in names}  # type: ignore[operator]
        self._inject(TEMPLATE)
        self._learns = [name for name, item in self.root.named_parameters() if item.requires_grad]
        with self._explained():
            for name, layer in self.layers.items():
                check_start(self.method, name, layer, before[name])
            disturb(self.layers.values())
            for name, layer in self.layers.items():
                check_merge(self.method, name, layer)
        self._switch(None)
        for item in opened:
            item.requires_grad_(True)
        self.copies.add_norms()
        if self.base == "frozen":
            self._freeze()

    def begin_task(self, tasks: int | Sequence[int]) -> None:
        """Opens the sets of these tasks, made here, and closes all others; or opens the base, on the first task."""
        tasks = as_tasks(tasks)
        self.unmerge()
        if self._base_learns(tasks):
            return
        wanted = list(dict.fromkeys(self.set_of(task) for task in tasks))
        for which in wanted:
            if which not in self.sets:
                self._inject(which)
        self._freeze()
        self.open_tasks = tasks
        own = {".".join(which if part == TEMPLATE else part for part in name.split("."))
               for which in wanted for name in self._learns}  # fmt: skip
        self._open = [item for name, item in self.root.named_parameters() if name in own]
        if self.per_task:
            self.copies.begin_task(tasks)
        self._switch(self.set_of(tasks[-1]))
        self.activate(tasks[-1])

    def end_task(self) -> None:
        """Closes everything that was open."""
        self._open = []
        super().end_task()

    def activate(self, task: int) -> None:
        """Switches every layer to the task's set, or to the base where it has none; a merged one stays merged."""
        which = self.set_of(task) if self.set_of(task) in self.sets else None
        if which != self._current:
            self.unmerge()
            self._switch(which)
        self.active = task
        if self.per_task:
            self.copies.activate(task)

    # ---------------------------------------------------------------------------------------- weights

    def adapted_layers(self) -> list[str]:
        """Names of the layers that PEFT has wrapped."""
        return list(self.layers)

    @torch.no_grad()
    def delta_weight(self, layer: str) -> Tensor:
        """Merged weight minus base weight, in the layout of the layer's weight; zero where the task has no set."""
        wrapped = self.layers[layer]
        weight: Tensor = wrapped.get_base_layer().weight.detach()
        if self._current is None:
            return torch.zeros_like(weight)
        if layer in self._kept:
            return weight - self._kept[layer]["weight"].value
        return merged(wrapped, self._current) - weight

    def merge(self) -> None:
        """Has PEFT merge the active set into every layer."""
        for name, layer in self.layers.items():
            if self._current is not None and name not in self._kept:
                self._kept[name] = keep(layer)
                layer.merge(adapter_names=[self._current])

    def unmerge(self) -> None:
        """Takes it out again and puts the base's weights back, bit for bit."""
        for name, kept in self._kept.items():
            put_back(self.layers[name], kept)
        self._kept.clear()

    def may_merge(self, *, halved: bool = False) -> bool:
        """Not where products or weights have fewer bits than what the active set has learned."""
        if halved or self._current is None:
            return False
        kinds = {name: layer.get_base_layer().weight.dtype for name, layer in self.layers.items()}
        return all(item.dtype == kinds[name] for name, item in self._parameters_of(self._current))

    def owned(self, task: int) -> Iterator[nn.Module | Tensor]:
        """The task's set and copies, where it has its own."""
        if self.per_task:
            yield from (item for _, item in self._parameters_of(self.set_of(task)))
            yield from self.copies.owned(task)

    # ---------------------------------------------------------------------------------------- account

    def parameter_report(self) -> ParameterReport:
        """The parameters of all sets, BatchNorm copies, and their running statistics."""
        seen = {id(item): item.numel() for which in self.sets for _, item in self._parameters_of(which)}
        _, norms, statistics = self.copies.count()
        return ParameterReport(adapter=sum(seen.values()), normalisation=norms, buffers=statistics)

    def layer_report(self, task: int) -> list[LayerReport]:
        """One row a layer of the task's set; what a method shares between layers stands under the first of them."""
        which = self.set_of(task)
        if which not in self.sets or task in self.base_tasks:
            return []
        sizes, seen = dict.fromkeys(self.layers, 0), set()
        for name, item in self._parameters_of(which):
            if id(item) not in seen:
                seen.add(id(item))
                sizes[name] += item.numel()
        rows = []
        for name, layer in self.layers.items():
            ranks = getattr(layer, "r", None)
            rank = ranks.get(which) if isinstance(ranks, dict) and self.kind not in RANKLESS else None
            base = layer.get_base_layer()
            rows.append(LayerReport(name, kind_of(base), tuple(base.weight.shape), rank or None, sizes[name]))
        return rows

    # ----------------------------------------------------------------------------------------- inside

    def _inject(self, which: str) -> None:
        """Adds a set to every chosen layer; the first time, PEFT takes the layers' places."""
        with self._explained():
            config = self._config()
            if self._wrapped is None:
                self._wrapped = library().get_peft_model(self.root, config, adapter_name=which)
            else:
                self._wrapped.add_adapter(which, config)
            if not self.sets and which != TEMPLATE:  # until here: VeRA has its projections from the set before
                self._wrapped.delete_adapter(TEMPLATE)
        self.layers = {name: self.root.get_submodule(name) for name in self.layers}
        for layer in self.layers.values():
            layer.train(self.root.training)
        if which != TEMPLATE:
            self.sets.add(which)

    def _config(self) -> Any:
        """A fresh configuration: PEFT writes into those it is given."""
        known = self.config_class.__dataclass_fields__
        fields = copy.deepcopy(self.fields) | {"target_modules": exactly(self.layers)}
        if "feedforward_modules" in known:  # IA3 scales what enters these, and what leaves all others
            fields.setdefault(
                "feedforward_modules", exactly([name for name in self.layers if role_of(name) == "mlp_out"])
            )
        if "save_projection" in known:  # drawn from a seed: no reason to store a copy for every layer
            fields.setdefault("save_projection", False)
        return self.config_class(**fields)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Says what PEFT refuses in two lines, and keeps its advice to people who call it by hand to itself."""
        try:
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # BOFT looks for a compiler
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except FAILURES as error:
            reason = shown(told(error), 200)
            if isinstance(error, RuntimeError) and any(item.is_meta for item in self.root.parameters()):
                raise RequestError(
                    f"adapter.method={self.method}: PEFT cannot set it up without real weights, as mode=plan has them: "
                    f"{reason}",
                    "leave mode=plan out; what it would count is written to parameters.csv as the run goes on",
                ) from error
            raise RequestError(
                f"adapter.method={self.method} with adapter.options={self.options}: PEFT refuses: {reason}",
                "change adapter.options, or choose other layers with placement",
            ) from error

    def _switch(self, which: str | None) -> None:
        for layer in self.layers.values():
            layer.enable_adapters(which is not None)
            if which is not None:
                layer.set_adapter(which, inference_mode=True)
        for item in self._open:  # PEFT opens and closes as it switches
            item.requires_grad_(True)
        self._current = which

    def _parameters_of(self, which: str) -> Iterator[tuple[str, nn.Parameter]]:
        for name, layer in self.layers.items():
            for key, item in layer.named_parameters():
                if which in key.split("."):
                    yield name, item
