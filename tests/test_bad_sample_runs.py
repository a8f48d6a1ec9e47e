"""What a whole run does about images that cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_bad_samples import cut_short, photo

from cl_runner import cli
from cl_runner.recording.events import read_events

QUICK = ("trainer.epochs=1", "trainer.threads=1", "trainer.device=cpu", "report=false", "output_root=out",
         "backbone=small_cnn", "backbone.width=8", "adapter=none")  # fmt: skip
BENCHMARKS = {
    "split_folder": ["benchmark=split_folder", "benchmark.n_tasks=2", "benchmark.image_size=8",
                     "benchmark.validation_fraction=0", "benchmark.root={root}"],
    "mtil": ["benchmark=mtil", "benchmark.domains=[{{name:mine,root:{root}}}]", "benchmark.image_size=8"],
}  # fmt: skip


@pytest.fixture
def tree(elsewhere, tmp_path):
    for part, count in (("train", 4), ("test", 2)):
        for label, name in enumerate("abcd"):
            for index in range(count):
                photo(tmp_path / "tree" / part / name / f"{index}.jpg", 40 * label + 5 * index + 20)
    cut_short(tmp_path / "tree" / "train" / "b" / "2.jpg")
    (tmp_path / "tree" / "test" / "d" / "0.jpg").write_text("no picture")
    return tmp_path / "tree"


def asked(benchmark: str, tree: Path, *more: str) -> list[str]:
    return [*QUICK, *(item.format(root=tree) for item in BENCHMARKS[benchmark]), *more]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_stop_ends_before_training_and_names_the_file(tree, benchmark, capsys):
    assert cli.execute(asked(benchmark, tree)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "train/b/2.jpg does not decode" in lines[0] and "on_bad_sample=skip" in lines[1]
    assert not list(Path("out").rglob("config.yaml")), "nothing began"


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_skip_trains_without_them_and_says_so_once(tree, benchmark, capsys):
    for _ in range(2):  # the second run reads the cache of the first
        assert cli.execute(asked(benchmark, tree, "on_bad_sample=skip")) == 0
    (first, second) = sorted(path.parent for path in Path("out").rglob("DONE"))
    said = []
    for folder in (first, second):
        told = [event for event in read_events(folder / "events.jsonl") if event["event"] == "warning"]
        notes = [text for event in told for text in event.values() if "goes without" in str(text)]
        assert len(notes) == 1 and "2 images" in notes[0] and "b/2.jpg" in notes[0] and "d/0.jpg" in notes[0]
        said.append(notes[0])
    assert said[0] == said[1]
    figures = [json.loads((folder / "summary.json").read_text())["acc"] for folder in (first, second)]
    assert figures[0] == figures[1]
    assert capsys.readouterr().err.count("goes without 2 images") == 2
    assert cli.execute(asked(benchmark, tree)) == 2, "what was read without them is not taken for the whole"


def test_a_class_that_would_be_gone_is_refused(tree, capsys):
    for index in range(4):
        cut_short(tree / "train" / "c" / f"{index}.jpg")
    assert cli.execute(asked("split_folder", tree, "on_bad_sample=skip")) == 2
    assert "on_bad_sample=skip: no train image of class 'c'" in capsys.readouterr().err
