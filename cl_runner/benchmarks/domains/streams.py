"""Streams of whole datasets, a task a domain: MTIL and X-TAIL."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from cl_runner.benchmarks.bad_samples import STOP, ImageStream, warning
from cl_runner.benchmarks.domains.catalogue import CATALOGUE, ORDER_I, ORDER_II
from cl_runner.benchmarks.domains.choices import Choice, ChoiceFacts, choose
from cl_runner.benchmarks.stream import Task, TaskStream
from cl_runner.errors import RequestError
from cl_runner.view import View

if TYPE_CHECKING:
    from cl_runner.benchmarks.domains.domain import Domain
    from cl_runner.benchmarks.store import ImageStore

Progress = Callable[[int, int], None]
DEFAULT_SIZE = 224
NOTHING: Mapping[str, Any] = MappingProxyType({})


class DomainStream:
    """A task a domain; subclasses say which domains, and which classes are candidates at evaluation.

    Args:
        domains: names of the catalogue, or mappings {name, root, prompt, names} for class folders of your own; None:
            the order's domains.
        order: I or II.
        shots: training images a class; None: all.
        splits: split files by domain, in CoOp's format; a domain without one uses the file in its folder.
        prompts: templates by domain, one or a list, in place of CoOp's.
        probe_domains: like ``domains``: evaluated before and after every task, never trained.
        task_labels: whether the task of a sample is known at evaluation, its own classes then being the candidates.
        validation_fraction: share of each class's training images held out for validation.
        validation_split: validate on the validation part of the split instead.
        test_per_class: at most so many test images a class, for quick trials.
        split_seed: draws shots, validation and the splits of domains that have none.
        root: where the data lies; None: the run's data_root.
        image_size: pixels a side; None: what the network was made for.
        augmentation: none, flip, crop or crop_flip.
        cache: folder of decoded images; None: data_root/cache.
        cache_gb: its bound in GB; 0 keeps decoded images in memory alone.

    Raises:
        RequestError: a domain, split or prompt is unknown, double or missing.
    """

    name: ClassVar[str] = ""
    without: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        *,
        domains: Sequence[str | Mapping[str, Any]] | None = None,
        order: str = "I",
        shots: int | None = None,
        splits: Mapping[str, str | None] = NOTHING,
        prompts: Mapping[str, str | Sequence[str] | None] = NOTHING,
        probe_domains: Sequence[str | Mapping[str, Any]] = (),
        task_labels: bool = True,
        validation_fraction: float = 0.0,
        validation_split: bool = False,
        test_per_class: int | None = None,
        split_seed: int = 0,
        root: str | None = None,
        image_size: int | None = None,
        augmentation: str = "none",
        cache: str | None = None,
        cache_gb: float = 64.0,
    ) -> None:
        chosen = (
            [name for name in {"I": ORDER_I, "II": ORDER_II}[order] if name not in self.without]
            if domains is None
            else domains
        )
        given = {name: path for name, path in splits.items() if path is not None}
        wanted = {name: text for name, text in prompts.items() if text is not None}
        self.entries = [choose(item, "benchmark.domains", given, wanted) for item in chosen]
        self.probes = [choose(item, "benchmark.probe_domains", given, wanted) for item in probe_domains]
        self._check_names(given, wanted)
        self.shots, self.task_labels = shots, task_labels
        self.validation_fraction, self.validation_split = validation_fraction, validation_split
        self.test_per_class, self.split_seed = test_per_class, split_seed
        self.root, self.image_size, self.augmentation = root, image_size, augmentation
        self.cache, self.cache_gb = cache, cache_gb
        self._view = View(size=image_size or DEFAULT_SIZE)
        self._opened: dict[tuple[str, Path], Domain] = {}

    def see_as(self, view: View) -> None:
        """Prepares images as a network wants them."""
        self._view = view

    def outline(self, data_root: Path) -> TaskStream:
        """The stream without its images: what the files say where they are there, else what the catalogue says."""
        root, first = self._root(data_root), 0
        tasks = []
        for index, item in enumerate((*self.entries, *self.probes)):
            facts = item.facts(root, partial(self._open, item, root))
            classes = tuple(range(first, first + len(facts.train)))
            first += len(facts.train)
            n_train, n_test = self._amounts(facts, trained=item in self.entries)
            tasks.append(Task(index, item.name, classes, facts.class_names, n_train, n_test, templates=item.templates))
        return self._stream(tasks, first)

    def stream(
        self,
        data_root: Path,
        progress: Progress | None = None,
        training: bool = True,
        on_bad_sample: str = STOP,
    ) -> TaskStream:
        """The stream with its data: decoded once, then read from the cache.

        Args:
            data_root: where datasets lie, unless ``root`` says it.
            progress: called while images are decoded.
            training: False where nothing looks at training images: one a class stands for them.
            on_bad_sample: skip leaves out images that cannot be read; stop refuses the first.
        """
        from cl_runner.benchmarks.domains.assemble import Assembly
        from cl_runner.benchmarks.domains.splits import few_shot

        assembly = Assembly(self._view, self._pixel_cache(data_root), progress, on_bad_sample)
        root = self._root(data_root)
        for item in (*self.entries, *self.probes):
            domain = self._open(item, root)
            parts = self._parts(domain, trained=item in self.entries, say=assembly.note)
            if not training:
                parts["train"] = few_shot(domain.labels, parts["train"], 1, self.split_seed)
            assembly.add(domain, parts, labelled=self.task_labels, training=training)
        tasks, store, n_classes = assembly.finish()
        return self._stream(tasks, n_classes, store, tuple(assembly.notes), tuple(assembly.skipped))

    def _open(self, item: Choice, root: Path) -> Domain:
        """A domain, found once: looking for 100,000 files takes seconds."""
        key = (item.name, root)
        if key not in self._opened:
            self._opened[key] = item.open(root, self.split_seed)
        return self._opened[key]

    def _amounts(self, facts: ChoiceFacts, *, trained: bool) -> tuple[int, int]:
        """Training and test images that :meth:`_parts` leaves of a domain."""
        train = facts.train if trained else facts.train[:0]
        if self.shots:
            train = np.minimum(train, self.shots)
        if self.validation_fraction and not self.validation_split:
            train = train - np.array([self._held(count) for count in train.tolist()], dtype=np.int64)
        test = np.minimum(facts.test, self.test_per_class) if self.test_per_class else facts.test
        return int(train.sum()), int(test.sum())

    def _held(self, count: int) -> int:
        """Validation images of a class's ``count``: rounded, at least one, never all."""
        return min(max(round(self.validation_fraction * count), 1), max(count - 1, 0))

    def _parts(self, domain: Domain, *, trained: bool, say: Callable[[str], None]) -> dict[str, np.ndarray]:
        """The images of each part that this stream uses."""
        from cl_runner.benchmarks.domains.splits import few_shot

        labels, seed = domain.labels, self.split_seed
        test = few_shot(labels, domain.test, self.test_per_class, seed) if self.test_per_class else domain.test
        if not trained:
            return {"train": domain.train[:0], "validation": domain.train[:0], "test": test}
        train, held_out = domain.train, domain.validation[:0]
        if self.shots:
            counts = np.bincount(labels[train], minlength=len(domain.class_names))
            if counts.min() < self.shots:
                short = domain.class_names[int(counts.argmin())]
                say(
                    f"{domain.name}: {int((counts < self.shots).sum())} classes have fewer than benchmark.shots="
                    f"{self.shots} training images and keep all, {short} with {int(counts.min())}"
                )
            train = few_shot(labels, train, self.shots, seed)
        if self.validation_split:
            held_out = few_shot(labels, domain.validation, self.shots, seed) if self.shots else domain.validation
        elif self.validation_fraction:
            train, held_out = self._hold_out(labels, train)
        return {"train": train, "validation": held_out, "test": test}

    def _hold_out(self, labels: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Splits the validation images off, class by class."""
        held = []
        for label in np.unique(labels[train]):
            ids = train[labels[train] == label]
            shuffled = np.random.default_rng([self.split_seed, int(label), 1]).permutation(ids)
            held.append(shuffled[: self._held(len(ids))])
        chosen = np.sort(np.concatenate(held))
        return np.setdiff1d(train, chosen), chosen

    def _stream(
        self,
        tasks: Sequence[Task],
        n_classes: int,
        store: ImageStore | None = None,
        notes: tuple[str, ...] = (),
        skipped: tuple[str, ...] = (),
    ) -> TaskStream:
        trained = len(self.entries)
        size = self._view.size
        return ImageStream(
            name=self.name,
            tasks=tuple(tasks[:trained]),
            task_labels=self.task_labels,
            n_classes=n_classes,
            image_shape=(3, size, size),
            class_order=tuple(range(n_classes)),
            augmentation=self.augmentation,
            store=store,
            probes=tuple(tasks[trained:]),
            notes=notes + warning(skipped),
            skipped=skipped,
        )

    def _check_names(self, splits: Mapping[str, Any], prompts: Mapping[str, Any]) -> None:
        names = [item.name for item in (*self.entries, *self.probes)]
        if not self.entries:
            raise RequestError("benchmark.domains=[]: a stream needs a domain", f"some of: {', '.join(CATALOGUE)}")
        double = next((name for name in names if names.count(name) > 1), None)
        if double is not None:
            raise RequestError(
                f"benchmark.domains and probe_domains name {double} twice", "each domain is trained once, or a probe"
            )
        for key, given in (("splits", splits), ("prompts", prompts)):
            idle = next((name for name in given if name not in names), None)
            if idle is not None:
                raise RequestError(
                    f"benchmark.{key}.{idle} has no use here: {idle} is not in the stream",
                    f"domains: {', '.join(names)}",
                )

    def _root(self, data_root: Path) -> Path:
        return Path(self.root).expanduser() if self.root else data_root

    def _pixel_cache(self, data_root: Path) -> tuple[Path | None, int]:
        """Where decoded images go, and the bytes that they may take."""
        if not self.cache_gb:
            return None, 0
        folder = Path(self.cache).expanduser() if self.cache else data_root / "cache"
        return folder, int(self.cache_gb * 1e9)


class MTIL(DomainStream):
    """Multi-domain task-incremental learning: a domain's own classes are the candidates (Zheng et al., ICCV 2023)."""

    name = "mtil"


class XTAIL(DomainStream):
    """Cross-domain task-agnostic incremental learning: all domains' classes are candidates (Xu et al., NeurIPS 2024).

    Without CIFAR-100, whose classes others share.
    """

    name = "xtail"
    without = ("cifar100",)

    def __init__(self, *, task_labels: bool = False, **options: Any) -> None:
        super().__init__(task_labels=task_labels, **options)
