"""Golden parameter counts, from `attach` on the real network and through `cl-run mode=plan`; and the plan's FLOPs."""

from __future__ import annotations

import csv
from pathlib import Path

import builders  # noqa: F401  (one thread)
import pytest
import torch
from torch import nn
from torchvision.models import vgg19_bn

import cl_runner
from cl_runner.adapters import ConvLoRA, Placement
from cl_runner.backbones.network import Network
from cl_runner.cli import execute
from cl_runner.config.compose import compose
from cl_runner.errors import RequestError
from cl_runner.training.account import layer_rows, parameter_row

# ConvLoRA on the 16 convolutions of vgg19_bn; published where the paper's table has the rank, else r * 3^2 * 10,499
PUBLISHED = {1: 94_491, 3: 283_473, 6: 566_946, 9: 850_419, 12: 1_133_892, 24: 2_267_784}
UNLISTED = {rank: rank * 9 * 10_499 for rank in (2, 5, 8, 64)}
NORMALISATION = 11_008  # 2 * 5,504 channels
HEAD = 819_400  # 4096 * 200 + 200
LINEARS_30 = 30 * (25_088 + 4_096) + 30 * (4_096 + 4_096)  # LoRA of rank 30 on the first two linear layers
BASE = 143_678_248 - 4_097_000  # torchvision's published count of vgg19_bn, without its 1000-class classifier

VGG = [
    "mode=plan", "benchmark=split_cub200", "backbone=vgg19_bn", "backbone.pretrained=true", "adapter=convlora",
    "adapter.rank=9", "benchmark.task_labels=true",
]  # fmt: skip
DIGITS = ["mode=plan", "benchmark=split_digits", "backbone=small_cnn", "adapter=convlora", "adapter.rank=4"]

# FullyLoRA-1, -2, -3: adapters on the linear layers, all with convlora on the convolutions
SETUPS = {
    "FullyLoRA-1": ({"kinds": ["conv"]}, 819_400),
    "FullyLoRA-2": ({"head": True}, 2_069_560),
    "FullyLoRA-3": ({}, 1_940_680),
}


def on_meta(placement: Placement | str, **options) -> Network:
    """vgg19_bn with 200 classes in two tasks, without memory for its weights."""
    with torch.device("meta"):
        classes = [list(range(100)), list(range(100, 200))]
        net = Network(
            vgg19_bn(num_classes=200), "classifier.6", task_classes=classes, task_labels=True, head="per_task"
        )
        net.adapter = ConvLoRA(base="frozen", **options)
        net.adapter.attach(net, placement)
        net.begin_task([0])
    return net


def plan(folder: Path, *overrides: str) -> tuple[list[dict], list[dict], dict]:
    """Plans in process: the rows of parameters.csv, of layers.csv, and the summary; no data is there."""
    typed = [*overrides, f"output_root={folder}", f"data_root={folder / 'nowhere'}", "quiet=true"]
    result = cl_runner.run(compose(typed), overrides=typed)
    assert not (folder / "nowhere").exists()
    return read(result.folder / "parameters.csv"), read(result.folder / "layers.csv"), result.summary


