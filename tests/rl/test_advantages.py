"""Advantages against slow loops in plain numpy, hand numbers, and the relations between them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsjax.rl import advantages

B, T = 4, 7  # one shape: every example reuses the compiled program
MASKS = st.lists(st.booleans(), min_size=B * T, max_size=B * T).map(lambda x: np.array(x).reshape(B, T))
SEEDS = st.integers(0, 2**32 - 1)
GROUPS = st.lists(st.sampled_from([-7, 0, 3, 2**31 - 1]), min_size=6, max_size=6).map(np.array)
checked = settings(deadline=None, max_examples=25, derandomize=True)

gae = jax.jit(advantages.gae)
reinforce_plus_plus = jax.jit(advantages.reinforce_plus_plus)
whiten = jax.jit(advantages.whiten)
grpo = jax.jit(advantages.grpo, static_argnames="normalize")
rloo = jax.jit(advantages.rloo)


def in_both_precisions(check):
    """check(dtype, tolerance) with float64 under x64, and with float32."""
    with jax.enable_x64(True):
        check(np.float64, 1e-9)
    check(np.float32, 1e-5)


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def slow_gae(rewards, values, mask, gamma, lam):
    """The definition: A_k = sum_j (gamma lam)^j delta_{k+j} over the list of a row's policy tokens."""
    out = np.zeros_like(rewards)
    for b in range(len(rewards)):
        steps = [t for t in range(rewards.shape[1]) if mask[b, t]]
        deltas = []
        for i, t in enumerate(steps):
            following = values[b, steps[i + 1]] if i + 1 < len(steps) else 0.0
            deltas.append(rewards[b, t] + gamma * following - values[b, t])
        for i, t in enumerate(steps):
            out[b, t] = sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(steps)))
    return out


@checked
@given(MASKS, SEEDS, st.sampled_from([0.0, 0.9, 1.0]), st.sampled_from([0.0, 0.95, 1.0]))
def test_gae_equals_the_definition(mask, seed, gamma, lam):
    rewards, values = draw(seed, 2, B, T)
    want = slow_gae(rewards, values, mask, gamma, lam)

    def check(dtype, tolerance):
        def poison(x):
            return jnp.asarray(np.where(mask, x, np.nan), dtype)

        got, returns = gae(poison(rewards), poison(values), loss_mask=jnp.asarray(mask), gamma=gamma, lam=lam)
        assert got.dtype == returns.dtype == dtype
        np.testing.assert_allclose(got, want, atol=tolerance)
        np.testing.assert_allclose(returns, np.where(mask, want + values, 0), atol=tolerance)
        assert not np.any(np.asarray(got)[~mask]) and not np.any(np.asarray(returns)[~mask])

    in_both_precisions(check)


def test_gae_by_hand_steps_over_a_document():
    nan = np.nan
    mask = np.array([[False, True, False, False, True, False]])
    rewards = np.array([[nan, 0.5, nan, 99.0, 1.0, nan]], np.float32)
    values = np.array([[9.0, 0.2, nan, -50.0, 0.6, 7.0]], np.float32)
    got, returns = gae(rewards, values, loss_mask=mask, gamma=0.9, lam=0.5)
    last = 1.0 - 0.6
    first = 0.5 + 0.9 * 0.6 - 0.2 + 0.45 * last
    np.testing.assert_allclose(got, [[0, first, 0, 0, last, 0]], rtol=1e-6)
    np.testing.assert_allclose(returns, [[0, first + 0.2, 0, 0, 1.0, 0]], rtol=1e-6)


@checked
@given(MASKS, SEEDS)
def test_lambda_one_is_the_return_minus_the_value(mask, seed):
    rewards, values = draw(seed, 2, B, T).astype(np.float32)
    got, returns = gae(rewards, values, loss_mask=mask, gamma=0.97, lam=1.0)
    discounted, _ = gae(rewards, np.zeros_like(values), loss_mask=mask, gamma=0.97, lam=1.0)
    np.testing.assert_allclose(got, np.where(mask, discounted - values, 0), atol=1e-5)
    np.testing.assert_allclose(returns, discounted, atol=1e-5)


def slow_groups(scores, group_id, estimate):
    return np.array([estimate(i, [j for j in range(len(scores)) if group_id[j] == group_id[i]])
                     for i in range(len(scores))])


