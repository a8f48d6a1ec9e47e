"""Bad input: two outcomes of any request, a plan that holds every typed value, or two lines that name what is wrong."""

from __future__ import annotations

import dataclasses
import random
import sys
import time
import types
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

import cl_runner
from cl_runner.config.checks import UNTARGETED, settle
from cl_runner.config.components import COMPONENTS
from cl_runner.config.compose import compose
from cl_runner.config.options import fits
from cl_runner.config.schema import Run, Wandb
from cl_runner.errors import RequestError

SCRIPTS = str(Path(cl_runner.__file__).parent.parent / "scripts")
sys.path.insert(0, SCRIPTS)

from random_requests import called, execute, send  # noqa: E402
from request_draws import Draws  # noqa: E402
from request_values import CHOICES, data_in, inside, options_of, outside, schema_of  # noqa: E402

ALL = [(f"{group}.", schema) for group, schemas in COMPONENTS.items() for schema in schemas]
ALL += [(f"{group}.", schema) for group, schema in UNTARGETED.items()] + [("", Run), ("tracking.wandb.", Wandb)]

# ------------------------------------------------------------------------------------- every key has a bound

FREE = {  # texts that no list of words could hold, and why
    "name": "a network's name, which its library knows; of W&B, the user's",
    "weights": "a tag, which open_clip knows",
    "method": "a method, which PEFT knows",
    "domains": "names and mappings, which the benchmark checks",
    "probe_domains": "the same",
    "full": "names of modules, which the network knows",
    "names": "names of layers, which the network knows",
    "pattern": "a regular expression, compiled when the adapter attaches",
    "objective": "a figure of summary.json, checked in config/objective.py",
    "splits": "files by domain, which the benchmark checks",
    "prompts": "templates by domain, which the benchmark checks",
    "options": "keys of another library's configuration, which it knows",
    **dict.fromkeys(("project", "entity", "group", "job_type", "tags"), "what W&B calls a run is the user's"),
}


def is_bounded(kind: Any, bounds: Any) -> bool:
    """Whether a field says what it takes: choices, true or false, a path, or numbers between two bounds."""
    parts = [part for part in typing.get_args(kind) if part is not types.NoneType] or [kind]
    if "choices" in bounds or "path" in bounds or parts == [bool]:
        return True
    return ("low" in bounds or "above" in bounds) and ("high" in bounds or "below" in bounds)


def test_every_key_of_every_group_has_a_bound_or_a_reason():
    used = set()
    for prefix, schema in ALL:
        for key, (kind, bounds) in options_of(schema, prefix).items():
            name = key.rpartition(".")[2]
            if key == "tracking.wandb" or is_bounded(kind, bounds):
                continue
            assert name in FREE, f"{key} of {schema.__name__} takes anything"
            used.add(name)
    assert used == set(FREE), "a reason that no key needs any more"


def edges(kind: Any, bounds: Any) -> tuple[list[Any], list[Any]]:
    """The nearest values within and beyond each bound of a number."""
    step = 1 if "int" in str(kind) else 1e-6
    good = [bounds[name] for name in ("low", "high") if name in bounds]
    good += [bounds[name] + sign * step for name, sign in (("above", 1), ("below", -1)) if name in bounds]
    bad = [bounds[name] + sign * step for name, sign in (("low", -1), ("high", 1)) if name in bounds]
    return good, bad + [bounds[name] for name in ("above", "below") if name in bounds]


def test_a_bound_divides_the_values_that_fit_from_those_that_do_not():
    counted = 0
    for prefix, schema in ALL:
        for key, (kind, bounds) in options_of(schema, prefix).items():
            wrap = (lambda value: [value]) if "list" in str(kind) else (lambda value: value)
            good, bad = edges(kind, bounds)
            for value in good:
                assert fits(wrap(value), wrap(value), bounds), f"{key}={value}"
            for value in bad:
                assert not fits(wrap(value), wrap(value), bounds), f"{key}={value}"
                counted += 1
    assert counted > 200


# ------------------------------------------------------------------------------------- one key at a time

