"""The command line: exit codes, two lines for whatever cannot be met, signals, sweeps, a user's own folder."""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cl_runner import cli, runner

COMMAND = str(Path(sys.executable).parent / "cl-run")
SMALL = ["trainer.epochs=1", "benchmark.per_class=10", "trainer.device=cpu", "quiet=true"]
ENDLESS = ["trainer.epochs=100000", "trainer.device=cpu", "evaluate=last"]
CIFAR_MD5 = "c58f30108f718f92721af3b95e74349a"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Every test works in a folder of its own, far from the repository, with no data anywhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CL_DATA_ROOT", str(tmp_path / "data"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # the command sets it; here it is taken back
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    handlers, level = list(logging.root.handlers), logging.root.level
    yield
    logging.root.handlers[:] = handlers  # Hydra's would write to a stream that is closed by then
    logging.root.setLevel(level)


def run(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """The installed command in a process of its own."""
    return subprocess.run([COMMAND, *arguments], capture_output=True, text=True, timeout=timeout, check=False)


def run_folders(root: str = "outputs") -> list[Path]:
    return sorted(path.parent for path in Path(root).rglob("config.yaml"))


def refused(capsys, *arguments: str) -> str:
    """The message of a request that ends with 2: two lines, no traceback, and no run folder left behind."""
    capsys.readouterr()
    before = {path for path in Path.cwd().rglob("*") if path.is_file()}
    assert cli.execute(list(arguments)) == 2
    captured = capsys.readouterr()
    message = captured.err
    assert 1 <= len(message.splitlines()) <= 3, message
    assert "Traceback" not in message and "Error executing" not in message
    assert message.startswith("cl-run: ") and captured.out == ""
    left = {path for path in Path.cwd().rglob("*") if path.is_file()} - before
    assert not left, f"left behind: {left}"
    return message


# ------------------------------------------------------------------------------------------ Hydra's own side


def test_help_is_quick_and_lists_groups_and_keys():
    """Under 1 s; a loaded machine gets in proportion what importing Hydra alone costs there (0.2 s when idle)."""

    def seconds(*command: str) -> float:
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        return time.perf_counter() - started

    took = min(seconds(COMMAND, "--help") for _ in range(3))
    hydra_alone = min(seconds(sys.executable, "-c", "import hydra._internal.hydra") for _ in range(3))
    assert took < max(1.0, 4 * hydra_alone)
    shown = run("--help")
    assert shown.returncode == 0 and shown.stderr == ""
    for word in ("cl-run +experiment=NAME", "adapter: codyra, convlora", "n_tasks: 5", "mode=plan"):
        assert word in shown.stdout
    assert not list(Path.cwd().iterdir()), "help writes nothing"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cfg", "job"], ["_target_: cl_runner.adapters.convlora.ConvLoRA", "seed: 0"]),
        (["--cfg", "job", "--package", "adapter"], ["rank:"]),
        (["--info", "defaults"], ["adapter", "convlora"]),
        (["--shell-completion", "install=bash"], ["complete"]),
        (["--hydra-help"], ["--shell-completion", "--multirun"]),
        (["--version"], ["cl-run "]),
    ],
    ids=lambda item: item[0],
)
def test_hydras_own_options_work(arguments, words):
    command = [sys.executable, "-m", "cl_runner.cli", *arguments]  # Hydra's log holds on to a process's first terminal
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for word in words:
        assert word in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bogus"], ["--bogus", "--hydra-help"]),
        (["--rank", "3"], ["--rank", "KEY=VALUE"]),
        (["seed=1", "-m", "seed=2"], ["seed=2", "before all of them"]),
        (["--cfg", "nothing"], ["--cfg", "job"]),
        (["--multirun", "--cfg", "job"], ["Only one of"]),
        (["--config-dir", "missing"], ["missing", "no such folder"]),
        (["--config-name", "missing"], ["missing", "--config-name"]),
    ],
    ids=lambda item: " ".join(item),
)
def test_a_wrong_option_is_refused(capsys, arguments, words):
    message = refused(capsys, *arguments)
    for word in words:
        assert word in message


def test_the_scripts_are_installed():
    for name in ("cl-run", "cl-report", "cl-data"):
        script = Path(sys.executable).parent / name
        assert os.access(script, os.X_OK), name
        assert subprocess.run([script, "--help"], capture_output=True, check=False).returncode == 0


# ---------------------------------------------------------------------------------------- wrong on purpose


def test_wrong_keys_and_values(capsys):
    """A misspelt group, a misspelt key, a rank of 0: refused before torch is imported (test_config has the table)."""
    assert "did you mean 'adapter'?" in refused(capsys, "adaptr=convlora")
    message = refused(capsys, "adapter.rnk=3")
    assert "adapter.rnk" in message and "did you mean 'rank'?" in message
    assert "did you mean 'rank'?" in refused(capsys, "+adapter.rnk=3")
    message = refused(capsys, "adapter.rank=0")
    assert "adapter.rank=0" in message and "at least 1" in message


