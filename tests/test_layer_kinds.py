"""Every method on every kind of layer: what it computes, against numpy and the base's own forward pass."""

from __future__ import annotations

import pytest
import torch
from builders import network
from hypothesis import given, settings
from hypothesis import strategies as st
from method_table import (
    ALPHA,
    KINDS,
    METHODS,
    PAIRS,
    Conv,
    adapted,
    base_of,
    expected_delta,
    expected_output,
    inputs_of,
    named_sites,
    randomise,
    rank_one_sum,
)
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from cl_runner.adapters import ConvLoRA, LoRA

every_pair = pytest.mark.parametrize(("method", "kind"), PAIRS, ids=[f"{method}-{kind}" for method, kind in PAIRS])


@every_pair
def test_at_attach_the_output_is_the_bases_bit_for_bit(method, kind):
    base, model, adapter = adapted(method, kind)
    x = inputs_of(kind)
    for training in (False, True):
        base.train(training)
        model.train(training)
        adapter.before_step(0.0)
        assert (model(x) - base(x)).abs().max() == 0
    base.eval().requires_grad_(False)  # torch multiplies in another order by a weight that trains
    model.eval()
    with torch.no_grad():  # torch's attention has a path of its own here
        assert (model(x) - base(x)).abs().max() == 0
    assert adapter.adapted_layers() == list(KINDS[kind].sites)
    which = METHODS[method].set_name(1)
    for _, site in named_sites(adapter):
        learned = [bool(item.any()) for item in site.deltas[which].parameters()]
        assert learned.count(False) == 1, "only one factor starts at zero, else it has no gradient"


@every_pair
def test_delta_and_output_against_numpy_and_the_bases_own_forward(method, kind):
    base, model, adapter = adapted(method, kind)
    randomise(adapter)
    x, which = inputs_of(kind), METHODS[method].set_name(1)
    for name, (parameter, third, _) in KINDS[kind].sites.items():
        delta = adapter.delta_weight(name)
        expected = torch.from_numpy(expected_delta(method, kind, adapter, name, which))
        own = base.get_parameter(parameter)
        if third is None:
            assert delta.shape == own.shape, "in the layout of the layer's own weight"
        assert (delta - expected).abs().max() < 1e-12
        assert delta.abs().max() > 0.1
        if third is None:
            layer = adapter.root.get_submodule(name)
            assert torch.equal(layer.weight, own + delta), "the weight that is computed with"
    output = model(x)
    assert (output - expected_output(method, kind, base, adapter, which, x)).abs().max() < 1e-10
    assert (output - base(x)).abs().max() > 0.01
    with torch.no_grad():
        assert (model(x) - output).abs().max() < 1e-10


@every_pair
def test_merge_keeps_the_output_and_unmerge_restores_every_weight(method, kind):
    base, model, adapter = adapted(method, kind)
    randomise(adapter)
    x = inputs_of(kind)
    with torch.no_grad():
        before = model(x)
        adapter.merge()
        assert (model(x) - before).abs().max() < 1e-10
        merged = dict(model.named_parameters())
        by_hand = functional_call(base, {name: merged[name] for name, _ in base.named_parameters()}, (x,))
        assert (by_hand - before).abs().max() < 1e-10, "the merged weights alone, in the base's own architecture"
        for parameter, *_ in KINDS[kind].sites.values():
            assert not torch.equal(merged[parameter], base.get_parameter(parameter))
        adapter.unmerge()
        for name, weight in base.named_parameters():
            assert torch.equal(merged[name], weight)
        assert torch.equal(model(x), before)


@every_pair
def test_gradients_against_finite_differences_of_the_whole_forward_pass(method, kind):
    _, model, adapter = adapted(method, kind)
    randomise(adapter)
    names = [name for name, item in model.named_parameters() if item.requires_grad]
    values = [item.detach().clone().requires_grad_() for item in model.parameters() if item.requires_grad]

    def output(x: torch.Tensor, *factors: torch.Tensor) -> torch.Tensor:
        return functional_call(model, dict(zip(names, factors, strict=True)), (x,))

    x = inputs_of(kind).requires_grad_()
    assert torch.autograd.gradcheck(output, (x, *values), fast_mode=True)


@pytest.mark.parametrize("method", ["lora", "codyra", "dylora-ordering"])
@pytest.mark.parametrize("kind", ["linear-on-tokens", "Conv1D"])
@pytest.mark.parametrize("compute", ["two_path", "merged"])
def test_either_way_of_computing_gives_the_output_of_the_formula(compute, kind, method):
    base, model, adapter = adapted(method, kind, compute=compute)
    randomise(adapter)
    x, which = inputs_of(kind), METHODS[method].set_name(1)
    assert (model(x) - expected_output(method, kind, base, adapter, which, x)).abs().max() < 1e-10


