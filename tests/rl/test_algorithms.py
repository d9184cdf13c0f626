"""Every algorithm by its name: a valid config, the numbers of a slow loop, no gradient off the policy's tokens."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsjax.config import AlgorithmConfig, ConfigError, resolve
from zsjax.rl import advantages, credit, losses
from zsjax.rl import roles as role_masks
from zsjax.rl.algorithms import PRESETS, preset
from zsjax.rl.objective import load_loss
from zsjax.types import DOCUMENT, PAD, POLICY, PROMPT, TEMPLATE, TokenBatch

B, T = 6, 8
SEEDS = st.integers(0, 2**32 - 1)
checked = settings(deadline=None, max_examples=12, derandomize=True)
REDUCTIONS = ("token_mean", "sequence_mean", ("fixed_length", 5))


def in_both_precisions(check):
    with jax.enable_x64(True):
        check(np.float64, 1e-9)
    check(np.float32, 1e-5)


def random_batch(seed, dtype=np.float32, poison=False):
    """Rows of random roles and lengths in random groups; with `poison`, NaN wherever the role is not POLICY."""
    rng = np.random.default_rng(seed)
    roles = rng.choice([PROMPT, POLICY, POLICY, DOCUMENT, TEMPLATE], (B, T)).astype(np.int8)
    roles = np.where(np.arange(T) < rng.integers(1, T + 1, B)[:, None], roles, PAD)
    roles[:, 0] = PROMPT
    mask = roles == POLICY

    def draw(scale=1.0):
        return jnp.asarray(np.where(mask | (not poison), rng.normal(size=(B, T)) * scale, np.nan), dtype)

    scores = rng.normal(size=B)
    last = T - 1 - np.argmax(mask[:, ::-1], axis=1)
    rewards = np.where((np.arange(T) == last[:, None]) & mask, scores[:, None], 0.0)
    return TokenBatch(
        tokens=jnp.asarray(rng.integers(0, 9, (B, T)), jnp.int32), roles=jnp.asarray(roles),
        behavior_logprobs=draw(), old_logprobs=draw(), ref_logprobs=draw(), advantages=None, returns=None,
        values=draw(), rewards=jnp.asarray(rewards, dtype), group_id=jnp.asarray(rng.integers(0, 3, B)),
        row_valid=jnp.ones(B, bool)), draw()


def policy_loss(algorithm, batch, logprobs):
    """The loss as the update composes it: estimate, loss, KL and entropy apart."""
    mask = role_masks.loss_mask(batch.roles) & batch.row_valid[:, None]
    if algorithm.kl_in == "reward" and algorithm.kl_coef:
        batch = batch.replace(rewards=credit.kl_rewards(batch, loss_mask=mask, coef=algorithm.kl_coef,
                                                        kind=algorithm.kl_kind))
    estimated, returns = credit.estimate(algorithm, batch, loss_mask=mask)
    how = ("fixed_length", T) if algorithm.reduction == "fixed_length" else algorithm.reduction
    loss_sum, weight, _ = load_loss(algorithm.loss)(
        batch.replace(advantages=estimated), logprobs, loss_mask=mask, reduction=how, clip_low=algorithm.clip_low,
        clip_high=algorithm.clip_high)
    return loss_sum, (weight, estimated, returns)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_valid_config(name):
    shape = dict(embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)
    config = resolve(dict(policy=dict(init="random", shape=shape), search=dict(engine="bm25"), algorithm=preset(name)))
    assert set(PRESETS[name]) <= {field.name for field in dataclasses.fields(AlgorithmConfig)}
    assert resolve(dict(policy=dict(init="random", shape=shape), search=dict(engine="bm25"),
                        algorithm=preset(name, entropy_coef=0.5))).algorithm == dataclasses.replace(
        config.algorithm, entropy_coef=0.5)


def test_an_unknown_name_is_refused_and_gae_needs_values():
    with pytest.raises(ValueError, match="reinforce"):
        preset("a3c")
    with pytest.raises(ConfigError, match="value_model"):
        resolve(dict(algorithm=dict(advantage="gae")))


@pytest.mark.parametrize("name", PRESETS)
def test_no_gradient_and_no_influence_off_the_policys_tokens(name):
    algorithm = AlgorithmConfig(**preset(name))
    step = jax.jit(lambda batch, logprobs: jax.value_and_grad(
        lambda x: policy_loss(algorithm, batch, x), has_aux=True)(logprobs))
    some = False
    for seed in range(4):
        clean, poisoned = (step(*random_batch(seed, poison=poison)) for poison in (False, True))
        off = np.asarray(random_batch(seed)[0].roles) != POLICY
        for _, grad in (clean, poisoned):
            assert not np.any(np.asarray(grad)[off]), "a gradient where the policy wrote nothing"
        on = ~off
        np.testing.assert_array_equal(np.asarray(clean[0][0]), np.asarray(poisoned[0][0]))
        np.testing.assert_array_equal(np.asarray(clean[1])[on], np.asarray(poisoned[1])[on])
        np.testing.assert_array_equal(np.asarray(clean[0][1][1])[on], np.asarray(poisoned[0][1][1])[on])
        some |= bool(np.any(np.asarray(clean[1])))
    assert some


def slow_gspo(new, old, weights, scores, mask, low, high, reduction):
    """(sum, weight, gradient with respect to new)."""
    total, weight, grad = 0.0, 0.0, np.zeros(mask.shape)
    for b in range(B):
        chosen = [t for t in range(T) if mask[b, t]]
        if not chosen:
            continue
        ratio = np.exp(np.mean([new[b, t] - old[b, t] for t in chosen]))
        factor = 1 / len(chosen) if reduction == "sequence_mean" else 1.0
        for t in chosen:
            free, held = ratio * scores[b, t], min(max(ratio, 1 - low), 1 + high) * scores[b, t]
            total -= factor * weights[b, t] * min(free, held)
            grad[b, t] = -factor * weights[b, t] * (free if free <= held else 0.0)
        weight += {"token_mean": len(chosen), "sequence_mean": 1}.get(reduction, None) or reduction[1]
    return total, weight, grad


@checked
@given(SEEDS, st.sampled_from(REDUCTIONS))
def test_gspo_equals_the_definition(seed, reduction):
    batch, _ = random_batch(seed)
    mask = np.asarray(batch.roles) == POLICY
    new, old, scores = np.random.default_rng(seed).normal(size=(3, B, T)) * 0.5
    weights = np.random.default_rng(seed + 1).random((B, T))
    want, weight, slope = slow_gspo(new, old, weights, scores, mask, 0.1, 0.2, reduction)

    def check(dtype, tolerance):
        def bad(x):
            return jnp.asarray(np.where(mask, x, np.nan), dtype)

        def loss(x):
            loss_sum, weight, info = losses.gspo(x, bad(old), bad(scores), loss_mask=mask, clip_low=0.1, clip_high=0.2,
                                                 token_weights=bad(weights), reduction=reduction)
            return loss_sum, weight

        (got, got_weight), grad = jax.value_and_grad(loss, has_aux=True)(bad(new))
        assert got.dtype == dtype and float(got_weight) == weight
        np.testing.assert_allclose(got, want, atol=tolerance * 10)
        np.testing.assert_allclose(grad, slope, atol=tolerance * 10)

    in_both_precisions(check)


def test_gspo_by_hand():
    # Ratios e^0.2 and e^-0.1: their geometric mean is e^0.05, inside of a band of 0.1, outside of one of 0.01.
    new, old = np.array([[0.2, -0.1]], np.float32), np.zeros((1, 2), np.float32)
    mask, up = np.ones((1, 2), bool), np.array([[2.0]], np.float32)
    got, weight, _ = losses.gspo(new, old, up, loss_mask=mask, clip_low=0.1, clip_high=0.1)
    assert float(got) == pytest.approx(-2 * np.exp(0.05), abs=1e-6) and weight == 1
    got, _, info = losses.gspo(new, old, up, loss_mask=mask, clip_low=0.01, clip_high=0.01)
    assert float(got) == pytest.approx(-2 * 1.01, abs=1e-6) and float(info["clip_fraction"][0]) == 2


@checked
@given(SEEDS)
def test_dual_clip_and_truncated_weights_equal_slow_ones(seed):
    batch, _ = random_batch(seed)
    mask = np.asarray(batch.roles) == POLICY
    new, old, behavior, scores = np.random.default_rng(seed).normal(size=(4, B, T))
    want, slope, factors = 0.0, np.zeros((B, T)), np.ones((B, T))
    for b, t in zip(*np.nonzero(mask), strict=True):
        ratio, a = np.exp(new[b, t] - old[b, t]), scores[b, t]
        free, held = -ratio * a, -min(max(ratio, 0.8), 1.3) * a
        loss, grad = max(free, held), free if free >= held else 0.0
        if a < 0 and loss > -1.5 * a:
            loss, grad = -1.5 * a, 0.0
        factors[b, t] = min(np.exp(old[b, t] - behavior[b, t]), 1.2)
        want += factors[b, t] * loss
        slope[b, t] = factors[b, t] * grad

    def check(dtype, tolerance):
        def bad(x):
            return jnp.asarray(np.where(mask, x, np.nan), dtype)

        weights = losses.truncated_weights(bad(old), bad(behavior), loss_mask=mask, limit=1.2)
        np.testing.assert_allclose(weights, factors, atol=tolerance)

        def loss(x):
            return losses.ppo_clip(x, bad(old), bad(scores), loss_mask=mask, clip_high=0.3, dual_clip=1.5,
                                                 token_weights=weights)[0]

        got, grad = jax.value_and_grad(loss)(bad(new))
        np.testing.assert_allclose(got, want, atol=tolerance * 20)
        np.testing.assert_allclose(grad, slope, atol=tolerance * 20)

    in_both_precisions(check)


@checked
@given(SEEDS, st.sampled_from(["k1", "k2", "k3"]))
def test_kl_rewards_equal_a_slow_loop_and_lower_what_drifts(seed, kind):
    batch, _ = random_batch(seed)
    mask = np.asarray(batch.roles) == POLICY
    old, ref, rewards = np.random.default_rng(seed).normal(size=(3, B, T))
    want = np.zeros((B, T))
    for b, t in zip(*np.nonzero(mask), strict=True):
        d = old[b, t] - ref[b, t]
        want[b, t] = rewards[b, t] - 0.3 * {"k1": d, "k2": d**2 / 2, "k3": np.exp(-d) + d - 1}[kind]

    def check(dtype, tolerance):
        def bad(x):
            return jnp.asarray(np.where(mask, x, np.nan), dtype)

        given = batch.replace(rewards=bad(rewards), old_logprobs=bad(old), ref_logprobs=bad(ref))
        got = credit.kl_rewards(given, loss_mask=mask, coef=0.3, kind=kind)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, want, atol=tolerance * 10)

    in_both_precisions(check)


def test_estimate_composes():
    batch, _ = random_batch(3)
    mask = role_masks.loss_mask(batch.roles)
    scores = batch.rewards.sum(axis=1)
    ppo, returns = credit.estimate(AlgorithmConfig(**preset("ppo", lam=0.9)), batch, loss_mask=mask)
    raw, want = advantages.gae(batch.rewards, batch.values, loss_mask=mask, gamma=1.0, lam=0.9)
    np.testing.assert_array_equal(returns, want)
    np.testing.assert_allclose(ppo, advantages.whiten(raw, loss_mask=mask), atol=1e-6)
    dr, none = credit.estimate(AlgorithmConfig(**preset("dr_grpo")), batch, loss_mask=mask)
    assert none is None
    np.testing.assert_array_equal(dr[:, 2], advantages.grpo(scores, group_id=batch.group_id, normalize=False))

    def mine(batch, *, loss_mask):
        return batch.rewards.sum(axis=1) * 2

    for algorithm, own in ((AlgorithmConfig(advantage="tests.rl.test_algorithms:twice"), None), (AlgorithmConfig(), mine)):
        got, _ = credit.estimate(algorithm, batch, loss_mask=mask, own=own)
        np.testing.assert_array_equal(got[:, 1], 2 * scores)
    with pytest.raises(ValueError, match=r"return \[B, T\] or \[B\]"):
        credit.estimate(AlgorithmConfig(), batch, loss_mask=mask, own=lambda batch, *, loss_mask: scores[:2])


def twice(batch, *, loss_mask):
    return 2 * jnp.where(loss_mask, batch.rewards, 0).sum(axis=1)
