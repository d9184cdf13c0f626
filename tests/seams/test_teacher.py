"""A teacher from outside the package: a scorer with its term of the objective, named in a config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax.config import ConfigError, resolve
from zsjax.config.named import Registry
from zsjax.errors import InputError
from zsjax.models.decoder import DecoderConfig, init_params
from zsjax.parallel.mesh import make_mesh
from zsjax.rl.learner import Learner
from zsjax.rl.passes import policy_score
from zsjax.types import POLICY, PROMPT, TokenBatch

MODEL = DecoderConfig(vocab_size=13, embed_dim=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8)
LARGER = DecoderConfig(vocab_size=13, embed_dim=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16)
term = Registry("term of the objective")


def teacher(config, mesh):
    """The log-probs of a larger decoder of the same vocabulary."""
    score, params = policy_score(config, LARGER), init_params(LARGER, jax.random.key(9))
    return lambda batch: score(params, batch.tokens, batch.roles != 0)[0]


@term("distil", needs=("teacher",), unit="nats per token", help="squared gap to the teacher's log-probs", masked_only=True)
def distil(batch, logprobs, *, loss_mask, entropy):
    return jnp.where(loss_mask, logprobs - batch.extra["teacher"], 0) ** 2 / 2


def config(packed=0, **algorithm):
    return resolve({
        "rollout": {"max_tokens": 8, "max_prompt_tokens": 2}, "optimizer": {"learning_rate": 0.02},
        "algorithm": {"track_kl": False, "terms": {f"{__name__}:distil": 1.0}, **algorithm},
        "train": {"logprob_chunk": 4, "microbatch_tokens": packed}}, check=False)


def batch():
    zeros = np.zeros((4, 8), np.float32)
    return TokenBatch(tokens=np.random.default_rng(0).integers(0, 13, (4, 8)).astype(np.int32),
                      roles=np.tile(np.array([PROMPT] * 2 + [POLICY] * 6, np.int8), (4, 1)), behavior_logprobs=zeros,
                      old_logprobs=None, ref_logprobs=None, advantages=zeros, returns=None, values=None, rewards=zeros,
                      group_id=np.arange(4), row_valid=np.ones(4, bool))


@pytest.mark.parametrize("packed", [0, 16])
def test_the_policy_comes_nearer_to_the_teacher(packed):
    options = config(packed, scorers={"teacher": f"{__name__}:teacher"})
    learner = Learner(options, MODEL, make_mesh({}, jax.devices()[:1]))
    state, gaps = learner.start(init_params(MODEL, jax.random.key(0))), []
    for _ in range(15):
        scored = learner.score(state, learner.policy(state), batch())
        settings = type("Settings", (), {"kl_coef": 0.0, "step": 0, "key": jax.random.key(0)})
        state, info = learner.update(state, scored, settings)
        gaps.append(info[f"term/{__name__}:distil"])
    want = ((scored.old_logprobs - scored.extra["teacher"])[:, 2:] ** 2 / 2).mean()
    assert gaps[-1] == pytest.approx(want, rel=1e-4) and gaps[-1] < 0.5 * gaps[0]


def test_a_scorer_that_is_missing_is_an_error_before_anything_runs(checked):
    with pytest.raises(InputError, match="name it in algorithm.scorers"):
        Learner(config(), MODEL, make_mesh({}, jax.devices()[:1]))
    for wrong in ({"terms": {"kl": 1.0}}, {"terms": {"luck": 1.0}}, {"scorers": {"teacher": "no.module:f"}}):
        with pytest.raises(ConfigError, match=rf"algorithm\.{next(iter(wrong))}"):
            checked({"algorithm": wrong})
