"""What comes from outside stays data: weights and pickles that carry code, and names that carry markup."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import cl_runner
from cl_runner import cli
from cl_runner.benchmarks.sources import Cifar10
from cl_runner.benchmarks.sources.pickles import read_arrays
from cl_runner.errors import RequestError

PACKAGE = Path(cl_runner.__file__).parent
QUICK = ("trainer.epochs=1", "trainer.threads=1", "trainer.device=cpu", "quiet=true", "output_root=out",
         "backbone=small_cnn", "backbone.width=8", "benchmark.n_tasks=2")  # fmt: skip

# --------------------------------------------------------------------------------------------- weights with code


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def hidden_in_a_checkpoint(mark: Path) -> bytes:
    """A file as torch.save writes it, whose pickle runs code and then gives a state dict."""
    stream = io.BytesIO()
    torch.save({"conv.weight": torch.ones(2), "extra": Payload(mark)}, stream)
    return stream.getvalue()


FORMS = {
    "weights.pth": lambda mark: pickle.dumps(Payload(mark)),
    "weights.pt": hidden_in_a_checkpoint,
    "old.pth": lambda mark: pickle.dumps({"state_dict": Payload(mark)}, protocol=0),
    "weights.safetensors": lambda mark: pickle.dumps(Payload(mark)),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_pickle_posing_as_weights_is_refused_and_not_run(elsewhere, tmp_path, capsys, name):
    mark = tmp_path / "ran"
    (tmp_path / name).write_bytes(FORMS[name](mark))
    asked = ["backbone=resnet20", f"backbone.pretrained={tmp_path / name}", "quiet=true", "output_root=out"]
    assert cli.execute(asked) == 2
    text = capsys.readouterr().err
    assert f"backbone.pretrained={tmp_path / name}" in text and "Traceback" not in text
    assert not mark.exists() and not list(Path("out").rglob("config.yaml"))
    if not name.endswith(".safetensors"):  # it would have run
        content = (tmp_path / name).read_bytes()
        if zipfile.is_zipfile(io.BytesIO(content)):
            torch.load(io.BytesIO(content), weights_only=False)
        else:
            pickle.loads(content)
        assert mark.exists()


# ----------------------------------------------------------------------------------------------- datasets as pickles


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_texts_numbers_and_lists_are_read(protocol):
    rows = np.arange(12, dtype=np.uint8).reshape(2, 6)
    content = {"data": rows, "labels": [1, 2], "names": ["a", "ü"], "raw": b"\xff", "share": 0.5, "none": None}
    found = read_arrays(pickle.dumps(content, protocol=protocol))
    np.testing.assert_array_equal(found.pop("data"), rows)
    assert found == {key: value for key, value in content.items() if key != "data"}


def test_what_numpy_of_2009_wrote_is_read():
    content = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04K\x00\x85U\x01b"
        b"\x87Rq\x05(K\x01K\x02\x85cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff"
        b"\xff\xff\xffK\x00tb\x89U\x02\x07\xfetbU\x06labelsq\x08]q\x09(K\x03K\x04eu."
    )
    found = read_arrays(content)
    assert found["data"].tolist() == [7, 254] and found["labels"] == [3, 4]


class Calls:
    """Asks for any function."""

    def __init__(self, function, *arguments) -> None:
        self.asked = function, arguments

    def __reduce__(self):
        return self.asked


HOSTILE = [
    lambda mark: Payload(mark),
    lambda mark: Calls(eval, f"__import__('os').mkdir({str(mark)!r})"),
    lambda mark: Calls(getattr, {}, "get"),
    lambda mark: Calls(np.lib.format.open_memmap, str(mark), "w+", None, (3,)),
    lambda mark: Calls(io.open, str(mark), "w"),
    lambda mark: {"data": np.array([Payload(mark)], dtype=object)},
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_asks_for_more_is_refused(tmp_path, number, protocol):
    mark = tmp_path / "ran"
    content = pickle.dumps(HOSTILE[number](mark), protocol=protocol)
    with pytest.raises(ValueError, match="which is no part of an array"):
        read_arrays(content)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"\x80", pickle.dumps([1]), pickle.dumps({"a": 1})[:-3], b"no pickle"])
def test_a_damaged_pickle_is_a_value_error(content):
    with pytest.raises(ValueError):  # noqa: PT011, whatever the reader says
        read_arrays(content)


def test_cifar_does_not_run_a_pickle_even_with_the_right_checksum(tmp_path, monkeypatch):
    content = pickle.dumps(Payload(tmp_path / "ran"))
    (tmp_path / Cifar10.folder).mkdir()
    for files in ("train_files", "test_files", "names_file"):
        digests = dict.fromkeys(getattr(Cifar10, files), hashlib.md5(content).hexdigest())
        monkeypatch.setattr(Cifar10, files, digests)
        for name in digests:
            (tmp_path / Cifar10.folder / name).write_bytes(content)
    with pytest.raises(RequestError, match="data_batch_1 is no file of cifar10: it asks for posix.mkdir"):
        Cifar10(root=tmp_path).load()
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------------------------------------------ the source

LOADERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
CARELESS = (("weights_only", False), ("allow_pickle", True), ("trust_remote_code", True))
REMOTE = {"AutoConfig", "AutoTokenizer", "AutoModel", "AutoModelForCausalLM"}


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def unsafe(call: ast.Call) -> str | None:
    """Why a call may run what it reads; None where it does not."""
    name, given = dotted(call.func), {word.arg: word.value for word in call.keywords}
    head, _, last = name.rpartition(".")
    fixed = {key: value.value for key, value in given.items() if isinstance(value, ast.Constant)}
    if head.split(".")[-1] in LOADERS and last in ("load", "loads", "Unpickler", "open"):
        return f"{name} unpickles"
    if name == "torch.load" and fixed.get("weights_only") is not True:
        return f"{name} without weights_only=True"
    if (
        fixed.get("weights_only") is False
        or fixed.get("allow_pickle") is True
        or fixed.get("trust_remote_code") is True
    ):
        return f"{name} is told to run code"
    if last in ("from_pretrained", "from_config") and head.split(".")[-1] in REMOTE | {""}:
        return None if fixed.get("trust_remote_code") is False else f"{name} without trust_remote_code=False"
    if name in ("eval", "exec", "os.system", "os.popen", "torch.hub.load", "yaml.unsafe_load", "yaml.full_load"):
        return name
    if name == "yaml.load" and "Loader" not in given:
        return "yaml.load without a safe loader"
    return f"{name} with a shell" if fixed.get("shell") is True else None


@pytest.mark.parametrize(
    "code",
    ["pickle.loads(x)", "torch.load(x)", "torch.load(x, weights_only=False)", "np.load(x, allow_pickle=True)",
     "joblib.load(x)", "t.AutoTokenizer.from_pretrained(x)", "t.AutoConfig.from_pretrained(x, trust_remote_code=True)",
     "yaml.load(x)", "eval(x)", "subprocess.run(x, shell=True)", "torch.hub.load(x)"],
)  # fmt: skip
def test_an_unsafe_call_is_recognised(code):
    assert unsafe(ast.parse(code).body[0].value)


def test_no_call_of_the_package_runs_what_it_reads():
    found = []
    for file in sorted([*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "scripts").glob("*.py")]):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and (reason := unsafe(node)):
                found.append(f"{file.relative_to(PACKAGE.parent)}:{node.lineno}: {reason}")
    assert not found, "\n".join(found)


def test_no_loader_hides_under_a_name_of_its_own():
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LOADERS | {"torch", "numpy"}:
                hidden = [one.name for one in node.names if one.name in ("load", "loads", "Unpickler")]
                assert not hidden, f"{file}: from {node.module} import {hidden[0]}"
            if isinstance(node, ast.Import):
                renamed = [one.name for one in node.names if one.asname and one.name in LOADERS | {"torch"}]
                assert not renamed, f"{file}: import {renamed[0]} under another name"


def test_unpickling_is_in_one_file():
    bases = {
        str(file.relative_to(PACKAGE))
        for file in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef) and any("Unpickler" in dotted(base) for base in node.bases)
    }
    assert bases == {"benchmarks/sources/pickles.py"}
