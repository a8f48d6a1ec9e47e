"""ConvLoRA on every layer kind, and the life of a per-task adapter: what trains when, and what never changes again."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from builders import TASK_CLASSES, images, learned, network, open_parameters, train
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from cl_runner.adapters import ConvLoRA, Placement

# At rank 2. A convolution's A is (2 m, c_in k_w) and its B (c_out / groups k_h, 2 m) with m = min(k_h, k_w); where
# groups = 1 and k_h = k_w = k that is r k^2 (c_in + c_out). A linear layer has r (d_in + d_out).
LAYERS = {
    "linear": (lambda: nn.Linear(7, 5), (4, 7), 2 * (7 + 5)),
    "linear-no-bias": (lambda: nn.Linear(7, 5, bias=False), (4, 7), 2 * (7 + 5)),
    "linear-on-tokens": (lambda: nn.Linear(7, 5), (2, 3, 7), 2 * (7 + 5)),
    "conv3": (lambda: nn.Conv2d(4, 6, 3), (2, 4, 7, 7), 2 * 9 * (4 + 6)),
    "stride-padding": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 7, 7), 2 * 9 * (4 + 6)),
    "stride-pair": (lambda: nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(0, 2)), (2, 4, 7, 7), 2 * 9 * (4 + 6)),
    "dilation": (lambda: nn.Conv2d(4, 6, 3, dilation=2), (2, 4, 7, 7), 2 * 9 * (4 + 6)),
    "padding-same": (lambda: nn.Conv2d(4, 6, 3, padding="same"), (2, 4, 7, 7), 2 * 9 * (4 + 6)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 7, 7), 6 * 12 + 9 * 6),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), (2, 4, 7, 7), 6 * 12 + 3 * 6),
    "depthwise-multiplier": (lambda: nn.Conv2d(4, 8, 3, groups=4), (2, 4, 7, 7), 6 * 12 + 6 * 6),
    "no-bias": (lambda: nn.Conv2d(4, 6, 3, bias=False), (2, 4, 7, 7), 2 * 9 * (4 + 6)),
    "1x1": (lambda: nn.Conv2d(4, 6, 1), (2, 4, 7, 7), 2 * 1 * (4 + 6)),
    "5x5": (lambda: nn.Conv2d(4, 6, 5, padding=2), (2, 4, 7, 7), 2 * 25 * (4 + 6)),
    "3x1": (lambda: nn.Conv2d(4, 6, (3, 1)), (2, 4, 7, 7), 2 * 4 + 18 * 2),
    "1x5": (lambda: nn.Conv2d(4, 6, (1, 5)), (2, 4, 7, 7), 2 * 20 + 6 * 2),
    "2x3": (lambda: nn.Conv2d(4, 6, (2, 3)), (2, 4, 7, 7), 4 * 12 + 12 * 4),
    "reflect": (lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"), (2, 4, 7, 7), 2 * 9 * (4 + 6)),
    "replicate": (lambda: nn.Conv2d(4, 6, 3, padding=2, padding_mode="replicate"), (2, 4, 7, 7), 2 * 9 * (4 + 6)),
    "circular": (
        lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="circular"), (2, 4, 7, 7), 2 * 9 * (4 + 6),
    ),
}  # fmt: skip
every_layer = pytest.mark.parametrize("kind", LAYERS)


def single(kind: str, dtype: torch.dtype = torch.float64, **options) -> tuple[nn.Module, ConvLoRA, torch.Tensor]:
    """One adapted layer with two tasks' sets, the second open and active, and an input for it."""
    torch.manual_seed(3)
    make, shape, _ = LAYERS[kind]
    model = nn.Sequential(make()).to(dtype)
    adapter = ConvLoRA(**{"rank": 2, "base": "frozen"} | options)
    adapter.attach(model)
    for task in (0, 1):
        adapter.begin_task(task)
    adapter.activate(1)
    return model, adapter, torch.randn(shape, dtype=dtype)


def randomise(adapter: ConvLoRA) -> None:
    """Gives every B values; at zero most tests would be empty."""
    for name in adapter.adapted_layers():
        for delta in adapter.root.get_submodule(name).deltas.values():
            nn.init.normal_(delta.B)


