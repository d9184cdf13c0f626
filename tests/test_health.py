"""Alarms: when they ring, that one good step silences them, and what is repetition."""

import numpy as np
import pytest

from zsjax.monitor import health
from zsjax.monitor.episodes import repetition

BOUNDS = {"entropy": [0.1, None], "searches": [0.5, 3], "absent": [1, None]}


def lines(*values):
    return [{"entropy": value, "searches": 1.0} for value in values]


def test_an_alarm_needs_patience():
    def ring(*values):
        return health.alarms(lines(*values), BOUNDS, 3)

    assert ring(0.01, 0.01) == {"alarm/entropy": 0, "alarm/searches": 0}
    assert ring(0.01, 0.01, 0.01) == {"alarm/entropy": 1, "alarm/searches": 0}
    assert ring(0.01, 0.2, 0.01)["alarm/entropy"] == 0 and ring(0.01, 0.01, 0.2)["alarm/entropy"] == 0
    assert ring(0.2, 0.01, 0.01, 0.01)["alarm/entropy"] == 1
    assert health.alarms([], BOUNDS, 3) == {}
    assert health.alarms(lines(0.01), BOUNDS, 1)["alarm/entropy"] == 1


def test_bounds():
    assert health.is_outside({"x": 5.0}, "x", None, 4) and not health.is_outside({"x": 4.0}, "x", None, 4)
    assert health.is_outside({"x": -1}, "x", 0, None) and not health.is_outside({}, "x", 0, 1)
    for broken in (None, float("nan"), float("inf"), "inf"):  # what a line holds where a metric was no number
        assert health.is_outside({"x": broken}, "x", None, 4)


def test_the_message_names_what_and_how_far():
    history = lines(0.01, 0.02, 0.03)
    told = health.stop_message(health.alarms(history, BOUNDS, 3), history[-1], BOUNDS, 3)
    assert "entropy = 0.03" in told and "0.1" in told and "3 steps" in told and "searches" not in told
    assert health.stop_message({"alarm/entropy": 0}, history[-1], BOUNDS, 3) is None


def test_repetition_equals_a_slow_count():
    rng = np.random.default_rng(0)
    rows = [rng.integers(0, 4, n).tolist() for n in (0, 3, 4, 30, 200)] + [[7] * 20, list(range(20))]

    def slow(row, n):
        grams = [tuple(row[i:i + n]) for i in range(len(row) - n + 1)]
        return 1 - len(set(grams)) / len(grams) if grams else 0.0

    for n in (1, 2, 4):
        assert repetition(rows, n) == pytest.approx(np.mean([slow(row, n) for row in rows]))
    assert repetition([[7] * 20]) == pytest.approx(16 / 17) and repetition([list(range(20))]) == 0
    assert repetition([]) == 0