KEYS = [
    (group, choice, key, item)
    for group in (*COMPONENTS, *UNTARGETED)
    for choice in CHOICES[group]
    for key, item in options_of(schema_of(group, choice), f"{group}.").items()
]
NEEDED = {
    "match": ["placement.pattern=conv"],
    "transformers": ["backbone.name=gpt2"],
    "open_clip": ["backbone.name=RN50"],
}
NEEDED |= {"pytorchcv": ["backbone.name=resnet10"], "torchvision": ["backbone.name=resnet18"]}
_BASES: dict[str, Any] = {}


def base(group: str, choice: str) -> Any:
    if choice not in _BASES:
        _BASES[choice] = OmegaConf.to_container(compose([f"{group}={choice}", *NEEDED.get(choice, [])]))
    return {name: dict(node) if isinstance(node, dict) else node for name, node in _BASES[choice].items()}


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(KEYS), st.booleans(), st.integers(0, 2**32))
def test_any_value_of_any_key_is_taken_as_it_is_or_refused_by_name(drawn, sound, seed):
    group, choice, key, (kind, bounds) = drawn
    rng = random.Random(seed)
    value = (inside if sound else outside)(kind, bounds, rng)
    config = base(group, choice)
    config[group][key.rpartition(".")[2]] = value
    try:
        held = settle(config, [f"{group}={choice}", f"{key}=..."])
    except RequestError as error:
        text = error.text
        assert key in text or key.rpartition(".")[2] in text, text
        assert len(text.splitlines()) <= 2 and "Error" not in text, text
    else:
        found = OmegaConf.select(held, key)
        assert OmegaConf.to_container(found) == value if OmegaConf.is_config(found) else found == value or str(value)


# ------------------------------------------------------------------------------------- whole requests


