"""Hydra's composition, with its errors said in two lines."""

from __future__ import annotations

import errno
import re
from contextlib import suppress
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from cl_runner.config.inherit import shed
from cl_runner.errors import RequestError, nearest, shown

FREE = tuple(f"{group}.options{end}" for group in ("adapter", "backbone") for end in ".=")  # keys that nobody lists
PLUGINS = {  # of Hydra, that come with an extra: what is chosen, the extra and what it brings
    ("hydra/launcher", "joblib"): ("sweeps", "hydra-joblib-launcher"),
    ("hydra/launcher", "submitit_local"): ("sweeps", "hydra-submitit-launcher"),
    ("hydra/launcher", "submitit_slurm"): ("sweeps", "hydra-submitit-launcher"),
    ("hydra/launcher", "ray"): ("ray", "hydra-ray-launcher"),
    ("hydra/sweeper", "optuna"): ("optuna", "hydra-optuna-sweeper"),
}
SYNTAX = "overrides are written GROUP=NAME or GROUP.KEY=VALUE; see cl-run --help"
OWN_CONFIGS = "CL_RUN_CONFIG_DIR"  # environment variable: the folder given with --config-dir, in this process


def config_folder() -> Path:
    """The folder of the shipped configuration: beside the package in a source tree, inside it in a wheel."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def user_folder(config_dir: str) -> Path:
    """A user's own folder of config groups.

    Raises:
        RequestError: it is not there.
    """
    folder = Path(config_dir).expanduser().resolve()
    if not folder.is_dir():
        raise RequestError(f"--config-dir {shown(config_dir)}: there is no such folder", f"looked for {folder}")
    return folder


def compose(overrides: list[str], config_dir: str | None = None) -> DictConfig:
    """Composes a request as the command line does.

    Args:
        overrides: what would be typed after `cl-run`.
        config_dir: a user's own folder of config groups, as with `--config-dir`.

    Raises:
        RequestError: an override names no known key or group, or its value has the wrong type.
    """
    try:
        return _compose(overrides, config_dir)
    except Exception as error:
        raise explain(error, overrides, config_dir) from error


def _compose(overrides: list[str], config_dir: str | None) -> DictConfig:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    # Quoted: a path may hold what Hydra's grammar keeps for itself.
    search = [f"hydra.searchpath=['{user_folder(config_dir)}']"] if config_dir is not None else []
    GlobalHydra.instance().clear()
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        return shed(hydra_compose(config_name="run", overrides=[*search, *opened(overrides)]), overrides)


def opened(overrides: list[str]) -> list[str]:
    """Overrides as Hydra takes them: a key of a free mapping is added where it is not there yet.

    Raises:
        RequestError: a choice leads out of its group's folder, to a configuration of something else.
    """
    for item in overrides:
        group, _, choice = item.lstrip("+").partition("=")
        if ".." in choice.split("/") and (config_folder() / group).is_dir():
            raise _unknown_choice(f"{group}/{choice}", [])
    return [f"++{item}" if item.startswith(FREE) else item for item in overrides]


def first_choices(overrides: list[str]) -> dict[str, str]:
    """The first choice of every group that is swept over, by the override that sweeps it.

    Hydra composes a sweep once without what is swept. Keys of the choices would be refused there where the default
    choice of the group has no such key, unless one of the choices is made first.

    Args:
        overrides: what was typed after `cl-run -m`; those that cannot be read are left to Hydra.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    first: dict[str, str] = {}
    for item in overrides:
        key, _, values = item.partition("=")
        if "," not in values or not (config_folder() / key).is_dir():
            continue
        with suppress(Exception):
            parsed = OverridesParser.create().parse_override(item)
            if parsed.is_choice_sweep():
                first[item] = f"{key}={next(iter(parsed.sweep_string_iterator()))}"
    return first


