"""Samples that live on the device, images as uint8, and the parts of them that tasks own.

Shapes: N samples, C channels, H height, W width.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from cl_runner.benchmarks.segments import Images, Segments, upload


class Store(Protocol):
    """All samples of a benchmark; a sample is known by its id, 0 .. N - 1.

    Attributes:
        labels: (N,), on the device.
        host_labels: the same, on the host.
        tasks: task index of each sample, (N,), on the host; all zero where task labels are not given.
        device: where batches are wanted.
    """

    labels: Tensor
    host_labels: Tensor
    tasks: Tensor
    device: torch.device

    def __len__(self) -> int: ...

    def to(self, device: torch.device, placement: str = "auto") -> Store:
        """Chooses the device, and moves the samples there where `placement` allows it."""
        ...

    def batch(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """What the network takes, and the targets, of several samples, on the device."""
        ...

    def item(self, index: int) -> tuple[Tensor, Tensor | int]:
        """The same of one sample, on the host."""
        ...


class ImageStore:
    """All images of a benchmark, training part first, with labels in the network's space.

    Args:
        images: uint8, (N, H, W, C); or a tensor or segments (N, C, H, W), taken as they are and never written into.
        labels: class ids in the network's label space, (N,).
        tasks: task index of each sample, (N,); all zero where task labels are not given.
        mean: per channel, of pixel values in [0, 1].
        std: per channel, of pixel values in [0, 1].
        used: ids of the images that the tasks use, where the others are holes without pixels: a GPU gets no holes.
    """

    def __init__(
        self,
        *,
        images: np.ndarray | Tensor | Segments,
        labels: np.ndarray,
        tasks: np.ndarray,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        used: Tensor | None = None,
    ) -> None:
        if isinstance(images, np.ndarray):
            images = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        self.host_NCHW = images
        self.images_NCHW: Images = self.host_NCHW
        self.used = None if used is None else used.unique()
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.host_labels = self.labels
        self.tasks = torch.from_numpy(tasks.astype(np.int64))  # stays on the host: it only routes
        self.mean, self.std = mean, std
        self.device = torch.device("cpu")
        self._affine: dict[str, tuple[Tensor, Tensor]] = {}

    def __len__(self) -> int:
        return self.host_NCHW.shape[0]

    @property
    def resident(self) -> bool:
        """Whether the images themselves are on the compute device."""
        return self.images_NCHW.device == self.device

    def to(self, device: torch.device, placement: str = "auto") -> ImageStore:
        """Moves the images to the device, or pins them where they would not fit.

        Segments, which may be mapped from files, stay where they are in the second case: their batches are pinned.

        Args:
            device: where batches are wanted.
            placement: `device`, `host`, or `auto`: on the device while that leaves 60 % of its free memory.
        """
        self.device = device
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            fits = self._device_bytes() < 0.4 * free
            if placement == "host" or (placement == "auto" and not fits):
                self.images_NCHW = self._streamed()
            else:
                self.images_NCHW = self._moved(device)
        elif placement != "host":
            self.images_NCHW = self._moved(device)
        self.labels = self.host_labels.to(device)
        return self

    def _device_bytes(self) -> int:
        """Bytes that the images take on a device: those of the holes do not count."""
        host = self.host_NCHW
        return host.nbytes if self.used is None or not len(host) else host.nbytes // len(host) * len(self.used)

    def _streamed(self) -> Tensor | Segments:
        """The images on the host, for batches that are sent; pinned where pinning reads no file and fills no hole."""
        whole = isinstance(self.host_NCHW, Tensor) and self.used is None
        return self.host_NCHW.pin_memory() if whole else self.host_NCHW  # type: ignore[union-attr]

    def _moved(self, device: torch.device) -> Images:
        """The images on a device, without holes; on the host nothing is copied."""
        host = self.host_NCHW
        if device.type == host.device.type == "cpu":
            return host
        if isinstance(host, Tensor) and self.used is None:
            return _sent(host, device)
        return upload(host, self.used, device)

    def batch(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Images float32 (B, C, H, W), normalised and not augmented, and labels int64 (B,), on the device."""
        images = self.images_NCHW[ids.to(self.images_NCHW.device)]
        if not self.resident:
            images = images.to(self.device, non_blocking=True)
        return self.normalise(images), self.labels[ids.to(self.device)]

    def item(self, index: int) -> tuple[Tensor, int]:
        """One image (C, H, W), normalised, and its label, on the host."""
        return self.normalise(self.host_NCHW[index]), int(self.host_labels[index])

    def normalise(self, images: Tensor) -> Tensor:
        """uint8 (..., C, H, W) to float32: (pixel / 255 - mean) / std, one multiplication and one addition."""
        scale, shift = self._constants(images.device)
        return images.to(torch.float32).mul_(scale).add_(shift)

    def black(self, device: torch.device) -> Tensor:
        """The normalised value of a pixel that is 0, (C, 1, 1): what padding looks like."""
        return self._constants(device)[1]

    def _constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        key = str(device)
        if key not in self._affine:
            mean = torch.tensor(self.mean, dtype=torch.float64).view(-1, 1, 1)
            std = torch.tensor(self.std, dtype=torch.float64).view(-1, 1, 1)
            self._affine[key] = ((1 / (255 * std)).float().to(device), (-mean / std).float().to(device))
        return self._affine[key]


_on_devices: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _sent(host: Tensor, device: torch.device) -> Tensor:
    """Images on a device; the same memory for all runs of this process that hold them there at the same time."""
    places = _on_devices.setdefault(host, {})
    there: Tensor | None = places[device]() if device in places else None
    if there is None:
        there = host.to(device)
        places[device] = weakref.ref(there)
    return there


@dataclass(frozen=True)
class Part:
    """Some samples of a store: the training, validation or test part of a task.

    `part[indices]` gives what the network takes and the targets, on the device: for images float32 (B, C, H, W),
    normalised and not augmented, and int64 (B,); for texts see `TokenStore`.
    """

    store: Store
    ids: Tensor
    task: int

    def __len__(self) -> int:
        return int(self.ids.numel())

    def __getitem__(self, indices: Tensor | slice) -> tuple[Tensor, Tensor]:
        return self.store.batch(self.ids[indices])
