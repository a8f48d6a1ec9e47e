"""Training throughput of LoRA on CLIP's vision tower: a plain PyTorch loop, cl-run, and the computation alone.

    python scripts/bench_clip.py [--json FILE] [--device cuda] [--network ViT-B-16] [--batch 64] [--steps 100]

All three train the same network (random weights, text tower frozen, LoRA on q, k, v, o and both MLP layers of every
vision block) on the same random images with the same optimiser, in bfloat16. `plain` takes images one by one through
open_clip's transform in a DataLoader, encodes the prompts at every step and reads the loss at every step, as research
code does; `ours` is cl-run's strategy on its training lane; `compute_only` runs the step on one batch made beforehand.
The repeats are interleaved. Printed: median images/s, spread, ratios, and the share of the device's peak that the
arithmetic (counted on a step, backward included) reaches.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from cl_runner.adapters import LoRA
from cl_runner.adapters.placement import Placement
from cl_runner.assembly import build_strategy
from cl_runner.backbones.network import Network
from cl_runner.backbones.open_clip import OpenCLIP
from cl_runner.benchmarks.avalanche_view import avalanche_benchmark
from cl_runner.benchmarks.store import ImageStore, Part
from cl_runner.benchmarks.stream import Task, TaskStream
from cl_runner.config.compose import compose
from cl_runner.stage import assemble
from cl_runner.training.losses import ContrastiveLoss

WAYS = ("plain", "ours", "compute_only")
ROLES = ["q", "k", "v", "o", "mlp_in", "mlp_out"]
PEAKS = {"H200": 790.0, "H100": 790.0}  # TFLOP/s, dense bfloat16, as reached; others: give --peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--network", default="ViT-B-16")
    parser.add_argument("--layers", type=int, help="blocks, in place of the network's")
    parser.add_argument("--width", type=int, help="width, in place of the network's")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=100, help="optimiser steps of one repeat")
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats of each, after one warm-up")
    parser.add_argument("--workers", type=int, default=8, help="processes of the plain loop's DataLoader")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the device in bfloat16")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    figures = {"machine": machine(options), "settings": {key: str(value) for key, value in vars(options).items()}}
    print(json.dumps(figures["machine"], indent=1))
    figures |= measure(options)
    report(figures, options)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Times the three ways in turn."""
    count = options.batch * min(options.steps, 32)
    images = np.random.default_rng(0).integers(0, 256, (count, options.image_size, options.image_size, 3), np.uint8)
    labels = np.random.default_rng(1).integers(0, options.classes, count)
    makers = {"plain": plain, "ours": ours, "compute_only": compute_only}
    runs = {way: makers[way](images, labels, options) for way in WAYS}
    for run in runs.values():
        run()
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way, run in runs.items():
            synchronise(options.device)
            started = time.perf_counter()
            run()
            synchronise(options.device)
            rates[way].append(options.steps * options.batch / (time.perf_counter() - started))
    result: dict[str, Any] = {way: statistics.median(values) for way, values in rates.items()}
    result["spread"] = {way: [min(values), max(values)] for way, values in rates.items()}
    result["ratios"] = {
        "ours_over_plain": ratio(rates, "ours", "plain"),
        "time_over_compute_only": ratio(rates, "compute_only", "ours"),
    }
    result["flops_per_image"] = step_flops(options) / options.batch
    return result


def network(options: argparse.Namespace) -> Network:
    """The network of all three ways."""
    torch.manual_seed(0)
    recipe = OpenCLIP(name=options.network, layers=options.layers, width=options.width, frozen=["text"])
    backbone = recipe.build(in_channels=3, image_size=options.image_size, n_classes=options.classes)
    backbone.head.name_classes([[f"a photo of the thing number {label}."] for label in range(options.classes)])
    built = Network(
        backbone,
        "head",
        task_classes=[range(options.classes)],
        task_labels=False,
        pretrained=True,
        precision="bfloat16",
    )
    built.adapter = LoRA(rank=options.rank, base="frozen", sharing="shared")
    built.adapter.attach(built, Placement(roles=ROLES, towers=["vision"]))
    return built.to(options.device)


def trained(built: Network) -> list[torch.nn.Parameter]:
    return [item for item in built.parameters() if item.requires_grad]