@pytest.mark.parametrize("mode", ["train", "plan"])
def test_parts_that_do_not_fit(capsys, mode):
    arguments = [f"mode={mode}", "trainer.device=cpu"]
    message = refused(capsys, "adapter.rank=1000", *arguments)
    assert "adapter.rank=1000" in message and "at most" in message
    message = refused(capsys, "placement=match", "placement.pattern=nothing_like_it", *arguments)
    assert "placement.pattern=nothing_like_it" in message and "block1.conv" in message
    message = refused(capsys, "benchmark.n_tasks=3", *arguments)
    assert "benchmark.n_tasks=3" in message and "10 classes" in message and "1, 2, 5, 10" in message
    message = refused(capsys, "benchmark.task_labels=false", "strategy=replay", *arguments)
    assert "benchmark.task_labels=false" in message and "strategy=naive" in message
    message = refused(capsys, "backbone=pytorchcv", "backbone.name=resnet20_cifr10", *arguments)
    assert "backbone.name=resnet20_cifr10" in message and "resnet20_cifar10" in message
    assert not Path("outputs").exists() or not list(Path("outputs").iterdir())


def test_missing_data(capsys, tmp_path):
    message = refused(capsys, "benchmark=split_cifar10", f"data_root={tmp_path}/nowhere")
    assert f"{tmp_path}/nowhere" in message and "cifar-10-python.tar.gz" in message and CIFAR_MD5 in message
    message = refused(capsys, "benchmark=split_folder", f"benchmark.root={tmp_path}/nowhere")
    assert "benchmark.root" in message and f"{tmp_path}/nowhere" in message


def test_a_truncated_archive(capsys, tmp_path):
    (tmp_path / "data").mkdir()
    archive = tmp_path / "data" / "cifar-10-python.tar.gz"
    archive.write_bytes(b"\x1f\x8b\x08\x00" + bytes(range(256)) * 100)
    message = refused(capsys, "benchmark=split_cifar10", "backbone=small_cnn", "trainer.device=cpu")
    assert str(archive) in message and CIFAR_MD5 in message


