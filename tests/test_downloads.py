"""A download survives cut connections and servers that ignore, lie or change, and only a whole file gets its name."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import re
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from cl_runner import downloads
from cl_runner.backbones import PytorchCV
from cl_runner.backbones import pytorchcv as pcv
from cl_runner.backbones.weights import published
from cl_runner.downloads import download
from cl_runner.errors import RequestError

CONTENT = np.random.default_rng(3).bytes(3_000_000)
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server:
    """One file over HTTP, with whatever faults a test asks for.

    Attributes:
        asked: the Range and If-Range of every request.
        cuts: after how many bytes of each answer the connection ends; what is not listed goes through.
        busy: how many requests are first answered by 503.
        ranges: whether Range is honoured.
        lie: added to Content-Length.
        etag: of the file.
    """

    def __init__(self) -> None:
        self.content, self.asked, self.cuts, self.busy = CONTENT, [], [], 0
        self.ranges, self.lie, self.etag, self.shift = True, 0, '"one"', 0

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted, version = handler.headers.get("Range"), handler.headers.get("If-Range")
        self.asked.append((wanted, version))
        if self.busy:
            self.busy -= 1
            handler.send_error(503)
            return
        start = int(wanted[6:-1]) if wanted and self.ranges and version in (None, self.etag) else 0
        if start >= len(self.content):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.content)}")
            handler.end_headers()
            return
        body = self.content[start:]
        handler.send_response(206 if start else 200)
        if start:
            last = len(self.content) - 1
            handler.send_header("Content-Range", f"bytes {start + self.shift}-{last}/{len(self.content)}")
        handler.send_header("Content-Length", str(len(body) + self.lie))
        handler.send_header("ETag", self.etag)
        handler.end_headers()
        cut = self.cuts.pop(0) if self.cuts else None
        handler.wfile.write(body[:cut])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloads, "WAITS", (0.0, 0.0))
    kept = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            kept.answer(self)

        def log_message(self, *args):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    kept.address = f"http://127.0.0.1:{http.server_port}/file.bin"
    yield kept
    http.shutdown()
    http.server_close()


def refusal(function, *words: str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        function()
    assert all(word in caught.value.text for word in words), caught.value.text
    return caught.value


def there(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fetch(server: Server, folder: Path, checksum: str = MD5, **options) -> Path:
    target = folder / "new" / "file.bin"
    download(server.address, target, checksum, "data_root", **options)
    assert there(target.parent) == ["file.bin"]
    return target


def test_a_file_gets_its_name_when_it_is_whole(server, tmp_path):
    seen = []
    target = fetch(server, tmp_path, progress=lambda done, total: seen.append((done, total)))
    assert target.read_bytes() == CONTENT and server.asked == [(None, None)]
    assert seen[-1] == (3_000_000, 3_000_000) and len(seen) == 3


def test_a_cut_connection_is_taken_up_again_by_itself(server, tmp_path):
    server.cuts = [1_000_000, 500_000, 0]
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [(None, None), *[(f"bytes={done}-", '"one"') for done in (1_000_000, 1_500_000, 1_500_000)]]


def test_more_cuts_than_attempts_do_no_harm_while_something_comes(server, tmp_path):
    server.cuts = [100_000] * 20
    assert fetch(server, tmp_path).read_bytes() == CONTENT and len(server.asked) == 21


def test_the_next_command_goes_on_where_this_one_gave_up(server, tmp_path):
    server.cuts = [1_000_000, 0, 0, 0, 0, 0]
    refusal(lambda: fetch(server, tmp_path), "data_root", "file.bin.part", "1000000 of 3000000 bytes", MD5)
    assert there(tmp_path / "new") == ["file.bin.part", "file.bin.part.version"]
    server.cuts, server.asked = [], []
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked == [("bytes=1000000-", '"one"')]


def test_a_server_that_ignores_range_is_taken_the_whole_file(server, tmp_path):
    server.cuts, server.ranges = [1_000_000, 2_000_000], False
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert [wanted for wanted, _ in server.asked] == [None, "bytes=1000000-", "bytes=2000000-"]


def test_a_file_that_was_replaced_is_fetched_anew(server, tmp_path):
    server.cuts = [1_000_000, 0, 0, 0]
    refusal(lambda: fetch(server, tmp_path), "1000000 of 3000000")
    server.content, server.etag, server.cuts = CONTENT[::-1], '"two"', []
    assert fetch(server, tmp_path, hashlib.md5(CONTENT[::-1]).hexdigest()).read_bytes() == CONTENT[::-1]
    assert server.asked[-1] == ("bytes=1000000-", '"one"')


@pytest.mark.parametrize("left", [b"another file" * 1000, CONTENT[::-1], CONTENT + b"more", b""])
def test_a_part_of_something_else_is_not_kept(server, tmp_path, left):
    """From before the version of a file was noted, or damaged by the disk."""
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file.bin.part").write_bytes(left)
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1][0] is None


def test_a_part_that_is_whole_is_not_fetched_again(server, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file.bin.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path).read_bytes() == CONTENT and server.asked == [("bytes=3000000-", None)]


def test_a_server_that_sends_another_piece_is_not_believed(server, tmp_path):
    server.cuts, server.shift = [1_000_000], 7
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    assert [wanted for wanted, _ in server.asked] == [None, "bytes=1000000-", None]


def test_a_server_that_lies_about_the_length(server, tmp_path):
    server.lie = 10
    assert fetch(server, tmp_path).read_bytes() == CONTENT  # asked for the rest, it says that there is none
    server.lie, server.asked = -10, []
    refusal(lambda: download(server.address, tmp_path / "x", MD5, "data_root"), "truncated or altered", MD5)
    assert not (tmp_path / "x").exists() and len(server.asked) == 1


def test_other_bytes_are_refused_and_leave_nothing(server, tmp_path):
    server.content = b"\0" + CONTENT[1:]
    found = hashlib.md5(server.content).hexdigest()
    refusal(lambda: fetch(server, tmp_path), server.address, f"md5 {found}, {MD5} expected", "place file.bin")
    assert there(tmp_path / "new") == [] and len(server.asked) == 1


def test_a_busy_server_is_asked_again_and_a_refusal_is_not(server, tmp_path, monkeypatch):
    server.busy = 2
    assert fetch(server, tmp_path).read_bytes() == CONTENT
    server.busy, server.asked = 9, []
    refusal(lambda: download(server.address, tmp_path / "x", MD5, "data_root"), "503", "place x")
    assert len(server.asked) == 3
    monkeypatch.setattr(downloads, "_BUSY", ())
    server.asked = []
    refusal(lambda: download(server.address, tmp_path / "x", MD5, "data_root"), "503")
    assert len(server.asked) == 1


def test_without_a_network_it_says_at_once_what_to_do_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(downloads.time, "sleep", lambda seconds: pytest.fail("waited"))
    target = tmp_path / "data" / "x.zip"
    refusal(lambda: download("http://127.0.0.1:9/x.zip", target, MD5, "data_root"), "data_root", f"md5 {MD5}", "place")
    error = refusal(lambda: download("http://127.0.0.1:9/x.zip", target, "", "key", by_hand="take a train"), "key")
    assert error.hint == "take a train"


def test_a_sha256_may_be_given_by_its_first_digits(server, tmp_path):
    whole = hashlib.sha256(CONTENT).hexdigest()
    for digits in (whole, whole[:8]):
        download(server.address, tmp_path / digits, f"sha256:{digits}", "data_root")
    refusal(lambda: download(server.address, tmp_path / "x", "sha256:00000000", "k"), f"sha256 {whole[:8]}, 00000000")


def test_a_full_disk_is_said(server, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads.os, "fsync", full)
    refusal(lambda: fetch(server, tmp_path), "data_root", "No space left on device")
    assert len(server.asked) == 1


def _fetch_in_a_process(address: str, target: Path) -> None:
    download(address, target, MD5, "data_root")


def test_of_several_processes_one_fetches(server, tmp_path):
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_fetch_in_a_process, args=(server.address, tmp_path / "file.bin")) for _ in range(4)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert there(tmp_path) == ["file.bin"] and len(server.asked) == 1


# ------------------------------------------------------------------------------------------- published weights


def test_published_weights_are_checked_by_the_digits_of_their_name(server, tmp_path):
    digits = hashlib.sha256(CONTENT).hexdigest()[:8]
    base = server.address.removesuffix("file.bin")
    assert published(f"{base}net-{digits}.pth", tmp_path).read_bytes() == CONTENT
    refusal(lambda: published(f"{base}net-00000000.pth", tmp_path), "backbone.pretrained=true", "net-00000000.pth")
    assert there(tmp_path) == [f"net-{digits}.pth"]


@pytest.mark.parametrize("altered", [False, True])
def test_pytorchcv(server, tmp_path, monkeypatch, altered):
    from pytorchcv.models.common import model_store

    with torch.device("cpu"):
        network = PytorchCV(name="resnet20_cifar10").build(in_channels=3, image_size=32, n_classes=10)
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    torch.save(dict(network.state_dict()), tmp_path / "weights.pth")
    weights = (tmp_path / "weights.pth").read_bytes()
    digits = "f" * 40 if altered else hashlib.sha1(weights).hexdigest()
    monkeypatch.setattr(model_store, "get_model_name_suffix_data", lambda name: ("0594", digits, "v1"))
    monkeypatch.setattr(model_store, "imgclsmob_repo_url", server.address.removesuffix("/file.bin"))
    monkeypatch.setattr(pcv, "STORE", tmp_path / "store")
    name, packed = f"resnet20_cifar10-0594-{digits[:8]}.pth", io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(name, weights)
        archive.writestr("../out.txt", b"never unpacked")
    server.content = packed.getvalue()
    asked = PytorchCV(name="resnet20_cifar10", pretrained=True)
    if altered:
        refusal(lambda: asked.build(in_channels=3, image_size=32, n_classes=10), "SHA-1", "altered", name)
        assert there(tmp_path / "store") == []
        return
    for _ in range(2):
        built = asked.build(in_channels=3, image_size=32, n_classes=10)
        assert all(torch.equal(a, b) for a, b in zip(built.parameters(), network.parameters(), strict=True))
    assert there(tmp_path / "store") == [name] and len(server.asked) == 1


def test_nothing_else_opens_an_address():
    """Every file that comes by an address comes through `download`; the hub's own client does the rest."""
    package = Path(downloads.__file__).parent
    opens = re.compile(r"\burlopen\b|\burlretrieve\b|\brequests\.get\b|download_url_to_file|load_state_dict_from_url")
    files = {str(path.relative_to(package)): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    assert {name for name, text in files.items() if opens.search(text)} == {
        "downloads.py",
        "benchmarks/text/downloads.py",  # knocks at the hub's door, before its client waits for half a minute
    }
