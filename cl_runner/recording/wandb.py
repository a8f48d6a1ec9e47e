"""Weights & Biases as a tracker. Imports nothing of W&B: a process of its own does, and reads the event log."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cl_runner.recording.wandb_identity import Identity, has_credentials, labelled

INTERRUPTED_SECONDS = 10.0  # whoever interrupts a run wants it to end
_MODULE = "cl_runner.recording.wandb_feed"


class WandbTracker:
    """Has W&B told about a run while it goes on.

    The first record starts a process that follows ``events.jsonl``; every later one only looks whether that process
    is alive, which costs some ten microseconds. Closing waits for it, but never longer than ``options["timeout"]``.
    What goes wrong over there is one exception here, which the recorder turns into one warning; the event log has
    everything, and ``cl-report sync`` sends it later.

    Args:
        folder: the run folder.
        options: the configuration's `tracking.wandb`.
        experiment: names the run; the default group.
        say: shows a line to the user.
    """

    def __init__(
        self, folder: Path, options: Mapping[str, Any], experiment: str, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self._folder = Path(folder)
        self._options = options
        self._experiment = experiment
        self._say = say
        self._timeout = float(options["timeout"])
        self._process: subprocess.Popen[bytes] | None = None

    def log(self, event: dict[str, Any]) -> None:
        """Receives one event, which the event log has written already."""
        if self._process is None:
            self._start(event)
        elif self._process.poll() is not None:
            raise RuntimeError(self._problem())
        if event["event"] == "run_ended" and event.get("status") == "interrupted":
            self._timeout = min(self._timeout, INTERRUPTED_SECONDS)

    def close(self) -> None:
        """Lets W&B finish; says where the run is."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # it has ended already
            self._process.stdin.write(b"end\n")  # a forked worker may hold the pipe open, so closing is not enough
            self._process.stdin.close()
        try:
            self._process.wait(self._timeout)
        except subprocess.TimeoutExpired:
            self._kill()
            raise RuntimeError(f"W&B was not done after {self._timeout:g} s; {self._upload()}") from None
        except BaseException:
            self._kill()
            raise
        if self._process.returncode:
            raise RuntimeError(self._problem())
        said = self._last_words()
        if said.get("url"):
            self._say(f"W&B: {said['url']}")
        else:
            self._say(f"W&B is offline; {self._upload()} (or wandb sync {said.get('directory')})")

    def _start(self, first: Mapping[str, Any]) -> None:
        old = Identity.load(self._folder)
        in_sweep = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
        identity = Identity(
            id=in_sweep or (old.id if old else secrets.token_hex(6)),
            origin=old.origin if old else float(first["time"]),
            **labelled(first, self._experiment, self._folder, self._options),
        )
        if in_sweep:
            project, entity = (os.environ.get(f"WANDB_{name}") for name in ("PROJECT", "ENTITY"))
            identity = dataclasses.replace(identity, project=project or identity.project, entity=entity)
        identity.save(self._folder)
        command = [sys.executable, "-P", "-m", _MODULE, str(self._folder.resolve()), "--follow"]
        command += ["--mode", resolved_mode(str(self._options["mode"])), "--timeout", str(self._timeout)]
        self._process = subprocess.Popen(
            [*command, "--watch", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "MPLBACKEND": "Agg"},
            start_new_session=True,  # Ctrl-C is meant for the run, which tells this process what became of it
        )

    def _last_words(self) -> dict[str, Any]:
        assert self._process is not None and self._process.stdout is not None
        lines = self._process.stdout.read().splitlines()
        with contextlib.suppress(ValueError, IndexError):  # killed before it said anything
            return dict(json.loads(lines[-1]))
        return {}

    def _problem(self) -> str:
        assert self._process is not None
        reason = self._last_words().get("problem")
        return f"{reason or f'its process ended with {self._process.returncode}'}; {self._upload()}"

    def _upload(self) -> str:
        return f"upload the run with: cl-report sync {self._folder}"

    def _kill(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def resolved_mode(mode: str) -> str:
    """What `tracking.wandb.mode` means here: auto is WANDB_MODE, else online where there are credentials."""
    if mode != "auto":
        return mode
    named = os.environ.get("WANDB_MODE")
    if named in ("online", "offline", "disabled"):
        return named
    return "online" if has_credentials() else "offline"
