"""Which task a sample is of, where no label says so: the rules, the routing by them, and whole runs."""

from __future__ import annotations

import copy
import json
import math

import numpy as np
import pytest
import torch
from avalanche.training.plugins import EWCPlugin
from builders import N_CLASSES, TASK_CLASSES, backbone, images, learned, network, train
from runs_helpers import as_array, settled, small_run, table, watch_assembly
from safetensors.torch import load_file, save_file
from sklearn.neighbors import NearestCentroid
from torch import nn

from cl_runner.adapters import PerTaskAdapter
from cl_runner.backbones.inference import TaskInference, largest_output, lowest_entropy, nearest_prototype
from cl_runner.benchmarks.classes import SplitDigits
from cl_runner.errors import RequestError
from cl_runner.modalities.images import build_network

# ------------------------------------------------------------------------------------------------ the rules


def logs(*probabilities: float) -> list[float]:
    """Logits whose softmax these are."""
    return [math.log(value) for value in probabilities]


def test_the_largest_output_wins_whatever_the_other_outputs_are():
    first = torch.tensor([[3.0, -9.0], [1.0, 1.0], [-5.0, -2.0], [2.0, 0.0]])
    second = torch.tensor([[2.9, 2.9, 2.9], [1.1, -7.0, 0.0], [-3.0, -4.0, -5.0], [2.0, 1.0, 1.0]])
    assert largest_output([first, second]).tolist() == [0, 1, 0, 0]  # the last is a tie: the earlier task


def test_the_surest_task_wins_relative_to_its_number_of_classes():
    # H(0.9, 0.1) = 0.3251, over log 2: 0.469; H(0.85, 0.05, 0.05, 0.05) = 0.5875, over log 4: 0.424;
    # H(0.82, 0.06, 0.06, 0.06) = 0.6691, over log 4: 0.483. Without the division the two classes would win all three.
    two = torch.tensor([logs(0.9, 0.1)] * 2 + [logs(0.5, 0.5)])
    four = torch.tensor([logs(0.85, 0.05, 0.05, 0.05), logs(0.82, 0.06, 0.06, 0.06), [0.0] * 4])
    assert lowest_entropy([two, four]).tolist() == [1, 0, 0]  # the last is a tie of 1 and 1: the earlier task
    assert lowest_entropy([four, two]).tolist() == [0, 1, 0]
    shifted = [two + 100, four - 50]  # a softmax does not see the level, which is all that max_output sees
    assert lowest_entropy(shifted).tolist() == [1, 0, 0] and largest_output(shifted).tolist() == [0, 0, 0]


def test_a_task_of_one_class_is_always_sure():
    one = torch.tensor([[-40.0], [-40.0]])
    sure = torch.tensor([[300.0, 0.0], [0.0, 0.0]])  # its entropy is exactly 0, a tie with the one class
    assert lowest_entropy([sure, one]).tolist() == [0, 1]
    assert lowest_entropy([one, sure]).tolist() == [0, 0]


def test_the_nearest_prototype_by_hand():
    prototypes = torch.tensor([[0.0, 0.0], [4.0, 0.0], [math.nan, math.nan], [0.0, 4.0]])
    features = torch.tensor([[1.0, 1.0], [3.0, 1.0], [1.0, 3.5], [2.0, 0.0]])
    assert nearest_prototype(features, prototypes).tolist() == [0, 1, 3, 0]
    far = 1e4 + 0.5 * torch.arange(6.0)[:, None] * torch.tensor([1.0, 0.0])  # |a|^2 - 2ab + |b|^2 has lost all digits
    assert nearest_prototype(far + 0.01, far).tolist() == [0, 1, 2, 3, 4, 5]


def test_the_answer_is_the_task_and_only_its_own_classes_count():
    classes = [[4, 1], [0], [3, 2, 5]]
    answers = {0: torch.zeros(3, N_CLASSES), 2: torch.zeros(3, N_CLASSES)}  # task 1 is not learned
    answers[0][0, 4], answers[2][1, 5] = 1.0, 1.0
    answers[0][2, 0] = 9.0  # a class of task 1, which task 0 must not win by
    answers[2][2, 3] = 0.5
    for rule in ("max_output", "entropy"):
        assert TaskInference(rule, classes, N_CLASSES, 2).from_answers(answers).tolist() == [0, 2, 2]


