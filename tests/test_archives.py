"""An archive is unpacked into its folder and nowhere else, whole or not at all, and never without end."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest

from cl_runner import unpacking
from cl_runner.errors import RequestError
from cl_runner.unpacking import unpack, unpack_member

PACKERS = {"data.tar": bytes, "data.tar.gz": gzip.compress, "data.tbz": bz2.compress, "data.txz": lzma.compress}


def entry(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> tuple:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, link
    return info, content


def tarred(*entries: tuple) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def inside(tmp_path):
    """The folder of the archive; beside it lies a file that nobody may touch."""
    (tmp_path / "treasure.txt").write_text("mine")
    (tmp_path / "inside").mkdir()
    yield tmp_path / "inside"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inside", "treasure.txt"]
    assert (tmp_path / "treasure.txt").read_text() == "mine"


def place(inside: Path, name: str, content: bytes) -> Path:
    (inside / name).write_bytes(content)
    return inside / name


def refuse(archive: Path, *words: str) -> None:
    with pytest.raises(RequestError) as caught:
        unpack(archive, "data", "data_root")
    assert all(word in caught.value.message for word in ("data_root", str(archive), *words)), caught.value.message
    assert list(archive.parent.iterdir()) == [archive], "nothing is left"


GOOD = (entry("data", kind=tarfile.DIRTYPE), entry("data/a/file.txt", b"fine"))


@pytest.mark.parametrize("name", PACKERS)
def test_a_good_archive(inside, name):
    links = [
        entry("data/down", kind=tarfile.SYMTYPE, link="a/file.txt"),
        entry("data/again.txt", kind=tarfile.LNKTYPE, link="data/a/file.txt"),
    ]
    archive = place(inside, name, PACKERS[name](tarred(*GOOD, *links)))
    folder = unpack(archive, "data", "data_root")
    assert folder == inside / "data"
    assert {(folder / each).read_text() for each in ("a/file.txt", "down", "again.txt")} == {"fine"}
    assert sorted(path.name for path in inside.iterdir()) == sorted(["data", name])


HOSTILE = {
    "absolute": [entry("/tmp/out.txt", b"x")],
    "absolute of windows": [entry("C:\\out.txt", b"x")],
    "upwards": [entry("../treasure.txt", b"x")],
    "upwards from within": [entry("data/a/../../../treasure.txt", b"x")],
    "upwards with the other slash": [entry("data\\..\\..\\treasure.txt", b"x")],
    "link to a file outside": [entry("data/link", kind=tarfile.SYMTYPE, link="../../treasure.txt")],
    "link to an absolute path": [entry("data/link", kind=tarfile.SYMTYPE, link="/etc/hostname")],
    "link upwards": [entry("data/link", kind=tarfile.SYMTYPE, link="..")],
    "chain of links": [
        entry("data/one", kind=tarfile.SYMTYPE, link="a/.."),
        entry("data/two", kind=tarfile.SYMTYPE, link="one/../../treasure.txt"),
    ],
    "second name of a file outside": [entry("data/link", kind=tarfile.LNKTYPE, link="../treasure.txt")],
    "second name of an absolute path": [entry("data/link", kind=tarfile.LNKTYPE, link="/etc/hostname")],
    "second name of what is not in it": [entry("data/link", kind=tarfile.LNKTYPE, link="data/absent")],
    "written through a link": [entry("data/link", kind=tarfile.SYMTYPE, link="a"), entry("data/link/x", b"x")],
    "written over a link": [entry("data/link", kind=tarfile.SYMTYPE, link="a/file.txt"), entry("data/link", b"x")],
    "the same where case does not count": [
        entry("data/Link", kind=tarfile.SYMTYPE, link="a"),
        entry("data/lINK/x", b"x"),
    ],
    "the folder itself is a link": [entry("data", kind=tarfile.SYMTYPE, link="other"), entry("other/x", b"x")],
    "character device": [entry("data/device", kind=tarfile.CHRTYPE)],
    "block device": [entry("data/device", kind=tarfile.BLKTYPE)],
    "pipe": [entry("data/pipe", kind=tarfile.FIFOTYPE)],
}


@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("packer", ["data.tar", "data.tar.gz"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_tar_writes_nothing_outside(inside, monkeypatch, kind, packer, filtered):
    if not filtered:  # Python before 3.11.4: what we look at must do alone
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    first = () if kind == "the folder itself is a link" else GOOD
    refuse(place(inside, packer, PACKERS[packer](tarred(*first, *HOSTILE[kind]))), "not safe to unpack")


def test_rights_and_owners_of_an_archive_are_not_taken_over(inside):
    info, content = entry("data/program", b"#!/bin/sh")
    info.mode, info.uid, info.gid = 0o4777, 12345, 12345
    made = unpack(place(inside, "data.tar", tarred(GOOD[0], (info, content))), "data", "data_root") / "program"
    assert not made.stat().st_mode & 0o6022 and made.stat().st_uid != 12345


# ---------------------------------------------------------------------------------------------------- without end


@pytest.fixture
def small_bounds(monkeypatch):
    monkeypatch.setattr(unpacking, "ALWAYS_FINE", 1_000_000)


def test_a_file_out_of_all_proportion(inside, small_bounds):
    archive = place(inside, "data.tar.gz", gzip.compress(tarred(*GOOD, entry("data/zeros", bytes(30_000_000)))))
    assert archive.stat().st_size < 40_000
    refuse(archive, "not safe to unpack", "100 times its size")


def test_many_files_out_of_all_proportion(inside, small_bounds):
    many = [entry(f"data/{index}", bytes(200_000)) for index in range(100)]
    refuse(place(inside, "data.tbz", bz2.compress(tarred(*many))), "not safe to unpack")


def test_more_entries_than_any_dataset(inside, monkeypatch):
    monkeypatch.setattr(unpacking, "MOST_ENTRIES", 50)
    refuse(place(inside, "data.tar", tarred(*(entry(f"data/{index}") for index in range(60)))), "more than 50 entries")


def test_a_header_without_end(inside, small_bounds):
    """The name of an entry may take gigabytes, which tarfile would read into memory."""
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 60_000_000
    content = long.tobuf(tarfile.GNU_FORMAT) + b"x" * long.size + tarred(*GOOD)
    refuse(place(inside, "data.tar.gz", gzip.compress(content)), "has no end")


def test_a_file_of_holes_that_says_it_is_huge(inside, small_bounds):
    info, _ = entry("data/sparse")
    info.pax_headers = {
        "GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.size": str(10**13), "GNU.sparse.map": "0,0",
    }  # fmt: skip
    refuse(place(inside, "data.tar", tarred(*GOOD, (info, b""))), "times its size")


def test_a_zip_out_of_all_proportion(inside, small_bounds):
    archive = inside / "data.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        for index in range(30):
            content.writestr(f"data/{index}", bytes(1_000_000))
    refuse(archive, "not safe to unpack", "100 times its size")
    with pytest.raises(RequestError, match="not safe"):
        monster = inside / "one.zip"
        with zipfile.ZipFile(monster, "w", zipfile.ZIP_DEFLATED) as content:
            content.writestr("data/big", bytes(30_000_000))
        unpack_member(monster, "data/big", "data_root")


def test_a_zip_that_lies_about_the_size(inside, small_bounds):
    archive = inside / "data.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        content.writestr("data/big", bytes(30_000_000))
    raw = archive.read_bytes()
    archive.write_bytes(raw.replace(struct.pack("<I", 30_000_000), struct.pack("<I", 100)))
    refuse(archive, "not a whole zip archive")


# ------------------------------------------------------------------------------------------------------- damaged


@pytest.mark.parametrize("name", ["data.tar.gz", "data.txz", "data.tbz"])
def test_an_archive_that_was_cut_or_altered(inside, name):
    whole = PACKERS[name](tarred(*GOOD, entry("data/noise", bytes(range(256)) * 400)))
    middle = len(whole) // 2
    for damaged in (whole[:-10], whole[:middle], whole[:middle] + bytes(8) + whole[middle + 8 :], b"", b"\x1f\x8b"):
        refuse(place(inside, name, damaged), "not a whole tar archive")


def test_a_zip_with_a_password_or_an_unknown_packing(inside):
    archive = inside / "data.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("data/file", b"secret")
    plain = archive.read_bytes()
    for offset, value in ((6, b"\x01\x00"), (8, b"\x63\x00")):  # the flag of encryption; a method that nobody knows
        local, central = bytearray(plain), plain.index(b"PK\x01\x02")
        local[offset : offset + 2] = local[central + offset + 2 : central + offset + 4] = value
        archive.write_bytes(bytes(local))
        refuse(archive, "not a whole zip archive")


def test_nothing_else_unpacks():
    """`extract` and `extractall` are called in one file of the package, which this test is about."""
    package = Path(unpacking.__file__).parent
    calls = ("extractall(", ".extract(", "unpack_archive(")
    files = {str(path.relative_to(package)): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    assert [name for name, text in files.items() if any(call in text for call in calls)] == ["unpacking.py"]
