"""Two paths and merged weights: the same numbers, at the cost that the count says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import images, network  # sets one thread
from method_table import conv1d
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cl_runner.adapters import LoRA, compute
from cl_runner.adapters.factors import LoRAFactors
from cl_runner.errors import RequestError

D_IN, D_OUT, RANK = 24, 40, 3
LAYERS = {"linear": lambda: nn.Linear(D_IN, D_OUT), "Conv1D": lambda: conv1d(D_OUT, D_IN)}


def layer_with(how: str, kind: str = "linear", dtype: torch.dtype = torch.float64, **options: Any) -> tuple[Any, Any]:
    """An adapted layer whose B is not zero, with a bias that trains, and its delta."""
    torch.manual_seed(0)
    model = nn.Sequential(LAYERS[kind]()).to(dtype)
    adapter = LoRA(rank=RANK, alpha=6.0, base="frozen", compute=how, **options)
    adapter.attach(model)
    adapter.begin_task(0)
    delta = model[0].deltas["shared"]
    nn.init.normal_(delta.B)
    nn.init.normal_(model[0].bias).requires_grad_()
    return model[0], delta


def computed(how: str, x: Tensor, kind: str = "linear", autocast: bool = False, **options: Any) -> dict[str, Tensor]:
    """Output and gradients; the loss weighs every output differently."""
    layer, delta = layer_with(how, kind, x.dtype, **options)
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        y = layer(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(y.dtype)
    (y * weights).sum().backward()
    assert layer.base_weight.grad is None
    return {"y": y.detach(), "x": x.grad, "bias": layer.bias.grad, "A": delta.A.grad, "B": delta.B.grad}


def inputs(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, D_IN, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("shape", [(5,), (2, 7), (2, 3, 4), ()], ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)], ids=str)
def test_both_ways_give_the_same_output_and_gradients(kind, shape, dtype, tolerance):
    x = inputs(*shape, dtype=dtype)
    two, merged = computed("two_path", x, kind), computed("merged", x, kind)
    for name in two:
        assert two[name].shape == merged[name].shape and two[name].abs().max() > 0.01, name
        assert (two[name] - merged[name]).abs().max() < tolerance, name


@pytest.mark.parametrize("kind", LAYERS)
def test_bfloat16_autocast_is_finite_and_near_float32(kind):
    x = inputs(2, 7, dtype=torch.float32)
    exact = computed("two_path", x, kind)
    for how in ("two_path", "merged", "auto"):
        low = computed(how, x, kind, autocast=True)
        assert low["y"].dtype == torch.bfloat16
        for name, value in low.items():
            assert torch.isfinite(value).all() and (name == "y" or value.dtype == torch.float32), name
            error = (value.float() - exact[name]).norm() / exact[name].norm()
            assert error < 0.02, f"{how} {name} {error}"  # bfloat16 has 8 bits: 0.004 a number


@pytest.mark.parametrize("learns", [True, False])
def test_under_autocast_a_small_delta_does_not_vanish_in_the_merged_weight(learns):
    # W is near 1 and DeltaW is 0.001 in size: below half of bfloat16's step there, 2^-8, so that rounding W before the
    # sum would lose DeltaW altogether; rounding once keeps it on average, 4096 * 0.001 in every output
    torch.manual_seed(0)
    weight = 1 + 0.2 * torch.rand(16, 4096)
    x = torch.tensor([1.0, -1.0]).repeat(2048)[None]  # outputs near zero, which bfloat16 resolves
    delta = LoRAFactors(weight, 1, 1.0)
    delta.A.data.copy_(0.001 * x)
    outputs = []
    for size in (0.0, 1.0):
        delta.B.data.fill_(size)
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.set_grad_enabled(learns):
            outputs.append(compute.linear(x, weight, None, delta, "merged").detach().float())
    assert float((outputs[1] - outputs[0]).mean()) == pytest.approx(4.096, rel=0.1)


def test_gradients_of_the_merged_form_against_finite_differences():
    torch.manual_seed(0)
    for bias in (True, False):
        for transposed in (False, True) if bias else (False,):
            parts = [torch.randn(2, 3, 4), torch.randn(5, 2), torch.randn(2, 4), torch.randn(5)]
            x, left, right, b = (item.double().requires_grad_() for item in parts)
            weight = (torch.randn(4, 5).t() if transposed else torch.randn(5, 4)).double()

            def output(x, left, right, *b, weight=weight, transposed=transposed):
                return compute.MergedLinear.apply(x, weight, b[0] if b else None, left, right, transposed)[0]

            assert torch.autograd.gradcheck(output, (x, left, right, *([b] if bias else [])))


@pytest.mark.parametrize("open_inputs", [(0,), (3,), (4,), (2,), (0, 3, 4)])
def test_the_merged_form_computes_only_the_gradients_that_are_wanted(open_inputs):
    parts = [torch.randn(6, 4), torch.randn(5, 4), torch.randn(5), torch.randn(5, 2), torch.randn(2, 4)]
    for index in open_inputs:
        parts[index].requires_grad_()
    compute.MergedLinear.apply(*parts, False)[0].sum().backward()
    assert [index for index, item in enumerate(parts) if item.grad is not None] == list(open_inputs)


class Shapes(TorchDispatchMode):
    """The shape of every matrix product's result."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.bmm):
            self.seen.append(tuple(result.shape))
        return result


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("how", ["two_path", "merged"])
def test_a_backward_pass_never_forms_a_full_weight_gradient(how, kind):
    rows, full = 50, {(D_OUT, D_IN), (D_IN, D_OUT)}
    layer, delta = layer_with(how, kind)
    x = inputs(rows)
    loss = layer(x).square().sum()
    backward = Shapes()
    with backward, FlopCounterMode(display=False) as flops:
        loss.backward()
    assert delta.A.grad is not None and delta.B.grad is not None
    assert backward.seen and not full & set(backward.seen)
    # g B and (g B)^T x, x A^T and g^T (x A^T): what is right for factors; x itself wants no gradient
    assert flops.get_total_flops() <= 2 * rows * RANK * (2 * D_OUT + 2 * D_IN)
    plain = nn.Linear(D_IN, D_OUT).double()  # and this is what the check would see
    naive = functional.linear(x, plain.weight + delta(), plain.bias).square().sum()
    seen = Shapes()
    with seen:
        naive.backward()
    assert full & set(seen.seen)


