"""What shows that a network may go on from a cut, and how it is left as it was."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from cl_runner.backbones.network import Network
from cl_runner.backbones.prefix import Cut
from cl_runner.backbones.routing import NO_TASK

SAME = 1e-4  # of the largest value, in float32: what another size of batch, or another order of sums, may change


class Trial:
    """What shows that a network may go on from a cut.

    - The prefix draws no random number, and writes no buffer.
    - A sample's features do not depend on what shares its batch.
    - From the features on, the network gives the logits that it gives for the images: bit for bit, or as nearly as the
      kernels allow where two passes over the images differ themselves. So for its buffers (BatchNorm after the cut)
      and, while learning, for the gradients of every open parameter: in value, as a shorter graph may sum in another
      order.
    - With a batch of another size too.
    - For evaluation: the prefix gives the same under the set of every task learned so far, and under none.

    Args:
        network: in the mode in which the cut is used.
        images: (n, C, H, W).
        task: under which they are answered.
        learning: whether gradients count.
    """

    def __init__(self, network: Network, images: Tensor, task: int, learning: bool) -> None:
        self.network, self.images, self.task, self.learning = network, images, task, learning
        self._state = State(network)
        self._whole: list[list[Tensor]] = []

    def passes(self, cut: Cut) -> bool:
        """Whether a cut shows all that."""
        some = self.images[: len(self.images) // 2]
        try:
            self._state.restore()
            features = cut.run(self.images)
            if self._state.has_changed() or not _close(cut.run(some), features[: len(some)]):
                return False
            (logits, *others), (whole, *expected), (again, *_) = self._answer(cut.mark(features)), *self._answers()
            alike = torch.equal if torch.equal(whole, again) else _close
            if not alike(logits, whole) or not all(map(_close, others, expected)):
                return False
            parted = self._answer(cut.mark(features[: len(some)]))
            if not all(map(_close, parted, self._answer(some))):
                return False
        except Exception:  # whatever a network says to features where it expects images: it cannot be cut here
            return False
        return self.learning or self._whatever_task(cut, some)

    def _answers(self) -> list[list[Tensor]]:
        """The answer to the images, twice."""
        self._whole = self._whole or [self._answer(self.images), self._answer(self.images)]
        return self._whole

    def _answer(self, x: Tensor) -> list[Tensor]:
        """Logits, buffers afterwards, and while learning gradients for a fixed sum of the logits."""
        network = self.network
        self._state.restore()
        logits: Tensor = network(x, self.task)
        found = [logits.detach(), *(item.clone() for item in network.backbone.buffers())]
        if not self.learning or not logits.requires_grad:
            return found
        finite = logits.masked_fill(~logits.isfinite(), 0.0)
        ramp = torch.linspace(-1, 1, finite.numel(), device=finite.device).view_as(finite)
        opened = [item for item in network.parameters() if item.requires_grad]
        gradients = torch.autograd.grad((finite * ramp).sum(), opened, allow_unused=True)
        nothing = torch.zeros(0, device=x.device)
        return found + [nothing if item is None else item for item in gradients]

    def _whatever_task(self, cut: Cut, some: Tensor) -> bool:
        network = self.network
        if not network.per_task:
            return True
        expected = cut.run(some)
        try:
            for task in (NO_TASK, *sorted(network.known_tasks())):
                network.adapter.activate(task)
                if not torch.equal(cut.run(some), expected):
                    return False
        finally:
            network.adapter.activate(network.active)
        return True


def _close(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors differ by no more than a kernel's order of sums explains."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if torch.equal(a, b):
        return True
    finite = b.isfinite()
    if not a.is_floating_point() or not torch.equal(finite, a.isfinite()) or not bool(finite.any()):
        return False
    a, b = a[finite].float(), b[finite].float()
    scale = SAME if a.dtype == torch.float32 else 100 * SAME
    return float((a - b).abs().max()) <= scale * float(b.abs().max())


class State:
    """What a forward pass may change besides its answer: buffers, and generators of random numbers."""

    def __init__(self, network: Network) -> None:
        self._backbone, self._device = network.backbone, network.anchor.device
        self._buffers = [(item, item.detach().clone()) for item in self._backbone.buffers()]
        self._random = self._generators()

    def has_changed(self) -> bool:
        """Whether anything is not as it was."""
        now = [*self._generators(), *self._backbone.buffers()]
        then = [*self._random, *(value for _, value in self._buffers)]
        return len(now) != len(then) or not all(map(torch.equal, now, then))

    def restore(self) -> None:
        """Puts everything back; only what has changed is written, as writing counts as a change."""
        with torch.no_grad():
            for item, value in self._buffers:
                if not torch.equal(item, value):  # BatchNorm does not raise the version of what it writes
                    item.copy_(value)
        torch.set_rng_state(self._random[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(self._random[1], self._device)

    def _generators(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self._device)] if self._device.type == "cuda" else states


@contextmanager
def preserved(network: Network, learning: bool) -> Iterator[None]:
    """Within, the network is in the mode in which the cut is used; afterwards it is as it was."""
    kept: Sequence[Any] = (network.training, network.active, network.inferred, network.probed)
    state = State(network)
    if not learning:
        network.probed = None
    network.train(learning)
    try:
        yield
    finally:
        state.restore()
        training, active, inferred, probed = kept
        network.train(training)
        network.activate(active if network.learning is None else network.learning)  # a task begins with its own set
        network.active, network.inferred, network.probed = active, inferred, probed
