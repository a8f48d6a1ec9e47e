"""Everything about a request that can be refused without torch and without data."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import types
import typing
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from cl_runner.config.components import COMPONENTS
from cl_runner.config.held_out import holds_out, no_validation
from cl_runner.config.idle import idle_keys
from cl_runner.config.idle_evaluation import idle_in_evaluation
from cl_runner.config.objective import check_objective
from cl_runner.config.options import fits, option, takes
from cl_runner.config.schema import Placement, Run, Tracking, Trainer
from cl_runner.errors import RequestError, nearest, shown, told

PLAIN_TYPES = [kind for base in (int, float, bool, str) for kind in (base, base | None)]
NETWORK_KEYS = {"head": "auto", "head_classes": "all"}  # of the backbone group, taken by the network around it
GIVEN_BY_RUNNER = {"optimizer": ("params",)}  # arguments of a constructor that no configuration sets
CONTRACTS = {  # a method of each kind of what a group builds; the rest of the contract comes with the base class
    "benchmark": ("outline",), "backbone": ("build", "build_language_model"),
    "strategy": ("plugins",), "optimizer": ("step",), "scheduler": ("begin",),
}  # fmt: skip
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
UNTARGETED: dict[str, type] = {"placement": Placement, "trainer": Trainer, "tracking": Tracking}


def settle(config: Any, overrides: list[str] | None = None) -> DictConfig:
    """Resolves a request and refuses it where it cannot be met.

    Args:
        config: a composed DictConfig, or a plain dict of the same shape.
        overrides: what the user typed; a typed key that nothing uses is refused, an inherited one is not.

    Returns:
        The typed, resolved, read-only configuration.

    Raises:
        RequestError: a key is unknown, has the wrong type or an impossible value, or two keys exclude each other.
    """
    given = OmegaConf.create(config) if not OmegaConf.is_config(config) else config
    try:
        content = OmegaConf.to_container(given, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue as error:
        raise RequestError(f"{error.full_key} has no value", f"give it one: {error.full_key}=...") from error
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        reason = re.sub(r"^\w+ raised while resolving interpolation: ", "", str(error).splitlines()[0]).strip('"')
        raise RequestError(key + shown(reason, 200), "give the key a value") from error
    if not isinstance(content, dict):
        raise RequestError(f"a configuration is a mapping of keys, not {shown(content)}", "see configs/run.yaml")
    plain: dict[str, Any] = {str(key): value for key, value in content.items() if key != "hydra"}
    settled = _typed(Run, {key: value for key, value in plain.items() if key not in _groups()}, "")
    _refuse_unknown(plain, [field.name for field in dataclasses.fields(Run)], "")
    for group in _groups():
        node = plain.get(group)
        if not isinstance(node, dict):
            raise RequestError(f"{group}: nothing is chosen", f"choose one: {group}=NAME")
        settled[group] = _typed_component(group, node)
    _check_together(settled)
    _check_typed_keys(settled, overrides or [])
    if settled.mode == "plan" and not any(item.lstrip("+").startswith("quiet=") for item in overrides or []):
        settled.quiet = False  # a study says it for its many runs; a plan is there to be read
    OmegaConf.set_readonly(settled, True)
    return settled


def _groups() -> tuple[str, ...]:
    return (*COMPONENTS, *UNTARGETED)


def _typed_component(group: str, node: dict[str, Any]) -> DictConfig:
    """One group's node against its schema, or against the constructor of a user's own class."""
    if group in UNTARGETED:
        return _typed(UNTARGETED[group], node, group)
    target = node.get("_target_")
    if not target:
        raise RequestError(f"{group}._target_ is missing", "name the class to build: _target_: package.module.Class")
    for schema in COMPONENTS[group]:
        if target == getattr(schema, "_target_"):  # noqa: B009, a dataclass keeps its default there
            return _typed(schema, node, group)
    return _own_component(group, str(target), node)


def _typed(schema: type, node: dict[str, Any], group: str) -> DictConfig:
    fields = {field.name: field for field in dataclasses.fields(schema)}
    kinds = typing.get_type_hints(schema)
    if group:
        _refuse_unknown(node, list(fields), group)
    typed = OmegaConf.structured(schema)
    for name, field in fields.items():
        if name not in node:
            continue
        inner = _dataclass_in(kinds[name])
        if inner is not None and isinstance(node[name], dict):
            typed[name] = _typed(inner, node[name], f"{group}.{name}" if group else name)
            continue
        try:
            typed[name] = node[name]
            valid = fits(typed[name], node[name], field.metadata)
        except (OmegaConfBaseException, OverflowError):  # infinity is no whole number
            valid = False
        if not valid:
            key = f"{group}.{name}" if group else name
            raise RequestError(
                f"{key}={shown(node[name])} is not possible", f"{name} takes {takes(kinds[name], field.metadata)}"
            )
    assert isinstance(typed, DictConfig)
    return typed


def _dataclass_in(kind: Any) -> type | None:
    """The dataclass that an annotation names, alone or with None: such a node is checked key by key as well."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return next((item for item in options if isinstance(item, type) and dataclasses.is_dataclass(item)), None)


