"""Training speed of LoRA on a causal language model: the usual loop, ours, and the computation alone.

    python scripts/bench_text.py [--device cuda] [--json FILE]

usual         transformers and PEFT as their examples combine them: a DataLoader, every text padded to the full length,
              labels for every position, the padded ones ignored
ours          the Avalanche strategy that `cl-run` builds, on batches cut to their longest text
compute_only  our network's step on one batch of full length, again and again: no data, no strategy

The ways take turns, `--repeats` times; rates are medians in texts/s. Texts are random ids of random lengths, so that
nothing has to be at hand.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from cl_runner.adapters import LoRA
from cl_runner.adapters.placement import Placement
from cl_runner.assembly import build_strategy
from cl_runner.backbones.language import LanguageNetwork
from cl_runner.backbones.transformers import Transformers
from cl_runner.benchmarks.avalanche_view import avalanche_benchmark
from cl_runner.benchmarks.store import Part
from cl_runner.benchmarks.stream import Task
from cl_runner.benchmarks.text.ragged import Ragged
from cl_runner.benchmarks.text.store import TokenStore
from cl_runner.benchmarks.text.stream import LanguageStream
from cl_runner.config.compose import compose
from cl_runner.stage import assemble
from cl_runner.tokens import IGNORED
from cl_runner.training.token_measures import TokenCrossEntropy

PAD = 0


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    texts = drawn_texts(options)
    runs = {"usual": usual(options, texts), "ours": ours(options, texts), "compute_only": compute_only(options)}
    for run in runs.values():
        run()  # warm
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(options.repeats):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            wait(options)
            rates[name].append(options.steps * options.batch / (time.perf_counter() - started))
    report(options, texts, rates)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--network", default="gpt2", help="a configuration's name; random weights")
    parser.add_argument("--layers", type=int, help="fewer blocks, for a laptop")
    parser.add_argument("--width", type=int)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--full", type=float, default=0.8, help="share of texts as long as --length")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def drawn_texts(options: argparse.Namespace) -> list[np.ndarray]:
    """Token ids of as many texts as a round takes; some are shorter than the length."""
    draw = np.random.default_rng(0)
    lengths = np.where(
        draw.random(options.steps * options.batch) < options.full,
        options.length,
        draw.integers(8, options.length, options.steps * options.batch),
    )
    return [draw.integers(1, 40_000, size) for size in lengths]


def model_of(options: argparse.Namespace) -> Any:
    torch.manual_seed(0)
    recipe = Transformers(name=options.network, layers=options.layers, width=options.width)
    return recipe.build_language_model().to(options.device)


def usual(options: argparse.Namespace, texts: list[np.ndarray]) -> Callable[[], None]:
    given = LoraConfig(r=options.rank, lora_alpha=32, target_modules=["c_attn"], fan_in_fan_out=True)
    model = get_peft_model(model_of(options), given).train()
    optimizer = torch.optim.AdamW([item for item in model.parameters() if item.requires_grad], lr=5e-5)

    def collate(items: list[np.ndarray]) -> dict[str, torch.Tensor]:
        ids = torch.full((len(items), options.length), PAD)
        labels = torch.full_like(ids, IGNORED)
        for row, item in enumerate(items):
            ids[row, : len(item)] = labels[row, : len(item)] = torch.from_numpy(item)
        return {"input_ids": ids, "attention_mask": (labels != IGNORED).long(), "labels": labels}

    loader = torch.utils.data.DataLoader(texts, batch_size=options.batch, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]

    def run() -> None:
        for batch in loader:
            with autocast(options):
                loss = model(**{key: item.to(options.device) for key, item in batch.items()}).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


def network_of(options: argparse.Namespace) -> LanguageNetwork:
    network = LanguageNetwork(
        model_of(options), n_tasks=1, task_labels=False, pretrained=True, precision=options.precision
    )
    network.adapter = LoRA(rank=options.rank, alpha=32, base="frozen")
    network.adapter.attach(network, Placement(pattern="c_attn"))
    return network.to(options.device)


def ours(options: argparse.Namespace, texts: list[np.ndarray]) -> Callable[[], None]:
    count = len(texts)
    offsets = np.concatenate([[0], np.cumsum([len(item) for item in texts])])
    store = TokenStore(
        ids=Ragged(np.concatenate(texts).astype(np.int32), offsets),
        firsts=np.ones(count, np.int64),
        labels=np.zeros(count, np.int64),
        tasks=np.zeros(count, np.int64),
        pad=PAD,
    )
    part = Part(store, torch.arange(count), 0)
    task = Task(0, "bench", (0,), ("bench",), count, count, part, None, part)
    stream = LanguageStream(
        name="bench", tasks=(task,), task_labels=False, n_classes=1, store=store, length=options.length,
        metrics=("token_accuracy",),
    )  # fmt: skip
    config = compose(
        [
            "benchmark=imdb_yelp",
            "backbone=gpt2",
            "adapter=lora",
            "optimizer=adamw",
            "optimizer.lr=5e-5",
            f"trainer.iterations={options.steps}",
            f"trainer.batch_size={options.batch}",
            f"trainer.precision={options.precision}",
        ]
    )
    store.to(torch.device(options.device))
    recipe, workshop = build_strategy(config, stream, network_of(options))
    _, _, strategy = assemble(config, stream, recipe, workshop, Nobody())
    experience = avalanche_benchmark(stream).train_stream[0]
    return lambda: strategy.train(experience, eval_streams=[]) and None


def compute_only(options: argparse.Namespace) -> Callable[[], None]:
    network = network_of(options).train()
    network.begin_task([0])
    optimizer = torch.optim.AdamW([item for item in network.parameters() if item.requires_grad], lr=5e-5, fused=True)
    ids = torch.randint(1, 40_000, (options.batch, options.length), device=options.device)
    marks = torch.ones_like(ids)
    marks[:, -1] = 0
    x, y = torch.stack([ids, marks], 1), torch.where(marks == 1, ids.roll(-1, 1), IGNORED)
    objective = TokenCrossEntropy()

    def run() -> None:
        for _ in range(options.steps):
            loss = objective(network(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


class Nobody:
    """A listener that is told everything and keeps nothing."""

    def task_started(self, *values: Any) -> None: ...

    def batch(self, n_images: int) -> None: ...

    def epoch_finished(self, *values: Any, **named: Any) -> None: ...


def autocast(options: argparse.Namespace) -> torch.autocast:
    kind = torch.device(options.device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=options.precision == "bfloat16")


def wait(options: argparse.Namespace) -> None:
    if torch.device(options.device).type == "cuda":
        torch.cuda.synchronize()


def report(options: argparse.Namespace, texts: list[np.ndarray], rates: dict[str, list[float]]) -> None:
    tokens = sum(map(len, texts)) / len(texts)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    hardware = torch.cuda.get_device_name() if torch.device(options.device).type == "cuda" else platform.processor()
    print(f"{hardware or platform.machine()}, {torch.get_num_threads()} threads, {options.precision}")
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft", "avalanche-lib")))
    print(f"{options.network}, {options.batch} x {options.length} tokens, {tokens:.0f} tokens a text on average")
    for name, values in rates.items():
        print(f"{name:13} {medians[name]:8.2f} texts/s   ({min(values):.2f} to {max(values):.2f}, n = {len(values)})")
    ratios = dict(pairs(medians))
    for name, value in ratios.items():
        print(f"{name:28} {value:.2f}")
    if options.json:
        options.json.write_text(json.dumps({"medians": medians, "rates": rates, "ratios": ratios}, indent=1) + "\n")


def pairs(medians: dict[str, float]) -> Iterator[tuple[str, float]]:
    yield "ours over usual", medians["ours"] / medians["usual"]
    yield "ours over compute_only", medians["ours"] / medians["compute_only"]


if __name__ == "__main__":
    main()
