"""What a run ran on: versions, commit, device. No environment variables, host names or secrets."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import cl_runner

PACKAGES = ("cl-runner", "torch", "torchvision", "avalanche-lib", "pytorchcv", "numpy", "hydra-core")


def describe(
    device: str, seeds: dict[str, int | None], class_order: list[Any] | None, deterministic: bool
) -> dict[str, Any]:
    """Describes the machine and the software for ``environment.json``.

    Args:
        device: the torch device the run uses, e.g. "cpu", "cuda:0".
        seeds: every seed by name.
        class_order: the classes in the order of the stream; None where a stream has no classes.
        deterministic: whether deterministic algorithms were asked for.

    Returns:
        Python numbers, strings, lists and dicts; None for what cannot be found out. Torch is asked only
        where the run has loaded it already.
    """
    package = Path(cl_runner.__file__).parent
    own_checkout = _command(package, "git", "ls-files", "--error-unmatch", "__init__.py") is not None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {"model": _cpu_model(), "count": os.cpu_count(), "usable": _usable_cpus()},
        "versions": {name: _version(name) for name in PACKAGES},
        "git": _commit(Path.cwd()),
        "package_git": _commit(package) if own_checkout else None,
        "device": device,
        **_torch_facts(device),
        "seeds": dict(seeds),
        "class_order": None if class_order is None else list(class_order),
        "deterministic": deterministic,
    }


def _torch_facts(device: str) -> dict[str, Any]:
    facts: dict[str, Any] = {"device_name": None, "driver": None, "cuda": None, "cudnn": None, "threads": None}
    torch = sys.modules.get("torch")
    if torch is None:
        return facts
    facts["threads"] = {"intra_op": torch.get_num_threads(), "inter_op": torch.get_num_interop_threads()}
    if device.startswith("cuda") and torch.cuda.is_available():
        facts["device_name"] = torch.cuda.get_device_name(device)
        facts["driver"] = _driver()
        facts["cuda"] = torch.version.cuda
        facts["cudnn"] = torch.backends.cudnn.version()
    return facts


def _commit(folder: Path) -> dict[str, Any] | None:
    """Returns commit and dirty flag (changes to tracked files) of the checkout around ``folder``, None without one."""
    commit = _command(folder, "git", "rev-parse", "HEAD")
    if not commit:
        return None
    changes = _command(folder, "git", "--no-optional-locks", "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changes is None else bool(changes)}


def _driver() -> str | None:
    query = ("--query-gpu=driver_version", "--format=csv,noheader", "--id=0")
    if answer := _command(Path.cwd(), "nvidia-smi", *query):
        return answer
    version = Path("/proc/driver/nvidia/version")
    found = re.search(r"\s(\d+\.\d+(?:\.\d+)?)\s", version.read_text()) if version.exists() else None
    return found[1] if found else None


def _cpu_model() -> str | None:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        return found[1].strip() if found else platform.machine()
    if sys.platform == "darwin":
        return _command(Path.cwd(), "sysctl", "-n", "machdep.cpu.brand_string")
    return platform.processor() or None


def _usable_cpus() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _command(folder: Path, *command: str) -> str | None:
    """Returns what a command answers, None where it is not installed, fails or takes longer than 5 s."""
    try:
        answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