def test_prototypes_are_class_means_and_agree_with_scikit_learn():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(N_CLASSES, 7))
    labels = np.tile(np.arange(N_CLASSES), 20)
    x = (centres[labels] + rng.normal(size=(len(labels), 7))).astype(np.float32)
    inference = TaskInference("prototype", TASK_CLASSES, N_CLASSES, 7)
    for task, classes in enumerate(TASK_CLASSES):
        own = np.flatnonzero(np.isin(labels, classes))
        batches = [(torch.tensor(x[part]), torch.tensor(labels[part])) for part in np.array_split(own, 3)]
        inference.learn(batches)
        seen = TASK_CLASSES[: task + 1]
        assert inference.prototypes.isnan().all(1).tolist() == [c > max(classes) for c in range(N_CLASSES)]
        assert inference.stored_numbers(range(task + 1)) == 14 * (task + 1)
        known = np.isin(labels, np.concatenate(seen))
        reference = NearestCentroid().fit(x[known], labels[known])
        torch.testing.assert_close(
            inference.prototypes[: max(classes) + 1], torch.tensor(reference.centroids_, dtype=torch.float32)
        )
        test = (centres[labels] + rng.normal(size=x.shape)).astype(np.float32)
        expected = reference.predict(test) // 2  # two classes a task
        assert inference.from_features(torch.tensor(test), range(task + 1)).tolist() == expected.tolist()
    assert len(set(expected)) == 3


# ---------------------------------------------------------------------------------------------- the network


def blind(rule: str, **options) -> nn.Module:
    """A network of three learned tasks, without task labels."""
    return learned(task_labels=False, task_inference=rule, **options)


def prototypes_of(net: nn.Module) -> None:
    """Takes prototypes for every task from images of the classes' own brightness."""
    for task in range(3):
        x = torch.cat([images(8, seed=90 + label, shift=float(label)) for label in TASK_CLASSES[task]])
        y = torch.tensor(TASK_CLASSES[task]).repeat_interleave(8)
        net.learn_prototypes([(x[:5], y[:5], None), (x[5:], y[5:], None)])


@pytest.mark.parametrize("rule", ["max_output", "entropy", "prototype"])
@pytest.mark.parametrize("own_classes", [False, True])
def test_a_sample_gets_the_answer_of_the_task_chosen_for_it(rule, own_classes):
    net = blind(rule, own_classes=own_classes)
    if rule == "prototype":
        prototypes_of(net)
    x = torch.cat([images(6, seed=task, shift=2.0 * task - 1) for task in range(3)])
    logits = net(x)
    own = [net.for_task(x, task)[:, classes].detach() for task, classes in enumerate(TASK_CLASSES)]
    if rule == "max_output":
        expected = torch.stack([item.max(1).values for item in own]).argmax(0)
    elif rule == "entropy":
        expected = torch.stack([torch.distributions.Categorical(logits=item).entropy() for item in own]).argmin(0)
    else:
        net.adapter.activate(-1)
        features = nn.Sequential(*list(net.backbone)[:-1])(x)
        expected = torch.cdist(features, net.inference.prototypes).argmin(1) // 2
    assert len(set(expected.tolist())) > 1, "only one task is ever chosen"
    net(x)
    assert torch.equal(net.inferred, expected)
    for row, task in enumerate(expected.tolist()):
        assert torch.isfinite(logits[row]).nonzero().flatten().tolist() == TASK_CLASSES[task]
        torch.testing.assert_close(logits[row, TASK_CLASSES[task]], own[task][row], rtol=0, atol=1e-5)
    assert torch.equal(net(x, torch.zeros(len(x), dtype=torch.long)), logits), "labels are never looked at"


