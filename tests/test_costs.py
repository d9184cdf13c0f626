"""The account of a run: what episodes used, what engines counted, and what it is worth."""

import collections

import numpy as np
import pytest

from zsjax import report
from zsjax.config import Config, CostConfig, to_json
from zsjax.monitor import costs
from zsjax.rollout.played import Played
from zsjax.search import Engine
from zsjax.types import Episodes

PRICES = CostConfig(search=0.01, accelerator_hour=2.0)


def episodes():
    roles = np.array([[1, 2, 2, 3, 3, 3, 4, 0], [1, 2, 0, 0, 0, 0, 0, 0]])
    rest = {field: None for field in Episodes.__dataclass_fields__}
    return Episodes(**{**rest, "roles": roles, "length": np.array([7, 2]), "num_searches": np.array([1, 0])})


def test_meter_counts_what_is_played_and_what_the_engine_did():
    class Counting(Engine):
        counters = collections.Counter({"requests": 5})

        def search(self, queries, contexts, *, k):
            return [[] for _ in queries]

    class Rollout:
        tokenizer, reshard_seconds = "its tokenizer", 0.0

        def place(self, params):
            return f"placed {params}"

        def play(self, params, questions, **options):
            Counting.counters["requests"] += 2
            return Played(episodes(), "its work")

    rollout = Rollout()
    meter = costs.Meter(rollout, Counting(), devices=4)
    assert meter.tokenizer == "its tokenizer"
    assert meter.place("params") == "placed params"
    meter("params", [], key=1)
    assert meter.play("params", [], key=2).work == "its work"
    taken = meter.take()
    assert taken.pop("time/step") > 0
    assert taken == {"used/episodes": 4, "used/searches": 2, "used/policy_tokens": 6, "used/document_tokens": 6,
                     "used/devices": 4, "engine/requests": 4}
    meter("params", [])
    assert meter.take()["used/searches"] == 1
    rollout.reshard_seconds = 1.5
    assert meter.take()["time/reshard"] == 1.5 and "time/reshard" not in meter.take()


def test_account_adds_up_and_compares():
    lines = [{"stage": "train", "step": i, "used/searches": 100, "used/episodes": 50, "used/policy_tokens": 7,
              "used/document_tokens": 9, "used/devices": 2, "time/step": 900.0, "engine/paid_searches": 3} for i in range(2)]
    lines += [{"stage": "pretrain", "step": i, "loss": 1.0, "time/elapsed": t} for i, t in enumerate((900, 1800, 1800))]
    lines += [{"stage": "pretrain", "step": 4, "loss": 1.0, "time/elapsed": 1000.0},
              {"stage": "pretrain", "step": 5, "loss": 1.0, "time/elapsed": 1800.0},  # killed and begun again at 4
              {"stage": "evaluate", "step": 1, "used/searches": 5}]
    train, pretrain, evaluate, everything = costs.account(lines, PRICES)
    assert (train["searches"], train["accelerator_hours"], train["accelerator_dollars"]) == (200, 1.0, 2.0)
    assert train["api_dollars"] == pytest.approx(2.0) and train["paid_dollars"] == pytest.approx(0.06)
    assert pretrain["accelerator_hours"] == 1.0 and evaluate["searches"] == 5
    assert (everything["searches"], everything["accelerator_dollars"]) == (205, 4.0)
    evaluated = {"stage": "train", "step": 3, "used/searches": 1, "eval/used/searches": 10, "eval/used/policy_tokens": 4,
                 "eval/engine/paid_searches": 2, "time/step": 0.0}  # an evaluation in training
    train = costs.account([*lines, evaluated], PRICES)[0]
    assert (train["searches"], train["policy_tokens"]) == (211, 18) and train["paid_dollars"] == pytest.approx(0.08)
    assert "205 searches would have cost 2.05 dollars" in costs.comparison([everything])
    assert costs.account([], PRICES) == [] and costs.comparison([]) == ""


def test_default_prices_are_the_papers():
    prices = Config().cost
    assert 64_000 * prices.search == pytest.approx(costs.PAPER["web search API (SerpApi)"])


def test_the_report_shows_it(tmp_path):
    (tmp_path / "config.json").write_text(to_json(Config()))
    (tmp_path / "metrics.jsonl").write_text('{"stage": "train", "step": 1, "used/searches": 64000, "time/step": 1}\n')
    page = report.write(tmp_path).read_text()
    assert "<h2>Cost</h2>" in page and "64000 searches would have cost 586.70 dollars" in page
