"""A loss from outside the package, named in a config, beside other terms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zsjax.config import ConfigError, resolve
from zsjax.config.named import Registry
from zsjax.models.decoder import DecoderConfig, init_params
from zsjax.rl.losses import aggregate
from zsjax.rl.objective import LOSSES
from zsjax.rl.passes import make_programs
from zsjax.rl.steps import make_update
from zsjax.types import POLICY, PROMPT, TokenBatch

MODEL = DecoderConfig(vocab_size=13, embed_dim=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8)


def reinforce(batch, logprobs, *, loss_mask, reduction, entropy=None, values=None, **hyper):
    """-advantage * log-prob."""
    per_token = -batch.advantages * jnp.where(loss_mask, logprobs, 0)
    return *aggregate(per_token, loss_mask=loss_mask, reduction=reduction), {}


def per_row(batch, logprobs, *, loss_mask, reduction, **rest):
    """The same, over rows: a weight of its own."""
    total, _, info = reinforce(batch, logprobs, loss_mask=loss_mask, reduction="token_mean")
    return total, loss_mask.any(axis=1).sum().astype(jnp.float32), info


def of_likely_tokens(batch, logprobs, *, loss_mask, reduction, **rest):
    """The same, over the mass of the tokens: a weight that depends on the log-probs."""
    total, _, info = reinforce(batch, logprobs, loss_mask=loss_mask, reduction="token_mean")
    return total, jnp.where(loss_mask, jnp.exp(2 * logprobs), 0).sum() + 1, info


def batch():
    rng = np.random.default_rng(0)
    zeros = np.zeros((4, 6), np.float32)
    return TokenBatch(tokens=rng.integers(0, 13, (4, 6)).astype(np.int32),
                      roles=np.tile(np.array([PROMPT] * 2 + [POLICY] * 4, np.int8), (4, 1)), behavior_logprobs=zeros,
                      old_logprobs=zeros - 3, ref_logprobs=zeros - 3, advantages=zeros + 1, returns=None, values=None,
                      rewards=zeros, group_id=np.arange(4), row_valid=np.ones(4, bool))


def step(loss, **options):
    params, optimizer = init_params(MODEL, jax.random.key(0)), optax.sgd(1.0)
    update = make_update(MODEL, loss, optimizer, chunk=4, **options)
    new, _, info = update(jax.tree.map(jnp.copy, params), optimizer.init(params), batch())
    moved = max(float(jnp.abs(a - b).max()) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(params), strict=True))
    return moved, {name: float(value) for name, value in info.items()}


def test_a_config_names_it(checked):
    assert checked({"algorithm": {"loss": f"{__name__}:reinforce"}}).algorithm.loss.endswith(":reinforce")
    with pytest.raises(ConfigError, match=r"algorithm\.loss.*no_such"):
        checked({"algorithm": {"loss": f"{__name__}:no_such"}})


def test_its_decorator_says_what_it_reads(checked):
    with pytest.raises(ConfigError, match="'gspo' has none"):
        checked({"algorithm": {"loss": "gspo", "dual_clip": 3.0}})
    assert "dual_clip" in LOSSES.entry("ppo_clip").reads and LOSSES.entry("gspo").help


@pytest.mark.parametrize("reads, want", [(("clip_high", "gamma"), {"clip_high": 0.4, "gamma": 0.5}),
                                         ((), {"clip_low": 0.2, "clip_high": 0.4, "dual_clip": 3.0})])
def test_it_gets_the_fields_that_its_decorator_names_or_else_the_bounds_that_are_set(reads, want):
    given = {}

    @Registry("loss")("mine", reads=reads)
    def mine(batch, logprobs, *, loss_mask, reduction, entropy, values, **hyper):
        given.update(hyper)
        return reinforce(batch, logprobs, loss_mask=loss_mask, reduction=reduction)

    config = resolve({"algorithm": {"clip_high": 0.4, "dual_clip": 3.0, "gamma": 0.5}, "train": {"microbatch_rows": 0}},
                     check=False)
    params, optimizer = init_params(MODEL, jax.random.key(0)), optax.sgd(1.0)
    make_programs(config, MODEL, loss=mine, optimizer=optimizer).update(params, optimizer.init(params), batch())
    assert given == want


def test_a_step_and_its_weight():
    moved, info = step(f"{__name__}:reinforce")
    assert moved > 0 and info["weight"] == 16 and "weight_mismatch" not in info
    alone, beside = step(per_row)[1], step(per_row, entropy_coef=0.5)[1]
    assert beside["weight"] == 4 and beside["weight_mismatch"] == 0
    assert beside["loss"] == pytest.approx(alone["loss"] - 0.5 * beside["entropy"], rel=1e-5)


def test_a_weight_that_depends_on_the_logprobs_works_alone_and_is_refused_beside_other_terms():
    assert step(of_likely_tokens)[0] > 0
    moved, info = step(of_likely_tokens, entropy_coef=0.5)
    assert moved == 0 and info["weight_mismatch"] == 1