@pytest.mark.parametrize("rule", ["max_output", "entropy", "prototype", "oracle"])
def test_while_a_task_is_learned_it_is_the_task_in_evaluation_mode_too(rule):
    net = blind(rule)
    net.begin_task([1])
    for training in (True, False):
        logits = net.train(training)(images())
        assert torch.isfinite(logits).any(0).nonzero().flatten().tolist() == TASK_CLASSES[1]
        assert net.inferred is None
    net.eval()
    assert torch.equal(net(images()), net.for_task(images(), 1))
    nn.functional.cross_entropy(net(images()), torch.tensor([2, 3, 2, 3, 2])).backward()
    assert all(item.grad is not None for item in net.parameters() if item.requires_grad)


def test_candidates_are_the_tasks_begun_and_nothing_is_before_the_first():
    net, x = network(task_labels=False, task_inference="max_output"), images()
    net.eval()
    plain = net(x)
    assert plain.isfinite().all() and net.inferred is None
    assert torch.equal(plain, net.backbone(x)) and net.head.active == 0
    candidates = []
    for task in range(3):
        net.begin_task([task])
        train(net, task, steps=3, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05))
        net.end_task()
        for other in range(3):  # the later a task, the louder, begun or not
            net.head.classifiers[other].bias.data.fill_(100.0 * other)
        net.eval()(x)
        candidates.append(set(net.inferred.tolist()))
    assert candidates == [{0}, {1}, {2}]
    for other in range(3):
        net.head.classifiers[other].bias.data.neg_()
    net(x)
    assert set(net.inferred.tolist()) == {0}


def test_the_oracle_answers_under_the_task_it_is_told():
    net, x = blind("oracle"), images()
    assert net.task_given and not blind("entropy").task_given
    for task in (2, 0, 1):
        net.activate(task)
        logits = net(x)
        assert net.inferred.tolist() == [task] * 5
        assert torch.equal(logits, net.for_task(x, task))


def test_learning_a_later_task_leaves_the_answers_of_earlier_ones_bit_identical():
    net = network(task_labels=False, task_inference="max_output").eval()
    x, before = images(), {}
    for task in range(3):
        net.begin_task([task])
        train(net, task, steps=3, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.05))
        net.end_task()
        net.eval()
        net(x)
        for earlier, logits in before.items():
            assert torch.equal(net.for_task(x, earlier), logits)
        before[task] = net.for_task(x, task).detach()


def test_prototypes_come_from_the_base_without_any_tasks_set():
    net = blind("prototype")
    torch.manual_seed(0)
    base = backbone().eval()  # what `network` starts from with the same seed, before anything is adapted
    features = nn.Sequential(*list(base)[:-1])
    prototypes_of(net)
    for task, classes in enumerate(TASK_CLASSES):
        for label in classes:
            expected = features(images(8, seed=90 + label, shift=float(label))).mean(0)
            torch.testing.assert_close(net.inference.prototypes[label], expected, rtol=1e-5, atol=1e-6)
        net.activate(task)
        assert not torch.allclose(net.features(images(8, seed=90)), features(images(8, seed=90)), atol=1e-3)
    net.activate(2)
    expected = net.backbone(images())
    prototypes_of(net)
    assert torch.equal(net.backbone(images()), expected), "the set that was active still is"
    net.backbone.relu3 = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
    net.train()
    before = net.inference.prototypes.clone()
    statistics = {name: item.clone() for name, item in net.named_buffers() if "running" in name}
    prototypes_of(net)
    after = dict(net.named_buffers())
    assert net.training and all(torch.equal(item, after[name]) for name, item in statistics.items())
    assert torch.equal(net.inference.prototypes, before), "taken with dropout"


def test_prototypes_are_saved_with_the_weights(tmp_path):
    net, x = blind("prototype"), images(40, shift=2.0)
    prototypes_of(net)
    save_file(net.state_dict(), tmp_path / "network.safetensors")
    fresh = blind("prototype", seed=5)
    assert fresh.inference.prototypes.isnan().all()
    fresh.load_state_dict(load_file(tmp_path / "network.safetensors"))
    assert torch.equal(fresh(x), net(x)) and torch.equal(fresh.inferred, net.inferred)
    other = copy.deepcopy(net)
    other.inference.prototypes.zero_()
    assert not torch.equal(other.inference.prototypes, net.inference.prototypes)
    assert "inference.prototypes" not in blind("entropy").state_dict()


