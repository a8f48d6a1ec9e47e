"""What adapters over a frozen base share: when the base trains, which set a task uses, and what never moves again."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from cl_runner.adapters.adapter import Adapter
from cl_runner.adapters.task_sets import CopiedModules
from cl_runner.backbones.routing import TaskNetwork
from cl_runner.errors import RequestError

PER_TASK, SHARED = "per_task", "shared"
BASES = ("auto", "frozen", "first_task")


class FrozenBase(Adapter):
    """An adapter whose base is frozen once it has been trained.

    With base=frozen the base never trains. With base=first_task it trains in full on the first task (which then needs
    no set), and is frozen from the second on.

    With sharing=per_task every task has a set of its own, with its own copy of every BatchNorm layer and its own head:
    what a task learned never changes, so that with task labels forgetting is exactly zero. With sharing=shared one set
    is carried on from task to task; BatchNorm stays in evaluation mode once the base is frozen.

    Args:
        base: frozen, first_task, or auto (frozen where the network says that its weights were loaded).
        sharing: per_task or shared.
        task_inference: auto, oracle, max_output, entropy or prototype; see `Adapter`.
    """

    root: nn.Module
    copies: CopiedModules

    def __init__(self, *, base: str, sharing: str, task_inference: str) -> None:
        for key, value, choices in (("base", base, BASES), ("sharing", sharing, (PER_TASK, SHARED))):
            if value not in choices:
                raise RequestError(f"adapter.{key}={value} is not possible", f"one of: {', '.join(choices)}")
        self.base, self.sharing, self.task_inference = base, sharing, task_inference
        self.per_task = sharing == PER_TASK
        self.base_tasks: tuple[int, ...] = ()
        self.open_tasks: tuple[int, ...] = ()
        self.active: int | None = None
        self._notes: list[str] = []

    def set_of(self, task: int) -> str:
        """The name of the set that a task uses."""
        return str(task) if self.per_task else SHARED

    def end_task(self) -> None:
        """Closes everything that was open."""
        self._freeze()
        self.open_tasks = ()

    def drift(self) -> float | None:
        """||DeltaW||_F over all adapted layers under the active task: what stands between the weights and the base."""
        norms = [float(self.delta_weight(name).detach().norm()) for name in self.adapted_layers()]
        return math.sqrt(sum(norm**2 for norm in norms))

    @property
    def warnings(self) -> list[str]:
        """What was noticed at attachment."""
        return list(self._notes)

    def _meet(self, model: nn.Module) -> None:
        """Takes the network and settles base=auto."""
        self.model = model
        self.root = model.backbone if isinstance(model, TaskNetwork) else model
        self.copies = CopiedModules(self.root)
        if self.base == "auto":
            self.base = "frozen" if getattr(model, "pretrained", False) else "first_task"

    def _base_learns(self, tasks: Sequence[int]) -> bool:
        """Whether the base itself, in full, learns these tasks; it then has no set open."""
        if self.base != "first_task" or (self.base_tasks and not set(tasks) <= set(self.base_tasks)):
            return False
        self.base_tasks, self.open_tasks = tuple(tasks), ()
        return True

    def _freeze(self) -> None:
        self.root.requires_grad_(False)
        self.copies.close()
