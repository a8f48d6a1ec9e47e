"""What every backbone promises, and the check that a network keeps the promise at the asked image size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from cl_runner.errors import RequestError, told

COMMON_SIZES = (16, 28, 32, 64, 96, 128, 224, 256, 299, 331)
NOT_A_CLASSIFIER = "it does not classify images"


class Backbone(ABC):
    """A recipe for a network: built by Hydra ``_target_`` with flat keyword-only arguments.

    A new backbone is a subclass with its own ``build``; nothing is registered anywhere else.

    Attributes:
        name: what ``backbone.name`` says, used in messages and file names.
        pretrained: False (initialised from the seed), True (the publisher's weights) or the path of a weights file.
    """

    name: str
    pretrained: bool | str

    @abstractmethod
    def build(self, *, in_channels: int, image_size: int, n_classes: int, load_weights: bool = True) -> nn.Module:
        """Builds the network that maps (B, C, H, W) float images to (B, n_classes) logits.

        Its initial weights come from torch's global generator alone, so the same seed gives the same network.

        Args:
            in_channels: C, 1 for grey and 3 for colour.
            image_size: H = W in pixels.
            n_classes: width of the classifier, which is the layer that ``classifier_name`` finds.
            load_weights: False never reads or downloads a weights file (``mode=plan``).

        Raises:
            RequestError: the name is unknown, the network cannot run at this size, or its weights cannot be had.
        """


def classifier_name(network: nn.Module, n_classes: int) -> str:
    """Returns the dotted name of the layer that gives the class scores.

    It is the last linear layer or convolution, in order of registration, with ``n_classes`` outputs: "fc" in
    torchvision's resnet18, "classifier.6" in its vgg19_bn, "output" in pytorchcv's resnet20_cifar10.

    Raises:
        RequestError: no layer has ``n_classes`` outputs.
    """
    for name, module in reversed(list(network.named_modules())):
        width = module.out_features if isinstance(module, nn.Linear) else getattr(module, "out_channels", None)
        if isinstance(module, nn.Linear | nn.Conv2d) and width == n_classes:
            return name
    raise RequestError(
        f"backbone: {type(network).__name__} has no linear layer or convolution with {n_classes} outputs",
        "a backbone must end in a classifier of one layer, nn.Linear or nn.Conv2d, with a class a output",
    )


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Puts the network in evaluation mode and gives every module its own mode back."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def probe(network: nn.Module, *, in_channels: int, image_size: int, n_classes: int) -> str | None:
    """Runs the network's shapes, without data, arithmetic or random draws, on a batch of two images.

    Returns:
        None when the logits are (2, n_classes) and come from the classifier, else the reason why not; it begins with
        ``NOT_A_CLASSIFIER`` where no other image size would help.
    """
    seen: list[torch.Size] = []
    try:
        classifier = network.get_submodule(classifier_name(network, n_classes))
    except RequestError as error:
        return f"{NOT_A_CLASSIFIER} ({first_line(error)})"
    hook = classifier.register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    try:
        logits = _forward_shapes(network, (2, in_channels, image_size, image_size))
    except _ShapesDependOnValues:  # a network on the meta device; building it with values will tell
        return None
    except Exception as error:  # a network that does not fit fails in whatever way its author left open
        return first_line(error)
    finally:
        hook.remove()
    if not isinstance(logits, torch.Tensor):
        return f"{NOT_A_CLASSIFIER} (it returns a {type(logits).__name__}, not one tensor of class scores)"
    if tuple(logits.shape) != (2, n_classes):
        return f"{NOT_A_CLASSIFIER} (two images give {tuple(logits.shape)}, not (2, {n_classes}))"
    if not seen or seen[-1][:2] != logits.shape:
        return f"{NOT_A_CLASSIFIER} (its class scores do not come from its last layer)"
    return None


def _forward_shapes(network: nn.Module, shape: tuple[int, ...]) -> Any:
    """Runs ``network`` in evaluation mode on the meta device, leaving its own tensors where they are."""
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    metas = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    with torch.no_grad(), _evaluating(network):
        try:
            with torch.device("meta"):
                return functional_call(network, metas, (torch.empty(shape),))
        except NotImplementedError:  # an operation whose shape depends on values (iSQRT-COV)
            if any(tensor.is_meta for tensor in tensors.values()):
                raise _ShapesDependOnValues from None
            return network(torch.zeros(shape))


class _ShapesDependOnValues(Exception):
    """The network's shapes cannot be told without its values."""


class _NumbersOnCPU(TorchFunctionMode):
    """Keeps number sequences on the CPU inside ``with torch.device("meta")``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.arange, torch.linspace, torch.tensor):
            kwargs.setdefault("device", "cpu")
        return func(*args, **kwargs)


def _construct_anywhere(construct: Callable[[int], nn.Module], size: int) -> nn.Module:
    """Calls ``construct(size)``, on the meta device also for networks that compute their widths with tensors."""
    try:
        return construct(size)
    except NotImplementedError:  # such a network (RegNet) reads values, which the meta device does not have
        if torch.get_default_device().type != "meta":
            raise
        with _NumbersOnCPU():
            return construct(size).to("meta")


def first_line(error: BaseException) -> str:
    """The first line of an error's text, in words for a person, or its kind where it has none."""
    lines = str(error).strip().splitlines()
    return told(lines[0] if len(lines) > 1 else error)


def construct_checked(
    construct: Callable[[int], nn.Module], name: str, *, in_channels: int, image_size: int, n_classes: int
) -> nn.Module:
    """Calls ``construct(image_size)`` and refuses a network that cannot run at that size.

    Raises:
        RequestError: names ``backbone.name`` and ``benchmark.image_size``, the reason, and a size that would work.
    """

    def attempt(size: int) -> tuple[nn.Module | None, str | None]:
        try:
            network = _construct_anywhere(construct, size)
        except RequestError:
            raise
        except (AttributeError, TypeError) as error:  # no number of classes or channels to set
            return None, f"{NOT_A_CLASSIFIER} ({first_line(error)})"
        except Exception as error:  # constructors assert their own limits in their own ways
            return None, first_line(error)
        return network, probe(network, in_channels=in_channels, image_size=size, n_classes=n_classes)

    network, reason = attempt(image_size)
    if network is not None and reason is None:
        return network
    message = f"backbone.name={name} cannot classify {n_classes} classes at benchmark.image_size={image_size}: {reason}"
    works = None
    if not str(reason).startswith(NOT_A_CLASSIFIER):
        with torch.device("meta"):
            works = next((size for size in COMMON_SIZES if size > image_size and attempt(size)[1] is None), None)
    if works is None:
        raise RequestError(message, "choose another network by backbone.name, one that classifies images of this size")
    raise RequestError(message, f"it runs at benchmark.image_size={works}; backbone=small_cnn takes small images")
