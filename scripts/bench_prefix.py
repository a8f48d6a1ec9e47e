"""Training with and without the cache of what frozen layers give, of one task of a stream, at equal results.

    python scripts/bench_prefix.py [--json FILE] [--case CASE] [--images 384] [--epochs 20] [--repeats 3] [--threads 2]

Random 32x32 images, two tasks, batch 64, no augmentation. Each way learns task 1 once, for one epoch; then task 2 again
and again from there, cached and uncached in turn, so that a machine that slows down slows both. A repeat is a whole
task: the search for the cut, computing the features once, and all epochs. Printed: median images/s, spread (min to
max), the median of the ratios within each repeat, what the search and the filling take, and whether all losses and
weights are the same bits.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_loop import every_case
from omegaconf import OmegaConf
from torch import nn

CLASSES, BATCH = 10, 64
CASES: dict[str, tuple[str, str]] = {  # backbone, what else is typed
    "senacnn": ("resnet20", "adapter=senacnn adapter.cut=0.75"),
    "senacnn_half": ("resnet20", "adapter=senacnn"),
    "lora_last_half": ("resnet20", "adapter=lora adapter.rank=4 adapter.sharing=shared placement=last_half"),
    "convlora_last_half": ("plain", "adapter=convlora adapter.rank=4 placement=last_half"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--case", choices=(*CASES, "all"), default="all")
    parser.add_argument("--images", type=int, default=384, help="training images of a task")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    every_case(options, CASES, measure)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Times both ways in turn."""
    ways = {"uncached": Way(name, options, "false"), "cached": Way(name, options, "true")}
    rates: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways.values():
        way.second_task()  # warm-up
    for _ in range(options.repeats):
        for title, way in ways.items():
            seconds = way.second_task()
            rates[title].append(options.images * options.epochs / seconds)
    plain, cached = ways["uncached"], ways["cached"]
    result: dict[str, Any] = {
        "images_per_second": {way: statistics.median(values) for way, values in rates.items()},
        "spread": {way: [min(values), max(values)] for way, values in rates.items()},
        "ratio": statistics.median(a / b for a, b in zip(rates["cached"], rates["uncached"], strict=True)),
        "seconds_search": statistics.median(cached.searching[1:]),
        "seconds_fill": statistics.median(cached.filling[1:]),
        "same_losses": plain.losses == cached.losses,
        "same_weights": all(torch.equal(plain.weights[key], cached.weights[key]) for key in plain.weights),
        "cut": cached.cut,
        "cache_bytes": cached.nbytes,
        "settings": {"images": options.images, "epochs": options.epochs, "batch": BATCH, "n": options.repeats},
    }
    report(name, result)
    return result


def report(name: str, result: dict[str, Any]) -> None:
    settings = result["settings"]
    print(f"\n{name}: {settings['images']} images x {settings['epochs']} epochs, batch {BATCH}, n = {settings['n']}")
    for way in ("uncached", "cached"):
        low, high = result["spread"][way]
        print(f"  {way:10s} {result['images_per_second'][way]:10,.0f} images/s   ({low:,.0f} to {high:,.0f})")
    print(f"  cached / uncached   {result['ratio']:.2f}, the search and the filling counted")
    print(f"  search {result['seconds_search']:.2f} s, filling {result['seconds_fill']:.2f} s, once a task")
    print(f"  cut after {result['cut']}, {result['cache_bytes'] / 2**20:.1f} MiB")
    print(f"  same losses: {result['same_losses']}, same weights: {result['same_weights']}")


