"""Cells in other processes: frozen when submitted, reported like those of one process, whatever becomes of them."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
import yaml
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf
from safetensors.torch import save_file
from sweep_helpers import CELLS, QUICK, cells, matrices, rows

from cl_runner import cli
from cl_runner.backbones import weights
from cl_runner.backbones.small import SmallCNN
from cl_runner.benchmarks import cache
from cl_runner.benchmarks.sources.digits import Digits
from cl_runner.config.compose import PLUGINS, explain
from cl_runner.launchers.frozen import FrozenLoader
from cl_runner.launchers.ticket import Ticket, ended, wanted
from cl_runner.recording.lock import SWEEP

pytestmark = pytest.mark.usefixtures("elsewhere")
INSTALLED = {choice: package.replace("-", "_") for (_, choice), (_, package) in PLUGINS.items()}

# A user's module. In a process that is not the test's it puts something quick in the place of torch and training: what
# is tested here is how cells get there and back. Every cell spoils the file that it was composed from; those whose
# number is in the file `fatal` kill their process.
OWN_MODULE = """
import os, signal, sys, types
from pathlib import Path

class Deadly:
    def __init__(self, *, rank: int):
        self.rank = rank

def learn(config, folder, recorder, experiment, **kept):
    from cl_runner.result import RunResult
    (Path(__file__).parent / "adapter" / "deadly.yaml").write_text("_target_: deadly_of_mine.Gone")
    if Path("fatal").exists() and os.environ["CL_RUN_CELL"] in Path("fatal").read_text():
        os.kill(os.getpid(), signal.SIGKILL)
    recorder.run_started({}, ["one"], {"experiment": experiment, "adapter": "deadly", "seed": config.seed})
    recorder.evaluated(1, [config.seed / 10])
    return RunResult(folder.path, recorder.run_finished({"wall_seconds": 0.0}))

if os.getpid() != PROCESS_OF_THE_TEST:
    sys.modules["cl_runner.learning"] = types.SimpleNamespace(learn=learn)
"""


@pytest.fixture(autouse=True)
def fresh_workers():
    """joblib keeps its worker processes for the next call; here that is another test."""
    yield
    if "joblib" in sys.modules:
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown(wait=True, kill_workers=True)


@pytest.fixture
def submit():
    """Runs a sweep of a user's own adapter."""
    Path("mine/adapter").mkdir(parents=True)
    Path("mine/deadly_of_mine.py").write_text(OWN_MODULE.replace("PROCESS_OF_THE_TEST", str(os.getpid())))

    def execute(*arguments: str) -> int:
        Path("mine/adapter/deadly.yaml").write_text("_target_: deadly_of_mine.Deadly\nrank: 1\n")
        return cli.execute(["--config-dir", "mine", "-m", "adapter=deadly", *arguments, *QUICK])

    yield execute
    sys.modules.pop("deadly_of_mine", None)


def needs(plugin: str) -> None:
    """Skips, visibly, where a plugin of Hydra's is not installed."""
    pytest.importorskip(f"hydra_plugins.{INSTALLED[plugin]}", reason=f"the plugin for {plugin} is not installed")


@pytest.fixture
def loads(monkeypatch):
    """What this process reads from now on, having read nothing."""
    seen, load, read = [], Digits.load, weights._read
    monkeypatch.setattr(Digits, "load", lambda self, progress=None: seen.append("digits") or load(self, progress))
    monkeypatch.setattr(weights, "_read", lambda file: seen.append(file.name) or read(file))
    cache.forget()
    weights.forget()
    return seen


def statuses() -> list[tuple[str, str, str]]:
    return [(row["settings"], row["status"], row["seeds"]) for row in rows(CELLS / "table.csv")]


