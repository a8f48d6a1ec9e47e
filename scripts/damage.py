"""Damages the files of an interrupted run, one at a time, and sees what a run that is resumed from them does.

    python scripts/damage.py                          600 cases, 60 of them resumed to the end
    python scripts/damage.py --cases 60 --finish 6    fewer
    python scripts/damage.py --runs gem+none --seed 7 --json damage.json

A run is killed in its last task, so that it leaves checkpoints within a task and the earlier ones they stand on. In a
copy of its folder a file of `checkpoints/`, or `events.jsonl`, is then truncated, gets a flipped bit, a byte too many,
zeros in its middle or the content of another file, or is removed. Every checkpoint that does not need the damaged part
must read as it was written, byte for byte; every other one must be refused, and what is said must name the damaged
file. Of the cases that are resumed to the end the run must equal the one that nobody interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import chaos

RUNS = ("ewc+convlora", "replay+none", "naive+codyra")
ALWAYS = ("trainer.checkpoint_minutes=0", "trainer.checkpoint_epochs=1")
STEPS = 3  # into the last task, after which the run is killed


@dataclass(frozen=True)
class Kept:
    """A checkpoint as it was read.

    Attributes:
        state: its plain values.
        tensors: the bytes of its tensors.
        files: what it is read from, those it stands on included.
        events: bytes of the event log that belong to it.
    """

    state: Any
    tensors: bytes
    files: frozenset[str]
    events: int


@dataclass
class Case:
    """What became of one damage.

    Attributes:
        run: strategy+adapter.
        damage: what was done, and where.
        file: to which file.
        lost: checkpoints that it makes useless.
        fell_back_to: the checkpoint with which the run goes on; None: it starts over.
        finished: whether it was resumed to the end.
        problems: none, if all is well.
    """

    run: str
    damage: str
    file: str
    lost: int = 0
    fell_back_to: int | None = None
    finished: bool = False
    problems: tuple[str, ...] = ()


def interrupted(name: str, root: Path, steps: int = STEPS) -> Path:
    """Runs a request that is killed after some steps of the last task, and returns its folder."""

    def work() -> int:
        from cl_runner import cli
        from cl_runner.keeping.keeper import Keeper

        stepped = Keeper.stepped

        def killed(self: Any, strategy: Any) -> None:
            stepped(self, strategy)
            if strategy.experience.current_experience == 2 and self.step == steps:
                os.kill(os.getpid(), signal.SIGKILL)

        Keeper.stepped = killed  # type: ignore[method-assign]
        return cli.execute([*chaos.typed(name), *ALWAYS, f"output_root={root}"])

    _, status = os.waitpid(chaos.in_child(work, root / "log"), 0)
    if status != signal.SIGKILL:
        raise SystemExit(f"{name} was not killed:\n{(root / 'log').read_text()}")
    return next(root.glob("*/*/config.yaml")).parent


def readable(run: Path) -> tuple[dict[int, Kept], list[str]]:
    """Every checkpoint that a run could go on from, and what is said of the others; uses up the folder."""
    from cl_runner.recording.checkpoints import Checkpoint, Checkpoints

    def links(checkpoint: Checkpoint | None) -> Iterator[Checkpoint]:
        while checkpoint is not None:
            yield checkpoint
            checkpoint = checkpoint.base

    checkpoints, found, said = Checkpoints(run), {}, []
    while (last := checkpoints.latest(said.append)) is not None:
        chain = list(links(last))
        files = {f"{item.number:06d}.json" for item in chain} | {item.tensors.name for item in chain if item.tensors}
        tensors = b"".join(item.tensors.read_bytes() for item in chain if item.tensors)
        states = [(item.number, item.where, item.state) for item in chain]
        found[last.number] = Kept(states, tensors, frozenset(files), last.events)
        for number in range(last.number, max(checkpoints.numbers()) + 1):
            (checkpoints.folder / f"{number:06d}.json").unlink(missing_ok=True)
    return found, said


def damaged(content: bytes, draw: random.Random) -> tuple[str, bytes | None]:
    """What was done to a file's content, and what it is then; None: the file is removed."""
    size = len(content)
    kind = draw.choice(("truncated", "bit", "byte", "zeros", "removed"))
    if kind == "truncated":
        length = draw.choice((0, draw.randrange(size), size - 1))
        return f"truncated to {length} of {size} bytes", content[:length]
    if kind == "bit":
        place, bit = draw.randrange(size), draw.randrange(8)
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        return f"bit {bit} of byte {place} flipped", bytes(changed)
    if kind == "byte":
        place = draw.randrange(size + 1)
        return f"a byte inserted at {place}", content[:place] + bytes([draw.randrange(256)]) + content[place:]
    if kind == "zeros":
        begin = draw.randrange(size)
        length = min(draw.choice((1, 16, 512, 4096)), size - begin)
        return f"{length} zeros at {begin}", content[:begin] + bytes(length) + content[begin + length :]
    return "removed", None


