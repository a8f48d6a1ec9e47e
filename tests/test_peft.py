"""The `peft` adapter: methods of another library through the life of ours."""

from __future__ import annotations

import csv
import sys
from collections import OrderedDict

import pytest
import torch
from builders import TASK_CLASSES, images, open_parameters, train
from runs_helpers import same, small_run
from safetensors.torch import load, load_file, save, save_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from cl_runner.adapters import PEFT, Placement
from cl_runner.backbones.network import Network
from cl_runner.cli import execute
from cl_runner.config.checks import build, settle
from cl_runner.config.compose import compose
from cl_runner.errors import RequestError
from cl_runner.modalities.images import build_network

ALL = ["conv1", "conv2", "hidden"]
# method -> (options, layers, numbers of one set, rank). As matrices the weights are 6 x 27, 8 x 54 and 10 x 32.
#   LoRA: r (rows + columns) a layer. DoRA: a magnitude for every row more. LoHa: two LoRAs, multiplied entry by entry.
#   LoKr: W1 kron W2 from 3 = 1*3, 6 = 2*3, 8 = 2*4, 32 = 4*8, 10 = 2*5: 2*1 + 3*3*9, 2*2 + 4*3*9, and where r is below
#   half of W2's longer side W2 is a product too: 2*4 + 2 (5 + 8).
#   IA3: one number a row. OFT with blocks of b: 32 / b skew-symmetric b x b. VeRA: one number a row and one a rank.
LORA = 2 * (6 + 27) + 2 * (8 + 54) + 2 * (10 + 32)
METHODS = {
    "lora": ({"r": 2, "lora_alpha": 3}, ALL, LORA, 2),
    "dora": ({"r": 2}, ALL, LORA + 6 + 8 + 10, 2),
    "loha": ({"r": 2, "alpha": 3}, ALL, 2 * LORA, 2),
    "LoKr": ({"r": 2}, ALL, 2 + 81 + 4 + 108 + 8 + 26, 2),
    "ia3": ({}, ALL, 6 + 8 + 10, None),
    "oft": ({"r": 0, "oft_block_size": 4}, ["hidden"], 32 // 4 * 6, None),
    "vera": ({"r": 4}, ["hidden"], 10 + 4, 4),
}
every_method = pytest.mark.parametrize("method", METHODS)
NORMS, HEAD = 2 * (6 + 8), 10 * 6 + 6  # BatchNorm's weights and biases, and one head


def backbone() -> nn.Module:
    """Two convolutions with BatchNorm, a hidden linear layer and a classifier; biases everywhere."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 6, 3, padding=1),
            norm1=nn.BatchNorm2d(6),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(6, 8, 3, stride=2),
            norm2=nn.BatchNorm2d(8),
            relu2=nn.ReLU(),
            pool=nn.AdaptiveAvgPool2d(2),
            flatten=nn.Flatten(),
            hidden=nn.Linear(32, 10),
            relu3=nn.ReLU(),
            classifier=nn.Linear(10, 6),
        )
    )


def plain(seed: int = 0) -> Network:
    """The backbone as a network of three tasks, without an adapter, in evaluation mode."""
    torch.manual_seed(seed)
    return Network(
        backbone(), "classifier", task_classes=TASK_CLASSES, task_labels=True, head="per_task"
    ).eval()  # fmt: skip


def adapted(method: str, *, sharing: str = "per_task", base: str = "frozen", seed: int = 0) -> Network:
    """The same network with a method of PEFT."""
    options, layers, *_ = METHODS[method]
    net = plain(seed)
    net.adapter = PEFT(method=method, options=options, sharing=sharing, base=base)
    net.adapter.attach(net, Placement(names=layers))
    return net


def disturb(net: nn.Module, seed: int = 1) -> None:
    """Moves everything that is open; fresh sets compute what the base computes, and most tests would be empty."""
    generator = torch.Generator().manual_seed(seed)
    for item in net.parameters():
        if item.requires_grad:
            item.data += 0.3 * torch.randn(item.shape, generator=generator).to(item)


def features(net: Network, task: int) -> torch.Tensor:
    """The backbone's output under a task, in the network's own precision."""
    net.activate(task)
    return net.backbone(images().to(next(net.parameters()).dtype)).detach()


@every_method
@pytest.mark.parametrize("sharing", ["per_task", "shared"])
def test_the_output_stays_the_bases_until_something_has_learned(method, sharing):
    expected = plain()(images(), 0)
    net = adapted(method, sharing=sharing)
    assert torch.equal(net(images(), 0), expected)  # the set with which PEFT has wrapped the layers takes no part
    net.begin_task([0])
    net.eval()
    assert (net(images(), 0) - expected).nan_to_num().abs().max() == 0
    assert all(float(net.adapter.delta_weight(name).abs().max()) <= 1e-7 for name in net.adapter.adapted_layers())
    disturb(net)
    assert (net(images(), 0) - expected).nan_to_num().abs().max() > 0.01


@every_method
def test_gradients_reach_the_open_set_and_nothing_else(method):
    _, layers, size, rank = METHODS[method]
    net = adapted(method)
    assert open_parameters(net) == set()
    net.begin_task([0])
    net.end_task()
    assert open_parameters(net) == set()
    net.begin_task([0])
    net.begin_task([1])  # closes the one before, whether it was ended or not
    opened = open_parameters(net)
    sets = {name for name in opened if name.split(".")[0] in layers}
    others = {f"{norm}.copies.1.{item}" for norm in ("norm1", "norm2") for item in ("weight", "bias")}
    assert opened - sets == others | {f"classifier.classifiers.1.{item}" for item in ("weight", "bias")}
    assert all("task1" in name.split(".") and "base_layer" not in name for name in sets)
    disturb(net)  # where one factor is zero, the other has no gradient
    net.train()(images(), 1)[:, TASK_CLASSES[1]].square().sum().backward()
    assert {name for name, item in net.backbone.named_parameters() if item.grad is not None} == opened
    assert all(float(item.grad.abs().max()) > 0 for name, item in net.backbone.named_parameters() if name in sets)
    assert sum(item.numel() for item in net.parameters() if item.requires_grad) == size + NORMS + HEAD
    rows = net.adapter.layer_report(1)
    assert [row.name for row in rows] == layers and {row.rank for row in rows} == {rank}
    assert [row.kind for row in rows] == ["linear" if name == "hidden" else "conv" for name in layers]
    assert sum(row.parameters for row in rows) == size
    report = net.adapter.parameter_report()
    assert (report.adapter, report.normalisation, report.buffers) == (2 * size, 2 * NORMS, 2 * NORMS)  # two tasks


@every_method
def test_merging_is_exact_and_the_base_comes_back_bit_for_bit(method):
    net = adapted(method)
    net.double()
    for task in (0, 1):
        net.begin_task([task])
        disturb(net, seed=task)
    net.eval()
    bases = {name: net.backbone.get_submodule(name).get_base_layer() for name in net.adapter.adapted_layers()}
    states = {name: {key: item.clone() for key, item in base.state_dict().items()} for name, base in bases.items()}
    places = {name: base.weight.data_ptr() for name, base in bases.items()}
    before = {task: features(net, task) for task in (1, 0)}
    assert not torch.equal(before[0], before[1])
    deltas = {name: net.adapter.delta_weight(name) for name in bases}
    net.adapter.merge()
    net.adapter.merge()  # once more changes nothing
    assert (features(net, 0) - before[0]).abs().max() < 1e-10
    for name, base in bases.items():
        assert torch.equal(base.weight - states[name]["weight"], deltas[name])
        assert torch.equal(net.adapter.delta_weight(name), deltas[name])  # the same while it is merged
    assert torch.equal(features(net, 1), before[1])  # another task takes it out again
    net.activate(0)
    net.adapter.merge()
    net.adapter.unmerge()
    assert torch.equal(features(net, 0), before[0])
    for name, base in bases.items():
        assert same(dict(base.state_dict()), states[name]) and base.weight.data_ptr() == places[name]
    expected = sum(float(delta.norm()) ** 2 for delta in deltas.values()) ** 0.5
    assert net.adapter.drift() == pytest.approx(expected) and expected > 0.1


@every_method
def test_delta_weight_is_what_a_plain_network_needs(method):
    net, twin = plain().double(), plain().double()
    options, layers, *_ = METHODS[method]
    for one in (net, twin):
        for name in layers:  # IA3 scales outputs, biases too, and those are in no delta of a weight
            one.backbone.get_submodule(name).bias.data.zero_()
    net.adapter = PEFT(method=method, options=options, sharing="shared", base="frozen")
    net.adapter.attach(net, Placement(names=layers))
    net.adapter.begin_task(0)
    disturb(net)
    for name in layers:
        twin.backbone.get_submodule(name).weight.data += net.adapter.delta_weight(name)
    assert (features(net, 0) - twin.backbone(images().double())).abs().max() < 1e-10
    with pytest.raises(KeyError):
        net.adapter.delta_weight("conv9")


@every_method
@pytest.mark.parametrize("base", ["frozen", "first_task"])
def test_later_training_never_changes_an_earlier_task_and_the_state_brings_all_back(method, base):
    net, kept = adapted(method, base=base), {}
    for task in range(3):
        net.begin_task([task])
        before = net.eval()(images(), task).detach()
        train(net, task, steps=3, optimizer=lambda items: torch.optim.AdamW(items, lr=0.02, weight_decay=0.1))
        net.end_task()
        kept[task] = net.eval()(images(), task).detach()
        assert not torch.equal(kept[task], before)
        assert all(torch.equal(net(images(), earlier), kept[earlier]) for earlier in kept)
    fresh = adapted(method, base=base, seed=77)
    for task in range(3):
        fresh.begin_task([task])
        fresh.end_task()
    fresh.load_state_dict(load(save(net.state_dict())), strict=True)  # no tensor twice, or it could not be written
    fresh.eval()
    assert all(torch.equal(fresh(images(), task), kept[task]) for task in kept)


def test_a_base_that_trains_first_has_no_set_for_the_first_task():
    net = adapted("lora", base="auto")  # nothing was loaded: first_task
    assert net.adapter.base == "first_task"
    net.begin_task([0])
    names = {f"{name}.base_layer.{item}" for name in ALL for item in ("weight", "bias")}
    norms = {f"{name}.base.{item}" for name in ("norm1", "norm2") for item in ("weight", "bias")}
    assert open_parameters(net) == names | norms | {f"classifier.classifiers.0.{item}" for item in ("weight", "bias")}
    assert net.adapter.layer_report(0) == [] and net.adapter.parameter_report().adapter == 0
    net.begin_task([1])  # closes the base, whether the first task was ended or not
    assert not open_parameters(net) & (names | norms)
    assert net.adapter.parameter_report().adapter == LORA
    net.activate(0)
    assert all(float(net.adapter.delta_weight(name).abs().max()) == 0 for name in ALL)


def test_a_shared_set_is_no_set_of_the_task_that_trained_the_base():
    net = adapted("lora", sharing="shared", base="first_task")
    for task in (0, 1):
        net.begin_task([task])
        net.end_task()
    assert net.adapter.layer_report(0) == [] and len(net.adapter.layer_report(1)) == 3
    assert not any("template" in name for name in net.state_dict())


def test_dropout_is_for_training_alone():
    net = plain()
    net.adapter = PEFT(options={"r": 2, "lora_dropout": 0.5}, base="frozen")
    net.adapter.attach(net, Placement(names=["hidden"]))
    net.begin_task([0])  # in evaluation mode, as `plain` left it
    disturb(net)
    assert torch.equal(net(images(), 0), net(images(), 0))
    net.train()
    assert not torch.equal(net(images(), 0), net(images(), 0))


def test_what_layers_share_is_counted_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    adapter = PEFT(method="tinylora", options={"r": 2, "u": 5, "weight_tying": 1.0}, base="frozen")
    adapter.attach(model)
    adapter.begin_task(0)  # one trained vector of u numbers for all layers; the projections are drawn
    assert sum(item.numel() for item in model.parameters() if item.requires_grad) == 5
    assert adapter.parameter_report().adapter == 5
    assert [row.parameters for row in adapter.layer_report(0)] == [5, 0]


def test_tasks_that_begin_together_are_open_together():
    net = adapted("lora")
    net.begin_task([0, 2])
    net.train()(images(6), torch.tensor([0, 2, 0, 2, 2, 0]))[:, [0, 1, 4, 5]].clamp(min=-9).sum().backward()
    found = {name for name, item in net.backbone.named_parameters() if item.grad is not None}
    assert found == open_parameters(net)
    assert {part for name in found for part in name.split(".") if part.startswith("task")} == {"task0", "task2"}


def test_one_set_is_carried_on_and_batchnorm_stays_still():
    net = adapted("loha", sharing="shared")
    assert not net.adapter.per_task
    states = []
    for task in (0, 1):
        net.begin_task([task])
        states.append({name: item.clone() for name, item in net.backbone.state_dict().items()})
        train(net, task, steps=3, optimizer=lambda items: torch.optim.SGD(items, lr=0.1))
        net.end_task()
        assert net.adapter.parameter_report().adapter == 2 * LORA
        assert net.adapter.parameter_report().normalisation == 0
    first, second = states
    moved = {name for name in first if not torch.equal(first[name], second[name])}
    assert moved and all("shared" in name.split(".") or name.startswith("classifier.") for name in moved)


def test_a_name_is_that_layer_and_not_every_layer_that_ends_so():
    model = nn.Sequential(OrderedDict(conv1=nn.Conv2d(3, 3, 1), layer1=nn.Sequential()))
    model.layer1.add_module("conv1", nn.Conv2d(3, 3, 1))
    adapter = PEFT(options={"r": 2}, base="frozen")
    adapter.attach(model, Placement(names=["conv1"]))
    adapter.begin_task(0)
    assert open_parameters(model) == {"conv1.lora_A.shared.weight", "conv1.lora_B.shared.weight"}
    assert type(model.layer1.conv1) is nn.Conv2d


def test_ia3_scales_what_enters_the_second_layer_of_an_mlp():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50)).eval()
    tokens = torch.arange(12).view(2, 6)
    expected = model(tokens).logits.detach()
    adapter = PEFT(method="ia3", base="frozen")
    adapter.attach(model, Placement(pattern=r"c_attn|mlp\.c_proj"))
    adapter.begin_task(0)
    assert (model(tokens).logits - expected).abs().max() <= 1e-6
    # c_attn has 96 outputs; mlp.c_proj has 4 * 32 inputs and 32 outputs
    assert [row.parameters for row in adapter.layer_report(0)] == [96, 128] * 2
    disturb(model)
    changed = model(tokens).logits.detach()
    adapter.merge()
    assert (changed - expected).abs().max() > 0.01 and (model(tokens).logits - changed).abs().max() < 1e-5


# ---------------------------------------------------------------------------------------------- refusals

CONV, LINEAR = (lambda: nn.Conv2d(4, 4, 3)), (lambda: nn.Linear(8, 8))
REFUSED = [
    ({"method": "lorra"}, LINEAR, r"adapter\.method=lorra: PEFT has no such method\ndid you mean 'lora'\?"),
    ({"method": "adalora"}, LINEAR, "adapter.method=adalora.*training loop"),
    ({"method": "prompt_tuning"}, LINEAR, "adapter.method=prompt_tuning.*no layers"),
    ({"options": {"alpha": 3}}, LINEAR, r"options\.alpha: LoraConfig.*no such field\ndid you mean 'lora_alpha'\?"),
    ({"options": {"target_modules": "0"}}, LINEAR, r"options\.target_modules.*\nchoose layers with placement"),
    ({"options": {"bias": "all"}}, LINEAR, r"options\.bias"),
    ({"options": {"r": "two"}}, LINEAR, r"adapter.options.r=two is not possible\nr of PEFT takes a whole number"),
    ({"options": {"r": 0}}, LINEAR, "adapter.method=lora.*positive"),
    # starts elsewhere, or moves the base itself
    ({"options": {"r": 2, "init_lora_weights": False}}, LINEAR, "layer '0' does not start at the base"),
    ({"options": {"r": 2, "init_lora_weights": "pissa"}}, LINEAR, "layer '0' does not start at the base, its"),
    ({"method": "c3a", "options": {"block_size": 2}}, LINEAR, "adapter.method=c3a: layer '0' does not start"),
    ({"method": "osf"}, LINEAR, "adapter.method=osf: PEFT merges it into layer '0' for good"),
    # PEFT's delta leaves padding and dilation out, so that its output is not that of its merged weights
    ({"options": {"r": 2}}, lambda: nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), "'0', a Conv2d, PEFT comp"),
    ({"options": {"r": 2}}, lambda: nn.Conv2d(4, 4, 3, padding="same", dilation=2), "'0', a Conv2d, PEFT computes"),
    ({"options": {"r": 2}}, lambda: nn.Conv2d(4, 4, 3, dilation=2), "adapter.method=lora.*must match the size"),
    ({"options": {"r": 2}}, lambda: nn.Conv2d(4, 4, 3, groups=2), "Merging is not supported"),
    ({"method": "oft", "options": {"r": 0, "oft_block_size": 3}}, CONV, "adapter.method=oft: layer '0' does not"),
    ({"method": "vera"}, CONV, "adapter.method=vera.*VeRA"),
    # weights that are read without a call
    ({"options": {"r": 2}}, lambda: nn.MultiheadAttention(8, 2), r"placement: '0\.q' is a slice"),
    ({"options": {"r": 2}, "names": ["0.out_proj"]}, lambda: nn.MultiheadAttention(8, 2), r"'0\.out_proj' without"),
    ({"options": {"r": 2}, "names": ["0.linear1"]}, lambda: nn.TransformerEncoderLayer(8, 2), r"'0\.linear1' without"),
    ({"options": {"r": 2}, "names": ["0.0"]}, lambda: tied(), r"'0\.0' shares its weight with '0\.1'"),
]  # fmt: skip


def tied() -> nn.Module:
    """Two layers with one weight, as an embedding and a language model's output."""
    pair = nn.Sequential(nn.Linear(8, 8), nn.Embedding(8, 8))
    pair[1].weight = pair[0].weight
    return pair


@pytest.mark.parametrize(("options", "layer", "message"), REFUSED, ids=[item[2][:40] for item in REFUSED])
def test_refused_in_two_lines(options, layer, message):
    names = options.get("names")
    with pytest.raises(RequestError, match=message) as caught:
        adapter = PEFT(**{key: value for key, value in options.items() if key != "names"}, base="frozen")
        adapter.attach(nn.Sequential(layer()), Placement(names=names))
    assert caught.value.hint and "\n" not in caught.value.message + caught.value.hint


def test_the_head_is_not_peft_s():
    net = plain()
    net.adapter = PEFT(options={"r": 2}, base="frozen")
    with pytest.raises(RequestError, match=r"placement\.head=true"):
        net.adapter.attach(net, Placement(head=True))


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(RequestError, match=r"pip install 'cl-runner\[peft\]'"):
        PEFT()


# ------------------------------------------------------------------------------------------ through cl-run

STREAM = ["benchmark=split_digits", "benchmark.n_tasks=3", "benchmark.first_task_classes=4"]


@pytest.mark.parametrize("sharing", ["shared", "per_task"])
@pytest.mark.parametrize("method", ["loha", "lokr", "ia3", "dora"])
def test_a_run_trains_and_its_state_gives_the_same_network(method, sharing, tmp_path):
    ranked = [] if method == "ia3" else ["adapter.options.r=2"]
    asked = [*STREAM, "adapter=peft", f"adapter.method={method}", f"adapter.sharing={sharing}", "backbone.width=4"]
    result = small_run(tmp_path, *asked, "adapter.base=frozen", *ranked)
    network = result.network.eval()
    assert {row["rank"] for row in rows(result.folder / "layers.csv")} == ({""} if method == "ia3" else {"2"})
    save_file({name: item.contiguous() for name, item in network.state_dict().items()}, tmp_path / "state")
    config = settle(compose([*asked, "adapter.base=frozen", *ranked, "seed=5"]))
    stream = build(config.benchmark).outline(tmp_path)
    fresh = build_network(config, stream)
    for task in range(3):
        fresh.begin_task([task])
        fresh.end_task()
    x = torch.randn(5, *stream.image_shape, generator=torch.Generator().manual_seed(0))
    before = [fresh.eval()(x, task) for task in range(3)]
    fresh.load_state_dict(load_file(tmp_path / "state"), strict=True)
    for task in range(3):
        assert torch.equal(fresh.eval()(x, task), network(x, task))
        assert not torch.equal(before[task], network(x, task))
        fresh.activate(task)
        assert fresh.adapter.drift() > 1e-4  # the sets themselves have learned


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("typed", ["adapter.options.r=2", "+adapter.options.r=2", "adapter.options={r: 2}"])
def test_options_are_typed_like_any_key(typed, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["cl-run"])
    asked = ["mode=plan", *STREAM, "backbone=small_cnn", "adapter=peft", "adapter.method=loha", "adapter.base=frozen"]
    assert execute([*asked, typed, f"output_root={tmp_path}", "quiet=true"]) == 0
    (folder,) = (tmp_path / "quickstart").iterdir()
    # small_cnn: 1 -> 32 and 32 -> 64, 3 x 3; LoHa has two pairs of factors
    expected = 2 * (2 * (9 + 32) + 2 * (32 * 9 + 64))
    assert [int(row["adapter"]) for row in rows(folder / "parameters.csv")] == [expected] * 3
    assert {row["rank"] for row in rows(folder / "layers.csv")} == {"2"}


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["adapter=peft", "adapter.options.rr=2"], ["adapter.options.rr", "LoraConfig"]),
        (["adapter=peft", "adapter.method=losha"], ["adapter.method=losha", "did you mean 'loha'?"]),
        (["adapter=lora", "adapter.options.r=2"], ["adapter.options", "no key 'options'"]),
        (["adapter=peft", "adapter.options=3"], ["adapter.options=3", "options takes keys with values"]),
        (["adapter=peft", "adapter.method=boft", "adapter.options.boft_block_size=1"], ["boft", "mode=plan"]),
    ],
)
def test_wrong_options_end_with_2(typed, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["cl-run"])
    assert execute(["mode=plan", "backbone=small_cnn", *typed, f"output_root={tmp_path}", "quiet=true"]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said
    assert "Traceback" not in said
