"""SARI: how well a simplification keeps, adds and deletes words, seen from the text that it simplifies."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

LONGEST = 4  # words of an n-gram
_ENTITIES = {"&quot;": '"', "&amp;": "&", "&lt;": "<", "&gt;": ">"}
_APART = re.compile(r"""([!"#$%&()*+/:;<=>?@\[\\\]^_`{|}~])""")  # all of ASCII's punctuation but ' , - .
_AFTER_NO_DIGIT = re.compile(r"([^0-9])([.,])")
_BEFORE_NO_DIGIT = re.compile(r"([.,])([^0-9])")
_DASH_AFTER_DIGIT = re.compile(r"([0-9])(-)")

Grams = Counter[tuple[str, ...]]


def sari(source: str, prediction: str, references: Sequence[str]) -> float:
    """Returns SARI (Xu et al., TACL 2016) of a sample in [0, 1].

    With S, C the n-grams of source and prediction, R those of all references together, counted with repetition, and
    S', C' the counts of S and C times the number of references::

        keep(n)    F1 of   P = mean over g in S' & C' of (S' & C' & R)(g) / (S' & C')(g)
                           R = sum of (S' & C' & R) / sum of (S' & R)
        delete(n)  P = mean over g in S' - C' of ((S' - C') - R)(g) / (S' - C')(g)
        add(n)     F1 over distinct n-grams of C that S has not, wanted are those of R that S has not
        SARI       mean over n = 1..4 of (keep + delete + add) / 3

    0 / 0 is 1: where nothing was to be done and nothing was done, that was right. This is the variant of tensor2tensor
    and of the library `evaluate`, with which TRACE scores 20Minuten; the authors' first script has 0 / 0 = 0 and
    another recall. The wanted text itself reaches 1, but where the source repeats words of it. Texts are put in lower
    case and split into words by the rules of mteval-v13a.

    Args:
        source: what was to be simplified.
        prediction: the simplification.
        references: at least one wanted simplification.
    """
    if not references:
        raise ValueError("SARI needs a reference")
    told, said = words(source), words(prediction)
    wanted = [words(reference) for reference in references]
    total = 0.0
    for length in range(1, LONGEST + 1):
        reference_grams: Grams = Counter()
        for one in wanted:
            reference_grams += _grams(one, length)
        times = len(wanted)
        total += _of_length(_grams(told, length, times), _grams(said, length, times), reference_grams)
    return total / LONGEST


def words(text: str) -> list[str]:
    """Returns the words of a text in lower case, punctuation apart from them, numbers whole (mteval-v13a)."""
    text = text.lower().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _ENTITIES.items():
        text = text.replace(entity, character)
    text = _APART.sub(r" \1 ", f" {text} ")
    text = _AFTER_NO_DIGIT.sub(r"\1 \2 ", text)
    text = _BEFORE_NO_DIGIT.sub(r" \1 \2", text)
    text = _DASH_AFTER_DIGIT.sub(r"\1 \2 ", text)
    return text.split() or [""]  # an empty text has one empty word, which no other text has


def _grams(words: Sequence[str], length: int, times: int = 1) -> Grams:
    found: Grams = Counter(tuple(words[at : at + length]) for at in range(len(words) - length + 1))
    return Counter({gram: times * count for gram, count in found.items()})


def _of_length(source: Grams, prediction: Grams, reference: Grams) -> float:
    """The mean of keep, delete and add over the n-grams of one length."""
    kept, to_keep = source & prediction, source & reference
    rightly = kept & reference
    keep = _f1(_mean_share(rightly, kept), _ratio(sum(rightly.values()), sum(to_keep.values())))
    deleted = source - prediction
    delete = _mean_share(deleted - reference, deleted)
    added, to_add = prediction.keys() - source.keys(), reference.keys() - source.keys()
    right = len(added & to_add)
    add = _f1(_ratio(right, len(added)), _ratio(right, len(to_add)))
    return (keep + delete + add) / 3


def _mean_share(part: Grams, whole: Grams) -> float:
    return _ratio(sum(count / whole[gram] for gram, count in part.items()), len(whole))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 1.0


def _f1(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0
