"""Strategies of vision-language networks (CLIP): what they know without training, and how to keep it."""

from __future__ import annotations

from typing import Any

import torch

from cl_runner.adapters.adapter import Adapter
from cl_runner.adapters.none import NoAdapter
from cl_runner.errors import RequestError
from cl_runner.strategies.ridge import RecursiveRidge, RidgeFusion
from cl_runner.strategies.strategy import Strategy, Workshop


class _Frozen(Strategy):
    """A prompted network of which no weight trains."""

    template = "LaneFrozen"
    validates = False
    descends = False
    needs_classes = True
    name = ""

    def check(self, adapter: Adapter, workshop: Workshop) -> None:
        """Needs prompts, and no adapter; then closes the network, so that a plan counts what a run does."""
        _check_prompts(workshop, self.name)
        _check_no_adapter(adapter, self.name, "trains no weight")
        self.prepare(workshop)

    def prepare(self, workshop: Workshop) -> None:
        """Closes every weight, once and for all tasks."""
        workshop.network.requires_grad_(False)

    def arguments(self, workshop: Workshop) -> dict[str, Any]:
        """No epoch is trained."""
        return super().arguments(workshop) | {"train_epochs": 0}


class ZeroShot(_Frozen):
    """The pretrained network as it is: argmax over classes of cos(image, prompt) (Radford et al., 2021).

    Nothing trains, so that every row of the accuracy matrix is that before training.
    """

    name = "zero_shot"
    reads_training = False


class RAIL(_Frozen):
    """Regression-based analytic incremental learning, primal form (Xu et al., NeurIPS 2024, arXiv 2406.18868).

    phi = ReLU(x / ||x|| P) expands the frozen image features with a fixed random layer; W = (A + lambda I)^-1 Q is the
    ridge regression of one-hot labels on everything seen, from sums that each task's training data enters once
    (`ridge.py`). Where the best zero-shot class has been learned, an image is scored by
    (1 - beta) softmax(zero-shot) + beta phi W, else by zero-shot alone.

    W and P are stored and needed at inference; both are counted from the first task on, for all classes of the stream.
    They are no weights of the backbone, so that a file of its weights would not give RAIL's answers.
    The sums are hidden x hidden numbers that only learning needs: 0.9 GB at 15,000 in float32, three times that for
    the moment of solving (the sums, a copy with lambda added, and its factor), and twice all of it in float64.

    Args:
        hidden: numbers in the expanded features (released: 15,000).
        ridge: lambda (released: 0.1).
        beta: weight of the regression in the fused score (released with the paper: 0.8; its first version had 0.9).
        dtype: of the sums: float32, or float64 where very many images make them ill-conditioned.
    """

    name = "rail"
    exports = False

    def __init__(self, *, hidden: int = 15_000, ridge: float = 0.1, beta: float = 0.8, dtype: str = "float32") -> None:
        self.hidden, self.ridge, self.beta, self.dtype = hidden, ridge, beta, dtype

    def prepare(self, workshop: Workshop) -> None:
        """Gives the network the random layer and room for the weights."""
        super().prepare(workshop)
        network = workshop.classifier
        n_features, n_classes = int(network.backbone.width), network.head.n_classes  # type: ignore[arg-type]
        # the seed of the run, which `prepare_torch` has given torch
        fusion = RidgeFusion(n_features, n_classes, hidden=self.hidden, beta=self.beta, seed=torch.initial_seed())
        fusion.to(network.anchor.device)
        fusion.attach(network)
        network.extra["rail"] = fusion

    def plugins(self, workshop: Workshop) -> list[Any]:
        """Learns each task in one pass over its features."""
        from cl_runner.strategies.avalanche_classes import RidgePlugin

        fusion = workshop.network.extra["rail"]
        assert isinstance(fusion, RidgeFusion)
        hidden, n_classes = fusion.weights.shape
        device = fusion.weights.device
        regression = RecursiveRidge(hidden, n_classes, ridge=self.ridge, dtype=self.dtype, device=device)
        return [RidgePlugin(workshop.classifier, regression, fusion)]


class WiseFT(Strategy):
    """WiSE-FT: after each task theta = (1 - alpha) theta_ref + alpha theta (Wortsman et al., CVPR 2022).

    theta are the weights that train, after the best epoch's have been put back, and BatchNorm's running statistics.
    The reference of the MTIL baseline is the model that the task started from, with alpha = 0.8 (ZSCL's repository,
    mtil/scripts/WiSE_finetune.sh: `--wise_ft_model n --wise_ft_alpha 0.8`); alpha = 1 is fine-tuning.

    Args:
        alpha: weight of the trained model.
        reference: previous (the model at the start of the task) or initial (before the first task).
    """

    def __init__(self, *, alpha: float = 0.8, reference: str = "previous") -> None:
        self.alpha, self.reference = alpha, reference

    def check(self, adapter: Adapter, workshop: Workshop) -> None:
        """Two models can only be interpolated weight by weight."""
        _check_no_adapter(adapter, "wise_ft", "interpolates between the network's own weights")
        if workshop.network.separate_heads:
            raise RequestError(
                "strategy=wise_ft interpolates one model, and backbone.head=per_task keeps a head for every task",
                "use backbone.head=shared",
            )

    def plugins(self, workshop: Workshop) -> list[Any]:
        """The interpolation at the end of each task."""
        from cl_runner.strategies.weight_averaging import Interpolation

        return [Interpolation(self.alpha, previous=self.reference == "previous")]


