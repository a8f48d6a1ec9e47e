"""Where a network can be cut: the deepest place before which nothing moves, found by trying it out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from cl_runner.backbones.network import Network
from cl_runner.backbones.prefix import Cut
from cl_runner.training.trial import Trial, preserved

PROBE = 7  # images that candidates are tried on; a number that few other dimensions have
CANDIDATES = 8  # tried at most among modules that lie equally deep inside one another
LEAST_SHARE = 0.05  # of the forward pass's arithmetic in weights, which a prefix must be worth


def find_cut(network: Network, images: Tensor, *, learning: bool) -> Cut | None:
    """The deepest cut before which nothing moves in the present task, or moved in the last; None where there is none.

    What a candidate has to show is in `Trial`. Candidates are tried from the outermost modules inwards, each time the
    deepest first, so that a residual block or a dense one, whose inside no cut can part, costs a few attempts only.
    The network is left as it was.

    Args:
        network: at the beginning of a task while ``learning``, else at any time after.
        images: `PROBE` of the samples, as the network sees them (n, C, H, W); fewer than 2 show nothing.
        learning: the cut is for training; else for evaluation.
    """
    moved = network.moving_modules() if learning else network.moved
    if len(images) < 2 or not _anything_still(network.backbone, moved):
        return None
    task = network.active if network.learning is None else network.learning
    best: tuple[int, Cut | None] = (-1, None)
    with preserved(network, learning), torch.set_grad_enabled(learning):
        trace = _trace(network, images, task, moved, learning)
        trial = Trial(network, images, task, learning)
        for level in _levels(trace):
            for place in [place for place in level if place > best[0]][:CANDIDATES]:
                cut = trace.cut(network, place, images)
                if trial.passes(cut):
                    best = (place, cut)
                    break
    return best[1]


def _anything_still(backbone: nn.Module, moved: frozenset[str]) -> bool:
    owners = (name for name, module in backbone.named_modules() if _owns(module))
    return any(not _moves(name, moved) for name in owners)


def _owns(module: nn.Module) -> bool:
    return any(item is not None for item in (*module._parameters.values(), *module._buffers.values()))


def _moves(name: str, moved: frozenset[str]) -> bool:
    return name in moved or any(other.startswith(f"{name}.") for other in moved)


# ------------------------------------------------------------------------------------------------ candidates


@dataclass
class Call:
    """One module's answer in a forward pass.

    Attributes:
        name: of the module in the backbone.
        around: the modules that had begun and not answered by then.
        work: multiplications with weights up to here, as far as modules tell.
        answer: what it gave.
    """

    name: str
    around: tuple[str, ...]
    work: int
    answer: Any


@dataclass
class Trace:
    """A forward pass of n samples, module by module, up to the first one that moves.

    What a module around others owns itself may be used before a cut or after it. While learning, features without a
    graph say that nothing open has a part in them; else a module that moves ends the prefix as soon as it begins.

    Attributes:
        learning: whether the cut is for training.
        calls: answers in their order.
        begun: how often each module began, in the whole pass.
        work: multiplications with weights in the whole pass.
        moving: whether something that moves has been met.
        stack: the modules that have begun and not answered.
    """

    n: int
    learning: bool
    calls: list[Call] = field(default_factory=list)
    begun: dict[str, int] = field(default_factory=dict)
    work: int = 0
    moving: bool = False
    stack: list[str] = field(default_factory=list)

    def usable(self, place: int) -> bool:
        """Whether the answer at a place is one batch of numbers without a graph, and worth keeping."""
        call = self.calls[place]
        if not call.name or self.begun[call.name] > 1 or call.work < LEAST_SHARE * self.work:
            return False
        answer = call.answer
        if not isinstance(answer, Tensor) or answer.dim() < 2 or len(answer) != self.n:
            return False
        return answer.is_floating_point() and not answer.requires_grad

    def cut(self, network: Network, place: int, images: Tensor) -> Cut:
        """The cut right after an answer."""
        past = self.calls[: place + 1]
        times: dict[str, int] = {}
        for call in past:
            times[call.name] = times.get(call.name, 0) + 1
        done = {name for name, count in times.items() if count == self.begun[name]}
        before: dict[str, list[Any]] = {}
        for call in past:
            if done.isdisjoint(call.around):
                before.setdefault(call.name, []).append(call.answer)
        return Cut(network, past[-1].name, before, past[-1].around, images, learning=self.learning)


def _levels(trace: Trace) -> list[list[int]]:
    """Places of candidates, the deepest first, by how many modules they lie inside of."""
    levels: dict[int, list[int]] = {}
    for place in reversed(range(len(trace.calls))):
        if trace.usable(place):
            levels.setdefault(len(trace.calls[place].around), []).append(place)
    return [levels[depth] for depth in sorted(levels)]


def _trace(network: Network, images: Tensor, task: int, moved: frozenset[str], learning: bool) -> Trace:
    """One forward pass, watched."""
    trace = Trace(len(images), learning)

    def begins(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            trace.begun[name] = trace.begun.get(name, 0) + 1
            trace.moving = trace.moving or (name in moved and not learning)
            trace.stack.append(name)

        return hook

    def answers(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            trace.stack.pop()
            trace.work += _work(module, output) if inputs else 0  # a delta takes none: it forms a weight
            trace.moving = trace.moving or _moves(name, moved)
            if not trace.moving:
                trace.calls.append(Call(name, tuple(trace.stack), trace.work, output))

        return hook

    handles = []
    for name, module in network.backbone.named_modules():
        handles += [module.register_forward_pre_hook(begins(name)), module.register_forward_hook(answers(name))]
    try:
        network(images, task)
    finally:
        for handle in handles:
            handle.remove()
    return trace


def _work(module: nn.Module, output: Any) -> int:
    """Multiplications with the weights that a module owns itself."""
    if not isinstance(output, Tensor) or output.dim() < 2 or not output.numel():
        return 0
    weights = sum(item.numel() for item in module._parameters.values() if item is not None and item.dim() > 1)
    return weights * (output.numel() // output.shape[1 if isinstance(module, _ConvNd) else -1])