def test_a_convolution_as_classifier_has_prototypes_of_averaged_maps():
    from cl_runner.backbones.network import Network

    body = nn.Sequential()
    body.add_module("conv", nn.Conv2d(3, 4, 1))
    body.add_module("out", nn.Conv2d(4, N_CLASSES, 1))
    body.add_module("pool", nn.AdaptiveAvgPool2d(1))
    blind = {"task_labels": False, "head": "per_task", "task_inference": "prototype"}
    net = Network(body, "out", task_classes=TASK_CLASSES, **blind)
    assert net.inference.prototypes.shape == (N_CLASSES, 4)
    x = images()
    torch.testing.assert_close(net.features(x), body.conv(x).mean((2, 3)))


# ------------------------------------------------------------------------------------------------ whole runs

DIGITS = (
    "benchmark.task_labels=false",
    "benchmark.n_tasks=5",
    "benchmark.per_class=60",
    "trainer.epochs=6",
    "backbone.width=16",
    "optimizer.lr=0.01",
)


def digits_run(folder, *typed, labels=False):
    overrides = [item for item in DIGITS if not (labels and "labels" in item)]
    return small_run(folder, "adapter=convlora", *overrides, *typed)


@pytest.mark.parametrize("rule", ["auto", "max_output", "entropy", "prototype"])
def test_a_run_without_labels_reports_what_can_be_recomputed_from_outside(rule, tmp_path):
    result = digits_run(tmp_path, f"adapter.task_inference={rule}")
    net, rows = result.network.eval(), []
    with torch.no_grad():
        for task in SplitDigits(n_tasks=5, task_labels=False).stream(tmp_path).tasks:
            x, y = task.test[:]
            own = [net.for_task(x, other)[:, 2 * other : 2 * other + 2].numpy() for other in range(5)]
            if rule in ("auto", "max_output"):
                chosen = np.argmax([item.max(1) for item in own], axis=0)
            elif rule == "entropy":
                shares = [np.exp(item) / np.exp(item).sum(1, keepdims=True) for item in own]
                chosen = np.argmin([-(p * np.log(p)).sum(1) for p in shares], axis=0)
            else:
                net.adapter.activate(-1)
                distances = net.features(x)[:, None] - net.inference.prototypes[None]
                chosen = distances.norm(dim=2).argmin(1).numpy() // 2
            answers = np.array([own[other][i].argmax() + 2 * other for i, other in enumerate(chosen)])
            rows.append(((chosen == task.index).mean(), (answers == y.numpy()).mean()))
    recognised, accuracies = np.array(rows).T
    assert result.summary["task_inference_accuracy"] == pytest.approx(recognised.mean(), abs=2e-3)
    assert as_array(result.matrix)[-1] == pytest.approx(accuracies, abs=0.02)
    assert result.summary["acc"] > 0.3, "ten classes, so that guessing gives 0.1"
    assert json.loads((result.folder / "summary.json").read_text())["task_inference_accuracy"] == pytest.approx(
        result.summary["task_inference_accuracy"]
    )
    events = [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]
    shares = {(e["after_task"], e["task"]): e["accuracy"] for e in events if e["event"] == "task_inferred"}
    assert sorted({after for after, _ in shares}) == [1, 2, 3, 4, 5], "before training nothing is inferred"
    for (after, task), share in shares.items():
        assert result.matrix[after - 1][task - 1] <= share
        assert share > 0 if task <= after else share == 0
    buffers = [int(row["buffers"]) for row in table(result.folder / "parameters.csv")]
    step = {(b - a) for a, b in zip(buffers[1:], buffers[2:], strict=False)}
    # two classes a task, 32 features of the second block; and the running statistics of two layers, 16 and 32 wide
    assert step == {2 * (16 + 32) + (2 * result.network.head.classifiers[0].in_features if rule == "prototype" else 0)}


