"""Distillation of a vision-language network on reference images and texts (ZSCL).

Shapes: B images of a batch, N reference images, M reference texts, d features.
"""

from __future__ import annotations

from typing import Any

import torch
from avalanche.training.plugins import SupervisedPlugin
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from cl_runner.backbones.network import Network
from cl_runner.training.draws import Draws
from cl_runner.training.lane import Lane, LaneLoader, ShuffledBatches
from cl_runner.training.reference import ReferenceSet

PROMPTS = 256  # encoded together


def softened(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """T^2 times the mean over rows of the cross-entropy of softmax(student / T) to softmax(teacher / T)."""
    return cross_entropy(student / temperature, (teacher / temperature).softmax(1)) * temperature**2


def both_directions(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Image to text over the rows of similarities (B, M), plus text to image over their columns."""
    return softened(teacher, student, temperature) + softened(teacher.T, student.T, temperature)


class ReferenceDistillation(SupervisedPlugin):
    """Adds weight * (L_image + L_text) between the network and a frozen teacher to the loss of every step.

    With u the network's and u' the teacher's normalised features of B reference images, and v' the teacher's features
    of all M reference texts: s v'^T u and s v'^T u', softened with a temperature, are compared text by text and image
    by image. As in the released code, the texts are the teacher's on both sides, so that the distillation moves the
    vision tower.

    The teacher is not kept: reference images are not augmented, so its features of the whole set, computed before the
    task, are what it would give in every step.

    Args:
        network: what trains.
        reference: images and texts.
        lane: serves the reference images.
        batch_size: reference images in a step.
        weight: lambda.
        temperature: T.
        previous: the teacher is the network at the start of each task; else that before the first one.
        seed: of the order of the reference images.
    """

    def __init__(
        self,
        network: Network,
        reference: ReferenceSet,
        lane: Lane,
        *,
        batch_size: int,
        weight: float,
        temperature: float,
        previous: bool,
        seed: int,
    ) -> None:
        super().__init__()
        self.network, self.reference, self.lane = network, reference, lane
        self.batch_size, self.weight, self.temperature, self.previous = batch_size, weight, temperature, previous
        self.generator = torch.Generator().manual_seed(seed)  # of its own: the stream's order is that of other runs
        self.teacher: tuple[Tensor, Tensor] | None = None
        self.batches: Draws | None = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Asks the teacher, and lays out the reference images of the task."""
        if self.previous or self.teacher is None:
            self.teacher = self._taught(strategy.eval_mb_size)
        ids = torch.arange(len(self.reference.store))
        order = ShuffledBatches(ids, self.batch_size, self.generator)
        steps = strategy.epoch_batches * strategy.train_epochs
        loader = LaneLoader(self.lane, order, augmented=False, iterations=steps)
        self.batches = Draws(lambda: loader, self.generator)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Adds the loss of one batch of reference images."""
        assert self.batches is not None
        images, rows, _ = next(self.batches)
        strategy.loss += self.weight * self.loss(images, rows)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Lets the images that were fetched ahead go."""
        self.batches = None

    def memory(self) -> dict[str, Any]:
        """The teacher, where it is that before the first task, and the order of the images to come."""
        return {"teacher": None if self.previous else self.teacher, "draws": self.generator.get_state()}

    def remember(self, memory: dict[str, Any]) -> None:
        """Takes both back."""
        self.teacher = None if memory["teacher"] is None else tuple(memory["teacher"])  # type: ignore[assignment]
        self.generator.set_state(memory["draws"])

    def course(self) -> dict[str, Any]:
        """How many batches of reference images there were."""
        return {"taken": 0 if self.batches is None else self.batches.taken}

    def take_up(self, course: dict[str, Any]) -> None:
        """Goes on with the batches after them."""
        assert self.batches is not None
        self.batches.skip_to(course["taken"])

    def loss(self, images: Tensor, rows: Tensor) -> Tensor:
        """The distillation loss on reference images, of which ``rows`` are the places in the set."""
        assert self.teacher is not None
        image_features, text_features = self.teacher
        student = normalize(self.network.features(images), dim=-1)
        scale = self.network.head.scale().detach()  # type: ignore[operator, union-attr]
        texts = scale * text_features.T
        return both_directions(image_features[rows] @ texts, student @ texts, self.temperature)

    @torch.no_grad()
    def _taught(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """The teacher's normalised features of all images (N, d) and all texts (M, d)."""
        network, texts = self.network, self.reference.texts
        training = network.training
        network.eval()
        ids = torch.arange(len(self.reference.store))
        images = [normalize(network.features(x), dim=-1) for x, *_ in self.lane.evaluation(ids, batch_size)]
        parts = [texts[start : start + PROMPTS] for start in range(0, len(texts), PROMPTS)]
        prompts = [network.backbone.encode_prompts(part) for part in parts]  # type: ignore[operator]
        network.train(training)
        return torch.cat(images), torch.cat(prompts)
