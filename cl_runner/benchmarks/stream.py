"""The task stream: what is learned, in which order, and the parts that are indexed in one call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cl_runner.benchmarks.store import Part, Store


@dataclass(frozen=True)
class Task:
    """One task of a stream.

    Attributes:
        index: position in the stream, from 0.
        name: its column in `accuracy_matrix.csv`.
        classes: class ids in the network's label space, 0 .. n_classes - 1 in the order of the stream.
        class_names: the names of those classes; empty in an outline whose data alone says them.
        n_train: training samples, without the validation split.
        train, validation, test: the data; None in an outline, and no validation part where no split was asked for.
        templates: prompts with one {} for the name of a class, for networks that know classes by text.
    """

    index: int
    name: str
    classes: tuple[int, ...]
    class_names: tuple[str, ...]
    n_train: int
    n_test: int
    train: Part | None = None
    validation: Part | None = None
    test: Part | None = None
    templates: tuple[str, ...] = ("a photo of a {}.",)


@dataclass(frozen=True)
class TaskStream:
    """Tasks in order, with what every part of a run needs to know of them.

    Attributes:
        name: the benchmark.
        task_labels: whether the task of a sample is known in training and at evaluation. Where it is, the
            candidates at evaluation are the task's own classes; where not, all classes of the stream.
        n_classes: classes of the whole stream, those of its probes included.
        image_shape: (channels, height, width); zeros where samples are texts.
        class_order: the dataset's label ids in the order of the stream; position i is class i of the network.
        augmentation: none, flip, crop or crop_flip, drawn anew for every training sample.
        store: the samples, absent in an outline (`mode=plan`).
        probes: tasks that are evaluated and never trained, their own classes the candidates; they count on from the
            last task.
        notes: what the user should know about the data.
    """

    name: str
    tasks: tuple[Task, ...]
    task_labels: bool
    n_classes: int
    image_shape: tuple[int, int, int] = (0, 0, 0)
    class_order: tuple[int, ...] = ()
    augmentation: str = "none"
    store: Store | None = field(default=None, repr=False)
    probes: tuple[Task, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tasks)

    @property
    def evaluated(self) -> tuple[Task, ...]:
        """The tasks, then the probes."""
        return self.tasks + self.probes

    def candidates(self, task: Task) -> list[int]:
        """The classes among which a sample of the task is recognised at evaluation."""
        if self.task_labels or task.index >= len(self.tasks):
            return list(task.classes)
        return [label for other in self.tasks for label in other.classes]
