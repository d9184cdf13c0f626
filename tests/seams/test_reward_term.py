"""A term of the reward from outside the package, named in a config; the report draws it."""

import json

import pytest

from zsjax import report
from zsjax.config import ConfigError
from zsjax.rewards.terms import TERMS, Outcome, score

OUTCOMES = [Outcome(answer=answer, golds=("Bo",), status="answered", queries=(), documents=(), invalid_actions=0, texts=(),
                    policy_tokens=tokens) for answer, tokens in (("Bo", 10), ("Ada", 30))]


def brevity(outcome):
    """Less the longer the policy wrote."""
    return 1 - outcome.policy_tokens / 100


def test_a_config_names_it_and_it_counts(checked):
    name = f"{__name__}:brevity"
    terms = checked({"reward": {"terms": {"f1": 1.0, name: 0.5}}}).reward.terms
    total, parts = score(OUTCOMES, terms)
    assert total.tolist() == pytest.approx([1.45, 0.35]) and parts[name].tolist() == pytest.approx([0.9, 0.7])


def test_an_unknown_one_is_an_error_that_lists_the_registry(checked):
    with pytest.raises(ConfigError, match="no_search, searches.*package.module:function"):
        checked({"reward": {"terms": {"luck": 1.0}}})
    assert all(TERMS.entry(name).help for name in TERMS)


def test_the_report_draws_it(tmp_path):
    lines = [{"stage": "train", "step": step, f"reward/{__name__}:brevity": 0.5, "reward/f1": 0.1} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    report.write(tmp_path)
    page = (tmp_path / "report.html").read_text()
    chart = page[page.index("Terms of the reward"):]
    assert "brevity" in page and "<svg" in chart
