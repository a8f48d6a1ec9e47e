"""Archives are unpacked beside themselves, whole or not at all, never outside their folder and never without end."""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any

from cl_runner.errors import RequestError, shown

LARGEST_RATIO = 100  # contents by archive; those of data sets unpack to 1 to 10 times their size
ALWAYS_FINE = 64 << 20  # bytes
MOST_ENTRIES = 2_000_000
_PIECE = 1 << 20
_PACKED: tuple[tuple[bytes, Any], ...] = (
    (b"\x1f\x8b", gzip.open),
    (b"BZh", bz2.open),
    (b"\xfd7zXZ\x00", lzma.open),
)


class _UnsafeEntry(Exception):
    """An entry that would be written outside or through a link, is no plain file or folder, or has no end."""


def unpack(archive: Path, folder: str, key: str) -> Path:
    """Unpacks a tar or zip ``archive`` beside itself and returns the path of its top folder ``folder``.

    Refused are absolute paths, paths that lead outside, devices, links that lead upwards or elsewhere (in a zip, any
    link), entries that would be written through a link, and contents out of all proportion to the archive. The work
    happens in a temporary folder that is renamed at the end, so an interruption leaves nothing half done and two
    processes may do it at once.

    Raises:
        RequestError: the archive is unsafe, cut short or of another kind, or there is no room or right to write.
    """
    return _unpack(archive, folder, key, _unzip if archive.suffix.lower() == ".zip" else _untar)


def unpack_member(archive: Path, member: str, key: str) -> Path:
    """Unpacks one file of a zip ``archive`` beside it, under its own name, and returns its path.

    Raises:
        RequestError: as :func:`unpack`.
    """

    def only(archive: Path, scratch: str) -> None:
        with zipfile.ZipFile(archive) as content:
            if member not in content.namelist():
                raise zipfile.BadZipFile(f"it lacks {member}")
            _refuse_unsafe(content.getinfo(member))
            _Bound(archive).entry(content.getinfo(member).file_size)
            content.extract(member, scratch)

    return _unpack(archive, member, key, only)


