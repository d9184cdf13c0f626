"""Which metrics of health leave their usual range before the score falls, in the ledger's runs that fell."""

import statistics
from collections.abc import Iterable, Mapping, Sequence

FELL = 0.1  # EM below its best, from which a run counts as fallen
# Asked for by name, so shown with their counts even where they said nothing.
HEALTH = ("entropy", "repetition", "right_logprob", "positive_ratio_min", "reach", "repeated_queries",
          "results_without_news")


def signs(lines: Iterable[Mapping]) -> list[str]:
    """Markdown: for each metric, in how many of the fallen runs it left its usual range before EM fell, and how early."""
    fallen: dict[int, list[Mapping]] = {}  # by the run's number of steps
    for line in lines:
        if line.get("measures", {}).get("fall", 0) >= FELL:
            fallen.setdefault(len(line["curves"]["eval/em"]), []).append(line)
    if not fallen:
        return [f"No run ended {FELL} below its best."]
    leads = {steps: _leads(runs) for steps, runs in sorted(fallen.items())}
    others = sorted({name for found in leads.values() for name in found} - {*HEALTH})
    head = ["metric", *(f"{len(fallen[steps])} runs of {steps} steps" for steps in leads)]
    rows = [[name, *(_cell(found.get(name, []), len(fallen[steps])) for steps, found in leads.items())]
            for name in (*HEALTH, *others)]
    return [f"{sum(map(len, fallen.values()))} runs ended at least {FELL} below their best EM. A metric's usual range is",
            "its mean, plus and minus three deviations, over the second quarter of the steps. A sign is a metric that left",
            "its range for three steps in a row, before the first evaluation from which EM stays low. Cells: in how many of",
            "the runs, and how many steps before (median). The first seven metrics are those asked for by name.", "",
            *(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)), "",
            "Runs of 30 steps cannot answer: they are evaluated three times, the usual range rests on 8 steps, and a sign",
            "is looked for from step 16 on. C8's can: 90 steps at a constant rate. `positive_ratio_min` can be a sign",
            "in no run. It is measured before the update, and a step makes one update. So trainer and sampler have the same",
            "weights and the ratio is 1 but for rounding."]


def _leads(runs: Sequence[Mapping]) -> dict[str, list[int]]:
    """{metric: steps before EM fell, of the runs in which it left its range before}."""
    found: dict[str, list[int]] = {}
    for run in runs:
        fall = _fall_step(run["curves"]["eval/em"])
        for name, values in run["curves"].items():
            step = None if name == "noise" or name.startswith("eval/") else first_outside(values)
            if step is not None and step < fall:
                found.setdefault(name, []).append(fall - step)
    return found


def _cell(steps: Sequence[int], runs: int) -> str:
    return f"{len(steps)} of {runs}" + (f", {statistics.median(steps):.0f}" if steps else "")


def first_outside(values: Sequence[float | None], patience: int = 3) -> int | None:
    """The first step of `patience` in a row, in the second half, outside of the second quarter's usual range."""
    n = len(values)
    usual = [value for value in values[n // 4:n // 2] if value is not None]
    if len(usual) < 3:
        return None
    mean, spread = statistics.mean(usual), 3 * statistics.stdev(usual)
    outside = [value is not None and abs(value - mean) > spread for value in values]
    return next((step for step in range(n // 2, n - patience + 1) if all(outside[step:step + patience])), None)


def _fall_step(watched: Sequence[float | None]) -> int:
    """The first evaluation from which EM stays `FELL` below its best."""
    points = [(step, em) for step, em in enumerate(watched) if em is not None]
    best = max(em for _, em in points)
    late = [step for step, em in points if em > best - FELL]
    return next((step for step, _ in points if step > late[-1]), len(watched))
