"""What frozen layers give is computed once, and the run is bit for bit the one that computes it every time."""

from __future__ import annotations

import copy

import pytest
import torch
from builders import N_CLASSES, TASK_CLASSES
from clip_helpers import clip_run
from prefix_runs import Outcome, build_backbone, learn
from resume_helpers import EVERY_STEP, same_run, small, tormented
from torch import nn
from torch.nn import functional
from torchvision.models import ResNet, VisionTransformer, squeezenet1_1
from torchvision.models.resnet import BasicBlock

from cl_runner.adapters import ConvLoRA, LoRA, NoAdapter, Placement, SenaCNN
from cl_runner.backbones.clip import CLIPClassifier
from cl_runner.backbones.network import Network
from cl_runner.backbones.prefix import Features
from cl_runner.config.checks import settle
from cl_runner.config.compose import compose
from cl_runner.errors import RequestError
from cl_runner.training.features import FeatureBank
from cl_runner.training.prefix import find_cut

LAST = "trainer.channels_last=true"
LAST_HALF = Placement(part="last_half")
ADAPTERS = {
    "none": (NoAdapter, "all"),
    "senacnn": (SenaCNN, "all"),
    "lora": (lambda: LoRA(rank=2, sharing="shared"), LAST_HALF),
    "convlora": (lambda: ConvLoRA(rank=2), LAST_HALF),
    "frozen": (lambda: SenaCNN(base="frozen"), "all"),
}
BACKBONES = {
    "small_cnn": (build_backbone("small_cnn", "backbone.width=8"), 8),
    "resnet20": (build_backbone("resnet20"), 8),
    "resnet": (lambda n: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=n), 8),
    "squeezenet": (lambda n: squeezenet1_1(num_classes=n), 32),  # no BatchNorm
    "vit": (lambda n: VisionTransformer(16, 8, 4, 4, 24, 48, num_classes=n), 16),
}
STEPS = 3 * 12  # samples that a task's steps see: 3 epochs of 12


def both(backbone: str, adapter: str, *typed: str, exact: bool = True, **options) -> tuple[Outcome, Outcome]:
    """A run with the cache and one without, held to be the same; bit for bit where ``exact``."""
    (make, size), (method, placement) = BACKBONES[backbone], ADAPTERS[adapter]
    options = {"size": size, "placement": placement} | options
    cached, plain = (learn(make, method, f"trainer.prefix_cache={on}", *typed, **options) for on in ("true", "false"))
    assert plain.strategy.bank is None and set(plain.in_steps) == {STEPS}
    close = {"rtol": 0, "atol": 0} if exact else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(cached.losses, plain.losses, **close)
    assert cached.matrix == plain.matrix
    if exact:
        assert cached.validation == plain.validation
        torch.testing.assert_close(cached.answers, plain.answers, **close)
        torch.testing.assert_close(cached.weights, plain.weights, **close)
    return cached, plain


CASES = [  # the cut, where there is one: everything before it stands still
    ("small_cnn", "none", None),
    ("small_cnn", "senacnn", "block1"),
    ("small_cnn", "lora", "block1"),
    ("small_cnn", "convlora", "block1.conv"),  # after it comes a BatchNorm copy of each task's own
    ("small_cnn", "frozen", "block1"),
    ("resnet20", "senacnn", "features.stage2.unit1"),
    ("resnet20", "convlora", None),  # the one convolution before a BatchNorm copy is not worth it
    ("resnet", "lora", "layer2"),
    ("squeezenet", "convlora", "features.7.squeeze_activation"),  # after it the paths part
    ("vit", "lora", "encoder.layers.encoder_layer_0"),
]


@pytest.mark.parametrize(("backbone", "adapter", "cut"), CASES)
def test_a_run_is_the_same_with_the_cache(backbone, adapter, cut):
    n_tasks = 3 if backbone == "small_cnn" else 2
    cached, plain = both(backbone, adapter, "optimizer.lr=0.01", n_tasks=n_tasks, validation=4)
    bank = cached.strategy.bank
    found = bank._found["tests"][1]
    assert (found and found.name) == cut
    first = 0 if adapter == "frozen" else STEPS
    assert cached.in_steps == ([first] + [0] * (n_tasks - 1) if cut else [STEPS] * n_tasks)
    assert plain.seen[-1]["evaluation"] == 6 * n_tasks and plain.seen[-1]["besides"] == 3 * 4  # tests, validation
    if cut and n_tasks == 3:
        assert cached.seen[2] == {"steps": 0, "besides": 2 + 12 + 4, "evaluation": 0}, "tests were kept after task 2"
    if not cut:
        assert bank.computed == 0


@pytest.mark.parametrize(
    "typed", ["strategy=ewc", "strategy=si", "trainer.precision=bfloat16", "trainer.channels_last=true"]
)
def test_with_other_settings(typed):
    cached, _ = both("small_cnn", "lora", typed)
    assert cached.in_steps == [STEPS, 0, 0]


