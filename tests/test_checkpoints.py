"""Checkpoints on disk: whole or not there, the last two kept, damage recognised, states as they were."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import pickle
import random
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs_helpers import small_run
from safetensors.torch import load, save

from cl_runner.config.compose import compose
from cl_runner.errors import RequestError
from cl_runner.keeping.keeper import Keeper
from cl_runner.keeping.packing import JOINED, SMALL, Packer, Unpacker, fingerprint
from cl_runner.keeping.reading import last_of, read_state
from cl_runner.recording import durable
from cl_runner.recording.checkpoints import Checkpoints
from cl_runner.recording.durable import sha256_of, write_whole
from cl_runner.runner import run

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import chaos  # noqa: E402
import damage  # noqa: E402

CPU = torch.device("cpu")

# ------------------------------------------------------------------------------------------------------------- files


def test_a_file_is_there_as_a_whole_or_not_at_all(tmp_path):
    place = tmp_path / "file"
    digest = write_whole(place, [b"ab", memoryview(b"cd")])
    assert place.read_bytes() == b"abcd" and digest == hashlib.sha256(b"abcd").hexdigest() == sha256_of(place)
    assert sha256_of(place, 2) == hashlib.sha256(b"ab").hexdigest() and sha256_of(place, 9) == digest
    assert sha256_of(place, 0) == hashlib.sha256().hexdigest()

    def interrupted():
        yield b"other"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_whole(place, interrupted())
    assert place.read_bytes() == b"abcd"


def test_it_is_on_the_disk_before_it_takes_its_place(tmp_path, monkeypatch):
    calls: list[str] = []
    for module, name in ((os, "write"), (os, "fsync"), (Path, "replace"), (durable, "flush_folder")):
        real = getattr(module, name)

        def noted(*given: Any, _real: Any = real, _name: str = name) -> Any:
            calls.append(_name)
            return _real(*given)

        monkeypatch.setattr(module, name, noted)
    write_whole(tmp_path / "file", [b"abcd"])
    assert calls == ["write", "fsync", "replace", "flush_folder", "fsync"]
    calls.clear()
    write_whole(tmp_path / "file", [b"abcd"], more=True)
    assert calls == ["write", "fsync", "replace"], "the folder is flushed with the file after it"


@pytest.mark.parametrize("written", [0, 3])
def test_a_full_disk_leaves_what_was_there(written, tmp_path, monkeypatch):
    place = tmp_path / "file"
    write_whole(place, [b"before"])
    write, left = os.write, [written]

    def full(file: int, data: Any) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        return write(file, data[:1])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RequestError, match=f"no space left on device while writing {place}"):
        write_whole(place, [b"after"])
    assert [item.name for item in tmp_path.iterdir()] == ["file"] and place.read_bytes() == b"before"


def test_a_disk_that_takes_a_byte_at_a_time(tmp_path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:1]))
    write_whole(tmp_path / "file", [b"abc", b"", b"de"])
    assert (tmp_path / "file").read_bytes() == b"abcde"


# ------------------------------------------------------------------------------------------------------- checkpoints


class Written:
    """A run folder whose checkpoints are written here."""

    def __init__(self, run: Path) -> None:
        self.run, self.checkpoints, self.said = run, Checkpoints(run), []
        self.events = run / "events.jsonl"
        self.events.write_bytes(b"")

    def write(self, base: int | None = None, **state: Any) -> int:
        with self.events.open("ab") as file:
            file.write(b'{"event": "step"}\n')
        content = self.events.read_bytes()
        numbered = save({"a": torch.tensor([float(len(content))])})
        until = len(content), hashlib.sha256(content).hexdigest()
        return self.checkpoints.write("somewhere", state, numbered, events=until, base=base)

    def latest(self) -> int | None:
        self.said.clear()
        found = Checkpoints(self.run).latest(self.said.append)
        return None if found is None else found.number

    def file(self, number: int, kind: str = "json") -> Path:
        return self.run / "checkpoints" / f"{number:06d}.{kind}"

    def files(self) -> set[str]:
        return {item.name for item in (self.run / "checkpoints").iterdir()}


@pytest.fixture
def written(tmp_path):
    return Written(tmp_path)


def spoil(place: Path) -> None:
    content = bytearray(place.read_bytes())
    content[len(content) // 2] ^= 1
    place.write_bytes(content)


def test_a_checkpoint_is_read_as_it_was_written(written):
    assert written.latest() is None and written.checkpoints.numbers() == []
    first = written.write(value=[1, 2.5, None, "three", {"four": True}])
    second = written.write(first, value="later")
    found = Checkpoints(written.run).latest(pytest.fail)
    assert found is not None and found.base is not None
    assert (found.number, found.where, found.base.number, found.base.base) == (second, "somewhere", first, None)
    assert found.state == {"value": "later"} and found.base.state == {"value": [1, 2.5, None, "three", {"four": True}]}
    assert found.events == written.events.stat().st_size > found.base.events
    assert found.tensors == written.file(second, "safetensors")


def test_the_last_two_are_kept_and_what_they_stand_on(written):
    kept = []
    for base in (None, 1, 1, 1, None, 5, 5, None, 8):
        written.write(base)
        kept.append(written.checkpoints.numbers())
    assert kept == [[1], [1, 2], [1, 2, 3], [1, 3, 4], [1, 4, 5], [1, 5, 6], [1, 5, 6, 7], [5, 7, 8], [5, 8, 9]]
    assert written.files() == {f"{number:06d}.{kind}" for number in (5, 8, 9) for kind in ("json", "safetensors")}
    assert written.latest() == 9


def test_another_process_prunes_as_the_first_would(written):
    for base in (None, 1, 1):
        written.write(base)
    written.checkpoints = Checkpoints(written.run)
    assert written.write(1) == 4 and written.checkpoints.numbers() == [1, 3, 4]


def test_only_what_is_a_checkpoint_s_is_removed(written):
    written.write()
    folder = written.run / "checkpoints"
    for name in ("notes.json", "\u00b2.json", "mine.safetensors"):
        (folder / name).write_bytes(b"mine")
    (folder / ".000002.safetensors.partial").write_bytes(b"of a killed process")
    (folder / "000007.safetensors").write_bytes(b"of a killed process, which never came to its JSON file")
    written.write()
    assert written.checkpoints.numbers() == [1, 2]
    names = {"notes.json", "\u00b2.json", "mine.safetensors"}
    assert written.files() == names | {f"{number:06d}.{kind}" for number in (1, 2) for kind in ("json", "safetensors")}


def test_damage_falls_back_along_what_a_checkpoint_stands_on(written):
    for base in (None, 1, None, 3, 3):
        written.write(base)
    assert written.checkpoints.numbers() == [1, 3, 4, 5] and written.latest() == 5 and not written.said
    spoil(written.file(5, "safetensors"))
    assert written.latest() == 4 and len(written.said) == 1
    assert written.said[0].startswith("checkpoint 5 cannot be used: ") and "000005.safetensors" in written.said[0]
    spoil(written.file(3))
    assert written.latest() == 1
    assert ["000003.json" in text for text in written.said] == [False, True, True]
    written.file(1, "safetensors").unlink()
    assert written.latest() is None and "000001.safetensors cannot be read" in written.said[-1]


def test_the_events_before_a_checkpoint_belong_to_it(written):
    for _ in range(2):
        written.write()
    size = written.events.stat().st_size
    with written.events.open("ab") as file:
        file.write(b"of a later time\n")
    assert written.latest() == 2 and not written.said
    os.truncate(written.events, size - 1)
    assert written.latest() == 1 and "events.jsonl is damaged" in written.said[0]
    spoil(written.events)
    assert written.latest() is None or written.said


def test_one_that_was_refused_makes_room_for_another(written):
    for base in (None, 1, 1):
        written.write(base)
    spoil(written.file(3))
    assert written.latest() == 2
    written.checkpoints.forget_after(2)
    assert written.checkpoints.numbers() == [1, 2] and not written.file(3, "safetensors").exists()
    assert written.write(1) == 3 and written.latest() == 3
    written.checkpoints.clear()
    assert written.files() == set()


@pytest.mark.parametrize(("one", "other"), [((1, "json"), (2, "json")), ((1, "safetensors"), (2, "safetensors"))])
def test_files_that_changed_places(one, other, written):
    for _ in range(2):
        written.write()
    first, second = written.file(*one), written.file(*other)
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert written.latest() is None and len(written.said) == 2


def test_a_full_disk_leaves_the_earlier_ones(written, monkeypatch):
    for base in (None, 1):
        written.write(base)
    before = {name: (written.run / "checkpoints" / name).read_bytes() for name in written.files()}
    write, writes = os.write, []

    def full(file: int, data: Any) -> int:
        writes.append(1)
        if len(writes) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(file, data)

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(RequestError, match=r"no space left on device while writing .*000003\.json"):
            written.write(1)
    after = {name: (written.run / "checkpoints" / name).read_bytes() for name in written.files()}
    assert after == before, "the tensors whose JSON file could not be written take up the room that is left"
    assert written.write(1) == 3


def test_a_place_where_nothing_can_be_written_is_named(written):
    (written.run / "checkpoints").write_text("a file")
    with pytest.raises(RequestError, match=str(written.run / "checkpoints")):
        written.write()


# ------------------------------------------------------------------------------------------------ what is no checkpoint


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def sealed(content: bytes) -> bytes:
    """Content with the checksum that a checkpoint has."""
    return b'{"sha256": "' + hashlib.sha256(content).hexdigest().encode() + b'",\n"content": ' + content + b"}\n"


def test_a_pickle_in_the_place_of_a_checkpoint_is_never_opened(written, tmp_path):
    mark = tmp_path / "executed"
    pickled = pickle.dumps(Payload(mark))
    pickle.loads(pickled)
    assert mark.exists(), "the payload works"
    mark.unlink()
    saved = tmp_path / "saved.pt"
    torch.save(Payload(mark), saved)
    for content in (pickled, saved.read_bytes()):
        for number, kind in ((2, "json"), (2, "safetensors")):
            written.checkpoints.clear()
            for base in (None, 1):
                written.write(base)
            written.file(number, kind).write_bytes(content)
            assert written.latest() == 1 and len(written.said) == 1
            written.file(2).write_bytes(sealed(content))  # with the right checksum
            assert written.latest() == 1 and "holds no checkpoint" in written.said[0]
    assert not mark.exists()


def test_a_pickle_with_the_right_checksum_in_the_place_of_tensors(written, tmp_path):
    mark = tmp_path / "executed"
    content = pickle.dumps(Payload(mark))
    written.write()
    text = json.loads(written.file(1).read_text())["content"]
    text["tensors"] = [len(content), hashlib.sha256(content).hexdigest()]
    written.file(1, "safetensors").write_bytes(content)
    written.file(1).write_bytes(sealed(json.dumps(text).encode()))
    found = last_of(written.run, pytest.fail)
    with pytest.raises(RequestError, match=r"000001\.safetensors is no file of tensors"):
        read_state(found, lambda name: pytest.fail(name), CPU)
    assert not mark.exists()


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"null", b'{"format": 1}', b"[" * 5000, b'{"format":1,"number":1,"base":"x"}', b"\xff"]
)
def test_what_has_the_right_checksum_and_is_no_checkpoint(content, written):
    written.write()
    written.file(1).write_bytes(sealed(content))
    assert written.latest() is None and "000001.json holds no checkpoint" in written.said[0]


def test_a_checkpoint_of_another_version_is_told_apart_from_damage(written):
    written.write()
    content = json.loads(written.file(1).read_text())["content"] | {"format": 2}
    written.file(1).write_bytes(sealed(json.dumps(content).encode()))
    assert written.latest() is None and "is of format 2, and this version reads 1" in written.said[0]


def test_a_checkpoint_that_stands_on_itself(written):
    written.write()
    content = json.loads(written.file(1).read_text())["content"] | {"base": 1}
    written.file(1).write_bytes(sealed(json.dumps(content).encode()))
    assert written.latest() is None and "000001.json" in written.said[0]


# ---------------------------------------------------------------------------------------------------------- the states

DTYPES = [
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]
SHAPES = [(), (0,), (3, 0, 2), (1,), (7,), (2, 3), (5, 1, 2), (SMALL + 1,), (2, SMALL)]


@st.composite
def tensors(draw: Any) -> torch.Tensor:
    shape, dtype = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(DTYPES))
    kind = draw(st.sampled_from(["zeros", "minus zeros", "numbers", "not finite", "turned"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 3)))
    made = torch.randn(shape, generator=generator) * 3
    if kind == "zeros":
        made = torch.zeros(shape)
    elif kind == "minus zeros":
        made = -torch.zeros(shape)
    elif kind == "not finite" and made.numel():
        made.reshape(-1)[0] = draw(st.sampled_from([math.nan, math.inf, -math.inf]))
    if kind == "turned":
        made = made.T if made.dim() == 2 else made
    return made.nan_to_num(0, 0, 0).to(dtype) if not dtype.is_floating_point else made.to(dtype)


plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
keys = st.one_of(st.text(max_size=4), st.just("~tensor"), st.integers(), st.booleans(), st.tuples(st.integers()))
states = st.recursive(
    st.one_of(plain, tensors()),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
    ),
    max_leaves=8,
)


def alike(one: Any, other: Any) -> bool:
    """Equal to the bit, and of one type."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and fingerprint(one) == fingerprint(other)
    if isinstance(one, float):
        return repr(one) == repr(other)
    if isinstance(one, dict):
        same = list(map(repr, one)) == list(map(repr, other))
        return same and all(alike(a, b) for a, b in zip(one.values(), other.values(), strict=True))
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(alike(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def through_disk(value: Any, known: dict[str, torch.Tensor] | None = None) -> Any:
    """Packs a state, writes and reads both parts, and unpacks it."""
    known = known or {}
    packer = Packer({fingerprint(item): name for name, item in known.items()})
    text = json.dumps(packer.pack(value), allow_nan=False)
    stored = packer.tensors()
    return Unpacker(load(save(stored)) if stored else {}, known.__getitem__, CPU).unpack(json.loads(text))


@given(states)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_state_comes_back_as_it_was(value):
    assert alike(through_disk(value), value)


def test_tensors_that_are_large_equal_or_views_of_one_another():
    large = torch.randn(JOINED + 1)
    shared = torch.randn(40, 50)
    state = {"large": large, "again": large, "row": shared[3], "column": shared[:, 7], "whole": shared, "t": shared.T}
    found = through_disk(state)
    assert alike(found, state)
    found["large"].zero_()
    assert found["again"].any(), "two tensors of a state share no memory"
    packer = Packer()
    packer.pack(state)
    stored = packer.tensors()
    assert sum(item.numel() for item in stored.values()) == large.numel() + 2 * shared.numel() + 50 + 40


def test_small_tensors_are_stored_together():
    packer = Packer()
    packer.pack([torch.full((number % 7,), float(number)) for number in range(500)])
    assert list(packer.tensors()) == ["float32 cpu"]


def test_what_can_be_had_again_is_named_and_checked():
    weight = torch.randn(SMALL + 1)
    assert alike(through_disk({"a": weight, "b": weight + 1}, {"w": weight}), {"a": weight, "b": weight + 1})
    packer = Packer({fingerprint(weight): "w"})
    packed = packer.pack([weight])
    assert not packer.tensors()
    with pytest.raises(LookupError, match="w"):
        Unpacker({}, lambda name: weight + 1, CPU).unpack(packed)


def test_a_state_holds_nothing_that_would_have_to_be_imported():
    with pytest.raises(TypeError, match="a state holds no Payload"):
        Packer().pack({"a": [Payload(Path())]})


# ------------------------------------------------------------------------------------------------------------- damages


class Killed(BaseException):
    """As by SIGKILL."""


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """A run that came to its end, and one that was killed in its last task."""
    typed = ("strategy=ewc", "trainer.checkpoint_minutes=0", "trainer.checkpoint_epochs=1", "benchmark.n_tasks=3",
             "benchmark.first_task_classes=4")  # fmt: skip
    calm = small_run(tmp_path_factory.mktemp("calm"), *typed).folder
    root = tmp_path_factory.mktemp("killed")
    stepped = Keeper.stepped

    def killed(self: Keeper, strategy: Any) -> None:
        stepped(self, strategy)
        if strategy.experience.current_experience == 2 and self.step == 2:
            raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Keeper, "stepped", killed)
        with pytest.raises(Killed):
            small_run(root, *typed)
    folder = next(root.glob("*/*/config.yaml")).parent
    shutil.copytree(folder, root / "copy")
    whole, said = damage.readable(root / "copy")
    assert len(whole) >= 4 and not said
    return calm, folder, whole


@pytest.mark.parametrize("seed", range(6))
def test_damage_to_any_file_is_recognised(seed, interrupted, tmp_path, capfd):
    calm, folder, whole = interrupted
    draw = random.Random(seed)
    count = len(list((folder / "checkpoints").iterdir())) + 1
    for number in range(10):
        copy = tmp_path / str(number) / folder.parent.name / "run"
        shutil.copytree(folder, copy)
        files = [*sorted((copy / "checkpoints").iterdir()), copy / "events.jsonl"]
        told, before = damage.harm(copy, draw, files[(10 * seed + number) % count], files)
        if number == 9:
            shutil.copytree(copy, again := tmp_path / "again" / folder.parent.name / "run")
        lost, problems = damage.judged(whole, copy, before)
        assert not problems, told
    there = (again / "checkpoints" / f"{max(whole):06d}.json").exists()
    capfd.readouterr()
    result = run(compose([f"resume={again}"]), overrides=[f"resume={again}"])
    assert chaos.compare(calm, result.folder) == [], told
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert ("cannot be used" in said) == (max(whole) in lost and there), "a run that goes on elsewhere says why"