@pytest.mark.parametrize("seed", range(4))
def test_a_random_request_is_planned_as_typed_or_refused_in_two_lines(seed, elsewhere, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    draws, codes = Draws(1000 + seed), []
    for number in range(38):
        drawn = draws.next()
        outcome = send(drawn, tmp_path / "out", door=execute if number % 12 == 0 else called)
        assert outcome.defect is None, f"cl-run {drawn.typed}\n{outcome.said}"
        codes.append(outcome.code)
    assert codes.count(0) >= 0.4 * len(codes), "too few are valid for the others to mean much"
    assert codes.count(2) >= 5


def test_random_requests_train(elsewhere, tmp_path):
    draws, trained = Draws(7, data_in(tmp_path / "data")), 0
    while trained < 3:
        drawn = draws.next()
        if send(drawn, tmp_path / "out", door=called).code == 0:
            outcome = send(drawn, tmp_path / "out", train=True, door=called)
            assert outcome.code == 0 and outcome.defect is None, f"cl-run {drawn.typed}\n{outcome.said}"
            trained += 1


# ------------------------------------------------------------------------------------- what was found so

CLIP = ["benchmark=xtail", "backbone=clip_vit_b16", "adapter=none"]
TEXT = ["benchmark=imdb_yelp", "backbone=gpt2"]
REFUSED = [
    # keys of checkpoints, faults and modes
    (["checkpoint=x"], ["checkpoint has no use here", "mode=eval"]),
    (["mode=plan", "checkpoint=x"], ["checkpoint has no use here", "mode=plan"]),
    (["mode=eval"], ["mode=eval", "checkpoint=outputs/"]),
    (["mode=plan", "resume=x"], ["resume=x", "mode=plan does something else"]),
    (["mode=eval", "resume=x"], ["resume=x", "mode=eval does something else"]),
    (["checkpoint=y", "resume=x"], ["resume=x", "checkpoint=y does something else"]),
    (["mode=eval", "checkpoint=x", "export=y.safetensors"], ["export has no use here", "cl-report export"]),
    (["mode=eval", "checkpoint=x", "trainer.log_every=3"], ["trainer.log_every has no use here", "mode=eval"]),
    ([*CLIP, "strategy=zero_shot", "on_nan=skip"], ["on_nan has no use here", "zero_shot trains nothing"]),
    ([*CLIP, "strategy=rail", "on_nan=skip"], ["on_nan has no use here", "rail trains nothing"]),
    ([*CLIP, "strategy=rail", "trainer.log_every=2"], ["trainer.log_every has no use here"]),
    ([*CLIP, "strategy=rail", "trainer.checkpoint_minutes=2"], ["trainer.checkpoint_minutes has no use here"]),
    (["on_bad_sample=skip"], ["on_bad_sample has no use here", "a file each"]),
    (["benchmark=split_cifar10", "on_bad_sample=skip"], ["on_bad_sample has no use here"]),
    ([*TEXT, "on_bad_sample=skip"], ["on_bad_sample has no use here", "texts"]),
    (["trainer.checkpoint_epochs=2", "trainer.iterations=3"], ["trainer.checkpoint_epochs has no use", "iterations=3"]),
    (["trainer.checkpoint_epochs=3", "trainer.epochs=2"], ["trainer.checkpoint_epochs has no use", "at most 2"]),
    (["trainer.checkpoint_epochs=4", "trainer.task_epochs=[1,3,1,1,1]"], ["checkpoint_epochs has no use", "at most 3"]),
    (
        ["tracking=wandb", "tracking.wandb.mode=disabled", "tracking.wandb.project=x"],
        ["tracking.wandb.project", "tells"],
    ),
    # one image a class cannot be shared
    (["benchmark.per_class=1", "trainer.patience=2"], ["trainer.patience", "benchmark.per_class=1 leaves nothing"]),
    (["benchmark.per_class=1", "scheduler=plateau"], ["scheduler=plateau", "benchmark.per_class=1 leaves nothing"]),
    (["benchmark.per_class=1", "benchmark.validation_fraction=0.2"], ["validation_fraction has no use", "per_class=1"]),
    (["benchmark.per_class=1", "trainer.restore_best=true"], ["trainer.restore_best has no use"]),
    # texts that say nothing, or that no file can hold
    (["benchmark.augmentation=''"], ["benchmark.augmentation= is not", "none, flip"]),
    (["data_root=''"], ["data_root= is not possible", "a path"]),
    (["data_root='a\0b'"], ["data_root=a\\x00b is not possible"]),
    (["data_root='\udcff'"], ["data_root=\\xdcff is not possible"]),
    ([f"data_root='{'é' * 200}'"], ["data_root=é", "a path"]),
    (["placement=match", "placement.pattern='a\nb'"], ["placement.pattern=a b is not possible"]),
    (["adapter.full=['']"], ["adapter.full=['']", "a list of words"]),
    (
        ["benchmark=text_domains", "backbone=gpt2", "benchmark.domains=[{name:a,train:'\udcff'}]"],
        ["benchmark.domains="],
    ),
    # choices, sweeps and interpolations
    (["trainer=../adapter/lora"], ["trainer=../adapter/lora: there is no such trainer", "default"]),
    (["strategy=../adapter/lora"], ["there is no such strategy", "ewc"]),
    (["optimizer=[a]"], ["optimizer=", "adam, adamw, sgd"]),
    (["seed=1", "trainer.epochs=range(1,3)"], ["trainer.epochs=range(1,3): several values", "-m"]),
    (["seed=${oc.env:CL_RUN_NO_SUCH}"], ["seed: Environment variable 'CL_RUN_NO_SUCH' not found"]),
    (["placement.kinds={a:1}"], ["placement.kinds", "placement.kinds=[...]"]),
    (["tracking=wandb", "tracking.wandb=[1]"], ["tracking.wandb", "{KEY: VALUE}"]),
    (["backbone=open_clip", "backbone.config=a.json", "backbone.name=RN50"], ["backbone.name has no use", "config"]),
    # classes that are something else
    (["strategy._target_=cl_runner.adapters.lora.LoRA"], ["strategy._target_=", "is no strategy", "'plugins'"]),
    (["scheduler._target_=cl_runner.adapters.none.NoAdapter"], ["is no scheduler", "'begin'"]),
    (["benchmark._target_=cl_runner.benchmarks.classes.ClassSplit"], ["benchmark._target_=", "is abstract"]),
    (["adapter._target_=builtins.int"], ["adapter._target_=builtins.int", "cannot be told"]),
    (["adapter._target_=3"], ["adapter._target_=3", "package.module.Class"]),
]


@pytest.mark.parametrize(("typed", "words"), REFUSED, ids=[" ".join(typed)[:60] for typed, _ in REFUSED])
def test_found_by_random_requests_and_refused_by_name(typed, words):
    with pytest.raises(RequestError) as refused:
        settle(compose(typed), typed)
    text = refused.value.text
    assert len(text.splitlines()) == 2
    for word in words:
        assert word in text, text


@pytest.mark.parametrize(
    "typed",
    [
        ["checkpoint=x", "mode=eval"],
        ["trainer.checkpoint_epochs=2", "trainer.epochs=2"],
        ["benchmark=split_folder", "on_bad_sample=skip"],
        ["benchmark=xtail", "backbone=clip_vit_b16", "on_bad_sample=skip"],
        ["on_nan=skip"],
        ["benchmark.per_class=2", "trainer.patience=2"],
        ["tracking=wandb", "tracking.wandb.mode=offline", "tracking.wandb.project=x"],
        ["data_root='数据/ünï'"],
    ],
    ids=" ".join,
)
def test_what_has_a_use_is_taken(typed):
    settle(compose(typed), typed)


OWN = "benchmark.domains=[{name:a,root:nowhere,n_classes:3%s}]"
TINY = ["benchmark=mtil", "backbone=open_clip", "backbone.name=ViT-B-32", "backbone.layers=1", "backbone.width=64"]
UNPLANNED = [
    ([*TINY, "benchmark.domains=[{name:a,root:x,n_classes:-3}]"], ["n_classes=-3", "from 1"]),
    ([*TINY, "benchmark.domains=[{name:a,root:x,n_classes:many}]"], ["n_classes=many"]),
    ([*TINY, "benchmark.domains=[{name:a,root:x,n_classes:1000000000000}]"], ["n_classes=1000000000000"]),
    ([*TINY, OWN % ",names:7"], ["names=7"]),
    ([*TINY, OWN % ",prompt:[]"], ["prompt of a"]),
    ([*TINY, "benchmark.domains=[[mnist]]"], ["there is no domain '['mnist']'"]),
    ([*TINY, "benchmark.prompts.aircraft=3"], ["benchmark.prompts.aircraft: 3 is no prompt"]),
    ([*TINY, "benchmark.splits.aircraft=[1]"], ["benchmark.splits.aircraft=[1]"]),
    ([*TEXT, "backbone.options.n_positions=0"], ["backbone.options.n_positions=0"]),
    ([*TEXT, "backbone.options.n_layer=x"], ["field 'n_layer'", "expected int"]),
    (["adapter=peft", "adapter.options={r:1000000000000}"], ["adapter.options.r=1000000000000"]),
    (["adapter=peft", "adapter.options={use_dora:maybe}"], ["adapter.options.use_dora=maybe", "true or false"]),
    (["adapter=peft", "adapter.options.megatron_config=3"], ["PEFT refuses", "megatron"]),
    (["strategy._target_=builtins.print"], ["strategy._target_=builtins.print is no Strategy"]),
]


@pytest.mark.parametrize(("typed", "words"), UNPLANNED, ids=[" ".join(typed)[-60:] for typed, _ in UNPLANNED])
def test_found_by_random_requests_and_refused_by_the_plan(typed, words, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = [*typed, "mode=plan", f"output_root={tmp_path}/out"]
    assert called(asked) == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 2 and "Error" not in said
    for word in words:
        assert word in said, said
    assert not list(tmp_path.rglob("config.yaml"))


def test_a_number_of_classes_that_the_folder_contradicts_is_refused(tmp_path):
    data = data_in(tmp_path)
    for typed in (
        ["benchmark=split_folder", *data["split_folder"], "benchmark.n_classes=6", "benchmark.n_tasks=2"],
        [*TINY, f"benchmark.domains=[{{name:red,root:'{tmp_path / 'red'}',n_classes:6}}]"],
    ):
        with pytest.raises(RequestError, match=r"n_classes=6: .* holds 4 classes"):
            cl_runner.run(compose([*typed, "mode=plan", f"output_root={tmp_path}/out"]), overrides=typed)


def test_a_plan_of_very_many_epochs_is_quick(tmp_path):
    typed = ["mode=plan", "trainer.epochs=100000", f"output_root={tmp_path}", "quiet=true"]
    started = time.perf_counter()
    assert cl_runner.run(compose(typed), overrides=typed).summary["training_images"] > 10**8
    assert time.perf_counter() - started < 10


def test_the_schemas_are_all_looked_at():
    assert len(ALL) == sum(map(len, COMPONENTS.values())) + len(UNTARGETED) + 2
    assert all(dataclasses.is_dataclass(schema) for _, schema in ALL)
