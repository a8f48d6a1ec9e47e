"""Metrics against hand arithmetic, against an independent loop, and against properties any definition must keep."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cl_runner.metrics import METRICS, format_bytes, format_count, format_flops, format_seconds, summarize

NAN = math.nan
#            task 1  task 2  task 3
GOLDEN = [
    [0.9, 0.2, 0.3],  # after task 1
    [0.5, 0.8, 0.4],  # after task 2
    [0.6, 0.7, 1.0],  # after task 3
]
INITIAL = [0.1, 0.1, 0.2]


def test_golden_values_by_hand():
    result = summarize(GOLDEN, INITIAL)
    assert list(result) == list(METRICS)
    expected = {
        "acc": 2.3 / 3,  # (0.6 + 0.7 + 1.0) / 3
        "learning_accuracy": 0.9,  # (0.9 + 0.8 + 1.0) / 3
        "bwt": -0.2,  # ((0.6 - 0.9) + (0.7 - 0.8)) / 2
        "fwt": 0.15,  # ((0.2 - 0.1) + (0.4 - 0.2)) / 2
        "forgetting": 0.2,  # ((max(0.9, 0.5) - 0.6) + (0.8 - 0.7)) / 2
        "transfer": 0.275,  # (0.2 + (0.3 + 0.4) / 2) / 2
        "average": 0.6,  # (1.4 + 1.7 + 2.3) / 9
        "last": 2.3 / 3,
    }
    for name, value in expected.items():
        assert result[name] == pytest.approx(value, abs=1e-12), name


def test_forgetting_is_from_the_best_accuracy_and_not_from_the_first():
    # task 1 rises to 0.9 after task 2 and falls to 0.4: forgetting 0.5 = 0.9 - 0.4, bwt -0.2 = 0.4 - 0.6;
    # task 2: 0.8 - 0.7 = 0.1 either way; the last row must not count as a best, task 1 would else be >= 0.4
    result = summarize([[0.6, 0.0, 0.0], [0.9, 0.8, 0.0], [0.4, 0.7, 0.5]])
    assert result["forgetting"] == pytest.approx((0.5 + 0.1) / 2)
    assert result["bwt"] == pytest.approx((-0.2 - 0.1) / 2)


def test_improvement_is_negative_forgetting():
    assert summarize([[0.5, 0.0], [0.8, 0.9]])["forgetting"] == pytest.approx(-0.3)


def test_joint_training_defines_only_what_its_last_row_defines():
    result = summarize([[NAN, NAN, NAN], [NAN, NAN, NAN], [0.5, 0.7, 0.9]], INITIAL)
    assert result["acc"] == result["last"] == pytest.approx(0.7)
    assert {name for name, value in result.items() if value is None} == set(METRICS) - {"acc", "last"}


def test_evaluating_seen_tasks_only_leaves_out_what_needs_the_others():
    result = summarize([[0.9, NAN], [0.4, 0.8]], [0.1, 0.1])
    assert result["bwt"] == pytest.approx(-0.5)
    assert result["forgetting"] == pytest.approx(0.5)
    assert [result[name] for name in ("fwt", "transfer", "average")] == [None, None, None]


def test_forgetting_needs_every_row_in_between():
    result = summarize([[0.9, 0.0, 0.0], [NAN, 0.8, 0.0], [0.5, 0.7, 0.9]])
    assert result["forgetting"] is None
    assert result["bwt"] == pytest.approx(-0.25)  # ((0.5 - 0.9) + (0.7 - 0.8)) / 2


def test_one_task():
    assert summarize([[0.5]], [0.25]) == {
        **dict.fromkeys(METRICS),
        "acc": 0.5,
        "learning_accuracy": 0.5,
        "average": 0.5,
        "last": 0.5,
    }


def test_fwt_needs_the_row_before_training_but_not_its_first_entry():
    assert summarize(GOLDEN)["fwt"] is None
    assert summarize(GOLDEN, [0.1, 0.1, NAN])["fwt"] is None
    assert summarize(GOLDEN, [NAN, 0.1, 0.2])["fwt"] == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("matrix", "initial", "said"),
    [
        ([[0.1, 0.2]], None, "T x T"),
        ([0.1, 0.2], None, "T x T"),
        (np.empty((0, 0)), None, "T x T"),
        ([[0.1, 0.2], [0.3]], None, "matrix"),
        ([["good"]], None, "matrix"),
        ([[87.0]], None, "divide"),
        ([[-0.01]], None, "found -0.01"),
        ([[math.inf]], None, "found inf"),
        ([[0.5]], [0.5, 0.5], "initial"),
        ([[0.5]], [1.5], "initial"),
        ([[0.5]], [[0.5]], "initial"),
    ],
)
def test_wrong_input_is_refused(matrix, initial, said):
    with pytest.raises(ValueError, match=said):
        summarize(matrix, initial)


def _loop(r: list[list[float]], r0: list[float] | None) -> dict[str, float | None]:
    """The formulas again, with 1-based loops and nothing of numpy."""
    n = len(r)

    def at(i: int, j: int) -> float:
        if i == 0:
            return NAN if r0 is None else r0[j - 1]
        return r[i - 1][j - 1]

    def mean(values: list[float]) -> float | None:
        return None if not values or any(v != v for v in values) else math.fsum(values) / len(values)

    def best(j: int) -> float:
        values = [at(i, j) for i in range(j, n)]
        return NAN if any(v != v for v in values) else max(values)

    every = range(1, n + 1)
    transfer = [mean([at(i, j) for i in range(1, j)]) for j in range(2, n + 1)]
    return {
        "acc": mean([at(n, j) for j in every]),
        "learning_accuracy": mean([at(j, j) for j in every]),
        "bwt": mean([at(n, j) - at(j, j) for j in range(1, n)]),
        "fwt": mean([at(j - 1, j) - at(0, j) for j in range(2, n + 1)]),
        "forgetting": mean([best(j) - at(n, j) for j in range(1, n)]),
        "transfer": mean([NAN if value is None else value for value in transfer]),
        "average": mean([at(i, j) for i in every for j in every]),
        "last": mean([at(n, j) for j in every]),
    }


ACCURACY = st.floats(0, 1, allow_nan=False)
ENTRY = st.one_of(ACCURACY, ACCURACY, ACCURACY, st.just(NAN))


@st.composite
def square(draw, entry=ACCURACY):
    n = draw(st.integers(1, 6))
    return [draw(st.lists(entry, min_size=n, max_size=n)) for _ in range(n + 1)]


@settings(deadline=None)
@given(square(ENTRY), st.booleans())
def test_agrees_with_an_independent_loop_and_is_json(rows, with_initial):
    r0, r = (rows[0] if with_initial else None), rows[1:]
    result, expected = summarize(r, r0), _loop(r, r0)
    json.dumps(result, allow_nan=False)
    for name in METRICS:
        if expected[name] is None:
            assert result[name] is None, name
        else:
            assert type(result[name]) is float
            assert result[name] == pytest.approx(expected[name], abs=1e-12), name


@settings(deadline=None)
@given(square())
def test_properties(rows):
    r0, r = rows[0], np.array(rows[1:])
    result = summarize(r, r0)
    assert result["acc"] == result["last"]
    assert all(value is None or -1 <= value <= 1 for value in result.values())
    if len(r) > 1:
        assert result["bwt"] == pytest.approx(float((r[-1] - np.diag(r))[:-1].mean()), abs=1e-12)
        assert result["forgetting"] >= -result["bwt"]


@settings(deadline=None)
@given(ACCURACY, st.integers(2, 6))
def test_a_constant_matrix_neither_forgets_nor_transfers(value, n):
    result = summarize(np.full((n, n), value), np.full(n, value))
    assert [result[name] for name in ("bwt", "fwt", "forgetting")] == [0.0, 0.0, 0.0]
    assert all(result[name] == pytest.approx(value) for name in ("acc", "learning_accuracy", "transfer", "average"))


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (format_count, 0, "0"),
        (format_count, 999, "999"),
        (format_count, 1234, "1.23 k"),
        (format_count, 1234567, "1.23 M"),
        (format_count, 12_345_678, "12.3 M"),
        (format_count, 999_999, "1.00 M"),
        (format_count, None, "N/A"),
        (format_flops, 2.5e12, "2.50 TFLOPs"),
        (format_flops, 7, "7 FLOPs"),
        (format_bytes, 1023, "1023 B"),
        (format_bytes, 1536, "1.50 KiB"),
        (format_bytes, 139 * 2**30, "139 GiB"),
        (format_seconds, 0.25, "0.25 s"),
        (format_seconds, 12.34, "12.3 s"),
        (format_seconds, 59.96, "1 min 00 s"),
        (format_seconds, 75, "1 min 15 s"),
        (format_seconds, 3700, "1 h 01 min"),
        (format_seconds, 90000, "1 d 01 h"),
        (format_seconds, NAN, "N/A"),
        (format_seconds, None, "N/A"),
    ],
)
def test_costs_for_people(function, value, text):
    assert function(value) == text
