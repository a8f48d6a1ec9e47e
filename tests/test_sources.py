"""Data sources: what they read is right, and what is missing, cut short, altered or of the wrong kind is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cl_runner.benchmarks.sources import Cifar10, Cifar100, Cub200, Digits, ImageFolder, MissingData, Mnist
from cl_runner.benchmarks.sources import cifar as cifar_module
from cl_runner.benchmarks.sources.mnist import IdxFile
from cl_runner.benchmarks.sources.source import unpack
from cl_runner.errors import RequestError


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def refusal(call, *fragments: str) -> RequestError:
    """Calls, expects a RequestError of at most two lines with a hint, and these fragments in it."""
    with pytest.raises(RequestError) as caught:
        call()
    text = str(caught.value)
    assert caught.value.hint and len(text.splitlines()) == 2, text
    for fragment in fragments:
        assert fragment in text, f"{fragment!r} is not in: {text}"
    return caught.value


def test_importing_the_sources_loads_no_torch_and_no_sklearn():
    code = (
        "import sys; from cl_runner.benchmarks.sources import Digits, Mnist, Cifar10, Cifar100, Cub200, ImageFolder; "
        "Digits().facts(); sys.exit(any(m in sys.modules for m in ('torch', 'torchvision', 'avalanche', 'sklearn')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- digits ---------------------------------------------------------------------------------------------------------


def test_digits_are_sklearns_with_the_last_fifth_of_each_class_as_test_part():
    from sklearn.datasets import load_digits

    raw, data, facts = load_digits(), Digits().load(), Digits().facts()
    assert data.train_images.dtype == np.uint8 and data.train_images.shape == (facts.n_train, 8, 8, 1)
    assert data.test_images.shape == (facts.n_test, 8, 8, 1) and data.test_labels.dtype == np.int64
    assert facts.n_train + facts.n_test == 1797 and (facts.n_classes, facts.image_shape) == (10, (1, 8, 8))
    sevens = np.round(raw.images[raw.target == 7] * 255 / 16)  # 179 of them: 0.2 * 179 = 35.8 -> 36 for the test
    np.testing.assert_array_equal(data.train_images[data.train_labels == 7][..., 0], sevens[:143])
    np.testing.assert_array_equal(data.test_images[data.test_labels == 7][..., 0], sevens[143:])
    assert facts.mean == pytest.approx([(data.train_images / 255).mean()], abs=1e-4)
    assert facts.std == pytest.approx([(data.train_images / 255).std()], abs=1e-4)
    assert Digits().state()[0] == "ready"


# --- MNIST ----------------------------------------------------------------------------------------------------------

SHAPES = {
    "train-images-idx3-ubyte": (7, 28, 28),
    "train-labels-idx1-ubyte": (7,),
    "t10k-images-idx3-ubyte": (3, 28, 28),
    "t10k-labels-idx1-ubyte": (3,),
}


@pytest.fixture
def mnist(tmp_path, monkeypatch):
    """Four small idx files under tmp_path/MNIST/raw and their contents; Mnist expects exactly them."""
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    contents, files = {}, []
    for seed, (name, shape) in enumerate(SHAPES.items()):
        values = noise(*shape, seed=seed) if len(shape) == 3 else noise(*shape, seed=seed) % 10
        header = b"\0\0\x08" + bytes([len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
        contents[name] = header + values.tobytes()
        (folder / name).write_bytes(contents[name])
        files.append(IdxFile(name, shape, md5(gzip.compress(contents[name], mtime=0)), md5(contents[name])))
    monkeypatch.setattr(Mnist, "files", tuple(files))
    return tmp_path, folder, contents


@pytest.mark.parametrize("packed", [False, True])
def test_mnist_reads_what_torchvision_reads(mnist, packed):
    from torchvision.datasets.mnist import read_image_file, read_label_file

    root, folder, contents = mnist
    expected = [read_image_file(str(folder / n)) if "images" in n else read_label_file(str(folder / n)) for n in SHAPES]
    if packed:
        for name, content in contents.items():
            (folder / name).unlink()
            (folder / f"{name}.gz").write_bytes(gzip.compress(content, 1))
    data = Mnist(root=root).load()
    read = (data.train_images[..., 0], data.train_labels, data.test_images[..., 0], data.test_labels)
    for found, wanted in zip(read, expected, strict=True):
        np.testing.assert_array_equal(found, wanted.numpy())
    assert data.train_images.dtype == np.uint8 and data.train_labels.dtype == np.int64
    assert data.class_names == tuple("0123456789")
    assert Mnist(root=root).state()[0] == "ready"


@pytest.mark.parametrize("deeper", ["mnist/MNIST/raw", "mnist"])
def test_mnist_is_found_one_folder_deeper(mnist, deeper):
    root, folder, _ = mnist
    other = root / "other" / deeper
    other.parent.mkdir(parents=True)
    folder.rename(other)
    assert len(Mnist(root=root / "other").load().train_labels) == 7


NAME = "train-images-idx3-ubyte"
MNIST_DAMAGE = {
    "cut short": (NAME, lambda c: c[:-1], "5503 bytes, 5504 expected"),  # 16 + 7 * 784 = 5504
    "too long": (NAME, lambda c: c + b"\0", "more than 5504"),
    "empty": (NAME, lambda c: b"", "holds 0 bytes"),
    "one byte altered": (NAME, lambda c: c[:100] + bytes([c[100] ^ 1]) + c[101:], "altered: md5"),
    "another type": (NAME, lambda c: c[:2] + b"\x0d" + c[3:], "idx header 00000803"),
    "gz cut short": (f"{NAME}.gz", lambda c: gzip.compress(c)[:-20], "truncated or no gzip"),
    "gz of another file": (f"{NAME}.gz", lambda c: gzip.compress(c[::-1]), "idx header"),
    "no gz": (f"{NAME}.gz", lambda c: b"<html>not found</html>", "truncated or no gzip"),
}


@pytest.mark.parametrize("damage", MNIST_DAMAGE)
def test_mnist_refuses_damage(mnist, damage):
    root, folder, contents = mnist
    file, change, found = MNIST_DAMAGE[damage]
    (folder / NAME).unlink()
    (folder / file).write_bytes(change(contents[NAME]))
    refusal(Mnist(root=root).load, "data_root", str(folder / file), found, f"md5 {Mnist.files[0].packed_md5}")
    assert Mnist(root=root).state()[0] == "damaged"


def test_mnist_missing_says_which_file_to_place_where(mnist):
    root, folder, _ = mnist
    (folder / "t10k-labels-idx1-ubyte").unlink()
    error = refusal(Mnist(root=root).load, "data_root", f"{folder} lacks t10k-labels-idx1-ubyte")
    assert Mnist.files[3].packed_md5 in error.hint and Mnist.files[0].packed_md5 not in error.hint
    assert Mnist(root=root).state()[0] == "missing"
    refusal(Mnist(root=root / "nowhere").load, "nowhere does not exist", Mnist.files[0].packed_md5)
    refusal(Mnist(root=folder / NAME).load, "is a file, not a folder")


def test_checksums_are_torchvisions():
    from torchvision import datasets

    ours = [(f"{file.name}.gz", file.packed_md5) for file in Mnist.files]
    assert ours == [tuple(pair) for pair in datasets.MNIST.resources]
    for source, theirs in ((Cifar10, datasets.CIFAR10), (Cifar100, datasets.CIFAR100)):
        assert list(map(list, source.train_files.items())) == theirs.train_list
        assert list(map(list, source.test_files.items())) == theirs.test_list
        assert source.names_file == {theirs.meta["filename"]: theirs.meta["md5"]}
        assert source.names_key == theirs.meta["key"]
        assert (source.archive, source.archive_md5, source.folder) == (
            theirs.filename,
            theirs.tgz_md5,
            theirs.base_folder,
        )


# --- CIFAR ----------------------------------------------------------------------------------------------------------


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture(params=[Cifar10, Cifar100])
def cifar(request, tmp_path, monkeypatch):
    """A class that expects a small archive in tmp_path, the arrays inside, and the contents of its files."""
    source, contents, rows = request.param, {}, {}
    for seed, name in enumerate(source.train_files | source.test_files):
        rows[name] = (noise(4, 3072, seed=seed), [(seed + i) % 10 for i in range(4)])
        entry = {"data": rows[name][0], source.labels_key: rows[name][1], "coarse_labels": [99] * 4}
        contents[name] = pickle.dumps(entry, protocol=2)
    (names_file,) = source.names_file
    contents[names_file] = pickle.dumps({source.names_key: [f"class {i}" for i in range(10)]}, protocol=2)
    for attribute in ("train_files", "test_files", "names_file"):
        monkeypatch.setattr(source, attribute, {name: md5(contents[name]) for name in getattr(source, attribute)})
    with tarfile.open(tmp_path / source.archive, "w:gz") as tar:
        for name, content in contents.items():
            add(tar, f"{source.folder}/{name}", content)
    monkeypatch.setattr(source, "archive_md5", md5((tmp_path / source.archive).read_bytes()))
    return source, rows, contents


def check_cifar(data, source, rows):
    train = list(source.train_files)
    first = rows[train[0]][0][0]  # 1,024 red values, then green, then blue, row by row
    assert data.train_images.shape == (4 * len(train), 32, 32, 3) and data.test_images.shape == (4, 32, 32, 3)
    assert data.train_images[0, 2, 5].tolist() == [first[2 * 32 + 5], first[1024 + 69], first[2048 + 69]]
    assert data.train_labels.tolist() == [label for name in train for label in rows[name][1]]
    (test,) = source.test_files
    assert data.test_labels.tolist() == rows[test][1] and data.test_labels.dtype == np.int64
    assert data.class_names[3] == "class 3"


def test_cifar_unpacks_its_archive_and_then_reads_the_folder(cifar, tmp_path):
    source, rows, _ = cifar
    assert source(root=tmp_path).state()[0] == "ready"
    assert not (tmp_path / source.folder).exists(), "looking at the state writes nothing"
    check_cifar(source(root=tmp_path).load(), source, rows)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([source.archive, source.folder])
    (tmp_path / source.archive).unlink()
    check_cifar(source(root=tmp_path).load(), source, rows)


def test_cifar_reads_the_archive_where_it_cannot_unpack(cifar, tmp_path, monkeypatch):
    source, rows, _ = cifar
    deeper = tmp_path / source.name
    deeper.mkdir()
    (tmp_path / source.archive).rename(deeper / source.archive)
    monkeypatch.setattr(cifar_module.os, "access", lambda path, mode: False)
    check_cifar(source(root=tmp_path).load(), source, rows)
    assert [path.name for path in deeper.iterdir()] == [source.archive]


@pytest.mark.parametrize("change", [lambda c: c[:-5], lambda c: b"", lambda c: c[:40] + b"!" + c[41:]])
def test_cifar_refuses_a_damaged_archive_and_unpacks_none_of_it(cifar, tmp_path, change):
    source, _, _ = cifar
    archive, official = tmp_path / source.archive, source.archive_md5
    archive.write_bytes(change(archive.read_bytes()))
    refusal(source(root=tmp_path).load, "data_root", str(archive), "truncated or altered", f"md5 {official}")
    assert source(root=tmp_path).state()[0] == "damaged"
    assert list(tmp_path.iterdir()) == [archive]


class Trap:
    """Its unpickling leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_cifar_opens_no_pickle_whose_checksum_differs(cifar, tmp_path):
    source, _, _ = cifar
    root = tmp_path / "root"
    unpack(tmp_path / source.archive, source.folder, "data_root").rename(tmp_path / "moved")
    root.mkdir()
    (tmp_path / "moved").rename(root / source.folder)
    (test,) = source.test_files
    (root / source.folder / test).write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    refusal(source(root=root).load, str(root / source.folder / test), source.test_files[test])
    assert not (tmp_path / "sprung").exists()
    (root / source.folder / test).unlink()
    refusal(source(root=root).load, f"lacks {test}", source.archive_md5)
    assert source(root=root).state()[0] == "damaged"
    assert source(root=tmp_path / "none").state()[0] == "missing"
    refusal(source(root=tmp_path / "none").load, source.archive, source.archive_md5)