def forward_with(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The layer's forward pass written out with functional calls and a given weight."""
    if isinstance(layer, nn.Linear):
        return functional.linear(x, weight, layer.bias)
    padding = layer.padding
    if layer.padding_mode != "zeros":
        high, wide = padding
        x, padding = functional.pad(x, (wide, wide, high, high), mode=layer.padding_mode), 0
    return functional.conv2d(x, weight, layer.bias, layer.stride, padding, layer.dilation, layer.groups)


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_at_attach_the_output_is_the_bases_bit_for_bit(kind, dtype):
    make, shape, _ = LAYERS[kind]
    torch.manual_seed(3)
    base = nn.Sequential(make()).to(dtype)
    model, adapter, x = single(kind, dtype)
    assert (model(x) - base(x)).abs().max() == 0
    assert adapter.delta_weight("0").abs().max() == 0
    assert adapter.root.get_submodule("0").deltas["1"].A.abs().max() > 0  # else B would have no gradient


@every_layer
def test_delta_and_forward_against_numpy_and_functional(kind):
    model, adapter, x = single(kind, alpha=3.0)
    randomise(adapter)
    layer = model[0]
    factors = {name: item.detach().numpy() for name, item in layer.deltas["1"].named_parameters()}
    delta = (3.0 / 2) * np.matmul(factors["B"], factors["A"]).reshape(tuple(layer.base_weight.shape))
    np.testing.assert_allclose(adapter.delta_weight("0").detach().numpy(), delta, rtol=0, atol=1e-12)
    assert np.abs(delta).max() > 0.1
    expected = forward_with(layer, x, layer.base_weight + torch.from_numpy(delta))
    assert (model(x) - expected).abs().max() < 1e-12
    assert (model(x) - forward_with(layer, x, layer.base_weight)).abs().max() > 0.01


@every_layer
def test_parameter_count_and_full_rank_of_what_is_stored(kind):
    model, adapter, _ = single(kind)
    assert [row.parameters for row in adapter.layer_report(1)] == [LAYERS[kind][2]]
    assert adapter.parameter_report().adapter == 2 * LAYERS[kind][2]  # two tasks
    assert sum(item.numel() for item in model.parameters() if item.requires_grad) == LAYERS[kind][2]


@every_layer
def test_gradients_reach_only_the_active_tasks_factors(kind):
    model, adapter, x = single(kind)
    randomise(adapter)
    model(x).square().sum().backward()
    with_gradient = {name for name, item in model.named_parameters() if item.grad is not None}
    assert with_gradient == {"0.deltas.1.A", "0.deltas.1.B"}
    delta = model[0].deltas["1"]

    def of_factors(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return functional_call(delta, {"A": a, "B": b}, ())

    assert torch.autograd.gradcheck(of_factors, (delta.A, delta.B))


@every_layer
def test_merge_keeps_the_output_and_unmerge_restores_the_weights(kind):
    model, adapter, x = single(kind)
    randomise(adapter)
    before, weight = model(x).detach(), model[0].base_weight.detach().clone()
    adapter.merge()
    assert (model(x) - before).abs().max() < 1e-10
    assert not torch.equal(model[0].base_weight, weight)
    adapter.unmerge()
    assert torch.equal(model[0].base_weight, weight)
    assert torch.equal(model(x), before)


@every_layer
def test_a_state_dict_brings_every_task_back_bit_for_bit(kind):
    model, adapter, x = single(kind)
    randomise(adapter)
    torch.manual_seed(99)
    fresh = nn.Sequential(LAYERS[kind][0]()).to(torch.float64)
    other = ConvLoRA(rank=2, base="frozen")
    other.attach(fresh)
    for task in (0, 1):
        other.begin_task(task)
    fresh.load_state_dict(model.state_dict(), strict=True)
    outputs = []
    for task in (0, 1):
        adapter.activate(task)
        other.activate(task)
        assert torch.equal(fresh(x), model(x))
        outputs.append(model(x))
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("training", [True, False])
def test_layers_whose_weight_is_read_without_a_call_compute_with_the_delta(training):
    # MultiheadAttention takes out_proj.weight, and in evaluation TransformerEncoderLayer takes all of its weights
    torch.manual_seed(0)
    base = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, dropout=0.0, batch_first=True).train(training)
    model = copy.deepcopy(base)
    adapter = ConvLoRA(rank=2, base="frozen")
    adapter.attach(model)
    packed = ["self_attn.q", "self_attn.k", "self_attn.v"]
    assert adapter.adapted_layers() == [*packed, "self_attn.out_proj", "linear1", "linear2"]
    adapter.begin_task(0)
    adapter.activate(0)
    randomise(adapter)
    for name in adapter.adapted_layers()[3:]:
        base.get_submodule(name).weight.data += adapter.delta_weight(name).detach()
    base.self_attn.in_proj_weight.data += torch.cat([adapter.delta_weight(name).detach() for name in packed])
    x = torch.randn(2, 3, 8)
    with torch.set_grad_enabled(training):
        torch.testing.assert_close(model(x), base(x), rtol=0, atol=1e-5)


# ------------------------------------------------------------------------------------------------- the life

BASE = {
    "conv1.weight", "conv1.bias", "norm1.base.weight", "norm1.base.bias", "conv2.weight", "norm2.base.weight",
    "norm2.base.bias", "hidden.weight", "hidden.bias",
}  # fmt: skip


def own_set(task: int) -> set[str]:
    """What belongs to one task: factors, BatchNorm copies, head."""
    factors = {f"{layer}.deltas.{task}.{factor}" for layer in ("conv1", "conv2", "hidden") for factor in "AB"}
    norms = {f"{norm}.copies.{task}.{item}" for norm in ("norm1", "norm2") for item in ("weight", "bias")}
    return factors | norms | head(task)


def head(task: int) -> set[str]:
    return {f"classifier.classifiers.{task}.{item}" for item in ("weight", "bias")}


def test_a_frozen_base_never_trains_and_every_task_has_a_set():
    net = network(base="frozen")
    assert open_parameters(net) == set()
    for task in (0, 1, 2):
        net.begin_task([task])
        assert open_parameters(net) == own_set(task)
        net.adapter.end_task()
        assert open_parameters(net) == set()


@pytest.mark.parametrize("base", ["first_task", "auto"])
def test_a_base_that_trains_on_the_first_task_is_frozen_after_it(base):
    net = network(base=base)  # auto: nothing was loaded
    net.begin_task([0])
    assert open_parameters(net) == BASE | head(0)
    assert net.adapter.layer_report(0) == []
    net.adapter.end_task()
    assert open_parameters(net) == set()
    for task in (1, 2):
        net.begin_task([task])
        assert open_parameters(net) == own_set(task)
        net.adapter.end_task()


def test_several_tasks_begun_at_once_are_open_together():
    net = network()
    net.begin_task([0, 2])
    assert open_parameters(net) == own_set(0) | own_set(2)
    net.train()
    net(images(6), torch.tensor([0, 2, 0, 2, 2, 0]))[:, [0, 1, 4, 5]].clamp(min=-9).sum().backward()
    assert {name for name, item in net.backbone.named_parameters() if item.grad is not None} == own_set(0) | own_set(2)
    joint = network(base="first_task")
    joint.begin_task([0, 1, 2])
    assert open_parameters(joint) == BASE | head(0) | head(1) | head(2)
    some = network(base="first_task")
    some.begin_task([0, 2])
    assert open_parameters(some) == BASE | head(0) | head(2)


@pytest.mark.parametrize("base", ["frozen", "first_task"])
def test_batchnorm_statistics_are_each_tasks_own(base):
    net = network(base=base)
    net.begin_task([0])
    train(net, 0, steps=2, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01))
    norm = net.backbone.norm1
    first = norm.base if base == "first_task" else norm.copies["0"]
    assert first.num_batches_tracked == 2
    net.adapter.end_task()
    before = {name: item.clone() for name, item in net.named_buffers()}
    net.begin_task([1])
    net.train()
    assert norm.copies["1"].training
    assert not norm.base.training
    assert not first.training
    assert torch.equal(norm.copies["1"].running_mean, norm.base.running_mean)  # a copy starts from the base's
    train(net, 1, steps=3, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.01))
    assert all(torch.equal(item, before[name]) for name, item in net.named_buffers() if name in before)
    assert not torch.equal(norm.copies["1"].running_mean, norm.base.running_mean)
    net.eval()
    assert not norm.copies["1"].training
    net.adapter.end_task()
    assert not net.train().backbone.norm1.copies["1"].training


