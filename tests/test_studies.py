"""What the methods are for, on digits, over three seeds: small forms of the studies of docs/results.md."""

from __future__ import annotations

import csv
from collections import defaultdict
from statistics import fmean

import pytest
from runs_helpers import small_run

SEEDS = (0, 1, 2)
TRUNCATION = [
    "+experiment=rank_truncation", "trainer.epochs=20", "trainer.threads=1", "backbone.width=16",
    "adapter.eval_ranks=[1,2,3,8]", "optimizer.lr=0.005",
]  # fmt: skip


def curve(folder, *typed: str) -> dict[int, float]:
    """Mean accuracy over tasks and seeds at each rank."""
    found = defaultdict(list)
    for seed in SEEDS:
        result = small_run(folder, *TRUNCATION, f"seed={seed}", *typed, plain=True)
        with (result.folder / "rank_curve.csv").open() as file:
            for row in csv.DictReader(file):
                found[int(row["rank"])].append(float(row["accuracy"]))
    return {rank: fmean(values) for rank, values in found.items()}


@pytest.fixture(scope="module")
def plain_lora(tmp_path_factory):
    return curve(tmp_path_factory.mktemp("lora"), "adapter=lora")


@pytest.mark.parametrize("training", ["ordering", "random_rank"])
def test_cut_to_low_ranks_dylora_is_above_truncated_lora(training, plain_lora, tmp_path):
    dylora = curve(tmp_path, f"adapter.training={training}")
    assert dylora[2] > plain_lora[2] + 0.05
    assert fmean(dylora[rank] for rank in (1, 2, 3)) > fmean(plain_lora[rank] for rank in (1, 2, 3)) + 0.05
    assert dylora[8] - dylora[2] < plain_lora[8] - plain_lora[2]


def test_codyras_weights_drift_less_than_loras_of_the_same_start_rank(tmp_path):
    typed = ["+experiment=rank_placement_probe", "adapter.rank=16", "trainer.threads=1"]
    drift = {
        adapter: [
            small_run(tmp_path, *typed, f"adapter={adapter}", f"seed={seed}", plain=True).summary["drift"]
            for seed in SEEDS
        ]
        for adapter in ("codyra", "lora")
    }
    assert fmean(drift["codyra"]) < 0.95 * fmean(drift["lora"])
