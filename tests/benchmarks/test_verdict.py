"""The ledger's statistics against independent oracles, and its rule."""

import math

import numpy as np
import pytest
from scipy import stats

from benchmarks.hypotheses import verdict
from benchmarks.hypotheses.verdict import REFUTED, SUPPORTED, UNDECIDED, Effect


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_the_paired_interval_is_that_of_a_paired_t_test(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.7, 0.1, n), rng.normal(0.6, 0.1, n)
    shuffled = rng.permutation(n).tolist()
    effect = verdict.paired({i: a[i] for i in shuffled} | {99: 5.0}, dict(enumerate(b)))
    oracle = stats.ttest_rel(a, b)
    assert effect.n == n and effect.mean == pytest.approx((a - b).mean())
    assert effect.mean / effect.error == pytest.approx(oracle.statistic)
    assert effect.interval() == pytest.approx(tuple(oracle.confidence_interval(0.95)))
    with pytest.raises(ValueError, match="no seed in common"):
        verdict.paired({0: 1.0}, {1: 1.0})


def test_the_interval_covers_the_truth_19_times_of_20():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(2000):
        draws = rng.normal(0.1, 0.05, 5)
        low, high = verdict.paired(dict(enumerate(draws)), dict.fromkeys(range(5), 0.0)).interval()
        hits += low < 0.1 < high
    assert abs(hits / 2000 - 0.95) < 0.015


# says, interval, verdict; the smallest effect that matters is 0.1
RULE = [
    ("greater", (0.02, 0.3), SUPPORTED), ("greater", (-0.02, 0.3), UNDECIDED), ("greater", (-0.2, 0.05), REFUTED),
    ("greater", (0.02, 0.05), REFUTED), ("greater", (-0.5, -0.2), REFUTED), ("greater", (-0.3, 0.2), UNDECIDED),
    ("smaller", (-0.3, -0.02), SUPPORTED), ("smaller", (-0.05, 0.2), REFUTED), ("smaller", (-0.3, 0.02), UNDECIDED),
    ("not_worse", (-0.05, 0.3), SUPPORTED), ("not_worse", (-0.05, -0.01), SUPPORTED), ("not_worse", (-0.3, -0.02), REFUTED),
    ("not_worse", (-0.2, 0.1), UNDECIDED), ("alike", (-0.05, 0.08), SUPPORTED), ("alike", (0.02, 0.3), REFUTED),
    ("alike", (-0.3, -0.02), REFUTED), ("alike", (-0.05, 0.2), UNDECIDED)]


@pytest.mark.parametrize("says, interval, expected", RULE)
def test_the_rule(says, interval, expected):
    low, high = interval
    n, width = 5, (high - low) / 2
    effect = Effect((low + high) / 2, width / stats.t.ppf(0.975, n - 1), n)
    assert effect.interval() == pytest.approx(interval)
    assert verdict.decide(says, effect, 0.1) == expected
    needed = verdict.seeds_to_decide(says, effect, 0.1)
    if needed is not None and needed > 2:
        assert verdict.decide(says, effect, 0.1, needed) != UNDECIDED == verdict.decide(says, effect, 0.1, needed - 1)
    assert needed is not None  # none of these sits on a border


def test_one_seed_decides_nothing():
    effect = verdict.paired({0: 1.0}, {0: 0.0})
    assert math.isnan(effect.error) and verdict.decide("greater", effect, 0.1) == UNDECIDED
    assert verdict.seeds_to_decide("greater", effect, 0.1) is None
    assert verdict.together([SUPPORTED, SUPPORTED]) == SUPPORTED and verdict.together([]) == UNDECIDED
    assert verdict.together([SUPPORTED, REFUTED]) == REFUTED and verdict.together([SUPPORTED, UNDECIDED]) == UNDECIDED
    with pytest.raises(ValueError, match="says = 'better'"):
        verdict.decide("better", effect, 0.1)
    with pytest.raises(ValueError, match="must be above 0"):
        verdict.decide("greater", effect, 0.0)


def test_correlation():
    rng = np.random.default_rng(0)
    xs = rng.normal(size=20)
    ys = -xs + rng.normal(size=20)
    effect = verdict.correlation(xs, ys)
    assert effect.mean == pytest.approx(stats.pearsonr(xs, ys).statistic) and effect.n == 20
    assert effect.interval() == pytest.approx(tuple(stats.pearsonr(xs, ys).confidence_interval(0.95)))
    assert verdict.decide("smaller", effect, 0.5) == SUPPORTED and verdict.decide("greater", effect, 0.5) == REFUTED
    flat = verdict.correlation([1, 1, 1, 1], [1, 2, 3, 4])
    assert verdict.decide("smaller", flat, 0.5) == UNDECIDED and verdict.seeds_to_decide("smaller", flat, 0.5) is None


def test_a_correlation_within_simulators_and_seeds_ignores_what_they_share():
    rng = np.random.default_rng(0)
    labels = [(arm, seed) for arm in "abcd" for seed in range(5)]
    hits = []
    for _ in range(1000):  # nothing but the simulator and the seed moves x and y together
        shared = {label: 3 * rng.normal() for label in [*"abcd", *range(5)]}
        x, y = (np.array([sum(shared[label] for label in pair) + rng.normal() for pair in labels]) for _ in range(2))
        effect = verdict.correlation(x, y, labels)
        low, high = effect.interval()
        hits.append(low < 0 < high)
    assert abs(np.mean(hits) - 0.95) < 0.02 and effect.means == 7
    pooled = verdict.correlation(x, y)
    assert pooled.mean > 0.6 and pooled.interval()[0] > 0  # what the shared parts alone would have "decided"


def test_a_partial_correlation_is_that_of_the_residuals():
    rng = np.random.default_rng(1)
    labels = [(arm, seed) for arm in "abcd" for seed in range(5)]
    x, y = rng.normal(size=(2, 4, 5))
    left = [v - v.mean(0) - v.mean(1, keepdims=True) + v.mean() for v in (x, y)]
    effect = verdict.correlation(x.ravel(), y.ravel(), labels)
    assert effect.mean == pytest.approx(stats.pearsonr(*(v.ravel() for v in left)).statistic)
    z, half = np.arctanh(effect.mean), 1.959964 / math.sqrt(20 - 7 - 3)
    assert effect.interval() == pytest.approx((math.tanh(z - half), math.tanh(z + half)), abs=1e-6)
    # A sixth seed is four more runs and one more mean to take out.
    half = 1.959964 / math.sqrt(24 - 8 - 3)
    assert effect.seeds == 5 and effect.interval(6) == pytest.approx((math.tanh(z - half), math.tanh(z + half)), abs=1e-6)
    needed = verdict.seeds_to_decide("smaller", effect, 0.8)
    distance = math.atanh(0.8) + np.arctanh(effect.mean)  # of an r that is refuted as soon as the interval is narrower
    assert needed == math.ceil(((1.959964 / distance) ** 2 + 3 + 2) / 3)  # 4 runs a seed, less one mean a seed and 2 of arms
    few = verdict.correlation(x.ravel()[:5], y.ravel()[:5], labels[:5])
    assert math.isnan(few.mean) and few.n == 5
