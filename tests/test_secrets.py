"""Keys of the environment and tokens in URLs work in the process, and are in no file that it leaves."""

from __future__ import annotations

import json
import secrets as random
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from cl_runner import cli
from cl_runner.recording.redact import (
    HIDDEN,
    hidden_keys,
    is_secret,
    redact,
    redact_config,
    redact_file,
    redact_text,
)

SOURCE = '''
import os
import sys

from cl_runner.benchmarks.classes import SplitDigits


class Remote(SplitDigits):
    """Digits as if they came from an address that needs a key."""

    seen = []

    def __init__(self, *, address: str, api_key: str = "", mirrors: list | None = None, fail: bool = False, **options):
        super().__init__(**options)
        self.address, self.api_key, self.fail = address, api_key, fail
        Remote.seen.append((address, api_key, mirrors))

    def stream(self, data_root, progress=None):
        if self.fail:
            raise RuntimeError(f"GET {self.address} with api_key={self.api_key}, {os.environ['WANDB_API_KEY']}: 403")
        return super().stream(data_root, progress)
'''
QUICK = (
    "trainer.epochs=1", "trainer.threads=1", "trainer.device=cpu", "backbone.width=8", "benchmark.n_tasks=2",
    "benchmark.per_class=8", "benchmark.validation_fraction=0", "quiet=true", "output_root=out",
)  # fmt: skip


@pytest.fixture
def secret(elsewhere, tmp_path, monkeypatch):
    """Secrets by where they are: some in the environment, others to be typed; each its own and of no known shape."""
    (tmp_path / "own" / "benchmark").mkdir(parents=True)
    keys = {"_target_": "remote_digits.Remote", "address": "", "api_key": "", "mirrors": [], "fail": False}
    keys |= {"n_tasks": 5, "per_class": None, "validation_fraction": 0.1}
    (tmp_path / "own" / "benchmark" / "remote.yaml").write_text(yaml.safe_dump(keys))
    (tmp_path / "own" / "remote_digits.py").write_text(SOURCE)
    monkeypatch.delitem(sys.modules, "remote_digits", raising=False)
    names = ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "DATABASE_URL", "user", "query", "key", "mirror"]
    named = {name: f"S{number}{random.token_hex(10)}" for number, name in enumerate(names)}
    for name in ("WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, named[name])
    monkeypatch.setenv("DATABASE_URL", f"postgres://me:{named['DATABASE_URL']}@db.example.org/x")
    return named


def typed(secret: dict[str, str]) -> list[str]:
    address = f"https://me:{secret['user']}@example.org/a?part=1&token={secret['query']}&x={secret['HF_TOKEN']}"
    mirror = f"https://{secret['mirror']}@example.org"
    return [
        "--config-dir", "own", "benchmark=remote", f"benchmark.address='{address}'",
        f"benchmark.api_key={secret['key']}", f"benchmark.mirrors=['{mirror}']", *QUICK,
    ]  # fmt: skip


def leaks(folder: Path, secret: dict[str, str]) -> list[str]:
    """Every file below a folder that holds one of the secrets, and which."""
    found = []
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = file.read_bytes()
        found += [f"{name} is in {file}" for name, value in secret.items() if value.encode() in content]
    return found


def test_a_run_leaves_no_secret(secret):
    given = [*typed(secret), "tracking=wandb", "tracking.wandb.mode=offline", "tracking.wandb.artifacts=true"]
    assert cli.execute([*given, f"tracking.wandb.tags=[{secret['AWS_SECRET_ACCESS_KEY']}]"]) == 0
    (folder,) = {path.parent for path in Path("out").rglob("DONE")}
    assert leaks(Path("out"), secret) == []
    address, key, mirrors = sys.modules["remote_digits"].Remote.seen[-1]
    assert secret["user"] in address and secret["query"] in address, "it still works in the process"
    assert key == secret["key"] and secret["mirror"] in mirrors[0]
    config = yaml.safe_load((folder / "config.yaml").read_text())["benchmark"]
    assert config["address"] == f"https://{HIDDEN}@example.org/a?part=1&token={HIDDEN}&x=" + "${oc.env:HF_TOKEN}"
    assert config["api_key"] == HIDDEN and config["mirrors"] == [f"https://{HIDDEN}@example.org"]
    overrides = yaml.safe_load((folder / "overrides.yaml").read_text())
    assert f"benchmark.api_key={HIDDEN}" in overrides and "benchmark.n_tasks=2" in overrides
    assert (folder / "report.html").is_file() and list((folder / "wandb").rglob("*.wandb"))


def test_a_run_goes_on_with_the_keys_of_the_environment_and_refuses_without_those_typed(secret, capsys):
    for key, code in ((secret["HF_TOKEN"], 0), ("${oc.env:HF_TOKEN}", 0), (secret["key"], 2)):
        before = set(Path("out").rglob("DONE"))
        given = ["--config-dir", "own", "benchmark=remote", f"benchmark.api_key={key}", *QUICK]
        assert cli.execute([*given, f"benchmark.address=https://me:{secret['HF_TOKEN']}@x/?{secret['HF_TOKEN']}"]) == 0
        (done,) = set(Path("out").rglob("DONE")) - before
        done.unlink()
        assert leaks(Path("out"), secret) == []
        capsys.readouterr()
        assert cli.execute(["--config-dir", "own", f"resume={done.parent}", "quiet=true"]) == code
        if code:
            text = capsys.readouterr().err
            assert "benchmark.api_key" in text and "oc.env" in text and len(text.splitlines()) == 2
        else:
            address, found, _ = sys.modules["remote_digits"].Remote.seen[-1]
            assert found == secret["HF_TOKEN"] and address.endswith(f"@x/?{found}") and done.exists()


def test_a_run_that_fails_leaves_no_secret(secret):
    assert cli.execute([*typed(secret), "benchmark.fail=true"]) == 1
    (trace,) = Path("out").rglob("error.txt")
    assert "GET https://***@example.org" in trace.read_text() and leaks(Path("out"), secret) == []


def test_a_sweep_leaves_no_secret(secret):
    assert cli.execute(["-m", *typed(secret), "seed=0,1", f"benchmark.address=https://{secret['query']}@x"]) == 0
    assert len(list(Path("out").rglob("DONE"))) == 2 and leaks(Path("out"), secret) == []
    multirun = yaml.safe_load(Path("out/sweeps/multirun.yaml").read_text())
    assert f"benchmark.api_key={HIDDEN}" in multirun["hydra"]["overrides"]["task"]


# ------------------------------------------------------------------------------------------------ what is a secret


@pytest.mark.parametrize(
    "name",
    ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "apiKey", "PGPASSWORD", "db.password",
     "AZURE_CLIENT_SECRET", "auth_key", "X-Amz-Signature", "hub_token", "private_key"],
)  # fmt: skip
def test_telling_names(name):
    assert is_secret(name)


