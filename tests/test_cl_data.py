"""The command line cl-data: its exit codes, its two lines, and that it stays light."""

from __future__ import annotations

import io
import json
import stat
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import domain_trees as trees
import pytest
from PIL import Image

from cl_runner.benchmarks.cli import main
from cl_runner.benchmarks.domains.catalogue import CATALOGUE, Parts
from cl_runner.benchmarks.domains.downloads import DOWNLOADS, Download
from cl_runner.benchmarks.domains.source import FILE_DOMAINS, DomainSource
from cl_runner.errors import RequestError
from cl_runner.unpacking import unpack


@pytest.fixture
def tree(tmp_path):
    for part in ("train", "test"):
        (tmp_path / "tree" / part / "cats [x]").mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "tree" / part / "cats [x]" / "1.png")
    return tmp_path / "tree"


def two_lines(capsys) -> str:
    """Returns stderr, which has to be one or two lines and no traceback; nothing on stdout says otherwise."""
    text = capsys.readouterr().err
    assert 1 <= len(text.splitlines()) <= 2 and "Traceback" not in text, text
    return text


def test_list_shows_every_dataset_and_is_light(tmp_path):
    code = (
        "import sys; from cl_runner.benchmarks.cli import main; code = main(['list', '--data-root', sys.argv[1]]); "
        "heavy = [m for m in ('torch', 'torchvision', 'avalanche', 'sklearn', 'hydra') if m in sys.modules]; "
        "sys.exit(f'imports {heavy}' if heavy else code)"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - started < 5  # 0.3 s on 2 idle cores; torch alone would take this long on busy ones
    rows = {line.split()[1]: line for line in done.stdout.splitlines() if line.startswith("│ ")}
    assert {"digits", "mnist", "cifar10", "cifar100", "cub200", "folder"} <= rows.keys()
    assert "ready" in rows["digits"] and "1,438 + 359" in rows["digits"]
    assert "missing" in rows["cub200"] and "CUB_200_2011.tgz" in rows["cub200"] and "200" in rows["cub200"]
    assert str(tmp_path) in done.stdout
    assert rows.keys() >= CATALOGUE.keys() and len(FILE_DOMAINS) == 9
    assert "4,128 + 1,649 + 2,465" in rows["caltech101"] and "15,880 + 3,970 + 19,850" in rows["sun397"]
    assert "37 GB" in rows["sun397"] and "missing" in rows["cars"] and "MIT" in rows["eurosat"]


def test_list_says_what_was_found(tmp_path, capsys):
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert main(["list", "--data-root", str(tmp_path)]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "│ cifar10 " in line]
    assert "found" in rows[0] and "missing" not in rows[0]


def test_the_data_root_comes_from_the_environment(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CL_DATA_ROOT", str(tmp_path / "here"))
    assert main(["check", "mnist"]) == 2
    assert str(tmp_path / "here") in two_lines(capsys)
    monkeypatch.delenv("CL_DATA_ROOT")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert main(["check", "mnist"]) == 2
    assert str(tmp_path / "home" / ".cache" / "cl-runner") in two_lines(capsys)


def test_check_tells_ready_from_missing_and_damaged(tree, capsys):
    assert main(["check", "digits"]) == 0
    assert "bundled" in capsys.readouterr().out
    assert main(["check", "folder", "--data-root", str(tree)]) == 0
    assert "1 classes, 1 + 1 images" in capsys.readouterr().out
    broken = tree / "test" / "cats [x]" / "1.png"
    broken.write_bytes(broken.read_bytes()[:45])
    assert main(["check", "folder", "--data-root", str(tree)]) == 2
    assert f"benchmark.root: {broken} does not decode" in two_lines(capsys)  # brackets and all
    (tree / "cifar-10-python.tar.gz").write_bytes(b"cut")
    assert main(["check", "split_cifar10", "--data-root", str(tree)]) == 2
    text = two_lines(capsys)
    assert "cifar-10-python.tar.gz is truncated or altered" in text and "c58f30108f718f92721af3b95e74349a" in text


def test_an_unknown_name_is_answered_with_the_nearest(capsys):
    assert main(["check", "cifra10"]) == 2
    assert "'cifra10'" in (text := two_lines(capsys)) and "did you mean 'cifar10'?" in text


def test_prepare_says_bundled_and_what_to_place_where_there_is_no_network(tmp_path, monkeypatch, capsys):
    assert main(["prepare", "digits"]) == 0
    assert "bundled" in capsys.readouterr().out

    def no_network(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("cl_runner.downloads.urlopen", no_network)
    for name, file, md5 in (
        ("mnist", "train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        ("cifar100", "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
        ("cub200", "CUB_200_2011.tgz", "97eceeb196236b17998738112f37df78"),
    ):
        assert main(["prepare", name, "--data-root", str(tmp_path)]) == 2
        text = two_lines(capsys)
        assert "data_root" in text and file in text and md5 in text and "Network is unreachable" in text


def test_prepare_refuses_a_root_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    assert main(["prepare", "cifar10", "--data-root", str(tmp_path / "file" / "root")]) == 2
    assert "data_root" in two_lines(capsys)


def test_interrupting_ends_with_130(monkeypatch, capsys):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("cl_runner.benchmarks.sources.digits.Digits.verify", interrupt)
    assert main(["check", "digits"]) == 130
    assert "interrupted" in two_lines(capsys)


# --- domains --------------------------------------------------------------------------------------------------------


def expect(monkeypatch, name: str, n_classes: int, parts: Parts, official: Parts | None = None) -> None:
    """Makes the small tree of a domain the published one."""
    entry = CATALOGUE[name]
    for attribute, value in (("n_classes", n_classes), ("parts", parts), ("official", official or entry.official)):
        monkeypatch.setitem(entry.__dict__, attribute, value)


@pytest.fixture
def pets(tmp_path, monkeypatch):
    trees.pets(tmp_path / "oxford_pets")
    expect(monkeypatch, "pets", 3, Parts(4, 2, 3), Parts(6, 0, 3))
    return tmp_path


def test_check_counts_a_domain_and_decodes_all_of_it(pets, capsys):
    assert main(["check", "pets", "--data-root", str(pets)]) == 0
    text = capsys.readouterr().out
    assert "pets is ready: 3 classes, 6 + 0 + 3 images" in text and "official lists" in text and "all decode" in text
    image = pets / "oxford_pets" / "images" / "Egyptian_Mau_3.jpg"
    content = image.read_bytes()
    image.write_bytes(content[:-20])
    assert main(["check", "pets", "--data-root", str(pets)]) == 2
    assert f"{image} does not decode" in two_lines(capsys)
    image.unlink()
    assert main(["check", "pets", "--data-root", str(pets)]) == 2
    assert "lacks 1 of 9 images" in two_lines(capsys)
    image.write_bytes(content)
    (pets / "oxford_pets" / "annotations" / "test.txt").write_text("Abyssinian_3 1 1 1\n")
    assert main(["check", "pets", "--data-root", str(pets)]) == 2
    text = two_lines(capsys)
    assert "6 + 0 + 1 images, expected 3 classes, 6 + 0 + 3 images" in text and "--split FILE" in text


def test_check_tells_but_does_not_refuse_another_count_of_a_split_of_ones_own(pets, capsys):
    rows = [["Abyssinian_1.jpg", 0, "cat"]], None, [["Abyssinian_2.jpg", 0, "cat"]]
    split = trees.split_file(pets / "mine.json", *rows)
    assert main(["check", "pets", "--split", str(split), "--data-root", str(pets)]) == 0
    text = capsys.readouterr().out
    assert "1 classes, 1 + 0 + 1 images" in text and "the published split has 3 classes, 4 + 2 + 3 images" in text
    split.write_text(json.dumps({"train": rows[0]}))
    assert main(["check", "pets", "--split", str(split), "--data-root", str(pets)]) == 2
    assert f"--split: {split} lacks the part 'test'" in two_lines(capsys)
    assert main(["check", "mnist", "--split", str(split), "--data-root", str(pets)]) == 2
    assert "--split: mnist takes no split file" in two_lines(capsys)


def test_list_says_where_a_domain_was_found(pets, capsys):
    assert main(["list", "--data-root", str(pets)]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if "│ pets " in line)
    assert "found" in row
    assert DomainSource("pets", root=pets).find() == str(pets / "oxford_pets" / "images")


def test_downloads_are_torchvisions():
    from torchvision import datasets

    def listed(name: str) -> list[tuple[str, str]]:
        return [(item.url, item.md5) for item in DOWNLOADS[name]]

    assert listed("dtd") == [(datasets.DTD._URL, datasets.DTD._MD5)]
    assert listed("food101") == [(datasets.Food101._URL, datasets.Food101._MD5)]
    assert listed("pets") == [tuple(pair) for pair in datasets.OxfordIIITPet._RESOURCES]
    assert listed("sun397") == [(datasets.SUN397._DATASET_URL, datasets.SUN397._DATASET_MD5)]
    assert listed("aircraft")[0][0] == datasets.FGVCAircraft._URL
    prefix, files = datasets.Flowers102._download_url_prefix, datasets.Flowers102._file_dict.values()
    assert listed("flowers") == [(prefix + file, md5) for file, md5 in files]
    for name, module in (("caltech101", "caltech"), ("eurosat", "eurosat")):  # written into their functions
        text = (Path(datasets.__file__).parent / f"{module}.py").read_text()
        assert all(url in text and md5 in text for url, md5 in listed(name))
    assert set(FILE_DOMAINS) - set(DOWNLOADS) == {"cars"}


@pytest.fixture
def server(monkeypatch):
    """A local server that honours Range; yields its address, its files and the (path, range) pairs asked for."""
    files: dict[str, bytes] = {}
    asked: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append((self.path, self.headers.get("Range")))
            content = files[self.path]
            start = int(asked[-1][1][6:-1]) if asked[-1][1] else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:])

        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{http.server_port}", files, asked
    http.shutdown()
    http.server_close()


def tarred(folder: Path, name: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        tar.add(folder, name)
    return stream.getvalue()


def zipped(contents: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return stream.getvalue()


def serve(server, monkeypatch, name: str, contents: list[bytes]) -> None:
    """Serves ``contents`` as what a domain downloads."""
    address, files, _ = server
    items = []
    for item, content in zip(DOWNLOADS[name], contents, strict=True):
        files[f"/{item.archive}"] = content
        items.append(
            Download(f"{address}/{item.archive}", trees.md5(content), item.archive, item.gives, inner=item.inner)
        )
    monkeypatch.setitem(DOWNLOADS, name, tuple(items))


def content_of(name: str, made: Path) -> list[bytes]:
    """Returns the archives of a domain's small tree, in the order of its downloads."""
    trees.TREES[name](made)
    if name == "caltech101":
        inner = tarred(made / "101_ObjectCategories", "101_ObjectCategories")
        return [zipped({"caltech-101/101_ObjectCategories.tar.gz": inner, "caltech-101/Annotations.tar": b"-"})]
    if name == "eurosat":
        return [zipped({str(path.relative_to(made)): path.read_bytes() for path in made.rglob("*.jpg")})]
    if name == "pets":
        return [tarred(made / part, part) for part in ("images", "annotations")]
    return [tarred(made, {"food101": "food-101", "dtd": "dtd"}[name])]


PREPARED: dict[str, tuple[Parts, Callable[[Path], Path]]] = {
    "caltech101": (Parts(15, 6, 9), lambda root: root / "caltech101" / "101_ObjectCategories"),
    "eurosat": (Parts(15, 6, 9), lambda root: root / "eurosat" / "2750"),
    "pets": (Parts(6, 0, 3), lambda root: root / "oxford-iiit-pet" / "images"),
    "food101": (Parts(9, 0, 3), lambda root: root / "food-101" / "images"),
    "dtd": (Parts(3, 3, 3), lambda root: root / "dtd" / "dtd" / "images"),
}


@pytest.mark.parametrize("name", PREPARED)
def test_prepare_fetches_unpacks_and_checks_a_domain(server, tmp_path, monkeypatch, capsys, name):
    parts, images = PREPARED[name]
    official = CATALOGUE[name].official and parts
    expect(monkeypatch, name, 3, parts, official)
    serve(server, monkeypatch, name, content_of(name, tmp_path / "made"))
    root, asked = tmp_path / "root", server[2]
    assert main(["prepare", name, "--data-root", str(root)]) == 0
    text = capsys.readouterr().out
    assert f"{name} is ready: 3 classes, {parts} images in {images(root)}" in text
    assert CATALOGUE[name].split_file in text and "KaiyangZhou/CoOp" in text  # where the split file comes from
    assert not list(root.rglob(".*")) and not list(root.rglob("*.part"))
    count = len(asked)
    assert main(["prepare", name, "--data-root", str(root)]) == 0 and len(asked) == count  # nothing again


def test_prepare_goes_on_where_it_was_cut_and_refuses_other_contents(server, tmp_path, monkeypatch, capsys):
    expect(monkeypatch, "pets", 3, Parts(4, 2, 3), Parts(6, 0, 3))
    images, annotations = content_of("pets", tmp_path / "made")
    serve(server, monkeypatch, "pets", [images, annotations])
    folder = tmp_path / "root" / "oxford-iiit-pet"
    folder.mkdir(parents=True)
    (folder / "images.tar.gz.part").write_bytes(images[:1000])
    server[1]["/oxford-iiit-pet/annotations.tar.gz"] = annotations[::-1]
    assert main(["prepare", "pets", "--data-root", str(tmp_path / "root")]) == 2
    assert "annotations.tar.gz is truncated or altered" in two_lines(capsys)
    assert server[2][0] == ("/oxford-iiit-pet/images.tar.gz", "bytes=1000-") and (folder / "images").is_dir()
    server[1]["/oxford-iiit-pet/annotations.tar.gz"] = annotations
    assert main(["prepare", "pets", "--data-root", str(tmp_path / "root")]) == 0
    (folder / "annotations").rename(folder / "old")
    (folder / "annotations.tar.gz").write_bytes(b"by hand")
    assert main(["prepare", "pets", "--data-root", str(tmp_path / "root")]) == 2
    assert f"{folder / 'annotations.tar.gz'} is truncated or altered" in two_lines(capsys)


def test_prepare_leaves_a_tree_of_coops_layout_alone(server, pets, capsys):
    assert main(["prepare", "pets", "--data-root", str(pets)]) == 0
    (pets / "oxford_pets" / "annotations" / "test.txt").unlink()
    assert main(["prepare", "pets", "--data-root", str(pets)]) == 2
    assert "lacks annotations/test.txt" in two_lines(capsys) and not server[2]


def test_prepare_cars_says_where_they_still_are(tmp_path, capsys):
    assert main(["prepare", "cars", "--data-root", str(tmp_path)]) == 2
    text = two_lines(capsys)
    for word in (
        "jessicali9530/stanford-cars-dataset",
        "pytorch/vision/issues/7545",
        "cars_train/*.jpg",
        "devkit/*.mat",
    ):
        assert word in text
    assert "cars_test_annos_withlabels.mat" in text and str(tmp_path / "stanford_cars") in text


@pytest.mark.parametrize(
    "entry", ["../out.txt", "data/../../out.txt", "/out.txt", "C:\\out.txt", "data/..\\..\\out", "link"]
)
def test_a_zip_that_leads_outside_is_refused_before_anything_is_written(tmp_path, entry):
    inside = tmp_path / "inside"
    inside.mkdir()
    archive = inside / "data.zip"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("data/file", b"fine")
        info = zipfile.ZipInfo(f"data/{entry}" if entry == "link" else entry)
        info.create_system = 3
        info.external_attr = (stat.S_IFLNK if entry == "link" else stat.S_IFREG) << 16
        content.writestr(info, "/etc/hostname")
    with pytest.raises(RequestError, match="not safe to unpack") as caught:
        unpack(archive, "data", "data_root")
    assert str(archive) in caught.value.message and list(inside.iterdir()) == [archive]
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


def test_a_zip_is_unpacked_whole_or_not_at_all(tmp_path):
    archive = tmp_path / "data.zip"
    archive.write_bytes(zipped({"data/a/file": b"x" * 4000, "data/b": b"y"}))
    assert (unpack(archive, "data", "data_root") / "a" / "file").read_bytes() == b"x" * 4000
    whole = archive.read_bytes()
    for content in (whole[:-30], b"no zip", whole.replace(b"x" * 4000, b"z" * 4000), zipped({"other/file": b""})):
        archive.write_bytes(content)
        with pytest.raises(RequestError) as caught:
            unpack(archive, "data2" if content.startswith(b"PK") and b"other" in content else "data", "data_root")
        assert str(archive) in caught.value.message


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "data/link"])
def test_a_tar_that_leads_outside_is_refused_also_by_an_older_python(tmp_path, monkeypatch, name, old):
    """Python before 3.11.4 has no filter of its own for what it unpacks."""
    import io
    import tarfile

    from cl_runner.unpacking import unpack

    inside = tmp_path / "inside"
    inside.mkdir()
    with tarfile.open(inside / "data.tar", "w") as tar:
        good = tarfile.TarInfo("data/a.txt")
        good.size = 1
        tar.addfile(good, io.BytesIO(b"a"))
        bad = tarfile.TarInfo(name)
        if name.endswith("link"):
            bad.type, bad.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(bad)
        else:
            bad.size = 1
            tar.addfile(bad, io.BytesIO(b"b"))
    if old:
        monkeypatch.delattr(tarfile, "data_filter", raising=False)
    if name.startswith("/") and not old:
        return  # the filter takes the root off such a path, and writes inside
    with pytest.raises(RequestError, match="not safe to unpack"):
        unpack(inside / "data.tar", "data", "data_root")
    assert not (tmp_path / "out.txt").exists() and not (inside / "data").exists()
