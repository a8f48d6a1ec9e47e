"""What it takes to go on with a run: its configuration, and a checkpoint that is whole."""

from __future__ import annotations

from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf

from cl_runner.config.checks import settle
from cl_runner.config.identity import CONFIGURATION, IDLE, differences, what_matters
from cl_runner.errors import RequestError, shown
from cl_runner.recording.checkpoints import Checkpoint, Checkpoints
from cl_runner.recording.console import Console
from cl_runner.recording.redact import hidden_keys, redact
from cl_runner.recording.run_folder import RunFolder


def begun_with(path: Path, asked: str, config: DictConfig) -> DictConfig:
    """The configuration that a run was begun with, as its folder has it.

    Raises:
        RequestError: it is no run folder, or its configuration is damaged.
    """
    if not path.is_dir():
        raise RequestError(f"{asked}: there is no such folder", "give a run folder, such as those below outputs/")
    if not (path / "config.yaml").is_file():
        raise RequestError(f"{asked}: this is no run folder, it has no config.yaml", "give a folder below outputs/")
    try:
        begun = OmegaConf.merge(OmegaConf.load(path / "config.yaml"), {"quiet": config.quiet})
        settle(begun)
    except RequestError as error:
        raise RequestError(f"{asked}: its config.yaml cannot be used: {error.message}", error.hint) from error
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise RequestError(
            f"{asked}: its config.yaml is damaged: {shown(error, 200)}", "start a new run without it"
        ) from error
    assert isinstance(begun, DictConfig)
    return begun


def to_go_on_from(config: DictConfig, folder: RunFolder) -> Checkpoint | None:
    """What a run can go on from; where there is nothing, the folder is made ready to start over.

    Raises:
        RequestError: it was begun with another configuration.
    """
    checkpoints, console = Checkpoints(folder.path), Console(quiet=config.quiet)
    found = checkpoints.latest(console.warning)
    if found is None:
        whole = checkpoints.latest(lambda text: None, events=False)
        if whole is not None:
            raise RequestError(
                f"resume={folder.path}: its checkpoints are whole ({whole.where}), but events.jsonl is not what it was "
                "when they were written",
                "put it back; or remove the folder checkpoints, and the run starts over",
            )
        if checkpoints.numbers():
            console.warning("no checkpoint is left that can be used; the run starts over")
        checkpoints.clear()
        folder.restart()
        return None
    begun = (found.base or found).state["facts"][CONFIGURATION]
    odd = differences(begun, redact(what_matters(config)))
    if odd:
        shown_ = ", ".join(f"{key} was {shown(old)} and is {shown(new)}" for key, old, new in odd[:5])
        raise RequestError(
            f"resume={folder.path}: this run was begun with another configuration: {shown_}",
            "put it back in config.yaml, or start a new run without resume",
        )
    checkpoints.forget_after(found.number)
    console.note(f"going on {found.where} (checkpoint {found.number})")
    return found


def refuse_lost(path: Path, asked: str) -> None:
    """Refuses to go on with a configuration in which a secret stood that was typed, and is kept nowhere."""
    written = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    lost = [key for key in hidden_keys(written) if not any(key == idle or key.startswith(f"{idle}.") for idle in IDLE)]
    if lost:
        raise RequestError(
            f"{asked}: {lost[0]} held a secret that was typed, and run folders keep none",
            f"start a new run that names a variable: {lost[0]}='${{oc.env:NAME}}' is found again when a run goes on",
        )
