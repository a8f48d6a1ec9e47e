"""Evaluation throughput: stock Avalanche, a plain PyTorch loop, cl-run, and the computation alone.

    python scripts/bench_eval.py [--json FILE] [--images 4096] [--repeats 5] [--threads 2] [--case NAME]

small      two convolutions at 32x32: where the way of the images to the network decides
resnet20   with ConvLoRA of rank 4, with its deltas merged into the weights once a task and formed at every batch
tasks      50 tasks of 20 images with a set per task: Avalanche's own loop and ours on the same strategy and network
texts      greedy answers of a GPT-2 of two blocks with LoRA, merged and along two paths

All ways answer the same images in the same batches and memory format without gradients. `stock_avalanche` and `plain`
decode and normalise each sample as torchvision does. Repeats are interleaved. Printed: median samples/s, spread (least
to most), ratios within the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from bench_loop import CLASSES, MEAN, STD, Nobody, every_case, network, per_sample_dataset
from torch import nn

Way = Callable[[], object]
BATCH = 64  # where a network on the CPU is fastest, and the default there


def images_of(count: int, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    return draw.integers(0, 256, (count, size, size, 3), dtype=np.uint8), np.arange(count) % CLASSES


def small(options: argparse.Namespace) -> tuple[int, dict[str, Way]]:
    return classified(options.images, {"backbone": None}, ["adapter=none"])


def resnet20(options: argparse.Namespace) -> tuple[int, dict[str, Way]]:
    count, ways = classified(options.images // 4, {"backbone": "resnet20"}, ["adapter=convlora", "adapter.base=frozen"])
    merged = ways["ours"]

    def unmerged() -> None:
        with never_merged():
            merged()

    return count, {**ways, "ours_not_merged": unmerged}


def classified(count: int, case: dict[str, Any], typed: list[str]) -> tuple[int, dict[str, Way]]:
    """One task; the base alone under `stock_avalanche`, `plain` and `compute_only`."""
    images, labels = images_of(count)
    strategy, experiences = ours(images, labels, 1, typed, case)
    model = network(case).eval()
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).float().div(255).sub(0.5).div(0.25)
    batches = x.split(BATCH)

    def compute_only() -> None:
        with torch.inference_mode():
            for batch in batches:
                model(batch)

    return count, {
        "stock_avalanche": stock_avalanche(images, labels, case),
        "plain": plain(images, labels, model),
        "ours": lambda: strategy.eval(experiences),
        "compute_only": compute_only,
    }


def tasks(options: argparse.Namespace) -> tuple[int, dict[str, Way]]:
    from avalanche.training.templates import SupervisedTemplate

    images, labels = images_of(50 * 20, 16)
    strategy, experiences = ours(images, labels, 50, ["adapter=convlora", "backbone.width=8"], None)
    return len(images), {
        "avalanches_loop": lambda: SupervisedTemplate.eval(strategy, experiences),
        "ours": lambda: strategy.eval(experiences),
    }


def texts(options: argparse.Namespace) -> tuple[int, dict[str, Way]]:
    from transformers import GPT2Config, GPT2LMHeadModel

    from cl_runner.adapters import LoRA
    from cl_runner.backbones.language import LanguageNetwork

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=256, n_head=4, vocab_size=1000))
    net = LanguageNetwork(model, n_tasks=1, task_labels=True, pretrained=True).eval()
    net.adapter = LoRA(rank=16)
    net.adapter.attach(net)
    net.begin_task([0])
    net.end_task()
    prompts = [torch.arange(5, 20 + index % 3) for index in range(16)]

    def along_two_paths() -> None:
        with torch.inference_mode():
            net.generate(prompts, most=24, eos=1001, pad=0)

    def merged() -> None:
        net.adapter.merge()
        try:
            along_two_paths()
        finally:
            net.adapter.unmerge()

    return len(prompts), {"not_merged": along_two_paths, "ours": merged}


def ours(images: np.ndarray, labels: np.ndarray, n_tasks: int, typed: list[str], case: Any) -> tuple[Any, list[Any]]:
    """cl-run's strategy with all its plugins, as it assembles them, and the test experiences; nothing is trained."""
    from cl_runner.assembly import build_strategy
    from cl_runner.backbones.backbone import classifier_name
    from cl_runner.benchmarks.avalanche_view import avalanche_benchmark
    from cl_runner.benchmarks.store import ImageStore, Part
    from cl_runner.benchmarks.stream import Task, TaskStream
    from cl_runner.config.checks import build, settle
    from cl_runner.config.compose import compose
    from cl_runner.modalities import modality_of
    from cl_runner.stage import assemble
    from cl_runner.training.task_aware import TaskAwareNetwork

    owners = np.arange(len(images)) * n_tasks // len(images)
    store = ImageStore(images=images, labels=labels, tasks=owners, mean=MEAN, std=STD)
    classes, names = tuple(range(CLASSES)), tuple(map(str, range(CLASSES)))
    parts = [Part(store, torch.from_numpy(np.flatnonzero(owners == task)), task) for task in range(n_tasks)]
    made = [
        Task(part.task, f"task {part.task}", classes, names, len(part), len(part), part, None, part) for part in parts
    ]
    shape = (3, *images.shape[1:3])
    stream = TaskStream("bench", tuple(made), True, CLASSES, shape, classes, "none", store)
    config = settle(compose([f"trainer.eval_batch_size={BATCH}", "trainer.channels_last=false", *typed]))
    modality = modality_of(config)
    if case is None:
        net = modality.network(stream, task_aware=True)
    else:
        module, adapter = network(case), build(config.adapter)
        head = "per_task" if adapter.per_task else "shared"
        name = classifier_name(module, CLASSES)
        net = TaskAwareNetwork(module, name, task_classes=[classes] * n_tasks, task_labels=True, head=head)
        net.adapter = adapter
        adapter.attach(net)
    recipe, workshop = build_strategy(config, stream, net, modality)
    _, _, strategy = assemble(config, stream, recipe, workshop, Nobody(), None, modality)
    for task in range(n_tasks):
        net.begin_task([task])
        net.end_task()
    return strategy, list(avalanche_benchmark(stream).test_stream)


