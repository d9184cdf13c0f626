"""Optimizer steps on a tiny model: signs, cuts of the batch, masks, NaN, dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from zsjax.config import OptimizerConfig
from zsjax.models.decoder import DecoderConfig, forward, init_params
from zsjax.rl import roles as role_masks
from zsjax.rl.objective import load_loss
from zsjax.rl.optimizer import make_optimizer
from zsjax.rl.steps import make_score, make_supervised_update, make_update
from zsjax.types import DOCUMENT, PAD, POLICY, PROMPT, TokenBatch

CONFIG = DecoderConfig(vocab_size=31, embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16)
B, T = 8, 10
SGD = optax.sgd(1.0)
score = make_score(CONFIG, chunk=4)


def params_of(seed):
    return jax.tree.map(lambda p: p * 5 if p.ndim > 1 else p, init_params(CONFIG, jax.random.key(seed)))


def make_batch(params, reference=None, seed=0):
    """Rows P P x x D D x x ... with lengths 6 to T, old log-probs of `params`, random advantages."""
    rng = np.random.default_rng(seed)
    tokens = jnp.asarray(rng.integers(0, CONFIG.vocab_size, (B, T)), jnp.int32)
    row = np.array([PROMPT, PROMPT, POLICY, POLICY, DOCUMENT, DOCUMENT, POLICY, POLICY, POLICY, POLICY], np.int8)
    roles = np.where(np.arange(T) < rng.integers(6, T + 1, B)[:, None], row, PAD)
    valid = jnp.asarray(roles != PAD)
    logprobs = score(params, tokens, valid)[0]
    return TokenBatch(
        tokens=tokens, roles=jnp.asarray(roles), behavior_logprobs=logprobs, old_logprobs=logprobs,
        ref_logprobs=None if reference is None else score(reference, tokens, valid)[0],
        advantages=jnp.asarray(rng.normal(size=(B, T)), jnp.float32), returns=None, values=None,
        rewards=jnp.zeros((B, T)), group_id=jnp.arange(B) // 2, row_valid=jnp.ones(B, bool))


@functools.cache
def updater(optimizer=SGD, loss="ppo_clip", **options):
    return make_update(CONFIG, loss, optimizer, chunk=4, **options)


def run(update, params, batch, optimizer=SGD):
    new, _, info = update(jax.tree.map(jnp.copy, params), optimizer.init(params), batch)
    return new, {name: float(x) for name, x in info.items()}


def close(a, b, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@jax.jit
def dense(params, batch, advantages, kl_factors, entropy_factors):
    """Value and gradient of sum_bt(-ratio * advantages + k2 * kl_factors - entropy * entropy_factors); whole logits."""

    def objective(params):
        log_p = jax.nn.log_softmax(forward(params, CONFIG, batch.tokens))[:, :-1]
        logprobs = jnp.take_along_axis(log_p, batch.tokens[:, 1:, None], -1)[..., 0]
        entropy = -(jnp.exp(log_p) * log_p).sum(-1)
        ratio, d = jnp.exp(logprobs - batch.old_logprobs[:, 1:]), logprobs - batch.ref_logprobs[:, 1:]
        terms = -ratio * advantages[:, 1:] + d**2 / 2 * kl_factors[:, 1:] - entropy * entropy_factors[:, 1:]
        return terms.sum(), (jnp.pad(logprobs, ((0, 0), (1, 0))), jnp.pad(entropy, ((0, 0), (1, 0))))

    (value, out), grads = jax.value_and_grad(objective, has_aux=True)(params)
    return value, out, grads


OPTIONS = dict(kl_coef=0.3, kl_kind="k2", entropy_coef=0.2)


def test_score_equals_the_dense_log_softmax():
    params = params_of(0)
    batch = make_batch(params, params)
    valid = role_masks.attention_mask(batch.roles)
    zeros = jnp.zeros((B, T))
    want = [np.where(valid, x, 0) for x in dense(params, batch, zeros, zeros, zeros)[1]]
    close(list(score(params, batch.tokens, valid)), want, atol=5e-6)
    close(list(make_score(CONFIG, chunk=4, microbatch_rows=2)(params, batch.tokens, valid)), want, atol=5e-6)


@pytest.mark.parametrize("reduction, microbatch_rows", [("token_mean", 0), ("sequence_mean", 2)])
def test_the_step_is_the_gradient_of_the_written_objective(reduction, microbatch_rows):
    params, reference = params_of(0), params_of(1)
    batch = make_batch(params, reference)
    mask = np.asarray(batch.roles) == POLICY
    factors = {"token_mean": mask / mask.sum(), "sequence_mean": mask / mask.sum(1, keepdims=True) / B}[reduction]
    value, _, grads = dense(params, batch, batch.advantages * factors, 0.3 * factors, 0.2 * factors)
    new, info = run(updater(**OPTIONS, reduction=reduction, microbatch_rows=microbatch_rows), params, batch)
    close(new, jax.tree.map(lambda p, g: p - g, params, grads), atol=2e-5)
    assert info["loss"] == pytest.approx(float(value), abs=1e-5)
    assert info["weight"] == {"token_mean": mask.sum(), "sequence_mean": B}[reduction]
    assert info["grad_norm"] == pytest.approx(float(optax.global_norm(grads)), rel=1e-4)
    assert info["ratio_mean"] == pytest.approx(1, abs=1e-5) and info["clip_fraction"] == 0 and not info["nonfinite"]
    assert info["kl"] > 0 and info["entropy"] > 0


def test_padding_and_rows_that_fill_a_shape_change_nothing():
    params = params_of(0)
    batch = make_batch(params, params_of(1))
    update = updater(**OPTIONS, reduction="token_mean", microbatch_rows=0)
    new, info = run(update, params, batch)
    wide = jax.tree.map(lambda x: jnp.pad(x, ((0, 2),) + ((0, 3),) * (x.ndim - 1)), batch)
    # Such rows may hold anything, policy tokens included.
    wide = wide.replace(roles=wide.roles.at[B:].set(POLICY), advantages=wide.advantages.at[B:].set(jnp.nan))
    padded, padded_info = run(update, params, wide)
    close(padded, new, atol=5e-6)
    assert padded_info == pytest.approx(info, abs=1e-5)


def test_rows_sharded_over_devices_with_microbatches():
    params = params_of(0)
    batch = make_batch(params, params_of(1))
    new, info = run(updater(**OPTIONS, reduction="token_mean", microbatch_rows=0), params, batch)
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    placed = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))
    everywhere = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    sharded, sharded_info = run(updater(**OPTIONS, microbatch_rows=4), everywhere, placed)
    close(sharded, new, atol=5e-6)
    assert sharded_info == pytest.approx(info, abs=1e-5)


def rows_loss(batch, logprobs, *, loss_mask, entropy, values, reduction, scale):
    """A custom loss whose weight counts rows, not tokens."""
    per_row = jnp.where(loss_mask, logprobs, 0).sum(axis=1)
    rows = loss_mask.any(axis=1).sum().astype(jnp.float32)
    return -scale * per_row.sum(), rows, {"mine": (per_row.sum(), rows)}


def test_a_loss_of_ones_own_sees_every_logprob():
    """The registered losses are spared the logits of tokens that they do not count; others may look at them."""
    params = params_of(0)
    batch = make_batch(params)
    outside = (np.asarray(batch.roles) != POLICY) & (np.asarray(batch.roles) != PAD) & (np.arange(T) > 0)

    def loss(batch, logprobs, *, loss_mask, entropy, values, reduction):
        seen = jnp.where(outside, logprobs, 0).sum()
        return -jnp.where(loss_mask, logprobs, 0).sum(), loss_mask.sum(), {"outside": (seen, jnp.float32(1))}

    _, info = run(make_update(CONFIG, loss, SGD, chunk=4), params, batch)
    want = float(np.asarray(batch.old_logprobs)[outside].sum())
    assert want < -1 and info["outside"] == pytest.approx(want, rel=1e-5)


def test_a_custom_loss_with_its_own_weight():
    params = params_of(0)
    batch = make_batch(params, params_of(1))
    mask = np.asarray(batch.roles) == POLICY
    old = np.asarray(batch.old_logprobs)
    update = updater(loss=rows_loss, scale=2.0, microbatch_rows=4, reduction="fixed_length", **OPTIONS)
    new, info = run(update, params, batch)
    # Each term is a mean of its own: the loss over rows, KL and entropy over rows of the full length.
    per_token = mask / (B * T)
    value, _, grads = dense(params, batch, 2.0 * mask / B, 0.3 * per_token, 0.2 * per_token)
    close(new, jax.tree.map(lambda p, g: p - g, params, grads), atol=2e-5)
    value_of_loss = float(value) + 2.0 * mask.sum() / B - 2.0 * old[mask].sum() / B
    assert info["loss"] == pytest.approx(value_of_loss, abs=1e-4) and info["weight"] == B
    assert info["mine"] == pytest.approx(old[mask].sum() / B, rel=1e-5)


def nudge(params, new, rate):
    """Where plain gradient descent with this rate would be, from a step with rate 1."""
    return jax.tree.map(lambda p, q: p + rate * (q - p), params, new)


def test_with_zero_advantage_a_step_lowers_the_kl_to_the_reference():
    reference = params_of(0)
    policy = jax.tree.map(lambda p, n: p + 0.5 * n if p.ndim > 1 else p, reference, params_of(1))
    batch = make_batch(policy, reference)
    batch = batch.replace(advantages=jnp.zeros((B, T)))
    mask = np.asarray(role_masks.loss_mask(batch.roles))[:, 1:]

    @jax.jit
    def kl(params):  # of the whole distributions at the policy's positions
        p, q = (jax.nn.log_softmax(forward(x, CONFIG, batch.tokens))[:, :-1] for x in (params, reference))
        return ((jnp.exp(p) * (p - q)).sum(-1) * mask).sum() / mask.sum()

    update = updater(kl_coef=1.0)
    new, info = run(update, policy, batch)
    new = nudge(policy, new, 0.3)
    assert float(kl(new)) < 0.95 * float(kl(policy)) and run(update, new, batch)[1]["kl"] < 0.95 * info["kl"]


def test_advantages_push_the_right_way():
    params = params_of(0)
    batch = make_batch(params, params)  # the reference is the policy: its pull is 0
    sign = np.broadcast_to(np.where(np.arange(B) % 2 == 0, 1.0, -1.0)[:, None], (B, T))
    new, _ = run(updater(kl_coef=1.0), params, batch.replace(advantages=jnp.asarray(sign, jnp.float32)))
    logprobs, _ = score(nudge(params, new, 0.05), batch.tokens, role_masks.attention_mask(batch.roles))
    moved = (np.asarray(logprobs - batch.old_logprobs) * sign)[np.asarray(batch.roles) == POLICY]
    assert moved.mean() > 0 and (moved > 0).mean() > 0.7


def test_nan_where_it_counts_changes_nothing_and_elsewhere_has_no_influence():
    params, reference = params_of(0), params_of(1)
    batch = make_batch(params, reference)
    mask = role_masks.loss_mask(batch.roles)
    adam = make_optimizer(OptimizerConfig(learning_rate=0.1), 10)
    update = updater(adam, kl_coef=0.3)
    state = adam.init(params)

    def step(batch):
        return update(jax.tree.map(jnp.copy, params), jax.tree.map(jnp.copy, state), batch)

    clean = step(batch)

    def drop(x):
        return jnp.where(mask, x, jnp.nan)

    masked = step(batch.replace(advantages=drop(batch.advantages), old_logprobs=drop(batch.old_logprobs),
                                ref_logprobs=drop(batch.ref_logprobs), behavior_logprobs=drop(batch.behavior_logprobs)))
    assert same(clean, masked) and float(clean[2]["nonfinite"]) == 0 and not same(clean[0], params)
    for bad in (jnp.nan, jnp.inf):
        new, new_state, info = step(batch.replace(advantages=batch.advantages.at[0, 2].set(bad)))
        assert float(info["nonfinite"]) == 1 and same(new, params) and same(new_state, state)
    # Nothing to learn from: Adam's momentum and decay must not move anything either.
    new, new_state, info = step(batch.replace(roles=jnp.where(batch.roles == POLICY, PROMPT, batch.roles)))
    assert float(info["weight"]) == 0 == float(info["loss"]) == float(info["nonfinite"])
    assert same(new, params) and same(new_state, state)


def test_the_inverted_mask_trains_on_everything_else():
    params = params_of(0)
    batch = make_batch(params)
    roles = np.asarray(batch.roles)
    others = (roles != POLICY) & (roles != PAD) & (np.arange(T) > 0)
    _, info = run(updater(invert_mask=True), params, batch)
    assert info["weight"] == others.sum()
    policy_only = jnp.where(role_masks.loss_mask(batch.roles), 100.0, batch.advantages)
    assert run(updater(invert_mask=True), params, batch.replace(advantages=policy_only))[1] == info


def test_bf16_parameters_keep_every_dtype():
    # A step that returned float32 moments for bf16 ones would compile anew and could not reuse the donated memory.
    batch = make_batch(params_of(0))
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), params_of(0))
    adam = make_optimizer(OptimizerConfig(learning_rate=0.1, weight_decay=0.1), 10)
    for microbatch_rows in (0, 4):
        given = params, adam.init(params)
        update = make_update(CONFIG, "ppo_clip", adam, chunk=4, microbatch_rows=microbatch_rows)
        returned = jax.eval_shape(update, *given, batch)[:2]
        assert [x.dtype for x in jax.tree.leaves(returned)] == [x.dtype for x in jax.tree.leaves(given)]


def test_supervised_loss_is_the_weighted_mean_and_falls():
    params = params_of(0)
    batch = make_batch(params)
    valid = role_masks.attention_mask(batch.roles)
    weights = jnp.asarray(np.random.default_rng(3).choice([0, 0.5, 1, 2], (B, T)), jnp.float32)
    used = np.where(np.asarray(valid) & (np.arange(T) > 0), weights, 0)
    want = -(used * np.asarray(batch.old_logprobs)).sum() / used.sum()
    adam = make_optimizer(OptimizerConfig(learning_rate=0.03), 40)
    update = make_supervised_update(CONFIG, adam, chunk=4, microbatch_rows=2)
    state, losses = adam.init(params), []
    for _ in range(40):
        params, state, info = update(params, state, (batch.tokens, weights, valid))
        losses.append(float(info["loss"]))
        assert float(info["weight"]) == used.sum() and float(info["nonfinite"]) == 0
    assert losses[0] == pytest.approx(want, rel=1e-5) and losses[-1] < 0.5 * want


def test_learning_rates():
    def rates(steps, **options):
        """The rates of plain AdamW: with constant gradient 1 and no decay, each step moves by the rate."""
        optimizer = make_optimizer(OptimizerConfig(learning_rate=1.0, clip_norm=0.0, **options), steps)
        params = {"w": jnp.zeros((1, 1))}
        state, out = optimizer.init(params), []
        for _ in range(steps + 1):
            updates, state = optimizer.update({"w": jnp.ones((1, 1))}, state, params)
            out.append(-float(updates["w"][0, 0]))
        return out

    np.testing.assert_allclose(rates(4, warmup_steps=2), [0.5, 1, 1, 1, 1], atol=1e-5)
    np.testing.assert_allclose(rates(4, schedule="linear", final_fraction=0.2), [1, 0.8, 0.6, 0.4, 0.2], atol=1e-5)
    np.testing.assert_allclose(rates(4, schedule="cosine", final_fraction=0.0, warmup_steps=2),
                               [0.5, 1, 1, 0.5, 0], atol=1e-5)
    with pytest.raises(ValueError, match="schedule"):
        make_optimizer(OptimizerConfig(schedule="sqrt"), 4)


def test_what_cannot_work_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="expected gradient of zero"):
        make_update(CONFIG, "ppo_clip", SGD, chunk=4, kl_kind="k1")
    with pytest.raises(ValueError, match="kl_kind"):
        make_update(CONFIG, "ppo_clip", SGD, chunk=4, kl_kind="k5")
    for name in ("ppo", "no.such.module:loss", "zsjax.rl.losses:no_such_loss"):
        with pytest.raises(ValueError, match="loss"):
            load_loss(name)
    assert load_loss("zsjax.rl.objective:ppo_clip_loss") is load_loss("ppo_clip")
    params = params_of(0)
    batch = make_batch(params)
    with pytest.raises(ValueError, match="microbatch_rows=3"):
        run(updater(microbatch_rows=3), params, batch)
    with pytest.raises(ValueError, match="ref_logprobs"):
        run(updater(kl_coef=0.7), params, batch)
