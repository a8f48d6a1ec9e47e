"""Reading the checkpoints of a run from outside of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cl_runner.errors import RequestError
from cl_runner.keeping.packing import Unpacker
from cl_runner.recording.checkpoints import Checkpoint, Checkpoints


def read_state(checkpoint: Checkpoint, known: Callable[[str], Tensor] | None, device: torch.device) -> dict[str, Any]:
    """The state in a checkpoint.

    Args:
        checkpoint: one that is whole.
        known: gives a tensor that was not stored because it can be had again, by its name in the network; None: its
            fingerprint stands for it.
        device: where tensors go that were not on the host.

    Raises:
        LookupError: such a tensor is not what it was.
        RequestError: its tensors are in no file of tensors, whatever its checksum says.
    """
    try:
        tensors = load_file(checkpoint.tensors) if checkpoint.tensors is not None else {}
    except (SafetensorError, OSError) as error:
        raise RequestError(
            f"checkpoint {checkpoint.number} cannot be used: {checkpoint.tensors} is no file of tensors: {error}",
            "remove the folder checkpoints to start over, or start a new run",
        ) from error
    state: dict[str, Any] = Unpacker(tensors, known, device).unpack(checkpoint.state)
    return state


def last_of(run: Path, told: Callable[[str], None]) -> Checkpoint:
    """The last checkpoint of a run that is whole.

    Raises:
        RequestError: there is none.
    """
    found = Checkpoints(run).latest(told)
    if found is None:
        raise RequestError(f"{run} holds no checkpoint that can be used", "give a run folder that has trained a task")
    return found


def read_between(run: Path) -> dict[str, Any]:
    """The state after the last task that a run has trained; fingerprints stand for tensors that were not stored."""
    found = last_of(run, lambda text: None)
    return read_state(found.base or found, None, torch.device("cpu"))