def test_with_perfect_recognition_a_run_is_the_labelled_one(tmp_path):
    oracle = digits_run(tmp_path / "oracle", "adapter.task_inference=oracle")
    labelled = digits_run(tmp_path / "labelled", labels=True)
    assert oracle.summary["task_inference_accuracy"] == 1.0
    assert json.loads((labelled.folder / "summary.json").read_text())["task_inference_accuracy"] is None
    assert oracle.matrix == labelled.matrix and oracle.initial == labelled.initial
    assert oracle.summary["acc"] > 0.8 and oracle.summary["forgetting"] == 0.0
    inferred = digits_run(tmp_path / "inferred")
    assert np.all(as_array(inferred.matrix)[-1] <= as_array(labelled.matrix)[-1])
    assert inferred.matrix[0][0] == labelled.matrix[0][0], "with one task learned there is one to choose"
    assert inferred.summary["acc"] < labelled.summary["acc"]


@pytest.mark.parametrize("strategy", ["ewc", "si"])
def test_regularisers_see_the_set_of_the_task_that_is_learned(strategy, tmp_path, monkeypatch):
    made = watch_assembly(monkeypatch)
    typed = [f"strategy={strategy}", "benchmark.n_tasks=5", "trainer.epochs=2", "adapter=convlora"]
    blind_run = small_run(tmp_path / "blind", *typed, "benchmark.task_labels=false", "adapter.task_inference=oracle")
    labelled = small_run(tmp_path / "labelled", *typed)
    assert blind_run.matrix == labelled.matrix
    if strategy == "si":
        return
    for avalanche in made:
        ewc = next(plugin for plugin in avalanche.plugins if isinstance(plugin, EWCPlugin))
        for task in range(1, 5):
            weight = {name: float(item.data.sum()) for name, item in ewc.importances[task].items()}
            own = [name for name in weight if f".deltas.{task}." in name]
            assert own and all(weight[name] > 0 for name in own)
            assert not any(weight[name] for name in weight if f".deltas.{task - 1}." in name)


def test_validation_watches_the_task_that_is_learned(tmp_path):
    typed = ["adapter=convlora", "benchmark.n_tasks=5", "benchmark.validation_fraction=0.2", "trainer.epochs=3"]
    runs = [small_run(tmp_path / kind, *typed, f"benchmark.task_labels={kind}") for kind in ("true", "false")]
    seen = []
    for result in runs:
        events = [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]
        seen.append([(e["validation_loss"], e["validation_accuracy"]) for e in events if e["event"] == "epoch"])
    assert seen[0] == seen[1] and len(seen[0]) == 15


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("mode", ["train", "plan"])
@pytest.mark.parametrize(
    ("typed", "reason"),
    [
        (["adapter.task_inference=entropy"], "task_labels=true gives the task"),
        (["adapter.task_inference=prototype"], "task_labels=true gives the task"),
        (["benchmark.task_labels=false", "strategy=replay"], "several tasks at once"),
        (["benchmark.task_labels=false", "strategy=joint"], "several tasks at once"),
        (["benchmark.task_labels=false", "strategy=lwf", "adapter.task_inference=oracle"], "several tasks at once"),
    ],
)
def test_what_cannot_be_inferred_is_refused(mode, typed, reason, tmp_path):
    with pytest.raises(RequestError, match=reason) as caught:
        small_run(tmp_path, "adapter=convlora", f"mode={mode}", *typed)
    assert len(str(caught.value).splitlines()) == 2
    assert not list(tmp_path.rglob("*.*"))


def test_oracle_is_what_labels_are(tmp_path):
    assert small_run(tmp_path, "adapter=convlora", "adapter.task_inference=oracle").summary["status"] == "done"


def test_a_rule_that_does_not_exist_is_refused_for_an_adapter_of_ones_own(tmp_path):
    outline = SplitDigits(n_tasks=2, task_labels=False).outline(tmp_path)
    config = settled("adapter=convlora", "benchmark.task_labels=false")
    assert build_network(config, outline).inference.rule == "max_output"
    for text in ("entropi", "labels"):
        with pytest.raises(RequestError, match=f"adapter.task_inference={text}"):
            TaskInference(text, TASK_CLASSES, N_CLASSES, 3)
    assert issubclass(type(build_network(config, outline).adapter), PerTaskAdapter)
