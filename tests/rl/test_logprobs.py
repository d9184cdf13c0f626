"""Chunked token log-probs against a dense float64 version: values, gradients, precision, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax.rl.logprobs import token_logprobs

B, T, D, V = 3, 12, 5, 17


def dense(hidden, unembed, tokens, *, temperature=1.0):
    """The definition, with the logits of the whole batch."""
    dtype = jnp.promote_types(jnp.float32, hidden.dtype)
    logits = jnp.matmul(hidden, unembed.astype(hidden.dtype), preferred_element_type=dtype) / temperature
    log_p = jax.nn.log_softmax(logits[:, :-1])
    logprobs = jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]
    own = lambda x: jnp.pad(x, ((0, 0), (1, 0)))
    return own(logprobs), own(-(jnp.exp(log_p) * log_p).sum(-1))


def problem(seed=0, shape=(B, T, D, V)):
    b, t, d, v = shape
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(b, t, d)), rng.normal(size=(d, v)) * 0.7, rng.integers(0, v, (b, t)),
            rng.normal(size=(2, b, t)))


def value_and_grads(function, hidden, unembed, tokens, slopes):
    def objective(hidden, unembed):
        logprobs, entropy = function(hidden, unembed, tokens)
        return (logprobs * slopes[0]).sum() + (entropy * slopes[1]).sum(), (logprobs, entropy)

    (_, out), grads = jax.jit(jax.value_and_grad(objective, (0, 1), has_aux=True))(hidden, unembed)
    return *out, *grads


def error(x, want):
    return np.linalg.norm(np.asarray(x, np.float64) - np.asarray(want)) / np.linalg.norm(np.asarray(want))


@pytest.mark.parametrize("chunk", [1, 4, 5, 11, 12, 99])
def test_equals_the_dense_version_in_float64(chunk):
    hidden, unembed, tokens, slopes = problem()
    with jax.enable_x64(True):
        args = jnp.asarray(hidden), jnp.asarray(unembed), jnp.asarray(tokens), jnp.asarray(slopes)
        want = value_and_grads(functools.partial(dense, temperature=0.7), *args)
        got = value_and_grads(functools.partial(token_logprobs, chunk=chunk, temperature=0.7), *args)
        for x, y in zip(got, want):
            assert x.dtype == jnp.float64
            np.testing.assert_allclose(x, y, atol=1e-12)
        assert not np.any(got[0][:, 0]) and not np.any(got[1][:, 0])


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 2.0), (jnp.bfloat16, 1.05)])
def test_gradients_are_as_exact_as_dense_ones(dtype, tolerance):
    hidden, unembed, tokens, slopes = problem(1, (4, 257, 16, 300))
    hidden, unembed = jnp.asarray(hidden, dtype), jnp.asarray(unembed, dtype)
    with jax.enable_x64(True):
        exact = value_and_grads(dense, hidden.astype(jnp.float64), unembed.astype(jnp.float64), tokens, slopes)
    whole = value_and_grads(dense, hidden, unembed, tokens, slopes)
    chunked = value_and_grads(functools.partial(token_logprobs, chunk=3), hidden, unembed, tokens, slopes)
    for x, y, want in zip(chunked, whole, exact):
        # 86 chunks: sums of the unembedding's gradient kept in bfloat16 would be 5 times worse than dense.
        assert x.dtype == y.dtype and error(x, want) <= max(tolerance * error(y, want), 1e-6)


def test_without_entropy():
    hidden, unembed, tokens, slopes = problem()
    only = lambda *args: (token_logprobs(*args, chunk=5, with_entropy=False)[0], jnp.zeros(()))
    both = lambda *args: (token_logprobs(*args, chunk=5)[0], jnp.zeros(()))
    args = jnp.asarray(hidden, jnp.float32), jnp.asarray(unembed, jnp.float32), tokens, slopes
    for x, y in zip(value_and_grads(only, *args), value_and_grads(both, *args)):
        np.testing.assert_allclose(x, y, atol=1e-6)
    assert token_logprobs(*args[:3], chunk=5, with_entropy=False)[1] is None


@pytest.mark.parametrize("chunk", [1, 4, 99])
def test_only_wanted_tokens(chunk):
    hidden, unembed, tokens, slopes = problem()
    wanted = np.random.default_rng(1).random((B, T)) < 0.4
    wanted[1] = False
    with jax.enable_x64(True):
        args = jnp.asarray(hidden), jnp.asarray(unembed), jnp.asarray(tokens), jnp.asarray(slopes)
        alone = lambda *args: tuple(jnp.where(wanted, x, 0) for x in dense(*args))
        for x, y in zip(value_and_grads(functools.partial(token_logprobs, chunk=chunk, wanted=jnp.asarray(wanted)), *args),
                        value_and_grads(alone, *args)):
            np.testing.assert_allclose(x, y, atol=1e-12)


def test_a_certain_token_has_a_log_prob_of_at_most_zero():
    hidden, unembed, _, _ = problem(2)
    unembed = jnp.asarray(unembed * 200, jnp.float32)
    hidden = jnp.asarray(hidden, jnp.float32)
    best = jnp.argmax(hidden @ unembed, axis=-1)
    tokens = jnp.pad(best[:, :-1], ((0, 0), (1, 0)))
    logprobs, entropy = token_logprobs(hidden, unembed, tokens, chunk=4)
    assert logprobs.max() <= 0 and entropy.min() >= 0 and float(logprobs.sum()) > -30


def test_a_traced_temperature_compiles_once_and_is_the_static_one():
    hidden, unembed, tokens, _ = problem()
    score = jax.jit(lambda t: token_logprobs(jnp.asarray(hidden, jnp.float32), unembed, tokens, chunk=5, temperature=t))
    for t in (0.5, 1.0, 2.0):
        want = dense(jnp.asarray(hidden, jnp.float32), jnp.asarray(unembed), tokens, temperature=t)
        for x, y in zip(score(t), want):
            np.testing.assert_allclose(x, y, atol=1e-5)
    assert score._cache_size() == 1


def test_no_array_of_the_whole_batchs_logits():
    b, t, d, v, chunk = 2, 64, 8, 1000, 8

    def objective(hidden, unembed, tokens):
        logprobs, entropy = token_logprobs(hidden, unembed, tokens, chunk=chunk)
        return (logprobs + 0.1 * entropy).sum()

    shapes = (jax.ShapeDtypeStruct((b, t, d), jnp.float32), jax.ShapeDtypeStruct((d, v), jnp.float32),
              jax.ShapeDtypeStruct((b, t), jnp.int32))
    memory = jax.jit(jax.grad(objective, (0, 1))).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * b * t * v  # a few chunks of 4 * b * chunk * v, not one [B, T, V]


def test_short_rows_and_wrong_arguments():
    hidden, unembed, tokens, _ = problem()
    logprobs, entropy = token_logprobs(hidden[:, :1], unembed, tokens[:, :1], chunk=4)
    assert logprobs.shape == entropy.shape == (B, 1) and not np.any(logprobs)
    for options in ({"chunk": 0}, {"chunk": 4, "temperature": 0.0}):
        with pytest.raises(ValueError):
            token_logprobs(hidden, unembed, tokens, **options)
    with pytest.raises(ValueError, match="fit"):
        token_logprobs(hidden, unembed, tokens[:, 1:], chunk=4)
