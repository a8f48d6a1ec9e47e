"""Which layers of a network get an adapter: by kind, position, name or regular expression."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from cl_runner.backbones.heads import Head
from cl_runner.errors import RequestError, nearest

KINDS: dict[str, type[nn.Module]] = {"conv": nn.Conv2d, "linear": nn.Linear}
PRESETS: dict[str, dict[str, Any]] = {
    "all": {},
    "convs": {"kinds": ["conv"]},
    "linears": {"kinds": ["linear"]},
    "first_half": {"part": "first_half"},
    "last_half": {"part": "last_half"},
}


class Placement:
    """Chooses layers, in the order in which the network defines them.

    Args:
        kinds: conv (Conv2d), linear (Linear) or both.
        part: all of them, the first half or the last half (of n layers the first has n // 2).
        pattern: a regular expression searched in each layer's name.
        names: the layers, by name.
        head: the classifier is a candidate too, under its own name.

    Raises:
        RequestError: nothing matches, a name is unknown, or the pattern is no regular expression.
    """

    def __init__(
        self,
        *,
        kinds: Sequence[str] = ("conv", "linear"),
        part: str = "all",
        pattern: str | None = None,
        names: Sequence[str] | None = None,
        head: bool = False,
    ) -> None:
        self.kinds, self.part, self.pattern, self.names, self.head = tuple(kinds), part, pattern, names, head

    @classmethod
    def of(cls, placement: Placement | str) -> Placement:
        """A placement as it is, or by the name of its preset."""
        if isinstance(placement, Placement):
            return placement
        if placement not in PRESETS:
            raise RequestError(f"placement={placement} is not known", nearest(placement, tuple(PRESETS)))
        return cls(**PRESETS[placement])

    def candidates(self, model: nn.Module) -> dict[str, nn.Module]:
        """Every layer that could be chosen, by name; the head under the name of the classifier it replaced."""
        found: dict[str, nn.Module] = {}
        inside_heads: list[str] = []
        for name, module in model.named_modules():
            if isinstance(module, Head):
                inside_heads.append(name + ".")
                if self.head:
                    found[name] = module
            elif isinstance(module, nn.Conv2d | nn.Linear) and not name.startswith(tuple(inside_heads)):
                found[name] = module
        return found

    def choose(self, model: nn.Module) -> list[str]:
        """Names of the chosen layers."""
        candidates = self.candidates(model)
        wanted = tuple(KINDS[kind] for kind in self.kinds)
        chosen = [name for name, module in candidates.items() if isinstance(_layer(module), wanted)]
        if self.part != "all":
            middle = len(chosen) // 2
            chosen = chosen[:middle] if self.part == "first_half" else chosen[middle:]
        if self.pattern is not None:
            try:
                pattern = re.compile(self.pattern)
            except re.error as error:
                raise RequestError(f"placement.pattern={self.pattern} is no regular expression: {error}") from error
            chosen = [name for name in chosen if pattern.search(name)]
        if self.names is not None:
            for name in self.names:
                if name not in candidates:
                    raise RequestError(f"placement.names: there is no layer '{name}'", nearest(name, tuple(candidates)))
                if name not in chosen:
                    raise RequestError(
                        f"placement.names: kinds={list(self.kinds)}, part={self.part} and pattern={self.pattern} "
                        f"leave layer '{name}' out",
                        "drop the name, or widen placement.kinds, part or pattern",
                    )
            chosen = [name for name in chosen if name in self.names]
        if not chosen:
            raise RequestError(f"{self._key()} matches no layer", f"candidates: {_listing(candidates)}")
        return chosen

    def _key(self) -> str:
        if self.pattern is not None:
            return f"placement.pattern={self.pattern}"
        if self.names is not None:
            return f"placement.names={list(self.names)}"
        return f"placement (kinds={list(self.kinds)}, part={self.part})"


def _layer(module: nn.Module) -> nn.Module:
    return module.classifier(0) if isinstance(module, Head) else module


def _listing(candidates: dict[str, nn.Module], limit: int = 30) -> str:
    names = list(candidates)
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
