"""Tasks whose answers cannot have changed since they were last evaluated, by a hash of what these depend on."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.adapters.factors import Delta
from cl_runner.backbones.routing import TaskNetwork
from cl_runner.benchmarks.avalanche_view import sample_ids
from cl_runner.training.evaluating import from_outside
from cl_runner.training.meter import Meter

BYTES = 32  # of a digest


class Unchanged:
    """Carries over what was measured of a task as long as nothing that its answers depend on has changed.

    For a task t that is

    - every parameter and buffer of the network, but for those that belong to other tasks alone (`TaskNetwork.owned`),
      bit for bit, and the plain attributes of deltas, such as the rank to which they are truncated;
    - its test samples, how many of them are evaluated at once, and the precision.

    All of it is hashed before every evaluation (BLAKE2b); tensors that tasks share are hashed once. A method with one
    set for all tasks has no such task, and is measured; so is everything where a task is inferred, where the strategy's
    model is more than the network, and where a plugin or metric of a user's looks on.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[bytes, Any]] = {}

    def recall(self, strategy: Any, meter: Meter, experiences: Sequence[Any]) -> set[int]:
        """Puts back into the meter what is known of tasks that are as they were; returns these tasks."""
        self._now = self._digests(strategy, experiences)
        found = {task for task, digest in self._now.items() if task in self._known and self._known[task][0] == digest}
        for task in found:
            meter.put(task, self._known[task][1])
        return found

    def keep(self, meter: Meter) -> None:
        """Keeps what the meter has measured since `recall`."""
        self._known |= {task: (digest, meter.reading(task)) for task, digest in self._now.items()}

    def _digests(self, strategy: Any, experiences: Sequence[Any]) -> dict[int, bytes]:
        """A digest for each task that may be carried over; none where too little is known of who answers."""
        network = strategy.model
        strategy.events.refresh()
        if not isinstance(network, TaskNetwork) or from_outside(strategy):
            return {}
        if network.inference is not None and not network.task_given:
            return {}
        shared, own = states(network)
        found: dict[int, bytes] = {}
        for experience in experiences:
            task, ids = experience.current_experience, sample_ids(experience.dataset)
            assert ids is not None, "evaluation data always comes from the store"
            total = hashlib.blake2b(shared + own.get(task, b""), digest_size=BYTES)
            total.update(f"{task} {strategy.eval_mb_size} {network.precision} ".encode() + ids.numpy().tobytes())
            found[task] = total.digest()
        return found


def states(network: TaskNetwork) -> tuple[bytes, dict[int, bytes]]:
    """Digests of the tensors that tasks share, and of those that belong to one task, by task."""
    owners: dict[int, int] = {}
    for task in range(network.n_tasks):
        for item in network.owned(task):
            owners |= dict.fromkeys((id(item), *map(id, item.modules() if isinstance(item, nn.Module) else ())), task)
    totals: dict[int | None, Any] = defaultdict(lambda: hashlib.blake2b(digest_size=BYTES))
    seen: dict[int, bytes] = {}
    for name, module in network.named_modules():
        owner = owners.get(id(module))
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                if id(tensor) not in seen:
                    seen[id(tensor)] = digest(tensor)
                totals[owners.get(id(tensor), owner)].update(f"{name}.{leaf} ".encode() + seen[id(tensor)])
        if isinstance(module, Delta):
            plain = [pair for pair in vars(module).items() if isinstance(pair[1], int | float | str | None)]
            settings = sorted((key, value) for key, value in plain if key != "training")
            totals[owner].update(repr((name, settings)).encode())
    digests = {owner: total.digest() for owner, total in totals.items()}
    return digests.pop(None, b""), {task: item for task, item in digests.items() if task is not None}


def digest(tensor: Tensor) -> bytes:
    """The BLAKE2b of a tensor's type, shape and bytes."""
    total = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)} ".encode(), digest_size=BYTES)
    if tensor.numel():
        total.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).cpu().numpy().data)
    return total.digest()