@pytest.mark.parametrize("rule", ["max_output", "prototype"])
def test_tasks_are_inferred_from_features(rule):
    cached, _ = both("small_cnn", "senacnn", inference=rule)
    assert cached.in_steps == [STEPS, 0, 0]


def test_iterations_count_as_epochs_do():
    cached, _ = both("small_cnn", "senacnn", "trainer.iterations=9", "trainer.epochs=20")
    assert cached.in_steps == [STEPS, 0, 0]
    once = learn(BACKBONES["small_cnn"][0], SenaCNN, "trainer.epochs=1")
    assert once.in_steps == [12] * 3, "what is seen once is computed once"


def test_augmented_images_are_computed_and_others_kept():
    cached, plain = both("small_cnn", "senacnn", augmentation="crop", validation=4)
    assert cached.in_steps == [STEPS] * 3
    assert (cached.seen[2]["evaluation"], plain.seen[2]["evaluation"]) == (0, 18)
    assert (cached.seen[2]["besides"], plain.seen[2]["besides"]) == (4, 12), "validation, in 3 epochs"


@pytest.mark.parametrize("strategy", ["lwf", "replay"])
def test_strategies_that_look_at_images_get_images(strategy):
    extra = ["strategy.mem_size=8"] if strategy == "replay" else []
    run = learn(BACKBONES["small_cnn"][0], *[ADAPTERS["lora"][0]], f"strategy={strategy}", *extra, placement=LAST_HALF)
    assert run.strategy.bank is None
    with pytest.raises(RequestError, match="needs the images of every batch"):
        typed = [f"strategy={strategy}", *extra, "trainer.cache_gb=1"]
        settle(compose(typed), typed)


# ----------------------------------------------------------------------------------------------- the bound


def test_the_cache_keeps_its_bound():
    sample = 8 * 4 * 4 * 4  # bytes of block1's output, 8 channels of 4x4
    highest = []

    def watch(strategy):
        if strategy.bank is not None:
            strategy.step.learn = _before(strategy.step.learn, lambda: highest.append(strategy.bank.nbytes))

    limit = 7 * sample
    cached, plain = both("small_cnn", "senacnn", f"trainer.cache_gb={limit / 2**30}", exact=False, watch=watch)
    assert max(highest) == limit, "of 12 images 7 are kept, and tests give way"
    assert cached.in_steps == [STEPS, 0, 0], "the others' features are computed too, without a graph"
    assert cached.seen[1]["besides"] > plain.seen[1]["besides"]
    none, _ = both("small_cnn", "senacnn", f"trainer.cache_gb={(sample - 1) / 2**30}")
    assert none.in_steps == [STEPS] * 3 and none.strategy.bank.nbytes == 0


def _before(call, act):
    def acting(*args, **kwargs):
        act()
        return call(*args, **kwargs)

    return acting


@pytest.mark.usefixtures("hurried")
def test_a_killed_run_goes_on_with_the_same_features(calm, tmp_path, monkeypatch):
    loaders, training = [], FeatureBank.training

    def watched(bank, *given, **options):
        loaders.append(training(bank, *given, **options))
        return loaders[-1]

    monkeypatch.setattr(FeatureBank, "training", watched)
    stream = ("benchmark.per_class=8", "benchmark.n_tasks=3", "benchmark.first_task_classes=4")
    validation = "benchmark.validation_fraction=0.2"
    typed = small("adapter=senacnn", "trainer.epochs=2", *stream, validation, "backbone.width=4")
    found, _ = tormented(tmp_path, typed, ("2.1.2", "2.trained", "3.2.1"), EVERY_STEP)
    assert sum(loader is not None for loader in loaders) >= 4, "tasks 2 and 3 train on features, each begun twice"
    same_run(calm(*typed), found)


def test_features_of_a_prefix_that_changed_are_dropped():
    """Also where a fused optimiser has written it, which raises no version."""
    run = learn(BACKBONES["small_cnn"][0], SenaCNN, n_tasks=2)
    bank, net = run.strategy.bank, run.strategy.model
    ids = torch.arange(4)
    net.eval()

    def features():
        return next(iter(bank.evaluation(ids, 4)))[0]

    before, computed = features(), bank.computed
    assert torch.equal(features().plain(), before.plain()) and bank.computed == computed
    assert isinstance(before, Features)
    weight = net.get_parameter("backbone.block1.conv.weight")
    weight.requires_grad_(True)
    version = weight._version
    weight.data += 1  # which no version counts
    assert weight._version == version
    moved, net.moved = net.moved, frozenset()
    net.end_task()
    net.moved = moved
    assert not torch.equal(features().plain(), before.plain())


# ------------------------------------------------------------------------------------------------ no graph


