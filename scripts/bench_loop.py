"""Training throughput of one task: stock Avalanche, a plain PyTorch loop, cl-run, and the computation alone.

    python scripts/bench_loop.py [--json FILE] [--images 4096] [--repeats 5] [--threads 2] [--no-augment]
                                 [--case small | resnet20 | all] [--device cpu]

All train the same network on the same random 32x32 images with the same batch size, epochs and optimiser, in float32.
`stock_avalanche` and `plain` augment each sample with torchvision's transforms, as their users do; `ours` augments on
the training lane and has cl-run's defaults, channels-last for resnet20 on a CPU among them; `compute_only` runs
forward, loss, backward and update on batches made beforehand, in the same memory format as ours; `augment_only` makes
the lane's batches, augmented and normalised, and does nothing with them. `ours_fastest`, on networks of more than two
convolutions, is ours in bfloat16. The ways take turns within every repeat, so that a machine that slows down slows all
of them. Printed: median images/s, spread (min to max), ratios within the repeats.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn

CLASSES = 10
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
CASES: dict[str, dict[str, Any]] = {
    "small": {"backbone": None, "batch": 64, "images": 1.0, "epochs": 2},
    "resnet20": {"backbone": "resnet20", "batch": 64, "images": 0.25, "epochs": 1},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--images", type=int, default=4096, help="training images of the small case; resnet20: a quarter"
    )
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats of each, interleaved, after one warm-up")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--no-augment", action="store_true", help="normalise only")
    parser.add_argument("--case", choices=(*CASES, "all"), default="all")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    every_case(options, CASES, lambda name, options: measure(name, CASES[name], options))


def every_case(
    options: argparse.Namespace, cases: Iterable[str], measure: Callable[[str, argparse.Namespace], dict[str, Any]]
) -> None:
    """Measures the cases that were asked for, on `options.threads` threads, and prints and writes the figures."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    figures: dict[str, Any] = {"machine": machine(options)}
    print(json.dumps(figures["machine"], indent=1))
    for name in cases:
        if options.case in (name, "all"):
            figures[name] = measure(name, options)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def measure(name: str, case: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """Times the four ways in turn and returns images/s with their spread and ratios."""
    n_images = int(options.images * case["images"])
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (n_images, 32, 32, 3), dtype=np.uint8)
    labels = generator.integers(0, CLASSES, n_images)
    augment = not options.no_augment
    device = torch.device(options.device)
    runs: dict[str, Callable[[], None]] = {
        "stock_avalanche": stock_avalanche(case, images, labels, augment, device),
        "plain": plain(case, images, labels, augment, device),
        "ours": ours(case, images, labels, augment, device),
        "compute_only": compute_only(case, images, labels, device),
        "augment_only": augment_only(case, images, labels, augment, device),
    }
    if case["backbone"]:
        runs["ours_fastest"] = ours(case, images, labels, augment, device, fastest=True)
    for run in runs.values():
        run()  # warm-up
    rates: dict[str, list[float]] = {way: [] for way in runs}
    for _ in range(options.repeats):
        for way, run in runs.items():
            started = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            rates[way].append(n_images * case["epochs"] / (time.perf_counter() - started))
    result: dict[str, Any] = {way: statistics.median(values) for way, values in rates.items()}
    result["spread"] = {way: [min(values), max(values)] for way, values in rates.items()}
    result["ratios"] = {
        "ours_over_stock_avalanche": _ratio(rates, "ours", "stock_avalanche"),
        "ours_over_plain": _ratio(rates, "ours", "plain"),
        "time_over_compute_only": _ratio(rates, "compute_only", "ours"),
        "time_over_compute_and_augmentation": statistics.median(
            (1 / a) / (1 / b + 1 / c)
            for a, b, c in zip(rates["ours"], rates["compute_only"], rates["augment_only"], strict=True)
        ),
    }
    if "ours_fastest" in rates:
        result["ratios"]["fastest_over_stock_avalanche"] = _ratio(rates, "ours_fastest", "stock_avalanche")
    result["settings"] = {"images": n_images, "batch": case["batch"], "epochs": case["epochs"], "augment": augment}
    report(name, result, options.repeats)
    return result


