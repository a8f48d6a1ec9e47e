"""Several cells at once in this process, on one device: a thread each, in turn or computed together."""

from __future__ import annotations

import contextlib
import json
import queue
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, env_override
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf, read_write

from cl_runner.config.identity import what_matters
from cl_runner.errors import RequestError, nearest
from cl_runner.launchers.engines import Cell, Engine
from cl_runner.launchers.frozen import thaw
from cl_runner.launchers.ticket import Ticket
from cl_runner.result import Outcome

TARGET = "cl_runner.launchers.shared.Shared"  # what configs/hydra/launcher/gpu_shared.yaml names
MODES = ("auto", "interleaved", "stacked")
MAY_DIFFER = (("seed",), ("optimizer", "lr"), ("optimizer", "weight_decay"))  # between cells computed together


@dataclass(frozen=True)
class Sharing:
    """The keys of `hydra.launcher` with `launcher=gpu_shared`.

    Attributes:
        mode: interleaved: a step of each in turn, on a GPU each on a stream of its own. stacked: the steps of cells
            that differ in nothing but seed, learning rate and weight decay are computed as one; others take turns.
            auto: stacked on a GPU, else interleaved.
        cells: how many at once, 1 to 64.
    """

    mode: str = "auto"
    cells: int = 8

    @classmethod
    def of(cls, node: Any) -> Sharing:
        """The keys as they were typed.

        Raises:
            RequestError: there is no such key, or its value is out of range.
        """
        content: dict[str, Any] = OmegaConf.to_container(node)  # type: ignore[assignment]
        given = {key: value for key, value in content.items() if key != "_target_"}
        known = [field.name for field in fields(cls)]
        for key in given:
            if key not in known:
                raise RequestError(f"hydra.launcher.{key}: launcher=gpu_shared has no such key", nearest(key, known))
        mode, cells = given.get("mode", cls.mode), given.get("cells", cls.cells)
        if mode not in MODES:
            raise RequestError(f"hydra.launcher.mode={mode}: there is no such mode", f"one of: {', '.join(MODES)}")
        if isinstance(cells, bool) or not isinstance(cells, int) or not 1 <= cells <= 64:
            raise RequestError(f"hydra.launcher.cells={cells}: how many cells run at once", "a whole number, 1 to 64")
        return cls(mode, cells)


