"""States as trees of plain values that JSON can hold, with their tensors apart.

A value that JSON has no form for becomes an object with a key that begins with "~": a tensor, a tuple, a mapping whose
keys are no words, a number that is not finite. Nothing is ever called or imported to read a state.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

TENSOR, ZEROS, SAME, PAIRS, TUPLE, NUMBER = "~tensor", "~zeros", "~same", "~pairs", "~tuple", "~number"
SMALL = 1024  # elements below which a tensor is stored as it is
DTYPES = {str(item).removeprefix("torch."): item for item in (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.bool,
)}  # fmt: skip


class Packer:
    """Packs states, and gathers their tensors.

    Args:
        known: names of tensors that can be had again, by their `fingerprint`; one of them is named, not stored.

    Attributes:
        tensors: what is to be stored, by name; on the host, contiguous, none sharing memory with another.
    """

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        self.tensors: dict[str, Tensor] = {}
        self._known = dict(known or {})
        self._stored: dict[str, str] = {}

    def pack(self, value: Any) -> Any:
        """A plain form of a value.

        Raises:
            TypeError: it is none that a state may hold.
        """
        if value is None or isinstance(value, bool | int | str):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {NUMBER: str(value)}
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, Mapping):
            if all(isinstance(key, str) and not key.startswith("~") for key in value):
                return {key: self.pack(item) for key, item in value.items()}
            return {PAIRS: [[self.pack(key), self.pack(item)] for key, item in value.items()]}
        if isinstance(value, tuple):
            return {TUPLE: [self.pack(item) for item in value]}
        if isinstance(value, list):
            return [self.pack(item) for item in value]
        raise TypeError(f"a state holds no {type(value).__name__}")

    def _tensor(self, tensor: Tensor) -> dict[str, Any]:
        place = {"device": "cpu"} if tensor.device.type == "cpu" else {}
        if tensor.numel() <= SMALL:
            return {TENSOR: self._store(tensor)} | place
        if not bool(tensor.any()):
            return {ZEROS: list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")} | place
        print_ = fingerprint(tensor)
        if print_ in self._known:
            return {SAME: self._known[print_], "is": print_} | place
        if print_ not in self._stored:
            self._stored[print_] = self._store(tensor)
        return {TENSOR: self._stored[print_]} | place

    def _store(self, tensor: Tensor) -> str:
        name = str(len(self.tensors))
        self.tensors[name] = tensor.detach().to("cpu", copy=True).contiguous()
        return name


class Unpacker:
    """Reads what `Packer` wrote.

    Args:
        tensors: what was stored, by name.
        known: gives the tensor of a name that was not stored; None: its fingerprint stands for it.
        device: where tensors go that were not on the host.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], known: Callable[[str], Tensor] | None, device: torch.device
    ) -> None:
        self._tensors, self._known, self._device = tensors, known, device

    def unpack(self, value: Any) -> Any:
        """The value that was packed.

        Raises:
            LookupError: a tensor that was not stored is not what it was.
        """
        if isinstance(value, list):
            return [self.unpack(item) for item in value]
        if not isinstance(value, dict):
            return value
        if TENSOR in value:
            return self._placed(self._tensors[value[TENSOR]].clone(), value)
        if ZEROS in value:
            return self._placed(torch.zeros(value[ZEROS], dtype=DTYPES[value["dtype"]]), value)
        if SAME in value:
            if self._known is None:
                return value["is"]
            found = self._known(value[SAME]).detach()
            if fingerprint(found) != value["is"]:
                raise LookupError(value[SAME])
            return self._placed(found.clone(), value)
        if PAIRS in value:
            return {self.unpack(key): self.unpack(item) for key, item in value[PAIRS]}
        if TUPLE in value:
            return tuple(self.unpack(item) for item in value[TUPLE])
        if NUMBER in value:
            return float(value[NUMBER])
        return {key: self.unpack(item) for key, item in value.items()}

    def _placed(self, tensor: Tensor, value: dict[str, Any]) -> Tensor:
        return tensor if value.get("device") == "cpu" else tensor.to(self._device)


def fingerprint(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's type, shape and values."""
    values = tensor.detach().cpu().contiguous()
    digest = hashlib.sha256(f"{values.dtype} {tuple(values.shape)} ".encode())
    digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
