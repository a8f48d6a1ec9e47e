"""The whole published ConvLoRA schedule on data of CIFAR-100's shape: seconds, images/s, and the limit by arithmetic.

    python scripts/bench_stream.py --device cuda                      # float32
    python scripts/bench_stream.py --device cuda --fastest            # channels-last, bfloat16
    python scripts/bench_stream.py --device cuda --fastest --batch 512
    python scripts/bench_stream.py --device cpu --classes 4 --tasks 2 --epochs 2 --per-class 32 --backbone resnet20

VGG-19 with BatchNorm, ConvLoRA of rank 9 over a frozen base, batch 64, 10 tasks of 10 classes with 500 training and 100
test images each, 486 epochs in all, every task evaluated after every task. Images are noise and weights are drawn: the
accuracies mean nothing, the work is the same. A run as `cl-run` makes it, with its folder, log and checkpoints.

The limit is 3 forward passes of arithmetic an image (one forward, two backward) at the device's peak.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cl_runner.benchmarks.classes import ClassSplit
from cl_runner.benchmarks.sources.source import Facts, ImageData, Source

EPOCHS = 486  # of the published schedule, over its ten tasks
PEAK = 790e12  # FLOP/s of an H200, dense bfloat16, as measured on one


class Noise(Source):
    """Random images of CIFAR's shape."""

    name, size, licence, origin = "noise", "none", "none", "random numbers"

    def __init__(self, n_classes: int, per_class: int) -> None:
        self.n_classes, self.per_class = n_classes, (per_class, max(1, per_class // 5))

    def facts(self) -> Facts:
        """As of CIFAR-100."""
        n_train, n_test = (self.n_classes * count for count in self.per_class)
        return Facts(self.n_classes, (3, 32, 32), n_train, n_test, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))

    def find(self) -> str:
        """Nowhere in particular."""
        return "noise"

    def verify(self, progress: Any = None) -> str:
        """Always there."""
        return "noise"

    def load(self, progress: Any = None) -> ImageData:
        """Draws the images."""
        generator = np.random.default_rng(0)
        parts = []
        for count in self.per_class:
            labels = np.tile(np.arange(self.n_classes), count)
            parts += [generator.integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8), labels]
        return ImageData(*parts, tuple(f"class {label}" for label in range(self.n_classes)))


class NoiseSplit(ClassSplit):
    """A stream of tasks over them."""

    name = "noise"

    def __init__(self, *, n_classes: int = 100, noise_per_class: int = 500, **options: Any) -> None:
        super().__init__(**options)
        self._noise = Noise(n_classes, noise_per_class)

    def source(self, root: Path) -> Source:
        """The random images."""
        return self._noise


def main() -> None:
    """Runs the schedule and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--fastest", action="store_true", help="channels-last and bfloat16")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--per-class", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of all tasks together")
    parser.add_argument("--backbone", default="vgg19_bn")
    parser.add_argument("--rank", type=int, default=9)
    parser.add_argument("--peak", type=float, default=PEAK, help="FLOP/s of the device")
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", help="further overrides of cl-run")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        figures = measure(options, Path(place))
    sys.stdout.write(json.dumps(figures, indent=1) + "\n")
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def request(options: argparse.Namespace, place: Path) -> Any:
    """The composed configuration."""
    from cl_runner.config.compose import compose

    sys.modules["bench_stream"] = sys.modules[__name__]
    each, more = divmod(options.epochs, options.tasks)
    epochs = [each + (task < more) for task in range(options.tasks)]
    config = compose(
        [
            f"backbone={options.backbone}",
            "adapter=convlora",
            f"adapter.rank={options.rank}",
            "adapter.base=frozen",
            "optimizer=adam",
            "optimizer.lr=1e-5",
            f"trainer.device={options.device}",
            f"trainer.batch_size={options.batch}",
            f"trainer.task_epochs={epochs}",
            *(["trainer.precision=bfloat16", "trainer.channels_last=true"] if options.fastest else []),
            f"output_root={place}",
            "report=false",
            *options.overrides,
        ]
    )
    config.benchmark = {
        "_target_": "bench_stream.NoiseSplit",
        "n_tasks": options.tasks,
        "validation_fraction": 0.0,
        "n_classes": options.classes,
        "noise_per_class": options.per_class,
    }
    return config


def measure(options: argparse.Namespace, place: Path) -> dict[str, Any]:
    """Seconds of the whole stream, and what they mean."""
    from cl_runner.runner import run

    began = time.perf_counter()
    result = run(request(options, place), experiment="bench_stream")
    seconds = time.perf_counter() - began
    flops = _flops(options, place)
    images = options.epochs * options.classes // options.tasks * options.per_class
    rate = float(result.summary["train_images_per_second"])
    gpu = torch.cuda.get_device_name() if options.device == "cuda" else platform.processor() or platform.machine()
    return {
        "device": gpu,
        "versions": {name: version(name) for name in ("torch", "torchvision", "avalanche-lib")},
        "setting": {name: value for name, value in vars(options).items() if name != "json"},
        "n": 1,
        "seconds from request to end": seconds,
        "seconds of the run": result.summary["wall_seconds"],
        "training images": images,
        "training images/s": rate,
        "training FLOP": flops * images,
        "FLOP/s": flops * rate,
        "share of peak": flops * rate / options.peak,
        "seconds at peak": flops * images / options.peak,
        "peak memory in bytes": result.summary["peak_memory_bytes"],
    }


def _flops(options: argparse.Namespace, place: Path) -> float:
    """Of training on one image: three forward passes."""
    from omegaconf import OmegaConf

    from cl_runner.runner import run

    planned = run(OmegaConf.merge(request(options, place), {"mode": "plan", "quiet": True}), experiment="bench_stream")
    return 3.0 * float(planned.summary["forward_flops_per_image"])


if __name__ == "__main__":
    main()
