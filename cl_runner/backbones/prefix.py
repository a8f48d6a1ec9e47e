"""The part of a network before a cut: computed alone, and left out where its output comes in the place of images."""

from __future__ import annotations

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
    image of zeros: the module at the cut answers with the stored output, and every other module of the prefix with
    zeros of the shape that its answer had, which take no memory. Whether this computes what the whole network would is
    for `find_cut` (`training/prefix.py`) to try out: a path around the cut would show.

    Args:
        network: whose backbone is cut.
        name: of the module in the backbone.
        before: the answers of the modules of the prefix to ``images``, by name; none of them inside another.
        around: the modules that have begun and not answered at the cut; of theirs, what they own themselves counts.
        images: a batch (n, C, H, W).
    """

    def __init__(
        self, network: TaskNetwork, name: str, before: Mapping[str, Any], around: Sequence[str], images: Tensor
    ) -> None:
        self.network, self.name = network, name
        self.key = (name, tuple(before))
        backbone = network.backbone
        self._module = backbone.get_submodule(name)
        self._before = {backbone.get_submodule(item): answer for item, answer in before.items()}
        self._around = [backbone.get_submodule(item) for item in around]
        self._images = _Zeros(images, len(images))
        self._prepared: dict[int, tuple[Tensor, list[Answers]]] = {}

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
        if len(features) not in self._prepared:
            zeros = [_answering(self._zeros(answer)(len(features))) for answer in self._before.values()]
            self._prepared[len(features)] = self._images(len(features)), zeros
        images, answers = self._prepared[len(features)]
        found = [vars(module) for module in self._before]
        own = [attributes.get("forward") for attributes in found]
        for attributes, answer in zip(found, answers, strict=True):
            attributes["forward"] = answer
        vars(self._module)["forward"] = _answering(features)
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
        found: list[Tensor] = []
        for module in self._before:
            found += [*module.parameters(), *module.buffers()]
        for module in self._around:  # one that is open is used after the cut alone, else the cut would not stand
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            found += [item for item in own if not item.requires_grad]
        return found

    def is_still(self) -> bool:
        """Whether nothing in the prefix is open."""
        return not any(item.requires_grad for module in self._before for item in module.parameters())

    def signature(self) -> tuple[Any, ...]:
        """Changes with every change of the prefix that is seen by versions, or told to the network."""
        return (self.network.changes, self.key, *((id(item), item._version) for item in self.tensors()))

    def _zeros(self, answer: Any) -> Callable[[int], Any]:
        if isinstance(answer, Tensor):
            return _Zeros(answer, self._images.n)
        if isinstance(answer, (list, tuple)):
            parts = [self._zeros(item) for item in answer]
            return lambda n: type(answer)([part(n) for part in parts])
        return lambda n: answer


class _Zeros:
    """Makes zeros like an answer to n samples, for another number of them; one number in memory, seen many times."""

    def __init__(self, like: Tensor, n: int) -> None:
        self.n, self.rest = n, tuple(like.shape[1:])
        self.rows, self.left = divmod(like.shape[0], n) if like.dim() else (0, 0)
        self.shape = tuple(like.shape)
        self.zero = torch.zeros((), dtype=like.dtype, device=like.device)

    def __call__(self, n: int) -> Tensor:
        several = self.rows and not self.left  # rows are samples, or windows of samples
        return self.zero.expand((self.rows * n, *self.rest) if several else self.shape)


def _answering(answer: Any) -> Answers:
    return lambda *args, **kwargs: answer


def _stop(module: nn.Module, inputs: Any, output: Tensor) -> None:
    raise Reached(output)
