"""A backbone with its head, routed by task: what strategies train and evaluate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cl_runner.backbones.clip import CLIPClassifier
from cl_runner.backbones.heads import Head, inputs
from cl_runner.backbones.inference import TaskInference
from cl_runner.backbones.prefix import Features
from cl_runner.backbones.routing import EVERY_CLASS, NO_TASK, TaskNetwork, count, set_module
from cl_runner.backbones.text_head import TextHead


class Network(TaskNetwork):
    """Logits over all classes of the stream, with other tasks' classes masked where the task is known.

    Without task labels, a network with a set per task infers the task of every sample (`task_inference`): while a
    task is trained the stream itself says which one; from its end on, the set of every task learned so far is a
    candidate, and the logits are those of the chosen task over its own classes, minus infinity elsewhere.

    A prompted network (CLIP) has no classifier: its head compares images with the prompts of the classes. While a task
    is trained, only that task's classes are candidates, or those of all tasks begun where a strategy mixes tasks.

    Args:
        backbone: maps (B, C, H, W) to (B, n_classes); its classifier is replaced by a `Head`; a `TextHead` stays.
        classifier: dotted name of the backbone's classifier.
        task_classes: the classes of each task.
        probe_classes: the classes of each task that is evaluated and never trained; such tasks count on from the last.
        task_labels: whether the task of a sample is known; where it is, the logits of all other tasks' classes
            are minus infinity, in training and at evaluation.
        head: `shared` or `per_task`.
        own_classes: a per-task head has outputs for its own task's classes only.
        pretrained: whether the backbone's weights were loaded.
        precision: float32, or bfloat16 for autocast; logits are float32 in both.
        task_inference: the rule of `TaskInference` by which the task is chosen; None: it is given, or does not matter.

    Attributes:
        changes: how often the vision tower has changed without being seen to.
        moving: whether the vision tower and the text tower of a prompted network train now.
    """

    masked: Tensor

    def __init__(
        self,
        backbone: nn.Module,
        classifier: str,
        *,
        task_classes: Sequence[Sequence[int]],
        task_labels: bool,
        probe_classes: Sequence[Sequence[int]] = (),
        head: str = "shared",
        own_classes: bool = False,
        pretrained: bool = False,
        precision: str = "float32",
        task_inference: str | None = None,
    ) -> None:
        super().__init__(
            backbone, n_tasks=len(task_classes), task_labels=task_labels, pretrained=pretrained, precision=precision
        )
        self.classifier_name = classifier
        template = backbone.get_submodule(classifier)
        if isinstance(template, TextHead):
            assert isinstance(backbone, CLIPClassifier)
            template.task_classes = [list(classes) for classes in task_classes]
            n_classes, n_features = template.n_classes, backbone.width
            self.base_parameters = count(backbone)
        else:
            new_head = Head(template, task_classes if head == "per_task" else None, own_classes)
            n_classes, n_features = new_head.n_classes, inputs(template)
            self.base_parameters = count(backbone) - count(template)
            set_module(backbone, classifier, new_head)
        evaluated = [*task_classes, *probe_classes]
        masks = torch.ones(len(evaluated), n_classes, dtype=torch.bool)
        for task, classes in enumerate(evaluated):
            masks[task, list(classes)] = False
        self.register_buffer("masked", masks, persistent=False)
        if task_inference is not None:
            self.inference = TaskInference(task_inference, task_classes, n_classes, n_features)

    @property
    def head(self) -> Head | TextHead:
        """The head, where the backbone's classifier was."""
        head = self.backbone.get_submodule(self.classifier_name)
        assert isinstance(head, Head | TextHead)
        return head

    @property
    def prompted(self) -> bool:
        """Whether classes are known by their prompts (CLIP)."""
        return isinstance(self.backbone, CLIPClassifier)

    @property
    def separate_heads(self) -> bool:
        """Whether every task has a classifier of its own."""
        return self.head.per_task

    @property
    def task_given(self) -> bool:
        """Whether the task of what is evaluated is told with `activate`: by labels, or to the oracle."""
        return self.task_labels or (self.inference is not None and self.inference.rule == "oracle")

    def begin_task(self, tasks: Sequence[int]) -> None:
        """Prepares training on the tasks: the adapter's new sets and the heads."""
        assert self.inference is None or len(tasks) == 1, "without labels, a batch of several tasks has no set"
        super().begin_task(tasks)
        self.head.begin_task(sorted(self.begun) if self.prompted and self.mixes_tasks else tasks, isolate=self.per_task)
        if isinstance(self.backbone, CLIPClassifier):
            for parameter in self.backbone.locked():
                parameter.requires_grad_(False)
            for parameter in self.backbone.opened():
                parameter.requires_grad_(True)
            self.moving = self.backbone.trains()
            self.backbone.train(self.training)
        self.moved = self.moving_modules()

    def end_task(self) -> None:
        """Closes what was trained; from now on every task begun is a candidate."""
        super().end_task()
        self.head.end_task()

    @torch.no_grad()
    def learn_prototypes(self, batches: Iterable[Sequence[Tensor]]) -> None:
        """Stores the class means of the task just learned, from its (images, labels, ..) batches."""
        assert self.inference is not None
        training = self.training
        self.eval()
        self.inference.learn((self._base_features(x), labels) for x, labels, *_ in batches)
        self.train(training)

    def activate(self, task: int) -> None:
        """Switches adapter and head to one task."""
        super().activate(task)
        self.head.activate(task)

    def forward(self, x: Tensor, task_labels: Any = EVERY_CLASS) -> Any:
        """Logits (B, n_classes).

        Args:
            x: images (B, C, H, W), or in their place `Features`, what the network gives up to a cut.
            task_labels: task of each sample (B,), on the host where possible; an int for all samples; None for a
                dict of the logits under every task learned so far; left out for plain logits over all classes.
                Without task labels they are never looked at.
        """
        if self.inference is not None:
            return self._inferred(x)
        if not self.task_labels or task_labels is EVERY_CLASS:
            return self.anchored(self._scores(x))
        if task_labels is None:
            return self._every_task(x)
        if isinstance(task_labels, int):
            return self.for_task(x, task_labels)
        if task_labels.stride() == (0,):  # one number, as the lane gives the labels of batches of one task
            return self.for_task(x, int(task_labels[0]))
        tasks = torch.unique(task_labels).tolist()
        if len(tasks) == 1:
            return self.for_task(x, tasks[0])
        return self._mixed(x, task_labels, tasks)

    def for_task(self, x: Tensor, task: int) -> Tensor:
        """Logits under one task, the other tasks' classes at minus infinity."""
        self.activate(task)
        return self.anchored(self._scores(x).masked_fill(self.masked[task], float("-inf")))

    def owned(self, task: int) -> Iterator[nn.Module | Tensor]:
        """What the adapter keeps for the task, and its classifier."""
        yield from super().owned(task)
        if isinstance(self.head, Head) and self.head.per_task:
            yield self.head.classifiers[task]

    def stepped(self) -> None:
        """Told after every optimiser step: torch's fused optimisers write weights without raising their version."""
        super().stepped()
        if self.moving[1] and isinstance(self.head, TextHead):
            self.head.forget()

    def forget(self) -> None:
        """Drops what was computed from weights that have changed without being written, as a truncation does."""
        if isinstance(self.head, TextHead):
            self.head.forget()
        super().forget()

    def head_parameters(self, tasks_seen: int) -> list[int]:
        """Parameters of each classifier in use; a head of prompts is the text tower and has none of its own."""
        classifiers = list(self.head.classifiers)[: tasks_seen if self.head.per_task else 1]
        return [_own_size(classifier) for classifier in classifiers] or [0]

    def features(self, x: Tensor) -> Tensor:
        """What the head is given under the active task, float32 (B, d); feature maps (B, d, H, W) are averaged."""
        if isinstance(x, Features):
            with x.cut.resumed(x.plain()) as images:
                return self.features(images)
        if isinstance(self.backbone, CLIPClassifier):
            with self.autocast(x.device):
                return self.backbone.encode_images(x).float()
        caught: list[Tensor] = []
        handle = self.head.register_forward_pre_hook(lambda head, inputs: caught.append(inputs[0]))
        try:
            self._scores(x)
        finally:
            handle.remove()
        features = caught[0].float()
        return features.flatten(2).mean(2) if features.dim() > 2 else features

    def _base_features(self, x: Tensor) -> Tensor:
        """The features that all tasks share: those of the base, whatever set was active."""
        self.adapter.activate(NO_TASK)
        features = self.features(x)
        self.adapter.activate(self.active)
        return features

    def _inferred(self, x: Tensor) -> Tensor:
        assert self.inference is not None
        self.inferred = None
        if self.learning is not None:
            return self.for_task(x, self.learning)
        if self.probed is not None:
            self.activate(self.probed)
            return self.anchored(self._scores(x))
        if self.inference.rule == "oracle":
            self.inferred = torch.full((len(x),), self.active, device=x.device)
            return self.for_task(x, self.active)
        tasks = sorted(self.known_tasks())
        if not tasks:  # nothing is learned that could be recognised
            self.activate(0)
            return self.anchored(self._scores(x))
        if self.inference.rule == "prototype":
            self.inferred = self.inference.from_features(self._base_features(x), tasks)
            return self._mixed(x, self.inferred, torch.unique(self.inferred).tolist())
        answers = {task: self._answer(x, task) for task in tasks}
        self.inferred = self.inference.from_answers(answers)
        places = torch.searchsorted(torch.tensor(tasks, device=x.device), self.inferred)
        return torch.stack(list(answers.values()))[places, torch.arange(len(x), device=x.device)]

    def _answer(self, x: Tensor, task: int) -> Tensor:
        """Logits with a task's set; a prompted network that infers the task still knows every class of the stream."""
        if not self.prompted or self.inference is None:
            return self.for_task(x, task)
        self.activate(task)
        return self.anchored(self._scores(x))

    def _every_task(self, x: Tensor) -> dict[int, Tensor]:
        tasks = sorted(self.known_tasks())
        if self.per_task or self.head.per_task:
            return {task: self.for_task(x, task) for task in tasks}
        scores = self._scores(x)  # the features are the same for every task
        return {task: self.anchored(scores.masked_fill(self.masked[task], float("-inf"))) for task in tasks}

    def _mixed(self, x: Tensor, task_labels: Tensor, tasks: list[int]) -> Tensor:
        routes = [(task, torch.nonzero(task_labels == task).flatten().to(x.device)) for task in tasks]
        if self.per_task:
            order = torch.argsort(torch.cat([rows for _, rows in routes]))
            return torch.cat([self._answer(x[rows], task) for task, rows in routes])[order]
        self.head.route(routes)
        scores = self._scores(x)
        return self.anchored(scores.masked_fill(self.masked[task_labels.to(x.device)], float("-inf")))

    def _scores(self, x: Tensor) -> Tensor:
        if isinstance(x, Features):
            with x.cut.resumed(x.plain()) as images:
                return self._scores(images)
        with self.autocast(x.device):
            logits = self.backbone(x)
        return logits if logits.dim() == 2 and logits.dtype == torch.float32 else logits.flatten(1).float()


def _own_size(classifier: nn.Module) -> int:
    """Parameters without those of its deltas."""
    deltas = getattr(classifier, "deltas", None)
    return count(classifier) - (count(deltas) if isinstance(deltas, nn.Module) else 0)
