"""The ways of running frozen cells through one of Hydra's launchers, and of finding out how each one ended."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.plugins.launcher import Launcher

from cl_runner.cells import finished, summary_of
from cl_runner.launchers.ticket import Ticket
from cl_runner.recording.lock import holder
from cl_runner.recording.run_folder import RunFolder
from cl_runner.result import Outcome

GRACE = 20.0  # seconds that cells in other processes get to write that they were interrupted


@dataclass(eq=False)
class Cell:
    """A cell of a sweep on its way.

    Attributes:
        number: its place in the sweep, from 0.
        typed: its overrides.
        text: the cell, frozen.
        folder: its run folder; None for a plan.
        sweep: the folder of the sweep; None for a plan.
        outcome: how it ended; None until it has.
    """

    number: int
    typed: tuple[str, ...]
    text: str
    folder: Path | None = None
    sweep: Path | None = None
    outcome: Outcome | None = None


class Engine:
    """Hands all cells to the launcher at once (Slurm, Ray), and takes what it gives back.

    Args:
        launcher: one of Hydra's, set up.
        ticket: the sweep.
    """

    stops_cells = True

    def __init__(self, launcher: Launcher, ticket: Ticket) -> None:
        self._launcher, self._ticket = launcher, ticket
        self._began = time.time()

    def run(self, cells: Sequence[Cell]) -> None:
        """Runs cells until each has an outcome, but for those that were not to begin any more.

        Raises:
            KeyboardInterrupt: the sweep was interrupted; cells have the outcomes that are known.
        """
        self._began = time.time() - 1  # file systems count coarser than clocks
        try:
            self._run(cells)
        except KeyboardInterrupt:
            self._interrupt(cells)
            raise

    def _run(self, cells: Sequence[Cell]) -> None:
        try:
            self._launch(cells)
        except Exception as error:
            for cell in cells:
                self._lost(cell, error)

    def _launch(self, cells: Sequence[Cell]) -> None:
        """Lets the launcher run cells; raises what it raises where it lost one."""
        returned = self._launcher.launch([[cell.text] for cell in cells], initial_job_idx=cells[0].number)
        for cell, answer in zip(cells, returned, strict=True):
            value = answer._return_value
            if isinstance(value, BaseException):  # not what the run raised, but what kept it from beginning
                self._lost(cell, value)
            elif value is not None:
                cell.outcome = replace(value, typed=cell.typed, folder=cell.folder or value.folder, sweep=cell.sweep)

    def _lost(self, cell: Cell, error: BaseException) -> None:
        """Finds out how a cell ended whose process gave no answer."""
        if cell.outcome is not None or self._found(cell):
            return
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        other = holder(cell.folder) if cell.folder is not None else None
        if other is not None:
            who = f"process {other.get('pid')} on {other.get('host')} is still at it"
            cell.outcome = Outcome("interrupted", cell.typed, cell.folder, cell.sweep, f"{who}; {why}")
            return
        cell.outcome = Outcome("failed", cell.typed, cell.folder, cell.sweep, f"its process ended: {why}")
        if cell.folder is not None and (cell.folder / "config.yaml").exists():
            summary = summary_of(cell.folder)
            RunFolder(cell.folder).write_summary({**summary, "status": "failed", "error": cell.outcome.error})

    def _found(self, cell: Cell) -> bool:
        """Takes a cell's outcome from its folder, if this sweep left one there."""
        if cell.folder is None:
            return False
        done = finished(cell.folder)
        if done is not None:
            cell.outcome = Outcome("done", cell.typed, cell.folder, cell.sweep, summary=done)
            return True
        summary = summary_of(cell.folder)
        status = summary.get("status")
        if status in ("failed", "interrupted") and (cell.folder / "summary.json").stat().st_mtime >= self._began:
            message = str(summary.get("error") or "")
            cell.outcome = Outcome(status, cell.typed, cell.folder, cell.sweep, message, summary)
            return True
        return False

    def _begun(self, cell: Cell) -> bool:
        place = None if cell.folder is None else cell.folder / "config.yaml"
        return place is not None and place.exists() and place.stat().st_mtime >= self._began

    def _interrupt(self, cells: Sequence[Cell]) -> None:
        """Ends what still runs, as far as that is on this machine, and notes how far each cell came."""
        if self.stops_cells:
            self._ticket.halt()
            self._signal(cells)
        for cell in cells:
            if cell.outcome is None and not self._found(cell) and self._begun(cell):
                cell.outcome = Outcome("interrupted", cell.typed, cell.folder, cell.sweep, "interrupted")

    def _signal(self, cells: Sequence[Cell]) -> None:
        """Asks the processes of this sweep on this machine to stop, and waits until they have."""
        asked: set[int] = set()
        deadline = time.monotonic() + GRACE
        while time.monotonic() < deadline:
            at_work = set()
            for cell in cells:
                other = holder(cell.folder) if cell.folder is not None and cell.outcome is None else None
                if other and other.get("host") == socket.gethostname() and self._ours(other):
                    at_work.add(int(other["pid"]))
            for pid in at_work - asked:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            asked |= at_work
            if not at_work:
                return
            time.sleep(0.1)

    def _ours(self, other: dict[str, Any]) -> bool:
        return other.get("pid") != os.getpid() and Path(self._ticket.stop).name in str(other.get("sweep"))


class InThisProcess(Engine):
    """One cell after another, here: Hydra's basic launcher."""

    def _run(self, cells: Sequence[Cell]) -> None:
        for cell in cells:
            self._launch([cell])
            if cell.outcome is None:  # an earlier one did not end well, and there is to be no further one
                return
            if cell.outcome.status == "interrupted":
                raise KeyboardInterrupt


class Pool(Engine):
    """Processes that take one cell after another: joblib.

    Where one of them is killed (out of memory, say) joblib gives up all of them. What had begun is then tried once
    more, each cell alone, so that the one that brings its process down is the only one that fails; the others go on.
    """

    def _run(self, cells: Sequence[Cell]) -> None:
        left = list(cells)
        while left:
            try:
                self._launch(left)
                return
            except Exception as error:
                open_ = [cell for cell in left if cell.outcome is None and not self._found(cell)]
                begun = [cell for cell in open_ if self._begun(cell)]
                for cell in begun:
                    self._alone(cell)
                left = [cell for cell in open_ if cell not in begun]
                if not begun:  # it was not a cell that did this
                    for cell in left:
                        self._lost(cell, error)
                    return

    def _alone(self, cell: Cell) -> None:
        try:
            self._launch([cell])
        except Exception as error:
            self._lost(cell, error)


class Jobs(Engine):
    """A process a cell, as many at a time as there are cores: submitit on this machine, which alone would start all."""

    def _run(self, cells: Sequence[Cell]) -> None:
        pool = ThreadPoolExecutor(max_workers=min(len(cells), os.cpu_count() or 1))
        try:
            waiting = {pool.submit(self._launch, [cell]): cell for cell in cells}
            for future in as_completed(waiting):
                error = future.exception()
                if error is not None:
                    self._lost(waiting[future], error)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        pool.shutdown()


class Queue(Engine):
    """Jobs that wait for a machine and outlive this process: Slurm."""

    stops_cells = False


def engine_of(launcher: Launcher, target: str, ticket: Ticket) -> Engine:
    """Returns how cells go through a launcher."""
    if isinstance(launcher, BasicLauncher):
        return InThisProcess(launcher, ticket)
    kinds = {"JoblibLauncher": Pool, "LocalLauncher": Jobs, "SlurmLauncher": Queue}
    return kinds.get(target.rpartition(".")[2], Engine)(launcher, ticket)
