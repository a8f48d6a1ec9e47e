"""Draws random requests of cl-run for `random_requests.py`: whole ones that should work, with something wrong in some.

Nothing here knows what the checks refuse, but for what `_mend` takes back so that enough requests are valid.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from request_values import (
    CHOICES,
    DIVISORS,
    DOMAINS,
    GROUPS,
    KEPT_OUT,
    NETWORKS,
    SENSIBLE,
    SMALL,
    TRACE,
    inside,
    options_of,
    outside,
    schema_of,
    written,
)

from cl_runner.config.schema import Run, Wandb


@dataclass
class Drawn:
    """A request: what is typed, and what is known of it.

    Attributes:
        typed: overrides, in order.
        values: the value that each typed key was given; a group holds the name of its choice.
        wrong: the key whose value was drawn to be wrong, where one was.
        flavour: sound, one wrong, or wild.
    """

    typed: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)
    wrong: str | None = None
    flavour: str = "sound"

    def add(self, key: str, value: Any) -> None:
        """Types a key once; a later value takes the place of an earlier one."""
        self.typed = [item for item in self.typed if item.split("=")[0] != key]
        self.values[key] = value
        self.typed.append(f"{key}={written(value)}")

    def chosen(self, group: str) -> str:
        """The choice of a group, the default of `run.yaml` where nothing is typed."""
        defaults = {"benchmark": "split_digits", "backbone": "small_cnn", "adapter": "convlora", "optimizer": "adam"}
        defaults |= {"strategy": "naive", "scheduler": "constant", "placement": "all", "tracking": "none"}
        return str(self.values.get(group, defaults.get(group, "default")))


class Draws:
    """Random requests from a seed.

    Args:
        seed: of all draws.
        data: overrides that name data which is there, by benchmark; given where requests are to be trained.
    """

    def __init__(self, seed: int, data: dict[str, list[str]] | None = None) -> None:
        self.rng, self.data = random.Random(seed), data
        self.sensible = SENSIBLE | (SMALL if data else {})

    def next(self) -> Drawn:
        """One request: six in ten sound as far as their author can tell, three with one thing wrong, one wild."""
        flavour = "sound" if self.data else self.rng.choices(["sound", "one wrong", "wild"], [62, 28, 10])[0]
        drawn = self._wild() if flavour == "wild" else self._sound()
        drawn.flavour = flavour
        if flavour == "one wrong":
            self._spoil(drawn)
        return drawn

    # ------------------------------------------------------------------------------------------- sound

    def _sound(self) -> Drawn:
        rng, drawn = self.rng, Drawn()
        kind = rng.choices(["small", "image", "clip", "text"], [50, 20, 15, 15])[0]
        if self.data:
            kind = rng.choice(["small", "small", "image", "clip", "text"])
        getattr(self, f"_{kind}")(drawn)
        self._method(drawn, kind)
        for group in GROUPS:
            self._some_keys(drawn, group)
        for key, (type_, bounds) in options_of(Run, "").items():
            if key not in KEPT_OUT and rng.random() < 0.08:
                self._draw_key(drawn, key, type_, bounds)
        if drawn.chosen("tracking") == "wandb":
            for key, (type_, bounds) in options_of(Wandb, "tracking.wandb.").items():
                if rng.random() < 0.2:
                    self._draw_key(drawn, key, type_, bounds)
        self._mend(drawn, kind)
        long = not any(item.startswith(("trainer.epochs", "trainer.iterations", "+debug")) for item in drawn.typed)
        if self.data and long and drawn.chosen("strategy") not in ("zero_shot", "rail"):
            drawn.add("trainer.epochs", 1)
        if self.data and drawn.chosen("strategy") == "rail":
            drawn.add("strategy.hidden", 100)
        return drawn

    def _small(self, drawn: Drawn) -> None:
        names = list(set(self.data) & {"split_digits", "split_folder"}) if self.data else []
        which = self.rng.choice(
            names or ["split_digits", "split_digits", "split_mnist", "split_cifar10", "split_folder"]
        )
        self._benchmark(drawn, which)
        drawn.add("backbone", "small_cnn")

    def _image(self, drawn: Drawn) -> None:
        rng = self.rng
        some = ["split_cifar10", "split_cifar100", "split_cub200", "split_folder", "xtail", "mtil"]
        which = rng.choice(["split_digits", "split_folder"] if self.data else some)
        self._benchmark(drawn, which)
        if which == "split_cub200":
            drawn.add("benchmark.first_task_classes", 100)
            drawn.add("benchmark.image_size", rng.choice([32, 64]))
        if "tail" in which or which == "mtil":
            drawn.add("benchmark.image_size", 32)
        drawn.add(
            "backbone",
            rng.choice(["resnet20", "pytorchcv", "torchvision", "resnet18"]) if not self.data else "resnet20",
        )
        self._name(drawn)

    def _clip(self, drawn: Drawn) -> None:
        rng = self.rng
        self._benchmark(drawn, rng.choice(["xtail", "mtil"]))
        drawn.add("backbone", "open_clip")
        drawn.add("backbone.name", "ViT-B-32")
        drawn.add("backbone.layers", 1)
        drawn.add("backbone.width", 64)
        if self.data:
            drawn.add("benchmark.image_size", 32)
        elif rng.random() < 0.5:
            drawn.add("benchmark.domains", rng.sample(DOMAINS, rng.randint(1, 3)))

    def _text(self, drawn: Drawn) -> None:
        rng = self.rng
        which = "text_domains" if self.data else rng.choice(["imdb_yelp", "trace", "text_domains"])
        self._benchmark(drawn, which)
        if which == "trace":
            drawn.add("benchmark.prompt_length", 256)
            drawn.add("benchmark.domains", rng.choice([None, rng.sample(TRACE, 2)]))
        if which == "text_domains" and not self.data:
            names = rng.sample(["law", "code", "film"], rng.randint(1, 3))
            drawn.add(
                "benchmark.domains", [{"name": name, "train": f"{name}.txt", "test": f"{name}2.txt"} for name in names]
            )
        drawn.add("backbone", "transformers")
        drawn.add("backbone.name", rng.choice(NETWORKS["transformers"]) if not self.data else "gpt2")
        drawn.add("backbone.layers", 1)
        drawn.add("backbone.width", 64)
        drawn.add("backbone.tokenizer", "bytes")

    def _benchmark(self, drawn: Drawn, which: str) -> None:
        drawn.add("benchmark", which)
        for item in (self.data or {}).get(which, []):
            drawn.typed.append(item)
        if which == "split_folder" and not self.data:
            drawn.add("benchmark.n_classes", 12)
            drawn.add("benchmark.n_tasks", self.rng.choice(DIVISORS[which]))
        elif which.startswith("split") and (self.rng.random() < 0.5 or self.data):
            drawn.add(
                "benchmark.n_tasks", self.rng.choice(DIVISORS.get(which, [1, 2, 5, 10])[: 2 if self.data else None])
            )

    def _name(self, drawn: Drawn) -> None:
        if drawn.chosen("backbone") in NETWORKS:
            drawn.add("backbone.name", self.rng.choice(NETWORKS[drawn.chosen("backbone")]))

    def _method(self, drawn: Drawn, kind: str) -> None:
        """Adapter, placement, strategy, optimiser, schedule: those that the kind of request has a use for."""
        rng = self.rng
        adapters = [
            name for name in CHOICES["adapter"] if kind != "text" or not name.startswith(("senacnn", "convlora"))
        ]
        adapters = [name for name in adapters if kind != "clip" or name not in ("senacnn", "peft")]
        drawn.add("adapter", rng.choice(adapters))
        roles = [name for name in CHOICES["placement"] if name not in ("match", "convs", "all", "linears")]
        places = (
            ["all", "convs", "first_half", "last_half"] if kind in ("small", "image") else ["all", "linears", *roles]
        )
        if rng.random() < 0.5 and drawn.chosen("adapter") not in ("none", "senacnn"):
            drawn.add("placement", rng.choice(places))
        strategies = ["naive", "replay", "ewc", "si", "gem", "agem", "lwf", "cumulative", "joint"]
        shared = drawn.chosen("adapter") in ("none", "dclora", "hybrid", "codyra", "lora", "dylora", "peft")
        strategies += ["der", "icarl"] if shared and kind in ("small", "image") else []
        if kind == "clip":
            strategies = [*strategies, "wise_ft", "zero_shot", "rail", "zscl"]
        drawn.add("strategy", rng.choice(strategies))
        if drawn.chosen("strategy") in ("wise_ft", "zero_shot", "rail"):
            drawn.add("adapter", "none")
            drawn.typed = [item for item in drawn.typed if not item.startswith("placement")]
            drawn.values.pop("placement", None)
        for group in ("optimizer", "scheduler", "tracking"):
            if rng.random() < 0.5:
                drawn.add(group, rng.choice([name for name in CHOICES[group] if not (self.data and name == "wandb")]))
        if rng.random() < 0.08:
            drawn.typed.append("+debug=fast")

    def _some_keys(self, drawn: Drawn, group: str) -> None:
        share = {"placement": 0.05, "trainer": 0.15, "adapter": 0.3, "benchmark": 0.2}.get(group, 0.35)
        if group == "placement" and drawn.chosen("adapter") in ("none", "senacnn"):
            return
        for key, (kind, bounds) in options_of(schema_of(group, drawn.chosen(group)), f"{group}.").items():
            given = any(item.split("=")[0] == key for item in drawn.typed)
            if not given and self.rng.random() < share and not (group == "backbone" and key.endswith(".name")):
                self._draw_key(drawn, key, kind, bounds)

    def _draw_key(self, drawn: Drawn, key: str, kind: Any, bounds: Any) -> None:
        known = self.sensible.get(key)
        if known == []:
            return
        value = self.rng.choice(known) if known else inside(kind, bounds, self.rng)
        if key in ("benchmark.n_tasks", "benchmark.first_task_classes", "benchmark.image_size", "benchmark.n_classes",
                   "benchmark.domains", "benchmark.n_train", "benchmark.n_test") and not known:  # fmt: skip
            return
        drawn.add(key, value)

    def _mend(self, drawn: Drawn, kind: str) -> None:
        """Takes back most of what cannot be together; now and then it stays, to be refused."""
        if self.rng.random() < 0.12 and not self.data:
            return
        values = drawn.values
        descends = drawn.chosen("strategy") not in ("zero_shot", "rail")
        validated = values.get(
            "benchmark.validation_fraction", 0.1 if drawn.chosen("benchmark").startswith("split") else 0
        )
        gone: list[str] = []
        if not descends:
            gone += ["trainer.", "optimizer", "scheduler", "benchmark.augmentation", "backbone.train_logit_scale"]
            gone += ["on_nan", "benchmark.shots", "benchmark.validation", "backbone.frozen"]
        if not validated or values.get("trainer.iterations") or drawn.chosen("adapter") == "codyra" or not descends:
            gone += [
                "trainer.patience",
                "trainer.restore_best",
                "trainer.epochs" if values.get("trainer.iterations") else "-",
            ]
            gone += ["trainer.checkpoint_epochs"]
            if drawn.chosen("scheduler") in ("plateau", "multistep"):
                gone += ["scheduler"]
        if drawn.chosen("strategy") == "icarl":
            gone += ["trainer.patience", "trainer.restore_best", "trainer.label_smoothing"]
            gone += ["scheduler"] if drawn.chosen("scheduler") == "plateau" else []
        if drawn.chosen("scheduler") == "multistep":
            gone += ["trainer.epochs", "trainer.task_epochs"] if not self.data else ["scheduler"]
        if kind in ("text", "clip"):
            gone += ["benchmark.task_labels", "trainer.channels_last"]
            gone += [
                "benchmark.split_seed",
                "benchmark.cache",
                "benchmark.prompts",
                "benchmark.order",
                "benchmark.answer_length",
            ]
        if not values.get("optimizer.momentum", 0.9 if drawn.chosen("optimizer") == "sgd" else 0):
            gone += ["optimizer.nesterov"]
        gone += ["benchmark.task_labels"] if self.rng.random() < 0.7 else []
        if kind == "text" or drawn.chosen("benchmark") in (
            "split_digits",
            "split_mnist",
            "split_cifar10",
            "split_cifar100",
        ):
            gone += ["on_bad_sample"]
        gone += ["benchmark.root"] if drawn.chosen("benchmark") == "split_digits" else []
        gone += ["placement.towers"] if kind != "clip" else []
        gone += ["adapter.task_inference"] if drawn.chosen("adapter") in ("lora", "dylora", "peft") else []
        gone += ["adapter.dropout"] if drawn.chosen("placement") != "linears" else []
        gone += ["strategy.decay_factor"] if values.get("strategy.variant") != "online" else []
        gone += (
            ["adapter.linear_rank"]
            if "linear" not in values.get("placement.kinds", ["linear"]) or drawn.chosen("placement") == "convs"
            else []
        )
        gone += ["tracking.wandb"] if "tracking.wandb" in values else []
        gone += ["adapter.lambda_order"] if values.get("adapter.training") == "random_rank" else []
        gone += ["trainer.checkpoint_epochs", "adapter.schedule_from", "adapter.update", "adapter.eval_ranks_at"]
        if not self.data:  # a plan trains and evaluates nothing
            gone += ["trainer.profile", "trainer.trace_steps", "evaluate_unchanged"]
        gone += ["trainer.prefix_cache", "trainer.cache_gb"] if drawn.chosen("strategy") != "naive" else []
        gone += ["optimizer.betas"] if len(values.get("optimizer.betas", [0, 0])) != 2 else []
        for key in [key for key in values if key.startswith(tuple(gone)) and not key.startswith("-")]:
            values.pop(key)
            drawn.typed = [item for item in drawn.typed if item.split("=")[0] != key]

    # ------------------------------------------------------------------------------------------- wrong

    def _spoil(self, drawn: Drawn) -> None:
        """Types one more thing, which can hardly be meant."""
        rng = self.rng
        group = rng.choice([*GROUPS, ""])
        schema = schema_of(group, drawn.chosen(group)) if group else Run
        options = options_of(schema, f"{group}." if group else "")
        options = {key: item for key, item in options.items() if key not in KEPT_OUT[-2:]} or {
            "seed": (int, {"low": 0})
        }
        key, (kind, bounds) = rng.choice(list(options.items()))
        how = rng.choices(["value", "misspelt", "group", "unused", "plus", "delete", "raw"], [60, 8, 8, 8, 5, 5, 6])[0]
        drawn.wrong = key
        if how == "value":
            value = outside(kind, bounds, rng)
            if key in KEPT_OUT:
                value = {"mode": "eval", "fail_fast": True, "objective": "acc"}.get(key, "/nowhere")
            drawn.typed = [item for item in drawn.typed if item.split("=")[0] != key]
            drawn.values[key] = value
            drawn.typed.append(f"{key}={written(value)}")
            return
        drawn.wrong = key = key if how != "group" else rng.choice(GROUPS)
        letters = key[:-1] if rng.random() < 0.5 else key.replace("e", "ee", 1) + "x"
        raw = rng.choice(
            ["1,2", "${nothing}", "${", "range(1,3)", "[1", "'", "{a:", "???", "${seed}", "\\", "a b", "${oc.env:X}"]
        )
        choice = rng.choice(["", "no_such", "ünï", "3", "[a]", "null", "../adapter/lora"])
        unused = ["adapter.rank_schedule=[2,1]", "strategy.mem_size=3", "backbone.depth=3", "benchmark.order=II"]
        drawn.typed.append({
            "misspelt": f"{letters}=1", "group": f"{key}={choice}", "unused": rng.choice(unused),
            "plus": f"+{key}=1", "delete": f"~{key}", "raw": f"{key}={raw}",
        }[how])  # fmt: skip

    def _wild(self) -> Drawn:
        """Any choices, and any keys of any component with any values."""
        rng, drawn = self.rng, Drawn()
        for group in rng.sample(GROUPS, rng.randint(0, 4)):
            drawn.add(group, rng.choice(CHOICES[group]))
        if rng.random() < 0.2:
            drawn.typed.append(f"+experiment={rng.choice(CHOICES['experiment'])}")
        for _ in range(rng.randint(0, 5)):
            group = rng.choice([*GROUPS, ""])
            options = options_of(schema_of(group, drawn.chosen(group)) if group else Run, f"{group}." if group else "")
            usable = [key for key in options if key not in ("output_root", "quiet", "mode")]
            if usable:
                key = rng.choice(usable)
                drawn.add(key, (outside if rng.random() < 0.3 else inside)(*options[key], rng))
        return drawn
