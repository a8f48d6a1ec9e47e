"""A killed run over texts is the run that nobody killed."""

from __future__ import annotations

import pytest
from resume_helpers import EVERY_EPOCH, EVERY_STEP, EVERY_TASK, same_run, tormented

pytest.importorskip("transformers")

from test_language import typed
from text_trees import write_reviews

pytestmark = pytest.mark.usefixtures("hurried")
MEMORY = "strategy.mem_size=8"
LORA = ("adapter=lora", "adapter.rank=2")


@pytest.fixture(scope="module")
def reviews(tmp_path_factory):
    """Miniature IMDb and Yelp."""
    root = tmp_path_factory.mktemp("reviews")
    write_reviews(root, n_train=16, n_test=4)
    return root


@pytest.mark.parametrize(
    ("overrides", "places", "interval"),
    [
        ((*LORA, "adapter.dropout=0.2"), ("1.1.1", "1.evaluate", "2.1.2"), EVERY_STEP),
        (LORA, ("2.2.1",), EVERY_EPOCH),
        (("adapter=hybrid", "adapter.rank=4", "adapter.rank_schedule=[4,2]", "adapter.base=frozen"),
         ("1.2.2", "2.2.2"), EVERY_STEP),
        (("adapter=codyra", "adapter.rank=4", "adapter.kappa_max=1.0"), ("2.2.1",), EVERY_STEP),
        ((*LORA, "strategy=lwf"), ("2.2.1",), EVERY_STEP),
        (("adapter=none", "strategy=gem", MEMORY), ("2.1.2",), EVERY_STEP),
        (("adapter=none", "strategy=si"), ("2.1.2",), EVERY_STEP),
        (("adapter=none", "strategy=ewc"), ("2.1.1",), EVERY_TASK),
        (("adapter=none", "strategy=replay", MEMORY, "trainer.iterations=3"), ("2.1.3",), EVERY_STEP),
    ],
)  # fmt: skip
def test_a_run_that_was_killed_is_the_same_run(overrides, places, interval, reviews, calm, tmp_path):
    epochs = () if "trainer.iterations=3" in overrides else ("trainer.epochs=2",)
    asked = tuple(typed(reviews, *overrides, *epochs, "trainer.log_every=1"))
    found, steps = tormented(tmp_path, asked, places, interval)
    same_run(calm(*asked), found)
    assert steps[0] == places[-1]
    assert (found / "losses.csv").exists()
