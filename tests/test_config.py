"""Configuration: every file composes, the schema mirrors the constructors, whatever is wrong is said in two lines."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import inspect
import math
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import cl_runner
from cl_runner.config.checks import NETWORK_KEYS, UNTARGETED, settle
from cl_runner.config.components import COMPONENTS
from cl_runner.config.compose import compose, config_folder
from cl_runner.config.options import takes
from cl_runner.config.schema import Placement, Run, Tracking, Trainer, Wandb
from cl_runner.errors import RequestError, nearest, shown

CONFIGS = config_folder()
GROUPS = sorted(folder.name for folder in CONFIGS.iterdir() if folder.is_dir())
CHOICES = [(group, file.stem) for group in GROUPS for file in sorted((CONFIGS / group).glob("*.yaml"))]
OVER_ALL = {"experiment", "debug", "launcher"}  # groups without a node of their own
EXPERIMENTS = [name for group, name in CHOICES if group == "experiment"]
COMPONENT_CHOICES = [(group, name) for group, name in CHOICES if group in COMPONENTS or group in UNTARGETED]
NEEDED = {  # what a choice asks for, besides itself
    ("backbone", "pytorchcv"): ["backbone.name=resnet20_cifar10"],
    ("backbone", "torchvision"): ["backbone.name=resnet18"],
    ("backbone", "open_clip"): ["backbone.name=ViT-B-32"],
    ("backbone", "transformers"): ["backbone.name=gpt2"],
    ("placement", "match"): ["placement.pattern=conv"],
}
SCHEMAS = [(group, schema) for group, schemas in COMPONENTS.items() for schema in schemas]


def chosen(group: str, name: str) -> list[str]:
    """The overrides that choose a configuration."""
    plus = "+" if group in ("experiment", "debug") else ""
    return [f"{plus}{group}={name}", *NEEDED.get((group, name), [])]


def request(overrides: list[str]) -> Any:
    """What the command line does with overrides, up to the run."""
    return settle(compose(overrides), overrides)


def refusal(overrides: list[str]) -> str:
    """The message of a request that has to be refused: one or two short lines."""
    with pytest.raises(RequestError) as caught:
        request(overrides)
    return checked(caught.value)


def checked(error: RequestError) -> str:
    message = error.message if error.hint is None else f"{error.message}\n{error.hint}"
    assert 1 <= len(message.splitlines()) <= 2, message
    assert error.message.strip() and len(message) < 700, message
    return message


def schema_of(group: str, target: str | None) -> type:
    if group in UNTARGETED:
        return UNTARGETED[group]
    return next(schema for schema in COMPONENTS[group] if default_of(schema, "_target_") == target)


def default_of(schema: type, name: str) -> Any:
    field = next(field for field in dataclasses.fields(schema) if field.name == name)
    return field.default_factory() if field.default is dataclasses.MISSING else field.default


# ------------------------------------------------------------------------------------ files and the schema


def test_every_group_has_a_schema_and_every_schema_a_file():
    assert set(GROUPS) == {*COMPONENTS, *UNTARGETED, *OVER_ALL}
    targets = {yaml.safe_load((CONFIGS / g / f"{n}.yaml").read_text()).get("_target_") for g, n in COMPONENT_CHOICES}
    assert {default_of(schema, "_target_") for _, schema in SCHEMAS} <= targets
    assert set(GROUPS) - OVER_ALL <= {field.name for field in dataclasses.fields(Run)}


@pytest.mark.parametrize(("group", "name"), CHOICES)
def test_every_file_composes_and_settles(group, name):
    if (group, name) == ("launcher", "ray"):
        pytest.importorskip("hydra_plugins.hydra_ray_launcher")
    settled = request(chosen(group, name))
    assert OmegaConf.is_readonly(settled) and not OmegaConf.is_missing(settled, "seed")
    plain = OmegaConf.to_container(settled)
    node = OmegaConf.to_container(OmegaConf.load(CONFIGS / group / f"{name}.yaml"))
    values = (
        {group: node}
        if group in plain
        else {key: value for key, value in node.items() if key not in ("defaults", "hydra")}
    )
    needed = {item.partition("=")[0] for item in NEEDED.get((group, name), [])}
    for outer, inner in values.items():
        for key, value in inner.items() if isinstance(inner, dict) else ():
            shed = group == "debug" and key not in plain[outer]  # it speaks of all components at once
            if f"{outer}.{key}" not in needed and not shed:
                assert plain[outer][key] == value, f"{outer}.{key}"


@pytest.mark.parametrize(("group", "name"), COMPONENT_CHOICES)
def test_a_file_lists_exactly_the_keys_of_its_schema(group, name):
    """A key that a file leaves out could not be set from the command line; one too many would be refused."""
    text = (CONFIGS / group / f"{name}.yaml").read_text()
    keys = yaml.safe_load(text)
    schema = schema_of(group, keys.get("_target_"))
    assert set(keys) == {field.name for field in dataclasses.fields(schema)}
    assert text.startswith("# "), "the first line says what it is"


def test_the_table_of_contents_lists_every_key_of_the_schema():
    top = yaml.safe_load((CONFIGS / "run.yaml").read_text())
    groups = [next(iter(entry)) for entry in top["defaults"] if isinstance(entry, dict) and len(entry) == 1]
    groups = [name for name in groups if "/" not in name and name not in OVER_ALL]
    keys = set(top) - {"defaults", "hydra"}
    assert sorted([*groups, *keys]) == sorted(field.name for field in dataclasses.fields(Run))
    for field in dataclasses.fields(Run):
        if field.name in keys:
            assert top[field.name] == field.default, field.name


@pytest.mark.parametrize("schema", [Trainer, Placement, Tracking])
def test_the_default_file_of_a_group_without_target_holds_the_schema_defaults(schema):
    group = schema.__name__.lower()
    composed = OmegaConf.to_container(compose([])[group])
    assert composed == {field.name: default_of(schema, field.name) for field in dataclasses.fields(schema)}


def constructor_arguments(target: str) -> dict[str, Any]:
    """Keyword-only arguments and their defaults; where a constructor passes options on, those of its base too."""
    module, _, name = target.rpartition(".")
    arguments: dict[str, Any] = {}
    for base in getattr(importlib.import_module(module), name).__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        if base is not object:
            for item in parameters:
                if item.kind is not inspect.Parameter.VAR_KEYWORD:
                    assert item.kind is inspect.Parameter.KEYWORD_ONLY, f"{target}: {item.name} is not keyword-only"
                    arguments.setdefault(item.name, item.default)
        if not any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters):
            break
    return arguments


@pytest.mark.parametrize(("group", "schema"), SCHEMAS, ids=lambda item: getattr(item, "__name__", item))
def test_the_schema_mirrors_the_constructor(group, schema):
    target = default_of(schema, "_target_")
    own = {field.name: default_of(schema, field.name) for field in dataclasses.fields(schema)}
    del own["_target_"]
    if group == "backbone":
        expected = {} if target.endswith(".Transformers") else NETWORK_KEYS  # a language model has no head of classes
        assert {key: own.pop(key) for key in expected} == expected
    if target.startswith("torch.optim."):
        module, _, name = target.rpartition(".")
        accepted = inspect.signature(getattr(importlib.import_module(module), name)).parameters
        assert set(own) <= set(accepted) - {"params", "self"}
        return
    arguments = constructor_arguments(target)
    assert set(own) == set(arguments)
    for name, default in arguments.items():
        if default is not inspect.Parameter.empty:
            assert _plain(own[name]) == _plain(default), f"{target}: default of {name}"
        else:
            assert group == "backbone" and name == "name"  # the one argument that has no sensible default


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def test_placement_and_its_schema_agree():
    from cl_runner.adapters.placement import Placement as Chooser

    parameters = inspect.signature(Chooser).parameters
    assert set(parameters) == {field.name for field in dataclasses.fields(Placement)}


# ------------------------------------------------------------------------------------------------- bounds


def options() -> list[Any]:
    """(overrides that choose the component, key, type, bounds, default) of every option of every schema."""
    found = []
    schemas = [*SCHEMAS, ("", Run), *((group, schema) for group, schema in UNTARGETED.items())]
    for group, schema in schemas:
        choice: list[str] = []
        if group in COMPONENTS:
            target = default_of(schema, "_target_")
            name = next(
                name
                for where, name in COMPONENT_CHOICES
                if where == group and f"_target_: {target}\n" in (CONFIGS / group / f"{name}.yaml").read_text()
            )
            choice = chosen(group, name)
        kinds = typing.get_type_hints(schema)
        for field in dataclasses.fields(schema):
            if field.name == "_target_" or field.name in GROUPS:
                continue
            key = f"{group}.{field.name}" if group else field.name
            found.append(pytest.param(choice, key, kinds[field.name], field.metadata, id=f"{schema.__name__}-{key}"))
    found = [item for item in found if item.values[1] != "tracking.wandb"]  # a node, whose keys are options instead
    for field in dataclasses.fields(Wandb):
        values = (["tracking=wandb"], f"tracking.wandb.{field.name}", typing.get_type_hints(Wandb)[field.name])
        found.append(pytest.param(*values, field.metadata, id=f"Wandb-{field.name}"))
    return found


def wrong_values(kind: Any, bounds: Any) -> list[Any]:
    """Values of the wrong type, and the nearest ones beyond each bound."""
    if typing.get_origin(kind) is dict:
        return ["abc", 3, [1, 2], None]
    parts = typing.get_args(kind) if typing.get_origin(kind) is not list else ()
    empty_allowed = type(None) in parts
    parts = tuple(part for part in parts if part is not type(None)) or (kind,)
    values: list[Any] = [{"a": 1}] + ([] if empty_allowed else [None])
    if typing.get_origin(parts[0]) is list:
        (item,) = typing.get_args(parts[0])
        if item is Any:  # the component itself knows its items
            return ["abc", 3]
        values += ["abc", 3] + [[value] for value in wrong_values(item, bounds) if value is not None]
        return values
    values += [[1, 2]]
    if str in parts:
        values += ["no_such_choice", "", 3] if "choices" in bounds else []
    elif bool in parts:
        values += ["perhaps", 2, 3.5]
    else:
        step = 1 if int in parts else 1e-6
        values += ["abc", math.nan, math.inf, -math.inf, True]
        values += [2.5] if int in parts else []
        values += [bounds["low"] - step] if "low" in bounds else []
        values += [bounds["high"] + step] if "high" in bounds else []
        values += [bounds[name] for name in ("above", "below") if name in bounds]
    return values


_BASES: dict[tuple[str, ...], dict[str, Any]] = {}


def base(choice: list[str]) -> dict[str, Any]:
    """A plain composed configuration, a copy of its own for every caller."""
    if tuple(choice) not in _BASES:
        content = OmegaConf.to_container(compose(choice))
        assert isinstance(content, dict)
        _BASES[tuple(choice)] = content  # type: ignore[assignment]
    kept = _BASES[tuple(choice)]
    return copy.deepcopy(kept)


def with_value(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *outer, name = key.split(".")
    node = config
    for part in outer:
        node = node[part]
    node[name] = value
    return config


@pytest.mark.parametrize(("choice", "key", "kind", "bounds"), options())
def test_every_bound_and_every_type_is_enforced(choice, key, kind, bounds):
    wrong = wrong_values(kind, bounds)
    assert len(wrong) >= 2
    for value in wrong:
        with pytest.raises(RequestError) as caught:
            settle(with_value(base(choice), key, value))
        message = checked(caught.value)
        assert caught.value.message.startswith(f"{key}={shown(value)}"), (value, message)
        assert f"{key.rpartition('.')[2]} takes {takes(kind, bounds)}" == caught.value.hint


def test_bounds_let_their_own_limits_pass():
    for key, value in [
        ("benchmark.validation_fraction", 0.0),
        ("seed", 2**32 - 1),
        ("seed", 0),
        ("adapter.rank", 1),
        ("backbone.layers", 8),
        ("adapter.linear_rank", None),
        ("trainer.precision", "bfloat16"),
        ("backbone.pretrained", "weights.safetensors"),
    ]:
        group, _, name = key.rpartition(".")
        settled = settle(with_value(base([]), key, value))
        assert (settled[group] if group else settled)[name] == value


def test_what_an_option_takes_is_said_in_words():
    assert takes(int | None, {"low": 1}) == "a whole number at least 1, or null"
    assert takes(float, {"above": 0, "high": 1}) == "a number above 0 and at most 1"
    assert takes(list[int], {"low": 1}) == "a list of whole numbers at least 1"
    assert takes(bool | str, {}) == "true or false or text"
    assert takes(str, {"choices": ("a", "b")}) == "one of: a, b"
    assert takes(int, {"high": 2**32 - 1}) == "a whole number at most 4294967295"


# -------------------------------------------------------------------------------------------- experiments


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_plans_without_data(name, tmp_path, monkeypatch):
    monkeypatch.setenv("CL_DATA_ROOT", str(tmp_path / "nothing"))
    overrides = [f"+experiment={name}", "mode=plan", f"output_root={tmp_path}", "quiet=true"]
    result = cl_runner.run(compose(overrides), experiment=name, overrides=overrides)
    config = OmegaConf.load(result.folder / "config.yaml")
    rows = (result.folder / "parameters.csv").read_text().splitlines()
    tasks = {"mtil": 11, "xtail": 10, "imdbyelp": 2, "trace": 8}.get(
        str(config.benchmark._target_).rpartition(".")[2].lower()
    )
    given = config.benchmark.get("domains")
    assert len(rows) == 1 + (len(given) if given else tasks or config.benchmark.n_tasks)
    assert result.summary["base_parameters"] > 0 and result.summary["forward_flops_per_image"] > 0
    adapted = len((result.folder / "layers.csv").read_text().splitlines()) > 1
    assert adapted == (not config.adapter._target_.endswith("NoAdapter"))
    assert not (tmp_path / "nothing").exists() and not (result.folder / "DONE").exists()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_a_small_diff_that_says_what_it_is(name):
    text = (CONFIGS / "experiment" / f"{name}.yaml").read_text()
    lines = text.splitlines()
    header = [line for line in lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))]]
    assert header[0] == "# @package _global_"
    assert re.search(rf"cl-run (-m )?\+experiment={name}\b", "\n".join(header))
    assert len(header) >= 4, "its command, what it reproduces, what to expect, how long"
    assert len(lines) - len(header) <= 40
    assert all(
        "/" in key and key.startswith("override ") for entry in yaml.safe_load(text)["defaults"] for key in entry
    )


# ------------------------------------------------------------------------------------------ wrong requests

LONG = "x" * 5000

WRONG = [
    # a group, its choice, an experiment
    (["optimiser=adam"], ["optimiser", "did you mean 'optimizer'?"]),
    (["benchmrk=split_digits"], ["benchmrk", "did you mean 'benchmark'?"]),
    (["+optimiser=adam"], ["optimiser", "did you mean 'optimizer'?"]),
    (["adapter=convlra"], ["adapter=convlra", "did you mean 'convlora'?", "none"]),
    (["adapter=zzz"], ["adapter=zzz", "one of: codyra, convlora"]),
    (["adapter="], ["adapter=", "one of: codyra, convlora"]),
    (["adapter=null"], ["adapter=null", "adapter=NAME"]),
    (["placement=3"], ["placement=3", "placement=NAME"]),
    (["placement={a: 1}"], ["placement", "placement=NAME"]),
    (["+adapter=none"], ["adapter", "adapter=NAME"]),
    (["++adapter=none"], ["adapter", "adapter=NAME"]),
    (["adapter@backbone=none"], ["adapter@backbone", "adapter=NAME"]),
    (["~adapter"], ["adapter", "adapter=NAME"]),
    (["+experiment=quickstrat"], ["experiment=quickstrat", "did you mean 'quickstart'?"]),
    (["+experiment="], ["experiment=", "quickstart"]),
    (["experiment=quickstart"], ["experiment", "+experiment=NAME"]),
    (["experiment=x"], ["experiment", "+experiment=NAME"]),
    (["debug=fast"], ["debug", "+debug=NAME"]),
    (["+debug=slow"], ["debug=slow", "fast"]),
    # a key
    (["sed=3"], ["sed", "did you mean 'seed'?"]),
    (["+sed=3"], ["sed", "did you mean 'seed'?"]),
    (["++sed=3"], ["sed", "did you mean 'seed'?"]),
    (["~sed"], ["sed", "did you mean 'seed'?"]),
    (["adapter.rnk=3"], ["adapter.rnk", "ConvLoRA", "did you mean 'rank'?"]),
    (["+adapter.rnk=3"], ["adapter.rnk", "did you mean 'rank'?"]),
    (["++adapter.rnk=3"], ["adapter.rnk", "did you mean 'rank'?"]),
    (["~adapter.rnk"], ["adapter.rnk", "did you mean 'rank'?"]),
    (["adapter=none", "adapter.rank=3"], ["adapter.rank", "NoAdapter"]),
    (["strategy=ewc", "strategy.mem_size=3"], ["strategy.mem_size", "EWC", "ewc_lambda"]),
    (["trainer.epoch=3"], ["trainer.epoch", "did you mean 'epochs'?"]),
    (["adapter.rank.inner=3"], ["adapter.rank.inner", "'adapter.rank' has no keys"]),
    (["+adapter.inner.rank=3"], ["adapter.inner", "no key 'inner'"]),
    (["foo.bar=3"], ["foo.bar", "no key 'foo'"]),
    (["hydra.foo=3"], ["hydra.foo", "cl-run --cfg hydra"]),
    (["~adapter.rank=77"], ["adapter.rank", "adapter.rank=VALUE"]),
    # a value
    (["adapter.rank=many"], ["adapter.rank=many", "a whole number at least 1"]),
    (["adapter.rank=null"], ["adapter.rank=null", "a whole number at least 1"]),
    (["adapter.rank=[1,2]"], ["adapter.rank=[1, 2]", "a whole number at least 1"]),
    (["adapter.rank={a: 1}"], ["adapter.rank={'a': 1}", "a whole number at least 1"]),
    (["adapter.rank=0"], ["adapter.rank=0", "at least 1"]),
    (["adapter.rank=2.5"], ["adapter.rank=2.5", "a whole number"]),
    (["adapter.rank=true"], ["adapter.rank=true", "a whole number"]),
    (["adapter.rank=1,2"], ["adapter.rank=1,2", "-m"]),
    (["adapter.rank=???"], ["adapter.rank has no value", "adapter.rank="]),
    (["adapter.rank="], ["adapter.rank=", "a whole number"]),
    (["adapter.rank=${adapter.rnk}"], ["adapter.rank", "adapter.rnk"]),
    (["adapter.full=head"], ["adapter.full=head", "a list of words"]),
    (["seed=-1"], ["seed=-1", "at least 0 and at most 4294967295"]),
    (["seed=4294967296"], ["seed=4294967296", "4294967295"]),
    (["seed=${seed}"], ["seed", "ecursive"]),
    (["seed=${oc.env:CL_RUN_NO_SUCH_VARIABLE}"], ["seed", "CL_RUN_NO_SUCH_VARIABLE"]),
    (["mode=trian"], ["mode=trian", "train, plan"]),
    (["mode=null"], ["mode=null", "train, plan"]),
    (["quiet=3"], ["quiet=3", "true or false"]),
    (["optimizer.lr=0"], ["optimizer.lr=0", "a number above 0"]),
    (["optimizer.lr=nan"], ["optimizer.lr=nan", "a number above 0"]),
    (["optimizer.betas=[0.9]"], ["optimizer.betas=[0.9]", "two numbers"]),
    (["optimizer.betas=[0.9,1]"], ["optimizer.betas=[0.9, 1]", "below 1"]),
    (["placement.kinds=[]"], ["placement.kinds=[]", "conv, linear"]),
    (["placement.kinds=[conv,lin]"], ["placement.kinds", "conv, linear"]),
    (["placement=match"], ["placement.pattern has no value", "placement.pattern="]),
    (["backbone.pretrained=[1]"], ["backbone.pretrained=[1]", "true or false or a path"]),
    (["backbone=pytorchcv"], ["backbone.name", "backbone.name=resnet20_cifar10"]),
    # keys that exclude one another
    (["trainer.patience=3", "benchmark.validation_fraction=0"], ["trainer.patience", "benchmark.validation_fraction"]),
    (
        ["scheduler=plateau", "benchmark.validation_fraction=0"],
        ["scheduler=plateau", "benchmark.validation_fraction=0.1"],
    ),
    (["trainer.patience=3", "trainer.iterations=9"], ["trainer.patience", "trainer.iterations=9"]),
    (["scheduler=plateau", "trainer.iterations=9"], ["scheduler=plateau", "trainer.iterations=9"]),
    (["scheduler=multistep", "trainer.iterations=9"], ["scheduler=multistep", "trainer.iterations=9"]),
    (["optimizer=sgd", "optimizer.nesterov=true", "optimizer.momentum=0"], ["optimizer.nesterov", "momentum"]),
    # keys that nothing uses
    (["adapter=none", "placement=convs"], ["placement has no use", "adapter=none"]),
    (["adapter=none", "placement.part=first_half"], ["placement.part has no use", "adapter=none"]),
    (["trainer.epochs=3", "trainer.iterations=9"], ["trainer.epochs has no use", "trainer.iterations"]),
    (
        ["trainer.restore_best=true", "benchmark.validation_fraction=0"],
        ["trainer.restore_best", "benchmark.validation_fraction"],
    ),
    (["benchmark.split_seed=3", "benchmark.validation_fraction=0"], ["benchmark.split_seed", "validation_fraction"]),
    (["benchmark.root=/data"], ["benchmark.root", "scikit-learn"]),
    (["strategy=ewc", "strategy.decay_factor=0.5"], ["strategy.decay_factor", "strategy.variant=online"]),
    # a user's class that is not there
    (["adapter._target_=nowhere.Tiny"], ["adapter._target_=nowhere.Tiny", "No module named 'nowhere'"]),
    (["adapter._target_=json.Tiny"], ["adapter._target_=json.Tiny", "no attribute 'Tiny'"]),
    (["adapter._target_=Tiny"], ["adapter._target_=Tiny", "package.module.Class"]),
    (["adapter._target_=math.pi"], ["adapter._target_=math.pi", "package.module.Class"]),
    (["~adapter._target_"], ["adapter._target_", "package.module.Class"]),
    # not an override at all
    ([""], ["''", "GROUP.KEY=VALUE"]),
    (["a=["], ["'a=['", "\"a='...'\""]),
    (["=3"], ["=3", "NAME"]),
    (["a==3"], ["'a==3'", "\"a='...'\""]),
    (["adapter.rank='"], ["adapter.rank='", "\"adapter.rank='...'\""]),
    (["quickstart"], ["'quickstart'", "GROUP.KEY=VALUE"]),
    (["wörter=ü"], ["'wörter=ü'", "GROUP.KEY=VALUE"]),
    (["mode=trän"], ["'mode=trän'", "\"mode='...'\""]),
    (["mode='trän'"], ["mode=trän", "train, plan"]),
    (["mode='学習'"], ["mode=学習", "train, plan"]),
    (["output_root=C:\\runs=1"], ["output_root=", "\"output_root='...'\""]),
    (["a b=c"], ["'a b=c'", "GROUP.KEY=VALUE"]),
    ([f"{LONG}=3"], ["xxx..."]),
    ([f"adapter.{LONG}=3"], ["adapter.xxx"]),
    ([f"adapter.rank={LONG}"], ["adapter.rank=xxx", "a whole number"]),
    ([f"adapter={LONG}"], ["adapter=xxx"]),
    (["adapter.rank=[" * 50], ["adapter.rank=[", "\"adapter.rank='...'\""]),
]


@pytest.mark.parametrize(("overrides", "words"), WRONG, ids=[" ".join(overrides)[:50] for overrides, _ in WRONG])
def test_a_wrong_request_is_refused_by_name(overrides, words):
    message = refusal(overrides)
    for word in words:
        assert word in message, message


def test_the_same_keys_pass_where_they_are_inherited_or_have_a_use():
    assert request(["adapter=none"]).placement.part == "all"  # inherited, and of no use: not refused
    assert request(["trainer.iterations=9"]).trainer.epochs >= 1
    assert request(["benchmark.validation_fraction=0"]).trainer.restore_best is True
    assert request(["trainer.patience=3", "benchmark.validation_fraction=0.2"]).trainer.patience == 3
    assert (
        request(["strategy=ewc", "strategy.variant=online", "strategy.decay_factor=0.5"]).strategy.decay_factor == 0.5
    )
    assert request(["benchmark.split_seed=3", "benchmark.validation_fraction=0", "benchmark.per_class=9"])
    assert request(["adapter.linear_rank=${adapter.rank}"]).adapter.linear_rank == compose([]).adapter.rank
    assert request(["seed=0"]).seed == 0


def test_nearest_names_one_or_lists_all():
    assert nearest("rnk", ["rank", "alpha"]) == "did you mean 'rank'?"
    assert nearest("zzz", ["rank", "alpha"]) == "one of: alpha, rank"
    assert nearest("zzz", [str(i) for i in range(20)], limit=3).endswith(", ...")


# -------------------------------------------------------------------------------------------- random junk

REAL_KEYS = [
    "seed", "mode", "quiet", "adapter", "adapter.rank", "adapter.full", "adapter._target_", "placement",
    "placement.kinds", "placement.names", "optimizer.lr", "optimizer.betas", "trainer", "trainer.epochs",
    "trainer.iterations", "trainer.patience", "benchmark", "benchmark.n_tasks", "backbone", "backbone.pretrained",
    "strategy", "scheduler", "experiment", "resume", "tracking.csv", "debug", "output_root",
]  # fmt: skip
JUNK_WORDS = [
    "null", "true", "0", "-1", "1e400", "nan", "inf", "[]", "[1]", "[1,a]", "[[1]]", "{}", "{a:1}", "???", "'",
    "\"x\"", "1,2", "range(1,3)", "choice(1,2)", "${seed}", "${mode}", "${nothing}", "${oc.env:NOTHING}",
    "${bad:", "none", "ewc", "resnet20", "convlora", "quickstart", "plateau", "first_half", "2.5", "conv",
    "[conv]", "[0.5,0.9]", "\\", "é",
]  # fmt: skip
JUNK_VALUES = st.one_of(
    st.sampled_from(["", "\t", *JUNK_WORDS]),
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
)
OVERRIDES = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "", "", "+", "++", "~"]),
    st.one_of(st.sampled_from(REAL_KEYS), st.sampled_from(REAL_KEYS).map(lambda key: key[:-1]), st.text(max_size=8)),
    st.sampled_from(["=", "=", "=", "=", "", ".x=", "@y="]),
    JUNK_VALUES,
)


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.lists(OVERRIDES, min_size=1, max_size=2))
def test_a_random_request_is_settled_or_refused(overrides):
    try:
        settled = request(overrides)
    except RequestError as error:
        checked(error)
    else:
        assert settled.seed >= 0 and settled.adapter._target_


# --------------------------------------------------------------------------------------------- Python API


def test_a_plain_dict_runs(tmp_path):
    content = base(["mode=plan"])
    assert type(content) is dict
    content["output_root"] = str(tmp_path)
    content["quiet"] = True
    result = cl_runner.run(content, experiment="by_hand")
    assert isinstance(result, cl_runner.RunResult)
    assert result.folder.parent == tmp_path / "by_hand"
    assert result.summary["training_flops"] > 0
    assert OmegaConf.load(result.folder / "config.yaml").adapter.rank == content["adapter"]["rank"]


def test_compose_gives_what_settle_takes():
    config = compose(["adapter.rank=2", "benchmark=split_mnist"])
    assert config.adapter.rank == 2 and config.benchmark._target_.endswith("SplitMNIST")
    settled = settle(config)
    assert OmegaConf.to_container(settle(settled)) == OmegaConf.to_container(settled), "settling twice changes nothing"
    with pytest.raises(RequestError, match=r"adapter\.rnk"):
        compose(["adapter.rnk=2"])


@pytest.mark.parametrize("content", [{}, [], "text", {"adapter": {}}, {"seed": 3, 4: 5}])
def test_what_is_no_configuration_is_refused(content):
    with pytest.raises(RequestError) as caught:
        settle(content)
    checked(caught.value)


# ------------------------------------------------------------------------------------------ a user's folder


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """A config folder with an optimiser and an adapter that this project knows nothing of."""
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "own_parts.py").write_text(
        "class Scaled:\n    def __init__(self, *, scale: float, shift: float = 0.0): ...\n"
        "class Open:\n    def __init__(self, **options): ...\n"
        "class Positional:\n    def __init__(self, *things, size: int = 1): ...\n"
    )
    (tmp_path / "own_broken.py").write_text("class Tiny(:\n")
    for group, name, text in [
        ("adapter", "scaled", "_target_: own_parts.Scaled\nscale: 2.0\n"),
        ("adapter", "open", "_target_: own_parts.Open\nanything: 1\n"),
        ("adapter", "positional", "_target_: own_parts.Positional\nsize: 2\n"),
        ("adapter", "broken", "_target_: own_broken.Tiny\n"),
        ("optimizer", "rmsprop", "_target_: torch.optim.RMSprop\nlr: 0.01\n"),
        ("experiment", "mine", "# @package _global_\ndefaults:\n  - override /adapter: scaled\nseed: 7\n"),
    ]:
        (tmp_path / group).mkdir(exist_ok=True)
        (tmp_path / group / f"{name}.yaml").write_text(text)
    return str(tmp_path)


def own(overrides: list[str], folder: str) -> Any:
    return settle(compose(overrides, folder), overrides)


def test_a_users_own_classes_compose(own_folder):
    assert own(["adapter=scaled", "adapter.scale=3"], own_folder).adapter.scale == 3
    assert own(["adapter=scaled", "+adapter.shift=1"], own_folder).adapter["shift"] == 1
    assert own(["adapter=open", "+adapter.more=1"], own_folder).adapter.more == 1
    assert own(["adapter=positional"], own_folder).adapter.size == 2
    assert own(["optimizer=rmsprop", "+optimizer.alpha=0.9"], own_folder).optimizer.alpha == 0.9
    mine = own(["+experiment=mine"], own_folder)
    assert mine.seed == 7 and mine.adapter._target_ == "own_parts.Scaled"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["adapter=scaled", "+adapter.shfit=1"], ["adapter.shfit", "did you mean 'shift'?"]),
        (["adapter=scaled", "adapter.scal=1"], ["adapter.scal", "Scaled", "did you mean 'scale'?"]),
        (["adapter=scaled", "~adapter.scale"], ["adapter.scale", "own_parts.Scaled needs it"]),
        (["adapter=positional", "+adapter.things=1"], ["adapter.things", "size"]),
        (["adapter=broken"], ["own_broken.Tiny", "SyntaxError"]),
        (["adapter=scald"], ["adapter=scald", "did you mean 'scaled'?"]),
        (["optimizer=rmsprop", "+optimizer.params=1"], ["optimizer.params", "no key 'params'"]),
        (["optimizer=rmsprop", "+optimizer.alhpa=1"], ["optimizer.alhpa", "did you mean 'alpha'?"]),
        (["adapter=scaled", "+adapter.head=shared"], ["adapter.head", "no key 'head'"]),
    ],
)
def test_a_users_own_class_is_checked_against_its_constructor(own_folder, overrides, words):
    with pytest.raises(RequestError) as caught:
        own(overrides, own_folder)
    message = checked(caught.value)
    for word in words:
        assert word in message, message


def test_a_config_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RequestError, match="no such folder"):
        compose([], str(tmp_path / "missing"))


@pytest.mark.parametrize(
    "overrides, gone",
    [
        (["+experiment=convlora_cifar10", "adapter=none"], "adapter.rank"),
        (["+experiment=convlora_cifar100", "scheduler=cosine", "trainer.patience=null"], "scheduler.patience"),
        (["+experiment=convlora_cifar10", "optimizer=adam"], "optimizer.momentum"),
        (["+experiment=convlora_folder", "benchmark=split_mnist"], "benchmark.n_classes"),
    ],
)
def test_what_an_experiment_said_about_a_replaced_component_is_dropped(overrides: list[str], gone: str) -> None:
    settled = settle(compose(overrides), overrides)
    assert OmegaConf.select(settled, gone) is None


def test_a_typed_key_of_a_replaced_component_is_still_refused() -> None:
    overrides = ["+experiment=convlora_cifar10", "adapter=none", "adapter.rank=3"]
    with pytest.raises(RequestError, match=r"adapter\.rank"):
        settle(compose(overrides), overrides)


def test_a_key_that_no_component_of_the_group_has_is_not_dropped(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\nadapter:\n  rnak: 3\n")
    overrides = ["+experiment=mine", "adapter=none"]
    with pytest.raises(RequestError, match="rnak"):
        settle(compose(overrides, str(tmp_path)), overrides)


@pytest.mark.parametrize(
    "name", [name for name in EXPERIMENTS if "hydra" not in (CONFIGS / "experiment" / f"{name}.yaml").read_text()]
)
def test_every_experiment_can_be_looked_at_fast(name):
    overrides = [f"+experiment={name}", "+debug=fast"]
    config = settle(compose(overrides), overrides)
    assert (config.trainer.epochs, config.trainer.iterations, config.trainer.task_epochs) == (1, None, None)
    small = {"per_class": 20, "shots": 20, "n_train": 40}
    assert any(config.benchmark.get(key) == count for key, count in small.items())