def explain(error: Exception, overrides: list[str], config_dir: str | None = None) -> RequestError:
    """Turns an exception of Hydra or OmegaConf into the two lines that a person needs."""
    if isinstance(error, RequestError):
        return error
    text = str(error)
    first = shown(next((line for line in text.splitlines() if line.strip()), type(error).__name__), 200)
    missing = getattr(error, "missing_cfg_file", None)
    if missing:
        return _unknown_choice(str(missing), getattr(error, "options", None) or [])
    ambiguous = re.match(r"Ambiguous value for argument '(.*)'", text)
    if ambiguous:
        key, _, value = ambiguous.group(1).partition("=")
        return RequestError(
            f"{key}={shown(value)}: several values", f"for one run each add -m; for a list write {key}=[...]"
        )
    sweep = re.match(r"Sweep parameters '([^=]+)=(.*)' requires --multirun", text, re.DOTALL)
    if sweep:
        return RequestError(f"{sweep.group(1)}={shown(sweep.group(2))}: several values", "for one run each add -m")
    chosen = re.match(r"Multiple values for ([^\s.]+)\.", text) or re.search(r"not supported: '\+\+([^=]+)=", text)
    if chosen:
        group = chosen.group(1)
        return RequestError(
            f"+{group}: one {group} is chosen already", f"without the plus, {group}=NAME chooses another"
        )
    unread = getattr(error, "override", None)
    if unread is not None:
        key, _, value = str(unread).partition("=")
        quotable = value and re.fullmatch(r"[+~]{0,2}[\w./@-]+", key, re.ASCII)
        hint = f"quote a value with special characters twice: \"{key}='...'\"" if quotable else SYNTAX
        return RequestError(f"'{shown(unread)}' cannot be read as an override", hint)
    there = re.search(r"already at '([^\s']+)'", text)
    if there:
        return RequestError(
            f"+{there.group(1)}: the key is there already", f"without the plus, {there.group(1)}=VALUE sets it"
        )
    deleted = re.match(r"Could not delete from config\. (?:The value of )?'(\S+)'", text)
    named = deleted or re.search(r"Could not (?:override|append to|append) '?([^'\s]+?)'?[.:]?(?:\s|$)", text)
    if named:
        return _unknown_key(named.group(1), overrides, config_dir)
    wrong = re.search(r"Error merging override '?([^=\s]+)=?", text)
    if wrong:
        return _unknown_key(wrong.group(1), overrides, config_dir)
    if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:  # Hydra makes the folder of a sweep
        where = f"{str(error.strerror).lower()}: {error.filename}"
        return RequestError(f"output_root: {where}", "choose another place with output_root=FOLDER")
    culprit = _culprit(error, overrides, config_dir)
    if culprit and text.startswith("Config group override must"):
        group = culprit.split("=")[0].lstrip("+~")
        return RequestError(f"{shown(culprit)}: a group takes a name", f"{group or 'GROUP'}=NAME; see cl-run --help")
    return RequestError(f"{shown(culprit)}: {first}" if culprit else first, SYNTAX)


def _culprit(error: Exception, overrides: list[str], config_dir: str | None) -> str | None:
    """The override that alone fails in the same way."""
    for item in overrides:
        try:
            _compose([item], config_dir)
        except Exception as other:
            if type(other) is type(error):
                return item
    return None


def _unknown_choice(missing: str, options: list[str]) -> RequestError:
    group, _, choice = missing.removesuffix(".yaml").rpartition("/")
    if ".." in missing.split("/"):
        group, _, choice = missing.partition("/")
    options = options or [file.stem for file in (config_folder() / group).glob("*.yaml") if group]
    if (group, choice) in PLUGINS:
        extra, package = PLUGINS[group, choice]
        key = group.replace("hydra/launcher", "launcher")  # our group chooses Hydra's
        return RequestError(f"{key}={choice}: {package} is not installed", f"pip install 'cl-runner[{extra}]'")
    known = sorted(name for name in options if not name.startswith("_"))
    if not group:
        return RequestError(f"there is no configuration named '{shown(choice)}'", "leave --config-name out")
    hint = nearest(choice, known, limit=30)
    listing = f" ({', '.join(known)})" if hint.startswith("did you mean") else ""
    return RequestError(f"{group}={shown(choice)}: there is no such {group}", hint + listing)


def _unknown_key(key: str, overrides: list[str], config_dir: str | None) -> RequestError:
    """Names the keys that stand where ``key`` was looked for."""
    key = key.split("=")[0].lstrip("+~")
    key, _, package = key.partition("@")
    if package:
        return RequestError(f"{key}@{package}: a group stays in its place here", f"write {key}=NAME")
    parent, _, leaf = key.rpartition(".")
    others = [item for item in overrides if item.lstrip("+~").split("=")[0].split("@")[0] != key]
    try:
        config = _compose(others, config_dir)
    except Exception:  # more than one thing is wrong
        config = _compose([], None)
    if parent.split(".")[0] == "hydra" or key.split("/")[0] == "hydra":
        return RequestError(f"{shown(key)}: Hydra has no such key", "cl-run --cfg hydra lists its keys")
    node = OmegaConf.select(config, parent) if parent else config
    if not OmegaConf.is_dict(node):
        groups = [str(name) for name in config]
        where = parent.split(".")[0]
        if where not in groups:
            return RequestError(f"{shown(key)}: there is no key '{shown(where)}'", nearest(where, groups))
        choice = parent.partition(".")[2]
        if choice and (config_folder() / where / f"{choice}.yaml").is_file():
            return RequestError(f"{shown(key)}: {where}={choice} is not chosen", f"add {where}={choice}")
        return RequestError(
            f"{shown(key)}: '{shown(parent)}' has no keys of its own", f"see {where} in cl-run --cfg job"
        )
    known = [str(name) for name in node if name != "_target_"]
    if leaf in known:
        group = not parent and (config_folder() / leaf).is_dir()
        takes = "NAME" if group else "{KEY: VALUE}" if OmegaConf.is_dict(node[leaf]) else "VALUE"
        takes = "[...]" if OmegaConf.is_list(node[leaf]) else takes
        return RequestError(f"{shown(key)} cannot be changed in this way", f"write {key}={takes}")
    if not parent and (config_folder() / leaf).is_dir():
        return RequestError(f"{leaf}: nothing of this group is chosen yet", f"append it: +{leaf}=NAME")
    owner = parent or "cl-run"
    chosen = str(OmegaConf.select(config, f"{parent}._target_", default="") or "").rpartition(".")[2]
    extra = f" ({chosen})" if chosen else ""
    return RequestError(f"{shown(key)}: {owner}{extra} has no key '{shown(leaf)}'", nearest(leaf, known, limit=30))
