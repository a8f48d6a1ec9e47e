"""Scores of generated answers: values worked out by hand, published examples, and what holds for any text."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cl_runner import scores
from cl_runner.errors import RequestError
from cl_runner.scores.overlap import unmasked
from cl_runner.scores.sari import sari, words

TEXTS = st.text(st.sampled_from("ab. \n<>_L1é&"), max_size=24)
SENTENCES = st.lists(st.sampled_from("abcd"), max_size=8).map(" ".join)


def one(metric: str, prediction: str, reference: str, source: str = "") -> float:
    (value,) = scores.score(metric, predictions=[prediction], references=[reference], sources=[source])
    return value


# ------------------------------------------------------------------------------------------------ right or wrong


@pytest.mark.parametrize(
    ("metric", "prediction", "reference", "value"),
    [
        ("exact_match", "hawkish", "hawkish", 1.0),
        ("exact_match", " A\n", "A", 1.0),
        ("exact_match", "A.", "A", 0.0),
        ("exact_match", "a", "A", 0.0),
        ("exact_match", "", "", 0.0),  # no answer is not a right one
        ("exact_match", "", "A", 0.0),
        ("first_character", "B\nBecause it melts", "B\nBecause ice is solid", 1.0),
        ("first_character", " B", "B\nBecause", 1.0),
        ("first_character", "Because", "B\nBecause", 1.0),  # its first character alone
        ("first_character", "A\nBecause ice is solid", "B\nBecause ice is solid", 0.0),
        ("first_character", "", "B", 0.0),
        ("first_character", "", "", 0.0),
    ],
)
def test_what_is_right_or_wrong(metric, prediction, reference, value):
    assert one(metric, prediction, reference) == value


# ---------------------------------------------------------------------------------------------- ROUGE-L, code


@pytest.mark.parametrize(
    ("prediction", "reference", "value"),
    [
        ("the cat sat", "the cat lay down", 4 / 7),  # 2 words in common: P 2/3, R 2/4
        ("cat the", "the cat", 1 / 2),  # order counts
        ("The cat", "the cat", 1 / 2),  # so does case
        ("a a a b", "a b", 1.0),  # words count once
        # Lin (2004): sentences are united, w1 w2 and w1 w3 w5 cover 4 of 5; the prediction has 8 words
        ("w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", "w1 w2 w3 w4 w5", 2 * (4 / 8) * (4 / 5) / (4 / 8 + 4 / 5)),
        ("x", "y", 0.0),
        ("", "y", 0.0),
        ("y", "", 0.0),
        ("...", "y", 0.0),
        (" \n", "y", 0.0),
    ],
)
def test_rouge_l(prediction, reference, value):
    assert one("rouge_l", prediction, reference) == pytest.approx(value, abs=2e-8)


def test_a_long_sentence_is_not_too_deep():
    """The package recurses once a word of either text that the other has not, and Python stops at a thousand."""
    limit = sys.getrecursionlimit()
    own, other = (" ".join(["x", *map(str, range(start, start + 550))]) for start in (0, 550))
    assert one("rouge_l", own, other) == pytest.approx(1 / 551, abs=1e-7)  # the first of 551 words
    assert sys.getrecursionlimit() == limit


@pytest.mark.parametrize(
    ("prediction", "reference", "value"),
    [
        ("abc", "abd", 2 / 3),  # one deleted, one inserted, of 6 characters
        ("abc", "abcdef", 2 / 3),
        ("ab", "cd", 0.0),
        ("x = <STR_LIT:hi> + <NUM_LIT:1>", "x = hi + 1", 1.0),
        ("f(<NUM_LIT>, <STR_LIT><CHAR_LIT>)", "f(0, )", 1.0),
        ("<STR_LIT>", "<STR_LIT>", 0.0),  # nothing is left of it
        ("", "x", 0.0),
    ],
)
def test_edit_similarity_of_unmasked_code(prediction, reference, value):
    assert one("edit_similarity", prediction, reference) == pytest.approx(value)


def test_what_is_no_mask_stays():
    assert unmasked("<EOL> <STR> a < b > c <NUM_LIT:<a>") == "<EOL> <STR> a < b > c <a"
    assert unmasked("<STR_LIT:two\nlines>") == "two\nlines"


def common(a: str, b: str) -> int:
    """The length of the longest common subsequence, by the textbook's table."""
    row = [0] * (len(b) + 1)
    for x in a:
        before = row[:]
        for at, y in enumerate(b):
            row[at + 1] = before[at] + 1 if x == y else max(before[at + 1], row[at])
    return row[-1]


