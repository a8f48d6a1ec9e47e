"""Which layers of a network get an adapter: by kind, role, position, name or regular expression."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from cl_runner.adapters.layers import PIECES, is_conv1d
from cl_runner.adapters.roles import is_fused, role_of, tower_of
from cl_runner.backbones.heads import Head
from cl_runner.errors import RequestError, nearest

TOWERS = ("vision", "text")
PRESETS: dict[str, dict[str, Any]] = {
    "all": {},
    "convs": {"kinds": ["conv"]},
    "linears": {"kinds": ["linear"]},
    "first_half": {"part": "first_half"},
    "last_half": {"part": "last_half"},
    "q": {"roles": ["q"]},
    "k": {"roles": ["k"]},
    "v": {"roles": ["v"]},
    "o": {"roles": ["o"]},
    "kv": {"roles": ["k", "v"]},
    "qkv": {"roles": ["q", "k", "v"]},
    "qkvo": {"roles": ["q", "k", "v", "o"]},
    "mlp_in": {"roles": ["mlp_in"]},
    "mlp_out": {"roles": ["mlp_out"]},
    "qkvo_mlp": {"roles": ["q", "k", "v", "o", "mlp_in", "mlp_out"]},
}


@dataclass(frozen=True)
class Candidate:
    """A layer, or a slice of a packed one, that could be chosen: conv or linear, and its role in a transformer."""

    kind: str
    role: str | None


class Placement:
    """Chooses layers, in the order in which the network defines them.

    Args:
        kinds: conv (Conv2d), linear (Linear, transformers' Conv1D, packed attention projections) or both.
        roles: q, k, v, o, mlp_in, mlp_out of a transformer, told by the layers' names; None: every layer. A fused
            layer is adapted slice by slice where roles are given and as one layer where they are not; the packed
            projections of torch's MultiheadAttention always slice by slice.
        towers: vision, text or both, for a network with two towers.
        part: all of them, the first half or the last half (of n layers the first has n // 2).
        pattern: a regular expression searched in each layer's name.
        names: the layers, by name.
        head: the classifier is a candidate too, under its own name; so is a language model's output embedding.

    Raises:
        RequestError: nothing matches, a name is unknown, or the pattern is no regular expression.
    """

    def __init__(
        self,
        *,
        kinds: Sequence[str] = ("conv", "linear"),
        roles: Sequence[str] | None = None,
        towers: Sequence[str] = TOWERS,
        part: str = "all",
        pattern: str | None = None,
        names: Sequence[str] | None = None,
        head: bool = False,
    ) -> None:
        self.kinds, self.part, self.pattern, self.names, self.head = tuple(kinds), part, pattern, names, head
        self.roles, self.towers = roles, tuple(towers)

    def __repr__(self) -> str:
        given = {key: value for key, value in vars(self).items() if value is not None}
        return f"Placement({', '.join(f'{key}={value!r}' for key, value in given.items())})"

    @classmethod
    def of(cls, placement: Placement | str) -> Placement:
        """A placement as it is, or by the name of its preset."""
        if isinstance(placement, Placement):
            return placement
        if placement not in PRESETS:
            raise RequestError(f"placement={placement} is not known", nearest(placement, tuple(PRESETS)))
        return cls(**PRESETS[placement])

    def candidates(self, model: nn.Module) -> dict[str, Candidate]:
        """Every layer that could be chosen, by name; the head under the name of the classifier it replaced."""
        outputs = getattr(model, "get_output_embeddings", lambda: None)()  # a language model's head
        found: dict[str, Candidate] = {}
        inside_heads: list[str] = []
        for name, module in model.named_modules():
            if isinstance(module, Head):
                inside_heads.append(name + ".")
                if self.head:
                    found[name] = Candidate(_kind(module.classifier(0)), None)
            elif not name.startswith(tuple(inside_heads)) and (module is not outputs or self.head):
                found |= self._of_module(name, module)
        return found

    def choose(self, model: nn.Module) -> list[str]:
        """Names of the chosen layers."""
        candidates = self.candidates(model)
        chosen = [name for name, item in candidates.items() if item.kind in self.kinds and self._plays(item)]
        chosen = self._in_towers(chosen)
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
            chosen = self._named(chosen, candidates)
        if not chosen:
            raise RequestError(f"{self._key()} matches no layer", f"candidates: {_listing(candidates)}")
        return chosen

    def _of_module(self, name: str, module: nn.Module) -> dict[str, Candidate]:
        prefix = f"{name}." if name else ""
        if isinstance(module, nn.MultiheadAttention):
            return {prefix + piece: Candidate("linear", piece) for piece in PIECES}
        if not isinstance(module, nn.Conv2d | nn.Linear) and not is_conv1d(module):
            return {}
        if self.roles is not None and not isinstance(module, nn.Conv2d):
            rows, columns = module.weight.shape  # type: ignore[misc]
            d_in, d_out = (rows, columns) if is_conv1d(module) else (columns, rows)
            if is_fused(name, int(d_in), int(d_out)):
                return {prefix + piece: Candidate("linear", piece) for piece in PIECES}
        kind = _kind(module)
        return {name: Candidate(kind, role_of(name) if kind == "linear" else None)}

    def _plays(self, item: Candidate) -> bool:
        return self.roles is None or item.role in self.roles

    def _in_towers(self, names: list[str]) -> list[str]:
        if set(self.towers) == set(TOWERS):
            return names
        if len({tower_of(name) for name in names}) < 2:
            raise RequestError(
                f"placement.towers={list(self.towers)}: this network does not have a vision and a text tower",
                "leave placement.towers at [vision, text]",
            )
        return [name for name in names if tower_of(name) in self.towers]

    def _named(self, chosen: list[str], candidates: dict[str, Candidate]) -> list[str]:
        assert self.names is not None
        for name in self.names:
            if name not in candidates:
                raise RequestError(f"placement.names: there is no layer '{name}'", nearest(name, tuple(candidates)))
            if name not in chosen:
                raise RequestError(
                    f"placement.names: kinds={list(self.kinds)}, part={self.part} and pattern={self.pattern} "
                    f"leave layer '{name}' out",
                    "drop the name, or widen placement.kinds, part or pattern",
                )
        return [name for name in chosen if name in self.names]

    def _key(self) -> str:
        if self.pattern is not None:
            return f"placement.pattern={self.pattern}"
        if self.names is not None:
            return f"placement.names={list(self.names)}"
        if self.roles is not None:
            return f"placement.roles={list(self.roles)}"
        return f"placement (kinds={list(self.kinds)}, part={self.part})"


def _kind(layer: nn.Module) -> str:
    return "conv" if isinstance(layer, nn.Conv2d) else "linear"


def _listing(candidates: dict[str, Candidate], limit: int = 12) -> str:
    names = list(candidates)
    return ", ".join(names[:limit]) + (f", ... ({len(names)} in all)" if len(names) > limit else "")