# --- unpacking and downloading --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["../", "absolute link", "other folder", "cut short"])
def test_unpacking_refuses_what_is_not_safe_or_whole(tmp_path, kind):
    inside = tmp_path / "inside"
    inside.mkdir()
    archive = inside / "data.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        add(tar, "wrong/file" if kind == "other folder" else "data/file", noise(5000).tobytes())
        if kind == "../":
            add(tar, "data/../../escaped", b"out")
        if kind == "absolute link":
            link = tarfile.TarInfo("data/link")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
            tar.addfile(link)
    if kind == "cut short":
        archive.write_bytes(archive.read_bytes()[:-200])
    refusal(lambda: unpack(archive, "data", "data_root"), "data_root", str(archive))
    assert list(inside.iterdir()) == [archive] and list(tmp_path.iterdir()) == [inside]


# --- CUB-200 --------------------------------------------------------------------------------------------------------


@pytest.fixture
def cub(tmp_path, monkeypatch):
    """A tree of 3 birds with 2 train and 1 test images each, in the official layout."""
    place, images, labels, split = tmp_path / "CUB_200_2011", [], [], []
    for number in range(9):
        name = f"{number // 3 + 1:03d}.Bird/img {number}.jpg"
        (place / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L" if number == 4 else "RGB", (30, 20), color=number * 20).save(place / "images" / name, quality=95)
        images.append(f"{number + 1} {name}")
        labels.append(f"{number + 1} {number // 3 + 1}")
        split.append(f"{number + 1} {0 if number % 3 == 1 else 1}")
    lists = {"images": images, "image_class_labels": labels, "train_test_split": split}
    lists["classes"] = [f"{number} {number:03d}.Bird" for number in (1, 2, 3)]
    for name, lines in lists.items():
        (place / f"{name}.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(Cub200, "counts", (3, 6, 3))
    return tmp_path, place


def test_cub_reads_the_official_split_from_folder_and_archive(cub, monkeypatch):
    root, place = cub
    data = Cub200(root=root, image_size=10).load()
    assert data.train_images.shape == (6, 10, 10, 3) and data.class_names == ("001.Bird", "002.Bird", "003.Bird")
    assert data.train_labels.tolist() == [0, 0, 1, 1, 2, 2] and data.test_labels.tolist() == [0, 1, 2]
    assert data.test_images[:, 5, 5, 0].tolist() == pytest.approx([20, 80, 140], abs=2)  # images 1, 4 (grey) and 7
    assert Cub200(root=root).state()[0] == "ready" and Cub200(root=root).facts().image_shape == (3, 224, 224)
    with tarfile.open(root / "CUB_200_2011.tgz", "w:gz") as tar:
        tar.add(place, "CUB_200_2011")
    place.rename(root / "away")
    refusal(Cub200(root=root).load, "CUB_200_2011.tgz", "truncated or altered", "97eceeb196236b17998738112f37df78")
    monkeypatch.setattr(Cub200, "archive_md5", md5((root / "CUB_200_2011.tgz").read_bytes()))
    np.testing.assert_array_equal(Cub200(root=root, image_size=10).load().test_images, data.test_images)


CUB_DAMAGE = {
    "images.txt": ("9 003.Bird/img 8.jpg", "9 003.Bird/other.jpg", "1 of 9 images are missing"),
    "image_class_labels.txt": ("9 3", "9 4", "gives image 9 the class 4"),
    "train_test_split.txt": ("9 1", "9 0", "3, 5 and 4, not 3 classes, 6 train and 3 test"),
    "classes.txt": ("3 003.Bird", "x", "line 3 of classes.txt"),
}


@pytest.mark.parametrize("name", CUB_DAMAGE)
def test_cub_refuses_lists_that_were_cut_or_altered(cub, name):
    root, place = cub
    old, new, found = CUB_DAMAGE[name]
    text = (place / name).read_text()
    (place / name).write_text(text.replace(old, new))
    refusal(Cub200(root=root).load, "data_root", str(place), found)
    (place / name).write_text(text.replace(old + "\n", ""))
    refusal(Cub200(root=root).load, "data_root", str(place), "is damaged")
    (place / name).unlink()
    refusal(Cub200(root=root).load, f"{name} is missing")
    assert Cub200(root=root).state()[0] == "damaged"


def test_cub_missing_says_that_avalanche_never_downloads_it(tmp_path):
    error = refusal(Cub200(root=tmp_path).load, "data_root", str(tmp_path), "CUB_200_2011.tgz")
    assert "Avalanche never downloads CUB-200" in error.hint and "97eceeb196236b17998738112f37df78" in error.hint
    assert isinstance(error, MissingData)


def test_cub_refuses_a_truncated_image(cub):
    root, place = cub
    image = place / "images" / "002.Bird" / "img 5.jpg"
    image.write_bytes(image.read_bytes()[:-60])
    refusal(Cub200(root=root).load, str(image), "does not decode")


# --- folders --------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path):
    """Two classes with 3 train and 2 test images of 32 x 32 noise, in several formats."""
    root = tmp_path / "tree"
    for part, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("b_second", "a_first")):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = noise(32, 32, 3, seed=10 * label + index)
                Image.fromarray(pixels).save(root / part / name / f"{index}.{('png', 'bmp', 'ppm')[index]}")
    return root


def test_a_folder_keeps_the_pixels_of_images_that_fit(tree):
    (tree / "train" / "a_first" / ".hidden.png").write_bytes(b"")
    (tree / "train" / "a_first" / "notes.txt").write_text("not an image")
    (tree / "train" / ".cache").mkdir()
    progress = []
    data = ImageFolder(root=tree).load(lambda done, total: progress.append((done, total)))
    assert data.class_names == ("a_first", "b_second") and data.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert data.test_labels.tolist() == [0, 0, 1, 1] and data.test_labels.dtype == np.int64
    np.testing.assert_array_equal(data.train_images, [noise(32, 32, 3, seed=s) for s in (10, 11, 12, 0, 1, 2)])
    facts = ImageFolder(root=tree, image_size=48).facts()
    assert (facts.n_classes, facts.n_train, facts.n_test, facts.image_shape) == (2, 6, 4, (3, 48, 48))
    assert (facts.mean, facts.std) == ((0.5,) * 3, (0.25,) * 3)
    assert ImageFolder(root=tree).state()[0] == "ready" and progress[-1] == (10, 10)


@pytest.mark.parametrize("size", [(70, 45), (20, 33), (16, 200)])
def test_a_folder_resizes_and_crops_as_torchvision_does(tree, size):
    from torchvision.transforms import CenterCrop, Compose, Resize

    image = Image.fromarray(noise(size[1], size[0], 3))
    image.save(tree / "test" / "a_first" / "0.png")
    expected = np.asarray(Compose([Resize(24), CenterCrop(24)])(image))
    np.testing.assert_array_equal(ImageFolder(root=tree, image_size=24).load().test_images[0], expected)


def test_grey_palette_and_deep_images_become_rgb(tree):
    folder, grey = tree / "test" / "a_first", noise(32, 32)
    Image.fromarray(grey).save(folder / "0.png")
    (folder / "1.bmp").unlink()
    Image.fromarray(grey.astype(np.uint16) * 256 + 7).save(folder / "1.png")
    Image.fromarray(noise(32, 32, 3) // 128 * 255).quantize(8).save(tree / "test" / "b_second" / "0.png")
    images = ImageFolder(root=tree).load().test_images
    np.testing.assert_array_equal(images[0], np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(images[1], np.stack([grey] * 3, axis=-1))
    np.testing.assert_array_equal(images[2], noise(32, 32, 3) // 128 * 255)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_stands_in_for_a_missing_test_part_only(tree, name):
    (tree / "test").rename(tree / name)
    assert ImageFolder(root=tree).facts().n_test == 4
    (tree / "test").mkdir()
    refusal(ImageFolder(root=tree).facts, f"{tree / 'test'} holds no class folders")


def cut_jpeg(path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(noise(64, 64, 3)).save(stream, "JPEG")
    path.write_bytes(stream.getvalue()[:-1])


FOLDER_DAMAGE = {
    "truncated jpeg": (lambda f: cut_jpeg(f / "z.jpg"), "z.jpg does not decode"),
    "truncated png": (lambda f: (f / "0.png").write_bytes((f / "0.png").read_bytes()[:2000]), "0.png does not decode"),
    "empty file": (lambda f: (f / "z.jpeg").write_bytes(b""), "z.jpeg does not decode"),
    "no image": (lambda f: (f / "z.WEBP").write_text("hello"), "z.WEBP does not decode: not an image"),
    "a folder": (lambda f: (f / "z.png").mkdir(), "z.png does not decode"),
    "float pixels": (lambda f: Image.new("F", (32, 32)).save(f / "z.tif"), "z.tif does not decode"),
    "dangling link": (lambda f: (f / "z.png").symlink_to("nothing"), "z.png does not decode"),
    "renamed class": (lambda f: f.rename(f.parent / "c_third"), "'c_third'"),
    "class in one part": (lambda f: (f.parent / "extra").mkdir(), "'extra'"),
    "no images": (lambda f: [p.rename(p.with_suffix(".heic")) for p in f.iterdir()], "3 others such as 0.heic"),
}


@pytest.mark.parametrize("damage", FOLDER_DAMAGE)
def test_a_folder_refuses_damage_by_name(tree, damage):
    change, found = FOLDER_DAMAGE[damage]
    change(tree / "train" / "b_second")
    refusal(ImageFolder(root=tree).load, "benchmark.root", str(tree), found)
    assert ImageFolder(root=tree).state()[0] == "damaged"


def test_a_folder_refuses_archives_missing_parts_and_no_size(tree, tmp_path):
    for name in ("data.tar", "data.tar.gz"):
        (tmp_path / name).write_bytes(b"anything")
        refusal(ImageFolder(root=tmp_path / name).facts, "benchmark.root", "is a file", "unpack it")
    refusal(ImageFolder(root=tmp_path / "none").load, "benchmark.root", "does not exist")
    refusal(ImageFolder(root=tmp_path).load, "no folder 'train'", f"did you mean benchmark.root={tree}?")
    refusal(ImageFolder(root=tree, image_size=0).load, "benchmark.image_size", "0")
    refusal(ImageFolder(root=tree, image_size=10_000_000).load, "benchmark.image_size", "GB of memory")
    (tree / "test").rename(tree / "other")
    refusal(ImageFolder(root=tree).load, "no folder 'test'", "test/<class>")
    assert ImageFolder(root=tree).state()[0] == "missing"


def test_large_files_are_decoded_by_threads_in_the_right_places(tree, monkeypatch):
    monkeypatch.setattr("cl_runner.benchmarks.sources.folder._CHUNK", 2)
    monkeypatch.setattr("cl_runner.benchmarks.sources.folder._WORTH_A_THREAD", 0)
    monkeypatch.setattr("cl_runner.benchmarks.sources.folder.os.cpu_count", lambda: 4)
    seen, decode = set(), ImageFolder.load.__globals__["decode_all"].__globals__["decode"]
    barrier = threading.Barrier(2, timeout=10)

    def watched(path, *rest):
        if path.name == "0.png" and path.parent.parent.name == "train":  # first files of chunks 0 and 1
            barrier.wait()  # passes only if two threads are at work at once
        seen.add(threading.get_ident())
        return decode(path, *rest)

    monkeypatch.setattr("cl_runner.benchmarks.sources.folder.decode", watched)
    data = ImageFolder(root=tree).load()
    np.testing.assert_array_equal(data.train_images, [noise(32, 32, 3, seed=s) for s in (10, 11, 12, 0, 1, 2)])
    assert len(seen) > 1
