"""Random crop and flip for a whole chunk of images at once, with a draw of its own for every sample.

On the host, samples are sorted by what was drawn for them: 4 pixels of padding give 81 crops and 2 flips, so a chunk
of two thousand images is copied in at most 162 slices instead of one gather index a pixel. On a GPU, where a launch
costs more than a gather, one gather does it. Both give the same images for the same draws.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cl_runner.benchmarks.segments import Images


class Augmentation:
    """Random crop with zero padding, and random horizontal flip.

    A crop pads by 4 pixels on each side (by an eighth of the height below 32 pixels) and cuts a window of the
    original size at a uniform position; a flip has probability one half.

    Args:
        name: none, flip, crop or crop_flip.
        image_size: height of the images in pixels.
        generator: the host generator that every draw comes from.
    """

    def __init__(self, name: str, image_size: int, generator: torch.Generator) -> None:
        self.crops = name in ("crop", "crop_flip")
        self.flips = name in ("flip", "crop_flip")
        self.padding = (4 if image_size >= 32 else max(1, image_size // 8)) if self.crops else 0
        self.generator = generator
        self._frame: np.ndarray | None = None

    @property
    def active(self) -> bool:
        """Whether anything is random."""
        return self.crops or self.flips

    def take(self, images_NCHW: Images, ids: Tensor, fill: Tensor | None = None) -> Tensor:
        """The chosen images, augmented, in the order of ``ids``; see `chunk` for the arguments."""
        images, places = self.chunk(images_NCHW, ids, fill)
        return images if places is None else images.index_select(0, places)

    def chunk(self, images_NCHW: Images, ids: Tensor, fill: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The chosen images, augmented, in any order, and where among them each one is; None: in the order of ``ids``.

        To put a chunk of thousands in order is one more way through memory; a batch of it is put in order in the cache.

        Args:
            images_NCHW: uint8 or float32, on any device; in one tensor or not.
            ids: which of them, (n,), on the host.
            fill: value of the padding, (C, 1, 1); zero where it is None.
        """
        if not self.active:
            return images_NCHW.index_select(0, ids.to(images_NCHW.device, non_blocking=True)), None
        steps = 2 * self.padding + 1
        offsets = torch.randint(0, steps * steps, (len(ids),), generator=self.generator)
        flips = torch.randint(0, 2, (len(ids),), generator=self.generator) * int(self.flips)
        if images_NCHW.device.type != "cpu":
            return self._gather(images_NCHW, ids, offsets, flips, fill), None
        return self._slices(images_NCHW, ids, offsets, flips, fill)

    def _slices(
        self, images_NCHW: Images, ids: Tensor, offsets: Tensor, flips: Tensor, fill: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        steps = 2 * self.padding + 1
        draws = (flips * steps * steps + offsets).numpy()  # flipped samples last, in one piece
        order = np.argsort(draws, kind="stable")
        chosen = images_NCHW.index_select(0, ids[torch.from_numpy(order)])
        n, _, height, width = chosen.shape
        first_flipped = n - int(flips.sum())
        places = np.empty_like(order)
        places[order] = np.arange(n)
        flipped = chosen[first_flipped:].flip(-1)
        if not self.padding:
            chosen[first_flipped:] = flipped
            return chosen, torch.from_numpy(places)
        padded = self._padded(chosen[:first_flipped], flipped, fill)
        out = np.empty(chosen.shape, dtype=padded.dtype)
        groups, starts = np.unique(draws[order], return_index=True)
        ends = [*starts[1:].tolist(), n]
        for group, start, end in zip(groups.tolist(), starts.tolist(), ends, strict=True):
            top, left = divmod(group % (steps * steps), steps)
            if group >= steps * steps:
                left = steps - 1 - left  # the image in the frame is turned already, and its window with it
            out[start:end] = padded[start:end, :, top : top + height, left : left + width]
        return torch.from_numpy(out), torch.from_numpy(places)

    def _padded(self, upright: Tensor, flipped: Tensor, fill: Tensor | None) -> np.ndarray:
        """The images inside a frame; the frame of a chunk's usual size is kept, only its inside is written again."""
        pad, n, (_, channels, height, width) = self.padding, len(upright) + len(flipped), upright.shape
        shape, dtype = (n, channels, height + 2 * pad, width + 2 * pad), upright.numpy().dtype
        if fill is None and self._frame is not None and (self._frame.shape, self._frame.dtype) == (shape, dtype):
            frame = self._frame
        else:
            frame = np.zeros(shape, dtype=dtype)
            if fill is not None:
                frame += fill.cpu().numpy()
            else:
                self._frame = frame
        inside = frame[:, :, pad:-pad, pad:-pad]
        inside[: len(upright)], inside[len(upright) :] = upright.numpy(), flipped.numpy()
        return frame

    def _gather(self, images_NCHW: Images, ids: Tensor, offsets: Tensor, flips: Tensor, fill: Tensor | None) -> Tensor:
        device = images_NCHW.device
        chosen = images_NCHW.index_select(0, ids.to(device, non_blocking=True))
        n, channels, height, width = chosen.shape
        pad, steps = self.padding, 2 * self.padding + 1
        offsets, flips = offsets.to(device, non_blocking=True), flips.to(device, non_blocking=True)
        padded = chosen.new_zeros((n, channels, height + 2 * pad, width + 2 * pad))
        if fill is not None:
            padded += fill.to(device)
        padded[:, :, pad : pad + height, pad : pad + width] = chosen
        rows = torch.arange(height, device=device)[None] + (offsets // steps)[:, None]
        columns = torch.arange(width, device=device)[None]
        columns = torch.where(flips[:, None] == 1, width - 1 - columns, columns) + (offsets % steps)[:, None]
        flat = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]
        index = flat.view(n, 1, -1).expand(n, channels, -1)
        return padded.view(n, channels, -1).gather(2, index).view_as(chosen)
