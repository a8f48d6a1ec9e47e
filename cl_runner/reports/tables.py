"""Writes a comparison of runs as a terminal table, CSV, JSON or LaTeX; not applicable is N/A or empty, never 0."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cl_runner.metrics.cost import NOT_APPLICABLE
from cl_runner.reports.collect import IDENTITY, Group

_FIGURES = ("seeds", "acc", "bwt", "forgetting", "growth", "seconds")
_HEADINGS = {"acc": "acc %", "growth": "growth %"}
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {character: "\\" + character for character in "&%$#_{}"}


def records(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Returns a row a group: accuracies in [0, 1], growth as a ratio, seconds; None = not applicable."""
    return [
        {
            **{key: group.identity(key) for key in IDENTITY},
            "settings": group.settings,
            "seeds": len(group.runs),
            "acc": group.mean("acc"),
            "acc_std": group.deviation("acc"),
            "bwt": group.mean("bwt"),
            "forgetting": group.mean("forgetting"),
            "growth": group.mean("parameter_growth"),
            "seconds": group.mean("wall_seconds"),
        }
        for group in groups
    ]


def as_csv(groups: Sequence[Group]) -> str:
    """Returns the records as CSV; an empty cell is not applicable."""
    return csv_text(records(groups))


def csv_text(rows: Sequence[dict[str, Any]]) -> str:
    """Returns rows of the same keys as CSV; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(groups: Sequence[Group]) -> str:
    """Returns the records as a JSON list, each with the folders of its runs."""
    rows = [
        {**record, "folders": [str(run.folder) for run in group.runs]}
        for record, group in zip(records(groups), groups, strict=True)
    ]
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def as_latex(groups: Sequence[Group]) -> str:
    r"""Returns a LaTeX tabular; needs ``\usepackage{booktabs}``."""
    columns = _columns(groups)
    names = "".join("l" if name not in _FIGURES else "r" for name in columns)
    lines = [rf"\begin{{tabular}}{{{names}}}", r"\toprule"]
    lines.append(" & ".join(_escaped(_HEADINGS.get(name, name)) for name in columns) + r" \\")
    lines.append(r"\midrule")
    for group in groups:
        cells = _cells(group)
        lines.append(" & ".join(_escaped(cells[name]).replace("±", r"$\pm$") for name in columns) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def as_table(groups: Sequence[Group], *, joined: bool = False) -> Table:
    """Returns a table for the terminal; what all rows share stands above it instead of in a column.

    Args:
        groups: the rows.
        joined: put all text into one column that wraps, for narrow terminals.
    """
    columns = _columns(groups)
    shared = [name for name in IDENTITY if len(groups) > 1 and len({group.identity(name) for group in groups}) == 1]
    title = ", ".join(f"{name} {groups[0].identity(name)}" for name in shared if groups[0].identity(name))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(title) if title else None, title_justify="left")
    table.collapse_padding = joined
    texts = [name for name in columns if name not in shared and name not in _FIGURES]
    for name in ["run"] if joined else texts:
        table.add_column(name, overflow="fold")
    for name in _FIGURES:
        table.add_column(_HEADINGS.get(name, name), justify="right", no_wrap=True)
    for group in groups:
        cells = _cells(group)
        words = [cells[name] for name in texts]
        table.add_row(
            *([", ".join(word for word in words if word)] if joined else words), *(cells[name] for name in _FIGURES)
        )
    return table


def show(groups: Sequence[Group], stream: TextIO) -> None:
    """Writes the table of :func:`as_table` to a stream, as wide as its terminal."""
    terminal = stream.isatty()
    console = Console(
        file=stream,
        width=None if terminal else 160,
        force_terminal=terminal,
        markup=False,
        highlight=False,
        emoji=False,
    )
    table = as_table(groups)
    unlimited = console.options.update(max_width=10_000)
    if console.measure(table, options=unlimited).maximum > console.width:
        table = as_table(groups, joined=True)
    console.print(table)


def _columns(groups: Sequence[Group]) -> list[str]:
    settings = ["settings"] if any(group.settings for group in groups) else []
    return [*IDENTITY, *settings, *_FIGURES]


def _cells(group: Group) -> dict[str, str]:
    deviation, seconds = group.deviation("acc"), group.mean("wall_seconds")
    spread = "" if deviation is None else f" ± {100 * deviation:.2f}"
    return {
        **{key: group.identity(key) for key in IDENTITY},
        "settings": group.settings,
        "seeds": str(len(group.runs)),
        "acc": _hundredths(group.mean("acc")) + spread,
        "bwt": _hundredths(group.mean("bwt"), "+"),
        "forgetting": _hundredths(group.mean("forgetting")),
        "growth": _hundredths(group.mean("parameter_growth"), "+"),
        "seconds": NOT_APPLICABLE if seconds is None else f"{seconds:.{1 if seconds < 100 else 0}f}",
    }


def _hundredths(value: float | None, sign: str = "") -> str:
    return NOT_APPLICABLE if value is None else f"{100 * value:{sign}.2f}"


def _escaped(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)
