"""Writes the comparison with published figures as a table, CSV, JSON, LaTeX or a section of the page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Group as Stack
from rich.table import Table
from rich.text import Text

from cl_runner.metrics.cost import NOT_APPLICABLE
from cl_runner.reports.against import Comparison, compare
from cl_runner.reports.collect import IDENTITY, Group
from cl_runner.reports.markup import Cell, Heading, escape, number, table, words
from cl_runner.reports.page import labels
from cl_runner.reports.tables import console_for, csv_text, escape_latex

COLUMNS = (
    *IDENTITY, "settings", "result", "metric", "task", "n", "mean", "std", "published", "difference", "far", "differs",
    "source", "table",
)  # fmt: skip
_PERCENT = ("share", "percent")


def records(groups: Sequence[Group], found: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Returns a row a figure, or a figure's task; accuracies in [0, 1], None = not measured."""
    rows = []
    for one in found:
        group = groups[one.group]
        row = {key: group.identity(key) for key in IDENTITY} | {"settings": group.settings}
        shown = ("metric", "task", "n", "mean", "std", "published", "difference", "far")
        row |= {"result": one.result.name, **{key: getattr(one, key) for key in shown}}
        rows.append(row | {"source": one.result.citation, "table": one.result.table, "differs": list(one.differs)})
    return rows


def as_csv(groups: Sequence[Group]) -> str:
    """Returns the records as CSV; `differs` is joined by semicolons."""
    rows = [{**row, "differs": "; ".join(row["differs"])} for row in records(groups, compare(groups))]
    return csv_text([{key: row[key] for key in COLUMNS} for row in rows], COLUMNS)


def as_json(groups: Sequence[Group]) -> str:
    """Returns the records as a JSON list, each with the folders of its runs and what the source says besides."""
    found = compare(groups)
    rows = [
        {
            **row,
            "folders": [str(run.folder) for run in groups[one.group].runs],
            "reference": {**one.result.source, "note": one.result.note, "quoted": dict(one.result.quoted)},
        }
        for row, one in zip(records(groups, found), found, strict=True)
    ]
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def as_latex(groups: Sequence[Group]) -> str:
    r"""Returns a LaTeX tabular of the figures of whole streams; needs ``\usepackage{booktabs}``."""
    names = labels(groups)
    lines = [r"\begin{tabular}{lllrrrr}", r"\toprule"]
    lines += [r"run & result & metric & $n$ & measured & published & difference \\", r"\midrule"]
    for one in compare(groups):
        if one.task is None:
            cells = [escape_latex(text) for text in (names[one.group], one.result.name, one.metric)]
            cells += [str(one.n), *(text.replace("±", r"$\pm$") for text in _numbers(one))]
            lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def show(groups: Sequence[Group], stream: TextIO) -> None:
    """Writes a table a published result, and below it which settings differ."""
    console, names = console_for(stream), labels(groups)
    parts: list[Table | Text] = []
    for found in _by_result(compare(groups)):
        at, result = found[0].group, found[0].result
        grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left")
        grid.title = Text(f"{names[at]}  beside  {result.name}\n{result.citation}: {result.table}")
        for name in ("metric", "n", "measured", "published", "difference", ""):
            grid.add_column(name, justify="left" if name in ("metric", "") else "right", no_wrap=True)
        for one in found:
            if one.task is None:
                grid.add_row(_metric(one), str(one.n), *_numbers(one), _mark(one))
        lines = [_tasks(found), f"differs: {', '.join(found[0].differs) or 'nothing that was published'}", result.note]
        parts += [grid, *(Text(line) for line in lines if line), Text()]
    console.print(Stack(*parts))


def as_markup(groups: Sequence[Group]) -> str:
    """Returns the section of the page."""
    found = [one for one in compare(groups) if one.task is None]
    names = labels(groups)
    title = '<h2 id="against">Beside published figures</h2>'
    if not found:
        return f'{title}<p class="soft">No group follows a published protocol.</p>'
    heads = ("run", "published result", "metric", "n", "measured", "published", "difference", "settings that differ")
    headings = [Heading(text, is_text=text in (*heads[:3], heads[-1])) for text in heads]
    rows = []
    for one in found:
        measured, printed, difference = _numbers(one)
        source = Cell(
            one.result.name, f"{one.result.citation}: {one.result.table}. {one.result.note}", None, "text wide"
        )
        mark = f"{difference} {_mark(one)}".strip()
        rows.append(
            [
                words(names[one.group], "text wide"),
                source,
                words(_metric(one)),
                number(one.n, str(one.n)),
                number(one.mean, measured),
                number(one.published, printed),
                number(one.difference, mark, classes="far" if one.far else ""),
                words(", ".join(one.differs) or "none", "text wide"),
            ]
        )
    hint = "A difference of more than 2 points, or a tenth of a count, is marked, above as below."
    return f'{title}<p class="soft">{escape(hint)}</p>{table(headings, rows, "against-table")}'


TEXT = {"csv": as_csv, "json": as_json, "latex": as_latex}


def _by_result(found: Sequence[Comparison]) -> list[list[Comparison]]:
    grouped: dict[tuple[int, str], list[Comparison]] = {}
    for one in found:
        grouped.setdefault((one.group, one.result.name), []).append(one)
    return list(grouped.values())


def _metric(one: Comparison) -> str:
    return f"{one.metric}, mean" if one.metric.endswith("_per_task") else one.metric


def _tasks(found: Sequence[Comparison]) -> str:
    """The differences task by task, in one line a metric."""
    lines = []
    for metric in dict.fromkeys(one.metric for one in found if one.task is not None):
        values = [_numbers(one)[2] for one in found if one.metric == metric and one.task is not None]
        lines.append(f"{metric}, difference per task: {' '.join(values)}")
    return "\n".join(lines)


def _numbers(one: Comparison) -> tuple[str, str, str]:
    """Measured with its spread, published, and the difference; accuracies in %."""
    scale = 100.0 if one.unit in _PERCENT else 1e-6 if one.unit == "millions" else 1.0
    digits = 3 if one.unit == "plain" else 2
    spread = "" if one.std is None else f" ± {scale * one.std:.{digits}f}"
    measured = NOT_APPLICABLE if one.mean is None else f"{scale * one.mean:.{digits}f}{spread}"
    difference = NOT_APPLICABLE if one.difference is None else f"{scale * one.difference:+.{digits}f}"
    return measured, f"{scale * one.published:.{digits}f}", difference


def _mark(one: Comparison) -> str:
    if not one.far or one.difference is None:
        return ""
    return "far above" if one.difference > 0 else "far below"
