"""How good a generated answer is, by the task's own measure: a value in [0, 1] a sample. Knows texts and no model.

The measures are those that TRACE evaluates with (Wang et al., 2023); an answer that does not exist scores 0 where its
evaluation says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from cl_runner.errors import RequestError, nearest
from cl_runner.scores.matches import exact_match, first_character
from cl_runner.scores.overlap import edit_similarity, ratio_of_rapidfuzz, rouge_l, rouge_of_package
from cl_runner.scores.sari import sari

METRICS: dict[str, Callable[[str, str, str], float]] = {  # of prediction, reference and source
    "exact_match": lambda prediction, reference, _: exact_match(prediction, reference),
    "first_character": lambda prediction, reference, _: first_character(prediction, reference),
    "rouge_l": lambda prediction, reference, _: rouge_l(prediction, reference),
    "edit_similarity": lambda prediction, reference, _: edit_similarity(prediction, reference),
    "sari": lambda prediction, reference, source: sari(source, prediction, [reference]),
}
_LIBRARIES: dict[str, Callable[[], object]] = {"rouge_l": rouge_of_package, "edit_similarity": ratio_of_rapidfuzz}


def score(metric: str, *, predictions: Sequence[str], references: Sequence[str], sources: Sequence[str]) -> list[float]:
    """Scores predictions, one value in [0, 1] a sample; their mean is what a benchmark reports.

    Args:
        metric: a key of `METRICS`.
        predictions: what was generated.
        references: the answers.
        sources: the prompts, which only `sari` looks at.

    Raises:
        RequestError: there is no such metric, or its library is missing.
        ValueError: the lists differ in length.
    """
    measure = _known(metric)
    return [measure(*sample) for sample in zip(predictions, references, sources, strict=True)]


def require(metrics: Iterable[str]) -> None:
    """Refuses, before anything is trained, metrics that cannot be computed here; `token_accuracy` needs nothing.

    Raises:
        RequestError: there is no such metric, or its library is missing.
    """
    for metric in dict.fromkeys(metrics):
        if metric != "token_accuracy":
            _known(metric)
            _LIBRARIES.get(metric, object)()


def _known(metric: str) -> Callable[[str, str, str], float]:
    if metric not in METRICS:
        raise RequestError(f"there is no score '{metric}'", nearest(metric, list(METRICS)))
    return METRICS[metric]
