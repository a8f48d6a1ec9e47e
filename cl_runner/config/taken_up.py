"""What may be said anew of a run that goes on, and what may not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cl_runner.config.identity import IDLE, differences
from cl_runner.errors import RequestError, shown

NOT_COMPARED = ("resume", "quiet", "hydra")


def taken_up(begun: DictConfig, asked: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """The configuration with which a run goes on: its own, with those typed keys that do not change its result.

    Args:
        begun: the run's own, as it stands in its folder.
        asked: composed from what was typed with `resume=`.
        overrides: what was typed.

    Raises:
        RequestError: a typed key says something else than the run began with.
    """
    merged = OmegaConf.create(OmegaConf.to_container(begun))
    for word in overrides:
        name = word.lstrip("+~").split("=")[0].split("@")[0]
        if name.split(".")[0] in NOT_COMPARED:
            continue
        now = OmegaConf.select(asked, name)
        if any(name == key or name.startswith(f"{key}.") for key in IDLE):
            OmegaConf.update(merged, name, now, merge=False)
            continue
        odd = _between(OmegaConf.select(begun, name), now, name)
        if odd or name in ("experiment", "debug"):
            key, old, new = odd[0] if odd else (name, None, word.partition("=")[2])
            said = f"{key} was {shown(old)} and is {shown(new)}" if odd else f"{word} composes another run"
            if asked.mode == "eval":
                raise RequestError(
                    f"checkpoint={asked.checkpoint} is evaluated with that folder's configuration: {said}", "drop it"
                )
            raise RequestError(
                f"resume={asked.resume} goes on with that folder's configuration: {said}",
                "drop it, or start a new run without resume",
            )
    assert isinstance(merged, DictConfig)
    return merged


def _between(old: Any, new: Any, name: str) -> list[tuple[str, Any, Any]]:
    """The keys below a name in which two values differ."""
    old, new = _plain(old), _plain(new)
    if isinstance(old, dict) and isinstance(new, dict):
        return differences(old, new, f"{name}.")
    return [] if old == new else [(name, old, new)]


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
