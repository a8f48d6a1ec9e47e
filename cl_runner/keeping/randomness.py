"""Every generator that a run draws from."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def states(generator: torch.Generator) -> dict[str, Any]:
    """The states of Python's, numpy's, torch's and the devices' generators, and of the one that orders the data."""
    version, numbers, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    found: dict[str, Any] = {
        "python": [version, torch.tensor(numbers, dtype=torch.int64), gauss],
        "numpy": [name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "order": generator.get_state(),
    }
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state_all()
    return found


def restore(found: dict[str, Any], generator: torch.Generator) -> None:
    """Puts them all back; a device that is not here any more is left out."""
    version, numbers, gauss = found["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    name, keys, position, has_gauss, cached = found["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(found["torch"])
    generator.set_state(found["order"])
    if torch.cuda.is_available():
        for device, state in enumerate(found.get("cuda", ())[: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)