def test_joblib_gives_what_one_process_gives(loads):
    """One process reads data and weights once for both cells; two processes give the same numbers."""
    needs("joblib")
    torch.manual_seed(5)
    network = SmallCNN(width=4).build(in_channels=1, image_size=8, n_classes=10, load_weights=False)
    save_file(network.state_dict(), "w.safetensors")
    typed = ["-m", "seed=0,1", f"backbone.pretrained={Path.cwd()}/w.safetensors", *QUICK, "trainer.epochs=3"]
    assert cli.execute(typed) == 0
    assert sorted(loads) == ["digits", "w.safetensors"]
    together = matrices()
    assert len(set(together.values())) == 2
    for cell in cells().values():
        (cell / "DONE").unlink()
    assert cli.execute([*typed, "launcher=joblib", "hydra.launcher.n_jobs=2"]) == 0
    assert matrices() == together and len(loads) == 2


def test_joblib_loses_one_cell_to_a_dead_worker(submit, capfd):
    """Cell 2 kills its worker, and with it what the other worker does; all were composed before the first one began."""
    needs("joblib")
    Path("fatal").write_text("1")
    assert submit("seed=0,1,2,3", "launcher=joblib", "hydra.launcher.n_jobs=2") == 1
    assert set(matrices()) == {0, 2, 3}
    assert statuses() == [("", "done", "3"), ("seed=1", "failed", "")]
    assert "its process ended" in rows(CELLS / "table.csv")[1]["error"]
    assert json.loads((cells()[1] / "summary.json").read_text())["status"] == "failed"
    out, err = capfd.readouterr()
    assert "1 of 4 cells did not end well" in err and "cell 1: seed=0  acc" in out and "cell 4: seed=3  acc" in out
    assert "Traceback" not in err
    Path("fatal").unlink()
    assert submit("seed=0,1,2,3", "launcher=joblib", "hydra.launcher.n_jobs=2") == 0
    assert statuses() == [("", "done", "4")]


def test_a_job_that_is_started_again_finds_its_folder(submit):
    """submitit's local executor stands for Slurm: what that starts again is the job's own command."""
    needs("submitit_local")
    Path("fatal").write_text("1")
    assert submit("seed=0,1", "launcher=submitit_local") == 1
    assert statuses() == [("", "done", "1"), ("seed=1", "failed", "")] and set(matrices()) == {0}
    folders, before = set(CELLS.glob("*/config.yaml")), matrices()
    jobs = [file.parent for file in Path("outputs/sweeps/.submitit").glob("*/*_submitted.pkl")]
    (job,) = [job for job in jobs if not list(job.glob("*_result.pkl"))]
    Path("fatal").unlink()
    names = ("NTASKS=1", "JOB_NUM_NODES=1", "NODEID=0", "GLOBALID=0", "LOCALID=0", f"JOB_ID={job.name}")
    again = {f"SUBMITIT_LOCAL_{name.split('=')[0]}": name.split("=")[1] for name in names}
    command = [sys.executable, "-m", "submitit.core._submit", str(job.absolute())]
    environment = {**os.environ, "SUBMITIT_EXECUTOR": "local", **again}
    # From another folder, and long after whoever submitted it has gone, as far as a queue is concerned.
    subprocess.run(command, env=environment, check=True, capture_output=True, cwd="/")
    assert set(CELLS.glob("*/config.yaml")) == folders, "no folder but the one it had"
    assert set(matrices()) == {0, 1} and matrices()[0] == before[0]


