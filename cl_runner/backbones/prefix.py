"""The part of a network before a cut: computed alone, and left out where its output comes in the place of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.backbones.routing import TaskNetwork

Answers = Callable[..., Any]


class Features(Tensor):
    """What a cut's prefix gave for a batch, in the place of its images. What is computed from it is a plain tensor.

    The mark is the batch's own, not the network's: images that come from elsewhere go through the whole network.

    Attributes:
        cut: where they come from.
    """

    cut: Cut
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as nn.Parameter has it

    @staticmethod
    def of(values: Tensor, cut: Cut) -> Features:
        """Marks a tensor; its memory is shared."""
        features = values.as_subclass(Features)
        features.cut = cut
        return features

    def plain(self) -> Tensor:
        """The same values without the mark."""
        return self.as_subclass(Tensor)

    def __getitem__(self, rows: Any) -> Tensor:
        """Some samples, marked as they all are."""
        return Features.of(self.plain()[rows], self.cut)


class Reached(Exception):  # noqa: N818, a way out of a forward pass and no error
    """A forward pass has come to the cut."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output


class Cut:
    """A place in a backbone's forward pass, right after one module has answered.

    The prefix is everything that is executed up to there. To go on from its output, the backbone is called with an
    image of no numbers: the module at the cut answers with the stored output, and every other module of the prefix with
    an answer of its usual shape in which every number is NaN, and which takes no memory. Whether this computes what the
    whole network would is for `find_cut` (`training/prefix.py`) to try out: any path around the cut ends in NaN.

    Args:
        network: whose backbone is cut.
        name: of the module in the backbone.
        before: the answers of the modules of the prefix to ``images``, call by call, by name; none inside another. A
            module that is called again after the cut computes then.
        around: the modules that have begun and not answered at the cut; of theirs, what they own themselves counts.
        images: a batch (n, C, H, W).
        learning: a cut for training, where what is open has no part in the features, as those would have a graph.
    """

    def __init__(
        self,
        network: TaskNetwork,
        name: str,
        before: Mapping[str, list[Any]],
        around: Sequence[str],
        images: Tensor,
        *,
        learning: bool,
    ) -> None:
        self.network, self.name = network, name
        self.key = (name, tuple(before))
        backbone = network.backbone
        self._module = backbone.get_submodule(name)
        self._before = [backbone.get_submodule(item) for item in before]
        outer = [backbone.get_submodule(item) for item in around]
        beside = [
            item for module in outer for item in (*module.parameters(recurse=False), *module.buffers(recurse=False))
        ]
        self._beside = [item for item in beside if not (learning and item.requires_grad)]
        self._like = images, list(before.values())
        self._blanks: dict[int, tuple[Tensor, list[list[Any]]]] = {}

    def run(self, x: Tensor) -> Tensor:
        """The prefix's output for images, in the mode in which the network is.

        Raises:
            LookupError: the forward pass did not come to the cut.
        """
        handle = self._module.register_forward_hook(_stop)
        try:
            with self.network.autocast(x.device):
                self.network.backbone(x)
        except Reached as reached:
            return reached.output
        finally:
            handle.remove()
        raise LookupError(f"the forward pass does not come to {self.name}")

    @contextmanager
    def resumed(self, features: Tensor) -> Iterator[Tensor]:
        """Within, the backbone answers to the images given here as if the prefix had given these features."""
        n = len(features)
        if n not in self._blanks:
            images, answers = self._like
            self._blanks[n] = blank(images, len(images), n), [blank(calls, len(images), n) for calls in answers]
        images, answers = self._blanks[n]
        found = [vars(module) for module in self._before]
        own = [attributes.get("forward") for attributes in found]
        for module, attributes, calls in zip(self._before, found, answers, strict=True):
            attributes["forward"] = _first([features] if module is self._module else calls, module.forward)
        try:
            yield images
        finally:
            for attributes, forward in zip(found, own, strict=True):
                del attributes["forward"]
                if forward is not None:
                    attributes["forward"] = forward

    def mark(self, values: Tensor) -> Tensor:
        """The prefix's output as the network takes it."""
        return Features.of(values, self)

    def tensors(self) -> list[Tensor]:
        """Every tensor that the prefix's output may depend on."""
        inside = [item for module in self._before for item in (*module.parameters(), *module.buffers())]
        return [*inside, *self._beside]

    def is_still(self) -> bool:
        """Whether nothing in the prefix is open."""
        return not any(item.requires_grad for module in self._before for item in module.parameters())

    def signature(self) -> tuple[Any, ...]:
        """Changes with every change of the prefix that is seen by versions, or told to the network."""
        return (self.network.changes, self.key, *((id(item), item._version) for item in self.tensors()))


def blank(like: Any, n: int, wanted: int) -> Any:
    """NaN in the shape of an answer to n samples, for another number of them; one number in memory, seen often.

    Where there is no NaN, as among whole numbers, it is zero. A first dimension that n divides holds samples, or
    windows of samples.
    """
    if isinstance(like, list | tuple):
        return type(like)([blank(item, n, wanted) for item in like])
    if not isinstance(like, Tensor):
        return like
    shape = list(like.shape)
    if shape and shape[0] % n == 0:
        shape[0] = shape[0] // n * wanted
    value = math.nan if like.is_floating_point() else 0
    return torch.full((), value, dtype=like.dtype, device=like.device).expand(shape)


def _first(answers: list[Any], then: Answers) -> Answers:
    """Gives these answers, one after another, and then what is computed."""
    left = iter(answers)
    nothing = object()

    def forward(*args: Any, **kwargs: Any) -> Any:
        answer = next(left, nothing)
        return then(*args, **kwargs) if answer is nothing else answer

    return forward


def _stop(module: nn.Module, inputs: Any, output: Tensor) -> None:
    raise Reached(output)
