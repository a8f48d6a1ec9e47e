"""Lets the disk be full at the n-th write of a run, for every n, and sees what is left and how the run goes on.

    python scripts/full_disk.py                     every n, each with nothing and with half of it written
    python scripts/full_disk.py --every 5           every fifth n only
    python scripts/full_disk.py --mount             also on real file systems of some hundred kilobytes (needs root)

The run keeps itself after every epoch. A write to the event log, or to a file that is written whole, fails with ENOSPC
as does every later one; or it takes half of the bytes first, as a disk may. The run must end with exit code 2 and a
message that says so and names the file, every file that is there must be whole, and so must the last checkpoint. Some
of the runs (with --finish 1 all) are then resumed, on a disk that is full again a little later, and with space: they
must equal the one that had space all along.
"""

from __future__ import annotations

import argparse
import csv
import errno
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import chaos

STREAM = ("adapter=convlora", "strategy=ewc", "trainer.epochs=2", "trainer.batch_size=64", "trainer.log_every=4",
          "benchmark.n_tasks=2", "benchmark.per_class=40", "benchmark.validation_fraction=0",
          "trainer.checkpoint_minutes=null", "trainer.checkpoint_epochs=1", "report=false")  # fmt: skip


class Disk:
    """Counts writes, and has no space from one of them on.

    Args:
        full_at: the first write that fails, from 1; None: none does.
        half: that write takes half of its bytes; the next one is the first that fails.
    """

    def __init__(self, full_at: int | None = None, *, half: bool = False) -> None:
        self.full_at, self.half, self.writes = full_at, half, 0

    def write(self, write: Callable[[Any], int], data: Any) -> int:
        """Writes, or does not."""
        self.writes += 1
        if self.full_at is None or self.writes < self.full_at:
            return write(data)
        if self.half and self.writes == self.full_at and len(data) > 1:
            return write(data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def under(self) -> Disk:
        """Puts itself under everything that a run records with."""
        from cl_runner.recording import durable, events

        disk, opened = self, events.EventLog.__init__

        class System:
            """The operating system, but for this disk."""

            def __getattr__(self, name: str) -> Any:
                return getattr(os, name)

            def write(self, file: int, data: Any) -> int:
                return disk.write(lambda rest: os.write(file, rest), data)

        class File:
            """A file on this disk."""

            def __init__(self, file: Any) -> None:
                self.file = file

            def __getattr__(self, name: str) -> Any:
                return getattr(self.file, name)

            def write(self, data: Any) -> int:
                return disk.write(self.file.write, data)

        def on_disk(log: Any, *given: Any, **named: Any) -> None:
            opened(log, *given, **named)
            log._file = File(log._file)

        durable.os = System()  # type: ignore[assignment]
        events.EventLog.__init__ = on_disk  # type: ignore[method-assign]
        return self


@dataclass
class Case:
    """What came out of one full disk.

    Attributes:
        full: when it was.
        kept: the checkpoint that was left; None: none.
        finished: whether it was resumed to its end.
        problems: none, if all is well.
    """

    full: str
    kept: str | None = None
    finished: bool = False
    problems: tuple[str, ...] = ()


def attempt(arguments: Sequence[str], disk: Disk, log: Path) -> tuple[int, str]:
    """Runs a request on a disk, in a child; its exit code and what it said."""

    def work() -> int:
        from cl_runner import cli

        disk.under()
        code = cli.execute(list(arguments))
        sys.stdout.flush()
        log.with_suffix(".writes").write_text(str(disk.writes))
        return code

    log.unlink(missing_ok=True)
    _, status = os.waitpid(chaos.in_child(work, log), 0)
    return os.waitstatus_to_exitcode(status), log.read_text()


def refusal(code: int, said: str, root: Path) -> list[str]:
    """What is wrong with how a run on a full disk ended."""
    problems = [] if code == 2 else [f"it ended with {code}: {said[-400:]}"]
    lines = [line for line in said.splitlines() if line.startswith("cl-run: ")]
    if not lines or "no space left on device while writing" not in lines[-1] or str(root) not in lines[-1]:
        problems.append(f"it does not say what is full: {said[-400:]}")
    return problems + (["a traceback"] if "Traceback" in said else [])


def damage(run: Path) -> tuple[str | None, list[str]]:
    """The last checkpoint of a run folder in words, and what in the folder is not whole."""
    import yaml
    from safetensors import safe_open

    from cl_runner.recording.checkpoints import Checkpoints

    problems: list[str] = []
    for place in [item for item in run.rglob("*") if item.is_file()]:
        try:
            if place.name.endswith(".partial") or place.name == ".lock":
                problems.append(f"{place.name} was left")
            elif place.suffix == ".json":
                json.loads(place.read_text())
            elif place.suffix == ".yaml":
                assert yaml.safe_load(place.read_text()) is not None
            elif place.suffix == ".csv":
                rows = list(csv.reader(place.read_text().splitlines()))
                assert rows and all(len(row) == len(rows[0]) for row in rows)
            elif place.suffix == ".safetensors":
                safe_open(place, "pt")
            elif place.suffix == ".jsonl":
                text = place.read_text()
                assert not text or text.endswith("\n")
                [json.loads(line) for line in text.splitlines()]
        except Exception as error:
            problems.append(f"{place.name} is not whole: {type(error).__name__}: {error}")
    last = Checkpoints(run).latest(problems.append)
    return (last.where if last else None), problems


def trial(root: Path, expected: Path, disk: Disk, told: str, *, finish: bool) -> Case:
    """One run on one disk, looked at, and resumed with space where asked."""
    case, log = Case(told), root / "log"
    outputs = root / "outputs"
    code, said = attempt([*STREAM, f"output_root={outputs}"], disk, log)
    problems = refusal(code, said, outputs)
    case.kept, more = judged(outputs)
    problems += more
    folder = next(outputs.glob("*/*/config.yaml"), None)
    if folder is None:
        if any(item.is_file() for item in outputs.rglob("*")):
            problems.append("a run without a configuration is left")
    elif finish:
        case.finished = True
        second = Disk(1 + disk.full_at % 7 if disk.full_at else None)
        code, said = attempt([f"resume={folder.parent}"], second, log)  # no space again, a little later
        if code or not (folder.parent / "DONE").exists():  # else there was little left to write
            again = refusal(code, said, outputs) + judged(outputs)[1]
            problems += [f"resumed on a full disk: {item}" for item in again]
            problems += resumed(folder.parent, expected, log)
        else:
            problems += chaos.compare(expected, folder.parent)
    case.problems = tuple(problems)
    return case


def judged(outputs: Path) -> tuple[str | None, list[str]]:
    """What is left below an output folder."""
    found = [damage(place.parent) for place in outputs.glob("*/*/config.yaml")]
    return found[0] if found else (None, [])


def resumed(folder: Path, expected: Path, log: Path) -> list[str]:
    """Resumes a run with space again; in what it differs from the one that always had it."""
    code, said = attempt([f"resume={folder}"], Disk(), log)
    if code:
        return [f"resumed with space it ended with {code}: {said[-400:]}"]
    return chaos.compare(expected, folder) + ([f"a traceback: {said[-400:]}"] if "Traceback" in said else [])


def mounted(expected: Path, place: Path, kilobytes: int) -> Case:
    """One run on a real file system of so many kilobytes, which then grows."""
    case, log = Case(f"file system of {kilobytes} kB"), place / "log"
    disk = place / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        code, said = attempt([*STREAM, "tracking=csv", f"output_root={disk / 'outputs'}"], Disk(), log)
        problems = refusal(code, said, disk) if code else []
        case.kept, more = judged(disk / "outputs")
        folder = next((disk / "outputs").glob("*/*/config.yaml"), None)
        subprocess.run(["mount", "-o", "remount,size=50m", str(disk)], check=True, capture_output=True)
        if code and folder is not None:
            case.finished = True
            more += resumed(folder.parent, expected, log)
        case.problems = (*problems, *more)
    finally:
        subprocess.run(["umount", str(disk)], check=True)
    return case


def may_mount() -> bool:
    """Whether file systems can be mounted here."""
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", place], capture_output=True)
        if done.returncode == 0:
            subprocess.run(["umount", place], check=True)
        return done.returncode == 0


def main() -> int:
    """Runs the cases and prints what came out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="every so-manieth write (default 1)")
    parser.add_argument("--finish", type=int, default=6, help="resume every so-manieth case to its end (default 6)")
    parser.add_argument("--mount", action="store_true", help="also on small file systems")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    chaos.prepare()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        cases = examine(Path(place), options)
    wrong = [case for case in cases if case.problems]
    for case in wrong:
        print(f"{case.full}: {'; '.join(case.problems)}")
    print(f"{len(cases)} full disks, {sum(case.kept is not None for case in cases)} with a checkpoint, "
          f"{sum(case.finished for case in cases)} resumed to the end, {time.monotonic() - began:.0f} s: "
          f"{len(wrong)} wrong")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps([asdict(case) for case in cases], indent=1))
    return 1 if wrong else 0


def examine(place: Path, options: argparse.Namespace) -> list[Case]:
    """Every case of the options."""
    calm, log = place / "calm", place / "log"
    code, said = attempt([*STREAM, f"output_root={calm}"], Disk(), log)
    if code:
        raise SystemExit(f"the run does not run at all:\n{said}")
    expected, writes = next(calm.glob("*/*/")), int(log.with_suffix(".writes").read_text())
    print(f"a run of {writes} writes", flush=True)
    cases = []
    for number in range(1, writes + 1, options.every):
        for half in (False, True):
            root = place / "one"
            root.mkdir()
            told = f"write {number} of {writes}" + (", half of it written" if half else "")
            finish = len(cases) % options.finish == 0
            cases.append(trial(root, expected, Disk(number, half=half), told, finish=finish))
            shutil.rmtree(root)
    if options.mount and may_mount():
        sizes = range(64, 1024, 64)
        for kilobytes in sizes:
            root = place / f"mounted {kilobytes}"
            root.mkdir()
            cases.append(mounted(expected, root, kilobytes))
    elif options.mount:
        print("file systems cannot be mounted here")
    return cases


if __name__ == "__main__":
    sys.exit(main())
