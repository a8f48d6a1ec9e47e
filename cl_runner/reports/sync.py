"""``cl-report sync RUN...``: sends runs to W&B from their folders, whatever became of them."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cl_runner.errors import RequestError

_FEED = "cl_runner.recording.wandb_feed"  # a process of its own for each run, as while it was running


def main(argv: Sequence[str]) -> int:
    """Sends the runs found under the paths, one after another.

    Args:
        argv: the arguments after ``sync``.

    Returns:
        The exit code: 0, or 2 where a run could not be sent, after a line on standard error for each.
    """
    arguments = _parser().parse_args(argv)
    mode = "offline" if arguments.offline else arguments.mode
    failed = False
    try:
        folders = _runs(arguments.runs)
        for folder in folders:
            said = _send(folder, mode, arguments)
            if said.get("problem"):
                failed = True
                sys.stderr.write(f"cl-report sync: {folder}: {said['problem']}\n")
            else:
                where = said.get("url") or f"offline, upload with: wandb sync {said.get('directory')}"
                sys.stdout.write(f"{folder}: {said['records']} records, {where}\n")
                sys.stdout.flush()
    except RequestError as error:
        sys.stderr.write(f"cl-report sync: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 2 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cl-report sync",
        description="Sends runs to Weights & Biases from events.jsonl, also those that failed or were interrupted. "
        "Sending a run again adds nothing.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="a run folder, or a folder of such folders")
    parser.add_argument("--mode", choices=("online", "offline"), default="online", help="default: online")
    parser.add_argument("--offline", action="store_true", help="as --mode offline: write W&B's files, send nothing")
    parser.add_argument("--project", help="default: the run's own, else cl-run")
    parser.add_argument("--entity", help="user or team; default: the run's own, else W&B's default")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="SECONDS", help="to connect; default: 60")
    return parser


def _runs(paths: Sequence[Path]) -> list[Path]:
    """The run folders among and under the paths."""
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            raise RequestError(f"{path} is not a folder" if path.exists() else f"{path} does not exist")
        logs = sorted(log for log in path.rglob("events.jsonl") if (log.parent / "config.yaml").is_file())
        if not logs:
            raise RequestError(
                f"no run found under {path}", "a run folder holds config.yaml and events.jsonl; plans have no events"
            )
        found += [log.parent for log in logs]
    return list(dict.fromkeys(found))


def _send(folder: Path, mode: str, arguments: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-P", "-m", _FEED, str(folder.resolve()), "--mode", mode]
    command += ["--timeout", str(arguments.timeout)]
    for name in ("project", "entity"):
        if getattr(arguments, name) is not None:
            command += [f"--{name}", getattr(arguments, name)]
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return {"problem": f"the process that talks to W&B ended with {done.returncode}: {last}"}