def _refuse_unknown(node: dict[str, Any], known: list[str], group: str) -> None:
    for key in node:
        if key not in known:
            where = f"{group}.{key}" if group else key
            visible = [name for name in known if name != "_target_"]
            raise RequestError(f"{where}: {group or 'cl-run'} has no key '{key}'", nearest(str(key), visible, limit=30))


def _own_component(group: str, target: str, node: dict[str, Any]) -> DictConfig:
    """A user's class: importable, and every key an argument of its constructor."""
    constructor = import_target(target, group)
    _check_contract(group, target, constructor)
    try:
        parameters = dict(inspect.signature(constructor).parameters)
    except ValueError as error:  # of some classes written in C
        raise RequestError(f"{group}._target_={target}: its arguments cannot be told", "name another class") from error
    for name in GIVEN_BY_RUNNER.get(group, ()):
        parameters.pop(name, None)
    variadic = {item.kind: name for name, item in parameters.items() if item.kind in _VARIADIC}
    for name in variadic.values():
        del parameters[name]
    if inspect.Parameter.VAR_KEYWORD not in variadic:
        shared = {"_target_", *(NETWORK_KEYS if group == "backbone" else ())}
        _refuse_unknown({key: None for key in node if key not in shared}, list(parameters), group)
    for name, item in parameters.items():
        if item.default is inspect.Parameter.empty and name not in node:
            raise RequestError(f"{group}.{name}: {target} needs it", f"give it a value: {group}.{name}=...")
    return OmegaConf.create(node | _annotated(constructor, node, group))


def _check_contract(group: str, target: str, constructor: Any) -> None:
    """Refuses a class that cannot be what its group is: one that is abstract, or has not the methods."""
    if not inspect.isclass(constructor):
        return
    if inspect.isabstract(constructor):
        raise RequestError(f"{group}._target_={target} is abstract", "name a class that is derived from it")
    methods = CONTRACTS.get(group, ())  # an adapter is looked at when it is built
    if methods and not any(hasattr(constructor, name) for name in methods):
        needed = " or ".join(f"'{name}'" for name in methods)
        raise RequestError(f"{group}._target_={target} is no {group}", f"such a class has a method {needed}")


def _annotated(constructor: Any, node: dict[str, Any], group: str) -> dict[str, Any]:
    """The keys of a user's class that are annotated with a plain type, held to it."""
    try:
        hints = typing.get_type_hints(constructor.__init__ if inspect.isclass(constructor) else constructor)
    except (NameError, TypeError):  # an annotation that cannot be resolved says nothing
        hints = {}
    plain = [(name, hints[name], option("???", empty=True)) for name in node if hints.get(name) in PLAIN_TYPES]
    schema = dataclasses.make_dataclass("Annotated", plain)
    typed = _typed(schema, {name: node[name] for name, *_ in plain}, group)
    return {str(name): value for name, value in typed.items()}


def import_target(target: str, group: str) -> Any:
    """The class or function that `_target_` names.

    Raises:
        RequestError: it cannot be imported.
    """
    module, _, name = target.rpartition(".")
    try:
        if not module:
            raise ImportError("there is no module in this name")
        found = getattr(importlib.import_module(module), name)
        if not callable(found):
            raise TypeError(f"'{name}' is no class")
        return found
    except Exception as error:  # a user's module may raise anything
        kind = "" if isinstance(error, (ImportError, AttributeError, TypeError)) else f"{type(error).__name__}: "
        raise RequestError(
            f"{group}._target_={shown(target)} cannot be imported: {kind}{shown(told(error), 200)}",
            "name a class as package.module.Class; --config-dir FOLDER puts FOLDER and its parent on the path",
        ) from error


def build(node: DictConfig, **extra: Any) -> Any:
    """Builds a component from its node: the class at `_target_`, called with the node's other keys."""
    arguments = OmegaConf.to_container(node, resolve=True)
    assert isinstance(arguments, dict)
    target = str(arguments.pop("_target_"))
    named = {str(key): value for key, value in arguments.items()}
    return import_target(target, target)(**named, **extra)


