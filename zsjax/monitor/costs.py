"""The use of a run and its cost: searches, tokens and accelerator time, priced by config.cost.

Loops write the use of a step into its metrics line ("used/searches", ...). The account therefore survives kills and
resumes as the metrics do; the report adds it up.
"""

import collections
import time
from collections.abc import Iterable, Mapping, Sequence

import jax
import numpy as np

from zsjax import types
from zsjax.parallel import hosts
from zsjax.search.engine import as_engine

# ZeroSearch's own comparison (arXiv 2505.04588): dollars for 64,000 searches.
PAPER = {"searches": 64_000, "web search API (SerpApi)": 586.70, "14B simulator on 4 A100": 70.80}

METRICS = (
    types.Metric("used/*", "what the episodes used: episodes, searches, policy_tokens, document_tokens; devices", low=0.0,
                 read_by=("costs",)),
    types.Metric("engine/*", "the engine's counters: requests, failures by kind, cached and paid searches", low=0.0,
                 read_by=("costs",)),
    types.Metric("time/reshard", "moving the weights to where decoding reads them", "seconds", 0.0, chart="Time",
                 curve="weights moved for decoding"),
)


def used(episodes: types.Episodes, *, devices: int = 1) -> dict[str, int]:
    """The use of finished episodes (numpy): "used/searches", "used/policy_tokens", "used/document_tokens",
    "used/episodes" and "used/devices"."""
    roles = np.asarray(episodes.roles)
    return {"used/episodes": len(episodes.length), "used/searches": int(np.sum(episodes.num_searches)),
            "used/policy_tokens": int((roles == types.POLICY).sum()),
            "used/document_tokens": int((roles == types.DOCUMENT).sum()), "used/devices": devices}


class Meter:
    """A rollout that counts its use until the next `take`. Its results are numpy."""

    def __init__(self, rollout, engine, *, devices: int = 1, account=None):
        """rollout: a `zsjax.rollout.Rollout`. engine: its counters are read. devices: number that the rollout uses.
        account: None, or a `zsjax.monitor.usage.RolloutAccount`, whose figures `take` adds."""
        self.rollout, self.devices, self.account = rollout, devices, account
        self.tokenizer = rollout.tokenizer
        self._counters, self._used, self._seconds = EngineCounters(engine), collections.Counter(), 0.0
        self._resharded = 0.0

    def __call__(self, params, questions, **options) -> types.Episodes:
        return self.play(params, questions, **options).episodes

    def place(self, params):
        """`Rollout.place`, counted."""
        start = time.perf_counter()
        placed = self.rollout.place(params)
        self._seconds += time.perf_counter() - start
        return placed

    def play(self, params, questions, **options):
        """`Rollout.play`, counted."""
        start = time.perf_counter()
        played = jax.device_get(self.rollout.play(params, questions, **options))
        seconds = time.perf_counter() - start
        self._seconds += seconds
        self._used.update(used(played.episodes))
        if self.account is not None:
            self.account.add(params, played, seconds)
        return played

    def take(self) -> dict[str, float]:
        """Figures since the last call: `used`, the engine's counters, the account's, "time/step" in seconds, and
        "time/reshard", the part of it in which parameters were moved for decoding, if any."""
        taken = {**self._used, "used/devices": self.devices, **self._counters.take(), "time/step": self._seconds,
                 **(self.account.take() if self.account is not None else {})}
        self._used, self._seconds = collections.Counter(), 0.0
        if (resharded := self.rollout.reshard_seconds) > self._resharded:
            taken["time/reshard"] = resharded - self._resharded
            self._resharded = resharded
        return taken


class EngineCounters:
    """An engine's counters (requests, failures, paid searches): `take()` gives what all hosts added since the last call."""

    def __init__(self, engine):
        self.engine, self._last = as_engine(engine), collections.Counter(as_engine(engine).counters)

    def take(self) -> dict[str, int]:
        now = collections.Counter(self.engine.counters)
        added = {name: count - self._last[name] for name, count in now.items()}
        self._last = now
        return {f"engine/{name}": count for name, count in sorted(hosts.add_up(added).items())}


def account(lines: Iterable[Mapping], prices) -> list[dict]:
    """A row for each stage that used something, and their sum.

    Args:
      lines: of metrics.jsonl. The use of evaluations in training is in the lines of their steps, under "eval/".
      prices: with the attributes of `CostConfig`: search, accelerator_hour, in dollars.

    Returns:
      Rows of stage, episodes, searches, policy_tokens, document_tokens, accelerator_hours (wall-clock time of the stage's
      steps times devices), accelerator_dollars, paid_dollars (for searches that a web search API was paid for) and
      api_dollars (the price of all searches at such an API).
    """
    stages: dict[str, collections.Counter] = {}
    last: dict[str, float] = {}
    for line in lines:
        seconds = line.get("time/step")
        if (elapsed := line.get("time/elapsed")) is not None:  # since the stage began, or began again after a kill
            before = last.get(line["stage"], 0.0)
            seconds, last[line["stage"]] = elapsed - before if elapsed >= before else elapsed, elapsed
        if not any(name.startswith("used/") for name in line) and seconds is None:
            continue
        total = stages.setdefault(line["stage"], collections.Counter())
        for name in ("episodes", "searches", "policy_tokens", "document_tokens"):
            total[name] += (line.get(f"used/{name}") or 0) + (line.get(f"eval/used/{name}") or 0)
        total["accelerator_seconds"] += (seconds or 0.0) * (line.get("used/devices") or 1)
        total["paid_searches"] += sum(line.get(f"{part}engine/paid_searches") or 0 for part in ("", "eval/"))
    everything = sum(stages.values(), collections.Counter())
    rows = [_row(stage, total, prices) for stage, total in stages.items()]
    return [*rows, _row("all", everything, prices)] if rows else []


def _row(stage, total, prices):
    hours = total["accelerator_seconds"] / 3600
    return {"stage": stage, **{name: total[name] for name in ("episodes", "searches", "policy_tokens", "document_tokens")},
            "accelerator_hours": hours, "accelerator_dollars": hours * prices.accelerator_hour,
            "paid_dollars": total["paid_searches"] * prices.search, "api_dollars": total["searches"] * prices.search}


def comparison(rows: Sequence[Mapping]) -> str:
    """One sentence that compares the run's cost with that of a web search API; "" without searches."""
    if not rows or not rows[-1]["searches"]:
        return ""
    total = rows[-1]
    paper = ", ".join(f"{name} {price:.2f}" for name, price in PAPER.items() if name != "searches")
    return (f"{total['searches']} searches would have cost {total['api_dollars']:.2f} dollars at a web search API; the "
            f"whole run, training included, used accelerators for {total['accelerator_dollars']:.2f} dollars and paid "
            f"{total['paid_dollars']:.2f} for searches. The paper's figures for {PAPER['searches']:,} searches, in "
            f"dollars, training not included: {paper}.")