@checked
@given(GROUPS, SEEDS, st.booleans())
def test_group_baselines_equal_slow_ones(group_id, seed, normalize):
    scores = draw(seed, 6) * 3 + 1

    def one_grpo(i, group):
        x = np.array([scores[j] for j in group])
        if len(x) == 1:
            return 0.0
        return (scores[i] - np.mean(x)) / (np.std(x, ddof=1) + 1e-6 if normalize else 1.0)

    def one_rloo(i, group):
        others = [scores[j] for j in group if j != i]
        return scores[i] - np.mean(others) if others else 0.0

    def check(dtype, tolerance):
        ids, x = jnp.asarray(group_id), jnp.asarray(scores, dtype)
        got = grpo(x, group_id=ids, normalize=normalize)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, slow_groups(scores, group_id, one_grpo), atol=tolerance)
        np.testing.assert_allclose(rloo(x, group_id=ids), slow_groups(scores, group_id, one_rloo), atol=tolerance)
        # Another baseline, or another order of the rows, changes nothing.
        shifted = grpo(x + 2, group_id=ids, normalize=normalize)
        np.testing.assert_allclose(shifted, got, atol=tolerance * 100)
        order = np.random.default_rng(seed).permutation(6)
        np.testing.assert_allclose(grpo(x[order], group_id=ids[order], normalize=normalize), np.asarray(got)[order],
                                   atol=tolerance)

    in_both_precisions(check)


def test_group_baselines_by_hand():
    scores, ids = np.array([1.0, 5.0, 0.0, 2.0, 4.0], np.float32), np.array([7, 3, 7, 7, 9])
    np.testing.assert_allclose(grpo(scores, group_id=ids, normalize=False), [0, 0, -1, 1, 0], atol=1e-6)
    np.testing.assert_allclose(grpo(scores, group_id=ids), [0, 0, -1, 1, 0], atol=1e-5)  # deviation 1 with ddof 1
    np.testing.assert_allclose(rloo(scores, group_id=ids), [0, 0, -1.5, 1.5, 0], atol=1e-6)


@pytest.mark.parametrize("score", [0.1, 1 / 3, 0.7, 1e8, -2.3])
def test_equal_scores_give_exactly_zero(score):
    # Groups of 3, 7, 11 and 1: a mean of these many equal numbers need not be the number.
    ids = np.random.default_rng(0).permutation([4] * 3 + [2] * 7 + [9] * 11 + [1])
    scores = np.full(22, score, np.float32)
    for estimate in (functools.partial(grpo, group_id=ids), functools.partial(rloo, group_id=ids),
                     functools.partial(grpo, group_id=ids, normalize=False), advantages.reinforce):
        assert np.array_equal(estimate(scores), np.zeros(22))
    mask = np.arange(44).reshape(2, 22) % 3 > 0
    assert np.array_equal(whiten(np.tile(scores, (2, 1)), loss_mask=mask), np.zeros((2, 22)))


def test_a_group_does_not_see_another_ones_nan():
    scores, ids = np.array([1.0, np.nan, 3.0, 2.0], np.float32), np.array([0, 1, 0, 1])
    assert np.isfinite(np.asarray(grpo(scores, group_id=ids))[[0, 2]]).all()
    assert np.isfinite(np.asarray(rloo(scores, group_id=ids))[[0, 2]]).all()


def test_reinforce_baselines():
    scores = np.array([0, 1, 1, 0, 1])
    np.testing.assert_allclose(advantages.reinforce(scores), scores - 0.6, atol=1e-6)
    assert np.array_equal(advantages.reinforce(scores, baseline="none"), scores)
    assert advantages.reinforce(scores).dtype == jnp.float32
    with pytest.raises(ValueError, match="baseline"):
        advantages.reinforce(scores, baseline="mean")


@checked
@given(MASKS, SEEDS)
def test_whitening_and_reinforce_plus_plus_equal_slow_ones(mask, seed):
    x = draw(seed, B, T) * 2 + 5

    def slow_whiten(x):
        chosen = x[mask]
        if not len(chosen):
            return np.zeros_like(x)
        return np.where(mask, (x - chosen.mean()) / np.sqrt(((chosen - chosen.mean()) ** 2).mean() + 1e-8), 0)

    discounted = np.zeros_like(x)
    for b in range(B):
        total = 0.0
        for t in reversed(range(T)):
            if mask[b, t]:
                discounted[b, t] = total = x[b, t] + 0.9 * total

    def check(dtype, tolerance):
        poisoned = jnp.asarray(np.where(mask, x, np.nan), dtype)
        got = whiten(poisoned, loss_mask=mask)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, slow_whiten(x), atol=tolerance * 5)
        assert not np.any(np.asarray(got)[~mask])
        if mask.sum() > 1:
            np.testing.assert_allclose(reinforce_plus_plus(poisoned, loss_mask=mask, gamma=0.9),
                                       slow_whiten(discounted), atol=tolerance * 20)

    in_both_precisions(check)


def test_masks_that_are_not_bool_are_refused():
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(ValueError, match="bool"):
        advantages.whiten(x, loss_mask=np.ones((2, 3), np.int32))
    with pytest.raises(ValueError):
        advantages.gae(x, x, loss_mask=np.ones((2, 2), bool), gamma=1.0, lam=1.0)
