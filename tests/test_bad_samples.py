"""An image that cannot be read stops the run and is named, or the stream goes without it and says so."""

from __future__ import annotations

import errno
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cl_runner.benchmarks import bad_samples, cache, pixel_cache
from cl_runner.benchmarks.bad_samples import BadSample, undecodable, warning
from cl_runner.benchmarks.classes import SplitCUB200, SplitFolder
from cl_runner.benchmarks.domains.streams import MTIL
from cl_runner.benchmarks.pixel_cache import PixelCache
from cl_runner.benchmarks.sources import Cub200
from cl_runner.errors import RequestError
from cl_runner.view import View

VIEW = View(size=8)


def photo(path: Path, grey: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (grey, 10, 20)).save(path, quality=95)


def cut_short(path: Path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def bomb(path: Path) -> None:
    """A small file that says it holds 30,000 x 30,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    body = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    path.write_bytes(body)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE = {
    "truncated": cut_short,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("this is no picture\n"),
    "bomb": bomb,
    "folder": a_folder,
}


@pytest.fixture
def tree(tmp_path):
    """Classes a, b, c, d; 4 training and 2 test images each, image i of class k of grey 20 * k + i."""
    for part, count in (("train", 4), ("test", 2)):
        for label, name in enumerate("abcd"):
            for index in range(count):
                photo(tmp_path / "tree" / part / name / f"{index}.jpg", 40 * label + 5 * index + 20)
    cache.forget()
    pixel_cache.forget()
    return tmp_path / "tree"


def split(root: Path) -> SplitFolder:
    return SplitFolder(root=str(root), image_size=8, n_tasks=2, validation_fraction=0)


def domains(root: Path, **options) -> MTIL:
    own = [{"name": "mine", "root": str(root)}]
    return MTIL(domains=own, image_size=8, cache=str(root.parent / "cache"), **options)


def pixels(part) -> torch.Tensor:
    return part[torch.arange(len(part))][0]


# -------------------------------------------------------------------------------------------------- class folders


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("benchmark", [split, domains])
def test_a_bad_image_stops_the_run_and_is_named(tree, kind, benchmark):
    DAMAGE[kind](tree / "train" / "b" / "2.jpg")
    with pytest.raises(RequestError) as caught:
        benchmark(tree).stream(tree)
    assert "train/b/2.jpg" in caught.value.message and "does not decode" in caught.value.message
    assert "on_bad_sample=skip" in caught.value.hint


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("benchmark", [split, domains])
def test_the_stream_goes_without_a_bad_image(tree, kind, benchmark):
    whole = benchmark(tree).stream(tree)
    DAMAGE[kind](tree / "train" / "b" / "2.jpg")
    thinned = benchmark(tree).stream(tree, on_bad_sample="skip")
    assert len(thinned.tasks[0].train) == len(whole.tasks[0].train) - 1
    assert thinned.tasks[0].n_train == whole.tasks[0].n_train - 1
    assert torch.equal(pixels(thinned.tasks[0].test), pixels(whole.tasks[0].test))
    kept = [index for index in range(len(whole.tasks[0].train)) if index != 6]  # a: 0 to 3, b: 4 to 7
    assert torch.equal(pixels(thinned.tasks[0].train), pixels(whole.tasks[0].train)[kept])
    labels = thinned.tasks[0].train[:][1].tolist()
    assert labels.count(0) == 4 and labels.count(1) == 3
    (line,) = thinned.skipped
    assert "train/b/2.jpg: " in line
    assert [note for note in thinned.notes if "without 1 image:" in note and "train/b/2.jpg" in note]
    assert whole.skipped == () and whole.notes == ()


@pytest.mark.parametrize("benchmark", [split, domains])
def test_skip_changes_nothing_where_every_image_is_whole(tree, benchmark):
    one, other = benchmark(tree).stream(tree), benchmark(tree).stream(tree, on_bad_sample="skip")
    assert other.notes == () and other.skipped == ()
    for first, second in zip(one.tasks, other.tasks, strict=True):
        assert torch.equal(pixels(first.train), pixels(second.train))


@pytest.mark.parametrize(("part", "count"), [("train", 4), ("test", 2)])
@pytest.mark.parametrize("benchmark", [split, domains])
def test_a_class_is_not_left_empty(tree, benchmark, part, count):
    for index in range(count):
        cut_short(tree / part / "c" / f"{index}.jpg")
    with pytest.raises(RequestError, match=f"no {part} image of class 'c'.*{part}/c/0.jpg"):
        benchmark(tree).stream(tree, on_bad_sample="skip")


def test_the_first_are_named_and_all_are_counted(tree):
    for name in "abcd":
        cut_short(tree / "train" / name / "0.jpg")
        (tree / "train" / name / "1.jpg").write_bytes(b"")
    stream = split(tree).stream(tree, on_bad_sample="skip")
    assert len(stream.skipped) == 8
    (note,) = stream.notes
    assert "without 8 images" in note and "and 5 more" in note
    assert note.count(".jpg") == 3 and "train/a/0.jpg" in note
    assert warning(()) == ()


def test_what_was_read_without_bad_images_is_not_taken_for_the_whole(tree):
    """The datasets that a process keeps are kept by what becomes of bad images, too."""
    cut_short(tree / "train" / "b" / "2.jpg")
    for _ in range(2):
        assert len(split(tree).stream(tree, on_bad_sample="skip").skipped) == 1
        with pytest.raises(RequestError, match="2.jpg does not decode"):
            split(tree).stream(tree)


def test_an_evaluation_needs_no_training_image(tree):
    for index in range(4):
        cut_short(tree / "train" / "c" / f"{index}.jpg")
    stream = domains(tree).stream(tree, training=False, on_bad_sample="skip")
    assert stream.tasks[0].n_test == 8 and stream.tasks[0].n_train == 3


def test_cub(tree, tmp_path, monkeypatch):
    place = tmp_path / "CUB_200_2011"
    monkeypatch.setattr(Cub200, "counts", (2, 4, 2))
    names = [f"{label}/{index}.jpg" for label in "xy" for index in range(3)]
    for index, name in enumerate(names):
        photo(place / "images" / name, 30 * index)
    tables = {
        "classes.txt": ["1 x", "2 y"],
        "images.txt": [f"{index} {name}" for index, name in enumerate(names, start=1)],
        "image_class_labels.txt": [f"{index} {1 + (index > 3)}" for index in range(1, 7)],
        "train_test_split.txt": [f"{index} {int(index % 3 != 0)}" for index in range(1, 7)],
    }
    for name, rows in tables.items():
        (place / name).write_text("\n".join(rows) + "\n")
    cut_short(place / "images" / "x" / "1.jpg")
    benchmark = SplitCUB200(root=str(tmp_path), image_size=8, n_tasks=2, validation_fraction=0)
    with pytest.raises(RequestError, match=r"x/1.jpg does not decode"):
        benchmark.stream(tmp_path)
    stream = benchmark.stream(tmp_path, on_bad_sample="skip")
    assert [task.n_train for task in stream.tasks] == [1, 2] and "x/1.jpg" in stream.skipped[0]


# ---------------------------------------------------------------------------------------------- the machine's fault


@pytest.mark.parametrize(
    ("error", "blamed"),
    [
        (OSError("image file is truncated"), True),
        (PermissionError(errno.EACCES, "Permission denied"), True),
        (Image.DecompressionBombError("too many pixels"), True),
        (OSError(errno.EMFILE, "Too many open files"), False),
        (OSError(errno.EIO, "Input/output error"), False),
        (MemoryError(), False),
    ],
)
def test_only_what_a_file_is_to_blame_for_is_passed_over(tree, monkeypatch, error, blamed):
    assert isinstance(undecodable("x.jpg", "benchmark.root", error), BadSample) is blamed
    opened = Image.open

    def broken(path, *rest):
        if str(path).endswith("train/b/2.jpg"):
            raise error
        return opened(path, *rest)

    monkeypatch.setattr(Image, "open", broken)
    for benchmark in (split, domains):
        if blamed:
            assert len(benchmark(tree).stream(tree, on_bad_sample="skip").skipped) == 1
        else:
            with pytest.raises(RequestError, match=r"train/b/2.jpg"):
                benchmark(tree).stream(tree, on_bad_sample="skip")


# --------------------------------------------------------------------------------------------------- pixel cache


class Drawn:
    """Image i is grey i; those in ``bad`` cannot be read."""

    def __init__(self, bad: set[int]) -> None:
        self.bad, self.opened = bad, []

    def __len__(self) -> int:
        return 20

    def fingerprint(self) -> str:
        return "drawn"

    def open(self, index: int) -> Image.Image:
        self.opened.append(index)
        if index in self.bad:
            raise OSError("image file is truncated")
        return Image.new("RGB", (9, 9), (index,) * 3)


EVERY = np.arange(20)


def read(cache: PixelCache, images: Drawn, bad: dict | None) -> torch.Tensor:
    return cache.pixels(images, EVERY, VIEW, name="set", bad=bad)


@pytest.mark.parametrize("on_disk", [True, False])
def test_a_cache_is_not_shared_wrongly_between_stop_and_skip(tmp_path, on_disk):
    pixel_cache.forget()
    said: list[str] = []
    kept = PixelCache(tmp_path if on_disk else None, say=said.append)
    for attempt in range(3):
        images, bad = Drawn({3, 7}), {}
        found = read(kept, images, bad)
        assert sorted(bad) == [3, 7] and "truncated" in bad[3].reason
        assert sorted(images.opened) == ([3, 7] if attempt else list(range(20)))
        assert all((found[index] == index).all() for index in range(20) if index not in bad)
        with pytest.raises(RequestError, match="image 3"):
            read(kept, Drawn({3, 7}), None)
        if on_disk:
            pixel_cache.forget()
    repaired, bad = Drawn(set()), {}  # the same files, read with other rights or another reader
    assert (read(kept, repaired, bad)[3] == 3).all() and not bad and set(repaired.opened) == {3, 7}
    assert not said


def test_more_bad_images_than_are_tried_first(tmp_path, monkeypatch):
    from cl_runner.benchmarks import decoding

    monkeypatch.setattr(decoding, "PROBED", 1)
    pixel_cache.forget()
    kept = PixelCache(tmp_path)
    for _ in range(2):
        bad: dict = {}
        found = read(kept, Drawn({3, 7}), bad)
        assert sorted(bad) == [3, 7] and (found[8] == 8).all()
        pixel_cache.forget()


def test_a_complete_cache_is_not_written_to_over_bad_images(tmp_path, monkeypatch):
    pixel_cache.forget()
    said: list[str] = []
    kept = PixelCache(tmp_path, say=said.append)
    read(kept, Drawn({3}), {})
    pixel_cache.forget()

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(pixel_cache.locks, "exclusive", refuse)
    bad: dict = {}
    assert (read(kept, Drawn({3}), bad)[5] == 5).all()
    assert sorted(bad) == [3] and not said


def test_the_reason_is_a_line():
    error = undecodable("x.jpg", "data_root", ValueError("one\ntwo"))
    assert isinstance(error, BadSample) and error.line == "x.jpg: one two"
    assert undecodable("\x1b[31m.jpg", "data_root", ValueError("no")).line == "?[31m.jpg: no"
    assert undecodable("x.jpg", "data_root", ValueError()).message.endswith("ValueError")
    assert bad_samples.INTACT in error.hint