def report(name: str, result: dict[str, Any], repeats: int) -> None:
    settings = result["settings"]
    print(
        f"\n{name}: {settings['images']} images x {settings['epochs']} epochs, batch {settings['batch']}, n = {repeats}"
    )
    for way in result["spread"]:
        low, high = result["spread"][way]
        print(f"  {way:16s} {result[way]:10,.0f} images/s   ({low:,.0f} to {high:,.0f})")
    ratios = result["ratios"]
    print(f"  ours / stock Avalanche        {ratios['ours_over_stock_avalanche']:.2f}x faster")
    print(f"  ours / plain loop             {ratios['ours_over_plain']:.2f}x faster")
    print(f"  time, ours / compute only     {ratios['time_over_compute_only']:.3f}")
    print(f"  time, ours / (compute + augmentation) {ratios['time_over_compute_and_augmentation']:.3f}")
    if "fastest_over_stock_avalanche" in ratios:
        print(f"  ours, fastest / stock         {ratios['fastest_over_stock_avalanche']:.2f}x faster")


def _ratio(rates: dict[str, list[float]], above: str, below: str) -> float:
    """Median of the ratios within each repeat."""
    return statistics.median(a / b for a, b in zip(rates[above], rates[below], strict=True))


def network(case: dict[str, Any]) -> nn.Module:
    from cl_runner.config.checks import build
    from cl_runner.config.compose import compose

    torch.manual_seed(0)
    if case["backbone"] is None:
        return two_convolutions()
    node = compose([f"backbone={case['backbone']}"]).backbone
    recipe = OmegaConf.create({key: value for key, value in node.items() if key not in ("head", "head_classes")})
    return build(recipe).build(in_channels=3, image_size=32, n_classes=CLASSES)


