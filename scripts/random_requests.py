"""Throws random requests at cl-run, in process; allows two outcomes: a plan that holds every typed value, or exit 2.

    python scripts/random_requests.py [--n 2000] [--seed 0] [--train 50] [--json FILE]

A request goes through the command's own door with mode=plan. Exit 0 has to leave a config.yaml in which every typed key
has the value that was typed; exit 2 has to say in two lines what was typed wrong, and to leave nothing behind.
Whatever else happens is a defect: a traceback, exit 1, a message without a typed key, a key that was ignored, a minute
without an answer. `--train K` then trains K random requests over data that is there: digits, images and texts that it
writes into a temporary folder. The same seed draws the same requests. Exits 1 where there was a defect.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from request_draws import Drawn, Draws
from request_values import GROUPS, data_in

from cl_runner import run
from cl_runner.cli import execute
from cl_runner.config.compose import compose, config_folder
from cl_runner.errors import RequestError

PATIENCE = 60  # seconds for a plan; a step of training gets five times as long
LEAKS = re.compile(
    r"Traceback|\b[A-Z]\w*(Error|Exception|Warning)\b|object at 0x|NoneType|<class |built-in|ListConfig|DictConfig"
)


class TooLong(BaseException):
    """A request that gave no answer."""


@dataclass
class Outcome:
    """What became of a request.

    Attributes:
        code: the exit code; None where something was raised.
        said: what came on stderr.
        defect: what is wrong with that; None where it is one of the two outcomes.
        seconds: it took.
    """

    code: int | None
    said: str
    defect: str | None
    seconds: float


@contextlib.contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises TooLong where the block takes longer."""

    def stop(*_: Any) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def called(typed: list[str]) -> int:
    """The door's answer without the door: one composition where Hydra's own application makes two, for tests."""
    from cl_runner.runner import RunFailed

    try:
        run(compose(typed), overrides=typed)
    except RequestError as error:
        sys.stderr.write(error.text)
        return 2
    except RunFailed as failure:
        sys.stderr.write(str(failure))
        return 1
    return 0


def send(drawn: Drawn, root: Path, *, train: bool = False, door: Callable[[list[str]], int] = execute) -> Outcome:
    """Sends a request through the door and judges what comes back."""
    own = any(item.lstrip("+~").startswith("mode") for item in drawn.typed)
    typed = [*drawn.typed, f"output_root='{root}'", *([] if train or own else ["mode=plan"])]
    out, err, started, raised = io.StringIO(), io.StringIO(), time.perf_counter(), None
    code: int | None = None
    argv, sys.argv = sys.argv, ["cl-run"]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limited(PATIENCE * (5 if train else 1)):
            code = door(typed)
    except TooLong:
        raised = "no answer in time"
    except BaseException as error:  # the door must let nothing out
        last = traceback.extract_tb(error.__traceback__)[-1]
        raised = f"{type(error).__name__}: {str(error)[:200]} ({Path(last.filename).name}:{last.lineno})"
    sys.argv = argv
    said = err.getvalue()
    defect = raised or judged(drawn, code, out.getvalue(), said, root)
    if code == 1:
        traces = sorted(root.rglob("error.txt"))
        defect += f"\n{traces[-1].read_text()[-1500:]}" if traces else ""
    shutil.rmtree(root, ignore_errors=True)
    return Outcome(code, said, defect, time.perf_counter() - started)


def judged(drawn: Drawn, code: int | None, out: str, said: str, root: Path) -> str | None:
    """What is wrong with an outcome; None: nothing."""
    if code == 0:
        return ignored(drawn, root)
    if code != 2:
        return f"exit {code}: {said[:300]}"
    lines = [line for line in said.splitlines() if line.strip()]
    if not 1 <= len(lines) <= 2 or not said.startswith("cl-run: ") or len(said) > 800:
        return f"a message of {len(lines)} lines, {len(said)} letters"
    leak = LEAKS.search(said)
    if leak and "cannot be imported" not in said:
        return f"the message says {leak.group()}"
    if not any(word in said for word in words(drawn)):
        return "the message names nothing that was typed"
    if list(root.rglob("*.yaml")):
        return "a refused request left a folder behind"
    return None


def words(drawn: Drawn) -> set[str]:
    """What a helpful message about a request could name: a typed key, its last part, its group and the choice."""
    found = {"override"}  # of what could not be read at all
    for item in drawn.typed:
        key, _, value = item.lstrip("+~").partition("=")
        group, _, leaf = key.partition(".")
        found |= {key, leaf.rpartition(".")[2] or group, f"{group}=", f"{group}."}
        if not leaf:
            found |= {value}
    return {word for word in found if word}


def ignored(drawn: Drawn, root: Path) -> str | None:
    """The first typed key whose value is not in config.yaml; None where all are."""
    (file,) = root.rglob("config.yaml")
    config = yaml.safe_load(file.read_text())
    parser = OverridesParser.create()
    for override in parser.parse_overrides([_last for _last in drawn.typed]):
        key = override.key_or_group
        if key in ("debug", "experiment") or override.is_delete() or f"~{key}" in drawn.typed:
            continue  # a key that is taken away has its default
        if any(
            other.lstrip("+").split("=")[0] == key
            for other in drawn.typed[drawn.typed.index(override.input_line) + 1 :]
        ):
            continue  # a later one takes its place
        if key in GROUPS:
            wanted = yaml.safe_load((config_folder() / key / f"{override.value()}.yaml").read_text()).get("_target_")
            if config[key].get("_target_") != wanted:
                return f"{key}={override.value()} was ignored: {config[key].get('_target_')}"
            continue
        node, value = config, plain(override.value())
        for part in key.split("."):
            node = node.get(part, "not there") if isinstance(node, dict) else "not there"
        if not same(node, value) and "${" not in override.input_line:
            return f"{override.input_line}: config.yaml has {node!r}"
    return None


