"""The accuracy matrix on a terminal, row by row, as wide as it is and with as many tasks as there are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.text import Text

_LABEL_WIDTH = 9
_SEEN_WIDTH = 8


@dataclass(frozen=True)
class MatrixView:
    """How the accuracy matrix fits the width: cell width, tasks a line, and whether columns carry names or numbers."""

    columns: list[str]
    cell: int
    per_line: int

    @classmethod
    def fit(cls, names: Sequence[str], width: int) -> MatrixView:
        """Chooses the widest cells that put all tasks on one line of ``width`` columns, wrapping only beyond that."""
        room = width - _LABEL_WIDTH - _SEEN_WIDTH
        numbers = [str(number) for number in range(1, len(names) + 1)]
        by_name = max(7, min(max(map(len, names)) + 2, 14))
        for columns, cell in ((list(names), by_name), (numbers, 7), (numbers, 5), (numbers, 4)):
            fits = cell * len(names) <= room
            cut = [shortened(name, cell - 2) for name in columns]
            if fits and len(set(cut)) == len(cut):  # names that are alike once cut would say nothing
                return cls(cut, cell, len(names))
        # too many: 3 columns each, in as many lines as that takes
        return cls(numbers, 3, max(room // 3, 1))

    def title(self, measure: str = "accuracy") -> list[Text]:
        """Returns what stands above the first row; ``measure`` is what the entries are called."""
        full = " (** = 100)" if self.cell == 3 else ""
        meaning = f"{measure} in %{full} after each task; last column: mean of the tasks seen"
        return [Text(meaning, style="bold"), *self._header()]

    def _header(self) -> list[Text]:
        lines = []
        for start in range(0, len(self.columns), self.per_line):
            text = Text(" " * _LABEL_WIDTH)
            for column in self.columns[start : start + self.per_line]:
                text.append(f"{column:>{self.cell - 1}} ", style="dim")
            lines.append(text)
        lines[-1].append(f"{'seen':>{_SEEN_WIDTH - 1}}", style="dim")
        return lines

    def row(self, after: int, accuracies: Sequence[float | None]) -> list[Text]:
        """Returns the row after ``after`` tasks: accuracies in [0, 1] or None; tasks to come are faint."""
        lines = []
        for start in range(0, len(accuracies), self.per_line):
            label = ("before" if after == 0 else f"after {after}") if start == 0 else ""
            text = Text(f"{label:<{_LABEL_WIDTH}}", style="bold")
            for column, value in enumerate(accuracies[start : start + self.per_line], start=start + 1):
                style = "dim" if value is None else _heat(value) if column <= after else "bright_black"
                text.append(f"{self._accuracy(value):>{self.cell - 1}} ", style=style)
            lines.append(text)
        seen = accuracies[:after]
        if seen and None not in seen:
            mean = sum(value for value in seen if value is not None) / len(seen)
            lines[-1].append(f"{100 * mean:>{_SEEN_WIDTH - 1}.1f}", style="bold")
        return lines

    def losses(self, after: int, losses: Sequence[float | None]) -> list[Text]:
        """Returns the losses (nats a token) after ``after`` tasks, to stand below their row, and their mean."""
        lines = []
        for start in range(0, len(losses), self.per_line):
            text = Text(f"{'  loss' if start == 0 else '':<{_LABEL_WIDTH}}", style="dim")
            for value in losses[start : start + self.per_line]:
                text.append(f"{self._loss(value, self.cell - 1):>{self.cell - 1}} ")
            lines.append(text)
        seen = [value for value in losses[:after] if value is not None]
        if seen and len(seen) == after:
            lines[-1].append(f"{self._loss(sum(seen) / len(seen), 6):>{_SEEN_WIDTH - 1}}")
        return lines

    @staticmethod
    def _loss(value: float | None, width: int) -> str:
        """As many decimals as there is room for, three at most."""
        if value is None:
            return "-"
        texts = (f"{value:.{decimals}f}" for decimals in (3, 2, 1, 0))
        return next((text for text in texts if len(text) <= width), "**")

    def _accuracy(self, value: float | None) -> str:
        if value is None:
            return "-"
        text = f"{100 * value:.{1 if self.cell >= 7 else 0}f}"
        return "**" if len(text) > self.cell - 1 else text


def probe_line(mean: float | None, before: float | None) -> Text:
    """Returns the line below a row: the mean accuracy in [0, 1] over the probe domains, and its change in points."""
    shown = "-" if mean is None else f"{100 * mean:.1f}"
    change = "" if mean is None or before is None else f"  {100 * (mean - before):+.1f}"
    return Text(f"{'  probes':<{_LABEL_WIDTH}}{shown}{change}", style="dim")


def _heat(accuracy: float) -> str:
    """Returns black on a colour from red (0) over yellow (0.5) to green (1), legible on light and dark terminals."""
    low, middle, high = (232, 116, 102), (238, 209, 110), (122, 193, 120)
    start, end, part = (low, middle, 2 * accuracy) if accuracy < 0.5 else (middle, high, 2 * accuracy - 1)
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(start, end, strict=True))
    return f"black on rgb({red},{green},{blue})"


def shortened(name: str, width: int) -> str:
    """Returns ``name`` cut to ``width`` characters in its middle, since names of tasks often differ at their end."""
    if len(name) <= width:
        return name
    kept = max(width - 2, 2)
    return name[: (kept + 1) // 2] + ".." + name[len(name) - kept // 2 :]
