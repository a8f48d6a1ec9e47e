"""A killed run of CLIP is the run that nobody killed; what its frozen towers hold is not kept again and again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from resume_helpers import EVERY_EPOCH, EVERY_STEP, EVERY_TASK, killed_at, resume, same_run, tormented

pytest.importorskip("open_clip")

from colour_clip import DESCENT, NETWORK, QUIET, clip_run
from safetensors.torch import load_file, save_file

from cl_runner import cli
from cl_runner.keeping.reading import last_of

pytestmark = pytest.mark.usefixtures("hurried")
MEMORY = "strategy.mem_size=8"
TEXT = ("adapter=lora", "adapter.rank=2", "adapter.sharing=shared", "placement.towers=[text]", "trainer.batch_size=7")
ZSCL = ("strategy=zscl", "strategy.batch_size_ref=4", "strategy.average_every=2")


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """Ten small images in two class folders."""
    root, rng = tmp_path_factory.mktemp("references"), np.random.default_rng(0)
    for index in range(10):
        folder = root / ("panda" if index % 2 else "ocean")
        folder.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return root


def typed(*overrides: str) -> tuple[str, ...]:
    """Two tasks of two colours, with some of the settings replaced."""
    keys = {item.split("=")[0] for item in overrides}
    descends = not {"strategy=zero_shot", "strategy=rail"} & set(overrides)
    usual = [*QUIET, *NETWORK, *((*DESCENT, "trainer.log_every=1") if descends else ())]
    return (*(item for item in usual if item.split("=")[0] not in keys), *overrides)


@pytest.mark.parametrize(
    ("overrides", "places", "interval"),
    [
        (("strategy=wise_ft",), ("2.1.2",), EVERY_STEP),
        (("strategy=wise_ft", "strategy.reference=initial"), ("2.2.1",), EVERY_EPOCH),
        (ZSCL, ("2.2.2",), EVERY_STEP),
        ((*ZSCL, "strategy.teacher=previous"), ("2.2.1",), EVERY_EPOCH),
        (("adapter=codyra", "adapter.rank=4", "adapter.kappa_max=1.0"), ("2.2.2",), EVERY_STEP),
        (("strategy=der", MEMORY), ("2.2.2",), EVERY_STEP),
        (("strategy=icarl", MEMORY), ("2.2.2",), EVERY_STEP),
        # image features that are computed once, in the batches of the first epoch
        ((*TEXT, "trainer.epochs=3"), ("2.3.2",), EVERY_STEP),
        ((*TEXT, "trainer.epochs=3"), ("2.2.1",), EVERY_EPOCH),
        (
            (*TEXT, "adapter.base=frozen", "strategy=cumulative", "benchmark.task_labels=false"),
            ("2.1.1",),
            EVERY_TASK,
        ),
    ],
)
def test_a_run_that_was_killed_is_the_same_run(overrides, places, interval, references, calm, tmp_path):
    given = [f"strategy.reference_images={references}"] if "strategy=zscl" in overrides else []
    asked = typed(*overrides, *given)
    found, steps = tormented(tmp_path, asked, places, interval)
    same_run(calm(*asked), found)
    assert steps[0] == places[-1]


@pytest.mark.parametrize("overrides", [("strategy=zero_shot",), ("strategy=rail", "strategy.hidden=30")])
def test_what_trains_nothing_goes_on_with_what_it_has_seen(overrides, calm, tmp_path):
    found, _ = tormented(tmp_path, typed(*overrides), ("1.evaluated", "2.evaluate"), ())
    same_run(calm(*typed(*overrides)), found, steps=False)


def test_pretrained_weights_are_not_kept_and_other_ones_are_refused(tmp_path, capsys):
    weights = tmp_path / "weights.safetensors"
    clip_run(tmp_path / "made", "strategy=zero_shot", f"export={weights}")
    asked = typed(f"backbone.pretrained={weights}", "adapter=lora", "adapter.rank=2", "adapter.sharing=shared")
    folder = killed_at("2.1.2", tmp_path / "run", asked, EVERY_STEP)
    sizes = [place.stat().st_size for place in (folder / "checkpoints").iterdir()]
    assert len(sizes) >= 4 and max(sizes) < 0.05 * weights.stat().st_size, "the towers are in there"
    known = (last_of(folder, pytest.fail).base).state["network"]
    assert sum("~same" in item for item in known.values()) > 10

    original = load_file(weights)
    name = next(name for name, item in original.items() if item.numel() > 4096)
    changed = original[name].clone()
    changed.view(-1)[7] += 1e-3
    save_file({**original, name: changed}, weights)
    before = {place: place.read_bytes() for place in folder.rglob("*") if place.is_file()}
    assert cli.execute([f"resume={folder}", "quiet=true"]) == 2
    said = capsys.readouterr().err
    assert "does not fit" in said and "weights" in said and "put them back" in said and "Traceback" not in said
    kept = {place: place.read_bytes() for place in before if place.parent.name == "checkpoints"}
    assert all(before[place] == content for place, content in kept.items())

    save_file(original, weights)
    assert resume(folder).summary["status"] == "done"
    assert torch.equal(load_file(weights)[name], original[name])