def two_convolutions() -> nn.Sequential:
    """The smallest network anyone trains at 32x32: where the data path, not the arithmetic, decides."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 8 * 8, CLASSES),
    )  # fmt: skip


def per_sample_dataset(images: np.ndarray, labels: np.ndarray, augment: bool) -> torch.utils.data.Dataset:
    """What torchvision's CIFAR-10 does: an array, a PIL image per sample, transforms."""
    from PIL import Image
    from torchvision import transforms

    random = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()] if augment else []
    transform = transforms.Compose([*random, transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    class Images(torch.utils.data.Dataset):
        targets = labels.tolist()

        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return transform(Image.fromarray(images[index])), self.targets[index]

    return Images()


def stock_avalanche(
    case: dict[str, Any], images: np.ndarray, labels: np.ndarray, augment: bool, device: torch.device
) -> Callable[[], None]:
    """Avalanche's Naive on an nc_benchmark of one experience, without metrics or loggers."""
    from avalanche.benchmarks import nc_benchmark
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    dataset = per_sample_dataset(images, labels, augment)
    benchmark = nc_benchmark(dataset, dataset, n_experiences=1, task_labels=False, seed=0)
    model = network(case).to(device)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=case["batch"],
        train_epochs=case["epochs"],
        device=device,
        evaluator=EvaluationPlugin(),
    )
    return lambda: strategy.train(benchmark.train_stream[0], eval_streams=[]) and None


def plain(
    case: dict[str, Any], images: np.ndarray, labels: np.ndarray, augment: bool, device: torch.device
) -> Callable[[], None]:
    """A DataLoader loop in the style of research code: per-sample transforms, loss and accuracy read every step."""
    loader = torch.utils.data.DataLoader(
        per_sample_dataset(images, labels, augment), batch_size=case["batch"], shuffle=True
    )
    model = network(case).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    criterion = nn.CrossEntropyLoss()

    def run() -> None:
        model.train()
        for _ in range(case["epochs"]):
            running, correct = 0.0, 0
            for x, y in loader:
                x, y = x.to(device), y.to(device)
                optimizer.zero_grad()
                logits = model(x)
                loss = criterion(logits, y)
                loss.backward()
                optimizer.step()
                running += loss.item()
                correct += int((logits.argmax(1) == y).sum().item())

    return run


def one_task(
    images: np.ndarray, labels: np.ndarray, augment: bool, device: torch.device, batch: int, *settings: str
) -> tuple[Any, Any]:
    """A stream of one task with these images, on the device, and a configuration to train on it."""
    from cl_runner.benchmarks.store import ImageStore, Part
    from cl_runner.benchmarks.stream import Task, TaskStream
    from cl_runner.config.compose import compose

    store = ImageStore(images=images, labels=labels, tasks=np.zeros_like(labels), mean=MEAN, std=STD).to(device)
    part = Part(store, torch.arange(len(images)), 0)
    task = Task(0, "task_1", tuple(range(CLASSES)), tuple("0123456789"), len(images), len(images), part, None, part)
    name = "crop_flip" if augment else "none"
    stream = TaskStream("bench", (task,), False, CLASSES, (3, 32, 32), tuple(range(CLASSES)), name, store)
    typed = [
        "adapter=none",
        "optimizer=sgd",
        "optimizer.lr=0.01",
        f"trainer.batch_size={batch}",
        f"trainer.device={device.type}",
        *settings,
    ]
    return stream, compose(typed)


def ours(
    case: dict[str, Any],
    images: np.ndarray,
    labels: np.ndarray,
    augment: bool,
    device: torch.device,
    fastest: bool = False,
) -> Callable[[], None]:
    """cl-run's strategy with all its plugins and its lane, as `cl-run` assembles them, recording into nowhere."""
    from cl_runner.adapters import NoAdapter
    from cl_runner.assembly import build_strategy
    from cl_runner.backbones.backbone import classifier_name
    from cl_runner.backbones.network import Network
    from cl_runner.benchmarks.avalanche_view import avalanche_benchmark
    from cl_runner.stage import assemble
    from cl_runner.training.capture import step_for

    settings = [f"trainer.epochs={case['epochs']}"]
    if fastest:
        settings += ["trainer.channels_last=true", "trainer.precision=bfloat16"]
    stream, config = one_task(images, labels, augment, device, case["batch"], *settings)
    module = network(case)
    wrapped = Network(
        module,
        classifier_name(module, CLASSES),
        task_classes=[range(CLASSES)],
        task_labels=False,
        precision=config.trainer.precision,
    )
    wrapped.adapter = NoAdapter()
    wrapped.adapter.attach(wrapped)
    recipe, workshop = build_strategy(config, stream, wrapped)
    wrapped.to(device).to(memory_format=torch.channels_last if workshop.channels_last else torch.preserve_format)
    _, _, strategy = assemble(config, stream, recipe, workshop, Nobody())
    strategy.step = step_for("auto", device, print)
    experience = avalanche_benchmark(stream).train_stream[0]
    return lambda: strategy.train(experience, eval_streams=[]) and None


def augment_only(
    case: dict[str, Any], images: np.ndarray, labels: np.ndarray, augment: bool, device: torch.device
) -> Callable[[], None]:
    """The lane's batches: shuffled, augmented, normalised, on the device."""
    from cl_runner.modalities import modality_of

    stream, config = one_task(images, labels, augment, device, case["batch"])
    lane = modality_of(config).lane(stream)
    ids = torch.arange(len(images))

    def run() -> None:
        for _ in range(case["epochs"]):
            for _batch in lane.training(ids, case["batch"]):
                pass

    return run


class Nobody:
    """A listener that is told everything and keeps nothing."""

    def task_started(self, *values: Any) -> None: ...

    def batch(self, n_images: int) -> None: ...

    def epoch_finished(self, *values: Any, **named: Any) -> None: ...


def compute_only(
    case: dict[str, Any], images: np.ndarray, labels: np.ndarray, device: torch.device
) -> Callable[[], None]:
    """Forward, loss, backward and update on one float batch made beforehand."""
    last = device.type == "cpu" and case["backbone"] is not None  # as ours has it
    memory_format = torch.channels_last if last else torch.contiguous_format
    model = network(case).to(device).to(memory_format=memory_format)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True)
    batch = case["batch"]
    x = torch.from_numpy(images[:batch].transpose(0, 3, 1, 2).copy()).float().div(255).sub(0.5).div(0.25).to(device)
    x, y = x.contiguous(memory_format=memory_format), torch.from_numpy(labels[:batch]).to(device)
    steps = -(-len(images) // batch) * case["epochs"]

    def run() -> None:
        model.train()
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()

    return run


def machine(options: argparse.Namespace) -> dict[str, Any]:
    from importlib import metadata

    cpu = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    versions = {
        name: metadata.version(name) for name in ("torch", "torchvision", "avalanche-lib", "pytorchcv", "numpy")
    }
    device = getattr(options, "device", "cpu")
    if device == "cuda":
        cpu += f", {torch.cuda.get_device_name()}"
    return {
        "cpu": cpu,
        "device": device,
        "threads": options.threads,
        "python": platform.python_version(),
        **versions,
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
