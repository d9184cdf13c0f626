"""An advantage from outside the package, named in a config."""

import types

import numpy as np
import pytest

from zsjax.config import ConfigError
from zsjax.config.named import entry_of
from zsjax.rl import credit

MASK = np.array([[False, True, True], [False, True, False]])
BATCH = types.SimpleNamespace(rewards=np.array([[0, 0, 1.0], [0, 3.0, 0]], np.float32))


def above_the_median(batch, *, loss_mask):
    """One number an episode."""
    scores = batch.rewards.sum(axis=1)
    return scores - np.median(scores)


def test_a_config_names_it_and_every_token_gets_it(checked):
    algorithm = checked({"algorithm": {"advantage": f"{__name__}:above_the_median"}}).algorithm
    advantages, returns = credit.estimate(algorithm, BATCH, loss_mask=MASK)
    np.testing.assert_array_equal(advantages, [[-1] * 3, [1] * 3])
    assert returns is None


def test_a_decorated_one_reads_fields_needs_groups_and_may_give_returns(checked):
    register = credit.Registry("advantage")

    @register("discounted", reads=("gamma",), needs=("groups",), help="the score, discounted", unit="reward")
    def discounted(batch, *, loss_mask, gamma):
        return gamma * batch.rewards, batch.rewards

    algorithm = checked({"algorithm": {"gamma": 0.5}}).algorithm
    advantages, returns = credit.estimate(algorithm, BATCH, loss_mask=MASK, own=discounted)
    np.testing.assert_array_equal(advantages, BATCH.rewards / 2)
    np.testing.assert_array_equal(returns, BATCH.rewards)
    assert entry_of(discounted).unit == "reward"


@pytest.mark.parametrize("name, field", [("rloo", "train.group_size"), ("gae", "algorithm.value_model")])
def test_what_an_advantage_needs_is_checked(checked, name, field):
    with pytest.raises(ConfigError, match=field):
        checked({"algorithm": {"advantage": name}, "train": {"group_size": 1}})


def test_a_wrong_shape_and_an_unknown_name_are_errors(checked):
    algorithm = checked({}).algorithm
    with pytest.raises(ValueError, match=r"return \[B, T\] or \[B\]"):
        credit.estimate(algorithm, BATCH, loss_mask=MASK, own=lambda batch, *, loss_mask: np.zeros(5))
    with pytest.raises(ConfigError, match="reinforce_plus_plus, gae, or package"):
        checked({"algorithm": {"advantage": "luck"}})
