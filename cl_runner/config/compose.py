"""Hydra's composition, with its errors said in two lines."""

from __future__ import annotations

import re
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cl_runner.errors import RequestError, nearest


def config_folder() -> Path:
    """The folder of the shipped configuration: beside the package in a source tree, inside it in a wheel."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def compose(overrides: list[str], config_dir: str | None = None) -> DictConfig:
    """Composes a request as the command line does.

    Args:
        overrides: what would be typed after `cl-run`.
        config_dir: a user's own folder of config groups, as with `--config-dir`.

    Raises:
        RequestError: an override names no known key or group, or its value has the wrong type.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    search = [f"hydra.searchpath=[{Path(config_dir).resolve()}]"] if config_dir else []
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
            return hydra_compose(config_name="run", overrides=[*search, *overrides])
    except Exception as error:
        raise explain(error, overrides) from error


def explain(error: Exception, overrides: list[str]) -> RequestError:
    """Turns an exception of Hydra or OmegaConf into the two lines that a person needs."""
    if isinstance(error, RequestError):
        return error
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else None
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    missing = getattr(error, "missing_cfg_file", None)
    if missing:
        return _unknown_choice(str(missing), getattr(error, "options", None) or [])
    named = re.search(r"Could not (?:override|append to|delete)\w* '?([^'\s]+?)'?[.:]?(?:\s|$)", first)
    if named:
        return _unknown_key(named.group(1).split("@")[0], overrides)
    wrong = re.search(r"Error merging override '?([^=\s]+)=?", first)
    detail = _sentence(cause or error)
    if wrong:
        key = wrong.group(1).lstrip("+~")
        if "not in" in detail or "not found" in detail.lower():
            return _unknown_key(key, overrides)
        return RequestError(f"{key}: {detail}", "see its comment in configs/, or cl-run --cfg job")
    full_key = getattr(error, "full_key", None) or getattr(cause, "full_key", None)
    prefix = f"{full_key}: " if full_key and full_key not in detail else ""
    return RequestError(prefix + detail, _syntax_hint(lines))


def _sentence(error: BaseException) -> str:
    text = str(error).splitlines()
    return text[0].strip() if text else type(error).__name__


def _syntax_hint(lines: list[str]) -> str:
    rest = [
        line for line in lines[1:] if not line.startswith(("full_key", "object_type", "reference_type", "See ", "^"))
    ]
    return rest[0] if rest else "overrides are written group=name or group.key=value; see cl-run --help"


def _unknown_choice(missing: str, options: list[str]) -> RequestError:
    group, _, choice = missing.removesuffix(".yaml").rpartition("/")
    known = sorted(name for name in options if not name.startswith("_"))
    if not group:
        return RequestError(f"no configuration named '{choice}'", nearest(choice, known))
    return RequestError(f"{group}={choice}: there is no such {group}", nearest(choice, known) + _listing(choice, known))


def _listing(word: str, known: list[str]) -> str:
    close = nearest(word, known)
    return f" ({', '.join(known)})" if close.startswith("did you mean") else ""


def _unknown_key(key: str, overrides: list[str]) -> RequestError:
    """Names the keys that stand where ``key`` was looked for."""
    key = key.split("=")[0].lstrip("+~")
    parent, _, leaf = key.rpartition(".")
    others = [item for item in overrides if item.lstrip("+~").split("=")[0].split("@")[0] != key]
    try:
        config = compose(others) if len(others) < len(overrides) else compose([])
    except RequestError:
        config = compose([])
    node = OmegaConf.select(config, parent) if parent else config
    if not OmegaConf.is_dict(node):
        groups = [str(name) for name in config]
        where = parent.split(".")[0]
        if where not in groups:
            return RequestError(f"{key}: there is no key '{where}'", nearest(where, groups))
        return RequestError(f"{key}: '{parent}' has no keys of its own", f"{parent}=VALUE sets it")
    if not parent and (config_folder() / leaf).is_dir():
        return RequestError(f"{leaf}: nothing of this group is chosen yet", f"append it: +{leaf}=NAME")
    known = [str(name) for name in node if name != "_target_"]
    owner = parent or "cl-run"
    chosen = str(OmegaConf.select(config, f"{parent}._target_", default="") or "").rpartition(".")[2]
    extra = f" ({chosen})" if chosen else ""
    return RequestError(f"{key}: {owner}{extra} has no key '{leaf}'", nearest(leaf, known, limit=30))
