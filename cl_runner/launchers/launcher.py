"""Between Hydra's sweeper and its launcher: cells are frozen, what is done is not started, every end is known."""

from __future__ import annotations

import contextlib
import copy
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from cl_runner.cells import cell_folder, finished, is_cell, sweep_folder
from cl_runner.config.checks import settle
from cl_runner.config.inherit import shed
from cl_runner.config.request import Request
from cl_runner.errors import RequestError
from cl_runner.launchers.engines import Cell, Engine, engine_of
from cl_runner.launchers.frozen import FrozenLoader, OnceLoader, freeze
from cl_runner.launchers.shared import TARGET, Shared, Sharing
from cl_runner.launchers.ticket import Ticket
from cl_runner.recording.redact import redact_file
from cl_runner.reports.sweep import SweepReport
from cl_runner.result import Outcome

# Hydra starts only plugins of its own packages, by this name; the class is registered under it when a sweep begins.
NAME = "hydra_plugins.cl_runner.CellLauncher"


class Cells(Callback):
    """A Hydra callback that puts :class:`CellLauncher` before the launcher that was chosen."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Rewrites `hydra.launcher` of the sweep that begins; what `--cfg hydra` shows stays what was chosen."""
        Plugins.instance().class_name_to_class[NAME] = CellLauncher
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        hydra.config_loader = OnceLoader(hydra.config_loader)  # type: ignore[assignment]
        with read_write(config.hydra), open_dict(config.hydra):
            engine = config.hydra.launcher
            config.hydra.launcher = {"_target_": NAME, "_recursive_": False}
            config.hydra.launcher.engine = engine


class CellLauncher(Launcher):
    """Hands the cells that are to be run to one of Hydra's launchers, and gathers how all of them ended.

    Everything that needs no torch happens here, when the sweep is submitted: each cell is composed, checked and frozen;
    one that is refused or done before never reaches the launcher.

    Args:
        engine: the launcher that was chosen, as `hydra.launcher` had it.
    """

    def __init__(self, *, engine: Any) -> None:
        self._engine_node = engine

    def setup(self, *, hydra_context: HydraContext, task_function: Any, config: DictConfig) -> None:
        """Makes the launcher that was chosen.

        Args:
            hydra_context: composes cells, here and nowhere else.
            task_function: has `run_cell`, which runs a frozen cell in any process; `cells`, which takes how each one
                ended, and `report`.
            config: the sweep's.

        Raises:
            RequestError: a sweeper that optimises has nothing to optimise.
        """
        sweeper = str(config.hydra.sweeper._target_)
        if sweeper.startswith("hydra_plugins.") and config.objective is None:
            chosen = config.hydra.runtime.choices.get("hydra/sweeper")
            raise RequestError(
                f"objective: hydra/sweeper={chosen} has no figure to optimise",
                "name one of the summary's, for example objective=acc hydra.sweeper.direction=maximize",
            )
        self._context, self._config, self._door = hydra_context, config, task_function
        for callback in hydra_context.callbacks.callbacks:
            if isinstance(callback, SweepReport):
                callback.cells = task_function.cells
                task_function.report = callback
        self._ticket = Ticket(
            stop=str(Path(str(config.hydra.sweep.dir)).expanduser().absolute() / f".stop-{uuid.uuid4().hex[:12]}"),
            fail_fast=bool(config.fail_fast),
        )
        self._engine = self._make_engine()

    def _make_engine(self) -> Engine:
        config = copy.deepcopy(self._config)
        target, node = str(self._engine_node._target_), self._engine_node
        sharing = Sharing.of(node) if target == TARGET else None
        if sharing is not None:  # Hydra starts only launchers of its own
            node = {"_target_": f"{BasicLauncher.__module__}.{BasicLauncher.__name__}"}
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.launcher = node
            config.hydra.job.env_set.update(self._ticket.for_engine(target))
        launcher = Plugins.instance().instantiate_launcher(
            hydra_context=HydraContext(config_loader=FrozenLoader(), callbacks=self._context.callbacks),
            task_function=self._door.run_cell,
            config=config,
        )
        if sharing is not None:
            return Shared(launcher, self._ticket, sharing)
        return engine_of(launcher, target, self._ticket)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Runs what is not done, and returns for each cell its objective, None where it did not end well.

        Raises:
            KeyboardInterrupt: the sweep was interrupted.
        """
        with contextlib.suppress(OSError):  # what was typed lies there as Hydra wrote it
            redact_file(Path(str(self._config.hydra.sweep.dir)).expanduser() / "multirun.yaml")
        cells = [self._cell(initial_job_idx + index, list(each)) for index, each in enumerate(job_overrides)]
        first: dict[Path, Cell] = {}
        twins = []
        for cell in cells:
            if cell.outcome is None and cell.folder is not None and first.setdefault(cell.folder, cell) is not cell:
                twins.append(cell)
        waiting = [cell for cell in cells if cell.outcome is None and cell not in twins]
        try:
            if waiting and not (self._ticket.fail_fast and self._bad(cells)):
                self._engine.run(waiting)
        except Exception:
            self._door.crashed = True
            raise
        finally:
            for cell in twins:  # two cells of one configuration are one
                assert cell.folder is not None
                cell.outcome = first[cell.folder].outcome  # the same folder, so the same row
            self._door.cells.extend(cell.outcome for cell in cells if cell.outcome is not None)
            self._door.not_begun += sum(cell.outcome is None for cell in cells)
            self._ticket.close()
        return [_returned(cell) for cell in cells]

    def _bad(self, cells: Sequence[Cell]) -> bool:
        ended = [*self._door.cells, *(cell.outcome for cell in cells if cell.outcome is not None)]
        return any(one.code for one in ended)

    def _cell(self, number: int, overrides: list[str]) -> Cell:
        """Composes, checks and freezes one cell; what is refused or done has its outcome already."""
        config = self._context.config_loader.load_sweep_config(self._config, overrides)
        HydraConfig.instance().set_config(config)  # for ${hydra:...} in the cell
        request = Request.of(config.hydra)
        typed = tuple(request.typed)
        content = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        OmegaConf.set_struct(content, False)
        cell = Cell(number, typed, "")
        sweep = None
        try:
            shed(content, request.typed)
            settled = settle(content, request.typed)
            request.check()
            if is_cell(settled):
                sweep, cell.folder = sweep_folder(settled, request.experiment), cell_folder(settled, request.experiment)
                cell.outcome = _done_before(cell, sweep, settled.objective)
        except RequestError as error:
            sys.stderr.write(error.text)
            if content.get("mode", "train") == "train" and content.get("resume") is None:
                sweep = Path(str(config.hydra.sweep.dir)) / request.experiment
            cell.outcome = Outcome("refused", typed, sweep=sweep, message=error.message)
        cell.sweep = sweep
        if cell.outcome is None:
            cell.text = freeze(number, config, content)
        elif self._door.report is not None:
            self._door.report.told(number, cell.outcome)
        return cell


def _done_before(cell: Cell, sweep: Path, objective: str | None) -> Outcome | None:
    assert cell.folder is not None
    summary = finished(cell.folder)
    if summary is None:
        return None
    figure = summary.get(objective) if objective else None
    return Outcome("done", cell.typed, cell.folder, sweep, summary=summary, objective=figure, skipped=True)


def _returned(cell: Cell) -> JobReturn:
    """What Hydra's sweeper gets: never an exception, which would hide the other cells."""
    answer = JobReturn(overrides=list(cell.typed), status=JobStatus.COMPLETED)
    answer._return_value = cell.outcome.objective if cell.outcome is not None else None
    return answer
