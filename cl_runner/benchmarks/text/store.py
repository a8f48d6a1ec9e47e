"""Token ids that live on the device, and the padded batches made of them.

Shapes: N samples, B samples of a batch, L positions of the longest of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cl_runner.benchmarks.text.ragged import Ragged
from cl_runner.tokens import IGNORED


@dataclass(frozen=True)
class Origins:
    """Where each sample comes from.

    Attributes:
        files: the files that were read.
        file: index into ``files`` of each sample, (N,).
        line: the line at which its text begins, from 1, (N,); of a packed block that of its first text.
    """

    files: tuple[Path, ...]
    file: np.ndarray
    line: np.ndarray


class TokenStore:
    """All texts of a benchmark as token ids, end to end, int32.

    A batch is `x (B, 2, L)` and `y (B, L)`, both int64: x[:, 0] holds ids, padded on the right; x[:, 1] is 1 where the
    token after this position is a target; y is that token there and -100 (:data:`~cl_runner.tokens.IGNORED`) elsewhere.
    Padding therefore counts nowhere.

    Args:
        ids: the token ids of each sample.
        firsts: index in each sample of the first token that is a target, at least 1, (N,); all after it are targets.
        labels: index of each sample's domain, (N,).
        tasks: task index of each sample, (N,); all zero where task labels are not given.
        pad: id that fills up.
        prompts: UTF-8 bytes of each prompt; empty for a sample that is a text without an answer.
        answers: likewise of each reference answer, uncut.
        origins: where the samples come from.
    """

    def __init__(
        self,
        *,
        ids: Ragged,
        firsts: np.ndarray,
        labels: np.ndarray,
        tasks: np.ndarray,
        pad: int,
        prompts: Ragged | None = None,
        answers: Ragged | None = None,
        origins: Origins | None = None,
    ) -> None:
        self.pad = pad
        self.host_ids = torch.from_numpy(np.ascontiguousarray(ids.flat, np.int32))
        # (3, N): where a sample begins, its length, its first target; one array is one transfer
        rows = np.stack([ids.offsets[:-1], ids.sizes, np.asarray(firsts)]).astype(np.int64)
        self.host_rows = torch.from_numpy(rows)
        self.ids, self._rows = self.host_ids, self.host_rows
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.host_labels = self.labels
        self.tasks = torch.from_numpy(tasks.astype(np.int64))  # stays on the host: it only routes
        self.longest = int(rows[1].max(initial=0))
        self.device = torch.device("cpu")
        self._prompts, self._answers, self._origins = prompts, answers, origins

    def __len__(self) -> int:
        return self.host_rows.shape[1]

    @property
    def resident(self) -> bool:
        """Whether the ids themselves are on the compute device."""
        return self.ids.device == self.device

    def to(self, device: torch.device, placement: str = "auto") -> TokenStore:
        """Moves the ids to the device, or leaves them where they would not fit.

        Args:
            device: where batches are wanted.
            placement: `device`, `host`, or `auto`: on the device while that leaves 60 % of its free memory.
        """
        self.device = device
        stays = placement == "host"
        if device.type == "cuda" and placement == "auto":
            stays = self.host_ids.nbytes + self.host_rows.nbytes >= 0.4 * torch.cuda.mem_get_info(device)[0]
        place = torch.device("cpu") if stays else device
        self.ids, self._rows = self.host_ids.to(place), self.host_rows.to(place)
        self.labels = self.host_labels.to(device)
        return self

    def batch(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Input and targets of some samples, on the device, as long as the longest of them.

        Args:
            ids: of the samples, (B,), on the host: from a GPU they have to be waited for.

        Returns:
            x (B, 2, L) and y (B, L), int64.
        """
        host = ids.cpu()
        width = int(self.host_rows[1, host].max()) if host.numel() else 0
        x, y = self._padded(self.ids, self._rows[:, host.to(self._rows.device, non_blocking=True)], width)
        return x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def item(self, index: int) -> tuple[Tensor, Tensor]:
        """One sample on the host, x (2, longest) and y (longest,): padded so that any of them can be stacked."""
        x, y = self._padded(self.host_ids, self.host_rows[:, index : index + 1], self.longest)
        return x[0], y[0]

    def _padded(self, flat: Tensor, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
        begin, size, first = rows.unsqueeze(2)  # each (B, 1)
        position = torch.arange(width, device=flat.device)
        after = position + 1
        # beyond a sample its last token is read again, and not used: indices stay inside without a test
        tokens = torch.where(position < size, flat[begin + torch.minimum(position, size - 1)].long(), self.pad)
        counted = (after >= first) & (after < size)
        targets = torch.where(counted, flat[begin + torch.minimum(after, size - 1)].long(), IGNORED)
        return torch.stack([tokens, counted.long()], dim=1), targets

    def counted(self, ids: Tensor) -> int:
        """How many tokens of these samples are targets."""
        _, size, first = self.host_rows[:, ids.cpu()]
        return int((size - first).sum())

    def prompts(self, ids: Tensor) -> list[Tensor]:
        """Token ids before the first answer token, those that begin every text included; int64 (P,), on the host."""
        begin, _, first = self.host_rows[:, ids.cpu()]
        return [self.host_ids[a : a + n].long() for a, n in zip(begin.tolist(), first.tolist(), strict=True)]

    def sources(self, ids: Tensor) -> list[str]:
        """Texts of the prompts, uncut."""
        assert self._prompts is not None, "these samples have no prompts"
        return [self._prompts.text(index) for index in ids.tolist()]

    def answers(self, ids: Tensor) -> list[str]:
        """Texts of the reference answers, uncut."""
        assert self._answers is not None, "these samples have no answers"
        return [self._answers.text(index) for index in ids.tolist()]

    def where(self, index: int) -> str:
        """The file and line of a sample, for messages."""
        if self._origins is None:
            return f"sample {index}"
        found = self._origins
        return f"{found.files[int(found.file[index])]}, line {int(found.line[index])}"
