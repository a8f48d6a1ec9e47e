"""Golden parameter counts from `begin_task` on the real networks, and which layers play which role in a transformer.

Every network is built on the meta device, from the configuration that its library ships: nothing is downloaded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import builders  # noqa: F401  (one thread)
import open_clip
import pytest
import timm
import torch
import transformers
from torch import nn
from torchvision.models import swin_t, vgg19_bn, vit_b_16

from cl_runner.adapters import PEFT, CoDyRA, ConvLoRA, ConvLoRACP, DCLoRA, DyLoRA, Hybrid, LoRA, Placement
from cl_runner.adapters.adapter import Adapter
from cl_runner.backbones.transformers import Transformers
from cl_runner.errors import RequestError


def begun(make: Callable[[], nn.Module], adapter: Adapter, placement: Placement | str = "all") -> tuple[int, list]:
    """(parameters that train in the first task, its layers.csv); the two have to agree, and with what is stored."""
    with torch.device("meta"):
        model = make()
        adapter.attach(model, placement)
        adapter.begin_task(0)
    rows, trained = adapter.layer_report(0), open_parameters(model)
    assert sum(row.parameters for row in rows) == trained == adapter.parameter_report().adapter
    return trained, rows


def open_parameters(model: nn.Module) -> int:
    return sum(item.numel() for item in model.parameters() if item.requires_grad)


# ------------------------------------------------------------------------------------------ single layers

CONV = functools.partial(nn.Conv2d, 512, 512, 3)
FILTERS = functools.partial(nn.Conv2d, 16, 32, 3)


@pytest.mark.parametrize(
    ("layer", "adapter", "expected"),
    [
        (lambda: nn.Linear(768, 768), LoRA(rank=32, base="frozen"), 49_152),  # published; 589,824 in full
        (lambda: nn.Linear(768, 768), CoDyRA(rank=32, base="frozen"), 49_152 + 32),  # a gate a component
        (CONV, ConvLoRA(rank=16, base="frozen"), 147_456),  # published; 2,359,296 in full
        (CONV, LoRA(rank=16, base="frozen"), 16 * (512 * 9 + 512)),
        (FILTERS, ConvLoRACP(rank=1, shared_spatial=True, base="frozen"), 38),  # published: 3 + 3 + 32
        (FILTERS, ConvLoRACP(rank=5, shared_spatial=True, base="frozen"), 5 * 38),
        (FILTERS, ConvLoRACP(rank=1, base="frozen"), 16 * 3 + 16 * 3 + 32 * 16),
        (FILTERS, ConvLoRACP(rank=7, base="frozen"), 7 * (16 * 3 + 16 * 3 + 32 * 16)),
        (lambda: nn.Conv2d(16, 32, (5, 3)), ConvLoRACP(rank=2, base="frozen"), 2 * (16 * 5 + 16 * 3 + 32 * 16)),
        (lambda: nn.Conv2d(16, 32, (5, 3)), ConvLoRACP(shared_spatial=True, base="frozen"), 5 + 3 + 32),
    ],
)
def test_single_layers(layer, adapter, expected):
    assert begun(lambda: nn.Sequential(layer()), adapter)[0] == expected


# -------------------------------------------------------------------------------------------- vgg19_bn

OUTPUTS = [64, 64, 128, 128, *[256] * 4, *[512] * 8]
CHANNELS = list(zip([3, *OUTPUTS], OUTPUTS, strict=False))  # (c_in, c_out) of the 16 convolutions, all 3 x 3
PUBLISHED = {1: 94_491, 3: 283_473, 6: 566_946, 9: 850_419, 12: 1_133_892, 24: 2_267_784}


@pytest.mark.parametrize(("rank", "expected"), [*PUBLISHED.items(), (7, 7 * 9 * 10_499), (10, 944_910)])
def test_convlora_on_vgg19_bn(rank, expected):
    copies = 11_008  # BatchNorm's weights and biases for the task, which train and are no adapter's
    with torch.device("meta"):
        model, adapter = vgg19_bn(), ConvLoRA(rank=rank, base="frozen")
        adapter.attach(model, "convs")
        adapter.begin_task(0)
    rows = adapter.layer_report(0)
    assert sum(row.parameters for row in rows) == expected == open_parameters(model) - copies
    assert [row.shape for row in rows] == [(c_out, c_in, 3, 3) for c_in, c_out in CHANNELS]
    assert [row.parameters for row in rows] == [rank * 9 * (c_in + c_out) for c_in, c_out in CHANNELS]


@pytest.mark.parametrize("rank", [1, 7, 10])
def test_other_methods_on_vgg19_bn(rank):
    lora = sum(rank * (9 * c_in + c_out) for c_in, c_out in CHANNELS)
    assert begun(vgg19_bn, LoRA(rank=rank, base="frozen"), "convs")[0] == lora
    assert begun(vgg19_bn, PEFT(options={"r": rank}, base="frozen"), "convs")[0] == lora
    assert begun(vgg19_bn, CoDyRA(rank=rank, base="frozen"), "convs")[0] == lora + 16 * rank
    rows = begun_rows(ConvLoRACP(rank=rank, base="frozen"))
    assert rows == [rank * (3 * c_in + 3 * c_in + c_out * c_in) for c_in, c_out in CHANNELS]
    rows = begun_rows(ConvLoRACP(rank=rank, shared_spatial=True, base="frozen"))
    assert rows == [rank * (3 + 3 + c_out) for _, c_out in CHANNELS]


def begun_rows(adapter: Adapter) -> list[int]:
    with torch.device("meta"):
        adapter.attach(vgg19_bn(), "convs")
        adapter.begin_task(0)
    return [row.parameters for row in adapter.layer_report(0)]


# ----------------------------------------------------------------------------------------------- GPT-2


def gpt2() -> nn.Module:
    """GPT-2 of 124 M parameters, from the configuration that ships with the package."""
    return Transformers(name="gpt2").build_language_model()


C_ATTN = Placement(pattern=r"\.c_attn$")


@pytest.mark.parametrize(("rank", "expected"), [(64, 2_359_296), (32, 1_179_648), (16, 589_824)])
@pytest.mark.parametrize("method", [LoRA, DyLoRA, DCLoRA, Hybrid, PEFT])
def test_gpt2_c_attn(method, rank, expected):
    options = {"options": {"r": rank, "lora_alpha": 32}} if method is PEFT else {"rank": rank, "alpha": 32}
    trained, rows = begun(gpt2, method(**options, base="frozen"), C_ATTN)
    assert trained == expected == 12 * rank * (768 + 2304)
    assert [row.name for row in rows] == [f"transformer.h.{block}.attn.c_attn" for block in range(12)]
    assert {(row.kind, row.shape, row.rank) for row in rows} == {("linear", (768, 2304), rank)}


@pytest.mark.parametrize("method", [DyLoRA, Hybrid])
def test_the_published_schedule_drops_to_a_half_and_a_quarter(method):
    with torch.device("meta"):
        model = gpt2()
        adapter = method(rank=64, alpha=32, rank_schedule=[64, 32, 16], schedule_from=2, base="frozen")
        adapter.attach(model, C_ATTN)
        counts = []
        for task in (0, 1):
            adapter.begin_task(task)
            for epoch in range(3):
                adapter.begin_epoch(epoch)
                counts.append(open_parameters(model))
            adapter.end_task()
    assert counts == [2_359_296] * 3 + [2_359_296, 1_179_648, 589_824]
    assert adapter.parameter_report().adapter == 589_824


def test_slices_of_c_attn_have_factors_of_their_own():
    # q, k and v apart: 3 * 12 * r (768 + 768), more than the 12 * r (768 + 2304) of the layer as one
    assert begun(gpt2, LoRA(rank=8, base="frozen"), "qkv")[0] == 3 * 12 * 8 * 1536
    assert begun(gpt2, LoRA(rank=8, base="frozen"), "q")[0] == 12 * 8 * 1536


# ------------------------------------------------------------------------------------------------ CLIP


def clip() -> nn.Module:
    """CLIP ViT-B/16 with random weights."""
    return open_clip.create_model("ViT-B-16", pretrained=None, device="meta")


VISION, TEXT = 2_655_360, 1_770_624


@pytest.mark.parametrize(
    ("towers", "expected"),
    [(("vision", "text"), 4_425_984), (("vision",), VISION), (("text",), TEXT)],
)
def test_codyra_on_clip(towers, expected):
    roles = ["q", "k", "v", "o", "mlp_in", "mlp_out"]
    trained, rows = begun(clip, CoDyRA(base="frozen"), Placement(roles=roles, towers=towers))
    assert trained == expected
    sizes: dict[str, list[int]] = {"vision": [], "text": []}
    for row in rows:
        sizes["vision" if row.name.startswith("visual.") else "text"].append(row.parameters)
    assert {row.rank for row in rows} == {16}
    # 12 layers of four d x d and two d x 4 d, with a gate for each of the 16 components: 16 (4 (2 d + 1) + 2 (5 d + 1))
    for tower, width, published in (("vision", 768, VISION), ("text", 512, TEXT)):
        assert len(sizes[tower]) == (72 if tower in towers else 0)
        assert sum(sizes[tower]) == (published if tower in towers else 0)
        assert published == 12 * 16 * (18 * width + 6)
    if len(towers) == 2:
        assert begun(clip, CoDyRA(base="frozen"), "qkvo_mlp")[0] == expected  # the published default by its name


def test_a_network_without_two_towers_has_none_to_choose():
    with pytest.raises(RequestError, match=r"placement\.towers=\['vision'\]"):
        begun(gpt2, LoRA(base="frozen"), Placement(towers=["vision"]))


# ----------------------------------------------------------------------------------------------- roles


def swin_blocks(shape: Callable[[int], tuple[int, int]]) -> list[tuple[int, int]]:
    """The shapes in the twelve blocks of Swin-T: 2, 2, 6 and 2 of widths 96, 192, 384 and 768."""
    return [shape(width) for width, n in ((96, 2), (192, 2), (384, 6), (768, 2)) for _ in range(n)]


def in_blocks(width: int, n: int, *, conv1d: bool = False) -> dict[str, list[tuple[int, int]]]:
    """The shapes of n blocks with an MLP of four times the width; Conv1D has inputs first."""
    up, down = (4 * width, width), (width, 4 * width)
    square = dict.fromkeys(("q", "k", "v", "o"), [(width, width)] * n)
    return square | {"mlp_in": [down if conv1d else up] * n, "mlp_out": [up if conv1d else down] * n}


SWIN = dict.fromkeys(("q", "k", "v", "o"), swin_blocks(lambda width: (width, width))) | {
    "mlp_in": swin_blocks(lambda width: (4 * width, width)),
    "mlp_out": swin_blocks(lambda width: (width, 4 * width)),
}
CLIP = {role: in_blocks(768, 12)[role] + in_blocks(512, 12)[role] for role in in_blocks(768, 12)}
BASE = in_blocks(768, 12)
LLAMA = in_blocks(256, 3) | {  # two heads of 128; gate and up go in, 2.6875 times as wide as in the published model
    "mlp_in": [(688, 256)] * 6,
    "mlp_out": [(256, 688)] * 3,
}
NETWORKS = {
    "open_clip ViT-B-16": (clip, CLIP),
    "gpt2": (gpt2, in_blocks(768, 12, conv1d=True)),
    "transformers llama": (
        lambda: Transformers(name="meta-llama/Llama-2-7b-hf", layers=3, width=256).build_language_model(),
        LLAMA,
    ),
    "torchvision vit_b_16": (vit_b_16, BASE),
    "torchvision swin_t": (swin_t, SWIN),
    "timm vit_tiny": (lambda: timm.create_model("vit_tiny_patch16_224"), in_blocks(192, 12)),
    "timm swin_tiny": (lambda: timm.create_model("swin_tiny_patch4_window7_224"), SWIN),
    "transformers bert": (lambda: transformers.BertModel(transformers.BertConfig()), BASE),
    "transformers vit": (lambda: transformers.ViTModel(transformers.ViTConfig()), BASE),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_role_is_one_layer_a_block(name):
    make, shapes = NETWORKS[name]
    with torch.device("meta"):
        model = make()
    places: dict[str, list[str]] = {}
    for role in shapes:
        places[role] = Placement(roles=[role]).choose(model)
    chosen = [layer for layers in places.values() for layer in layers]
    assert len(set(chosen)) == len(chosen)  # no layer plays two roles
    assert {layer for layers in places.values() for layer in layers} == set(Placement.of("qkvo_mlp").choose(model))
    adapter = LoRA(rank=1, base="frozen")
    with torch.device("meta"):
        adapter.attach(model, "qkvo_mlp")
        adapter.begin_task(0)
    found = {row.name: row.shape for row in adapter.layer_report(0)}
    assert {role: [found[layer] for layer in layers] for role, layers in places.items()} == shapes
