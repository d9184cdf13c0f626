"""The ledger's statistics: paired effects, their intervals, and the rule by which a claim is decided.

The rule was fixed before any run. An interval is the 95 % confidence interval of the mean difference over seeds, by
Student's t. A claim names the smallest effect that matters.

    greater    supported: the interval lies above 0 and reaches the smallest effect.
               refuted: the interval lies below the smallest effect.
    smaller    the same with the sign of the difference turned.
    not_worse  supported: the interval lies above minus the smallest effect. refuted: it lies below 0 and is not supported.
    alike      supported: the interval lies within plus and minus the smallest effect.
               refuted: it lies on one side of 0 and is not supported.

Anything else is undecided. Then `seeds_to_decide` says how many seeds would decide if mean and deviation stayed.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

SUPPORTED, REFUTED, UNDECIDED = "supported", "refuted", "undecided"
SAYS = ("greater", "smaller", "not_worse", "alike")
LEVEL = 0.95
MOST_SEEDS = 1000  # beyond it `seeds_to_decide` stops to count


@dataclasses.dataclass(frozen=True)
class Effect:
    """A mean difference over n seeds, and its standard error: nan for one seed."""

    mean: float
    error: float
    n: int

    @property
    def seeds(self) -> int:
        return self.n

    def interval(self, n: int | None = None) -> tuple[float, float]:
        """(low, high), with n seeds of the same mean and deviation; infinite for fewer than two."""
        n = n or self.n
        if self.n < 2 or n < 2:
            return -math.inf, math.inf
        half = stats.t.ppf(0.5 + LEVEL / 2, n - 1) * self.error * math.sqrt(self.n / n)
        return self.mean - half, self.mean + half


@dataclasses.dataclass(frozen=True)
class Correlated(Effect):
    """Pearson's correlation over n runs; the interval is Fisher's, the error that of r by the delta method.

    means: number of means that were taken out of the runs beside the common one. Each costs the interval a run.
    of_seeds: seeds of these runs. Every further seed has as many runs, and a mean of its own to take out.
    """

    means: int = 0
    of_seeds: int = 0

    @property
    def seeds(self) -> int:
        return self.of_seeds or self.n

    def interval(self, n: int | None = None) -> tuple[float, float]:
        further = (n or self.seeds) - self.seeds
        left = self.n - self.means + further * (self.n / self.seeds - bool(self.of_seeds)) if self.n else 0
        if left < 4 or math.isnan(self.mean) or abs(self.mean) >= 1:
            return -math.inf, math.inf
        z, half = math.atanh(self.mean), stats.norm.ppf(0.5 + LEVEL / 2) / math.sqrt(left - 3)
        return math.tanh(z - half), math.tanh(z + half)


def paired(treatment: Mapping[int, float], control: Mapping[int, float]) -> Effect:
    """The difference treatment - control, over the seeds that both have ({seed: value}).

    Raises ValueError where they have no seed in common.
    """
    seeds = sorted(treatment.keys() & control.keys())
    if not seeds:
        raise ValueError("treatment and control have no seed in common")
    differences = np.array([treatment[seed] - control[seed] for seed in seeds], np.float64)
    error = differences.std(ddof=1) / math.sqrt(len(seeds)) if len(seeds) > 1 else math.nan
    return Effect(float(differences.mean()), float(error), len(seeds))


def decide(says: str, effect: Effect, smallest: float, n: int | None = None) -> str:
    """The verdict on one comparison; n: as if there were n seeds of the same mean and deviation.

    Raises ValueError for an unknown claim or a smallest effect that is not above 0.
    """
    if says not in SAYS:
        raise ValueError(f"says = {says!r}; use {', '.join(SAYS)}")
    if not smallest > 0:
        raise ValueError(f"smallest = {smallest!r} must be above 0")
    low, high = effect.interval(n)
    if says == "smaller":
        low, high = -high, -low
    if says in ("greater", "smaller"):
        if high < smallest:
            return REFUTED
        return SUPPORTED if low > 0 else UNDECIDED
    if low > -smallest and (says == "not_worse" or high < smallest):
        return SUPPORTED
    return REFUTED if high < 0 or (says == "alike" and low > 0) else UNDECIDED


def seeds_to_decide(says: str, effect: Effect, smallest: float) -> int | None:
    """The fewest seeds with which `decide` would decide; None where more than `MOST_SEEDS`, or one seed, say nothing."""
    if effect.n < 2 or math.isnan(effect.mean):
        return None
    return next((n for n in range(2, MOST_SEEDS + 1) if decide(says, effect, smallest, n) != UNDECIDED), None)


def together(verdicts: Sequence[str]) -> str:
    """The verdict on a claim of several comparisons: refuted if one is, supported if all are."""
    if REFUTED in verdicts:
        return REFUTED
    return SUPPORTED if verdicts and set(verdicts) == {SUPPORTED} else UNDECIDED


def correlation(xs: Sequence[float], ys: Sequence[float], labels: Sequence[Sequence] = ()) -> Effect:
    """Pearson's correlation of pairs as an effect; nan for too few pairs, or without spread.

    Runs of one simulator share it, and runs of one seed share their questions, so such runs are not independent. labels
    names them, as a tuple (simulator, seed) for each pair: the correlation is then of what is left when the mean of each
    label is taken out (a partial correlation, whose interval has as many runs fewer as means were taken out).
    """
    n = len(xs)
    columns = [np.ones(n), *(np.array([label == value for label in column], np.float64)
                             for column in zip(*labels, strict=True) for value in sorted(set(column)))]
    design = np.stack(columns, axis=1)
    means = int(np.linalg.matrix_rank(design)) - 1 if n else 0
    counted = (n, means, len({seed for *_, seed in labels}))
    if n - means < 4:
        return Correlated(math.nan, math.nan, *counted)
    left = [values - design @ np.linalg.lstsq(design, values, rcond=None)[0] for values in (np.array(xs), np.array(ys))]
    if min(np.abs(values).max() for values in left) < 1e-12:
        return Correlated(math.nan, math.nan, *counted)
    r = float(np.corrcoef(*left)[0, 1])
    return Correlated(r, (1 - r * r) / math.sqrt(n - means - 3), *counted)
