"""Libraries that only an extra installs: without one, the choice that needs it, package and remedy are named."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cl_runner.adapters import peft_methods
from cl_runner.backbones import configurations, open_clip
from cl_runner.benchmarks.text import downloads
from cl_runner.errors import RequestError
from cl_runner.optional import library
from cl_runner.scores import overlap

# By module: who asks, the choice that needs it, the package, the extra.
NEEDED: dict[str, tuple[Callable[[], object], str, str, str]] = {
    "transformers": (configurations.library, "backbone=transformers", "transformers", "text"),
    "open_clip": (open_clip._library, "backbone=open_clip", "open_clip_torch", "clip"),
    "peft": (peft_methods.library, "adapter=peft", "peft", "peft"),
    "rouge": (overlap.rouge_of_package, "the score rouge_l", "rouge", "text"),
    "rapidfuzz.fuzz": (overlap.ratio_of_rapidfuzz, "the score edit_similarity", "rapidfuzz", "text"),
    "datasets": (lambda: downloads._load("imdb", "train"), "benchmark=imdb_yelp", "datasets", "text"),
}


@pytest.mark.parametrize("module", NEEDED)
def test_a_missing_library_is_refused_with_its_remedy(module, monkeypatch):
    ask, choice, package, extra = NEEDED[module]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RequestError) as refused:
        ask()
    assert refused.value.message.startswith(f"{choice} needs the package {package} (")
    assert module in refused.value.message  # the reason, which may be another than that it is not there
    assert refused.value.hint == f"pip install 'cl-runner[{extra}]'"


def test_reviews_that_cannot_be_fetched_without_the_library_say_what_to_put_where(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(RequestError, match="lacks imdb_train.jsonl.*the datasets library is not installed"):
        downloads.find_reviews(tmp_path, "data_root")


def test_a_library_that_is_there_is_returned():
    assert library("json.decoder", "this test", "none").JSONDecoder


def test_every_extra_that_is_named_exists():
    import tomllib

    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    for _, _, package, extra in NEEDED.values():
        assert any(item.startswith(package) for item in extras[extra])
