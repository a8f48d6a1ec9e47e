"""The closing table of a run: what it reached, what that cost, and what became of its probe domains."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.table import Table

from cl_runner.metrics.cost import NOT_APPLICABLE, format_bytes, format_count, format_seconds
from cl_runner.recording.matrix_view import shortened

Probed = tuple[str, float | None, float | None]
"""A probe domain, its accuracy in [0, 1] before any training and after the last task; None = not evaluated."""
_NAME_WIDTH = 20


@dataclass(frozen=True)
class Closing:
    """What a run ends with.

    Attributes:
        summary: what `summary.json` holds.
        parameters: the rows of `parameters.csv`.
        probes: its probe domains.
        unit: what a batch is made of, in the plural.
        measure: what the entries of the accuracy matrix are called.
    """

    summary: Mapping[str, Any]
    parameters: Sequence[Mapping[str, Any]]
    probes: Sequence[Probed] = ()
    unit: str = "images"
    measure: str = "accuracy"

    def lines(self) -> list[str]:
        """Returns plain lines, a figure each."""
        figures = [*self._outcomes(), *self._costs(), *_kept(self.probes)]
        return [f"  {name:<{_NAME_WIDTH}} {value}" for name, value in figures]

    def table(self, title: str) -> Table:
        """Returns the table: outcomes left, costs right, below them the probe domains, two a row."""
        table = Table(box=box.ROUNDED, show_header=False, title=title, title_style="bold", border_style="cyan")
        for style in ("", "bold", "", "bold"):
            table.add_column(style=style, justify="right" if style else "left", no_wrap=True)
        outcomes, costs, kept = self._outcomes(), self._costs(), _kept(self.probes)
        length = max(len(outcomes), len(costs))
        for left, right in zip(_filled(outcomes, length), _filled(costs, length), strict=True):
            table.add_row(*left, *right)
        if kept:
            table.add_section()
            for at in range(0, len(kept), 2):
                left, right = _filled(kept[at : at + 2], 2)
                table.add_row(*left, *right)
        return table

    def _outcomes(self) -> list[tuple[str, str]]:
        summary = self.summary
        rows: list[tuple[str, str, Callable[[Any], str]]] = [  # those that most runs do not have
            ("task recognised", "task_inference_accuracy", percent),
            ("loss", "loss", "{:.4f}".format),
            ("change of loss", "delta_loss", "{:+.4f}".format),
            ("loss of last task", "last_task_loss", "{:.4f}".format),
            ("retention", "retention", "{:.4f}".format),
        ]
        return [
            (self.measure, percent(summary.get("acc"))),
            (f"learning {self.measure.rpartition(' ')[2]}", percent(summary.get("learning_accuracy"))),
            ("backward transfer", _points(summary.get("bwt"))),
            ("forward transfer", _points(summary.get("fwt"))),
            ("forgetting", _points(summary.get("forgetting"), sign="")),
            *((name, shown(summary[key])) for name, key, shown in rows if summary.get(key) is not None),
        ]

    def _costs(self) -> list[tuple[str, str]]:
        summary, last = self.summary, self.parameters[-1] if self.parameters else {}

        def cost(key: str, column: str) -> Any:
            return last.get(column) if summary.get(key) is None else summary.get(key)

        growth, speed = cost("parameter_growth", "growth"), summary.get("train_images_per_second")
        return [
            ("parameter growth", NOT_APPLICABLE if growth is None else f"{100 * growth:+.2f} %"),
            ("trainable", format_count(cost("trainable_parameters", "trainable"))),
            ("stored", format_count(cost("stored_parameters", "stored"))),
            ("time", format_seconds(summary.get("wall_seconds"))),
            ("training speed", NOT_APPLICABLE if speed is None else f"{speed:,.0f} {self.unit}/s"),
            ("peak memory", format_bytes(summary.get("peak_memory_bytes"))),
        ]


def number(value: float | None) -> str:
    """Returns a plain number, short."""
    return NOT_APPLICABLE if value is None else f"{value:.4g}"


def percent(value: float | None) -> str:
    """Returns a share in %."""
    return NOT_APPLICABLE if value is None else f"{100 * value:.2f} %"


def _points(value: float | None, sign: str = "+") -> str:
    return NOT_APPLICABLE if value is None else f"{100 * value:{sign}.2f} points"


def _filled(pairs: Sequence[tuple[str, str]], length: int) -> list[tuple[str, str]]:
    return [*pairs, *[("", "")] * (length - len(pairs))]


def _kept(probes: Sequence[Probed]) -> list[tuple[str, str]]:
    """Each probe domain: before -> after."""
    return [
        (shortened(f"probe {name}", _NAME_WIDTH), f"{_bare(before)} -> {percent(after)}")
        for name, before, after in probes
    ]


def _bare(value: float | None) -> str:
    return percent(value).removesuffix(" %")
