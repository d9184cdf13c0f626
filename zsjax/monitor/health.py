"""Alarms: signs of collapse, as bounds on what each step logs.

Before a policy collapses, its entropy falls to zero, its thoughts vanish or repeat themselves, it stops answering or
searching, sampler and trainer drift apart, or gradients explode. Each of these is a metric of the step's line. An alarm
rings when its metric was out of bounds for `patience` steps in a row. Alarms are logged ("alarm/NAME", 0 or 1), shown by
the report, and may stop the run.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np

from zsjax.config.named import Registry
from zsjax.errors import UserError
from zsjax.monitor.catalog import METRICS

# What alarms measure: (line of metrics) -> float, or None where the line has nothing to measure.
ALARMS = Registry("alarm")


def metric(line: Mapping, name: str):
    """A line's metric; None where the line lacks it, NaN where it was not a number (null)."""
    if name not in line:
        return None
    return np.nan if line[name] is None else line[name]


for _metric in METRICS:
    if _metric.alarm:
        ALARMS(_metric.name, unit=_metric.unit, help=_metric.alarm)(functools.partial(metric, name=_metric.name))


class HealthAlarm(UserError):
    """The run was stopped because a metric stayed out of its bounds (config.health)."""

    exit_code = 1


def alarms(history: Sequence[Mapping], bounds: Mapping[str, Sequence], patience: int) -> dict[str, int]:
    """Which alarms ring after a step.

    Args:
      history: lines of metrics, oldest first, the step's own last; at least `patience` of them, or none rings. Lines of
        an interrupted run are read back from metrics.jsonl, so this needs no state of its own.
      bounds: a metric, a name in `ALARMS` or "package.module:function" -> [low, high], either may be None. A metric that
        a line lacks is within its bounds; one that is not finite (null) is outside.
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
    """The sentence about a step whose alarms ring; None if none does."""
    names = [name.removeprefix("alarm/") for name, rings in ringing.items() if rings]
    if not names:
        return None
    parts = []
    for name in names:
        entry = ALARMS.entry(name)
        notes = "".join(f", {text}" for text in (entry.unit, entry.help) if text)
        parts.append(f"{name} = {alarm_value(line, name)} (bounds {list(bounds[name])}{notes})")
    return f"for {patience} steps in a row: {'; '.join(parts)}"
