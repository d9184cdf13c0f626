"""Chains of optax by name: what they build, and what is refused."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zsjax.config import ConfigError, OptimizerConfig, from_json, resolve, to_json
from zsjax.rl.optimizer import make_optimizer, make_optimizers


def moves(optimizer, steps=3):
    params, out = {"w": jnp.array([[1.0, -2.0]])}, []
    state = optimizer.init(params)
    for step in range(steps):
        updates, state = optimizer.update({"w": jnp.array([[3.0, step + 1.0]])}, state, params)
        out.append(np.asarray(updates["w"]))
    return out


def test_a_chain_is_optaxs_own():
    chain = (dict(name="clip_by_global_norm", max_norm=1.0), dict(name="lion", learning_rate="schedule", b1=0.8))
    config = OptimizerConfig(learning_rate=0.5, schedule="linear", final_fraction=0.0, chain=chain)
    want = optax.chain(optax.clip_by_global_norm(1.0), optax.lion(optax.linear_schedule(0.5, 0.0, 4), b1=0.8))
    np.testing.assert_allclose(moves(make_optimizer(config, 4)), moves(want), rtol=1e-6)
    assert not np.allclose(moves(want), moves(make_optimizer(OptimizerConfig(learning_rate=0.5), 4)))


@pytest.mark.parametrize("link, words", [
    (dict(name="no_such_thing"), "no_such_thing"), (dict(name="__doc__"), "not a transformation"),
    (dict(name="jax"), "not a transformation"), (dict(name="global_norm", updates=1.0), "not a transformation"),
    (dict(name="adam", learning_rates=1.0), "learning_rates"), (dict(learning_rate=1.0), "''"),
    (dict(name="os.system"), "not a transformation"), (dict(name="cosine_decay_schedule", init_value=1.0, decay_steps=3),
                                                    "not a transformation")])
def test_a_link_that_is_not_a_transformation_is_refused_before_the_run(link, words):
    with pytest.raises(ConfigError) as caught:
        resolve(dict(search=dict(engine="bm25"), optimizer=dict(chain=[link])))
    found = {problem.field: str(problem) for problem in caught.value.problems}
    assert words in found["optimizer.chain"] and "optax" in found["optimizer.chain"]


def test_a_chain_is_kept_with_the_run():
    config = resolve(dict(optimizer=dict(chain=[dict(name="sgd", learning_rate="schedule")])), check=False)
    assert from_json(to_json(config)) == config


def test_the_policys_schedule_ends_with_the_run_where_the_value_model_warms_up_first():
    optimizer = dict(learning_rate=1.0, schedule="linear", final_fraction=0.0,
                     chain=[dict(name="sgd", learning_rate="schedule")])
    config = resolve(dict(train=dict(steps=10), optimizer=optimizer, value=dict(warmup_steps=6, optimizer=optimizer),
                          algorithm=dict(value_model=True, advantage="gae")), check=False)
    for made, updates in zip(make_optimizers(config), (4, 10), strict=True):
        rates = [-float(move[0, 0]) / 3.0 for move in moves(made, updates)]
        np.testing.assert_allclose(rates, 1 - np.arange(updates) / updates, rtol=1e-6)