def stock_avalanche(images: np.ndarray, labels: np.ndarray, case: dict[str, Any]) -> Way:
    from avalanche.benchmarks import nc_benchmark
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    dataset = per_sample_dataset(images, labels, False)
    benchmark = nc_benchmark(dataset, dataset, n_experiences=1, task_labels=False, seed=0)
    model = network(case)
    strategy = Naive(
        model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.01), criterion=nn.CrossEntropyLoss(),
        eval_mb_size=BATCH, evaluator=EvaluationPlugin(),
    )  # fmt: skip
    return lambda: strategy.eval(benchmark.test_stream)


def plain(images: np.ndarray, labels: np.ndarray, model: nn.Module) -> Way:
    """The evaluation loop of research code."""
    loader = torch.utils.data.DataLoader(per_sample_dataset(images, labels, False), batch_size=BATCH)

    def run() -> float:
        right = 0
        with torch.no_grad():
            for x, y in loader:
                right += int((model(x).argmax(1) == y).sum().item())
        return right / len(images)

    return run


@contextmanager
def never_merged() -> Iterator[None]:
    from cl_runner.training.evaluating import Merging

    with mock.patch.object(Merging, "of_task", lambda self, batches: None):
        yield


CASES: dict[str, Callable[[argparse.Namespace], tuple[int, dict[str, Way]]]] = {
    "small": small, "resnet20": resnet20, "tasks": tasks, "texts": texts,
}  # fmt: skip


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Times the ways of a case in turn."""
    count, ways = CASES[name](options)
    for way in ways.values():
        way()  # warm-up
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(options.repeats):
        for way, run in ways.items():
            started = time.perf_counter()
            run()
            rates[way].append(count / (time.perf_counter() - started))
    print(f"\n{name}: {count} samples, batches of {BATCH if name in ('small', 'resnet20') else 'a task'}, "
          f"n = {options.repeats}")  # fmt: skip
    found: dict[str, Any] = {"samples": count}
    for way, values in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], values, strict=True))
        found[way] = statistics.median(values)
        found[f"{way}_spread"] = [min(values), max(values)]
        found[f"ours_over_{way}"] = ratio
        against = "" if way == "ours" else f"ours is {ratio:.2f} times as fast"
        print(f"  {way:16s} {found[way]:11,.1f} samples/s   ({min(values):,.1f} to {max(values):,.1f})  {against}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--images", type=int, default=4096, help="of the small case; resnet20: a quarter")
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats of each, interleaved, after one warm-up")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--case", choices=(*CASES, "all"), default="all")
    options = parser.parse_args()
    every_case(options, CASES, measure)


if __name__ == "__main__":
    main()
