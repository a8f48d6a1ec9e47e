"""Images that are classified: by a classifier at the end of a backbone, or by the prompts of CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from cl_runner.adapters.adapter import Adapter
from cl_runner.adapters.placement import Placement
from cl_runner.backbones.backbone import classifier_name
from cl_runner.backbones.clip import CLIPClassifier
from cl_runner.backbones.network import Network
from cl_runner.backbones.open_clip import OpenCLIP
from cl_runner.backbones.routing import TaskNetwork
from cl_runner.backbones.text_head import TextHead
from cl_runner.benchmarks.stream import TaskStream
from cl_runner.config.checks import NETWORK_KEYS, build
from cl_runner.errors import RequestError
from cl_runner.modalities.modality import Modality, data_root
from cl_runner.training.account import forward_flops
from cl_runner.training.losses import loss_for

if TYPE_CHECKING:
    from cl_runner.training.lane import Lane
    from cl_runner.training.meter import AccuracyMeter


def class_totals(logits: Tensor, labels: Tensor) -> Tensor:
    """(sum of the cross-entropies, right classes, samples) of logits (B, C) and labels (B,)."""
    loss = nn.functional.cross_entropy(logits, labels, reduction="sum")
    right = (logits.argmax(1) == labels).sum()
    return torch.stack([loss.double(), right.double(), torch.full_like(loss, len(labels)).double()])


class Images(Modality):
    """Samples are images (B, C, H, W), targets classes (B,)."""

    unit = "images"
    reading = "decoding images"
    totals = staticmethod(class_totals)
    amount = staticmethod(len)

    def open(self) -> tuple[Any, TaskStream]:
        """The benchmark, told how CLIP wants images, and its outline."""
        return open_benchmark(self.config)

    def network(self, outline: TaskStream, *, load_weights: bool = True, task_aware: bool = False) -> Network:
        """The backbone with its head and its adapter attached."""
        kind = Network
        if task_aware:
            from cl_runner.training.task_aware import TaskAwareNetwork

            kind = TaskAwareNetwork
        return build_network(self.config, outline, load_weights=load_weights, network_class=kind)

    def meet(self, stream: TaskStream, network: TaskNetwork) -> None:
        """Gives a prompted network the prompts of every class."""
        assert isinstance(network, Network)
        name_classes(self.config, stream, network)

    def criterion(self, network: TaskNetwork) -> nn.Module:
        """Cross-entropy over the candidates; both directions where classes are prompts."""
        return loss_for(network.prompted, self.config.trainer.label_smoothing)

    def lane(self, stream: TaskStream) -> Lane:
        """Batches of images, augmented in training."""
        from cl_runner.benchmarks.store import ImageStore
        from cl_runner.training.augment import Augmentation
        from cl_runner.training.lane import Lane

        assert isinstance(stream.store, ImageStore)
        generator = torch.Generator().manual_seed(self.config.seed)
        augmentation = Augmentation(stream.augmentation, stream.image_shape[1], generator)
        return Lane(stream.store, augmentation)

    def meter(self, stream: TaskStream, network: TaskNetwork) -> AccuracyMeter:
        """Accuracy among each task's candidates."""
        from cl_runner.training.meter import AccuracyMeter

        assert isinstance(network, Network)
        head = network.head
        return AccuracyMeter(excluded(stream), head.aliases if isinstance(head, TextHead) else None)

    def answer_one(self, stream: TaskStream, network: TaskNetwork) -> None:
        """The features of an image, and the classes where they come of a classifier."""
        assert isinstance(network, Network)
        network.features(torch.zeros(1, *stream.image_shape, device=network.anchor.device))

    def forward_flops(self, network: TaskNetwork, stream: TaskStream) -> int | None:
        """Of one image; routing by task costs no arithmetic."""
        return forward_flops(network.backbone, torch.zeros(1, *stream.image_shape))

    def encoded_prompts(self, stream: TaskStream, network: TaskNetwork, tasks: Sequence[int]) -> int:
        """Those of the candidates, where the text tower trains."""
        if not network.moving[1]:
            return 0
        counts = prompt_counts(self.config, stream)
        candidates = sorted(network.begun) if network.mixes_tasks else tasks
        return sum(counts[label] for task in candidates for label in stream.tasks[task].classes)


def excluded(stream: TaskStream) -> Tensor:
    """(tasks and probes, classes): true where a class is no candidate at evaluation."""
    excluded = torch.ones(len(stream.evaluated), stream.n_classes, dtype=torch.bool)
    for task in stream.evaluated:
        excluded[task.index, stream.candidates(task)] = False
    return excluded


def open_benchmark(config: DictConfig) -> tuple[Any, TaskStream]:
    """The benchmark, which sees images as the backbone wants them, and its outline.

    Raises:
        RequestError: the request cannot be met.
    """
    benchmark, backbone = build(config.benchmark), _backbone(config)[0]
    if isinstance(backbone, OpenCLIP):
        if not hasattr(benchmark, "see_as"):
            raise RequestError(
                f"backbone={backbone.name or backbone.config}: {type(benchmark).__name__} does not prepare images as "
                "CLIP wants them",
                "use benchmark=mtil or xtail; class folders of your own are a domain, {name: mine, root: FOLDER}",
            )
        benchmark.see_as(backbone.view(config.benchmark.get("image_size")))
    return benchmark, benchmark.outline(data_root(config))


