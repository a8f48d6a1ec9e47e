"""Kills runs at random instants, resumes them until they are done, and compares them with runs that nobody interrupted.

    python scripts/chaos.py                         every case, 8 kills each
    python scripts/chaos.py --cases ewc+convlora    one case
    python scripts/chaos.py --kills 2 --seed 7 --json chaos.json
    python scripts/chaos.py --device cuda           in deterministic mode

Each run is a child forked from this process, which has imported everything, so that an attempt takes a second. A case
is a strategy with an adapter on the digits stream, and an interval, chosen at random, at which its checkpoints are
written: after every step, every epoch, or every task. Two of three kills come a random time after a random step, the
others at any time at all.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

STRATEGIES = ("naive", "replay", "ewc", "lwf", "gem")
ADAPTERS = ("none", "convlora", "codyra")
MORE = ("si+none", "agem+none", "der+none", "icarl+none", "cumulative+none", "joint+none", "naive+dylora",
        "naive+hybrid", "replay+senacnn", "naive+lora")  # fmt: skip
STREAM = ("trainer.epochs=2", "trainer.batch_size=32", "trainer.log_every=1", "benchmark.validation_fraction=0.1",
          "benchmark.augmentation=crop", "benchmark.n_tasks=3", "benchmark.first_task_classes=4",
          "quiet=true", "report=false")  # fmt: skip
OPTIONS = {
    "gem": ("strategy.mem_size=60",),
    "replay": ("strategy.mem_size=60",),
    "agem": ("strategy.mem_size=60",),
    "der": ("strategy.mem_size=60", "strategy.batch_size_mem=16"),
    "icarl": ("strategy.mem_size=60",),
    "ewc": ("strategy.ewc_lambda=10",),
    "dylora": ("adapter.rank=4", "adapter.rank_schedule=[4,2]", "adapter.schedule_from=2"),
    "hybrid": ("adapter.rank=4", "adapter.rank_schedule=[4,2]"),
}
INTERVALS = (
    ("step", "trainer.checkpoint_minutes=0", "trainer.checkpoint_epochs=null"),
    ("epoch", "trainer.checkpoint_minutes=null", "trainer.checkpoint_epochs=1"),
    ("task", "trainer.checkpoint_minutes=null", "trainer.checkpoint_epochs=null"),
)
TIMES = ("time", "seconds", "wall_seconds", "train_images_per_second", "peak_memory_bytes")
MOMENTS = ("resumed", "warning")  # events of an attempt, not of the run


@dataclass
class Case:
    """What came out of one case.

    Attributes:
        name: strategy+adapter.
        seed: of the instants at which it was killed.
        interval: of its checkpoints.
        kills: attempts that were killed.
        attempts: in all.
        steps: of the run.
        executed: steps in all attempts together.
        done: different ones among them.
        again: steps that were executed more than once.
        most_again: by one attempt.
        differences: between the interrupted and the uninterrupted run; none, if all is well.
    """

    name: str
    seed: int
    interval: str
    kills: int = 0
    attempts: int = 0
    steps: int = 0
    executed: int = 0
    done: int = 0
    again: int = 0
    most_again: int = 0
    differences: tuple[str, ...] = ()


def typed(name: str, device: str = "cpu") -> list[str]:
    """The overrides of a case."""
    strategy, adapter = name.split("+")
    options = (*OPTIONS.get(strategy, ()), *OPTIONS.get(adapter, ()), f"trainer.device={device}")
    options += () if device == "cpu" else ("trainer.deterministic=true",)
    return [f"strategy={strategy}", f"adapter={adapter}", *STREAM, *options]


def in_child(work: Callable[[], int], log: Path) -> int:
    """Forks a child that does some work, and returns its process number."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        code = work()
    finally:
        os._exit(code)


