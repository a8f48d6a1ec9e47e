"""Which W&B run a run folder is: ``wandb.json``, written when it is first tracked and read whenever it goes on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import netrc
import os
import urllib.parse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from cl_runner.recording.redact import redact

FILE = "wandb.json"
DEFAULT_PROJECT = "cl-run"
DEFAULT_HOST = "https://api.wandb.ai"
_LONGEST_TAG = 64  # W&B refuses longer ones


@dataclass(frozen=True)
class Identity:
    """What W&B knows a run by.

    Attributes:
        id: the same for every attempt and every upload of the run.
        origin: Unix seconds of its first record; the steps of its history count from there.
    """

    id: str
    origin: float
    project: str = DEFAULT_PROJECT
    entity: str | None = None
    group: str | None = None
    job_type: str | None = None
    name: str | None = None
    tags: list[str] = field(default_factory=list)
    artifacts: bool = False

    def save(self, folder: Path) -> None:
        """Writes it into the run folder, whole or not at all."""
        partial = folder / f".{FILE}.partial"
        partial.write_text(json.dumps(redact(asdict(self)), indent=2) + "\n", encoding="utf-8")
        partial.replace(folder / FILE)

    @classmethod
    def load(cls, folder: Path) -> Identity | None:
        """Reads it from the run folder; None where the run was never tracked, or the file is damaged."""
        try:
            content = json.loads((folder / FILE).read_text(encoding="utf-8"))
            known = {item.name for item in fields(cls)}
            return cls(**{key: value for key, value in content.items() if key in known})
        except (OSError, ValueError, TypeError, AttributeError):
            return None


def derived_id(folder: Path, first: Mapping[str, Any]) -> str:
    """An id for a run that was not tracked: from its configuration and first record, so that a copy has the same."""
    content = (folder / "config.yaml").read_bytes() + json.dumps(first, sort_keys=True).encode()
    return hashlib.sha256(content).hexdigest()[:12]


def labelled(first: Mapping[str, Any], experiment: str, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Group, job type, name and tags of a run, from its first record where the user chose none.

    Args:
        first: the run's first record, whose labels name benchmark, backbone, adapter, strategy and seed.
        experiment: names the run.
        folder: the run folder.
        options: what was chosen: project, entity, group, job_type, name, tags, artifacts.
    """
    labels = first.get("labels") or {}
    kinds = [labels.get(key) for key in ("benchmark", "backbone", "adapter", "strategy")]
    tags = [str(tag)[:_LONGEST_TAG] for tag in [*kinds, *(options.get("tags") or [])] if tag]
    seed = None if labels.get("seed") is None else f"seed {labels['seed']}"
    words = [labels.get("adapter"), labels.get("strategy"), seed, folder.resolve().name]
    return {
        "project": options.get("project") or DEFAULT_PROJECT,
        "entity": options.get("entity"),
        "group": options.get("group") or labels.get("experiment") or experiment,
        "job_type": options.get("job_type") or labels.get("adapter"),
        "name": options.get("name") or " ".join(str(word) for word in words if word is not None),
        "tags": list(dict.fromkeys(tags)),
        "artifacts": bool(options.get("artifacts")),
    }


def has_credentials() -> bool:
    """Whether W&B would find credentials, without asking its package or the network."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urllib.parse.urlsplit(base_url()).netloc
    named = os.environ.get("NETRC")
    for place in [Path(named)] if named else [Path("~/.netrc"), Path("~/_netrc")]:
        with contextlib.suppress(OSError, RuntimeError, netrc.NetrcParseError):  # no such file, or no home
            if netrc.netrc(place.expanduser()).authenticators(host):
                return True
    return bool(_setting("api_key"))


def base_url() -> str:
    """Where W&B is."""
    return os.environ.get("WANDB_BASE_URL") or _setting("base_url") or DEFAULT_HOST


def _setting(name: str) -> str | None:
    """A value of W&B's own settings file, which ``wandb login --host`` writes."""
    folder = os.environ.get("WANDB_CONFIG_DIR") or "~/.config/wandb"
    with contextlib.suppress(OSError, RuntimeError, UnicodeDecodeError):
        for line in (Path(folder).expanduser() / "settings").read_text(encoding="utf-8").splitlines():
            key, sign, value = line.partition("=")
            if sign and key.strip() == name:
                return value.strip()
    return None