@pytest.mark.parametrize(
    "name",
    ["tokenizer", "max_tokens", "TOKENIZERS_PARALLELISM", "pad_token", "eos_token", "PWD", "OLDPWD", "key", "author",
     "class_order_seed", "SSH_AUTH_SOCK", "design"],
)  # fmt: skip
def test_names_that_only_sound_so(name):
    assert not is_secret(name)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("url=https://me:pw@host/p?token=abc&b=1", "url=https://***@host/p?token=***&b=1"),
        (r"a=https\://me\:pw@h/?token\=abc&b\=1", r"a=https\://***@h/?token\=***&b\=1"),
        (r"+x.token\=abc", r"+x.token\=***"),
        ("s3://KEY@bucket", "s3://***@bucket"),
        ("get https://host/?a=1#access_token=abc", "get https://host/?a=1#access_token=***"),
        ("https://host/x?X-Amz-Signature=0a1b&y=2 is gone", "https://host/x?X-Amz-Signature=***&y=2 is gone"),
        ("Authorization: Basic bWU6cHc=", "Authorization: Basic ***"),
        ("use hf_abcdefghijklmnopqrstuvwxyz or not", "use *** or not"),
        ('{"password": "a b", "n": 1}', '{"password": "***", "n": 1}'),
        ("+backbone.api_key=abc", "+backbone.api_key=***"),
        ("password=12345678", "password=***"),
        ("token_accuracy: 0.25, tokens=1000000", "token_accuracy: 0.25, tokens=1000000"),
        ("benchmark.root=/data/x trainer.epochs=3", "benchmark.root=/data/x trainer.epochs=3"),
        ("options: {pad_token: <pad>}", "options: {pad_token: <pad>}"),
    ],
)
def test_texts(text, shown):
    assert redact_text(text) == shown
    assert redact_text(shown) == shown


def test_numbers_that_measure_stay_and_a_number_as_a_password_goes():
    given = {
        "token_accuracy": 0.5,
        "loss": 1,
        "password": 12345678,
        "token": {"a": ["x", 1, None]},
        "total_tokens": 10**9,
    }
    cleaned = redact(given)
    assert cleaned == given | {"password": HIDDEN, "token": {"a": [HIDDEN, 1, None]}}
    assert hidden_keys(cleaned) == ["password", "token.a"] and hidden_keys(given) == []


def test_the_environment_wherever_it_shows(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "a/b+c d&e12345")
    monkeypatch.setenv("SHORT_TOKEN", "abc")
    monkeypatch.setenv("HTTPS_PROXY", "http://user:proxy-pass@proxy:3128")
    assert redact_text("x a/b+c d&e12345 y") == "x *** y"
    assert redact_text("https://h/?q=a%2Fb%2Bc%20d%26e12345") == "https://h/?q=***"
    assert redact_text("proxy-pass, abc") == "***, abc"
    assert redact([{"deep": ("a/b+c d&e12345",)}]) == [{"deep": [HIDDEN]}]


def test_a_configuration_names_the_variable(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "abcdefgh123")
    given = {"token": "abcdefgh123", "url": "https://h/?token=abcdefgh123&b=1", "password": "typed"}
    cleaned = redact_config(given)
    wanted = {"token": "${oc.env:HF_TOKEN}", "url": "https://h/?token=${oc.env:HF_TOKEN}&b=1", "password": HIDDEN}
    assert cleaned == wanted and hidden_keys(cleaned) == ["password"]
    assert OmegaConf.to_container(OmegaConf.create(cleaned), resolve=True) == given | {"password": HIDDEN}
    assert redact(given) == {"token": HIDDEN, "url": f"https://h/?token={HIDDEN}&b=1", "password": HIDDEN}


def test_a_file_of_another_program(tmp_path, monkeypatch):
    place = tmp_path / "multirun.yaml"
    place.write_text(yaml.safe_dump({"a": 1, "list": ["x.token=abc"], "s": "1e3"}))
    redact_file(place)
    assert yaml.safe_load(place.read_text()) == {"a": 1, "list": [f"x.token={HIDDEN}"], "s": "1e3"}
    before = place.stat().st_mtime_ns, place.read_bytes()
    redact_file(place)
    assert (place.stat().st_mtime_ns, place.read_bytes()) == before
    assert [path.name for path in tmp_path.iterdir()] == ["multirun.yaml"]


def test_what_a_run_is_described_by_holds_no_environment(monkeypatch):
    from cl_runner.recording.environment import describe

    monkeypatch.setenv("MY_OWN_VARIABLE", "not secret by its name")
    assert "not secret by its name" not in json.dumps(describe("cpu", {"seed": 0}, None, False))
