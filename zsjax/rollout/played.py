"""The result of a rollout: finished episodes, and how much work they took."""

from typing import Any

import flax.struct
import numpy as np

from zsjax import types
from zsjax.models import quant
from zsjax.search.simulator.writing import Tally

METRICS = (
    types.Metric("occupancy/policy", "decode-step rows of the policy that held a useful token", "share of rows", 0.0, 1.0,
                 "0.5 or more", chart="Occupancy", curve="policy"),
    types.Metric("occupancy/simulator", "decode-step slots of the simulator that held a useful token", "share of rows", 0.0,
                 1.0, "0.5 or more", chart="Occupancy", curve="simulator"),
    types.Metric("requests_saved", "searches that the reply to an equal one answered", "share of searches", 0.0, 1.0),
)


@flax.struct.dataclass
class RolloutWork:
    """Counts of a rollout, int32[1] (one for each device). None: not counted.

    The occupancy is useful tokens / (rows * steps).

    Attributes:
      policy_steps, simulator_steps: decode steps. policy_rows, simulator_slots: rows of each step.
      simulator_tokens: of finished documents, each counted once.
      requests: all requests. simulated: different requests, which the simulator wrote.
      tally: of the simulator; None where it is not in the program.
      policy_cache, simulator_cache: float32[1], bytes.
    """

    policy_steps: Any
    policy_rows: Any
    simulator_steps: Any
    simulator_slots: Any
    simulator_tokens: Any = None
    requests: Any = None
    simulated: Any = None
    tally: Tally | None = None
    policy_cache: Any = None
    simulator_cache: Any = None


@flax.struct.dataclass
class Played:
    """The result of a rollout."""

    episodes: types.Episodes
    work: RolloutWork


def allocated_bytes(cache):
    """float32[1] bytes of a cache, as `RolloutWork` has them."""
    return np.full(1, quant.num_bytes(cache), np.float32)


def occupancy(played: Played) -> dict[str, float]:
    """The share of a model's rows, over all decode steps, that sampled a token of use; numpy.

    Waiting rows, rows at the end of the queue and cut documents count as idle.

    Returns:
      {"policy": share, "simulator": share}, without a model whose steps are not counted.
    """
    work = played.work
    policy_tokens = (np.asarray(played.episodes.roles) == types.POLICY).sum()
    parts = {"policy": (policy_tokens, work.policy_steps, work.policy_rows),
             "simulator": (work.simulator_tokens, work.simulator_steps, work.simulator_slots)}
    places = {name: float((np.asarray(steps) * np.asarray(at_once)).sum()) for name, (_, steps, at_once) in parts.items()}
    return {name: float(np.sum(tokens)) / places[name] for name, (tokens, *_) in parts.items()
            if places[name] and tokens is not None}


def requests_saved(work: RolloutWork) -> float | None:
    """The share of requests that the reply to an equal request answered; numpy. None: requests are not counted."""
    asked = np.sum(work.requests) if work.requests is not None else 0
    return 1 - float(np.sum(work.simulated) / asked) if asked else None