class ZSCL(Strategy):
    """ZSCL (Zheng et al., ICCV 2023): distillation on reference data, and an average of weights along the training.

    loss = L_task + lambda (L_image + L_text) + c sum_i (theta_i - theta_i at the start of the task)^2, where the two
    are T^2 times the cross-entropy between the softened similarities of reference images to reference texts, and of
    texts to images, of a frozen teacher and of the network; both use the teacher's text features, as released. Every
    `average_every` iterations the model is counted into the average that the task ends with, whatever
    trainer.restore_best found. With an adapter it is the factors that are averaged.

    Defaults are those of mtil/scripts/ZSCL.sh in the authors' repository; there, label smoothing is 0.2.

    Args:
        reference_images: a folder, searched recursively (published: 100,000 images of ImageNet).
        reference_texts: a file with a text a line (published: the captions of Conceptual Captions' validation
            part); None: "a photo of a {}." for every folder of images.
        reference_size: images at most, drawn at random; uint8 in memory, 0.15 MB each at 224 pixels.
        batch_size_ref: reference images in a step.
        distillation: lambda.
        temperature: T.
        teacher: initial (the network before the first task) or previous (at the start of the task).
        average_every: iterations between two models that are averaged; None: none are.
        consistency: c.
    """

    needs_classes = True

    def __init__(
        self,
        *,
        reference_images: str | None = None,
        reference_texts: str | None = None,
        reference_size: int = 100_000,
        batch_size_ref: int = 64,
        distillation: float = 1.0,
        temperature: float = 2.0,
        teacher: str = "initial",
        average_every: int | None = 100,
        consistency: float = 1.0,
    ) -> None:
        self.reference_images, self.reference_texts, self.reference_size = (
            reference_images,
            reference_texts,
            reference_size,
        )
        self.batch_size_ref, self.distillation, self.temperature = batch_size_ref, distillation, temperature
        self.teacher, self.average_every, self.consistency = teacher, average_every, consistency

    def check(self, adapter: Adapter, workshop: Workshop) -> None:
        """Needs prompts, one set of weights that live through a task, and reference images."""
        _check_prompts(workshop, "zscl")
        if adapter.per_task:
            raise RequestError(
                f"strategy=zscl keeps one model near its teacher, and adapter={adapter.label} has a set for every task",
                "use adapter=none, or a shared set: adapter=lora adapter.sharing=shared",
            )
        frozen = "vision" in workshop.network.backbone.frozen  # type: ignore[operator]
        if frozen or not (isinstance(adapter, NoAdapter) or any("visual" in name for name in adapter.adapted_layers())):
            raise RequestError(
                "strategy=zscl distils the vision tower, in which nothing trains here",
                "leave vision out of backbone.frozen and in placement.towers, or use another strategy",
            )
        if self.average_every is not None and (adapter.resizes or adapter.keeps_last):
            raise RequestError(
                f"strategy.average_every={self.average_every} averages weights along a task, and "
                f"adapter={adapter.label} drops components in the course of it",
                "set strategy.average_every=null, or use adapter=none or lora",
            )
        if not self.reference_images:
            raise RequestError(
                "strategy.reference_images is empty, and strategy=zscl distils on images that no task owns",
                "name a folder of varied images, such as ImageNet's train folder",
            )
        if self.distillation and torch.get_default_device().type != "meta":  # a plan reads nothing
            from cl_runner.training.reference import check_reference

            check_reference(self.reference_images, self.reference_texts)

    def plugins(self, workshop: Workshop) -> list[Any]:
        """Distillation, consistency and averaging, each where it is asked for."""
        from cl_runner.strategies.weight_averaging import Consistency, RunningAverage

        found: list[Any] = []
        if self.distillation:
            found.append(self._distillation(workshop))
        if self.consistency:
            found.append(Consistency(self.consistency))
        if self.average_every is not None:
            found.append(RunningAverage(self.average_every))
        return found

    def _distillation(self, workshop: Workshop) -> Any:
        """Reads the reference data; the teacher learns of it when the first task begins."""
        from cl_runner.strategies.distillation import ReferenceDistillation
        from cl_runner.training.lane import Lane
        from cl_runner.training.reference import read_reference

        network, lane = workshop.classifier, workshop.lane
        assert lane is not None and self.reference_images is not None
        seed = torch.initial_seed()
        view: Any = network.backbone.view
        reference = read_reference(
            self.reference_images, self.reference_texts, size=self.reference_size, view=view, seed=seed
        )
        reference.store.to(lane.store.device)
        return ReferenceDistillation(
            network,
            reference,
            Lane(reference.store, lane.augmentation, workshop.channels_last),
            batch_size=self.batch_size_ref,
            weight=self.distillation,
            temperature=self.temperature,
            previous=self.teacher == "previous",
            seed=seed,
        )


def _check_prompts(workshop: Workshop, name: str) -> None:
    """Refuses a network that does not know classes by their prompts."""
    if not workshop.network.prompted:
        raise RequestError(
            f"strategy={name} compares images with the prompts of classes, and this backbone has a classifier",
            "use backbone=clip_vit_b16 or open_clip, or another strategy",
        )


def _check_no_adapter(adapter: Adapter, name: str, reason: str) -> None:
    """Refuses an adapter."""
    if not isinstance(adapter, NoAdapter):
        raise RequestError(f"strategy={name} {reason}, and has no use for adapter={adapter.label}", "set adapter=none")
