"""Benchmarks that split a labelled image dataset into tasks by class."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from cl_runner.benchmarks.bad_samples import STOP, ImageStream, warning
from cl_runner.benchmarks.stream import Task, TaskStream
from cl_runner.errors import RequestError

if TYPE_CHECKING:
    from cl_runner.benchmarks.cache import Decoded
    from cl_runner.benchmarks.sources.source import Facts, Source

Progress = Callable[[int, int], None]


class ClassSplit(ABC):
    """Cuts a dataset into tasks of disjoint classes; subclasses name the dataset.

    Args:
        n_tasks: tasks in the stream.
        first_task_classes: classes of the first task; the others share the rest evenly. None: all the same.
        class_order_seed: shuffles the classes over the stream (the permutation that torch draws from this seed, as
            Avalanche's classic benchmarks do); None keeps the dataset's order.
        task_labels: whether the task of a sample is known.
        validation_fraction: share of each class's training images held out for validation.
        per_class: at most so many training images a class (the test part stays whole).
        split_seed: draws the subset and the validation split; neither depends on `seed` or on the class order.
        root: where the data lies; None: the run's data_root.
        augmentation: none, flip, crop or crop_flip.

    Raises:
        RequestError: the classes do not divide over the tasks, or the data is missing or damaged.
    """

    name: ClassVar[str] = ""

    def __init__(
        self,
        *,
        n_tasks: int = 5,
        first_task_classes: int | None = None,
        class_order_seed: int | None = None,
        task_labels: bool = True,
        validation_fraction: float = 0.1,
        per_class: int | None = None,
        split_seed: int = 0,
        root: str | None = None,
        augmentation: str = "none",
    ) -> None:
        self.n_tasks = n_tasks
        self.first_task_classes = first_task_classes
        self.class_order_seed = class_order_seed
        self.task_labels = task_labels
        self.validation_fraction = validation_fraction
        self.per_class = per_class
        self.split_seed = split_seed
        self.root = root
        self.augmentation = augmentation

    @abstractmethod
    def source(self, root: Path) -> Source:
        """The dataset, looked for below ``root``."""

    def facts(self, data_root: Path) -> Facts:
        """What is known of the dataset without reading its images."""
        return self.source(self._root(data_root)).facts()

    def outline(self, data_root: Path) -> TaskStream:
        """The stream without its data: tasks, classes and expected sizes."""
        facts = self.facts(data_root)
        per_class_train = facts.n_train // facts.n_classes
        per_class_test = facts.n_test // facts.n_classes
        kept = min(per_class_train, self.per_class or per_class_train)
        held_out = self._held_out(kept)
        order = self._class_order(facts.n_classes)
        names = tuple(str(label) for label in order)
        tasks = [
            self._task(index, classes, names, len(classes) * (kept - held_out), len(classes) * per_class_test)
            for index, classes in enumerate(self._cut(facts.n_classes))
        ]
        return self._stream(tuple(tasks), order, facts)

    def stream(self, data_root: Path, progress: Progress | None = None, on_bad_sample: str = STOP) -> TaskStream:
        """The stream with its data in memory.

        Args:
            data_root: where datasets lie, unless ``root`` says it.
            progress: called while images are decoded.
            on_bad_sample: skip leaves out images that cannot be read; stop refuses the first.
        """
        from cl_runner.benchmarks.cache import decoded
        from cl_runner.benchmarks.store import ImageStore, Part

        source = self.source(self._root(data_root))
        if on_bad_sample != STOP:
            source.on_bad_sample = on_bad_sample
        facts = source.facts()
        cuts = self._cut(facts.n_classes)  # refuses before anything is read
        data = decoded(source, progress)
        order = self._class_order(facts.n_classes)
        position = np.empty(facts.n_classes, dtype=np.int64)
        position[list(order)] = np.arange(facts.n_classes)
        labels = position[np.concatenate([data.train_labels, data.test_labels])]
        task_of_class = np.concatenate([np.full(len(classes), index) for index, classes in enumerate(cuts)])
        n_train = len(data.train_labels)
        train_ids, validation_ids = self._split(data)
        store = ImageStore(
            images=data.images_NCHW,
            labels=labels,
            tasks=task_of_class[labels] if self.task_labels else np.zeros_like(labels),
            mean=facts.mean,
            std=facts.std,
        )
        names = tuple(data.class_names[label] for label in order)
        test_ids = np.arange(n_train, len(labels))

        def part(ids: np.ndarray, index: int) -> Part:
            import torch

            return Part(store, torch.from_numpy(ids[task_of_class[labels[ids]] == index]), index)

        tasks = []
        for index, classes in enumerate(cuts):
            train, test = part(train_ids, index), part(test_ids, index)
            validation = part(validation_ids, index) if len(validation_ids) else None
            tasks.append(self._task(index, classes, names, len(train), len(test), train, validation, test))
        return self._stream(tuple(tasks), order, facts, store, data.skipped)

    def _root(self, data_root: Path) -> Path:
        return Path(self.root).expanduser() if self.root else data_root

    def _stream(
        self,
        tasks: tuple[Task, ...],
        order: tuple[int, ...],
        facts: Facts,
        store: object = None,
        skipped: tuple[str, ...] = (),
    ) -> TaskStream:
        return ImageStream(
            name=self.name,
            tasks=tasks,
            task_labels=self.task_labels,
            n_classes=facts.n_classes,
            image_shape=facts.image_shape,
            class_order=order,
            augmentation=self.augmentation,
            store=store,  # type: ignore[arg-type]
            notes=warning(skipped),
            skipped=skipped,
        )

    @staticmethod
    def _task(index: int, classes: range, names: tuple[str, ...], n_train: int, n_test: int, *parts: object) -> Task:
        chosen = tuple(classes)
        class_names = tuple(names[label] for label in chosen)
        return Task(index, f"task_{index + 1}", chosen, class_names, n_train, n_test, *parts)  # type: ignore[arg-type]

    def _cut(self, n_classes: int) -> list[range]:
        """Consecutive classes of each task, in the network's label space."""
        first = self.first_task_classes
        if first is None:
            sizes = [n_classes // self.n_tasks] * self.n_tasks
            if n_classes % self.n_tasks:
                fitting = [str(count) for count in range(1, n_classes + 1) if n_classes % count == 0]
                raise RequestError(
                    f"benchmark.n_tasks={self.n_tasks}: {self.name}'s {n_classes} classes do not divide over it",
                    f"one of: {', '.join(fitting)}; or another size for the first with benchmark.first_task_classes",
                )
        else:
            rest, others = n_classes - first, self.n_tasks - 1
            if rest < 0 or (others == 0) != (rest == 0) or (others and (rest % others or rest < others)):
                raise RequestError(
                    f"benchmark.first_task_classes={first}: {self.name} has only {n_classes} classes"
                    if rest < 0
                    else f"benchmark.first_task_classes={first}: the other {rest} of {self.name}'s {n_classes} classes "
                    f"do not divide over {others} tasks",
                    "choose it so that (classes - first_task_classes) / (n_tasks - 1) is a whole number",
                )
            sizes = [first, *([rest // others] * others if others else [])]
        edges = np.cumsum([0, *sizes]).tolist()
        return [range(start, end) for start, end in zip(edges[:-1], edges[1:], strict=True)]

    def _class_order(self, n_classes: int) -> tuple[int, ...]:
        if self.class_order_seed is None:
            return tuple(range(n_classes))
        import torch

        generator = torch.Generator().manual_seed(self.class_order_seed)
        return tuple(torch.randperm(n_classes, generator=generator).tolist())

    def _held_out(self, count: int) -> int:
        """Validation images out of ``count`` of a class: rounded, at least one, never all."""
        if not self.validation_fraction or count < 2:
            return 0
        return min(max(round(self.validation_fraction * count), 1), count - 1)

    def _split(self, data: Decoded) -> tuple[np.ndarray, np.ndarray]:
        """Training and validation ids, class by class, each drawn from (split_seed, the dataset's label)."""
        train, validation = [], []
        for label in range(len(data.class_names)):
            ids = np.flatnonzero(data.train_labels == label)
            shuffled = np.random.default_rng([self.split_seed, label]).permutation(ids)
            kept = shuffled[: self.per_class] if self.per_class else shuffled
            held_out = self._held_out(len(kept))
            validation.append(np.sort(kept[:held_out]))
            train.append(np.sort(kept[held_out:]))
        return np.sort(np.concatenate(train)), np.sort(np.concatenate(validation))


class SplitDigits(ClassSplit):
    """scikit-learn's bundled digits: 1,797 grey images of 8x8 pixels, 10 classes."""

    name = "split_digits"

    def source(self, root: Path) -> Source:
        """The bundled digits; ``root`` is not used."""
        from cl_runner.benchmarks.sources.digits import Digits

        return Digits()


class SplitMNIST(ClassSplit):
    """MNIST: 60,000 + 10,000 grey images of 28x28 pixels, 10 classes."""

    name = "split_mnist"

    def source(self, root: Path) -> Source:
        """MNIST below ``root``."""
        from cl_runner.benchmarks.sources.mnist import Mnist

        return Mnist(root=root)


class SplitCIFAR10(ClassSplit):
    """CIFAR-10: 50,000 + 10,000 images of 32x32 pixels, 10 classes."""

    name = "split_cifar10"

    def source(self, root: Path) -> Source:
        """CIFAR-10 below ``root``."""
        from cl_runner.benchmarks.sources.cifar import Cifar10

        return Cifar10(root=root)


class SplitCIFAR100(ClassSplit):
    """CIFAR-100: 50,000 + 10,000 images of 32x32 pixels, 100 classes."""

    name = "split_cifar100"

    def source(self, root: Path) -> Source:
        """CIFAR-100 below ``root``."""
        from cl_runner.benchmarks.sources.cifar import Cifar100

        return Cifar100(root=root)


class SplitCUB200(ClassSplit):
    """CUB-200-2011: 11,788 images of 200 bird species, resized and centre-cropped to ``image_size``."""

    name = "split_cub200"

    def __init__(self, *, image_size: int = 224, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.image_size = image_size

    def source(self, root: Path) -> Source:
        """CUB-200-2011 below ``root``."""
        from cl_runner.benchmarks.sources.cub200 import Cub200

        return Cub200(root=root, image_size=self.image_size)


class SplitFolder(ClassSplit):
    """A tree of class folders, ``root/train/CLASS/*`` and ``root/test/CLASS/*``, resized to ``image_size``.

    ``n_classes`` stands in for the folder in `mode=plan` where it is not there.
    """

    name = "split_folder"

    def __init__(self, *, image_size: int = 32, n_classes: int | None = None, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.image_size = image_size
        self.n_classes = n_classes

    def source(self, root: Path) -> Source:
        """The class folders below ``root``."""
        from cl_runner.benchmarks.sources.folder import ImageFolder

        return ImageFolder(root=root, image_size=self.image_size)

    def facts(self, data_root: Path) -> Facts:
        """Counted in the folder, or taken from ``n_classes`` where the folder is not there."""
        from cl_runner.benchmarks.sources.source import Facts

        root = self._root(data_root)
        if self.n_classes is not None and not root.is_dir():
            shape = (3, self.image_size, self.image_size)
            return Facts(self.n_classes, shape, 0, 0, (0.5,) * 3, (0.25,) * 3)
        found = super().facts(data_root)
        if self.n_classes not in (None, found.n_classes):
            raise RequestError(
                f"benchmark.n_classes={self.n_classes}: {root} holds {found.n_classes} classes",
                "drop it; it stands in for a folder that is not there",
            )
        return found
