"""SenaCNN: where the network is cut, what a branch is, that it never changes again, and its published sizes."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from builders import N_CLASSES, TASK_CLASSES, backbone, images, open_parameters, train
from runs_helpers import Watch, as_array, settled, small_run, table, watch_assembly
from safetensors.torch import load_file, save_file
from torch import nn
from torchvision.models import VisionTransformer

from cl_runner.adapters import SenaCNN
from cl_runner.backbones.network import Network
from cl_runner.benchmarks.classes import SplitDigits
from cl_runner.config.checks import settle
from cl_runner.config.compose import compose
from cl_runner.errors import RequestError
from cl_runner.modalities.images import build_network
from cl_runner.training.account import layer_rows, parameter_row
from cl_runner.training.task_aware import TaskAwareNetwork

PARTS = {"conv1": ["conv1", "norm1"], "conv2": ["conv2", "norm2"], "hidden": ["hidden"]}  # a norm follows its layer


def network(seed: int = 0, **options) -> Network:
    """The network of `builders` cut in two; four layers with weights: conv1, conv2, hidden and the head."""
    torch.manual_seed(seed)
    net = Network(backbone(), "classifier", task_classes=TASK_CLASSES, task_labels=True, head="per_task")
    net.adapter = SenaCNN(**options)
    net.adapter.attach(net)
    return net


def adam(parameters) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01)


def learn(net: Network, task: int, steps: int = 4) -> None:
    net.begin_task([task])
    train(net, task, steps=steps, optimizer=adam)
    net.end_task()
    net.eval()


# --------------------------------------------------------------------------------------------------- the cut


@pytest.mark.parametrize(
    ("cut", "replicated"),
    [
        (0.25, ["conv2", "hidden"]),
        (0.49, ["conv2", "hidden"]),  # floor(1.96) = 1
        (0.5, ["hidden"]),
        (0.75, []),  # three of four: the head alone
        (0.999, []),
        ("conv1", ["conv1", "conv2", "hidden"]),
        ("conv2", ["conv2", "hidden"]),
        ("hidden", ["hidden"]),
        ("classifier", []),
    ],
)
def test_what_is_replicated(cut, replicated):
    net = network(cut=cut, base="frozen")
    assert net.adapter.adapted_layers() == replicated
    net.begin_task([1])
    wanted = {f"{name}.copies.1.{key}" for part in replicated for name in PARTS[part] for key in ("weight", "bias")}
    wanted.discard("conv2.copies.1.bias")  # it has none
    wanted |= {"classifier.classifiers.1.weight", "classifier.classifiers.1.bias"}
    assert open_parameters(net) == wanted
    assert {row.name for row in net.adapter.layer_report(1)} == set(replicated)


def test_a_part_of_the_network_names_its_first_layer():
    body = nn.Sequential()
    body.add_module("a", nn.Sequential(nn.Flatten(), nn.Linear(192, 5)))
    body.add_module("b", nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 5), nn.Linear(5, 5)))
    body.add_module("out", nn.Linear(5, N_CLASSES))
    net = Network(body, "out", task_classes=TASK_CLASSES, task_labels=True, head="per_task")
    net.adapter = SenaCNN(cut="b")
    net.adapter.attach(net)
    assert list(net.adapter.branches.named) == ["b.1", "b.2"], "b.0 follows a.1"
    assert list(net.adapter.trunk_norms.named) == ["b.0"]


def test_a_share_is_not_cut_short_by_rounding():
    body = nn.Sequential(nn.Flatten(), nn.Linear(192, 2), *[nn.Linear(2, 2) for _ in range(49)])
    adapter = SenaCNN(cut=0.58, base="frozen")
    adapter.attach(body)
    assert len(adapter.adapted_layers()) == 21, "0.58 * 50 is 28.999999999999996 to a computer"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cut": "hiden"}, ["adapter.cut=hiden", "did you mean 'hidden'?"]),
        ({"cut": "norm2"}, ["adapter.cut=norm2", "layer with weights"]),
        ({"cut": ""}, ["adapter.cut="]),
        ({"cut": 0.2}, ["adapter.cut=0.2 of 4 layers", "nothing is frozen", "from 0.25"]),
        ({"cut": 1.0}, ["adapter.cut=1", "nothing is left"]),
        ({"base": "frozen", "branch_init": "scratch"}, ["adapter.branch_init=scratch", "adapter.base=first_task"]),
    ],
)
def test_a_cut_that_cannot_be_made_is_refused(options, words):
    with pytest.raises(RequestError) as caught:
        network(**options)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert len(message.splitlines()) == 2


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["adapter.cut=0"], ["adapter.cut=0", "above 0 and below 1"]),
        (["adapter.cut=1.5"], ["adapter.cut=1.5", "above 0 and below 1"]),
        (["adapter.cut=[0.5]"], ["adapter.cut"]),
        (["adapter.cut=true"], ["adapter.cut"]),
        (["adapter.branch_init=imagenet"], ["adapter.branch_init", "scratch, first_task"]),
        (["placement=convs"], ["placement has no use here", "adapter=senacnn places nothing"]),
        (["placement.kinds=[conv]"], ["placement.kinds has no use here"]),
        (["adapter.rank=3"], ["adapter.rank", "no key 'rank'"]),
    ],
)
def test_what_has_no_meaning_is_refused(typed, words):
    overrides = ["adapter=senacnn", *typed]
    with pytest.raises(RequestError) as caught:
        settle(compose(overrides), overrides)
    assert all(word in str(caught.value) for word in words), caught.value


# ------------------------------------------------------------------------------------------------ the branch


@pytest.mark.parametrize("cut", ["conv2", "hidden", "classifier"])
def test_a_branch_learns_as_a_copy_of_the_tail_on_frozen_features_would(cut):
    net = network(cut=cut)
    learn(net, 0)
    layers = [getattr(item, "base", item) for item in net.backbone]  # without their routing
    start = next(i for i, (name, _) in enumerate(net.backbone.named_children()) if name == cut)
    trunk, tail = nn.Sequential(*layers[:start]), nn.Sequential(*layers[start:-1], net.head.classifiers[1])
    trunk, tail = copy.deepcopy(trunk).eval(), copy.deepcopy(tail).requires_grad_(True).train()
    optimiser = adam(list(tail.parameters()))
    generator = torch.Generator().manual_seed(101)
    for step in range(4):  # the data of `builders.train` for task 1
        x = images(6, seed=1000 + step, shift=1.0)
        y = torch.randint(2, (6,), generator=generator)
        optimiser.zero_grad()
        nn.functional.cross_entropy(tail(trunk(x))[:, TASK_CLASSES[1]], y).backward()
        optimiser.step()
    before = net(images(), 0).detach()
    learn(net, 1)
    expected = tail.eval()(trunk(images()))[:, TASK_CLASSES[1]]
    torch.testing.assert_close(net(images(), 1)[:, TASK_CLASSES[1]], expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(net(images(), 0), before)


def test_the_first_task_trains_the_base_and_later_ones_their_branch_only():
    net = network(cut="conv2")
    names = {name.replace(".base", "") for name, _ in backbone().named_parameters() if "classifier" not in name}
    heads = [{f"classifier.classifiers.{task}.{key}" for key in ("weight", "bias")} for task in range(3)]
    net.begin_task([0])
    assert {name.replace(".base", "") for name in open_parameters(net)} == names | heads[0]
    net.end_task()
    assert not open_parameters(net)
    for task in (1, 2):
        net.begin_task([task])
        own = {name for name in open_parameters(net) if f".copies.{task}." in name}
        assert own and open_parameters(net) == own | heads[task]
        net.end_task()


@pytest.mark.parametrize("branch_init", ["first_task", "scratch"])
def test_where_a_branch_starts(branch_init):
    net = network(cut="conv2", branch_init=branch_init)
    initial = backbone_of(seed=0)
    learn(net, 0)
    trained = {name: copy.deepcopy(item.base) for name, item in net.adapter.branches.named.items()}
    for task in (1, 2):
        net.begin_task([task])
        for name, copies in net.adapter.branches.named.items():
            start = trained[name] if branch_init == "first_task" else initial.get_submodule(name)
            other = initial.get_submodule(name) if branch_init == "first_task" else trained[name]
            now, wanted = copies.copies[str(task)].state_dict(), start.state_dict()
            assert all(torch.equal(now[key], wanted[key]) for key in wanted), "weights and statistics"
            assert not torch.equal(now["weight"], other.state_dict()["weight"])
        train(net, task, steps=2, optimizer=adam)
        net.end_task()
    assert "_initial" not in str(net.state_dict().keys())


def backbone_of(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return backbone()


def test_a_task_that_begins_again_goes_on_with_its_branch():
    net = network(cut="hidden", branch_init="scratch")
    learn(net, 0)
    learn(net, 1)
    weight = net.backbone.hidden.copies["1"].weight.detach().clone()
    net.begin_task([1])
    assert torch.equal(net.backbone.hidden.copies["1"].weight, weight)


def test_statistics_of_the_trunk_stand_still_once_it_is_frozen():
    net = network(cut="conv2")

    def statistics() -> dict[str, torch.Tensor]:
        return {name: item.clone() for name, item in net.named_buffers() if "norm1" in name and "running" in name}

    first = statistics()
    learn(net, 0)
    after = statistics()
    assert first and not any(torch.equal(first[name], after[name]) for name in first)
    net.begin_task([1])
    net.train()
    assert not net.backbone.norm1.base.training and net.backbone.norm2.copies["1"].training
    learn(net, 1)
    assert all(torch.equal(after[name], item) for name, item in statistics().items())
    frozen = network(cut="conv2", base="frozen").train()
    assert not frozen.backbone.norm1.base.training


def test_the_weights_of_a_branch_against_those_of_the_base():
    net = network(cut="conv2")
    learn(net, 0)
    assert all(float(net.adapter.delta_weight(name).abs().max()) == 0 for name in ("conv2", "hidden"))
    assert net.adapter.drift() == 0.0
    learn(net, 1)
    net.activate(1)
    base = {name: net.backbone.get_submodule(name).base.weight for name in ("conv2", "hidden")}
    own = {name: net.backbone.get_submodule(name).copies["1"].weight for name in ("conv2", "hidden")}
    for name, weight in own.items():
        assert torch.equal(net.adapter.delta_weight(name), weight - base[name])
        assert float(net.adapter.delta_weight(name).abs().max()) > 0
    flat = torch.cat([(own[name] - base[name]).flatten() for name in own])
    assert net.adapter.drift() == pytest.approx(float(flat.norm()), rel=1e-5)
    for name in ("conv1", "norm2", "classifier", "nothing"):
        with pytest.raises(KeyError):
            net.adapter.delta_weight(name)
    logits = net(images(), 1)
    net.adapter.merge()
    assert torch.equal(net(images(), 1), logits) and torch.equal(net.backbone.hidden.base.weight, base["hidden"])
    net.adapter.unmerge()
    assert torch.equal(net(images(), 1), logits)


def test_a_deep_copy_has_branches_of_its_own():
    net = network(cut="hidden")
    learn(net, 0)
    learn(net, 1)
    other, before = copy.deepcopy(net), net(images(), 1)
    assert torch.equal(other(images(), 1), before)
    learn(other, 1)
    assert not torch.equal(other(images(), 1), before) and torch.equal(net(images(), 1), before)


def test_an_attention_is_replicated_as_one_and_loose_parameters_are_named():
    torch.manual_seed(0)
    options = {"image_size": 8, "patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    body = VisionTransformer(**options, num_classes=N_CLASSES)
    net = Network(body, "heads.head", task_classes=TASK_CLASSES, task_labels=True, head="per_task").eval()
    with torch.no_grad():
        plain = net(images(), 1)
    net.adapter = SenaCNN(cut="encoder.layers.encoder_layer_1", base="frozen")
    net.adapter.attach(net)
    assert net.adapter.warnings == ["belongs to no layer and is not replicated: class_token, encoder.pos_embedding"]
    block = "encoder.layers.encoder_layer_1"
    assert net.adapter.adapted_layers() == [f"{block}.self_attention", f"{block}.mlp.0", f"{block}.mlp.3"]
    net.begin_task([1])
    attention = net.backbone.get_submodule(f"{block}.self_attention")
    with torch.no_grad():
        assert torch.equal(net.eval()(images(), 1), plain)
        change = torch.randn(24, 8)
        attention.copies["1"].in_proj_weight += change
        assert not torch.allclose(net(images(), 1)[:, TASK_CLASSES[1]], plain[:, TASK_CLASSES[1]])
        delta = net.adapter.delta_weight(f"{block}.self_attention")
        torch.testing.assert_close(delta[: 24 * 8], change.flatten())
        assert float(delta[24 * 8 :].abs().max()) == 0 and len(delta) == 24 * 8 + 8 * 8
        assert net.adapter.drift() == pytest.approx(float(change.norm()))
    assert not any(item.requires_grad for name, item in net.named_parameters() if "encoder_layer_0" in name)


# ----------------------------------------------------------------------------------------------- the account


def test_the_account_of_a_small_network_by_hand():
    base = 168 + 12 + 16 + 216 + 330  # as in test_network.py
    net = network(cut="conv2")
    stored = []
    for task in range(3):
        net.begin_task([task])
        row = parameter_row(net, task + 1)
        # a branch: conv2 216 and hidden 330, the affine and the running numbers of norm2, 16 each; a head of 66
        assert (row["adapter"], row["normalisation"], row["buffers"], row["head"]) == (
            546 * task, 16 * task, 16 * task, 66 * (task + 1),
        )  # fmt: skip
        assert row["base"] == base and row["inference"] == base + 66
        assert row["trainable"] == (546 + 16 + 66 if task else base + 66)
        rows = layer_rows(net, task)
        assert [(item["name"], item["kind"], item["parameters"], item["delta_norm"]) for item in rows] == (
            [("conv2", "full", 216, None), ("hidden", "full", 330, None)] if task else []
        )
        net.end_task()
        stored.append(row["stored"])
    assert stored == [base + 66, base + 2 * 66 + 562, base + 3 * 66 + 2 * 562]


@pytest.mark.parametrize(
    ("cut", "published"),
    [("classifier.0", 120_365_256), ("classifier.3", 17_600_712), ("classifier.6", 819_400)],
)
def test_the_published_sizes_of_vgg19_bn_with_200_classes(cut, published, tmp_path):
    typed = ["mode=plan", "benchmark=split_cub200", "backbone=vgg19_bn", "backbone.pretrained=true", "adapter=senacnn"]
    result = small_run(
        tmp_path, *typed, f"adapter.cut={cut}", f"data_root={tmp_path / 'nowhere'}", "quiet=true", plain=True
    )
    rows = table(result.folder / "parameters.csv")
    for task, row in enumerate(rows, start=1):
        assert int(row["adapter"]) + int(row["head"]) == task * published
        assert int(row["trainable"]) == published and row["normalisation"] == row["buffers"] == "0"
    layers = table(result.folder / "layers.csv")
    assert sum(int(item["parameters"]) for item in layers if item["task"] == "1") == published - 819_400


def test_half_of_vgg19_bn_is_its_first_nine_convolutions(tmp_path):
    typed = ["mode=plan", "benchmark=split_cifar100", "backbone=vgg19_bn", "adapter=senacnn", "quiet=true"]
    result = small_run(tmp_path, *typed, "benchmark.n_tasks=2", f"data_root={tmp_path / 'nowhere'}", plain=True)
    names = [row["name"] for row in table(result.folder / "layers.csv")]
    # 19 layers: floor(9.5) frozen; torchvision's features.30 is the tenth convolution
    assert names[:2] == ["features.30", "features.33"] and names[-2:] == ["classifier.0", "classifier.3"]
    assert len(names) == 9, "seven convolutions and two linear layers, on the second task only"
    first, second = table(result.folder / "parameters.csv")
    assert first["adapter"] == "0" and int(second["adapter"]) == 7 * (512 * 512 * 9 + 512) + 119_545_856
    assert int(second["normalisation"]) == 7 * 1024


# ------------------------------------------------------------------------------------------------ whole runs


@pytest.mark.parametrize("base", ["first_task", "frozen"])
@pytest.mark.parametrize("strategy", ["naive", "ewc", "replay", "lwf", "si", "gem", "agem", "cumulative"])
def test_later_tasks_leave_the_logits_of_earlier_ones_bit_identical(strategy, base, tmp_path, monkeypatch):
    logits: dict[tuple[int, int], torch.Tensor] = {}
    watch = Watch(
        after_eval_iteration=lambda s: logits.update(
            {(s.clock.train_exp_counter, s.experience.current_experience): s.mb_output.clone()}
        )
    )
    made = watch_assembly(monkeypatch, lambda s: s.plugins.append(watch))
    typed = ["adapter=senacnn", f"adapter.base={base}", f"strategy={strategy}", "benchmark.n_tasks=5"]
    typed += ["trainer.epochs=2", "adapter.cut=block2.conv", "trainer.eval_batch_size=512"]
    typed += ["trainer.channels_last=false"]  # as the fresh network is
    result = small_run(tmp_path, *typed)
    for task in range(5):
        for later in range(task + 1, 6):
            assert torch.equal(logits[later, task], logits[task + 1, task])
        assert task == 0 or not torch.equal(logits[task, task], logits[task + 1, task]), "the task learned nothing"
    assert not any(item.requires_grad for item in result.network.parameters()), "a finished task is still open"
    assert result.summary["forgetting"] == 0.0 and result.summary["bwt"] == 0.0

    save_file(result.network.state_dict(), tmp_path / "network.safetensors")
    torch.manual_seed(99)
    stream = SplitDigits(n_tasks=5).stream(tmp_path)
    fresh = build_network(settled(*typed), SplitDigits(n_tasks=5).outline(tmp_path), network_class=TaskAwareNetwork)
    for task in range(5):
        fresh.begin_task([task])
        fresh.end_task()
    fresh.load_state_dict(load_file(tmp_path / "network.safetensors"))
    fresh.eval()
    with torch.no_grad():
        for task in stream.tasks:
            ((x, _, tasks),) = made[0].lane.evaluation(task.test.ids, 512)
            assert torch.equal(fresh(x, tasks), logits[task.index + 1, task.index])


def test_a_branch_learns_more_than_a_head_does(tmp_path):
    typed = [
        "adapter=senacnn",
        "benchmark.n_tasks=5",
        "benchmark.per_class=60",
        "trainer.epochs=6",
        "optimizer.lr=0.01",
    ]
    branch = small_run(tmp_path / "branch", *typed, "adapter.cut=block2.conv")
    head = small_run(tmp_path / "head", *typed, "adapter.cut=classifier")
    assert branch.summary["acc"] > 0.9 and branch.summary["acc"] > head.summary["acc"]
    assert branch.summary["parameter_growth"] > head.summary["parameter_growth"]


def test_without_labels_the_largest_output_chooses_the_branch(tmp_path):
    typed = ["adapter=senacnn", "adapter.cut=block2.conv", "benchmark.task_labels=false", "benchmark.n_tasks=5"]
    result = small_run(tmp_path, *typed, "benchmark.per_class=60", "trainer.epochs=6", "optimizer.lr=0.01")
    net, chosen, right = result.network.eval(), [], []
    assert net.inference.rule == "max_output"
    with torch.no_grad():
        for task in SplitDigits(n_tasks=5, task_labels=False).stream(tmp_path).tasks:
            x, y = task.test[:]
            every = torch.stack([net.for_task(x, other) for other in range(5)])  # other tasks' classes at -infinity
            answer = every.amax(0).argmax(1)  # the largest logit of all branches is of the chosen one
            right.append(float((answer == y).double().mean()))
            chosen.append(float((answer // 2 == task.index).double().mean()))
    assert as_array(result.matrix)[-1] == pytest.approx(right, abs=0.01)
    assert result.summary["task_inference_accuracy"] == pytest.approx(np.mean(chosen), abs=0.01)
    assert math.isclose(result.summary["acc"], np.mean(right), abs_tol=0.01) and result.summary["acc"] > 0.3
