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
SMALL = 1024  # elements up to which a tensor is stored, whatever else is known of it
JOINED = 1 << 16  # elements up to which it is stored together with others
DTYPES = {str(item).removeprefix("torch."): item for item in (
    torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int8, torch.int16, torch.int32,
    torch.int64, torch.bool,
)}  # fmt: skip
_NAMES = {item: name for name, item in DTYPES.items()}


class Packer:
    """Packs states, and gathers their tensors.

    Args:
        known: names of tensors that can be had again, by their `fingerprint`; one of them is named, not stored.

    """

    def __init__(self, known: Mapping[str, str] | None = None) -> None:
        self._known = dict(known or {})
        self._own: dict[str, Tensor] = {}
        self._joined: dict[str, list[Tensor]] = {}
        self._lengths: dict[str, int] = {}
        self._stored: dict[str, dict[str, Any]] = {}

    def tensors(self) -> dict[str, Tensor]:
        """What is to be stored, by name; on the host, contiguous, none sharing memory with another.

        Small tensors of one type are joined to one: a file with thousands of them takes longer to write, and the half
        of it would be names.
        """
        joined = {name: torch.cat(parts).to("cpu") for name, parts in self._joined.items()}
        return joined | {name: item.to("cpu", copy=True).contiguous() for name, item in self._own.items()}

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
        tensor = tensor.detach()
        if tensor.numel() <= SMALL:
            return self._store(tensor)
        if tensor.dtype in _NAMES and not bool(_bytes(tensor).any()):  # a zero with a sign is another number
            return {ZEROS: list(tensor.shape), "dtype": _NAMES[tensor.dtype]} | _place(tensor)
        print_ = fingerprint(tensor)
        if print_ in self._known:
            return {SAME: self._known[print_], "is": print_} | _place(tensor)
        if print_ not in self._stored:
            self._stored[print_] = self._store(tensor)
        return {**self._stored[print_], **_place(tensor)}

    def _store(self, tensor: Tensor) -> dict[str, Any]:
        if tensor.numel() > JOINED or tensor.dtype not in _NAMES:
            name = str(len(self._own))
            self._own[name] = tensor
            return {TENSOR: name} | _place(tensor)
        name = f"{_NAMES[tensor.dtype]} {tensor.device.type}"
        begin = self._lengths.get(name, 0)
        self._lengths[name] = begin + tensor.numel()
        self._joined.setdefault(name, []).append(tensor.reshape(-1))
        return {TENSOR: [name, begin, *tensor.shape]} | _place(tensor)


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
            return self._placed(self._stored(value[TENSOR]).clone(), value)
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

    def _stored(self, name: str | list[Any]) -> Tensor:
        if isinstance(name, str):
            return self._tensors[name]
        joined, begin, *shape = name
        return self._tensors[joined][begin : begin + math.prod(shape)].reshape(shape)

    def _placed(self, tensor: Tensor, value: dict[str, Any]) -> Tensor:
        return tensor if value.get("device") == "cpu" else tensor.to(self._device)


def fingerprint(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's type, shape and values."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    digest.update(_bytes(tensor).cpu().numpy().data)
    return digest.hexdigest()


def _place(tensor: Tensor) -> dict[str, str]:
    return {"device": "cpu"} if tensor.device.type == "cpu" else {}


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)
