"""Where the time of a run went, as the terminal shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from rich import box
from rich.table import Table

MEANS = {
    "start": "the process, Hydra, composing and checking",
    "imports": "torch, Avalanche and the rest",
    "building": "network, adapter, strategy",
    "data": "waiting for the next batch",
    "loss": "the criterion",
    "adapter": "the adapter's hooks",
    "hooks": "the plugins' hooks",
    "monitor": "sums, schedule, progress",
    "tasks": "beginning and ending tasks and epochs",
    "checkpoint": "keeping the run",
    "tracking": "events, tables, terminal",
    "report": "pictures and page",
    "other": "everything else",
}


def account_table(account: Mapping[str, Any]) -> Table:
    """A row a part: seconds, share of the whole, milliseconds a training step for what belongs to a step.

    Args:
        account: ``wall_seconds``, ``steps``, ``parts`` (seconds by name) and ``step_parts``, names.
    """
    wall, steps = account["wall_seconds"], account["steps"]
    title = f"where the time went ({steps:,} training steps)"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("part", "", "seconds", "share", "ms a step"):
        justify: Literal["left", "right"] = "left" if column in ("part", "") else "right"
        table.add_column(column, justify=justify, no_wrap=bool(column))  # words give way to figures
    for name, seconds in account["parts"].items():
        each = f"{1000 * seconds / steps:.3f}" if steps and name in account["step_parts"] else ""
        table.add_row(name, MEANS.get(name, ""), f"{seconds:.3f}", _share(seconds, wall), each)
    table.add_section()
    table.add_row("all", "", f"{wall:.3f}", _share(wall, wall), "")
    in_step = sum(account["parts"].get(name, 0.0) for name in account["step_parts"])
    if steps:
        table.add_row("a training step", "", f"{in_step:.3f}", _share(in_step, wall), f"{1000 * in_step / steps:.3f}")
    return table


def _share(seconds: float, wall: float) -> str:
    return f"{seconds / wall:.1%}" if wall > 0 else ""
