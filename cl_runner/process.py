"""The process of the command: when it started, how it imports, and how it ends."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

LONGEST_START = 600.0  # seconds from a process's start to the command; more is a clock that means something else


def process_start() -> float | None:
    """When this process started, on the clock of `time.perf_counter`, to 10 ms; None where that cannot be known."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    if clock is None or not sys.platform.startswith("linux"):
        return None
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        age = time.clock_gettime(clock) - float(fields[19]) / os.sysconf("SC_CLK_TCK")  # field 22 of proc(5)
    except (OSError, ValueError, IndexError):
        return None
    return time.perf_counter() - age if 0 <= age <= LONGEST_START else None


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Around the imports of torch and Avalanche: they make a million objects, and all of them stay.

    Looking through those for garbage again and again takes a fifth of the time of importing, and each full search
    afterwards 0.4 s. So nothing is searched while they come, and they are left out of what is searched later, until the
    process ends. Where torch was there before, others have made objects since that may well become garbage, and nothing
    is left out.
    """
    first, searching = "torch" not in sys.modules, gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if first and "torch" in sys.modules:
            gc.freeze()
            atexit.register(gc.unfreeze)  # some libraries count what is left, and complain
        if searching:
            gc.enable()


def leave(code: int) -> NoReturn:
    """Ends this process, which has nothing else to do, with an exit code.

    Python would take every imported module apart first, which takes 1.5 s after torch and Avalanche, and frees what the
    system frees anyway. What was registered for the end is still called, and what was written is flushed. Where
    something is left that must be waited for, Python ends the process.
    """
    others = [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    multiprocessing = sys.modules.get("multiprocessing")
    if "torch" not in sys.modules or others or (multiprocessing is not None and multiprocessing.active_children()):
        sys.exit(code)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # nobody reads what was written; Python says so
        sys.exit(code)
    os._exit(code)
