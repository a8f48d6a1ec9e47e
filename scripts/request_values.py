"""Values that keys of cl-run can take, and values that they cannot, drawn at random for `request_draws.py`.

Keys, types, bounds and choices come from the schemas in `cl_runner/config`; `SENSIBLE` narrows the keys whose bounds
are wider than what fits together (a rank of 5,000 is a number of ranks).
"""

from __future__ import annotations

import dataclasses
import random
import re
import types
import typing
from pathlib import Path
from typing import Any

import yaml

from cl_runner.config.checks import UNTARGETED
from cl_runner.config.components import COMPONENTS
from cl_runner.config.compose import config_folder

GROUPS = (*COMPONENTS, *UNTARGETED)
CHOICES = {
    group: sorted(file.stem for file in (config_folder() / group).glob("*.yaml"))
    for group in (*GROUPS, "experiment", "debug")
}
KEPT_OUT = (
    "mode",
    "resume",
    "checkpoint",
    "export",
    "export_adapter",
    "objective",
    "fail_fast",
    "output_root",
    "quiet",
)
NETWORKS = {  # of libraries, small ones
    "pytorchcv": ["resnet20_cifar10", "resnet20_cifar100", "wrn16_10_cifar10", "preresnet20_cifar10", "resnet10"],
    "torchvision": ["resnet18", "vgg11", "vgg11_bn", "squeezenet1_1", "mobilenet_v3_small", "vit_b_32"],
    "open_clip": ["ViT-B-32", "ViT-B-16", "RN50"],
    "transformers": ["gpt2", "llama", "gpt_neox", "opt", "qwen2"],
}  # fmt: skip
DIVISORS = {"split_cifar100": [1, 2, 4, 5, 10, 20], "split_cub200": [2, 3, 5, 6], "split_folder": [1, 2, 3, 4, 6]}
DOMAINS = ["aircraft", "caltech101", "cifar100", "dtd", "eurosat", "flowers", "food101", "mnist", "pets", "cars"]
TRACE = ["C-STANCE", "FOMC", "MeetingBank", "Py150", "ScienceQA", "NumGLUE-cm", "NumGLUE-ds", "20Minuten"]
WORDS = [
    "a",
    "mine",
    "x y",
    "naïve",
    "数据",
    "it's",
    'say "so"',
    "a=b",
    "a,b",
    "[c]",
    "{d}",
    "e:f",
    "$g",
    "<b>",
    "50%",
    "-",
    "q\\",
]
PLACES = ["outputs", "~/x", "/nowhere/at all", "relative/folder", "ünï/cödé"]
SENSIBLE: dict[str, list[Any]] = {
    "seed": [0, 1, 7, 2**31, 2**32 - 1],
    "data_root": PLACES[2:],
    "benchmark.class_order_seed": [None, 0, 3, 2**32 - 1],
    "benchmark.validation_fraction": [0.05, 0.1, 0.25, 0.5],
    "benchmark.per_class": [None, 1, 2, 5, 20, 400],
    "benchmark.shots": [None, 1, 5, 16],
    "benchmark.root": [None],
    "benchmark.cache": [None, *PLACES[2:]],
    "benchmark.probe_domains": [[]],
    "benchmark.prompts": [{}],
    "benchmark.splits": [{}],
    "benchmark.length": [4, 16, 128],
    "benchmark.prompt_length": [8, 64, 256],
    "benchmark.answer_length": [2, 16, 64],
    "backbone.pretrained": [False],
    "backbone.layers": [1, 2, 3],
    "backbone.head": ["auto"],
    "backbone.head_classes": ["all"],
    "backbone.config": [None],
    "backbone.weights": [None],
    "backbone.options": [{}],
    "backbone.patch_size": [None],
    "backbone.quick_gelu": [None, True, False],
    "backbone.frozen": [[], [], ["text"]],
    "backbone.stem": ["auto", "original"],
    "backbone.tokenizer": ["bytes"],
    "backbone.vocab_size": [None, 300],
    "backbone.dtype": ["float32"],
    "adapter.rank": [1, 2, 3, 4, 8],
    "adapter.linear_rank": [None, 1, 2, 4],
    "adapter.full": [[]],
    "adapter.base": ["auto", "frozen", "first_task"],
    "adapter.compute": ["auto", "merged"],
    "adapter.task_inference": ["auto"],
    "adapter.eval_rank": [None, 1],
    "adapter.eval_ranks": [[], [1]],
    "adapter.rank_schedule": [[]],
    "adapter.cut": [0.5, 0.6],
    "adapter.method": ["lora", "loha", "lokr", "ia3", "oft", "boft", "vera", "hra", "dora"],
    "adapter.options": [{}],
    "placement.pattern": [None],
    "placement.names": [None],
    "placement.roles": [None],
    "placement.kinds": [["conv", "linear"], ["conv"]],
    "placement.towers": [["vision", "text"], ["vision"]],
    "strategy.sample_size": [20, 64],
    "strategy.hidden": [16, 100],
    "strategy.reference_images": [None, "/nowhere"],
    "strategy.reference_texts": [None],
    "strategy.reference_size": [10, 100],
    "scheduler.milestones": [[1], [1, 2], [2]],
    "trainer.epochs": [1, 2, 5, 20],
    "trainer.task_epochs": [None],
    "trainer.iterations": [None, 1, 30],
    "trainer.batch_size": [16, 32, 64, 100],
    "trainer.device": ["auto", "cpu"],
    "trainer.threads": [None, 1],
    "trainer.deterministic": [False],
    "trainer.patience": [None, 1, 3],
    "tracking.wandb": [None],
}  # fmt: skip
SMALL = {  # for requests that are trained: steps, not epochs, on little data
    "benchmark.per_class": [4, 6], "benchmark.shots": [2, 4], "benchmark.n_train": [8, 12], "benchmark.n_test": [4],
    "trainer.epochs": [1, 2], "trainer.iterations": [1, 2], "trainer.batch_size": [16, 20], "trainer.threads": [1],
    "trainer.device": ["cpu"], "backbone.width": [8], "backbone.layers": [1, 2], "strategy.mem_size": [10, 30],
    "tracking.wandb": [None], "data_root": [], "benchmark.cache": [None], "report": [False],
    "optimizer.lr": [0.01, 0.001], "optimizer.eps": [1e-8], "optimizer.weight_decay": [0.0, 0.01],
    "adapter.alpha": [None, 2],
    "optimizer.betas": [[0.9, 0.999]], "optimizer.momentum": [0.0, 0.9], "scheduler.min_lr": [0.0],
    "strategy.ewc_lambda": [0.0, 1.0], "strategy.si_lambda": [0.0, 1.0], "strategy.alpha": [0.1, 1.0],
    "strategy.beta": [0.0, 0.5], "strategy.temperature": [1.0, 2.0], "strategy.memory_strength": [0.0, 0.5],
    "strategy.eps": [0.001], "strategy.distillation": [1.0], "strategy.consistency": [0.0, 1.0],
    "adapter.lambda_order": [0.0, 0.01], "adapter.lambda_dc": [0.0, 0.1], "adapter.kappa_max": [0.0, 0.005],
    "benchmark.length": [], "benchmark.test_per_class": [None, 2], "trainer.eval_batch_size": [None, 7],
}  # fmt: skip


