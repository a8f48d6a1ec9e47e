"""Whether a rank fits the layers that it is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from cl_runner.adapters.layers import Site, full_rank, kind_of
from cl_runner.errors import RequestError

CONV_KEY, LINEAR_KEY = "adapter.rank", "adapter.linear_rank"


def rank_of(layer: nn.Module, rank: int, linear_rank: int | None) -> int:
    """The rank for a layer: `linear_rank` on linear layers where it is given, else `rank`."""
    return linear_rank if linear_rank is not None and kind_of(layer) == "linear" else rank


def check_ranks(
    sites: Mapping[str, Site], rank: int, linear_rank: int | None, own_rank: Callable[[Site], int]
) -> list[str]:
    """Refuses a rank above the full rank of every layer that it is for; equality is allowed.

    Args:
        sites: the placed layers by name.
        rank, linear_rank: as configured.
        own_rank: the rank from which the method's delta on a layer is no longer low-rank.

    Returns:
        A sentence for each key whose rank exceeds some of its layers.
    """
    groups: dict[str, dict[str, Site]] = {}
    for name, site in sites.items():
        own = linear_rank is not None and kind_of(site) == "linear"
        groups.setdefault(LINEAR_KEY if own else CONV_KEY, {})[name] = site
    notes = []
    for key, group in groups.items():
        wanted = rank_of(next(iter(group.values())), rank, linear_rank)
        largest = max(full_rank(site) for site in group.values())
        if wanted > largest:
            kinds = " and ".join(sorted({kind_of(site) for site in group.values()}))
            raise RequestError(
                f"{key}={wanted} exceeds the full rank of every placed {kinds} layer", f"at most {largest} here"
            )
        limits = {name: min(full_rank(site), own_rank(site)) for name, site in group.items()}
        small = [f"{name} ({limit})" for name, limit in limits.items() if wanted > limit]
        if small:
            notes.append(f"{key}={wanted} is not low-rank for {', '.join(small)}")
    return notes
