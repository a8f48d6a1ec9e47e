"""Writes a comparison of runs as a terminal table, CSV, JSON or LaTeX; not applicable is N/A or empty, never 0."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cl_runner.reports.collect import IDENTITY, Group
from cl_runner.reports.metrics import METRICS, known_metric, shown_metric, shown_spread

_USUAL = ("acc", "bwt", "forgetting", "growth", "seconds")
_OF_TEXTS = ("loss", "delta_loss", "last_task_loss", "adapter_parameters")
_SPREAD = (  # for more there is no room
    "acc", "learning_accuracy", "retention", "transfer", "average", "last", "loss", "delta_loss", "last_task_loss",
)  # fmt: skip
_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}  # other signs in LaTeX's first encoding
_LATEX |= {character: "\\" + character for character in "&%$#_{}"}


def records(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Returns a row a group: mean and sample standard deviation (`NAME_std`) of `METRICS`; None = not applicable.

    Accuracies are in [0, 1], growth is a ratio, memory is in bytes.
    """
    rows = []
    for group in groups:
        row: dict[str, Any] = {key: group.identity(key) for key in IDENTITY}
        row |= {"settings": group.settings, "seeds": len(group.runs)}
        for name, metric in METRICS.items():
            row |= {name: group.mean(metric.key), f"{name}_std": group.deviation(metric.key)}
        rows.append(row)
    return rows


def as_csv(groups: Sequence[Group]) -> str:
    """Returns the records as CSV; an empty cell is not applicable."""
    return csv_text(records(groups))