def harm(run: Path, draw: random.Random, file: Path, files: Sequence[Path]) -> tuple[str, dict[str, bytes | None]]:
    """Damages a file of a run folder, or two.

    Returns:
        What was done, and what the files held, those that are not as they were.
    """
    while True:
        before = file.read_bytes()
        if draw.random() < 1 / 6:
            other = draw.choice([item for item in files if item != file])
            told, contents = f"swapped with {other.name}", {file: other.read_bytes(), other: before}
        else:
            told, content = damaged(before, draw)
            contents = {file: content}
        changed = {place: place.read_bytes() for place, now in contents.items() if now != place.read_bytes()}
        if changed:  # zeros over zeros are no damage
            break
    for place, now in contents.items():
        if now is None:
            place.unlink()
        else:
            place.write_bytes(now)
    return told, {str(place.relative_to(run)): content for place, content in changed.items()}


def judged(whole: dict[int, Kept], run: Path, before: dict[str, bytes | None]) -> tuple[set[int], list[str]]:
    """Which checkpoints a damage makes useless, and what is wrong about what is read; uses up the folder."""
    first = _first_change(run / "events.jsonl", before.get("events.jsonl"))
    names = {Path(name).name for name in before if name != "events.jsonl"}
    lost = {n for n, kept in whole.items() if kept.files & names or (first is not None and first < kept.events)}
    problems = []
    found, said = readable(run)
    for number in whole.keys() | found.keys():
        if number in lost and number in found:
            problems.append(f"checkpoint {number} is read although it is damaged")
        elif number not in lost and found.get(number) != whole[number]:
            problems.append(f"checkpoint {number} is not read as it was written")
    for number in lost:
        about = [text for text in said if text.startswith(f"checkpoint {number} ")]
        gone = not (run / "checkpoints" / f"{number:06d}.json").exists()  # nobody knows that it was there
        if not gone and not any(Path(name).name in text for text in about for name in before):
            problems.append(f"checkpoint {number} is refused, and what is said does not name the file: {about}")
    return lost, problems


def _first_change(place: Path, before: bytes | None) -> int | None:
    """The first byte in which a file differs; None where it does not."""
    if before is None:
        return None
    now = place.read_bytes() if place.exists() else b""
    return next((i for i, (a, b) in enumerate(zip(before, now, strict=False)) if a != b), min(len(before), len(now)))


def finished(run: Path, expected: Path, log: Path, told: bool) -> list[str]:
    """Resumes a damaged run to its end; in what it differs from the one that nobody interrupted."""

    def work() -> int:
        from cl_runner import cli

        return cli.execute([f"resume={run}"])

    _, status = os.waitpid(chaos.in_child(work, log), 0)
    said = log.read_text()
    if status:
        code = os.waitstatus_to_exitcode(status)
        refused = code == 2 and said.startswith("cl-run: ") and "Traceback" not in said
        return [] if refused else [f"it ended with {code}: {said[-500:]}"]
    problems = chaos.compare(expected, run)
    if "Traceback" in said:
        problems.append(f"a traceback: {said[-500:]}")
    if told and "cannot be used" not in said and "starts over" not in said:
        problems.append("nothing was said of the damage")
    return problems


