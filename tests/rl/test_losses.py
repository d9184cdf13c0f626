"""Losses against slow loops in plain numpy; masks; gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsjax.rl import losses, roles
from zsjax.types import DOCUMENT, PAD, POLICY, PROMPT, TEMPLATE

B, T = 3, 6
MASKS = st.lists(st.booleans(), min_size=B * T, max_size=B * T).map(lambda x: np.array(x).reshape(B, T))
SEEDS = st.integers(0, 2**32 - 1)
REDUCTIONS = ("token_mean", "sequence_mean", ("fixed_length", 5))
checked = settings(deadline=None, max_examples=25, derandomize=True)


def grad_of(loss, **options):
    """Jitted (loss_sum, weight, info, gradient with respect to the first argument)."""

    def value(first, *rest, loss_mask):
        loss_sum, weight, info = loss(first, *rest, loss_mask=loss_mask, **options)
        return loss_sum, (weight, info)

    return jax.jit(lambda *args, loss_mask: jax.value_and_grad(value, has_aux=True)(*args, loss_mask=loss_mask))


@functools.cache
def ppo(reduction):
    return grad_of(losses.ppo_clip, clip_low=0.1, clip_high=0.3, reduction=reduction)


@functools.cache
def value(reduction):
    return grad_of(losses.value_clip, clip=0.4, reduction=reduction)


def in_both_precisions(check):
    with jax.enable_x64(True):
        check(np.float64, 1e-9)
    check(np.float32, 1e-5)


def slow_aggregate(per_token, mask, reduction):
    """Sum and weight of a function (b, t) -> float, and the factor of each token."""
    total, weight, factors = 0.0, 0.0, np.zeros(mask.shape)
    for b in range(mask.shape[0]):
        chosen = [t for t in range(mask.shape[1]) if mask[b, t]]
        if not chosen:
            continue
        factor = 1 / len(chosen) if reduction == "sequence_mean" else 1.0
        total += factor * sum(per_token(b, t) for t in chosen)
        factors[b, chosen] = factor
        weight += {"token_mean": len(chosen), "sequence_mean": 1}.get(reduction, None) or reduction[1]
    return total, weight, factors


@checked
@given(MASKS, SEEDS, st.sampled_from(REDUCTIONS), st.booleans())
def test_ppo_clip_equals_the_definition(mask, seed, reduction, per_row):
    new, old, advantages = np.random.default_rng(seed).normal(size=(3, B, T)) * 0.5
    if per_row:
        advantages = advantages[:, :1]
    full = np.broadcast_to(advantages, (B, T))
    tokens = max(mask.sum(), 1)
    slope, clipped = np.zeros((B, T)), 0

    def per_token(b, t):
        nonlocal clipped
        ratio = np.exp(new[b, t] - old[b, t])
        free, held = ratio * full[b, t], min(max(ratio, 0.9), 1.3) * full[b, t]
        clipped += held < free
        slope[b, t] = -free if free <= held else 0.0
        return -min(free, held)

    want, weight, factors = slow_aggregate(per_token, mask, reduction)

    def check(dtype, tolerance):
        def bad(x):
            return jnp.asarray(np.where(mask, x, np.nan), dtype)  # what is masked may be anything

        given = jnp.asarray(np.where(mask.any(1, keepdims=True), advantages, np.nan), dtype) if per_row else bad(full)
        (got, (got_weight, info)), grad = ppo(reduction)(bad(new), bad(old), given, loss_mask=mask)
        assert got.dtype == dtype
        np.testing.assert_allclose(got, want, atol=tolerance * 10)
        assert float(got_weight) == weight
        np.testing.assert_allclose(grad, slope * factors, atol=tolerance * 10)
        assert not np.any(np.asarray(grad)[~mask])
        total, count = info["clip_fraction"]
        assert float(total) / tokens == pytest.approx(clipped / tokens, abs=1e-6) and float(count) == mask.sum()

    in_both_precisions(check)


@checked
@given(MASKS, SEEDS, st.sampled_from(REDUCTIONS))
def test_value_clip_equals_the_definition(mask, seed, reduction):
    new, old, returns = np.random.default_rng(seed).normal(size=(3, B, T))
    slope = np.zeros((B, T))

    def per_token(b, t):
        held = old[b, t] + min(max(new[b, t] - old[b, t], -0.4), 0.4)
        free_error, held_error = (new[b, t] - returns[b, t]) ** 2, (held - returns[b, t]) ** 2
        inside = abs(new[b, t] - old[b, t]) <= 0.4  # there `held` equals `new` but for rounding
        slope[b, t] = new[b, t] - returns[b, t] if inside or free_error >= held_error else 0.0
        return max(free_error, held_error) / 2

    want, weight, factors = slow_aggregate(per_token, mask, reduction)

    def check(dtype, tolerance):
        def bad(x):
            return jnp.asarray(np.where(mask, x, np.nan), dtype)

        (got, (got_weight, _)), grad = value(reduction)(bad(new), bad(old), bad(returns), loss_mask=mask)
        np.testing.assert_allclose(got, want, atol=tolerance * 10)
        assert float(got_weight) == weight
        np.testing.assert_allclose(grad, slope * factors, atol=tolerance * 10)

    in_both_precisions(check)


@pytest.mark.parametrize("clip", [0.5, jnp.inf])
def test_a_prediction_inside_of_the_clip_does_not_count_as_clipped(clip):
    old, values, returns = np.random.default_rng(0).uniform(-0.24, 0.24, size=(3, 40, 50)).astype(np.float32)
    _, _, info = losses.value_clip(values, old, returns, loss_mask=np.ones(old.shape, bool), clip=clip)
    assert float(info["value_clip_fraction"][0]) == 0


def test_ppo_clip_by_hand():
    ratio = np.array([[1.5, 1.5, 0.5, 0.5, 1.1]])
    advantages = np.array([[2.0, -2.0, 2.0, -2.0, 1.0]], np.float32)
    mask = np.ones((1, 5), bool)
    (loss, (weight, info)), grad = grad_of(losses.ppo_clip)(
        np.log(ratio).astype(np.float32), np.zeros((1, 5), np.float32), advantages, loss_mask=mask)
    assert float(loss) == pytest.approx(-(1.2 * 2 - 1.5 * 2 + 0.5 * 2 - 0.8 * 2 + 1.1), abs=1e-5) and weight == 5
    np.testing.assert_allclose(grad, [[0, 3, -1, 0, -1.1]], atol=1e-5)
    assert float(info["clip_fraction"][0]) == 2 and float(info["ratio_mean"][0]) == pytest.approx(5.1, abs=1e-5)


def test_at_ratio_one_the_gradient_is_reinforces():
    rng = np.random.default_rng(0)
    logprobs, advantages = rng.normal(size=(2, B, T)).astype(np.float32)
    mask = rng.random((B, T)) < 0.6
    for low, high in ((0.2, 0.2), (0.0, 0.0)):  # a band of zero width too: the tie must not halve it
        (_, _), grad = grad_of(losses.ppo_clip, clip_low=low, clip_high=high)(
            logprobs, logprobs, advantages, loss_mask=mask)
        assert np.array_equal(grad, np.where(mask, -advantages, 0))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_to_train_on_is_zero_over_zero(reduction):
    x, mask = np.full((B, T), np.nan, np.float32), np.zeros((B, T), bool)
    for loss in (ppo(reduction), value(reduction)):
        (loss_sum, (weight, info)), grad = loss(x, x, x, loss_mask=mask)
        assert float(loss_sum) == 0 and float(weight) == 0 and not np.any(np.asarray(grad))
        assert all(float(s) == 0 and float(w) == 0 for s, w in info.values())


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sums_over_parts_and_with_padding_are_the_whole(reduction):
    rng = np.random.default_rng(1)
    x, mask = rng.normal(size=(6, T)), rng.random((6, T)) < 0.5
    mask[2] = False
    whole = losses.aggregate(x, loss_mask=mask, reduction=reduction)
    parts = [losses.aggregate(x[i:j], loss_mask=mask[i:j], reduction=reduction) for i, j in ((0, 1), (1, 4), (4, 6))]
    np.testing.assert_allclose(np.sum(parts, axis=0), whole, rtol=1e-6)

    def wide(a):
        return np.pad(a, ((0, 2), (0, 3)))

    padded = losses.aggregate(wide(x), loss_mask=wide(mask), reduction=reduction)
    np.testing.assert_allclose(padded, whole, rtol=1e-6)


@pytest.mark.parametrize("kind, formula, slope", [
    ("k1", lambda d: d, lambda d: np.ones_like(d)),
    ("k2", lambda d: d**2 / 2, lambda d: d),
    ("k3", lambda d: np.exp(-d) + d - 1, lambda d: 1 - np.exp(-d)),
])
def test_kl_estimates(kind, formula, slope):
    d = np.array([[-2.0, -0.3, 0.0, 1e-3, 0.7, 3.0]])
    with jax.enable_x64(True):
        new, ref = jnp.asarray(d - 1), jnp.full((1, 6), -1.0)

        def kl(a, b):
            return losses.kl_penalty(a, b, kind=kind)

        np.testing.assert_allclose(kl(new, ref), formula(d), atol=1e-12)
        np.testing.assert_allclose(jax.grad(lambda a: kl(a, ref).sum())(new), slope(d), atol=1e-12)
        assert not np.any(jax.grad(lambda b: kl(new, b).sum())(ref))  # the reference is a constant
    small = losses.kl_penalty(np.float32(-1.0) + np.float32(1e-4), np.float32(-1.0), kind=kind)
    assert float(small) == pytest.approx(formula(np.float64(1e-4)), rel=2e-2)  # no cancellation in float32

    # A NaN that a mask drops afterwards must not come back through the gradient.
    nan_ref, mask = np.full((1, 6), np.nan, np.float32), np.arange(6)[None] < 3
    nan_ref[:, :3] = -1

    def total(a):
        return losses.aggregate(kl(a, nan_ref), loss_mask=mask, reduction="token_mean")[0]

    grad = jax.grad(total)(jnp.asarray(d - 1, jnp.float32))
    np.testing.assert_allclose(grad, np.where(mask, slope(d), 0), atol=1e-5)


def test_k1s_expected_gradient_vanishes_and_the_others_do_not():
    logits, ref = jnp.array([0.3, -1.0, 0.8]), jax.nn.log_softmax(jnp.array([1.0, 0.0, -0.5]))

    def expected_gradient(kind):  # E over the policy's own tokens of the gradient of the estimate
        p = jax.nn.softmax(logits)

        def one(v):
            return jax.grad(lambda z: losses.kl_penalty(jax.nn.log_softmax(z)[v], ref[v], kind=kind))(logits)

        return sum(p[v] * one(v) for v in range(3))

    true = jax.grad(lambda z: (jax.nn.softmax(z) * (jax.nn.log_softmax(z) - ref)).sum())(logits)
    np.testing.assert_allclose(expected_gradient("k1"), 0, atol=1e-6)
    np.testing.assert_allclose(expected_gradient("k2"), true, atol=1e-6)
    assert float(jnp.vdot(expected_gradient("k3"), true)) > 0.1 * float(jnp.vdot(true, true))


def test_wrong_arguments_are_refused():
    x, mask = np.zeros((B, T), np.float32), np.ones((B, T), bool)
    with pytest.raises(TypeError):
        losses.ppo_clip(x, x, x)  # a missing mask is an error, not "all ones"
    with pytest.raises(ValueError, match="bool"):
        losses.ppo_clip(x, x, x, loss_mask=mask.astype(np.float32))
    with pytest.raises(ValueError, match="advantages"):
        losses.ppo_clip(x, x, x[0, :B], loss_mask=mask)
    with pytest.raises(ValueError, match="reduction"):
        losses.aggregate(x, loss_mask=mask, reduction="mean")
    with pytest.raises(ValueError, match="k4"):
        losses.kl_penalty(x, x, kind="k4")


def test_masks_of_roles():
    row = np.array([[PROMPT, PROMPT, POLICY, TEMPLATE, DOCUMENT, POLICY, PAD]], np.int8)

    def as_ints(mask):
        return np.asarray(mask).astype(int).tolist()[0]

    assert as_ints(roles.loss_mask(row)) == [0, 0, 1, 0, 0, 1, 0]
    assert as_ints(roles.attention_mask(row)) == [1, 1, 1, 1, 1, 1, 0]
    assert as_ints(roles.inverted_mask(row)) == [0, 1, 0, 1, 1, 0, 0]