# --------------------------------------------------------------------------------------- which one is taken


def chosen(monkeypatch: Any, rows: int, how: str, d: int = 512, rank: int = 8, learns: bool = True) -> str:
    """The way that is taken, told by whether the merged weight is formed."""
    formed: list[bool] = []
    merge = compute.merge
    monkeypatch.setattr(compute, "merge", lambda *args: formed.append(True) or merge(*args))
    weight = torch.zeros(d, d)
    delta = LoRAFactors(weight, rank, 1.0)
    with torch.set_grad_enabled(learns):
        compute.linear(torch.zeros(rows, d), weight, None, delta, how)
    monkeypatch.undo()
    return "merged" if formed else "two_path"


@pytest.mark.parametrize("learns", [True, False])
def test_auto_takes_two_paths_for_few_rows_and_merged_weights_for_many(monkeypatch, learns):
    taken = [chosen(monkeypatch, rows, "auto", learns=learns) for rows in (1, 8, 64, 512, 4096)]
    assert taken[0] == "two_path" and taken[-1] == "merged"
    assert taken == sorted(taken, reverse=True), "it changes once"


@pytest.mark.parametrize("rows", [1, 4096])
@pytest.mark.parametrize("how", ["two_path", "merged"])
def test_a_forced_way_is_taken_whatever_the_rows(monkeypatch, rows, how):
    assert chosen(monkeypatch, rows, how) == how


