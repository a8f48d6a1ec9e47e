"""Two paths or merged weights: time of a forward and backward pass of one adapted linear layer, and what auto chooses.

    python scripts/bench_compute.py [--device cpu] [--repeats 7] [--json FILE]

Prints hardware, versions, median and spread (25th to 75th percentile) in microseconds for every shape, the ratio of
merged to two paths, and which form the cost model picks.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

from cl_runner.adapters.compute import costs, linear
from cl_runner.adapters.factors import LoRAFactors

SHAPES = [(256, 256, 4), (768, 768, 4), (768, 768, 16), (768, 768, 64), (768, 3072, 16)]  # d_in, d_out, rank
ROWS = (16, 64, 256, 1024, 4096)


def measure(rows: int, d_in: int, d_out: int, rank: int, how: str, device: torch.device, repeats: int) -> list[float]:
    """Seconds of a forward and backward pass, one figure a repeat."""
    torch.manual_seed(0)
    weight, x = torch.randn(d_out, d_in, device=device), torch.randn(rows, d_in, device=device, requires_grad=True)
    factors = LoRAFactors(weight, rank, 1.0)
    gradient = torch.randn(rows, d_out, device=device)
    times = []
    steps = max(3, min(200, int(2e9 / (6 * rows * d_in * d_out))))
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(steps):
            linear(x, weight, None, factors, how).backward(gradient)
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append((time.perf_counter() - started) / steps)
    return times[1:]


def main() -> None:
    """Measures every shape, both forms in turn."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, n = {options.repeats}")
    rows_of = []
    for d_in, d_out, rank in SHAPES:
        for rows in ROWS:
            found = {
                how: measure(rows, d_in, d_out, rank, how, device, options.repeats) for how in ("two_path", "merged")
            }
            middle = {how: statistics.median(times) for how, times in found.items()}
            spread = {how: statistics.quantiles(times, n=4) for how, times in found.items()}
            two_path, merged = costs(rows, d_in, d_out, rank, training=True)
            row = {
                "d_in": d_in, "d_out": d_out, "rank": rank, "rows": rows, **middle,
                "merged / two_path": middle["merged"] / middle["two_path"],
                "auto": "two_path" if two_path <= merged else "merged",
            }  # fmt: skip
            rows_of.append(row)
            text = "  ".join(
                f"{how} {1e6 * middle[how]:8.0f} ({1e6 * spread[how][0]:.0f} to {1e6 * spread[how][2]:.0f})"
                for how in found
            )
            shape = f"{d_in:5d} -> {d_out:5d}  r {rank:3d}  rows {rows:5d}"
            print(f"{shape}  {text}  ratio {row['merged / two_path']:.2f}  {row['auto']}")
    if options.json:
        options.json.write_text(json.dumps(rows_of, indent=1))


if __name__ == "__main__":
    main()
