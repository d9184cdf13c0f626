"""All metrics of metrics.jsonl: what each module declares in its `METRICS`. Alarms, report and documentation read them here.

A metric of a user's own loss or term is in no `METRICS`; it is logged like the others, and its chart stands under "other".
"""

import fnmatch
from collections.abc import Iterable

from zsjax import evaluate, supervised
from zsjax.monitor import costs, episodes, phases, usage, writer
from zsjax.rl import objective, steering, step_programs, value_steps
from zsjax.rollout import actor, played
from zsjax.search import rerank
from zsjax.types import Metric

ALARM = Metric("alarm/*", "1: the metric was out of its bounds for config.health.patience steps", "0 or 1", 0.0, 1.0, "0",
               chart="Alarms")
# Evaluations in training log these as well, as "eval/NAME".
OF_ROLLOUTS = (*costs.METRICS, *usage.METRICS)
METRICS = (*episodes.METRICS, *evaluate.METRICS, *steering.METRICS, *objective.METRICS, *step_programs.METRICS,
           *value_steps.METRICS, *rerank.METRICS, *played.METRICS, *actor.METRICS, *writer.METRICS, *phases.METRICS,
           *OF_ROLLOUTS, *supervised.METRICS, ALARM)


def find_metric(name: str) -> Metric | None:
    """The description of a metric, that of its family if it has none of its own; None for an unknown name."""
    known = METRICS
    if name.startswith("eval/") and not any(fnmatch.fnmatchcase(name, metric.name) for metric in METRICS):
        name, known = name.removeprefix("eval/"), OF_ROLLOUTS
    fitting = [metric for metric in known if fnmatch.fnmatchcase(name, metric.name)]
    return min(fitting, key=lambda metric: "*" in metric.name, default=None)


def metric_names(terms: Iterable[str] = ()) -> tuple[str, ...]:
    """Names of metrics in a run with these reward terms; families are not listed."""
    return (*(metric.name for metric in METRICS if "*" not in metric.name), *(f"reward/{term}" for term in terms))


def is_step_metric(name: str, terms: Iterable[str] = ()) -> bool:
    """Whether a step's line may hold the metric, evaluations in training included."""
    if name.startswith("reward/"):
        return name.removeprefix("reward/") in terms
    return find_metric(name) not in (None, ALARM, *supervised.METRICS)


def is_evaluation_metric(name: str) -> bool:
    """Whether the evaluations in training give the metric."""
    return any(fnmatch.fnmatchcase(name, metric.name) for metric in evaluate.METRICS)
