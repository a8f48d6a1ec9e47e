"""What a sweep leaves besides its cells: a table of them, and the figures that its experiment asks for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import OmegaConf

from cl_runner.errors import RequestError
from cl_runner.reports.collect import IDENTITY, Group, find_runs, group_runs
from cl_runner.reports.metrics import known_metric
from cl_runner.reports.retention import NUMBERS
from cl_runner.reports.tables import csv_text, records, show
from cl_runner.result import Outcome


class SweepReport(Callback):
    """A Hydra callback that compares the cells of a multirun when the last one has ended.

    Below `<output_root>/sweeps/<experiment>/` it writes `table.csv` and, for each of `plots`, `plots/NAME.png`;
    `probe`, `retention` and `rank_loss` come with their numbers in `NAME.csv`. Only cells of this multirun count, those
    done by an earlier one included. A row is what differs in nothing but the seed; a cell that did not end well has a
    row of its own, with its error.

    Attributes:
        cells: how the cells ended, in their order; the launcher fills it.

    Args:
        plots: names of `cl-report --plot`.
        columns: metrics of the table on the terminal, as in `cl-report --columns`; by default the usual ones.
        quiet: no line a cell and no table on the terminal.
    """

    def __init__(self, *, plots: Sequence[str] = (), columns: Sequence[str] = (), quiet: bool = False) -> None:
        self.cells: list[Outcome] = []
        self._plots, self._columns = list(plots), list(columns)
        self._quiet = quiet
        self._active = False
        self._typed: set[str] = set()

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Begins to listen: a run that is no sweep is not reported here."""
        self._active = True
        self._typed = {str(item).lower() for item in OmegaConf.to_container(config.hydra.overrides.task) or ()}

    def on_job_end(self, config: Any, job_return: Any, **_: Any) -> None:
        """Says how a cell went, in the process that ran it."""
        result = job_return._return_value  # the property raises what kept the cell from beginning
        if self._active and isinstance(result, Outcome):
            self.told(int(config.hydra.job.env_set.get("CL_RUN_CELL", config.hydra.job.num)), result)

    def told(self, number: int, ended: Outcome) -> None:
        """Writes the line of a cell, counted from 0, that has ended."""
        if self._quiet:
            return
        acc = ended.summary.get("acc")
        outcome = "not done" if ended.code else "" if acc is None else f"acc {100 * acc:.2f} %"
        if ended.skipped:
            outcome += f"  {ended.folder} is done; skipped"
        cell = " ".join(item for item in ended.typed if item.lower() not in self._typed)
        sys.stdout.write(f"cell {number + 1}: {cell}  {outcome}".rstrip() + "\n")
        sys.stdout.flush()

    def finish(self) -> None:
        """Writes the table and the figures of every experiment that was swept.

        Raises:
            RequestError: a file cannot be written, a figure not be drawn, or there is no such column.
        """
        for name in self._columns:
            known_metric(name)
        for place in dict.fromkeys(ended.sweep for ended in self.cells):
            if place is not None:
                self._report(place, [ended for ended in self.cells if ended.sweep == place])

    def _report(self, place: Path, cells: Sequence[Outcome]) -> None:
        folders = dict.fromkeys(ended.folder for ended in cells if ended.status == "done" and ended.folder is not None)
        runs, problems = find_runs(folders)
        groups, left_out = group_runs(runs)
        everywhere = set.intersection(*(set(ended.typed) for ended in cells)) if len(cells) > 1 else set()
        others = [_other(ended, place, everywhere) for ended in cells if ended.status != "done"]
        if others:
            groups = [_set_apart(group, everywhere) for group in groups]
        if not self._quiet and (groups or len(others) > 1):
            show(groups, sys.stdout, others, self._columns)
        written = []
        rows = [{**record, "status": "done", "error": None} for record in records(groups)]
        if rows or any(ended.folder is not None and ended.folder.exists() for ended in cells if ended.code):
            columns = list(rows[0] if rows else others[0])
            rows += [{**dict.fromkeys(columns), **row} for row in others]
            written.append(_write(place / "table.csv", csv_text(rows)))
        for name in self._plots if groups else ():
            if numbers := NUMBERS[name](groups) if name in NUMBERS else []:
                written.append(_write(place / f"{name}.csv", csv_text(numbers)))
            more, picture = self._draw(name, groups, place / "plots" / f"{name}.png")
            left_out += more
            written.append(picture)
        for problem in [*problems, *left_out]:
            sys.stderr.write(f"cl-run: {problem}\n")
        if not self._quiet:
            sys.stdout.writelines(f"{file}\n" for file in written)

    @staticmethod
    def _draw(name: str, groups: Sequence[Group], path: Path) -> tuple[list[str], Path]:
        from cl_runner.reports.figures import PLOTS
        from cl_runner.reports.run_figures import PICTURES, draw

        if name in PICTURES:
            return draw(name, groups, path), path
        if name not in PLOTS:
            raise RequestError(f"there is no plot '{name}'", f"one of: {', '.join([*PLOTS, *PICTURES])}")
        return PLOTS[name](groups, path), path


def _other(ended: Outcome, place: Path, everywhere: set[str]) -> dict[str, Any]:
    """The row of a cell that did not end well: what sets it apart, and why."""
    runs, _ = find_runs([ended.folder] if ended.folder is not None else [])
    summary = runs[0].summary if runs else {}
    return {
        **{key: summary.get(key) for key in IDENTITY},
        "experiment": place.name,
        "settings": " ".join(item for item in ended.typed if item not in everywhere),
        "status": ended.status,
        "error": ended.error,
    }


def _set_apart(group: Group, everywhere: set[str]) -> Group:
    """The group with what was typed for it and not for cells that did not end well."""
    typed = [item for item in group.runs[0].typed or () if item not in everywhere]
    return group if group.settings else replace(group, settings=" ".join(typed))


def _write(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from error
    return path