def _check_together(config: DictConfig) -> None:
    """Refuses keys that exclude one another."""
    check_objective(config.objective)
    other = f"checkpoint={config.checkpoint}" if config.checkpoint is not None else f"mode={config.mode}"
    if config.resume is not None and other != "mode=train":
        raise RequestError(
            f"resume={config.resume} goes on training, and {other} does something else",
            f"cl-run resume={config.resume}, or cl-run mode=eval checkpoint={config.resume}",
        )
    if config.mode == "eval" and config.checkpoint is None:
        raise RequestError(
            "mode=eval evaluates a run folder again, and checkpoint is null", "say which: checkpoint=outputs/..."
        )
    trainer, benchmark, scheduler = config.trainer, config.benchmark, config.scheduler
    validated = holds_out(benchmark)
    schedule = str(scheduler._target_).rpartition(".")[2]
    if not validated and (trainer.patience is not None or schedule == "Plateau"):
        key = "trainer.patience" if trainer.patience is not None else "scheduler=plateau"
        raise RequestError(
            f"{key} watches a validation split, and {no_validation(benchmark)}",
            "set benchmark.validation_fraction=0.1 and more than one image a class; nothing is chosen on test data",
        )
    if trainer.iterations is not None and (trainer.patience is not None or schedule in ("Plateau", "MultiStep")):
        key = "trainer.patience" if trainer.patience is not None else f"scheduler={schedule.lower()}"
        raise RequestError(
            f"{key} counts epochs, and trainer.iterations={trainer.iterations} trains by iterations",
            "use trainer.epochs, or scheduler=cosine or constant",
        )
    if trainer.iterations is not None and trainer.task_epochs is not None:
        raise RequestError(
            f"trainer.iterations={trainer.iterations} and trainer.task_epochs={list(trainer.task_epochs)} both say how "
            "long a task is trained",
            "give one of the two",
        )
    due = [step for step in scheduler.get("milestones") or () if step < _longest(trainer)]
    if schedule == "MultiStep" and not due:
        raise RequestError(
            f"scheduler.milestones={list(scheduler.milestones)}: none comes within the {_longest(trainer)} epochs of a "
            "task",
            "choose milestones below the number of epochs",
        )
    backbone = config.backbone
    in_files = "tokenizer" in backbone and isinstance(backbone.pretrained, str)  # which say what network they are of
    if not backbone.get("name", "given") and not backbone.get("config") and not in_files:
        example = "gpt2" if "tokenizer" in backbone else "resnet20_cifar10"
        raise RequestError("backbone.name is empty", f"name a network, for example backbone.name={example}")
    placement = config.placement
    if not placement.kinds:
        raise RequestError("placement.kinds=[] is not possible", "a list of conv, linear or both")
    if not placement.towers:
        raise RequestError("placement.towers=[] is not possible", "a list of vision, text or both")
    _check_schedule(config)
    optimizer = config.optimizer
    if optimizer.get("nesterov") and not optimizer.get("momentum"):
        raise RequestError("optimizer.nesterov=true needs momentum", "set optimizer.momentum above 0, for example 0.9")
    betas = optimizer.get("betas")
    if betas is not None and len(betas) != 2:
        raise RequestError(f"optimizer.betas={list(betas)} is not possible", "two numbers, each at least 0 and below 1")


def _longest(trainer: DictConfig) -> int:
    """Epochs of the task that is trained longest."""
    return int(max(trainer.task_epochs) if trainer.task_epochs else trainer.epochs)


def _check_schedule(config: DictConfig) -> None:
    """Refuses a rank schedule that no task follows to its end, whatever the network; the rest is assembly's."""
    schedule, trainer = config.adapter.get("rank_schedule"), config.trainer
    if not schedule:
        return
    if trainer.iterations is not None or len(schedule) > _longest(trainer):
        length = "trainer.iterations trains one epoch" if trainer.iterations else f"trainer.epochs={trainer.epochs}"
        if trainer.task_epochs is not None:
            length = f"trainer.task_epochs={list(trainer.task_epochs)}"
        raise RequestError(
            f"adapter.rank_schedule={list(schedule)} has {len(schedule)} epochs, and {length}",
            "give as many ranks as epochs at most, and train by epochs",
        )


def _check_typed_keys(config: DictConfig, overrides: list[str]) -> None:
    """Refuses a key that was typed and that nothing in this composition uses."""
    if config.resume is not None:  # held against the configuration of that folder, see `taken_up`
        return
    typed = [item.lstrip("+~").split("=")[0].split("@")[0] for item in overrides]
    keys = idle_in_evaluation() if config.mode == "eval" else idle_keys(config)
    for name in typed:
        for key, idle, reason, hint in keys:
            if idle and (name == key or name.startswith(key + ".")):
                raise RequestError(f"{name} has no use here: {reason}", hint)