def csv_text(rows: Sequence[dict[str, Any]], columns: Sequence[str] | None = None) -> str:
    """Returns rows of the same keys as CSV, in the order of the columns where they are given; None is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(columns or rows[0]), lineterminator="\n")
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


def shown_columns(groups: Sequence[Group], asked: Sequence[str] = ()) -> list[str]:
    """Returns the metrics that a table shows: those asked for, else the usual ones and those that some groups have.

    These are retention and, of texts, the losses and the size of the adapters.
    """
    if asked:
        return list(asked)

    def measured(name: str) -> bool:
        return any(group.mean(METRICS[name].key) is not None for group in groups)

    texts = [name for name in _OF_TEXTS if measured("loss") and measured(name)]
    return [*_USUAL[:3], *(["retention"] if measured("retention") else []), *texts, *_USUAL[3:]]


def ordered(groups: Sequence[Group], name: str) -> list[Group]:
    """Returns the groups sorted by a metric, the best first and those that did not measure it last.

    Raises:
        RequestError: the name is no key of `METRICS`.
    """
    metric = known_metric(name)
    sign = 1 if metric.better < 0 else -1

    def place(group: Group) -> tuple[bool, float]:
        value = group.mean(metric.key)
        return value is None, 0.0 if value is None else sign * value

    return sorted(groups, key=place)


def as_latex(groups: Sequence[Group], asked: Sequence[str] = ()) -> str:
    r"""Returns a LaTeX tabular with mean \pm standard deviation and n; needs ``\usepackage{booktabs}``.

    The best mean of a column is bold among the groups of one benchmark: accuracies on different data do not compare.
    """
    texts, metrics = _texts(groups), shown_columns(groups, asked)
    best = _best(groups, metrics)
    heads = [escape_latex(name) for name in texts] + ["$n$"] + [escape_latex(METRICS[name].title) for name in metrics]
    lines = [rf"\begin{{tabular}}{{{'l' * len(texts)}{'r' * (1 + len(metrics))}}}", r"\toprule"]
    lines += [" & ".join(heads) + r" \\", r"\midrule"]
    for group in groups:
        cells = _cells(group, ())
        row = [escape_latex(cells[name]) for name in texts] + [str(len(group.runs))]
        row += [_latex_cell(group, name, best) for name in metrics]
        lines.append(" & ".join(row) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _latex_cell(group: Group, name: str, best: dict[tuple[str, str], str]) -> str:
    key = METRICS[name].key
    value, spread = group.mean(key), shown_spread(name, group.deviation(key))
    if value is None:
        return "--"
    text = shown_metric(name, value)
    shown = text.replace("-", "$-$") + (rf" $\pm$ {spread}" if spread else "")
    return rf"\textbf{{{shown}}}" if best.get((group.identity("benchmark"), name)) == text else shown


def _best(groups: Sequence[Group], metrics: Sequence[str]) -> dict[tuple[str, str], str]:
    """The best value of each metric on each benchmark, as it is shown: equal to the reader, equally bold."""
    best = {}
    for benchmark in {group.identity("benchmark") for group in groups}:
        rivals = [group for group in groups if group.identity("benchmark") == benchmark]
        for name in metrics:
            known = [value for group in rivals if (value := group.mean(METRICS[name].key)) is not None]
            if len(known) > 1:
                best[benchmark, name] = shown_metric(name, max(known) if METRICS[name].better > 0 else min(known))
    return best


def as_table(
    groups: Sequence[Group],
    *,
    joined: bool = False,
    others: Sequence[Mapping[str, Any]] = (),
    asked: Sequence[str] = (),
) -> Table:
    """Returns a table for the terminal; what all rows share stands above it instead of in a column.

    Args:
        groups: the rows.
        joined: put all text into one column that wraps, for narrow terminals.
        others: runs that are not done, each with what is known of it, its status and its error; they follow the groups
            and add a column with the status.
        asked: the metrics to show instead of the usual ones.
    """
    columns, metrics = _texts(groups), shown_columns(groups, asked)
    if others and "settings" not in columns:
        columns.append("settings")
    known = {name: {group.identity(name) for group in groups} for name in IDENTITY}
    for other in others:  # what is not known of a run sets it apart from no other one
        for name in IDENTITY:
            known[name] |= {other[name]} if other.get(name) else set()
    shared = [name for name in IDENTITY if len(groups) + len(others) > 1 and len(known[name]) <= 1]
    title = ", ".join(f"{name} {value}" for name in shared for value in known[name] if value)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=Text(title) if title else None, title_justify="left")
    table.collapse_padding = joined
    texts = [name for name in columns if name not in shared]
    for name in ["run"] if joined else texts:
        table.add_column(name, overflow="fold")
    for heading in ["seeds", *(METRICS[name].title for name in metrics)]:
        table.add_column(heading, justify="right", no_wrap=True)
    if others:
        table.add_column("status", no_wrap=True)
    rows = [(_cells(group, metrics), "done") for group in groups] + [
        (_as_words(other), str(other["status"])) for other in others
    ]
    for cells, status in rows:
        words = [cells.get(name, "") for name in texts]
        table.add_row(
            *([", ".join(word for word in words if word)] if joined else words),
            *(cells.get(name, "") for name in ["seeds", *metrics]),
            *([status] if others else []),
        )
    return table


def _as_words(other: Mapping[str, Any]) -> dict[str, str]:
    """A run that is not done: its error stands below its settings, where there is room for it."""
    words = {key: str(value) for key, value in other.items() if value is not None}
    return {**words, "settings": "\n".join(filter(None, (words.get("settings"), words.get("error"))))}


def show(
    groups: Sequence[Group], stream: TextIO, others: Sequence[Mapping[str, Any]] = (), asked: Sequence[str] = ()
) -> None:
    """Writes the table of :func:`as_table` to a stream, as wide as its terminal."""
    console = console_for(stream)
    table = as_table(groups, others=others, asked=asked)
    unlimited = console.options.update(max_width=10_000)
    if console.measure(table, options=unlimited).maximum > console.width:
        table = as_table(groups, joined=True, others=others, asked=asked)
    console.print(table)


def console_for(stream: TextIO) -> Console:
    """Returns a console that writes to a stream, without colours and 160 wide where it is no terminal."""
    terminal = stream.isatty()
    width = None if terminal else 160
    return Console(file=stream, width=width, force_terminal=terminal, markup=False, highlight=False, emoji=False)


def _texts(groups: Sequence[Group]) -> list[str]:
    return [*IDENTITY, *(["settings"] if any(group.settings for group in groups) else [])]


def _cells(group: Group, metrics: Sequence[str]) -> dict[str, str]:
    cells = {key: group.identity(key) for key in IDENTITY}
    cells |= {"settings": group.settings, "seeds": str(len(group.runs))}
    for name in metrics:
        key = METRICS[name].key
        spread = shown_spread(name, group.deviation(key)) if name in _SPREAD else ""
        cells[name] = shown_metric(name, group.mean(key)) + (f" ± {spread}" if spread else "")
    return cells


def escape_latex(text: str) -> str:
    """Returns text as LaTeX prints it, on one line."""
    line = " ".join("".join(one if one.isprintable() else " " for one in text).split())
    return "".join(_LATEX.get(character, character) for character in line)