def plain(images: np.ndarray, labels: np.ndarray, options: argparse.Namespace) -> Callable[[], None]:
    """A loop in the style of research code."""
    from open_clip import image_transform
    from PIL import Image

    transform = image_transform(options.image_size, is_train=False)

    class Images(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return transform(Image.fromarray(images[index])), int(labels[index])

    built = network(options)
    built.begin_task([0])
    loader = torch.utils.data.DataLoader(
        Images(), options.batch, shuffle=True, drop_last=True, num_workers=options.workers, pin_memory=True,
        persistent_workers=options.workers > 0,
    )  # fmt: skip
    optimizer = torch.optim.AdamW(trained(built), lr=5e-4)
    loss_of, running = ContrastiveLoss(), 0.0

    def run() -> None:
        nonlocal running
        built.train()
        done = 0
        while done < options.steps:
            for x, y in loader:
                built.head.forget()  # the prompts are encoded at every step
                optimizer.zero_grad()
                loss = loss_of(built(x.to(options.device)), y.to(options.device))
                loss.backward()
                optimizer.step()
                running += loss.item()
                done += 1
                if done == options.steps:
                    return

    return run


def ours(images: np.ndarray, labels: np.ndarray, options: argparse.Namespace) -> Callable[[], None]:
    """cl-run's strategy with all its plugins and its lane, as `cl-run` assembles them, recording into nowhere."""
    built = network(options)
    view = built.backbone.view
    store = ImageStore(images=images, labels=labels, tasks=np.zeros_like(labels), mean=view.mean, std=view.std)
    part = Part(store, torch.arange(len(images)), 0)
    names = tuple(map(str, range(options.classes)))
    task = Task(0, "bench", tuple(range(options.classes)), names, len(images), len(images), part, None, part)
    shape = (3, options.image_size, options.image_size)
    stream = TaskStream("bench", (task,), False, options.classes, shape, tuple(range(options.classes)), "none", store)
    config = compose(
        [
            "adapter=none",
            "optimizer=adamw",
            "optimizer.lr=5e-4",
            f"trainer.iterations={options.steps}",
            f"trainer.batch_size={options.batch}",
            "trainer.precision=bfloat16",
        ]
    )
    store.to(torch.device(options.device))
    recipe, workshop = build_strategy(config, stream, built)
    _, _, strategy = assemble(config, stream, recipe, workshop, Nobody())
    experience = avalanche_benchmark(stream).train_stream[0]
    return lambda: strategy.train(experience, eval_streams=[]) and None


class Nobody:
    """A listener that is told everything and keeps nothing."""

    def task_started(self, *values: Any) -> None: ...

    def batch(self, n_images: int) -> None: ...

    def epoch_finished(self, *values: Any, **named: Any) -> None: ...


def compute_only(images: np.ndarray, labels: np.ndarray, options: argparse.Namespace) -> Callable[[], None]:
    """Forward, loss, backward and update on one float batch made beforehand."""
    step = stepper(options)

    def run() -> None:
        for _ in range(options.steps):
            step()

    return run


def stepper(options: argparse.Namespace) -> Callable[[], None]:
    """One optimiser step on a batch of noise."""
    built = network(options)
    built.begin_task([0])
    built.train()
    optimizer = torch.optim.AdamW(trained(built), lr=5e-4, fused=True)
    x = torch.randn(options.batch, 3, options.image_size, options.image_size, device=options.device)
    y = torch.arange(options.batch, device=options.device) % options.classes
    loss_of = ContrastiveLoss()

    def step() -> None:
        optimizer.zero_grad()
        loss_of(built(x), y).backward()
        optimizer.step()

    return step


def step_flops(options: argparse.Namespace) -> int:
    """Floating-point operations of one step: forward and the backward that is really done."""
    step = stepper(options)
    step()  # the prompts are encoded here
    with FlopCounterMode(display=False) as counter:
        step()
    return int(counter.get_total_flops())


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def ratio(rates: dict[str, list[float]], above: str, below: str) -> float:
    """Median of the ratios within each repeat."""
    return statistics.median(a / b for a, b in zip(rates[above], rates[below], strict=True))


def report(figures: dict[str, Any], options: argparse.Namespace) -> None:
    repeats = f"n = {options.repeats} x {options.steps} steps"
    print(f"\n{options.network}, LoRA r = {options.rank}, batch {options.batch}, {repeats}")
    for way in WAYS:
        low, high = figures["spread"][way]
        print(f"  {way:14s} {figures[way]:10,.1f} images/s   ({low:,.1f} to {high:,.1f})")
    print(f"  ours / plain loop           {figures['ratios']['ours_over_plain']:.2f}x faster")
    print(f"  ours / compute-only time    {figures['ratios']['time_over_compute_only']:.2f}")
    reached = figures["flops_per_image"] * figures["ours"] / 1e12
    print(f"  arithmetic                  {figures['flops_per_image'] / 1e9:.1f} GFLOP an image, {reached:.3f} TFLOP/s")
    name = figures["machine"]["device"]
    peak = options.peak or next((value for key, value in PEAKS.items() if key in name), None)
    if peak is not None:
        print(f"  share of {peak:,.0f} TFLOP/s       {reached / peak:.1%}")


def machine(options: argparse.Namespace) -> dict[str, Any]:
    names = ("torch", "torchvision", "avalanche-lib", "open_clip_torch", "numpy")
    device = torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.processor() or "CPU"
    versions = {name: metadata.version(name) for name in names}
    return {"device": device, "threads": torch.get_num_threads(), "python": platform.python_version(), **versions}


if __name__ == "__main__":
    main()
