"""A cell as it was composed when the sweep was submitted, carried to whatever process runs it.

Hydra's launchers for joblib and submitit compose a cell in the process that runs it, from the YAML files as they are by
then; a job that waits in a queue would run what was edited meanwhile. They pass on a cell's overrides as text, so
here the text is the whole composed cell, and the loader that reads it opens no file.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import yaml
from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

CELL = "CL_RUN_CELL"  # environment variable: the number of the cell that a process runs
KEPT = 128  # composed cells that wait to be asked for again; further ones are composed twice
_YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def freeze(number: int, config: DictConfig, request: DictConfig) -> str:
    """Returns a cell as text.

    Args:
        number: its place in the sweep, from 0.
        config: as Hydra composed it, with its `hydra` node.
        request: the same without that node, as it is to be run.
    """
    return yaml.safe_dump(
        {
            "number": number,
            "overrides": OmegaConf.to_container(config.hydra.overrides.task),
            "choices": OmegaConf.to_container(config.hydra.runtime.choices),
            "request": OmegaConf.to_container(request, resolve=True),
        },
        sort_keys=False,
    )


def thaw(master: DictConfig, text: str) -> DictConfig:
    """Returns the cell that :func:`freeze` wrote, with the `hydra` node of the sweep it belongs to."""
    cell = yaml.load(text, Loader=_YAML_LOADER)  # noqa: S506, the loader is a safe one
    hydra = copy.deepcopy(master.hydra)
    config = OmegaConf.create(cell["request"])
    with open_dict(config):
        config.hydra = hydra
    with read_write(config.hydra), open_dict(config.hydra):
        config.hydra.overrides.task = cell["overrides"]
        config.hydra.runtime.choices = cell["choices"]
        config.hydra.job.env_set[CELL] = str(cell["number"])
    OmegaConf.set_struct(config, True)
    return config


class ReadOnce:
    """What Hydra composes from, each file read and parsed once: for every cell of a sweep it starts from the files.

    Args:
        repository: Hydra's; its files stay as they were when they were first asked for.
        answers: what was asked for before.
    """

    def __init__(self, repository: Any, answers: dict[tuple[str, str], Any] | None = None) -> None:
        self._repository = repository
        self._answers: dict[tuple[str, str], Any] = {} if answers is None else answers

    def load_config(self, config_path: str) -> Any:
        """Returns a file's content; a copy, for composing changes it."""
        return copy.deepcopy(self._asked("load_config", config_path))

    def group_exists(self, config_path: str) -> bool:
        """Whether there is such a group."""
        return bool(self._asked("group_exists", config_path))

    def config_exists(self, config_path: str) -> bool:
        """Whether there is such a file."""
        return bool(self._asked("config_exists", config_path))

    def initialize_sources(self, config_search_path: Any) -> None:
        """Looks in other places from now on (`hydra.searchpath`), where everything may be another."""
        self._repository, self._answers = copy.deepcopy(self._repository), {}
        self._repository.initialize_sources(config_search_path)

    def _asked(self, question: str, config_path: str) -> Any:
        key = (question, config_path)
        if key not in self._answers:
            self._answers[key] = getattr(self._repository, question)(config_path)
        return self._answers[key]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._repository, name)

    def __deepcopy__(self, memo: Any) -> ReadOnce:  # Hydra copies what it composes from for every cell
        return ReadOnce(self._repository, self._answers)

    def __reduce__(self) -> Any:
        return ReadOnce, (self._repository,)


class OnceLoader:
    """Composes as another loader does, but a cell once: Hydra's sweeper composes each one to see that it can be done.

    Args:
        loader: Hydra's.
    """

    def __init__(self, loader: ConfigLoader) -> None:
        self._loader = loader
        if hasattr(loader, "repository"):
            loader.repository = ReadOnce(loader.repository)
        self._kept: dict[tuple[str, ...], DictConfig] = {}

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Composes a cell; what it returns the second time is what it composed the first time."""
        key = tuple(sweep_overrides)
        if key in self._kept:
            return self._kept.pop(key)
        config = self._loader.load_sweep_config(master_config, sweep_overrides)
        if len(self._kept) < KEPT:
            self._kept[key] = config
        return config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __reduce__(self) -> Any:  # goes to other processes with Hydra's state, where nobody asks for these cells
        return OnceLoader, (self._loader,)


class FrozenLoader(ConfigLoader):
    """What a launcher asks for a cell's configuration: it opens no file."""

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """Returns the frozen cell, which is the only one of ``sweep_overrides``."""
        (text,) = sweep_overrides
        return thaw(master_config, text)

    def load_configuration(self, *_: Any, **__: Any) -> DictConfig:
        """Never: a frozen cell is not composed again."""
        raise RuntimeError("a cell of a sweep was about to be composed from files")

    def get_search_path(self) -> Any:
        """Returns nothing: no file is looked for."""
        return None

    def get_sources(self) -> list[Any]:
        """Returns no source: no file is looked for."""
        return []

    def list_groups(self, parent_name: str) -> list[str]:
        """Returns no group: nothing is composed."""
        return []

    def get_group_options(self, group_name: str, *_: Any, **__: Any) -> list[str]:
        """Returns no option: nothing is composed."""
        return []

    def compute_defaults_list(self, config_name: str | None, overrides: Sequence[str], run_mode: Any) -> Any:
        """Returns no defaults: nothing is composed."""
        return []
