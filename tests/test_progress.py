"""The clock behind the progress bar."""

from __future__ import annotations

import pytest

from cl_runner.recording.progress import Clock


def test_a_clock_counts_what_is_done_and_judges_what_is_left_by_it():
    clock = Clock()
    clock.start_task(1, 2, 10, now=100.0)
    clock.steps, clock.images = 5, 50
    assert clock.fraction() == pytest.approx(5 / 20)
    assert clock.left(110.0) == pytest.approx(15 * 2.0)


def test_steps_of_an_earlier_attempt_are_done_but_took_none_of_this_ones_time():
    clock = Clock()
    clock.start_task(2, 3, 10, now=100.0)
    clock.take_up(6)
    assert clock.fraction() == pytest.approx(16 / 30) and clock.steps_left() == 14
    clock.steps = 2
    assert clock.left(104.0) == pytest.approx(12 * 2.0), "2 s a step, as this attempt has them"
    clock.start_task(3, 3, 10, now=120.0)
    assert clock.steps_left() == 10