def _unpack(archive: Path, inside: str, key: str, extract: Callable[[Path, str], None]) -> Path:
    """Extracts into a temporary folder and moves what lies ``inside`` it beside the archive."""
    target = archive.parent / PurePosixPath(inside).name
    try:
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix=f".{target.name}-") as scratch:
            extract(archive, scratch)
            try:
                if (Path(scratch) / inside).is_symlink():
                    raise _UnsafeEntry(f"'{inside}' is a link")
                (Path(scratch) / inside).rename(target)
            except OSError:
                if not target.is_dir():  # else another process was faster
                    raise
    except (getattr(tarfile, "FilterError", _UnsafeEntry), _UnsafeEntry) as error:
        message = f"{key}: {archive} holds an entry that is not safe to unpack: {shown(error, 200)}"
        raise RequestError(message, "use the official archive") from error
    except (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise _not_whole(archive, key, error) from error
    except (RuntimeError, ValueError, NotImplementedError) as error:  # a password, an unknown way to compress
        raise _not_whole(archive, key, error) from error
    except OSError as error:
        if error.errno is None:  # not the system's: bz2 says so of damaged data
            raise _not_whole(archive, key, error) from error
        hint = f"make room and give write permission, or unpack it to {target} yourself"
        raise RequestError(f"{key}: cannot unpack {archive}: {error}", hint) from error
    return target


def _not_whole(archive: Path, key: str, error: Exception) -> RequestError:
    kind = "zip" if archive.suffix.lower() == ".zip" else "tar"
    return RequestError(f"{key}: {archive} is not a whole {kind} archive: {shown(error, 200)}", "use the official one")


class _Bound:
    """Counts what comes out of an archive, and refuses what is out of all proportion to it."""

    def __init__(self, archive: Path) -> None:
        self.most = max(ALWAYS_FINE, LARGEST_RATIO * archive.stat().st_size)
        self.held = self.entries = 0

    def entry(self, size: int) -> None:
        """Counts an entry of so many bytes."""
        self.held, self.entries = self.held + size, self.entries + 1
        if self.held > self.most:
            raise _UnsafeEntry(f"it would unpack to more than {self.most / 1e9:.2f} GB, {LARGEST_RATIO} times its size")
        if self.entries > MOST_ENTRIES:
            raise _UnsafeEntry(f"it holds more than {MOST_ENTRIES:,} entries")


class _Counted:
    """A stream that ends with an error where more comes out of it than the bound allows, with room for headers."""

    def __init__(self, stream: IO[bytes], most: int) -> None:
        self.stream, self.left = stream, 2 * most

    def read(self, size: int) -> bytes:
        """Reads up to ``size`` bytes; tarfile asks for some kilobytes at a time."""
        piece = self.stream.read(size)
        self.left -= len(piece)
        if self.left < 0:
            raise _UnsafeEntry("what it unpacks to has no end")
        return piece


def _untar(archive: Path, scratch: str) -> None:
    """Extracts entry after entry, each looked at before it is written, in one pass through the archive."""
    bound = _Bound(archive)
    with archive.open("rb") as raw:
        start = raw.read(6)
        raw.seek(0)
        opener = next((open_ for magic, open_ in _PACKED if start.startswith(magic)), None)
        stream = _Counted(raw if opener is None else opener(raw), bound.most)
        safe: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # from Python 3.11.4 on
        seen = _Seen()
        with tarfile.open(fileobj=stream, mode="r|") as tar:  # type: ignore[call-overload]
            for member in tar:
                seen.check(member)
                bound.entry(member.size)
                tar.extract(member, scratch, **safe)
                tar.members.clear()  # one that was written is not needed again
        while stream.read(_PIECE):  # a compressed file's own checksum comes last
            pass


class _Seen:
    """What an archive has made so far: nothing is written through a link, and a second name is of a file in it."""

    def __init__(self) -> None:
        self.links: set[tuple[str, ...]] = set()
        self.files: set[tuple[str, ...]] = set()

    def check(self, member: tarfile.TarInfo) -> None:
        """Raises _UnsafeEntry for an entry that could reach outside, else remembers it."""
        _refuse_place(member.name)
        place = _parts(member.name)
        if any(place[:length] in self.links for length in range(1, len(place) + 1)):
            raise _UnsafeEntry(f"'{member.name}' would be written through a link")
        if member.issym():
            _refuse_target(member)
            self.links.add(place)
        elif member.islnk():
            _refuse_target(member)
            if _parts(member.linkname) not in self.files:
                raise _UnsafeEntry(f"'{member.name}' is a second name of '{member.linkname}', which is not in it")
            self.files.add(place)
        elif member.isfile():
            self.files.add(place)
        elif not member.isdir():
            raise _UnsafeEntry(f"'{member.name}' is a device")


def _refuse_target(member: tarfile.TarInfo) -> None:
    """Raises _UnsafeEntry unless a link leads downwards: upwards, a chain of links could lead anywhere."""
    try:
        _refuse_place(member.linkname)
    except _UnsafeEntry as error:
        raise _UnsafeEntry(f"'{member.name}' is a link to '{member.linkname}', which leads outside") from error


def _unzip(archive: Path, scratch: str) -> None:
    bound = _Bound(archive)
    with zipfile.ZipFile(archive) as content:
        for entry in content.infolist():  # all of them before the first is written
            _refuse_unsafe(entry)
            bound.entry(entry.file_size)  # a file that holds more than it says is cut there, and its checksum wrong
        content.extractall(scratch)


def _refuse_unsafe(entry: zipfile.ZipInfo) -> None:
    """Raises _UnsafeEntry where zipfile would silently drop '..' or a root, or write a link's target as a file."""
    _refuse_place(entry.filename)
    mode = stat.S_IFMT(entry.external_attr >> 16)  # 0 where the archive was not made on Unix
    if mode not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _UnsafeEntry(f"'{entry.filename}' is a link or a device")


def _refuse_place(name: str) -> None:
    """Raises _UnsafeEntry for a path that leads out of the folder it is unpacked in."""
    path = name.replace("\\", "/")
    if path.startswith("/") or path[1:2] == ":":
        raise _UnsafeEntry(f"'{name}' is an absolute path")
    if ".." in path.split("/"):
        raise _UnsafeEntry(f"'{name}' points outside")


def _parts(name: str) -> tuple[str, ...]:
    """A path as a file system sees it that knows no capitals and no two ways to write an accent."""
    return PurePosixPath(unicodedata.normalize("NFC", name).casefold()).parts