def attempt(overrides: Sequence[str], steps: Path) -> int:
    """Runs a request to its end, noting every step that it executes."""
    from cl_runner import cli
    from cl_runner.keeping.keeper import Keeper

    stepped = Keeper.stepped
    note = os.open(steps, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def noted(self: Any, strategy: Any) -> None:
        place = (strategy.experience.current_experience, strategy.clock.train_exp_epochs, self.step)
        os.write(note, f"{os.getpid()} {' '.join(map(str, place))}\n".encode())
        stepped(self, strategy)

    Keeper.stepped = noted  # type: ignore[method-assign]
    return cli.execute(list(overrides))


def finish(overrides: Sequence[str], root: Path, name: str) -> tuple[Path, float]:
    """Runs a request that nobody interrupts; returns its folder and how long that took."""
    began = time.monotonic()
    child = in_child(lambda: attempt([*overrides, f"output_root={root}"], root / "steps"), root / "log")
    _, status = os.waitpid(child, 0)
    if status:
        raise SystemExit(f"{name} does not run at all:\n{(root / 'log').read_text()}")
    return next(root.glob("*/*/")), time.monotonic() - began


def torment(
    name: str, request: list[str], root: Path, took: float, total: int, kills: int, seed: int
) -> tuple[Path, Case]:
    """Runs a case that is killed again and again, at instants drawn from a seed, until it is done.

    Args:
        name: of the case.
        request: its overrides.
        root: an empty folder.
        took: seconds of the run that nobody interrupted.
        total: its steps.
        kills: at most.
        seed: of the instants.
    """
    draw = random.Random(f"{seed} {name}")
    interval, *keys = draw.choice(INTERVALS)
    case = Case(name, seed, interval)
    while True:
        folder = next(iter(root.glob("*/*/config.yaml")), None)
        begin = [f"resume={folder.parent}"] if folder else [*request, *keys, f"output_root={root}"]
        before = _count(root / "steps")
        child = in_child(lambda begin=begin: attempt(begin, root / "steps"), root / "log")  # type: ignore[misc]
        case.attempts += 1
        anywhere, steps = draw.random() < 1 / 3, draw.randrange(total - case.done + 1)
        later = draw.uniform(0, took if anywhere else 0.03)
        if case.kills < kills:
            ended = False
            while not (ended or anywhere or _count(root / "steps") - before >= steps):
                ended = bool(os.waitpid(child, os.WNOHANG)[0])
                time.sleep(0.001)
            time.sleep(0 if ended else later)
            if not ended and not os.waitpid(child, os.WNOHANG)[0]:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                case.kills += 1
        else:
            _, status = os.waitpid(child, 0)
            if status:
                said = (root / "log").read_text()
                raise SystemExit(f"{name}, seed {seed}: a resumed run ended with {status}:\n{said}")
        places = [line.split(" ", 1)[1] for line in _lines(root / "steps")]
        case.done = len(set(places))
        folder = next(iter(root.glob("*/*/config.yaml")), None)
        if folder is not None and (folder.parent / "DONE").exists():
            return folder.parent, case


def _lines(place: Path) -> list[str]:
    return place.read_text().splitlines() if place.exists() else []


def _count(place: Path) -> int:
    return len(_lines(place))


def compare(expected: Path, found: Path) -> list[str]:
    """In what two finished runs differ, times apart."""
    differences = []
    tables = {place.name for run in (expected, found) for place in run.glob("*.csv")} - {"metrics.csv"}
    for name in sorted(tables):
        if _rows(expected / name) != _rows(found / name):
            differences.append(f"{name} differs")
    one, other = (_without_times(json.loads((run / "summary.json").read_text())) for run in (expected, found))
    if one != other:
        differences.append(f"summary.json differs in {[key for key in one if one[key] != other.get(key)]}")
    one, other = (_events(run) for run in (expected, found))
    if one != other:
        place = next((i for i, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), None)
        differences.append(f"events.jsonl differs at event {place}, of {len(one)} and {len(other)}")
    return differences + _weights(expected, found)


def _weights(expected: Path, found: Path) -> list[str]:
    """Where the last checkpoints' tensors differ: network, adapter, and what the strategy remembers."""
    import torch

    from cl_runner.keeping.reading import read_between

    one, other = read_between(expected), read_between(found)
    flat: list[dict[str, Any]] = [{}, {}]
    for into, state in zip(flat, (one, other), strict=True):
        for part in ("network", "adapter", "strategy", "random"):
            _flatten(state[part], part, into)
    names = [name for name in flat[0] if name not in flat[1]] + [name for name in flat[1] if name not in flat[0]]
    for name in flat[0].keys() & flat[1].keys():
        a, b = flat[0][name], flat[1][name]
        if isinstance(a, torch.Tensor):
            same = a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        else:
            same = a == b or (a != a and b != b)
        names += [] if same else [name]
    return [f"{len(names)} parts of the last checkpoint differ: {names[:3]}"] if names else []


def _flatten(value: Any, name: str, into: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _flatten(item, f"{name}.{key}", into)
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            _flatten(item, f"{name}.{place}", into)
    else:
        into[name] = value


def _events(run: Path) -> list[Any]:
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [_without_times(event) for event in events if event["event"] not in MOMENTS]


def _without_times(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key not in TIMES}


def _rows(place: Path) -> list[Any]:
    if not place.exists():
        return []
    with place.open(newline="") as file:
        return [_without_times(row) for row in csv.DictReader(file)]


def examine(name: str, kills: int, seed: int, device: str = "cpu") -> Case:
    """Runs a case without and with kills, and compares the two."""
    with tempfile.TemporaryDirectory() as place:
        calm, wild = Path(place) / "calm", Path(place) / "wild"
        calm.mkdir()
        wild.mkdir()
        expected, took = finish(typed(name, device), calm, name)
        steps = [line.split(" ", 1)[1] for line in _lines(calm / "steps")]
        found, case = torment(name, typed(name, device), wild, took, len(steps), kills, seed)
        differences = compare(expected, found)
        logged = [event for event in _events(found) if event["event"] == "step"]
        if [f"{event['task'] - 1} {event['epoch'] - 1} {event['step'] - 1}" for event in logged] != steps:
            differences.append("events.jsonl does not hold every step once, in order")
        differences += redone(case, steps, _lines(wild / "steps"))
        case.differences = tuple(differences)
        return case


def redone(case: Case, steps: list[str], lines: list[str]) -> list[str]:
    """Counts what was executed again, and says where that is more than the interval between two checkpoints."""
    case.steps, case.executed, case.again = len(steps), len(lines), len(lines) - len(steps)
    place, reached, problems = {step: number for number, step in enumerate(steps)}, 0, []
    attempts: dict[str, list[int]] = {}
    for line in lines:
        attempts.setdefault(line.split(" ", 1)[0], []).append(place[line.split(" ", 1)[1]])
    for numbers in attempts.values():
        case.most_again = max(case.most_again, reached - numbers[0])
        parts = steps[numbers[0]].split()[: {"step": 3, "epoch": 2, "task": 1}[case.interval]]
        last = steps[max(reached - 1, 0)].split()[: len(parts)]
        if reached and case.interval != "step" and parts != last and numbers[0] < reached - 1:
            problems.append(f"an attempt began at step {numbers[0]}, and {reached} had been done")
        if case.interval == "step" and reached - numbers[0] > 1:
            problems.append(f"an attempt began at step {numbers[0]}, and {reached} had been done")
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            problems.append("an attempt left steps out")
        reached = max(reached, numbers[-1] + 1)
    return problems


def main() -> int:
    """Runs the cases and prints a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=[f"{s}+{a}" for s in STRATEGIES for a in ADAPTERS] + list(MORE))
    parser.add_argument("--kills", type=int, default=8, help="of each case (default 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    prepare()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, seed {options.seed}")
    print(f"{'case':<18} kills attempts steps executed again  most interval  result")
    began, cases = time.monotonic(), []
    for name in options.cases:
        case = examine(name, options.kills, options.seed, options.device)
        cases.append(case)
        result = "identical" if not case.differences else "; ".join(case.differences)
        counts = (
            f"{case.kills:>6}{case.attempts:>9}{case.steps:>6}{case.executed:>9}{case.again:>6}{case.most_again:>6}"
        )
        print(f"{name:<18}{counts} {case.interval:<8}  {result}", flush=True)
    wrong = [case for case in cases if case.differences]
    print(f"{sum(case.kills for case in cases)} kills in {len(cases)} cases, {time.monotonic() - began:.0f} s: "
          f"{len(cases) - len(wrong)} identical, {len(wrong)} not")  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps([asdict(case) for case in cases], indent=1))
    return 1 if wrong else 0


def prepare() -> None:
    """Imports what every child needs, before they are forked."""
    import torch

    import cl_runner.learning
    import cl_runner.runner
    import cl_runner.strategies.courses  # noqa: F401

    torch.set_num_threads(1)


if __name__ == "__main__":
    sys.exit(main())