@pytest.mark.parametrize("training", [True, False])
def test_the_cost_of_two_paths_rises_faster_with_the_rows(training):
    counts = [compute.costs(rows, 300, 200, 4, training=training) for rows in (1, 10, 100, 1000)]
    two, merged = zip(*counts, strict=True)
    assert list(two) == sorted(two) and two[0] < two[-1]
    assert list(merged) == sorted(merged)
    assert [b - a for a, b in zip(two, two[1:], strict=False)] > [
        b - a for a, b in zip(merged, merged[1:], strict=False)
    ]


def test_the_cost_against_arithmetic():
    # 10 rows, 3 -> 5, rank 2: forward 2 n r (d_in + d_out) = 320, backward twice that; n d_out = 50 and d_in d_out = 15
    # elements; merged 2 r d_in d_out = 60, its low-rank gradients 4 n r (d_in + d_out) = 640
    element = compute.ELEMENT_COST
    assert compute.costs(10, 3, 5, 2, training=False) == (320 + 50 * element, 60 + 15 * element)
    assert compute.costs(10, 3, 5, 2, training=True) == (960 + 50 * element, 60 + 15 * element + 640)


@pytest.mark.parametrize("rows", [2, 3000])
@pytest.mark.parametrize("kind", LAYERS)
def test_auto_equals_what_is_forced(rows, kind):
    x = inputs(rows)
    results = {how: computed(how, x, kind) for how in ("auto", "two_path", "merged")}
    for name, value in results["auto"].items():
        for how in ("two_path", "merged"):
            assert (value - results[how][name]).abs().max() < 1e-9 * max(1, value.abs().max())


def test_the_option_reaches_every_linear_layer_of_a_network():
    outputs = []
    for how in ("two_path", "merged", "auto"):
        net = network(adapter="none", head="shared")
        net.adapter = LoRA(rank=2, base="frozen", compute=how)
        net.adapter.attach(net)
        torch.manual_seed(5)
        net.begin_task([0])
        for name in net.adapter.adapted_layers():
            site = net.backbone.get_submodule(name)
            assert site.compute == how
            nn.init.normal_(site.deltas["shared"].B)
        outputs.append(net.eval()(images(), 0))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(outputs[0], outputs[2], rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------ dropout


@pytest.mark.parametrize("how", ["two_path", "auto"])
@pytest.mark.parametrize("kind", LAYERS)
def test_dropout_acts_in_training_and_on_the_low_rank_path_alone(kind, how):
    layer, delta = layer_with(how, kind, dropout=0.5)
    x = inputs(3000)  # so many rows that auto would merge without the dropout
    without, _ = layer_with("merged", kind)
    layer.eval()
    assert (layer(x) - without(x)).abs().max() < 1e-9
    layer.train()
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    base = functional.linear(x, layer.base_weight, layer.bias)
    change = (first - base).detach()
    directions = torch.linalg.svdvals(change)
    assert directions[RANK - 1] > 1 and directions[RANK] < 1e-8, "what was dropped reached W"
    torch.manual_seed(4)
    kept = functional.dropout(x, 0.5)
    torch.manual_seed(4)
    expected = base + (kept @ delta.A.t() @ delta.B.t()) * (6.0 / RANK)
    assert (layer(x) - expected).abs().max() < 1e-9
    mean = torch.stack([layer(x[:8]).detach() for _ in range(2000)]).mean(0)
    assert (mean - without(x[:8])).norm() / (without(x[:8]) - base[:8]).norm() < 0.1


def test_what_has_no_low_rank_path_is_refused():
    with pytest.raises(RequestError, match="compute=merged does not have"):
        LoRA(rank=2, dropout=0.1, compute="merged")
    with pytest.raises(RequestError, match="compute=two_path has no layer"):
        LoRA(rank=2, compute="two_path", base="frozen").attach(nn.Sequential(nn.Conv2d(3, 4, 3)))
    LoRA(rank=2, compute="two_path", base="frozen").attach(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4)))
