"""What `mode=plan` shows: tasks, parameters, layers of one task, and the arithmetic of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import RenderableType
from rich.table import Table

from cl_runner.metrics.cost import NOT_APPLICABLE, format_flops
from cl_runner.recording.matrix_view import shortened

COUNTS = ("trainable", "adapter", "normalisation", "head", "stored", "inference")


def plan_tables(
    tasks: Sequence[Mapping[str, Any]],
    parameters: Sequence[Mapping[str, Any]],
    layers: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> list[RenderableType]:
    """The tables of a plan, from the rows that go to its files; the summary's ``unit`` is "images" or "texts"."""
    return [_tasks(tasks, _unit(summary) == "image"), _parameters(parameters), *_layers(layers), _totals(summary)]


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="left" if column in ("task", "layer", "kind", "shape", "classes") else "right")
    return table


def _tasks(tasks: Sequence[Mapping[str, Any]], classified: bool) -> Table:
    columns = ["classes"] if classified else []
    table = _table("tasks (sizes as the dataset's totals promise)", "task", *columns, "train", "test")
    for task in tasks:
        names = shortened(", ".join(task["classes"]), 40) or "named by the data"
        shown = [f"{task['n_classes']}: {names}"] if classified else []
        table.add_row(task["name"], *shown, _number(task["train"] or None), _number(task["test"] or None))
    return table


def _parameters(rows: Sequence[Mapping[str, Any]]) -> Table:
    base = rows[0]["base"]
    table = _table(f"parameters after each task (base without classifier: {base:,})", "task", *COUNTS, "growth")
    for row in rows:
        table.add_row(str(row["task"]), *(f"{row[name]:,}" for name in COUNTS), f"{row['growth']:+.2%}")
    return table


def _layers(rows: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    if not rows:
        return []
    last = [row for row in rows if row["task"] == rows[-1]["task"]]
    table = _table(f"adapted layers of task {rows[-1]['task']}", "layer", "kind", "shape", "rank", "parameters")
    for row in last:
        shape = "x".join(map(str, row["shape"]))
        table.add_row(row["name"], row["kind"], shape, _number(row["rank"]), f"{row['parameters']:,}")
    table.add_section()
    table.add_row("all", "", "", "", f"{sum(row['parameters'] for row in last):,}")
    return [table]


def _totals(summary: Mapping[str, Any]) -> str:
    unit = _unit(summary)
    one = f"an {unit}" if unit == "image" else f"a {unit}"
    if summary["forward_flops_per_image"] is None:
        return f"forward pass, training: {NOT_APPLICABLE} (the operations of this network cannot be counted)"
    forward = format_flops(summary["forward_flops_per_image"])
    if summary["training_flops"] is None:
        return f"forward pass: {forward} {one}; training: {NOT_APPLICABLE} (the size of the data is not known)"
    if not summary["training_images"]:
        return f"forward pass: {forward} {one}; nothing is trained by gradient descent"
    passes = f"3 x {forward} {one} (forward and backward)" if summary["passes"] == 3 else f"{forward} {one} (forward)"
    prompts = summary["prompt_flops"]
    return (
        f"training: {format_flops(summary['training_flops'])} = {passes} "
        f"x {summary['training_images']:,} {unit}s"
        + (f" + {format_flops(prompts)} for prompts, 16 tokens each" if prompts else "")
    )


def _unit(summary: Mapping[str, Any]) -> str:
    """What one sample is."""
    return str(summary.get("unit") or "images").removesuffix("s")


def _number(value: Any) -> str:
    return NOT_APPLICABLE if value is None else f"{value:,}"
