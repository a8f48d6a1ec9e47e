"""HTML that all pages share. Whatever came from data is escaped here, in one place."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from cl_runner.metrics.cost import NOT_APPLICABLE


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, a fainter remark, what it is sorted by, and its CSS classes."""

    text: str
    remark: str = ""
    value: float | str | None = None
    classes: str = ""

    def html(self) -> str:
        """Returns the element."""
        remark = f" <small>{escape(self.remark)}</small>" if self.remark else ""
        names = f' class="{self.classes}"' if self.classes else ""
        value = "" if self.value is None else f' data-v="{escape(str(self.value))}"'
        return f"<td{names}{value}>{escape(self.text)}{remark}</td>"


@dataclass(frozen=True)
class Heading:
    """The head of a column: its text, an explanation on hover, whether it holds text, whether a click sorts by it."""

    text: str
    hint: str = ""
    is_text: bool = False
    sorts: bool = False

    def html(self) -> str:
        """Returns the element."""
        names = " ".join(word for word, said in (("text", self.is_text), ("sorts", self.sorts)) if said)
        attributes = f' class="{names}"' if names else ""
        attributes += f' title="{escape(self.hint)}"' if self.hint else ""
        attributes += ' tabindex="0"' if self.sorts else ""
        return f"<th{attributes}>{escape(self.text)}</th>"


def escape(text: str) -> str:
    """Returns text as it may stand in an element or in an attribute."""
    return html.escape(text, quote=True)


def words(text: str, classes: str = "text") -> Cell:
    """Returns a cell of text, sorted as it reads."""
    return Cell(text, value=text, classes=classes)


def number(value: float | None, text: str, remark: str = "", classes: str = "") -> Cell:
    """Returns a cell of a number; what is not applicable says so and is sorted last."""
    if value is None:
        return Cell(NOT_APPLICABLE, classes="na")
    return Cell(text, remark, value, classes)


def table(
    headings: Sequence[Heading], rows: Sequence[Sequence[Cell]], name: str = "", ids: Sequence[int] | None = None
) -> str:
    """Returns a table; `ids` number its rows."""
    head = "".join(one.html() for one in headings)
    numbers = [""] * len(rows) if ids is None else [f' data-id="{one}"' for one in ids]
    body = "\n".join(
        f"<tr{mark}>{''.join(cell.html() for cell in row)}</tr>" for mark, row in zip(numbers, rows, strict=True)
    )
    identity = f' id="{name}"' if name else ""
    return (
        f'<div class="scroll"><table{identity}><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def chips(pairs: Sequence[tuple[str, str]]) -> str:
    """Returns a line of names and values; empty values are left out."""
    items = (f"<li><b>{escape(name)}</b>{escape(value)}</li>" for name, value in pairs if value)
    return f'<ul class="chips">{"".join(items)}</ul>'


def figure(name: str, title: str, content: str) -> str:
    """Returns a picture with its title and the buttons that save it; `content` is markup."""
    buttons = "".join(f'<button data-form="{form}">{form.upper()}</button>' for form in ("svg", "png"))
    caption = f"<figcaption><span>{escape(title)}</span>{buttons}</figcaption>"
    return f'<figure class="card" id="{escape(name)}">{caption}{content}</figure>'


def page(title: str, body: str, scripts: Sequence[str]) -> str:
    """Returns a whole page that loads nothing; `body` is markup, `scripts` are elements."""
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{asset('report.css')}</style>",
            "</head><body>",
            body,
            *scripts,
            "</body></html>",
            "",
        ]
    )


def script(code: str, **attributes: str) -> str:
    """Returns a script element; `code` is ours, or holds nothing that could end the element."""
    marks = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
    return f"<script{marks}>{code}</script>"


def asset(name: str) -> str:
    """Returns a file that ships beside this module."""
    return (files("cl_runner.reports") / "assets" / name).read_text(encoding="utf-8")


def percent(value: Any, sign: str = "") -> str:
    """Returns a share as a percentage with two decimals."""
    return NOT_APPLICABLE if value is None else f"{100 * value:{sign}.2f}"
