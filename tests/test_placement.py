"""Which layers are chosen, which ranks fit them, and which modules are trained in full instead."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from builders import N_CLASSES, TASK_CLASSES, images, learned, network, open_parameters
from torch import nn

from cl_runner.adapters import ConvLoRA, Placement
from cl_runner.backbones.network import Network, set_module
from cl_runner.errors import RequestError

CONVS = ["conv1", "conv2"]


def chain() -> nn.Module:
    """Five layers in the order conv, linear, conv, linear, linear (nothing is computed with them)."""
    layers = [nn.Conv2d(3, 4, 3), nn.Linear(4, 4), nn.Conv2d(4, 4, 1), nn.Linear(4, 4), nn.Linear(4, 2)]
    return nn.Sequential(OrderedDict(zip(["stem", "gate", "mix", "up", "down"], layers, strict=True)))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ["stem", "gate", "mix", "up", "down"]),
        ({"kinds": ["conv"]}, ["stem", "mix"]),
        ({"kinds": ["linear"]}, ["gate", "up", "down"]),
        ({"part": "first_half"}, ["stem", "gate"]),  # 5 // 2 = 2
        ({"part": "last_half"}, ["mix", "up", "down"]),
        ({"kinds": ["linear"], "part": "first_half"}, ["gate"]),  # 3 // 2 = 1
        ({"kinds": ["linear"], "part": "last_half"}, ["up", "down"]),
        ({"pattern": "^(mix|up)$"}, ["mix", "up"]),
        ({"pattern": "m"}, ["stem", "mix"]),  # searched, not anchored
        ({"pattern": "m", "part": "last_half"}, ["mix"]),
        ({"names": ["down", "stem"]}, ["stem", "down"]),  # in the network's order
        ({"names": ["up"], "kinds": ["linear"]}, ["up"]),
    ],
    ids=str,
)
def test_layers_are_chosen_in_the_networks_order(options, expected):
    assert Placement(**options).choose(chain()) == expected


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("all", [*CONVS, "hidden"]),
        ("convs", CONVS),
        ("linears", ["hidden"]),
        ("first_half", ["conv1"]),  # 3 // 2 = 1
        ("last_half", ["conv2", "hidden"]),
    ],
)
def test_presets_leave_the_head_out(preset, expected):
    net = network(placement=preset)
    assert net.adapter.adapted_layers() == expected
    net.begin_task([0])
    assert {name.split(".")[0] for name in open_parameters(net) if ".deltas." in name} == set(expected)


@pytest.mark.parametrize("placement", [Placement(head=True), Placement(pattern="fier$", head=True)])
def test_the_head_is_a_candidate_where_asked_for(placement):
    net = network(placement=placement)
    assert net.adapter.adapted_layers()[-1] == "classifier"
    net.begin_task([1])
    assert {f"classifier.classifiers.1.{item}" for item in ("weight", "bias", "deltas.1.A", "deltas.1.B")} == {
        name for name in open_parameters(net) if name.startswith("classifier")
    }
    assert net.adapter.layer_report(1)[-1].parameters == 2 * (10 + N_CLASSES)  # r (d_in + d_out)


@pytest.mark.parametrize(
    ("options", "found", "hint"),
    [
        ({"pattern": "attn"}, "placement.pattern=attn", "candidates: stem, gate, mix, up, down"),
        ({"names": []}, "placement.names=[]", "candidates: stem, gate, mix, up, down"),
        ({"pattern": "(up"}, "placement.pattern=(up is no regular expression", None),
        ({"names": ["stem", "dwn"]}, "placement.names: there is no layer 'dwn'", "did you mean 'down'?"),
        ({"names": ["stem", "up"], "kinds": ["conv"]}, "leave layer 'up' out", "widen placement.kinds"),
        ({"names": ["stem", "up"], "part": "last_half"}, "leave layer 'stem' out", "widen placement.kinds"),
    ],
    ids=str,
)
def test_what_matches_nothing_is_refused(options, found, hint):
    with pytest.raises(RequestError) as refusal:
        Placement(**options).choose(chain())
    assert found in refusal.value.message
    assert hint is None or hint in refusal.value.hint


def test_kinds_that_the_network_lacks_and_unknown_presets_are_refused():
    with pytest.raises(RequestError, match=r"kinds=\['conv'\].*matches no layer\ncandidates: 0, 1"):
        Placement(kinds=["conv"]).choose(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    with pytest.raises(RequestError, match="placement=conv is not known\ndid you mean 'convs'"):
        network(placement="conv")


class OwnForward(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_layer_with_a_forward_of_its_own_is_refused_by_name():
    model = nn.Sequential(OrderedDict(first=nn.Linear(4, 4), odd=OwnForward(4, 4)))
    with pytest.raises(RequestError, match="layer 'odd' is a OwnForward"):
        ConvLoRA(rank=1).attach(model)


# --------------------------------------------------------------------------------------------------- ranks


def attach(model: nn.Module, **options) -> ConvLoRA:
    adapter = ConvLoRA(**{"base": "frozen"} | options)
    adapter.attach(model)
    return adapter


# full rank: min(d_out, d_in), or min(c_out, c_in / groups * k_h * k_w)
FULL_RANK = {
    "linear": (lambda: nn.Linear(7, 5), 5),
    "linear-wide": (lambda: nn.Linear(4, 9), 4),
    "conv-by-outputs": (lambda: nn.Conv2d(4, 6, 3), 6),
    "conv-by-inputs": (lambda: nn.Conv2d(1, 64, 3), 9),  # 1 * 3 * 3
    "groups": (lambda: nn.Conv2d(8, 64, 3, groups=4), 18),  # 8 / 4 * 9
    "depthwise": (lambda: nn.Conv2d(16, 16, 3, groups=16), 9),  # 1 * 9
    "rectangular": (lambda: nn.Conv2d(2, 64, (3, 5)), 30),  # 2 * 15
}


@pytest.mark.parametrize("kind", FULL_RANK)
def test_a_rank_up_to_the_full_rank_is_accepted_and_one_above_is_refused(kind):
    make, full = FULL_RANK[kind]
    adapter = attach(nn.Sequential(make()), rank=full)
    adapter.begin_task(0)
    assert adapter.layer_report(0)[0].rank == full
    with pytest.raises(RequestError, match=rf"adapter\.rank={full + 1} exceeds .*\nat most {full} here"):
        attach(nn.Sequential(make()), rank=full + 1)


def mixed() -> nn.Module:
    """Full ranks: small 4 (of 4 x 36), large 32 (of 32 x 36), narrow 3 (of 3 x 32), wide 16 (of 16 x 32)."""
    layers = [nn.Conv2d(4, 4, 3), nn.Conv2d(4, 32, 3), nn.Linear(32, 3), nn.Linear(32, 16)]
    return nn.Sequential(OrderedDict(zip(["small", "large", "narrow", "wide"], layers, strict=True)))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"rank": 33}, "adapter.rank=33"),
        ({"rank": 2, "linear_rank": 17}, "adapter.linear_rank=17"),
        ({"rank": 33, "linear_rank": 2}, "adapter.rank=33"),
        ({"rank": 17, "linear_rank": 17}, "adapter.linear_rank=17"),
    ],
    ids=str,
)
def test_a_rank_is_refused_where_it_exceeds_every_layer_that_it_is_for(options, named):
    with pytest.raises(RequestError) as refusal:
        attach(mixed(), **options)
    assert refusal.value.message.startswith(named)


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({"rank": 3}, []),
        ({"rank": 4}, ["narrow"]),
        ({"rank": 5}, ["small", "large", "narrow"]),  # B A of `large` (96 x 12 of inner size 3 r) is full at r = 4
        ({"rank": 32}, ["small", "large", "narrow", "wide"]),  # equal to the largest full rank: accepted
        ({"rank": 4, "linear_rank": 16}, ["narrow"]),
        ({"rank": 5, "linear_rank": 3}, ["small", "large"]),
    ],
    ids=str,
)
def test_layers_smaller_than_the_rank_are_warned_of_by_name(options, warned):
    words = " ".join(attach(mixed(), **options).warnings)
    assert [name for name in ("small", "large", "narrow", "wide") if name in words] == warned


def test_a_layer_below_the_rank_is_warned_of_although_its_factors_are_not_square():
    # (5, 1) over 10 -> 4 channels: full rank min(4, 50) = 4, while B A is 20 x 10 and full only at 10
    model = nn.Sequential(OrderedDict(tall=nn.Conv2d(10, 4, (5, 1)), large=nn.Conv2d(32, 32, 3)))
    assert attach(model, rank=4).warnings == []
    assert "tall (4)" in attach(model, rank=6).warnings[0]


# ------------------------------------------------------------------------------------- trained in full


@pytest.mark.parametrize("full", [["hidden"], ["hidden", "hidden"], ["head", "hidden"], ["classifier", "hidden"]])
def test_modules_trained_in_full_have_a_copy_per_task_and_no_delta(full):
    net = network(full=full)
    assert net.adapter.adapted_layers() == CONVS
    net.begin_task([1])
    hidden = {name for name in open_parameters(net) if name.startswith("hidden")}
    assert hidden == {"hidden.copies.1.weight", "hidden.copies.1.bias"}
    row = net.adapter.layer_report(1)[-1]
    assert (row.name, row.kind, row.shape, row.rank, row.parameters) == ("hidden", "full", (10, 32), None, 330)
    # conv1: 2 * 9 * (3 + 6); conv2 in two groups: A 6 x 18, B 12 x 6; hidden: 10 * 32 + 10
    assert net.adapter.parameter_report().adapter == 162 + 108 + 72 + 330


def test_the_head_alone_in_full_changes_nothing_since_it_is_per_task_anyway():
    assert network(full=["head"]).state_dict().keys() == network().state_dict().keys()


def nested(full: list[str]) -> Network:
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    top = nn.Sequential(OrderedDict(up=nn.Linear(4, 8), act=nn.ReLU(), out=nn.Linear(8, N_CLASSES)))
    net = Network(
        nn.Sequential(OrderedDict(body=body, top=top)),
        "top.out", task_classes=TASK_CLASSES, task_labels=True, head="per_task",
    )  # fmt: skip
    net.adapter = ConvLoRA(rank=2, base="frozen", full=full)
    net.adapter.attach(net, Placement(kinds=["conv"]))
    return net


@pytest.mark.parametrize(
    ("full", "copied"),
    [
        (["top"], {"top.up"}),  # the module around the head: all of it but the head
        (["body"], {"body"}),  # its BatchNorm goes with it
        (["body", "body.0", "top"], {"body", "top.up"}),  # a module inside another is copied once
        (["body.1"], {"body.1"}),
    ],
    ids=lambda value: str(sorted(value)),
)
def test_a_module_that_holds_others_is_trained_in_full(full, copied):
    net = nested(full)
    net.begin_task([0])
    net.begin_task([1])
    opened = {name.split(".copies.1")[0] for name in open_parameters(net) if ".copies.1." in name}
    assert opened == copied | ({"body.1"} if "body" not in copied else set())
    assert net(images(2), 1).shape == (2, N_CLASSES)
    assert not any("head" in row.name or row.name == "top.out" for row in net.adapter.layer_report(1))


def test_a_module_with_several_inputs_can_be_trained_in_full():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.out = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 2)

        def forward(self, x):
            return self.out(self.attention(x, x, x, need_weights=False)[0])

    model = Attention()
    x = torch.randn(2, 3, 8)
    before = model(x)
    adapter = attach(model, rank=2, full=["attention"])
    adapter.begin_task(0)
    adapter.activate(0)
    torch.testing.assert_close(model(x), before)
    assert adapter.adapted_layers() == ["out"]


@pytest.mark.parametrize(("full", "hint"), [("hiden", "did you mean 'hidden'?"), ("relu1", None), ("", None)])
def test_an_unknown_module_in_full_is_refused_with_the_nearest(full, hint):
    with pytest.raises(RequestError) as refusal:
        network(full=[full])
    assert f"adapter.full: there is no module '{full}'" in refusal.value.message
    assert hint is None or refusal.value.hint == hint


def test_full_copies_compute_for_their_own_task():
    net, x = learned(full=["hidden"]), images()
    hidden = net.backbone.hidden
    assert not torch.equal(hidden.copies["0"].weight, hidden.copies["1"].weight)
    kept = net(x, 0).detach()
    hidden.copies["1"].weight.data.zero_()
    assert torch.equal(net(x, 0), kept)
    hidden.copies["0"].weight.data.zero_()
    assert not torch.equal(net(x, 0), kept)


@pytest.mark.parametrize("name", ["parts.6", "list.1", "dict.7", "parts.7.0"])
def test_a_module_is_replaced_by_name_even_where_names_are_numbers_out_of_step(name):
    model = nn.Module()
    model.parts = nn.Sequential(*(nn.Linear(1, 1) for _ in range(7)), nn.Sequential(nn.Linear(1, 1)))[5:]  # names 5..7
    model.list, model.dict = nn.ModuleList([nn.ReLU(), nn.ReLU()]), nn.ModuleDict({"7": nn.ReLU()})
    before = dict(model.named_modules())
    new = nn.Identity()
    set_module(model, name, new)
    after = dict(model.named_modules())
    assert after[name] is new
    assert list(after) == [item for item in before if not item.startswith(f"{name}.")]
    assert all(after[item] is before[item] for item in after if item != name)


def test_a_weight_that_two_modules_share_is_refused_by_name():
    model = nn.Sequential(OrderedDict(first=nn.Linear(4, 4), body=nn.Linear(4, 4), last=nn.Linear(4, 4)))
    model.last.weight = model.first.weight
    with pytest.raises(RequestError, match="'first' shares its weight with 'last'"):
        attach(model, rank=1)
    adapter = ConvLoRA(rank=1, base="frozen")
    adapter.attach(model, Placement(names=["body"]))
    assert adapter.adapted_layers() == ["body"]


def test_only_linear_layers_have_a_role():
    model = nn.ModuleDict({"fc1": nn.Conv2d(4, 4, 1), "mlp": nn.ModuleDict({"fc1": nn.Linear(4, 4)})})
    assert Placement(roles=["mlp_in"]).choose(model) == ["mlp.fc1"]