class Shared(Engine):
    """Cells in threads of this process, of which one does something at any time; see `cl_runner.company`.

    Each is a whole run with a folder, a recorder and checkpoints of its own. They share what this process has read, and
    on a GPU the images. Cells that can be computed together begin together; as soon as one ends another begins, but
    among those that are computed together only when all have ended, so that they stay at the same task.

    Args:
        launcher: Hydra's for this process, set up.
        ticket: the sweep.
        sharing: how.
    """

    def __init__(self, launcher: Launcher, ticket: Ticket, sharing: Sharing) -> None:
        super().__init__(launcher, ticket)
        self._sharing = sharing
        self._ended: queue.SimpleQueue[Cell] = queue.SimpleQueue()
        self._members: dict[Cell, Any] = {}
        self._halted = False

    def _run(self, cells: Sequence[Cell]) -> None:
        launcher: Any = self._launcher
        with env_override({key: str(value) for key, value in launcher.config.hydra.job.env_set.items()}):
            for key, wave in self._waves(cells):
                self._run_wave(key, wave)

    def _waves(self, cells: Sequence[Cell]) -> Iterable[tuple[str | None, list[Cell]]]:
        """Cells that may run at once, with what they have in common; one after another, a wave after the one before."""
        alike: dict[str | None, list[Cell]] = {}
        for cell in cells:
            alike.setdefault(self._key(cell), []).append(cell)
        single = [cell for group in alike.values() if len(group) == 1 for cell in group]
        for key, group in alike.items():
            if key is not None and len(group) > 1:
                size = self._sharing.cells
                yield from ((key, group[at : at + size]) for at in range(0, len(group), size))
        if None in alike and len(alike[None]) > 1:
            single = sorted([*single, *alike[None]], key=lambda cell: cell.number)
        if single:
            yield None, single

    def _key(self, cell: Cell) -> str | None:
        """What a cell has in common with those that it can be computed with; None where it is not to be."""
        if self._sharing.mode == "interleaved" or self._sharing.cells == 1 or cell.folder is None:
            return None
        request = yaml.safe_load(cell.text)["request"]
        if self._sharing.mode == "auto" and not _on_gpu(request["trainer"]["device"]):
            return None
        content = what_matters(request)
        for *path, last in MAY_DIFFER:
            node: Any = content
            for part in path:
                node = node.get(part) or {}
            node.pop(last, None)
        return json.dumps(content, sort_keys=True)

    # ------------------------------------------------------------------------------------------- threads

    def _run_wave(self, key: str | None, cells: list[Cell]) -> None:
        """Runs cells, so many at once, until all have ended."""
        from cl_runner.company import Company, Process  # these import torch
        from cl_runner.training.together import CommonSteps

        before, waiting = Process.now(), list(cells)
        company = Company(CommonSteps() if key is not None else None)
        try:
            while waiting or self._members:
                while waiting and len(self._members) < self._sharing.cells:
                    self._start(waiting.pop(0), company, key)
                self._ended.get()
        except KeyboardInterrupt as interruption:
            self._halted = True
            self._ticket.halt()
            self._wind_up(company, str(interruption) or "SIGINT")
            raise
        finally:
            before.put_back()

    def _wind_up(self, company: Any, name: str) -> None:
        """Waits until all cells have been kept; asked once more, the one that is at work ends at once."""
        company.interrupt(list(self._members.values()), name)
        while self._members:
            try:
                with contextlib.suppress(queue.Empty):
                    self._ended.get(timeout=0.1)
            except KeyboardInterrupt:
                company.interrupt(list(self._members.values()), name, at_once=True)

    def _start(self, cell: Cell, company: Any, key: str | None) -> None:
        from cl_runner.company import Member

        member = self._members[cell] = Member(company, cell.number, key)
        threading.Thread(target=self._thread, args=(cell, member), name=f"cell {cell.number + 1}", daemon=True).start()

    def _thread(self, cell: Cell, member: Any) -> None:
        try:
            with member.at_work():
                if not self._halted:
                    _own_stream()
                    self._one(cell)
        except BaseException as error:  # noqa: B902, the thread's last word: KeyboardInterrupt is how it is ended
            why = f"{type(error).__name__}: {error}"
            cell.outcome = Outcome("failed", cell.typed, cell.folder, cell.sweep, why)
            if isinstance(error, KeyboardInterrupt):
                cell.outcome = Outcome("interrupted", cell.typed, cell.folder, cell.sweep, "interrupted")
        finally:
            del self._members[cell]
            self._ended.put(cell)

    def _one(self, cell: Cell) -> None:
        """Runs one cell; what Hydra does around a job, as far as it is not the process's."""
        launcher: Any = self._launcher
        config = thaw(launcher.config, cell.text)
        with read_write(config.hydra):
            config.hydra.job.num = cell.number
            config.hydra.job.id = f"{config.hydra.job.name}_{cell.number}"
        request = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        request.quiet = True  # the progress of several runs does not fit into one terminal
        HydraConfig.instance().set_config(config)
        callbacks = launcher.hydra_context.callbacks
        callbacks.on_job_start(config=config, task_function=launcher.task_function)
        answer = JobReturn(cfg=config, hydra_cfg=config, overrides=list(cell.typed), status=JobStatus.COMPLETED)
        answer.return_value = launcher.task_function(request)
        callbacks.on_job_end(config=config, job_return=answer)
        value = answer.return_value
        if value is not None:
            cell.outcome = replace(value, typed=cell.typed, folder=cell.folder or value.folder, sweep=cell.sweep)


def _on_gpu(device: str) -> bool:
    """Whether a run with this `trainer.device` computes on a CUDA device."""
    import torch

    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


def _own_stream() -> None:
    """Lets what this thread computes on a GPU overlap with what others do."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()  # what the runs share has arrived
        torch.cuda.set_stream(torch.cuda.Stream())