def written(value: Any) -> str:
    """A value as it is typed on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{written(item)}" for key, item in value.items()) + "}"
    if not isinstance(value, str):
        return str(value)
    if re.fullmatch(r"[A-Za-z][\w-]*", value, re.ASCII) and value.lower() not in (
        "null",
        "true",
        "false",
        "nan",
        "inf",
    ):
        return value
    escaped = re.sub(r"(\\+)($|')", lambda found: found[1] * 2 + found[2], value).replace("'", "\\'")
    return f"'{escaped}'"


def schema_of(group: str, choice: str) -> type:
    """The dataclass of a choice."""
    if group in UNTARGETED:
        return UNTARGETED[group]
    target = yaml.safe_load((config_folder() / group / f"{choice}.yaml").read_text())["_target_"]
    return next(schema for schema in COMPONENTS[group] if getattr(schema, "_target_") == target)  # noqa: B009


def options_of(schema: type, prefix: str) -> dict[str, tuple[Any, Any]]:
    """(type, bounds) of every key of a schema, by its full name."""
    kinds = typing.get_type_hints(schema)
    fields = [item for item in dataclasses.fields(schema) if item.name not in ("_target_", *GROUPS)]
    return {prefix + item.name: (kinds[item.name], item.metadata) for item in fields}


def inside(kind: Any, bounds: Any, rng: random.Random) -> Any:
    """A value of the type, within the bounds: often one at the edge."""
    parts = list(typing.get_args(kind)) if isinstance(kind, types.UnionType) else [kind]
    part = rng.choice(parts)
    if part is types.NoneType:
        return None
    if typing.get_origin(part) is list:
        (item,) = typing.get_args(part)
        return [] if item is Any else [inside(item, bounds, rng) for _ in range(rng.randint(1, 3))]
    if typing.get_origin(part) is dict:
        return {}
    if part is bool:
        return rng.random() < 0.5
    if "choices" in bounds:
        return rng.choice(bounds["choices"])
    if part is str:
        return rng.choice(WORDS)
    low, high = bounds.get("low", bounds.get("above", 0)), bounds.get("high", bounds.get("below"))
    if part is int:
        low = low + ("above" in bounds)
        top = high if high is not None else low + 40
        return rng.choice(
            [low, low + 1 if low < top else low, rng.randint(low, min(top, low + 40)), rng.randint(low, top)]
        )
    step = 1e-6
    edges = [low if "low" in bounds else low + step, (high if "high" in bounds else high - step) if high else low + 1.0]
    return rng.choice([*edges, round(rng.uniform(edges[0], min(edges[1], edges[0] + 2)), 4)])


def outside(kind: Any, bounds: Any, rng: random.Random) -> Any:
    """A value that the key cannot take, or can hardly be meant to: of another type, beyond a bound, huge, empty."""
    odd: list[Any] = [[1, 2], {"a": 1}, "", "perhaps", "naïve \u2603", -1, 2.5, 1e400, float("nan"), -(10**30), 10**30]
    odd += [
        2**31,
        2**63,
        True,
        None,
        [],
        ["x", None],
        [[1]],
        {},
        "a\nb",
        "\x00",
        "\udcff",
        "é" * 300,
        "0x10",
        "1e5",
        "???",
    ]
    for name, step in (("low", -1), ("high", 1), ("above", 0), ("below", 0)):
        if name in bounds:
            odd += [bounds[name] + step] * 3
    return rng.choice(odd)


def data_in(folder: Path, seed: int = 0) -> dict[str, list[str]]:
    """Writes small data and returns the overrides that name it, by benchmark: images, domains of images, texts."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(seed)
    for where in ("images", "red", "blue"):
        for part, count in (("train", 6), ("test", 2)):
            for label in range(4):
                (folder / where / part / f"class_{label}").mkdir(parents=True, exist_ok=True)
                for index in range(count):
                    pixels = draw.integers(0, 64 * (label + 1), (16, 16, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / where / part / f"class_{label}" / f"{index}.png")
    for name in ("law", "film"):
        for part, count in (("train", 14), ("test", 5)):
            lines = [f'{{"text": "{name} {part} {index} {draw.integers(10**9)}"}}' for index in range(count)]
            (folder / f"{name}_{part}.jsonl").write_text("\n".join(lines) + "\n")
    domains = ",".join(f"{{name:{name},root:'{folder / name}'}}" for name in ("red", "blue"))
    texts = ",".join(f"{{name:{name},train:{name}_train.jsonl,test:{name}_test.jsonl}}" for name in ("law", "film"))
    return {
        "split_digits": ["benchmark.per_class=4"],
        "split_folder": [f"benchmark.root='{folder / 'images'}'", "benchmark.image_size=16"],
        "xtail": [f"benchmark.domains=[{domains}]"],
        "mtil": [f"benchmark.domains=[{domains}]"],
        "text_domains": [f"benchmark.domains=[{texts}]", f"benchmark.root='{folder}'", "benchmark.length=16"],
    }
