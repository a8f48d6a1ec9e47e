"""Streams of domains through whole runs with a small CLIP."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from clip_helpers import CLIP, DOMAINS, clip_run, listing, write_domains
from PIL import Image
from runs_helpers import small_run

from cl_runner.benchmarks.domains.streams import MTIL, XTAIL
from cl_runner.errors import RequestError
from cl_runner.training.features import FeatureBank
from cl_runner.view import View

pytest.importorskip("open_clip")
NAMES = tuple(DOMAINS)


@pytest.fixture
def domains(tmp_path):
    write_domains(tmp_path)
    return tmp_path


def entries(root: Path, names: tuple[str, ...] = NAMES) -> list[dict[str, str]]:
    return [{"name": name, "root": str(root / name), "prompt": "a {}."} for name in names]


def made(root: Path, kind: type = MTIL, **options):
    benchmark = kind(domains=entries(root), cache_gb=0, **options)
    benchmark.see_as(View(size=16))
    return benchmark.stream(root)


# ------------------------------------------------------------------------------------------------ the stream


def test_a_task_a_domain_with_labels_one_after_another(domains):
    stream = made(domains)
    assert [task.name for task in stream.tasks] == list(NAMES)
    assert [task.classes for task in stream.tasks] == [(0, 1, 2), (3, 4), (5, 6)]
    assert stream.tasks[2].class_names == ("large dot", "small dot"), "folders in order of their names"
    for task in stream.tasks:
        for part, count in ((task.train, 6), (task.test, 3)):
            _, labels = part[torch.arange(len(part))]
            assert sorted(labels.tolist()) == sorted([label for label in task.classes for _ in range(count)])
    assert stream.store.tasks[stream.tasks[1].train.ids].unique().tolist() == [1]
    assert made(domains, XTAIL).store.tasks.unique().tolist() == [0], "no task identity"


def test_the_outline_agrees_with_the_stream(domains):
    for options in ({}, {"shots": 2}, {"test_per_class": 1}, {"probe_domains": [], "shots": 3}):
        benchmark = MTIL(domains=entries(domains), cache_gb=0, **options)
        benchmark.see_as(View(size=16))
        outline, stream = benchmark.outline(domains), benchmark.stream(domains)
        for expected, found in zip(outline.evaluated, stream.evaluated, strict=True):
            assert (expected.n_train, expected.n_test, expected.classes) == (found.n_train, found.n_test, found.classes)
        assert outline.image_shape == stream.image_shape == (3, 16, 16)


def test_shots_are_balanced_seeded_and_never_of_the_test_part(domains):
    chosen = {}
    for seed in (0, 0, 1):
        stream = made(domains, shots=2, split_seed=seed)
        for task in stream.tasks:
            _, labels = task.train[torch.arange(len(task.train))]
            assert np.bincount(labels.numpy())[list(task.classes)].tolist() == [2] * len(task.classes)
            assert not set(task.train.ids.tolist()) & set(task.test.ids.tolist())
        ids = [task.train.ids.tolist() for task in stream.tasks]
        assert chosen.setdefault(seed, ids) == ids
    assert chosen[0] != chosen[1]


def test_a_class_with_fewer_shots_keeps_all_and_says_so(domains):
    stream = made(domains, shots=9)
    assert [len(task.train) for task in stream.tasks] == [18, 12, 12]
    assert "shapes: 3 classes have fewer than benchmark.shots=9" in stream.notes[0]


def test_validation_is_held_out_of_training(domains):
    stream = made(domains, validation_fraction=0.34)
    for task in stream.tasks:
        assert len(task.validation) == 2 * len(task.classes) and len(task.train) == 4 * len(task.classes)
        assert not set(task.validation.ids.tolist()) & set(task.train.ids.tolist())


def test_images_are_those_of_the_view(domains):
    stream = made(domains)
    part = stream.tasks[0].train
    file = domains / "shapes" / "train" / "bar" / "0.jpg"
    expected = Image.open(file)
    shortest = min(expected.size)
    size = [round(16 * side / shortest) for side in expected.size]
    left = round((size[0] - 16) / 2)
    resized = expected.resize([int(16 * side / shortest) for side in expected.size], Image.Resampling.BICUBIC)
    expected = np.asarray(resized.crop((left, 0, left + 16, 16))) / 255
    x, _ = part[torch.tensor([0])]
    assert np.allclose(x[0].permute(1, 2, 0).numpy() * 0.25 + 0.5, expected, atol=1e-6)


# ------------------------------------------------------------------------------------------------ whole runs


def test_mtil_knows_the_domain_and_x_tail_does_not(domains):
    mtil, xtail = clip_run(domains, seed_of := "seed=3"), clip_run(domains, seed_of, benchmark="xtail")
    assert mtil.summary["benchmark"] == "mtil" and xtail.summary["benchmark"] == "xtail"
    assert all(a >= b for a, b in zip(mtil.initial, xtail.initial, strict=True)), "more candidates are never easier"
    assert sum(mtil.initial) > sum(xtail.initial)
    assert xtail.summary["transfer"] is not None and len(mtil.matrix) == 3


def test_a_user_with_other_networks_can_run_the_stream(domains):
    done = small_run(
        domains / "runs", "benchmark=mtil", f"benchmark.domains={listing(domains, NAMES)}", "benchmark.image_size=16",
        "adapter=none", "quiet=true", "report=false", "trainer.epochs=1", "trainer.threads=1", plain=True,
    )  # fmt: skip
    assert done.summary["backbone"] == "small_cnn" and len(done.matrix) == 3


def test_probes_are_evaluated_never_trained_and_outside_the_metrics(domains):
    plain = clip_run(domains, names=NAMES[:2])
    probe = listing(domains, NAMES[2:])
    probed = clip_run(domains, f"benchmark.probe_domains={probe}", names=NAMES[:2])
    assert probed.matrix == plain.matrix and probed.initial == plain.initial, "a probe changes nothing"
    rows = (probed.folder / "probes.csv").read_text().splitlines()
    assert rows[0] == "after_task,sizes" and len(rows) == 4
    before, after = (float(rows[index].split(",")[1]) for index in (1, 3))
    assert probed.summary["retention"] == (pytest.approx(after / before) if before else None)
    assert json.loads((plain.folder / "summary.json").read_text())["retention"] is None
    events = [json.loads(line) for line in (probed.folder / "events.jsonl").read_text().splitlines()]
    trained = [event["name"] for event in events if event["event"] == "task_started"]
    assert trained == list(NAMES[:2])


@pytest.mark.parametrize("rule", ["max_output", "entropy", "prototype"])
def test_a_probe_is_answered_by_the_base_where_every_task_has_a_set(domains, rule):
    options = ["adapter=lora", "adapter.sharing=per_task", "placement=v", "adapter.base=frozen"]
    probe = f"benchmark.probe_domains={listing(domains, NAMES[2:])}"
    done = clip_run(domains, *options, f"adapter.task_inference={rule}", probe, benchmark="xtail", names=NAMES[:2])
    rows = [line.split(",")[1] for line in (done.folder / "probes.csv").read_text().splitlines()[1:]]
    assert len(set(rows)) == 1 and float(rows[0]) > 0, "no set is the probe's, and the base does not change"


def test_a_prompted_network_that_infers_the_task_knows_every_class(domains):
    options = ["adapter=lora", "adapter.sharing=per_task", "placement=v", "adapter.base=frozen", "optimizer.lr=1e-9"]
    done = clip_run(domains, *options, "adapter.task_inference=max_output", benchmark="xtail")
    assert done.matrix == [done.initial] * 3, "adapters that learn nothing leave every task to the base"


def test_twins_are_not_wrong(tmp_path):
    """Two domains with one class of the same name: nothing can tell which is meant."""
    names = ("shapes", "sizes")
    write_domains(tmp_path, names)
    for part in ("train", "test"):
        (tmp_path / "sizes" / part / "large_dot").rename(tmp_path / "sizes" / part / "bar")
    done = clip_run(tmp_path, "strategy=zero_shot", names=names, benchmark="xtail")
    apart = clip_run(tmp_path, "strategy=zero_shot", names=names, benchmark="mtil")
    by_class = (done.folder / "per_class_accuracy.csv").read_text()
    assert by_class.count("bar") == 2 * by_class.count("cross"), by_class
    twins = [line.split(",") for line in by_class.splitlines() if ",bar," in line and line.startswith("0,")]
    assert len(twins) == 2
    assert apart.initial[1] >= done.initial[1]


def test_ranks_cut_off_a_clip_adapter_change_its_answers(domains):
    options = [
        "adapter=lora",
        "placement=qkvo_mlp",
        "adapter.base=frozen",
        "adapter.rank=8",
        "adapter.eval_ranks=[1,8]",
    ]
    done = clip_run(domains, *options, "trainer.iterations=30", "optimizer.lr=0.02", names=NAMES[:2])
    network = done.network.eval()
    x = torch.randn(6, 3, 16, 16)
    with torch.no_grad():
        whole = network(x, 0)
        network.adapter.truncate(1)
        network.forget()
        cut = network(x, 0)
    assert not torch.allclose(whole[:, :3], cut[:, :3], atol=1e-3)
    rows = (done.folder / "rank_curve.csv").read_text().splitlines()
    assert len(rows) == 5


def test_a_probes_candidates_are_its_own_classes(domains):
    stream = made(domains, XTAIL)
    probing = XTAIL(domains=entries(domains, NAMES[:2]), probe_domains=entries(domains, NAMES[2:]), cache_gb=0)
    probing.see_as(View(size=16))
    probed = probing.stream(domains)
    assert probed.candidates(probed.tasks[0]) == [0, 1, 2, 3, 4] and probed.candidates(probed.probes[0]) == [5, 6]
    assert stream.candidates(stream.tasks[0]) == list(range(7))


@pytest.mark.parametrize("which", ["seen", "last"])
def test_what_is_not_evaluated_is_empty(domains, which):
    done = clip_run(domains, f"evaluate={which}", names=NAMES[:2])
    empty = [[value is None for value in row] for row in done.matrix]
    assert empty == ([[False, True], [False, False]] if which == "seen" else [[True, True], [False, False]])
    assert done.summary["transfer"] is None and done.summary["last"] is not None


@pytest.mark.parametrize(
    "options",
    [
        ["adapter=lora", "placement=qkvo_mlp", "adapter.base=frozen"],
        ["adapter=lora", "placement=q", "placement.towers=[vision]", "adapter.base=frozen", "adapter.rank=2"],
        ["adapter=codyra", "placement=qkvo_mlp", "adapter.base=frozen", "adapter.rank=2"],
        ["adapter=lora", "adapter.sharing=per_task", "placement=v", "adapter.base=frozen"],
        ["strategy=replay", "strategy.mem_size=6"],
        ["strategy=ewc", "strategy.ewc_lambda=1"],
        ["strategy=lwf"],
        ["strategy=joint"],
        ["trainer.precision=bfloat16", "trainer.label_smoothing=0.2"],
        ["backbone.frozen=[text]", "backbone.templates=simple"],
    ],
    ids=lambda options: " ".join(options),
)
@pytest.mark.parametrize("benchmark", ["mtil", "xtail"])
def test_methods_run(domains, benchmark, options):
    if benchmark == "xtail" and "adapter.sharing=per_task" in options:
        options = [*options, "adapter.task_inference=max_output"]
    done = clip_run(domains, *options, benchmark=benchmark, names=NAMES[:2])
    assert all(value is not None and 0 <= value <= 1 for value in done.matrix[-1])
    assert math.isfinite(done.summary["drift"])


def test_a_merged_network_is_what_is_exported(domains):
    file = domains / "trained.safetensors"
    options = ["adapter=codyra", "placement=qkvo_mlp", "adapter.base=frozen", "adapter.rank=2"]
    first = clip_run(domains, *options, f"export={file}", "trainer.iterations=30", "optimizer.lr=0.01")
    again = clip_run(domains, f"backbone.pretrained={file}", "trainer.iterations=1")
    assert again.initial == first.matrix[-1] and again.initial != first.initial


# ------------------------------------------------------------------------------------------------ features


@pytest.fixture
def banks(monkeypatch):
    """Every bank of features that is made from now on."""
    made: list[FeatureBank] = []
    make = FeatureBank.__init__
    monkeypatch.setattr(FeatureBank, "__init__", lambda self, *a, **k: (make(self, *a, **k), made.append(self))[0])
    return made


def test_features_of_a_tower_that_stands_still_are_computed_once(domains, banks):
    text = ["adapter=lora", "placement=q", "placement.towers=[text]", "adapter.base=frozen"]
    done = clip_run(domains, *text, "trainer.iterations=6")
    assert banks[-1].computed == 63, "21 test images in four evaluations, and 18 + 12 + 12 training images, each once"
    plain = clip_run(domains, *text, "trainer.iterations=6", "trainer.prefix_cache=false")
    assert len(banks) == 1
    assert plain.matrix == done.matrix and plain.initial == done.initial
    clip_run(domains, *text)
    assert banks[-1].computed == 21, "in 3 steps of 4 images no task sees an image twice"
    vision = clip_run(domains, "adapter=lora", "placement=q", "placement.towers=[vision]", "adapter.base=frozen")
    assert banks[-1].computed == 4 * 21, "a tower that moves is run again, over the test images alone"
    assert vision.matrix


def test_zero_shot_decodes_no_training_part(domains, monkeypatch):
    opened = []
    load = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *a, **k: (opened.append(str(path)), load(path, *a, **k))[1])
    done = clip_run(domains, "strategy=zero_shot")
    assert len([path for path in opened if "/train/" in path]) <= 7 < len([path for path in opened if "/test/" in path])
    assert done.matrix == [done.initial] * 3


def test_augmented_training_needs_the_images(domains, banks):
    clip_run(domains, "benchmark.augmentation=flip", "backbone.frozen=[vision]", "trainer.iterations=6")
    assert banks[-1].computed == 21


# ------------------------------------------------------------------------------------------------ the cache


def test_a_second_run_opens_no_image_file(domains, monkeypatch):
    first = clip_run(domains, "optimizer.lr=0.01")
    from cl_runner.benchmarks import pixel_cache

    pixel_cache.forget()

    def refuse(*args, **kwargs):
        raise AssertionError(f"an image file was opened: {args}")

    monkeypatch.setattr(Image, "open", refuse)
    second = clip_run(domains, "optimizer.lr=0.01")
    assert second.matrix == first.matrix
    with pytest.raises(Exception, match="image file was opened"):
        clip_run(domains, "benchmark.cache_gb=0")


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["benchmark.domains=[flower]"], "there is no domain 'flower'"),
        (["benchmark.domains=[]"], "a stream needs a domain"),
        (["benchmark.domains=[mnist,mnist]"], "name mnist twice"),
        (["benchmark.domains=[mnist]"], "MNIST"),
        (["benchmark.domains=[pets]"], "oxford_pets"),
        (["benchmark.domains=[{name:mine}]"], "has no root"),
        (["benchmark.domains=[{name:mine,root:/nowhere}]"], "/nowhere"),
        (["benchmark.domains=[{name:mine,root:/nowhere,promt:x}]"], "has no key 'promt'"),
        (["benchmark.domains=[{name:mine,root:/nowhere,prompt:'a photo'}]"], "needs exactly one {}"),
        (["benchmark.order=III"], "benchmark.order=III"),
        (["benchmark.shots=0"], "benchmark.shots=0"),
        (["benchmark.splits.pets=x.json"], "benchmark.splits.pets has no use here"),
        (["backbone.frozen=[vision,text]"], "nothing is left to train"),
        (
            ["backbone.frozen=[vision]", "adapter=lora", "placement=q", "placement.towers=[vision]"],
            "the adapter is on vision",
        ),
        (["export=x.safetensors", "strategy=rail"], "answers with more than weights"),
        (["backbone.head=per_task"], "CLIP's head is its text tower"),
        (["benchmark=split_digits"], "use benchmark=mtil or xtail"),
    ],
)
def test_wrong_requests(domains, options, words):
    with pytest.raises(RequestError) as caught:
        if options[0] == "benchmark=split_digits":
            small_run(
                domains, *[item for item in CLIP if "image_size" not in item], "adapter=none", *options, plain=True
            )
        else:
            clip_run(domains, *options, names=NAMES[:1])
    assert words in str(caught.value)
