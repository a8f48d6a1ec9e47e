"""``python -m cl_runner.recording.wandb_feed RUN``: the process that talks to W&B about one run.

A process of its own, so that nothing W&B does can reach the run: no exit hooks, no signals, no random state, no
output, no thread, and when it hangs it can be ended. It reads ``events.jsonl``; with ``--follow`` as it grows, until
standard input closes. Its last words are one line of JSON on standard output.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import select
import socket
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cl_runner.recording.events import read_events
from cl_runner.recording.redact import redact_text
from cl_runner.recording.wandb_identity import Identity, base_url, derived_id, has_credentials, labelled
from cl_runner.recording.wandb_records import Translation

POLL_SECONDS = 0.25
CONNECT_SECONDS = 5.0
NICE = 5  # training goes first, but other runs on the machine must not starve it
SHARE_OF_TIMEOUT = 0.8  # what W&B gets of it to finish, so that it can say itself that it could not
_SERVICE_GONE = ("HandleAbandonedError", "MailboxClosedError")


class Trouble(Exception):
    """Why W&B was not told, for a person."""


def main(argv: Sequence[str] | None = None) -> int:
    """Feeds one run to W&B; the exit code is 0, or 1 with the reason in the last line."""
    arguments = _parser().parse_args(argv)
    try:
        said = feed(arguments)
    except Trouble as trouble:
        said = {"problem": str(trouble)}
    except Exception as error:  # whatever W&B raises
        said = {"problem": _explained(error)}
    said["problem"] = said.get("problem") and " ".join(redact_text(said["problem"]).split())[:300]
    sys.__stdout__.write(json.dumps(said) + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]
    os._exit(1 if said["problem"] else 0)  # W&B's exit hooks would wait for what is lost


def _explained(error: Exception) -> str:
    kind = type(error).__name__
    if isinstance(error, ConnectionError) or kind in _SERVICE_GONE:
        return f"W&B's own process ended ({kind})"
    reason = f"{kind}: {error}"
    refused = "error 401" in reason or kind == "AuthenticationError"
    return f"the credentials are refused ({reason})" if refused else reason


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--mode", choices=("online", "offline"), required=True)
    parser.add_argument("--follow", action="store_true", help="go on until standard input closes")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to connect, and with --follow to finish")
    parser.add_argument("--project")
    parser.add_argument("--entity")
    parser.add_argument("--watch", type=int, help="the process whose memory and load W&B shows")
    return parser


def feed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Sends the run's records; returns where they went.

    Raises:
        Trouble: W&B cannot be reached, refuses the credentials, or cannot write its files.
    """
    folder: Path = arguments.folder
    log = folder / "events.jsonl"
    records = _following(log) if arguments.follow else read_events(log)
    first = next(records, None)
    if first is None:
        raise Trouble(f"{log} holds no record")
    identity = _identity(folder, first, arguments)
    with contextlib.suppress(OSError):
        os.nice(NICE if arguments.follow else 0)
    prepare(folder, arguments.mode)
    from cl_runner.recording.wandb_run import WandbRun  # imports wandb, which takes a second

    finish = SHARE_OF_TIMEOUT * arguments.timeout if arguments.follow else 0.0
    run = WandbRun(folder, identity, arguments.mode, arguments.timeout, finish, arguments.watch)
    translation = Translation(identity.origin)
    run.do(translation.opening())
    sent = 0
    for record in itertools.chain([first], records):
        run.do(translation.feed(record))
        sent += 1
    run.do(translation.closing())
    if run.lacking:
        raise Trouble(f"not sent: {', '.join(run.lacking)}")
    return {"records": sent, "url": run.url, "directory": run.directory}


def _identity(folder: Path, first: dict[str, Any], arguments: argparse.Namespace) -> Identity:
    """The run's, or a new one for a run that was not tracked."""
    chosen = {key: value for key in ("project", "entity") if (value := getattr(arguments, key)) is not None}
    identity = Identity.load(folder)
    if identity is None:
        options = labelled(first, folder.resolve().parent.name, folder, chosen)
        identity = Identity(id=derived_id(folder, first), origin=float(first["time"]), **options)
    elif chosen.items() <= dataclasses.asdict(identity).items():
        return identity
    identity = dataclasses.replace(identity, **chosen)
    with contextlib.suppress(OSError):  # a folder of someone else's: its id is derived again the next time
        identity.save(folder)
    return identity


def _following(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a log that grows, until standard input closes and no more are there."""
    rest, over = b"", False
    with path.open("rb") as file:
        while True:
            *lines, rest = (rest + file.read()).split(b"\n")
            for line in lines:
                with contextlib.suppress(ValueError):  # half a line, taken back by the log when the disk was full
                    record = json.loads(line)
                    if isinstance(record, dict):
                        yield record
            if over:
                return
            over = bool(select.select([sys.stdin], [], [], POLL_SECONDS)[0])


def prepare(folder: Path, mode: str) -> None:
    """Keeps W&B inside the run folder, and says early and in a line what would keep it from working.

    Raises:
        Trouble: its folder cannot be written, or in mode online there are no credentials or no way to the server.
    """
    place = folder / "wandb"
    try:
        place.mkdir(exist_ok=True)
        probe = place / ".writable"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise Trouble(f"cannot write {place}: {(error.strerror or str(error)).lower()}") from error
    os.environ.setdefault("WANDB_DATA_DIR", str(place / "data"))
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.pop("WANDB_SERVICE", None)  # a service of another process would live and die with that one
    if mode == "offline":
        return
    if not has_credentials():
        raise Trouble("no credentials: set WANDB_API_KEY or run `wandb login`")
    url = base_url()
    target = urllib.parse.urlsplit(url)
    if urllib.request.getproxies() or os.environ.get("WANDB_HTTPS_PROXY") or os.environ.get("WANDB_HTTP_PROXY"):
        return  # the way leads through somebody else
    try:
        port = target.port or (80 if target.scheme == "http" else 443)
        socket.create_connection((target.hostname or "", port), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Trouble(f"{url} cannot be reached: {reason.lower()}") from error


if __name__ == "__main__":
    main()
