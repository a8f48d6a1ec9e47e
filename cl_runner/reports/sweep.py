"""What a sweep leaves besides its cells: a table of them, and the figures that its experiment asks for."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import OmegaConf

from cl_runner.errors import RequestError
from cl_runner.reports.collect import Group, find_runs, group_runs
from cl_runner.reports.points import probe_table
from cl_runner.reports.tables import as_csv, csv_text, show


class SweepReport(Callback):
    """A Hydra callback that compares the cells of a multirun when the last one has ended.

    Below `<output_root>/sweeps/<experiment>/` it writes `table.csv` and, for each of `plots`, `plots/NAME.png`; `probe`
    comes with its numbers in `probe.csv`. Only cells of this multirun count, those done by an earlier one included.

    Args:
        plots: names of `cl-report --plot`.
        quiet: no line a cell and no table on the terminal.

    Raises:
        SystemExit: with 2, where a file cannot be written or a figure not be drawn; Hydra keeps all else to itself.
    """

    def __init__(self, *, plots: Sequence[str] = (), quiet: bool = False) -> None:
        self._plots = list(plots)
        self._quiet = quiet
        self._folders: list[Path] = []
        self._active = False
        self._typed: set[str] = set()

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Begins to listen: a run that is no sweep is not reported here."""
        self._active = True
        self._typed = {str(item).lower() for item in OmegaConf.to_container(config.hydra.overrides.task) or ()}

    def on_job_end(self, config: Any, job_return: Any, **_: Any) -> None:
        """Notes where a cell is, and says how it went."""
        if not self._active:
            return
        result = job_return._return_value  # the property raises what the cell raised, which Hydra does itself later
        folder, summary = getattr(result, "folder", None), getattr(result, "summary", {})
        if isinstance(folder, Path) and (folder / "summary.json").is_file() and folder not in self._folders:
            self._folders.append(folder)
        if not self._quiet:
            acc = summary.get("acc")
            outcome = "not done" if folder is None else "" if acc is None else f"acc {100 * acc:.2f} %"
            cell = " ".join(item for item in map(str, job_return.overrides or ()) if item.lower() not in self._typed)
            sys.stdout.write(f"cell {config.hydra.job.num + 1}: {cell}  {outcome}".rstrip() + "\n")
            sys.stdout.flush()

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        """Writes the table and the figures of every experiment that was swept."""
        try:
            for place in dict.fromkeys(folder.parent for folder in self._folders):
                self._report(place, [folder for folder in self._folders if folder.parent == place])
        except RequestError as error:
            sys.stderr.write(f"cl-run: the sweep's report: {error.message}\n")
            if error.hint:
                sys.stderr.write(f"        {error.hint}\n")
            raise SystemExit(2) from error

    def _report(self, place: Path, folders: list[Path]) -> None:
        runs, problems = find_runs(folders)
        groups, left_out = group_runs(runs)
        written = [_write(place / "table.csv", as_csv(groups))] if groups else []
        if not self._quiet and groups:
            show(groups, sys.stdout)
        if "probe" in self._plots and groups:
            written.append(_write(place / "probe.csv", csv_text(probe_table(groups))))
        for name in self._plots if groups else ():
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

        if name not in PLOTS:
            raise RequestError(f"there is no plot '{name}'", f"one of: {', '.join(PLOTS)}")
        return PLOTS[name](groups, path), path


def _write(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from error
    return path