OPTIMIZERS = {
    "sgd-momentum-decay": lambda items: torch.optim.SGD(items, lr=0.1, momentum=0.9, weight_decay=0.1),
    "adam-decay": lambda items: torch.optim.Adam(items, lr=0.01, weight_decay=0.1),
    "adamw": lambda items: torch.optim.AdamW(items, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("options", [{}, {"full": ["hidden"]}, {"placement": Placement(head=True)}], ids=str)
@pytest.mark.parametrize("base", ["frozen", "first_task"])
def test_later_training_never_changes_an_earlier_tasks_logits(base, options, optimizer):
    net, x = network(base=base, **options), images(7, seed=5)
    kept, untrained = {}, {}
    for task in range(3):
        net.begin_task([task])
        untrained[task] = net.eval()(x, task).detach()
        train(net, task, steps=4, optimizer=OPTIMIZERS[optimizer])
        net.adapter.end_task()
        kept[task] = net.eval()(x, task).detach()
        assert not torch.equal(kept[task], untrained[task])  # it did learn
        for earlier in kept:
            assert torch.equal(net(x, earlier), kept[earlier])
    fresh = network(base=base, seed=77, **options)
    for task in range(3):
        fresh.begin_task([task])
        fresh.adapter.end_task()
    fresh.load_state_dict(net.state_dict(), strict=True)
    fresh.eval()
    assert all(torch.equal(fresh(x, task), kept[task]) for task in kept)


def test_one_optimiser_kept_for_the_whole_stream_moves_no_closed_set():
    net, x = network(), images(7, seed=5)
    net.begin_task([0])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    train(net, 0, steps=3, optimizer=optimizer)
    net.adapter.end_task()
    kept = net.eval()(x, 0).detach()
    net.begin_task([1])
    held = {id(item) for item in optimizer.param_groups[0]["params"]}  # the heads of all tasks are among them
    optimizer.add_param_group({"params": [item for item in net.parameters() if id(item) not in held]})
    before = net(x, 1).detach()
    train(net, 1, steps=3, optimizer=optimizer)
    assert torch.equal(net.eval()(x, 0), kept)
    assert not torch.equal(net(x, 1), before)


# ------------------------------------------------------------------------------------- activate and merge


def test_a_merged_task_stays_merged_until_another_is_asked_for():
    net, x = learned().double(), images().double()
    net._scores = lambda inputs: net.backbone(inputs).flatten(1)  # logits in float64, for the 1e-10
    weights = {name: net.backbone.get_submodule(name).base_weight.detach().clone() for name in ("conv1", "hidden")}
    expected = [net(x, task).detach()[:, TASK_CLASSES[task]] for task in range(3)]
    net.activate(1)
    net.adapter.merge()
    net.adapter.merge()  # once more changes nothing
    assert (net(x, 1)[:, TASK_CLASSES[1]] - expected[1]).abs().max() < 1e-10
    assert net.backbone.conv1.merged == "1"
    assert net.backbone.conv1.weight is net.backbone.conv1.base_weight  # costs what the base costs
    assert torch.equal(net(x, 2)[:, TASK_CLASSES[2]], expected[2])
    for name, weight in weights.items():
        assert torch.equal(net.backbone.get_submodule(name).base_weight, weight)
    assert torch.equal(net(x, 1)[:, TASK_CLASSES[1]], expected[1])


def test_a_new_task_starts_from_the_base_and_not_from_a_merged_weight():
    net = network()
    net.begin_task([0])
    randomise(net.adapter)
    weight = net.backbone.conv1.base_weight.detach().clone()
    net.activate(0)
    net.adapter.merge()
    assert not torch.equal(net.backbone.conv1.base_weight, weight)
    net.begin_task([1])
    assert torch.equal(net.backbone.conv1.base_weight, weight)


def test_an_adapted_head_answers_for_the_task_that_is_active():
    net = learned(placement=Placement(names=["classifier"], head=True))
    deltas = []
    for task in range(3):
        net.adapter.activate(task)  # the adapter alone, without the network around it
        classifier = net.head.classifiers[task]
        deltas.append(net.adapter.delta_weight("classifier"))
        assert torch.equal(deltas[-1], classifier.deltas[str(task)]())
        before = classifier.base_weight.detach().clone()
        net.adapter.merge()
        assert torch.equal(classifier.base_weight, before + deltas[-1])
    assert not torch.equal(deltas[0], deltas[1])
    assert torch.equal(net.head.classifiers[0].weight, net.head.classifiers[0].base_weight + deltas[0])


def test_delta_of_an_unknown_layer_and_of_a_task_without_a_set():
    net = network()
    with pytest.raises(KeyError):
        net.adapter.delta_weight("conv9")
    net.adapter.activate(0)
    assert torch.equal(net.adapter.delta_weight("conv2"), torch.zeros(8, 3, 3, 3))


def test_a_starts_kaiming_uniform_with_a_of_sqrt_5():
    # bound sqrt(6 / ((1 + a^2) fan_in)) = 1 / sqrt(fan_in), and fan_in = 64 * 3 columns; 8 * 3 * 192 draws come close
    model = nn.Sequential(nn.Conv2d(64, 32, 3))
    adapter = ConvLoRA(rank=8, base="frozen")
    adapter.attach(model)
    adapter.begin_task(0)
    largest = model[0].deltas["0"].A.abs().max()
    assert 0.99 * 192**-0.5 < largest <= 192**-0.5


def test_an_alpha_of_zero_is_zero_and_not_the_default():
    model, adapter, _ = single("conv3", alpha=0.0)
    randomise(adapter)
    assert adapter.delta_weight("0").abs().max() == 0