def test_a_device_that_is_not_there(capsys, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    message = refused(capsys, "trainer.device=cuda")
    assert "trainer.device=cuda" in message and "available: auto, cpu" in message


def test_a_run_folder_that_cannot_be_made(capsys, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file")
    message = refused(capsys, f"output_root={tmp_path}/taken", "mode=plan")
    assert "output_root" in message and f"{tmp_path}/taken" in message and "in the way" in message

    mkdir = Path.mkdir

    def denied(path: Path, *arguments: object, **options: object) -> None:
        if "locked" in path.parts:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        mkdir(path, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", denied)  # root is denied nothing, so the denial is acted
    for arguments in (["mode=plan"], ["-m", "mode=plan"]):
        message = refused(capsys, *arguments, f"output_root={tmp_path}/locked")
        assert "output_root" in message and f"{tmp_path}/locked" in message and "permission" in message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
def test_no_space_for_the_run_folder(capsys, tmp_path, monkeypatch):
    folder = tmp_path / "runs" / "full"
    folder.mkdir(parents=True)
    (folder / ".parameters.csv.partial").symlink_to("/dev/full")
    monkeypatch.setattr(runner, "_place", lambda config, experiment: folder)
    message = refused(capsys, "mode=plan", "quiet=true")
    assert "no space" in message.lower() and "parameters.csv" in message
    assert not folder.exists()


def test_resume(capsys, tmp_path):
    message = refused(capsys, f"resume={tmp_path}/nowhere")
    assert f"resume={tmp_path}/nowhere" in message and "there is no such folder" in message
    (tmp_path / "empty").mkdir()
    assert "no config.yaml" in refused(capsys, f"resume={tmp_path}/empty")
    message = refused(capsys, f"resume={tmp_path}/nowhere", "adapter.rank=3")
    assert "there is no such folder" in message
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").write_text("seed: [\n")
    message = refused(capsys, f"resume={tmp_path}/old")
    assert f"resume={tmp_path}/old" in message and "damaged" in message


def test_a_run_that_cannot_go_on_keeps_its_folder(capsys, tmp_path):
    """Data that is gone for the moment must not cost the configuration of an interrupted run."""
    assert cli.execute(["mode=plan", "quiet=true"]) == 0
    (folder,) = run_folders()
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["mode"] = "train"
    config["benchmark"]["_target_"] = "cl_runner.benchmarks.classes.SplitMNIST"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    capsys.readouterr()
    assert cli.execute([f"resume={folder}"]) == 2
    assert "data_root" in capsys.readouterr().err
    assert yaml.safe_load((folder / "config.yaml").read_text()) == config


def test_a_mistake_of_ours_is_not_taken_for_the_users(monkeypatch):
    """What is raised while a run is under way is no composition error; it keeps its traceback (exit code 1)."""
    monkeypatch.setattr(runner, "run", lambda *_, **__: {}["missing"])
    with pytest.raises(KeyError):
        cli.execute(["mode=plan"])


# ----------------------------------------------------------------------------------------------- good runs


def test_a_run_ends_with_0_and_says_what_was_typed(capsys):
    assert cli.execute([*SMALL, "adapter.linear_rank=${adapter.rank}"]) == 0
    (folder,) = run_folders()
    assert folder.parent == Path("outputs/quickstart") and (folder / "DONE").exists()
    assert yaml.safe_load((folder / "overrides.yaml").read_text()) == [*SMALL, "adapter.linear_rank=${adapter.rank}"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "done" and summary["forgetting"] == 0
    capsys.readouterr()
    assert cli.execute([f"resume={folder}"]) == 0, "what is done is done"
    assert "nothing to resume" in capsys.readouterr().out
    assert [path.name for path in Path.cwd().iterdir()] == ["outputs"], "nothing lies about"


def test_two_values_run_two_cells():
    assert cli.execute(["-m", "seed=0,1", *SMALL, "strategy=naive"]) == 0
    folders = run_folders("outputs/sweeps/quickstart")
    seeds = [yaml.safe_load((folder / "config.yaml").read_text())["seed"] for folder in folders]
    assert sorted(seeds) == [0, 1] and all((folder / "DONE").exists() for folder in folders)
    typed = [yaml.safe_load((folder / "overrides.yaml").read_text())[0] for folder in folders]
    assert sorted(typed) == ["seed=0", "seed=1"]
    assert [path.name for path in Path.cwd().iterdir()] == ["outputs"], "nothing lies about"


def test_a_sweep_runs_its_good_cells_and_ends_with_the_worst_code(capsys):
    assert cli.execute(["-m", "adapter.rank=0,1", "mode=plan", "quiet=true"]) == 2
    assert "adapter.rank=0 is not possible" in capsys.readouterr().err
    (folder,) = run_folders("outputs/quickstart")
    assert yaml.safe_load((folder / "config.yaml").read_text())["adapter"]["rank"] == 1


DIVERGES = ("adapter=none", "optimizer=sgd", "optimizer.lr=1e9", "optimizer.weight_decay=1")


def test_a_run_that_fails_ends_with_1(capsys):
    arguments = [*DIVERGES, "trainer.epochs=2", *SMALL[1:]]
    assert cli.execute(arguments) == 1
    message = capsys.readouterr().err
    (folder,) = run_folders()
    assert "Traceback" not in message and len(message.splitlines()) <= 4
    assert "optimizer.lr" in message and str(folder / "error.txt") in message
    assert "Traceback" in (folder / "error.txt").read_text()
    assert json.loads((folder / "summary.json").read_text())["status"] == "failed"
    assert not (folder / "DONE").exists()


# ------------------------------------------------------------------------------------------------- signals


def told_interrupted(root: Path, error: str) -> None:
    assert "Traceback" not in error and "interrupted" in error and len(error.splitlines()) <= 3
    (folder,) = run_folders(str(root))
    assert f"resume={folder.relative_to(root)}" in error
    assert json.loads((folder / "summary.json").read_text())["status"] == "interrupted"
    assert not (folder / "DONE").exists()


def test_signals_end_with_130_and_the_folder_says_so(tmp_path):
    """SIGTERM while a task trains, SIGINT while libraries are still being imported: two processes at once."""
    wanted = {"term": (signal.SIGTERM, '"run_started"'), "int": (signal.SIGINT, "")}
    processes = {}
    for name in wanted:
        (tmp_path / name).mkdir()
        processes[name] = subprocess.Popen(
            [COMMAND, *ENDLESS],
            cwd=tmp_path / name,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores it
        )
    try:
        for name in reversed(wanted):
            number, until = wanted[name]
            assert logged(tmp_path / name, until, lambda name=name: processes[name].poll() is None), name
            processes[name].send_signal(number)
        for name, process in processes.items():
            _, error = process.communicate(timeout=60)
            assert process.returncode == 130, (name, error)
            told_interrupted(tmp_path / name, error)
    finally:
        for process in processes.values():
            process.kill()


def test_ctrl_c_while_training(tmp_path, capsys):
    def press() -> None:
        if logged(tmp_path, '"run_started"'):
            time.sleep(0.3)
            signal.raise_signal(signal.SIGINT)

    capsys.readouterr()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background may ignore it
    finger = threading.Thread(target=press)
    finger.start()
    try:
        code = cli.execute([*ENDLESS, "quiet=true"])
    finally:
        signal.signal(signal.SIGINT, before)
    finger.join()
    assert code == 130
    told_interrupted(tmp_path, capsys.readouterr().err)


def logged(folder: Path, text: str, alive: Callable[[], bool] = lambda: True) -> bool:
    """Waits until an event log below the folder holds the text."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and alive():
        if any(text in log.read_text() for log in folder.rglob("events.jsonl")):
            return True
        time.sleep(0.02)
    return False


def test_an_interrupted_sweep_starts_no_further_cell(monkeypatch, capsys):
    started = []

    def interrupted(config: object, **_: object) -> None:
        started.append(config)
        raise runner.RunFailed("cl-run: interrupted", interrupted=True)

    monkeypatch.setattr(runner, "run", interrupted)
    assert cli.execute(["-m", "seed=0,1"]) == 130
    assert len(started) == 1 and "interrupted" in capsys.readouterr().err


# -------------------------------------------------------------------------------------- a user's own folder


OWN_ADAPTER = '''
from torch import nn
from cl_runner.adapters.none import NoAdapter

class Tiny(NoAdapter):
    """Trains biases and norms alone."""
    def __init__(self, *, every: int, note: str = ""):
        self.every, self.note = every, note
    def begin_task(self, tasks):
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(parameter.ndim < 2 or "classifier" in name)
'''


@pytest.fixture
def own_folder(tmp_path):
    (tmp_path / "my" / "adapter").mkdir(parents=True)
    (tmp_path / "my" / "tiny_adapter_of_mine.py").write_text(OWN_ADAPTER)
    (tmp_path / "my" / "adapter" / "tiny.yaml").write_text("_target_: tiny_adapter_of_mine.Tiny\nevery: 2\n")
    (tmp_path / "my" / "adapter" / "parent.yaml").write_text("_target_: my.tiny_adapter_of_mine.Tiny\nevery: 2\n")
    (tmp_path / "my" / "adapter" / "gone.yaml").write_text("_target_: tiny_adapter_of_mine.Large\n")
    yield "my"
    for name in ("tiny_adapter_of_mine", "my.tiny_adapter_of_mine", "my"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", ["tiny", "parent"])
def test_a_users_own_adapter_runs(own_folder, name):
    arguments = ["--config-dir", own_folder, f"adapter={name}", "+adapter.note=mine", "benchmark.n_tasks=2"]
    assert cli.execute([*arguments, *SMALL]) == 0
    (folder,) = run_folders("outputs")
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["adapter"] == "tiny" and summary["status"] == "done"
    assert summary["trainable_parameters"] < summary["base_parameters"], "its begin_task closed the convolutions"


def test_a_users_own_adapter_is_checked(own_folder, capsys):
    message = refused(capsys, f"--config-dir={own_folder}", "adapter=tiny", "+adapter.evry=3")
    assert "adapter.evry" in message and "did you mean 'every'?" in message
    message = refused(capsys, f"--config-dir={own_folder}", "adapter=tiny", "adapter.evry=3")
    assert "adapter.evry" in message and "Tiny" in message and "did you mean 'every'?" in message
    message = refused(capsys, f"--config-dir={own_folder}", "adapter=tiny", "~adapter.every")
    assert "adapter.every" in message and "needs it" in message
    message = refused(capsys, f"--config-dir={own_folder}", "adapter=gone")
    assert "tiny_adapter_of_mine.Large" in message and "cannot be imported" in message
    message = refused(capsys, f"--config-dir={own_folder}", "adapter=tni")
    assert "adapter=tni" in message and "tiny" in message


def test_a_sweep_over_a_group_may_set_a_key_that_only_its_choices_have(elsewhere, capsys):
    """The default backbone has no stem; both that are swept have."""
    arguments = ["-m", "backbone=resnet18,torchvision", "backbone.stem=original", "backbone.name=resnet18"]
    assert cli.execute([*arguments, "benchmark=split_cifar10", "adapter=none", "mode=plan", "quiet=true"]) == 0
    typed = [yaml.safe_load(file.read_text()) for file in sorted(Path("outputs").glob("*/*/overrides.yaml"))]
    chosen = sorted(item for items in typed for item in items if item.startswith("backbone="))
    assert chosen == ["backbone=resnet18", "backbone=torchvision"], "one choice in each, and nothing else is typed"
    assert cli.execute([*arguments, "backbone.layers=2", "mode=plan", "quiet=true"]) == 2
    assert "backbone.layers" in capsys.readouterr().err