@given(st.text("abc", min_size=1, max_size=12), st.text("abc", min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_edit_similarity_is_that_of_the_longest_common_subsequence(a, b):
    assert one("edit_similarity", a, b) == pytest.approx(2 * common(a, b) / (len(a) + len(b)))


# ------------------------------------------------------------------------------------------------------- SARI

SPECIES = "About 95 species are currently accepted ."
WANTED = [
    "About 95 species are currently known .",
    "About 95 species are now accepted .",
    "95 species are now accepted .",
]


def test_sari_of_the_example_that_its_metric_card_prints():
    assert 100 * sari(SPECIES, "About 95 you now get in .", WANTED) == pytest.approx(26.953601953601954, abs=1e-12)
    joined = [text.replace(" .", ".") for text in (SPECIES, "ABOUT 95 you now get in .", *WANTED)]
    assert 100 * sari(joined[0], joined[1], joined[2:]) == pytest.approx(26.953601953601954, abs=1e-12)
    assert sari(SPECIES, SPECIES, [SPECIES]) == 1.0


def test_sari_by_hand():
    """Source a b c, prediction a b d, reference a d.

    n=1: kept a b, of which a is wanted: P 1/2, R 1; F 2/3. Deleted c: 1. Added d: 1.  8/9
    n=2: kept ab, nothing was to be kept: P 0; 0. Deleted bc: 1. Added bd, wanted ad: 0. 1/3
    n=3: nothing kept, nor to be kept: 1. Deleted abc: 1. Added abd, nothing wanted: 0.  2/3
    n=4: nothing anywhere: 1.
    """
    assert one("sari", "a b d", "a d", "a b c") == pytest.approx((8 / 9 + 1 / 3 + 2 / 3 + 1) / 4, abs=1e-15)


def test_sari_counts_repetitions_and_shares_references():
    """Source a a b, prediction a, references "a a" and "b": n-grams of the source and the prediction count twice.

    n=1: kept a x2 of a x2 in the references: P 1; to keep a x2, b x1: R 2/3; F 4/5. Deleted a x2, b x2; the references
    have a x2, b x1: a 2 - 2 = 0, b 2 - 1 = 1 rightly; mean of 0/2 and 1/2: 1/4. Nothing added nor to add: 1.
    n=2: kept nothing (P 1), to keep aa: R 0; 0. Deleted aa x2, of which aa x1 rightly, ab x2: (1/2 + 1) / 2. Added: 1.
    n=3: nothing to keep: 1. Deleted aab: 1. Added: 1. n=4: 1.
    """
    value = ((4 / 5 + 1 / 4 + 1) / 3 + (0 + 3 / 4 + 1) / 3 + 1 + 1) / 4
    assert sari("a a b", "a", ["a a", "b"]) == pytest.approx(value, abs=1e-15)


def test_words_are_those_of_the_standard_tokens():
    assert words("Das kostet 1,5 Mio. (ca. 3.000-5.000 Fr.)!") == (
        ["das", "kostet", "1,5", "mio", ".", "(", "ca", ".", "3.000", "-", "5.000", "fr", ".", ")", "!"]
    )
    assert words("well-known &quot;e&amp;f&quot;\nx-\ny") == ["well-known", '"', "e", "&", "f", '"', "xy"]
    with pytest.raises(ValueError, match="needs a reference"):
        sari("a", "a", [])


# ----------------------------------------------------------------------------------------------- for any text


@pytest.mark.parametrize("metric", list(scores.METRICS))
@given(TEXTS, TEXTS, TEXTS)
@example("", "", "")
@example(".", ".", ".")
@settings(max_examples=60, deadline=None)
def test_scores_are_between_0_and_1(metric, prediction, reference, source):
    value = one(metric, prediction, reference, source)
    assert isinstance(value, float) and 0.0 <= value <= 1.0


@pytest.mark.parametrize("metric", list(scores.METRICS))
@given(SENTENCES.filter(bool), st.permutations("abcde").map(" ".join))
@settings(max_examples=60, deadline=None)
def test_the_wanted_text_scores_1(metric, text, source):
    """Of a source without repetition: SARI takes a word that is there twice, and wanted once, for wrongly deleted."""
    assert one(metric, text, text, source) == pytest.approx(1.0, abs=1e-8)


# ----------------------------------------------------------------------------------------------- what is asked


def test_a_value_a_sample_in_order():
    given = {"predictions": ["a", "b", "c"], "references": ["a", "x", "c"], "sources": ["", "", ""]}
    assert scores.score("exact_match", **given) == [1.0, 0.0, 1.0]
    assert scores.score("sari", predictions=[], references=[], sources=[]) == []
    with pytest.raises(ValueError, match="shorter"):
        scores.score("exact_match", **(given | {"references": ["a"]}))


def test_an_unknown_score_is_refused_with_the_nearest():
    for ask in (lambda: one("rouge", "a", "a"), lambda: scores.require(["token_accuracy", "rouge"])):
        with pytest.raises(RequestError, match="no score 'rouge'") as caught:
            ask()
        assert "rouge_l" in caught.value.hint
    scores.require(["token_accuracy", *scores.METRICS])


@pytest.mark.parametrize(("metric", "package"), [("rouge_l", "rouge"), ("edit_similarity", "rapidfuzz.fuzz")])
def test_a_missing_library_is_named_with_its_remedy(metric, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    for ask in (lambda: one(metric, "a", "a"), lambda: scores.require([metric])):
        with pytest.raises(RequestError, match=f"{metric} needs the package {package.partition('.')[0]}") as caught:
            ask()
        assert caught.value.hint == "pip install 'cl-runner[text]'"
    scores.require([name for name in scores.METRICS if name != metric])


def test_scores_load_nothing_before_they_are_needed():
    code = "import sys, cl_runner.scores as s; s.score('sari', predictions=['a'], references=['a'], sources=['b'])\n"
    code += "sys.exit(str({'torch', 'rouge', 'rapidfuzz', 'transformers'} & set(sys.modules) or ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
