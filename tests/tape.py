"""A stand-in for CUDA graphs on the CPU: records a function's operations with their very tensors, and does them again.

As with a CUDA graph, nothing of Python runs at a replay, and every operation reads and writes the memory that it had
when it was recorded; reading a value back, or asking how many there are, ends the recording with an error, and then
nothing has been computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "nonzero", "_unique2", "masked_select")


class Tape(TorchDispatchMode):
    """Records and replays."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self._made: set[int] = set()
        self._before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        on_the_host = name == "_local_scalar_dense" and args[0].dtype == torch.int64  # task labels are, on a GPU too
        if name in WAITS and not on_the_host:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        for item in tree_leaves((args, kwargs)):
            if isinstance(item, Tensor) and id(item) not in self._made and id(item) not in self._before:
                self._before[id(item)] = (item, item.detach().clone())
        result = function(*args, **(kwargs or {}))
        self._made.update(id(item) for item in tree_leaves(result))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def warm(self, work: Callable[[], None]) -> None:
        """Runs."""
        work()

    def record(self, work: Callable[[], None]) -> None:
        """Runs and records."""
        try:
            with self:
                work()
        except Exception:
            with torch.no_grad():
                for item, value in self._before.values():
                    if 0 not in item.stride():  # labels of tasks are one number, and nobody writes it
                        item.copy_(value)
            raise

    @torch.no_grad()
    def repeat(self) -> None:
        """Does every operation again, into the memory of the first time."""
        for function, args, kwargs, result in self.operations:
            again = function(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)