def trial(
    name: str, expected: Path, run: Path, whole: dict[int, Kept], draw: random.Random, number: int, to_the_end: bool
) -> Case:
    """Damages a copy of a run, once, and judges what becomes of it."""
    with tempfile.TemporaryDirectory() as place:
        copy, again = (Path(place) / part / run.parent.name / "run" for part in ("copy", "again"))
        shutil.copytree(run, copy)
        files = [*sorted((copy / "checkpoints").iterdir()), copy / "events.jsonl"]
        file = files[number % len(files)]
        told, before = harm(copy, draw, file, files)
        case = Case(name, told, file.name, finished=to_the_end)
        problems = []
        if to_the_end:
            shutil.copytree(copy, again)
        lost, problems = judged(whole, copy, before)
        case.lost = len(lost)
        case.fell_back_to = max(whole.keys() - lost, default=None)
        if to_the_end:
            there = (again / "checkpoints" / f"{max(whole):06d}.json").exists()
            problems += finished(again, expected, Path(place) / "log", max(whole) in lost and there)
        case.problems = tuple(problems)
        return case


def main() -> int:
    """Runs the cases and prints a table of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="*", default=list(RUNS), help="strategy+adapter")
    parser.add_argument("--cases", type=int, default=600, help="in all (default 600)")
    parser.add_argument("--finish", type=int, default=60, help="of them, resumed to the end (default 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    chaos.prepare()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, seed {options.seed}")
    began, cases = time.monotonic(), []
    each = -(-options.cases // len(options.runs))
    every = max(1, options.cases // max(1, options.finish)) if options.finish else 0
    for name in options.runs:
        cases += examine(name, each, every, options.seed)
    wrong = [case for case in cases if case.problems]
    report(cases)
    for case in wrong:
        print(f"{case.run}, {case.file}, {case.damage}: {'; '.join(case.problems)}")
    print(f"{len(cases)} damages, {sum(case.finished for case in cases)} of them resumed to the end, "
          f"{time.monotonic() - began:.0f} s: {len(wrong)} not recognised, or wrong")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps([asdict(case) for case in cases], indent=1))
    return 1 if wrong else 0


def examine(name: str, cases: int, every: int, seed: int) -> list[Case]:
    """Makes a run and damages it so many times; every so-manieth is resumed to the end."""
    with tempfile.TemporaryDirectory() as place:
        calm, killed, copy = (Path(place) / part for part in ("calm", "killed", "copy"))
        calm.mkdir()
        killed.mkdir()
        expected, _ = chaos.finish([*chaos.typed(name), *ALWAYS], calm, name)
        run = interrupted(name, killed)
        shutil.copytree(run, copy)
        whole, said = readable(copy)
        if said or len(whole) < 3:
            raise SystemExit(f"{name}: the undamaged run has {len(whole)} checkpoints: {said}")
        draw = random.Random(f"{seed} {name}")
        return [
            trial(name, expected, run, whole, draw, number, bool(every) and number % every == every - 1)
            for number in range(cases)
        ]


def report(cases: Sequence[Case]) -> None:
    """Prints a line for each kind of damage."""
    kinds: dict[str, list[Case]] = {}
    named = {"bit": "one bit flipped", "a": "a byte inserted", "swapped": "two files swapped"}
    for case in cases:
        first = case.damage.split()[0]
        kinds.setdefault("zeros" if first.isdecimal() else named.get(first, first), []).append(case)
    columns = (("cases", 6), ("all whole", 11), ("fell back", 11), ("started over", 14), ("finished", 10), ("wrong", 7))
    print(f"{'damage':<20}" + "".join(f"{column:>{width}}" for column, width in columns))
    for kind, found in sorted(kinds.items()):
        ways = Counter("whole" if not case.lost else "over" if case.fell_back_to is None else "back" for case in found)
        print(
            f"{kind:<20}{len(found):>6}{ways['whole']:>11}{ways['back']:>11}{ways['over']:>14}"
            f"{sum(case.finished for case in found):>10}{sum(bool(case.problems) for case in found):>7}"
        )


if __name__ == "__main__":
    sys.exit(main())