def plain(value: Any) -> Any:
    """A parsed value without the parser's own classes."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return getattr(value, "text", value)


def same(held: Any, given: Any) -> bool:
    """Whether config.yaml says what was typed: 5 and 5.0 are one number, '5' and 5 one name."""
    if isinstance(given, list):
        return isinstance(held, list) and len(held) == len(given) and all(map(same, held, given))
    if isinstance(given, dict):
        return isinstance(held, dict) and all(same(held.get(key, "not there"), item) for key, item in given.items())
    if isinstance(held, float) and isinstance(given, (int, float)):
        return math.isclose(held, given, rel_tol=1e-15)
    if isinstance(held, bool) and not isinstance(given, bool):
        return str(given).lower() in (("true", "yes", "on", "y", "1") if held else ("false", "no", "off", "n", "0"))
    with contextlib.suppress(ValueError):
        return held == given or str(held) == str(given) or (type(held) in (int, float) and held == float(given))
    return False


def cause(said: str) -> str:
    """The key that a refusal is about."""
    first = said.removeprefix("cl-run: ").splitlines()[0] if said else ""
    found = re.match(r"'?[+~]*([\w.@/]+)", first)
    return found.group(1) if found else first[:30]


def campaign(draws: Draws, count: int, root: Path, *, train: bool, verbose: bool) -> dict[str, Any]:
    """Sends requests until ``count`` are done (of training: until so many trained), and counts what came of them."""
    codes, causes, flavours, defects, seconds = Counter(), Counter(), Counter(), [], []
    trained, examples = 0, {}
    while sum(codes.values()) < count if not train else trained < count and sum(codes.values()) < 12 * count:
        drawn = draws.next()
        outcome = send(drawn, root / "out")
        if train and outcome.code == 0 and outcome.defect is None:
            outcome = send(drawn, root / "out", train=True)
            trained += outcome.code == 0
        if outcome.code == 130:  # a signal that came while a request was at work is ours
            raise KeyboardInterrupt
        name = {0: "plan", 2: "refused"}.get(outcome.code, f"exit {outcome.code}")  # type: ignore[arg-type]
        codes[name] += 1
        flavours[drawn.flavour, name] += 1
        seconds.append(outcome.seconds)
        if outcome.code == 2:
            causes[cause(outcome.said)] += 1
            examples.setdefault(cause(outcome.said), outcome.said.strip())
        if outcome.defect:
            defects.append(
                {"typed": drawn.typed, "defect": outcome.defect, "said": outcome.said, "flavour": drawn.flavour}
            )
            print(f"DEFECT {outcome.defect}\n   cl-run {' '.join(map(repr, drawn.typed))}\n   {outcome.said!r}"
                  .encode(errors="replace").decode(), flush=True)  # fmt: skip
        elif verbose:
            print(f"{name:8s} {outcome.seconds:5.2f} {outcome.said.strip()!r}\n   {drawn.typed!r}"
                  .encode(errors="replace").decode(), flush=True)  # fmt: skip
    done = sum(codes.values())
    return {
        "requests": done, "outcomes": dict(codes), "share_valid": codes["plan"] / max(done, 1), "defects": defects,
        "by_flavour": {f"{flavour}: {name}": number for (flavour, name), number in sorted(flavours.items())},
        "causes": dict(causes.most_common()), "examples": examples, "seconds": sum(seconds),
        "seconds_each": sum(seconds) / max(done, 1), "slowest": max(seconds, default=0.0),
    }  # fmt: skip


def show(title: str, table: dict[str, Any]) -> None:
    print(f"\n{title}")
    for key in ("requests", "outcomes", "share_valid", "by_flavour", "seconds", "seconds_each", "slowest"):
        value = table[key]
        print(f"  {key:14s} {f'{value:.3f}' if isinstance(value, float) else value}")
    print(f"  {'defects':14s} {len(table['defects'])}")
    print("  refused by key " + ", ".join(f"{key} {count}" for key, count in list(table["causes"].items())[:40]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=2000, help="requests to plan")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=0, help="requests to train a step of each task")
    parser.add_argument("--json", type=Path, help="where the tables go")
    parser.add_argument("--verbose", action="store_true", help="print every request")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    tables = {}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        os.environ |= {"CL_DATA_ROOT": str(root / "data"), "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
        os.chdir(root)
        draws = Draws(options.seed)
        tables["plans"] = campaign(draws, options.n, root, train=False, verbose=options.verbose)
        if options.train:
            draws = Draws(options.seed, data_in(root / "data"))
            tables["training"] = campaign(draws, options.train, root, train=True, verbose=options.verbose)
        os.chdir("/")
    for title, table in tables.items():
        show(title, table)
    if options.json:
        options.json.write_text(json.dumps({"seed": options.seed, **tables}, indent=1))
    sys.exit(any(table["defects"] for table in tables.values()))


if __name__ == "__main__":
    main()
