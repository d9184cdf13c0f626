"""Signs that a run collapses: bounds on what each step logs, and one measure of its own, repetition.

A policy that collapses does so in plain sight: entropy falls to zero, thoughts shrink to nothing or repeat themselves,
nobody answers or nobody searches any more, the sampler and the trainer drift apart, gradients explode. Each of these is
a metric of the step's line; an alarm is a metric that was out of its bounds for `patience` steps in a row. Alarms are
logged ("alarm/NAME", 0 or 1), shown by the report, and may stop the run.
"""

import functools
import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from zsjax import types
from zsjax.config.named import Registry
from zsjax.errors import UserError

# Metrics of a step's line. Families of them: what stands behind the slash differs from run to run.
STEP_METRICS = (
    "loss", "grad_norm", "weight", "nonfinite", "entropy", "kl", "kl_coef", "ratio_mean", "approx_kl", "clip_fraction",
    "dual_clip_fraction", "sampler_gap_mean", "sampler_gap_p99", "sampler_gap_max", "noise", "real_searches", "reward",
    "em", "searches", "on_path", "noisy_share", "invalid_actions", "short_replies", "groups_with_signal",
    "response_tokens", "document_tokens", "repetition", "rounds", "requests_saved", "length",
    *(f"share_{name}" for name in types.STATUS_NAMES[1:]))
FAMILIES = ("value", "term", "rerank", "occupancy", "engine", "used", "time", "speed", "prefill", "cache_bytes", "compile")


def metric(line: Mapping, name: str):
    """A line's metric, None where the line lacks it; one that was not a number (null) is NaN."""
    if name not in line:
        return None
    return np.nan if line[name] is None else line[name]


# What alarms measure: (line of metrics) -> float, or None where the line has nothing to measure.
ALARMS = Registry("alarm")
for _name, _unit, _help in (
        ("entropy", "nats per token", "the policy hardly chooses any more"),
        ("response_tokens", "tokens per episode", "the policy writes next to nothing"),
        ("repetition", "share of 4-grams", "the policy repeats itself"),
        ("share_answered", "share of episodes", "hardly an episode ends with an answer"),
        ("searches", "per episode", "the policy hardly searches any more"),
        ("sampler_gap_mean", "nats per token", "sampler and trainer give different log-probs"),
        ("grad_norm", "", "the gradient explodes")):
    ALARMS(_name, unit=_unit, help=_help)(functools.partial(metric, name=_name))


class HealthAlarm(UserError):
    """The run was stopped because a metric stayed out of its bounds (config.health)."""

    exit_code = 1


def metric_names(terms: Iterable[str] = ()) -> tuple[str, ...]:
    """Names of a step's metrics in a run with these reward terms; those of `FAMILIES` are not listed."""
    return (*STEP_METRICS, *(f"reward/{term}" for term in terms))


def is_step_metric(name: str, terms: Iterable[str] = ()) -> bool:
    """Whether a step's line may hold the metric, evaluations in training included."""
    family, slash, _ = name.removeprefix("eval/").partition("/")  # evaluations are accounted for in the same words
    return name in metric_names(terms) or bool(slash and family in FAMILIES) or is_evaluation_metric(name)


def is_evaluation_metric(name: str) -> bool:
    """Whether the evaluations in training give the metric."""
    return bool(re.fullmatch(r"eval/(em|f1|searches|failed_searches|em_\w+_hop)", name))


def alarms(history: Sequence[Mapping], bounds: Mapping[str, Sequence], patience: int) -> dict[str, int]:
    """Which alarms ring after a step.

    Args:
      history: lines of metrics, oldest first, the step's own last; at least `patience` of them, or none rings. Lines of
        an interrupted run are read back from metrics.jsonl, so this needs no state of its own.
      bounds: a metric, a name in `ALARMS` or "package.module:function" -> [low, high], either may be None. What a line
        lacks is within its bounds, what is not finite (null) is outside.
      patience: steps in a row outside.

    Returns:
      {"alarm/METRIC": 0 or 1} of the metrics that the last line has.
    """
    if not history:
        return {}
    recent = history[-patience:]
    return {f"alarm/{name}": int(len(recent) == patience and all(is_outside(line, name, *limits) for line in recent))
            for name, limits in bounds.items() if alarm_value(history[-1], name) is not None}


def alarm_value(line: Mapping, name: str) -> float | None:
    """What an alarm measures in a line: a function in `ALARMS`, "package.module:function", or the metric of that name."""
    return ALARMS.load(name)(line) if name in ALARMS or ":" in name else metric(line, name)


def is_outside(line: Mapping, name: str, low, high) -> bool:
    """Whether a line's metric is below low or above high (None: no bound), or no number at all."""
    value = alarm_value(line, name)
    if value is None:
        return False
    if not isinstance(value, int | float) or not np.isfinite(value):
        return True
    return (low is not None and value < low) or (high is not None and value > high)


def stop_message(ringing: Mapping[str, int], line: Mapping, bounds: Mapping[str, Sequence], patience: int) -> str | None:
    """What to tell of a step whose alarms ring, None if none does."""
    names = [name.removeprefix("alarm/") for name, rings in ringing.items() if rings]
    if not names:
        return None
    parts = []
    for name in names:
        entry = ALARMS.entry(name)
        notes = "".join(f", {text}" for text in (entry.unit, entry.help) if text)
        parts.append(f"{name} = {alarm_value(line, name)} (bounds {list(bounds[name])}{notes})")
    return f"for {patience} steps in a row: {'; '.join(parts)}"


def repetition(rows: Sequence[Sequence[int]], n: int = 4) -> float:
    """Share of n-grams that occurred before in the same row, mean over rows; 0 where a row has fewer than n tokens.

    Args:
      rows: token ids, one sequence an episode: what the policy wrote.
    """
    return float(np.mean([_repeated(np.asarray(row, np.int64), n) for row in rows])) if len(rows) else 0.0


def _repeated(row, n):
    if len(row) < n:
        return 0.0
    # A polynomial over 2^64 names an n-gram; a collision would need millions of different ones in a row.
    grams = np.zeros(len(row) - n + 1, np.uint64)
    for i in range(n):
        grams = grams * np.uint64(0x9E3779B97F4A7C15) + row[i:len(row) - n + 1 + i].astype(np.uint64) + np.uint64(1)
    return 1.0 - len(np.unique(grams)) / len(grams)