class Way:
    """cl-run's strategy on two tasks of random images, of which the second is trained again and again.

    Attributes:
        losses: of every step of the last time.
        weights: after the last time.
        searching, filling: seconds of every time.
    """

    def __init__(self, name: str, options: argparse.Namespace, cache: str) -> None:
        from cl_runner.assembly import build_strategy, choose_device, prepare_torch
        from cl_runner.benchmarks.avalanche_view import avalanche_benchmark
        from cl_runner.config.compose import compose
        from cl_runner.stage import assemble
        from cl_runner.training import features, kept

        backbone, typed = CASES[name]
        config = compose(
            [
                "backbone=resnet20", *typed.split(), "optimizer=sgd", "optimizer.lr=0.01", "seed=0",
                f"trainer.epochs={options.epochs}", f"trainer.batch_size={BATCH}", "trainer.log_every=1",
                f"trainer.prefix_cache={cache}",
                f"trainer.threads={options.threads}", f"trainer.device={options.device}",
            ]
        )  # fmt: skip
        prepare_torch(config)
        self.stream = stream(options.images)
        self.network = network(config, self.stream, backbone)
        device = choose_device(options.device)
        self.stream.store.to(device)
        self.network.to(device)
        recipe, workshop = build_strategy(config, self.stream, self.network)
        self.losses: list[float] = []
        _, _, self.strategy = assemble(config, self.stream, recipe, workshop, self)
        self.tasks = list(avalanche_benchmark(self.stream).train_stream)
        self.searching: list[float] = []
        self.filling: list[float] = []
        self.cut, self.nbytes = "", 0
        self._watch(features, kept)
        self.strategy.train_epochs = 1
        self.strategy.train(self.tasks[0], eval_streams=[])
        self.strategy.train_epochs = options.epochs
        self.state = copy.deepcopy(self.network), self.strategy.lane.generator.get_state()

    def second_task(self) -> float:
        """Seconds of task 2, from the network as task 1 left it."""
        network, order = self.state
        fresh = copy.deepcopy(network)
        self._put(fresh)
        self.strategy.lane.generator.set_state(order)
        self.losses.clear()
        torch.manual_seed(1)
        self._searched = self._filled = 0.0
        started = time.perf_counter()
        self.strategy.train(self.tasks[1], eval_streams=[])
        self._wait()
        seconds = time.perf_counter() - started
        self.weights = {key: item.detach().cpu() for key, item in fresh.state_dict().items()}
        self.searching.append(self._searched)
        self.filling.append(self._filled)
        return seconds

    def _put(self, network: nn.Module) -> None:
        """Gives everyone who has the network this one."""
        from cl_runner.training.plugin import AdapterPlugin

        strategy = self.strategy
        strategy.model = network
        strategy.clock.train_exp_counter = 1
        for plugin in strategy.plugins:
            if isinstance(plugin, AdapterPlugin):
                plugin.network = network
        if strategy.bank is not None:
            strategy.bank.network = network

    def _watch(self, features: Any, kept: Any) -> None:
        self._searched = self._filled = 0.0
        find, fill = features.find_cut, kept.Table._fill

        def searched(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            found = find(*args, **kwargs)
            self._wait()
            self._searched += time.perf_counter() - started
            self.cut = found.name if found is not None else "nothing"
            return found

        def filled(table: Any) -> None:
            started = time.perf_counter()
            fill(table)
            self._wait()
            self._filled += time.perf_counter() - started
            self.nbytes = table.nbytes

        features.find_cut, kept.Table._fill = searched, filled

    def _wait(self) -> None:
        if self.strategy.lane.store.device.type == "cuda":
            torch.cuda.synchronize()

    def steps(self, task: int, epoch: int, losses: Any) -> None:
        self.losses += [loss for _, loss in losses]

    def task_started(self, *values: Any) -> None: ...

    def batch(self, n_images: int) -> None: ...

    def epoch_finished(self, *values: Any, **named: Any) -> None: ...


def stream(n_images: int) -> Any:
    """Two tasks of random images, of half the classes each."""
    from cl_runner.benchmarks.store import ImageStore, Part
    from cl_runner.benchmarks.stream import Task, TaskStream

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (2 * n_images, 32, 32, 3), dtype=np.uint8)
    owners = np.repeat([0, 1], n_images)
    labels = generator.integers(0, CLASSES // 2, 2 * n_images) + owners * (CLASSES // 2)
    store = ImageStore(images=images, labels=labels, tasks=owners, mean=(0.5,) * 3, std=(0.25,) * 3)
    tasks = []
    for task in range(2):
        own = tuple(range(task * CLASSES // 2, (task + 1) * CLASSES // 2))
        part = Part(store, torch.arange(n_images) + task * n_images, task)
        words = tuple(map(str, own))
        tasks.append(Task(task, f"task_{task + 1}", own, words, n_images, n_images, part, None, part))
    return TaskStream("bench", tuple(tasks), True, CLASSES, (3, 32, 32), tuple(range(CLASSES)), "none", store)


def network(config: Any, tasks: Any, backbone: str) -> Any:
    """The network that `cl-run` would build, or six convolutions with that adapter."""
    from cl_runner.adapters import Placement
    from cl_runner.config.checks import build
    from cl_runner.modalities.images import build_network
    from cl_runner.training.task_aware import TaskAwareNetwork

    if backbone != "plain":
        return build_network(OmegaConf.create(config), tasks, network_class=TaskAwareNetwork)
    classes = [task.classes for task in tasks.tasks]
    net = TaskAwareNetwork(plain(), "classifier", task_classes=classes, task_labels=True, head="per_task")
    net.adapter = build(config.adapter)
    net.adapter.attach(net, Placement(**OmegaConf.to_container(config.placement)))
    return net


def plain() -> nn.Sequential:
    """Pairs of convolutions at 32x32, 16x16 and 8x8, without BatchNorm, of which ConvLoRA keeps a copy a task."""
    parts, channels = OrderedDict[str, nn.Module](), 3
    for stage, width in enumerate((32, 64, 128), start=1):
        for place in "ab":
            parts[f"conv{stage}{place}"] = nn.Conv2d(channels, width, 3, padding=1)
            parts[f"relu{stage}{place}"] = nn.ReLU(inplace=True)
            channels = width
        parts[f"pool{stage}"] = nn.AvgPool2d(2)
    parts |= {"flatten": nn.Flatten(), "classifier": nn.Linear(128 * 16, CLASSES)}
    return nn.Sequential(parts)


if __name__ == "__main__":
    main()