def read(path: Path) -> list[dict]:
    """A table with its whole numbers as int."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: int(value) if value.isdigit() else value for name, value in row.items()} for row in rows]


def check_sums(parameters: list[dict], layers: list[dict]) -> None:
    """parameters.csv is the sum of layers.csv and the rest."""
    for row in parameters:
        own = [layer["parameters"] for layer in layers if layer["task"] <= row["task"]]
        assert row["adapter"] == sum(own)
        assert row["stored"] == row["base"] + row["adapter"] + row["normalisation"] + row["head"]
        assert float(row["growth"]) == pytest.approx(row["stored"] / row["base"] - 1)


@pytest.mark.parametrize(("rank", "expected"), [*PUBLISHED.items(), *UNLISTED.items()])
def test_convlora_on_vgg19_bn_by_attach(rank, expected):
    net = on_meta("convs", rank=rank)
    row = parameter_row(net, 1)
    assert row["adapter"] == expected
    assert row["trainable"] == expected + NORMALISATION + HEAD
    assert row["normalisation"] == NORMALISATION
    assert row["buffers"] == NORMALISATION  # a mean and a variance for every weight and bias
    assert (row["base"], row["inference"]) == (BASE, BASE + HEAD)
    layers = layer_rows(net, 0, with_norms=False)
    assert len(layers) == 16
    assert sum(layer["parameters"] for layer in layers) == expected
    for layer in layers:
        c_out, c_in, high, wide = layer["shape"]
        assert layer["parameters"] == rank * high * wide * (c_in + c_out)


@pytest.mark.parametrize("rank", [*PUBLISHED, 5])
def test_convlora_on_vgg19_bn_by_plan(tmp_path, rank):
    parameters, layers, summary = plan(tmp_path, *VGG, "placement=convs", f"adapter.rank={rank}")
    expected = {**PUBLISHED, **UNLISTED}[rank]
    assert len(parameters) == 5
    for task, row in enumerate(parameters, start=1):
        assert (row["task"], row["adapter"], row["base"]) == (task, task * expected, BASE)
        assert (row["normalisation"], row["head"]) == (task * NORMALISATION, task * HEAD)
        assert (row["trainable"], row["inference"]) == (expected + NORMALISATION + HEAD, BASE + HEAD)
    assert summary["parameter_growth"] == pytest.approx(5 * (expected + NORMALISATION + HEAD) / BASE)
    assert {layer["rank"] for layer in layers} == {rank}
    check_sums(parameters, layers)


@pytest.mark.parametrize("setup", SETUPS)
def test_linear_layers_of_the_published_setups(tmp_path, setup):
    options, expected = SETUPS[setup]
    net = on_meta(Placement(**options), rank=9, linear_rank=30, full=["head"])
    linear = sum(row["parameters"] for row in layer_rows(net, 0, with_norms=False) if row["kind"] == "linear")
    assert linear + parameter_row(net, 1)["head"] == expected

    placement = "placement=convs" if setup == "FullyLoRA-1" else "placement=all"
    asked = ["placement.head=true"] if "head" in options else []
    asked += ["adapter.linear_rank=30"] if setup != "FullyLoRA-1" else []
    parameters, layers, _ = plan(tmp_path, *VGG, placement, "adapter.full=[head]", *asked)
    for row in parameters:
        own = [layer["parameters"] for layer in layers if layer["task"] == row["task"] and layer["kind"] == "linear"]
        assert sum(own) + row["head"] // row["task"] == expected
    check_sums(parameters, layers)


def test_the_recommended_setup():
    net = on_meta("all", rank=9, linear_rank=30, full=["head"])
    row = parameter_row(net, 1)
    assert row["adapter"] == 850_419 + LINEARS_30
    assert row["adapter"] + row["head"] == 2_791_099
    assert row["trainable"] == 2_791_099 + NORMALISATION


@pytest.mark.parametrize(
    ("full", "expected"),
    [
        (["classifier"], 120_365_256),  # finetune-3: the three linear layers
        (["classifier.3", "head"], 17_600_712),  # finetune-2
        (["head"], 819_400),  # finetune-1
    ],
    ids=str,
)
def test_linear_layers_trained_in_full(full, expected):
    net = on_meta("convs", rank=1, full=full)
    kinds = [row for row in layer_rows(net, 0, with_norms=False) if row["kind"] == "full"]
    assert sum(row["parameters"] for row in kinds) + HEAD == expected
    assert parameter_row(net, 1)["adapter"] == 94_491 + expected - HEAD


@pytest.mark.parametrize(
    ("layer", "rank", "expected"),
    [
        (lambda: nn.Conv2d(512, 512, 3), 16, 147_456),  # 2,359,296 in full
        (lambda: nn.Linear(768, 768), 32, 49_152),  # 589,824 in full
    ],
)
def test_single_layers(layer, rank, expected):
    with torch.device("meta"):
        model = nn.Sequential(layer())
        adapter = ConvLoRA(rank=rank, base="frozen")
        adapter.attach(model)
        adapter.begin_task(0)
    assert adapter.parameter_report().adapter == expected
    assert sum(item.numel() for item in model.parameters() if item.requires_grad) == expected


def test_rank_24_is_warned_of_on_the_first_layer_of_vgg19_bn():
    # features.0 maps 3 channels: B A is 192 x 9 of inner size 3 r, full from r = 3; every other layer has 64 or more
    assert on_meta("convs", rank=3).adapter.warnings == []
    (warning,) = on_meta("convs", rank=24).adapter.warnings
    assert "adapter.rank=24" in warning
    assert "features.0 (3)" in warning
    assert "features.3" not in warning
    assert "features.3 (64), features.7 (64)" in on_meta("convs", rank=65).adapter.warnings[0]


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["placement=convs", "adapter.rank=512"], None),  # min(512, 512 * 9): the largest layers' full rank
        (["placement=convs", "adapter.rank=513"], "adapter.rank=513"),
        (["placement=linears", "adapter.linear_rank=4097"], "adapter.linear_rank=4097"),
        (["placement=match", "placement.pattern=attn"], "placement.pattern=attn"),
        (["adapter.full=[clasifier]"], "adapter.full"),
        (["strategy=der"], "strategy=der"),
        (["strategy=icarl"], "strategy=icarl"),
        (["strategy=agem", "strategy.sample_size=2"], "strategy.sample_size=2"),
        (["strategy=joint", "trainer.batch_size=3"], "trainer.batch_size=3"),
    ],
    ids=str,
)
def test_plan_refuses_what_training_would(tmp_path, overrides, named):
    if named is None:
        plan(tmp_path, *VGG, *overrides)
        return
    with pytest.raises(RequestError, match=named):
        plan(tmp_path, *VGG, *overrides)
    assert not list(tmp_path.rglob("parameters.csv"))


def test_a_base_that_trains_first_has_no_set_for_the_first_task(tmp_path):
    parameters, layers, _ = plan(tmp_path, *DIGITS, "adapter.base=first_task", "placement=all")
    # conv 1 -> 32 and 32 -> 64, 3 x 3, no bias; norms; head 256 * 10 + 10; factors 4 * 9 * (33 + 96), all sets of r = 4
    base, head, factors, norms = 288 + 18_432 + 64 + 128, 2_570, 36 * (33 + 96), 192
    assert [row["base"] for row in parameters] == [base] * 5
    assert [row["trainable"] for row in parameters] == [base + head] + [factors + norms + head] * 4
    assert [row["adapter"] for row in parameters] == [factors * task for task in range(5)]
    assert [row["normalisation"] for row in parameters] == [norms * task for task in range(5)]
    assert {layer["task"] for layer in layers} == {2, 3, 4, 5}
    check_sums(parameters, layers)


def test_no_adapter_stores_the_network_once(tmp_path):
    parameters, layers, _ = plan(tmp_path, "mode=plan", "backbone=small_cnn", "adapter=none")
    base = 288 + 18_432 + 64 + 128
    assert layers == []
    assert {(row["base"], row["stored"], row["trainable"], row["adapter"]) for row in parameters} == {
        (base, base + 2_570, base + 2_570, 0)
    }


# small_cnn on 1 x 8 x 8, 2 per multiply-add: 64 places * 32 * 9, then 16 * 64 * 32 * 9, then 256 * 10
FORWARD = 2 * (64 * 32 * 9 + 16 * 64 * 32 * 9 + 256 * 10)
CIFAR = ["mode=plan", "benchmark=split_cifar10", "benchmark.validation_fraction=0", "backbone=small_cnn"]


@pytest.mark.parametrize(
    ("overrides", "images"),
    [
        ([*DIGITS, "trainer.iterations=10", "trainer.batch_size=16"], 10 * 16 * 5),
        ([*DIGITS, "trainer.iterations=10", "trainer.batch_size=16", "strategy=joint"], 10 * 16),  # one phase
        ([*CIFAR, "trainer.epochs=3"], 3 * 50_000),
        ([*CIFAR, "trainer.epochs=3", "strategy=joint"], 3 * 50_000),
        # task t trains on tasks 1 .. t: (1 + 2 + 3 + 4 + 5) * 10,000
        ([*CIFAR, "trainer.epochs=3", "strategy=cumulative", "adapter=none"], 3 * 150_000),
        ([*CIFAR, "trainer.epochs=2", "benchmark.per_class=100"], 2 * 1_000),
        ([*CIFAR, "trainer.epochs=2", "benchmark.validation_fraction=0.1"], 2 * 45_000),
    ],
    ids=lambda value: " ".join(value[2:]) if isinstance(value, list) else None,
)
def test_training_flops_are_three_forward_passes_of_every_image(tmp_path, overrides, images):
    parameters, _, summary = plan(tmp_path, *overrides)
    assert summary["training_images"] == images
    assert summary["training_flops"] == 3 * summary["forward_flops_per_image"] * images
    if "benchmark=split_digits" in overrides:
        assert summary["forward_flops_per_image"] == FORWARD
    assert len(parameters) == (1 if "strategy=joint" in overrides else 5)


def test_joint_training_has_every_set_at_once(tmp_path):
    parameters, layers, _ = plan(tmp_path, *DIGITS, "adapter.base=frozen", "strategy=joint")
    factors, norms, head = 36 * (33 + 96), 192, 2_570
    assert [row["task"] for row in parameters] == [5]
    assert parameters[0]["trainable"] == 5 * (factors + norms + head)
    assert len(layers) == 5 * 2
    check_sums(parameters, layers)


def test_the_command_prints_the_plan_and_writes_its_files(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["cl-run"])
    typed = [*VGG, "placement=convs", f"output_root={tmp_path}", f"data_root={tmp_path / 'nowhere'}"]
    assert execute(typed) == 0
    shown = capsys.readouterr().out
    (folder,) = (tmp_path / "quickstart").iterdir()
    assert {item.name for item in folder.iterdir()} >= {"config.yaml", "parameters.csv", "layers.csv"}
    for figure in ("850,419", "11,008", "819,400", "139,581,248", "features.49", "82,944"):
        assert figure in shown, figure


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        (["adapter.full=[classifier.classifiers.0]"], "is part of the head, which trains in full"),
        (["adapter=dylora", "adapter.rank_schedule=[8,4,2]", "trainer.epochs=2"], "has 3 epochs, and trainer.epochs=2"),
        (["adapter=dylora", "adapter.rank_schedule=[8,4]", "trainer.iterations=9"], "trains one epoch"),
        (["adapter=dylora", "adapter.rank_schedule=[8,4]", "adapter.schedule_from=9"], "there are 5 tasks"),
        (["adapter=dylora", "adapter.rank_schedule=[8,4]", "adapter.eval_ranks=[8]"], "ends at 4"),
        (["adapter=dylora", "adapter.rank_schedule=[8,4]", "adapter.eval_rank=5"], "ends at 4"),
        (["+adapter.rank=3"], "without the plus, adapter.rank=VALUE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_requests_that_would_do_something_else_are_refused(tmp_path, typed, reason):
    with pytest.raises(RequestError, match=reason):
        plan(tmp_path, *DIGITS[:1], *typed)


@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        (["adapter.full=[block1,block2]"], "leaves none to adapt"),
        (["adapter.linear_rank=3"], "linear_rank=3 has no linear layer"),
        (["strategy=joint"], "adapter.base=frozen trains the adapter"),
    ],
)
def test_what_has_no_effect_is_warned_of(tmp_path, typed, reason, capsys):
    plan(tmp_path, *DIGITS[:1], *typed)
    said = capsys.readouterr()
    assert reason in (said.out + said.err).replace("\n", " ")
