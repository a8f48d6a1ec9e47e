"""Routing by task: masks, mixed batches, heads, and the arithmetic of a forward pass."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict

import pytest
import torch
from builders import N_CLASSES, TASK_CLASSES, images, learned, network, open_parameters, train
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cl_runner.adapters import ConvLoRA, Placement
from cl_runner.backbones.heads import Head
from cl_runner.backbones.network import Network
from cl_runner.training.account import forward_flops, parameter_row

OTHERS = [[c for c in range(N_CLASSES) if c not in classes] for classes in TASK_CLASSES]
# an adapter with a set per task, a head per task over shared features, and one shared head
ROUTES = {
    "per-task-adapter": {},
    "per-task-adapter-own-classes": {"own_classes": True},
    "per-task-heads": {"adapter": "none"},
    "per-task-heads-own-classes": {"adapter": "none", "own_classes": True},
    "shared-head": {"adapter": "none", "head": "shared"},
}
every_route = pytest.mark.parametrize("route", ROUTES)


def routed(route: str, **options) -> Network:
    """A network with different weights for every task where its kind has any."""
    return learned(**ROUTES[route], **options)


@every_route
@pytest.mark.parametrize("training", [True, False])
def test_other_tasks_classes_are_at_minus_infinity(route, training):
    net, x = routed(route).train(training), images()
    for task, classes in enumerate(TASK_CLASSES):
        logits = net(x, task)
        assert logits.shape == (5, N_CLASSES)
        assert torch.equal(logits[:, OTHERS[task]], torch.full((5, 4), -math.inf))
        assert logits[:, classes].isfinite().all()
        probabilities = logits.softmax(1)
        assert (probabilities[:, OTHERS[task]] == 0).all()  # a mask of zero would leave exp(0) each


@every_route
def test_a_mask_sends_no_gradient_to_other_tasks_classes(route):
    net = routed(route)
    net.begin_task([1])
    net.train()
    nn.functional.cross_entropy(net(images(), 1), torch.tensor([2, 3, 2, 3, 2])).backward()
    head = net.head.classifier(1)
    assert all(item.grad is not None and item.grad.isfinite().all() for item in head.parameters())
    if not net.head.own_classes:
        assert (head.weight.grad[OTHERS[1]] == 0).all()
    assert (head.weight.grad if net.head.own_classes else head.weight.grad[TASK_CLASSES[1]]).abs().max() > 0


@every_route
@pytest.mark.parametrize("labels", [[0, 1, 2, 0, 1], [2, 2, 0, 0, 0], [1, 2, 1, 2, 1], [2, 1, 0, 2, 1]])
def test_a_mixed_batch_is_the_concatenation_of_single_task_batches(route, labels):
    net, x, tasks = routed(route), images(), torch.tensor(labels)
    expected = torch.empty(5, N_CLASSES)
    for task in set(labels):
        expected[tasks == task] = net(x[tasks == task], task).detach()
    torch.testing.assert_close(net(x, tasks), expected, rtol=0, atol=1e-5)


NETWORKS: dict[str, Network] = {}


@every_route
@settings(max_examples=25, deadline=None)
@given(labels=st.lists(st.integers(0, 2), min_size=1, max_size=9), seed=st.integers(0, 1000))
def test_row_i_of_any_mixed_batch_is_the_answer_to_image_i_under_task_i(route, labels, seed):
    net = NETWORKS.setdefault(route, routed(route))
    x = images(len(labels), seed=seed)
    output = net(x, torch.tensor(labels))
    for i, task in enumerate(labels):
        torch.testing.assert_close(output[i : i + 1], net(x[i : i + 1], task), rtol=0, atol=1e-5)


@every_route
def test_labels_as_a_number_as_equal_ones_and_as_none_agree(route):
    net, x = routed(route), images()
    every = net(x, None)
    assert list(every) == [0, 1, 2]
    for task, logits in every.items():
        assert torch.equal(net(x, task), net(x, torch.full((5,), task)))
        torch.testing.assert_close(logits, net(x, task), rtol=0, atol=1e-6)


def test_without_labels_logits_are_plain_over_all_classes():
    net, x = routed("shared-head"), images()
    plain = net(x)
    assert plain.isfinite().all()
    assert torch.equal(plain, net.backbone(x))
    for task, classes in enumerate(TASK_CLASSES):
        assert torch.equal(plain[:, classes], net(x, task)[:, classes])
    blind = network(adapter="none", head="shared", task_labels=False)  # labels are given and never looked at
    assert torch.equal(blind.eval()(x, torch.tensor([0, 1, 2, 0, 1])), blind(x))
    assert blind(x, 1).isfinite().all()


def test_a_head_of_its_own_classes_has_so_many_outputs():
    net = network(own_classes=True)
    assert [item.out_features for item in net.head.classifiers] == [2, 2, 2]
    assert [item.out_features for item in network().head.classifiers] == [6, 6, 6]
    net.begin_task([0])
    # 10 features to 2 classes, weights and biases; all six classes would take 66
    assert parameter_row(net, 1)["head"] == 22
    x = images()
    features = nn.Sequential(*list(net.backbone)[:-1])
    net.eval().activate(2)
    expected = net.head.classifiers[2](features(x))
    assert torch.equal(net(x, 2)[:, [4, 5]], expected)


def test_classes_of_a_task_in_any_order_land_in_their_own_columns():
    head = Head(nn.Linear(3, 5), [[4, 1], [0, 3, 2]], own_classes=True)
    x = torch.randn(2, 3)
    for task, classes in enumerate([[4, 1], [0, 3, 2]]):
        head.activate(task)
        assert torch.equal(head(x)[:, classes], head.classifiers[task](x))
        assert head(x).isinf().sum() == 2 * (5 - len(classes))


def test_a_convolution_as_classifier_is_routed_like_a_linear_layer():
    body = nn.Sequential(OrderedDict(pool=nn.AdaptiveAvgPool2d(1), out=nn.Conv2d(3, N_CLASSES, 1)))
    torch.manual_seed(0)
    net = Network(body, "out", task_classes=TASK_CLASSES, task_labels=True, head="per_task", own_classes=True)
    x = images()
    for task in range(3):
        weight, bias = net.head.classifiers[task].weight.flatten(1), net.head.classifiers[task].bias
        expected = x.mean((2, 3)) @ weight.T + bias
        torch.testing.assert_close(net(x, task)[:, TASK_CLASSES[task]], expected)
    mixed = net(x, torch.tensor([2, 0, 1, 0, 2]))
    assert torch.equal(
        mixed.isfinite().nonzero()[:, 1].view(5, 2), torch.tensor([[4, 5], [0, 1], [2, 3], [0, 1], [4, 5]])
    )


def test_which_heads_train_follows_whether_features_are_isolated():
    def heads(net: Network) -> list[int]:
        return sorted({int(name.split(".")[2]) for name in open_parameters(net) if "classifiers" in name})

    isolated, joined = network(), network(adapter="none")
    opened = []
    for task in range(3):
        isolated.begin_task([task])
        joined.begin_task([task])
        opened.append((heads(isolated), heads(joined)))
    assert opened == [([0], [0]), ([1], [0, 1]), ([2], [0, 1, 2])]


def test_a_backward_pass_is_possible_where_nothing_trains():
    net, x = routed("per-task-adapter"), images()
    net.begin_task([2])
    loss = net(x, 0)[:, :2].sum()  # task 0 is closed
    loss.backward()
    assert all(item.grad is None for item in net.parameters())
    with torch.no_grad():
        assert not net(x, 0).requires_grad
    mixed = net(x, torch.tensor([0, 1, 1, 0, 0]))
    assert mixed.requires_grad


@every_route
def test_bfloat16_computes_in_half_and_answers_in_float32(route):
    half, full = routed(route, precision="bfloat16"), routed(route)
    full.load_state_dict(half.state_dict())
    seen = []
    half.backbone.conv1.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    x = images()
    logits = half(x, torch.tensor([0, 1, 2, 1, 0]))
    assert logits.dtype == torch.float32
    assert set(seen) == {torch.bfloat16}
    reference = full(x, torch.tensor([0, 1, 2, 1, 0]))
    assert torch.equal(logits.isinf(), reference.isinf())
    finite = reference.isfinite()
    # 8 bits of mantissa over four layers
    torch.testing.assert_close(logits[finite], reference[finite], rtol=0.05, atol=0.05)
    assert not torch.equal(logits, reference)


@every_route
def test_a_deep_copy_is_equal_and_independent(route):
    net, x = routed(route), images()
    before = [net(x, task).detach() for task in range(3)]
    other = copy.deepcopy(net)
    assert other.adapter.model is other
    assert all(torch.equal(other(x, task), before[task]) for task in range(3))
    other.begin_task([1])
    train(other, 1, steps=2, optimizer=lambda items: torch.optim.SGD(items, lr=0.5))
    other.eval().activate(1)
    other.adapter.merge()
    assert not torch.equal(other(x, 1), before[1])
    assert all(torch.equal(net(x, task), before[task]) for task in range(3))
    assert not {id(item) for item in net.parameters()} & {id(item) for item in other.parameters()}


def two_layers(groups: int = 1) -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(4, 6, 3, padding=1, groups=groups),
            relu=nn.ReLU(),
            pool=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            classifier=nn.Linear(96, N_CLASSES),
        )
    )


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        # 2 per multiply-add: 8 * 8 places * 6 outputs * 4 inputs * 9 taps, and 96 * 6
        (1, 2 * (64 * 6 * 4 * 9 + 96 * 6)),
        (2, 2 * (64 * 6 * 2 * 9 + 96 * 6)),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_forward_flops_count_two_for_every_multiply_add(groups, expected, device):
    with torch.device(device):
        net = Network(two_layers(groups), "classifier", task_classes=TASK_CLASSES, task_labels=True)
    net.train()
    assert forward_flops(net, torch.zeros(1, 4, 8, 8)) == expected
    assert net.training


def test_the_account_of_a_small_network_by_hand():
    # base: conv1 3*6*9+6, norms 2*6 and 2*8, conv2 6/2*8*9, hidden 32*10+10; the classifier is not in it
    base = 168 + 12 + 16 + 216 + 330
    factors = 162 + (108 + 72) + 84  # rank 2: 2*9*(3+6); A 6 x 18 and B 12 x 6; 2*(32+10)
    net = network()
    for task in (1, 2, 3):
        net.begin_task([task - 1])
        assert parameter_row(net, task) == {
            "task": task, "base": base, "trainable": factors + 28 + 66, "adapter": task * factors,
            "normalisation": task * 28, "head": task * 66, "stored": base + task * (factors + 28 + 66),
            "inference": base + 66, "growth": pytest.approx(task * (factors + 28 + 66) / base), "buffers": task * 28,
        }  # fmt: skip
    plain = network(adapter="none", head="shared")
    plain.begin_task([0])
    row = parameter_row(plain, 3)
    assert (row["trainable"], row["stored"], row["head"]) == (base + 66, base + 66, 66)
    assert row["growth"] == pytest.approx(66 / base)


def test_an_adapted_heads_factors_count_as_adapter_and_not_as_head():
    plain = Network(two_layers(), "classifier", task_classes=TASK_CLASSES, task_labels=True, head="per_task")
    plain.adapter = ConvLoRA(rank=2, base="frozen")
    plain.adapter.attach(plain, Placement(kinds=["linear"], head=True))
    plain.begin_task([0])
    row = parameter_row(plain, 1)
    assert (row["adapter"], row["head"]) == (2 * (96 + 6), 96 * 6 + 6)
