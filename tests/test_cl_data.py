"""The command line cl-data: its exit codes, its two lines, and that it stays light."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from PIL import Image

from cl_runner.benchmarks.cli import main


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

    monkeypatch.setattr("cl_runner.benchmarks.sources.source.urlopen", no_network)
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