@pytest.mark.parametrize(
    ("backbone", "adapter"), [("small_cnn", "senacnn"), ("small_cnn", "lora"), ("squeezenet", "lora")]
)
def test_nothing_is_computed_for_what_is_frozen(backbone, adapter):
    """Without the cache: no graph below the first adapted layer, and no gradient of a frozen weight anywhere."""
    (make, size), (method, placement) = BACKBONES[backbone], ADAPTERS[adapter]
    answers, batches = [], []

    def watch(strategy):
        first = next(module for module in strategy.model.modules() if isinstance(module, nn.Conv2d))
        first.register_forward_hook(lambda module, inputs, output: answers.append(output))
        strategy.step.learn = _before(strategy.step.learn, lambda: batches.append(strategy.mbatch))

    run = learn(make, method, "trainer.prefix_cache=false", size=size, placement=placement, n_tasks=2, watch=watch)
    net = run.strategy.model.train()
    net.begin_task([1])
    images, labels, _ = batches[-1]
    loss = functional.cross_entropy(net(images, 1), labels)
    assert answers[-1].grad_fn is None and not answers[-1].requires_grad
    opened = {id(item) for item in net.parameters() if item.requires_grad}
    assert {id(item) for item in _leaves(loss)} <= opened
    loss.backward()
    assert {id(item) for item in net.parameters() if item.grad is not None} <= opened


def _leaves(loss: torch.Tensor) -> list[torch.Tensor]:
    """Every tensor for which the backward pass computes a gradient to keep."""
    waiting, seen, found = [loss.grad_fn], set(), []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        found += [node.variable] if hasattr(node, "variable") else []
        waiting += [earlier for earlier, _ in node.next_functions]
    return found


def test_a_frozen_tower_has_no_graph(tmp_path, monkeypatch):
    answers = []
    encode = CLIPClassifier.encode_images
    monkeypatch.setattr(
        CLIPClassifier, "encode_images", lambda self, x: (answers.append(encode(self, x)), answers[-1])[1]
    )
    typed = ["adapter=lora", "placement=q", "placement.towers=[text]", "adapter.base=frozen"]
    clip_run(tmp_path, *typed, "trainer.prefix_cache=false", names=("colours",))
    assert answers and not any(item.requires_grad for item in answers)


# -------------------------------------------------------------------------- networks that cannot be cut anywhere


class Chain(nn.Module):
    """Three frozen convolutions and an open one, with what `how` puts beside or between them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.a, self.b, self.c, self.d = (nn.Conv2d(3 if i == 0 else 6, 6, 3, padding=1) for i in range(4))
        self.norm = nn.BatchNorm2d(6)
        self.relu = nn.ReLU(inplace=True)
        self.up = nn.Conv2d(6, 6, 1)
        self.shift = nn.Parameter(torch.zeros(6, 1, 1))
        nn.init.zeros_(self.up.weight)
        self.drop = nn.Dropout(0.5)
        self.classifier = nn.Linear(6, N_CLASSES)

    def forward(self, x):
        how, first = self.how, self.a(x)
        y = self.relu(first)
        if how == "shift":
            y = y + self.shift
        if how == "dropout":
            y = functional.dropout(y, 0.5, self.training)
        y = self.relu(self.b(y))
        if how == "norm":
            y = self.norm(y)
        if how == "batch":
            y = y - y.mean(0, keepdim=True)
        z = self.c(y)
        if how == "beside":
            z = z + self.up(y)
        if how == "from_start":
            z = z + first
        if how == "image":
            z = z + x.repeat(1, 2, 1, 1)
        z = self.d(self.relu(z))
        if how == "tail":
            z = self.drop(z)
        return self.classifier(z.mean((2, 3)))


@pytest.mark.parametrize(
    ("how", "cut"),
    [
        ("plain", "c"),  # the ReLU that is called again and again is no place of its own
        ("tail", "c"),  # dropout after the cut draws what it would
        ("shift", "a"),  # an open parameter that the network itself adds
        ("dropout", "a"),
        ("norm", "b"),  # its statistics follow the data
        ("batch", "b"),  # what a sample gives depends on the others
        ("beside", "b"),  # the zero weight beside c changes nothing yet, and has a gradient
        ("from_start", "a"),  # a residual around everything else
        ("image", None),  # the image is used twice
    ],
)
def test_where_a_network_can_be_cut(how, cut):
    torch.manual_seed(0)
    chain = Chain(how)
    net = Network(chain, "classifier", task_classes=TASK_CLASSES, task_labels=True)
    net.adapter = NoAdapter()
    net.adapter.attach(net)
    for module in (chain.a, chain.b, chain.c, chain.norm):
        module.requires_grad_(False)
    net.begin_task([0])
    net.train()
    before = copy.deepcopy(net.state_dict())
    torch.manual_seed(1)
    random = torch.get_rng_state()
    images = torch.randn(7, 3, 8, 8)
    random = torch.get_rng_state()
    found = find_cut(net, images, learning=True)
    assert (found and found.name) == cut
    assert torch.equal(random, torch.get_rng_state()) and net.training
    assert all(torch.equal(item, before[name]) for name, item in net.state_dict().items())
    assert all(item.grad is None for item in net.parameters())
    assert not any("forward" in vars(module) for module in net.modules())
    if found is not None:
        other = torch.randn(3, 3, 8, 8)
        torch.manual_seed(2)
        whole = net(other, 0)
        features = found.mark(found.run(other).detach())
        torch.manual_seed(2)
        torch.testing.assert_close(net(features, 0), whole)