def name_classes(config: DictConfig, stream: TaskStream, network: Network) -> None:
    """Gives a prompted network the prompts of every class, once the data has said their names."""
    if not isinstance(network.head, TextHead):
        return
    backbone = _backbone(config)[0]
    assert isinstance(backbone, OpenCLIP)
    prompts = {
        label: backbone.prompts(name, task.templates)
        for task in stream.evaluated
        for label, name in zip(task.classes, task.class_names, strict=True)
    }
    network.head.name_classes([prompts[label] for label in range(stream.n_classes)])


def prompt_counts(config: DictConfig, stream: TaskStream) -> dict[int, int]:
    """How many prompts every class has, which no data has to say."""
    backbone = _backbone(config)[0]
    return {label: len(backbone.prompts("", task.templates)) for task in stream.evaluated for label in task.classes}


def _backbone(config: DictConfig) -> tuple[Any, dict[str, Any]]:
    """The backbone's recipe, and the keys of its group that belong to the network around it."""
    options = OmegaConf.to_container(config.backbone)
    assert isinstance(options, dict)
    wanted = {key: options.pop(key, default) for key, default in NETWORK_KEYS.items()}
    return build(OmegaConf.create(options)), wanted


def build_network(
    config: DictConfig, stream: TaskStream, *, load_weights: bool = True, network_class: type[Network] = Network
) -> Network:
    """The backbone with its head and its adapter attached.

    Raises:
        RequestError: the parts do not fit one another.
    """
    channels, size, _ = stream.image_shape
    backbone, wanted = _backbone(config)
    module = backbone.build(
        in_channels=channels, image_size=size, n_classes=stream.n_classes, load_weights=load_weights
    )
    adapter: Adapter = build(config.adapter)
    if not isinstance(adapter, Adapter):
        raise RequestError(
            f"adapter._target_={config.adapter._target_} is no Adapter", "derive it from cl_runner.adapters.Adapter"
        )
    head = _head_kind(str(wanted["head"]), adapter, stream)
    rule = _task_inference(adapter, stream)
    if wanted["head_classes"] == "task" and head == "shared":
        raise RequestError("backbone.head_classes=task needs a head per task", "set backbone.head=per_task")
    prompted = isinstance(module, CLIPClassifier)
    if prompted and wanted["head"] == "per_task":
        raise RequestError(
            "backbone.head=per_task: CLIP's head is its text tower, one for all tasks", "leave it at auto"
        )
    network = network_class(
        module,
        "head" if prompted else classifier_name(module, stream.n_classes),
        task_classes=[task.classes for task in stream.tasks],
        probe_classes=[task.classes for task in stream.probes],
        task_labels=stream.task_labels,
        head=head,
        own_classes=wanted["head_classes"] == "task",
        pretrained=bool(config.backbone.get("pretrained")),
        precision=config.trainer.precision,
        task_inference=rule,
    )
    network.adapter = adapter
    placement = OmegaConf.to_container(config.placement)
    assert isinstance(placement, dict)
    adapter.attach(network, Placement(**placement))  # type: ignore[arg-type]
    if isinstance(network.head, TextHead):
        network.head.follows_task = network.per_task
    return network


def _head_kind(wanted: str, adapter: Adapter, stream: TaskStream) -> str:
    per_task = adapter.per_task if wanted == "auto" else wanted == "per_task"
    method = type(adapter).__name__
    if adapter.per_task and not per_task:
        raise RequestError(
            f"backbone.head=shared: adapter={method.lower()} keeps a set per task, which a shared head would undo",
            "use backbone.head=per_task or auto",
        )
    if per_task and not adapter.per_task and not stream.task_labels:
        raise RequestError(
            "backbone.head=per_task needs to know the task, and benchmark.task_labels is false",
            "use backbone.head=shared, benchmark.task_labels=true, or an adapter with a set per task, which infers it",
        )
    return "per_task" if per_task else "shared"


def _task_inference(adapter: Adapter, stream: TaskStream) -> str | None:
    """The rule by which the network finds the task of a sample; None where it is given, or where nothing depends on it.

    Raises:
        RequestError: a rule was chosen and there is nothing to infer.
    """
    rule = str(getattr(adapter, "task_inference", "auto"))
    if not adapter.per_task and rule != "auto":
        raise RequestError(
            f"adapter.task_inference={rule}: one set serves all tasks, and no task has to be inferred",
            "drop it, or choose adapter.sharing=per_task",
        )
    if adapter.per_task and stream.task_labels and rule not in ("auto", "oracle"):
        raise RequestError(
            f"adapter.task_inference={rule}: benchmark.task_labels=true gives the task, and nothing is to be inferred",
            "set benchmark.task_labels=false, or drop adapter.task_inference",
        )
    if stream.task_labels or not adapter.per_task:
        return None
    return "max_output" if rule == "auto" else rule
