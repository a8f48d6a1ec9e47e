"""Reads a W&B run's `.wandb` file: LevelDB's log format, https://github.com/google/leveldb/blob/main/doc/log_format.md.

Written from that description, for the package has no public reader. A file is blocks of 32 KiB; the first holds 7
bytes of W&B's own header. A record's header is CRC (4 bytes), length (2, little endian) and type: 1 whole, 2 first,
3 middle, 4 last part. A block's last bytes are zeros where no header fits.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BLOCK, HEADER, OWN_HEADER = 32768, 7, 7


def parts(content: bytes) -> Iterator[bytes]:
    """The records of a log, put together."""
    assert content[:4] == b":W&B"
    place, gathered = OWN_HEADER, b""
    while place < len(content):
        left = BLOCK - place % BLOCK
        if left < HEADER:
            place += left
            continue
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        kind = content[place + 6]
        if kind == 0:  # padding
            place += left
            continue
        gathered += content[place + HEADER : place + HEADER + length]
        place += HEADER + length
        if kind in (1, 4):
            yield gathered
            gathered = b""


@dataclass
class Seen:
    """What one run's files hold."""

    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, str] = field(default_factory=dict)  # metric or glob: its step metric
    run: Any = None
    exit_code: int | None = None
    artifacts: list[Any] = field(default_factory=list)
    raw: bytes = b""
    folder: Path = Path()

    def values(self, key: str) -> list[Any]:
        """A metric's values in the order they were logged."""
        return [row[key] for row in self.history if key in row]

    def table(self, name: str) -> list[dict[str, Any]]:
        """A table's rows."""
        (entry,) = self.values(name)
        content = json.loads((self.folder / "files" / entry["path"]).read_text())
        return [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]


def nested(items: Any) -> dict[str, Any]:
    """The values of a record by key; a key of several words is a mapping in a mapping."""
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = list(item.nested_key) or [item.key]
        place = found
        for word in outer:
            place = place.setdefault(word, {})
        place[last] = json.loads(item.value_json)
    return found


def read_run(path: Path) -> Seen:
    """Reads `run-ID.wandb` through W&B's own protobuf."""
    from wandb.proto.wandb_internal_pb2 import Record

    seen = Seen(raw=path.read_bytes(), folder=path.parent)
    for part in parts(seen.raw):
        record = Record.FromString(part)
        match record.WhichOneof("record_type"):
            case "run":
                seen.run = record.run
                seen.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            case "history":
                seen.history.append(nested(record.history.item))
            case "summary":
                seen.summary |= nested(record.summary.update)
            case "metric":
                seen.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
            case "exit":
                seen.exit_code = record.exit.exit_code
            case "artifact":
                seen.artifacts.append(record.artifact)
            case _:
                pass
    return seen


def only_run(folder: Path) -> Seen:
    """The one run that W&B has files of in a run folder."""
    (path,) = folder.glob("wandb/*run-*/run-*.wandb")
    return read_run(path)