def test_a_fused_layer_without_roles_is_adapted_as_one():
    # (6 + 18) * 2 numbers for the whole, where three slices take 3 * (6 + 6) * 2
    from cl_runner.adapters import Placement

    for kind in ("fused-qkv", "fused-c_attn"):
        model = base_of(kind)
        adapter = LoRA(rank=2, base="frozen")
        adapter.attach(model, Placement())
        adapter.begin_task(0)
        assert adapter.adapted_layers() == [kind.removeprefix("fused-")]
        assert adapter.parameter_report().adapter == 2 * (6 + 18)


def test_only_the_slices_that_are_asked_for_change():
    from cl_runner.adapters import Placement

    for kind, owner, axis in (
        ("fused-qkv", "qkv.weight", 0),
        ("fused-c_attn", "c_attn.weight", 1),
        ("MultiheadAttention", "attn.in_proj_weight", 0),
    ):
        base, model = base_of(kind), base_of(kind)
        adapter = LoRA(rank=2, base="frozen")
        adapter.attach(model, Placement(roles=["q", "v"]))
        adapter.begin_task(0)
        randomise(adapter)
        adapter.merge()
        moved = [
            not torch.equal(now, before)
            for now, before in zip(
                dict(model.named_parameters())[owner].chunk(3, axis),
                base.get_parameter(owner).chunk(3, axis),
                strict=True,
            )
        ]
        assert moved == [True, False, True]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    groups=st.integers(1, 3),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    bias=st.booleans(),
    wanted=st.integers(1, 5),
    conv_form=st.booleans(),
)
def test_any_convolution_is_the_functional_one_with_the_written_delta(
    groups, channels, kernel, stride, padding, dilation, bias, wanted, conv_form
):
    c_in, c_out = groups * channels[0], groups * channels[1]
    rank = min(wanted, c_out, channels[0] * kernel[0] * kernel[1])  # above, it is refused
    layer = nn.Conv2d(c_in, c_out, kernel, stride, padding, dilation, groups, bias=bias).double()
    weight = layer.weight.detach().clone()
    adapter = (ConvLoRA if conv_form else LoRA)(rank=rank, alpha=ALPHA, base="frozen")
    model = nn.Sequential(layer)
    adapter.attach(model)
    adapter.begin_task(0)
    randomise(adapter)
    delta = next(iter(model[0].deltas.values()))
    factors = {name: item.detach().numpy() for name, item in delta.named_parameters()}
    if conv_form:
        sizes = Conv(c_in, c_out, *kernel, groups)
        product = METHODS["convlora"].conv_delta(factors, sizes)
        assert factors["A"].shape == (rank * min(kernel), c_in * kernel[1])
        assert factors["B"].shape == (c_out // groups * kernel[0], rank * min(kernel))
    else:
        product = rank_one_sum(factors)
        assert factors["A"].shape == (rank, c_in // groups, *kernel) and factors["B"].shape == (c_out, rank, 1, 1)
    written = weight + ALPHA / rank * torch.from_numpy(product)
    x = torch.randn(2, c_in, 9, 8, dtype=torch.float64)
    expected = functional.conv2d(x, written, layer.bias, stride, padding, dilation, groups)
    assert (model(x) - expected).abs().max() < 1e-10


def test_one_component_of_a_convolution_is_a_convolution_to_one_channel_and_one_of_size_1():
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, stride=2, padding=1).double()
    base = nn.Conv2d(4, 6, 3, stride=2, padding=1).double()
    base.load_state_dict(layer.state_dict())
    model, adapter = nn.Sequential(layer), LoRA(rank=3, base="frozen")
    adapter.attach(model)
    adapter.begin_task(0)
    randomise(adapter)
    delta, x = layer.deltas["shared"], torch.randn(2, 4, 7, 7, dtype=torch.float64)
    low = functional.conv2d(x, delta.A, stride=2, padding=1)
    assert low.shape[1] == 3
    assert (model(x) - base(x) - functional.conv2d(low, delta.B)).abs().max() < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_a_whole_network_is_the_base_at_first_whatever_the_method(method):
    plain = network(adapter="none", head="shared")
    net = network(adapter="none", head="shared")
    adapter = METHODS[method].make()
    net.adapter = adapter
    adapter.attach(net)
    adapter.begin_task(0)
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(net.eval()(x, 0), plain.eval()(x, 0))