def test_sigterm_ends_cells_in_other_processes_too(capfd):
    needs("submitit_local")

    def press() -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and not list(CELLS.glob("*/events.jsonl")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    endless = [item for item in QUICK if not item.startswith("trainer.epochs")] + ["trainer.epochs=100000"]
    threading.Thread(target=press).start()
    assert cli.execute(["-m", "seed=0", "launcher=submitit_local", *endless]) == 130
    assert json.loads((cells()[0] / "summary.json").read_text())["status"] == "interrupted"
    assert not list(CELLS.glob("*/.lock")), "no process is at it any more"
    assert [row["status"] for row in rows(CELLS / "table.csv")] == ["interrupted"]


def test_ray_completes():
    needs("ray")
    assert cli.execute(["-m", "seed=0,1", "adapter.rank=1,50", "launcher=ray", *QUICK]) == 2, "50 is more than fits"
    assert statuses()[0] == ("adapter.rank=1", "done", "2")
    assert [status for _, status, _ in statuses()[1:]] == ["refused", "refused"]


def test_optuna_maximises_the_objective():
    needs("optuna")
    sweeper = ["hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.n_jobs=1"]
    asked = [
        "objective=acc",
        "hydra.sweeper.n_trials=4",
        "optimizer.lr=choice(0.0001,0.03,-1)",
        "hydra.sweeper.sampler.seed=1",
    ]
    cli.execute(["-m", *sweeper, *asked, *QUICK])
    found = {
        yaml.safe_load((file.parent / "config.yaml").read_text())["optimizer"]["lr"]: json.loads(file.read_text())[
            "acc"
        ]
        for file in CELLS.glob("*/summary.json")
    }
    best = yaml.safe_load(Path("outputs/sweeps/optimization_results.yaml").read_text())
    assert best["best_value"] == max(found.values()) == found[best["best_params"]["optimizer.lr"]]


# --------------------------------------------------------------------------------------------- without processes


def test_a_sweeper_that_optimises_needs_an_objective(capsys):
    needs("optuna")
    assert cli.execute(["-m", "hydra/sweeper=optuna", "seed=0,1"]) == 2
    assert "objective: hydra/sweeper=optuna" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["-m", "objective=forgeting", "mode=plan"], ["objective=forgeting", "did you mean 'forgetting'?"]),
        (["objective=acc"], ["objective has no use here", "-m"]),
        (["fail_fast=true"], ["fail_fast has no use here", "-m"]),
        (["launcher=basic"], ["launcher has no use here", "-m"]),
        (["-m", "launcher=jobli"], ["launcher=jobli", "did you mean 'joblib'?"]),
    ],
    ids=lambda item: " ".join(item),
)
def test_what_a_sweep_cannot_use_is_refused(capsys, typed, words):
    assert cli.execute([*typed, "seed=0"]) == 2
    error = capsys.readouterr().err
    assert all(word in error for word in words) and len(error.splitlines()) == 2


@pytest.mark.parametrize(("group", "choice"), sorted(PLUGINS))
def test_a_plugin_that_is_not_installed_is_named_with_its_extra(group, choice):
    missing = MissingConfigException("", missing_cfg_file=f"{group}/{choice}", options=["basic"])
    error = explain(missing, [])
    extra, package = PLUGINS[group, choice]
    assert error.message == f"{group.replace('hydra/launcher', 'launcher')}={choice}: {package} is not installed"
    assert f"cl-runner[{extra}]" in str(error.hint)
    extras = (Path(cli.__file__).parent.parent / "pyproject.toml").read_text()
    (line,) = [line for line in extras.splitlines() if line.startswith(f"{extra} = ")]
    assert f'"{package}>=' in line


def test_a_frozen_cell_opens_no_file():
    loader = pickle.loads(pickle.dumps(FrozenLoader()))
    with pytest.raises(RuntimeError, match="composed from files"):
        loader.load_configuration("run", [], None)
    with pytest.raises(ValueError, match="unpack"):
        loader.load_sweep_config(OmegaConf.create({}), ["seed=1", "adapter.rank=2"])


def test_a_cell_begins_only_while_its_sweep_wants_it(monkeypatch, tmp_path):
    ticket = Ticket(stop=str(tmp_path / "stop"), fail_fast=True)
    for target, outlives in [("a.JoblibLauncher", False), ("a.SlurmLauncher", True)]:
        environment = ticket.for_engine(target)
        monkeypatch.setenv(SWEEP, environment[SWEEP])
        assert wanted()
        ended(0)
        assert wanted()
        ended(1)
        assert not wanted(), "fail_fast: a bad cell lets no further one begin"
        ticket.close()
        assert wanted()
        content = json.loads(environment[SWEEP])
        gone = subprocess.Popen(["true"])
        gone.wait()
        if content["parent"]:
            content["parent"]["pid"] = gone.pid
        monkeypatch.setenv(SWEEP, json.dumps(content))
        assert wanted() == outlives, "a queue outlives who filled it"
