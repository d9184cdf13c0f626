"""Chunked token log-probs against a dense float64 version: values, gradients, precision, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax.parallel.constrain import on
from zsjax.parallel.mesh import make_mesh, reshard, row_sharding
from zsjax.rl import logprobs as logprobs_module
from zsjax.rl.logprobs import token_logprobs, vocab_block

B, T, D, V = 3, 12, 5, 17


def dense(hidden, unembed, tokens, *, temperature=1.0):
    """The definition, with the logits of the whole batch."""
    dtype = jnp.promote_types(jnp.float32, hidden.dtype)
    logits = jnp.matmul(hidden, unembed.astype(hidden.dtype), preferred_element_type=dtype) / temperature
    log_p = jax.nn.log_softmax(logits[:, :-1])
    logprobs = jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=-1)[..., 0]

    def own(x):
        return jnp.pad(x, ((0, 0), (1, 0)))

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
        for x, y in zip(got, want, strict=True):
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
    for x, y, want in zip(chunked, whole, exact, strict=True):
        # 86 chunks: sums of the unembedding's gradient kept in bfloat16 would be 5 times worse than dense.
        assert x.dtype == y.dtype and error(x, want) <= max(tolerance * error(y, want), 1e-6)


def test_without_entropy():
    hidden, unembed, tokens, slopes = problem()

    def only(*args):
        return (token_logprobs(*args, chunk=5, with_entropy=False)[0], jnp.zeros(()))

    def both(*args):
        return (token_logprobs(*args, chunk=5)[0], jnp.zeros(()))

    args = jnp.asarray(hidden, jnp.float32), jnp.asarray(unembed, jnp.float32), tokens, slopes
    for x, y in zip(value_and_grads(only, *args), value_and_grads(both, *args), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)
    assert token_logprobs(*args[:3], chunk=5, with_entropy=False)[1] is None


@pytest.mark.parametrize("chunk", [1, 4, 99])
def test_only_wanted_tokens(chunk):
    hidden, unembed, tokens, slopes = problem()
    wanted = np.random.default_rng(1).random((B, T)) < 0.4
    wanted[1] = False
    with jax.enable_x64(True):
        args = jnp.asarray(hidden), jnp.asarray(unembed), jnp.asarray(tokens), jnp.asarray(slopes)

        def alone(*args):
            return tuple(jnp.where(wanted, x, 0) for x in dense(*args))

        for x, y in zip(value_and_grads(functools.partial(token_logprobs, chunk=chunk, wanted=jnp.asarray(wanted)), *args),
                        value_and_grads(alone, *args), strict=True):
            np.testing.assert_allclose(x, y, atol=1e-12)

@pytest.mark.parametrize("seed", range(5))
def test_chunks_of_bytes_equal_the_dense_version(seed):
    """Any shape, any wanted tokens, and any number of bytes: rows are then sorted together, not each by itself."""
    rng = np.random.default_rng(seed)
    b, t, v = (int(n) for n in rng.integers((1, 2, 2), (5, 40, 30)))
    hidden, unembed, tokens, slopes = problem(seed, (b, t, 4, v))
    wanted = rng.random((b, t)) < rng.choice([0.0, 0.1, 0.5, 1.0])
    score = functools.partial(token_logprobs, wanted=jnp.asarray(wanted), logits_bytes=int(4 * v * rng.integers(0, b * t)))
    with jax.enable_x64(True):
        args = tuple(map(jnp.asarray, (hidden, unembed, tokens, slopes)))
        for got, want in zip(value_and_grads(score, *args),
                             value_and_grads(lambda *args: tuple(jnp.where(wanted, x, 0) for x in dense(*args)), *args),
                             strict=True):
            np.testing.assert_allclose(got, want, atol=1e-12)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("num_ids", [None, 19])
def test_blocks_of_the_vocabulary_equal_the_dense_version(monkeypatch, tied, num_ids):
    monkeypatch.setattr(logprobs_module, "MIN_VOCAB_BLOCK", 3)
    monkeypatch.setattr(logprobs_module, "MAX_VOCAB_BLOCK", 9)
    monkeypatch.setattr(logprobs_module, "BLOCK_POSITIONS", 4)
    assert vocab_block(24) == 8 and vocab_block(23) == 23
    hidden, unembed, tokens, slopes = problem(3, (B, T, D, 24))
    wanted = np.random.default_rng(1).random((B, T)) < 0.4
    tokens = tokens % (num_ids or 24)

    def blocks(hidden, unembed, tokens):
        return token_logprobs(hidden, unembed.T if tied else unembed, tokens, temperature=0.7, tied=tied, num_ids=num_ids,
                              wanted=jnp.asarray(wanted))

    def alone(hidden, unembed, tokens):
        return tuple(jnp.where(wanted, x, 0) for x in dense(hidden, unembed[:, :num_ids], tokens, temperature=0.7))

    with jax.enable_x64(True):
        args = tuple(map(jnp.asarray, (hidden, unembed, tokens, slopes)))
        for got, want in zip(value_and_grads(blocks, *args), value_and_grads(alone, *args), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-12)


def test_gradients_in_16_bits_round_no_more_in_blocks_than_in_one_piece(monkeypatch):
    """Of a tied head. What is rounded is the operands, not the gradient of the logits: in bfloat16 that costs digits."""
    hidden, unembed, tokens, _ = problem(4, (2, 33, 16, 64))
    hidden, unembed = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(unembed, jnp.bfloat16)

    def gradients(hidden, matrix, tied):
        return jax.grad(lambda *given: token_logprobs(*given, tokens, tied=tied)[0].sum(), (0, 1))(hidden, matrix)

    want_hidden, want = gradients(hidden.astype(jnp.float32), unembed.astype(jnp.float32), False)
    for name, value in (("MIN_VOCAB_BLOCK", 16), ("MAX_VOCAB_BLOCK", 16), ("BLOCK_POSITIONS", 4)):
        monkeypatch.setattr(logprobs_module, name, value)
    d_hidden, d_matrix = gradients(hidden, unembed.T.astype(jnp.float32), True)
    np.testing.assert_allclose(d_matrix, want.T, atol=1e-4 * float(jnp.abs(want).max()))
    np.testing.assert_allclose(d_hidden.astype(jnp.float32), want_hidden, rtol=0.005, atol=1e-4)  # hidden's own rounding


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
        for x, y in zip(score(t), want, strict=True):
            np.testing.assert_allclose(x, y, atol=1e-5)
    assert score._cache_size() == 1


@pytest.mark.parametrize("options", [{"chunk": 8}, {"logits_bytes": 2 * 8 * 1000 * 4}])
def test_no_array_of_the_whole_batchs_logits(options):
    b, t, d, v = 2, 64, 8, 1000

    def objective(hidden, unembed, tokens):
        logprobs, entropy = token_logprobs(hidden, unembed, tokens, **options)
        return (logprobs + 0.1 * entropy).sum()

    shapes = (jax.ShapeDtypeStruct((b, t, d), jnp.float32), jax.ShapeDtypeStruct((d, v), jnp.float32),
              jax.ShapeDtypeStruct((b, t), jnp.int32))
    memory = jax.jit(jax.grad(objective, (0, 1))).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * b * t * v  # a few chunks of 64 kB, not one [B, T, V]


def test_rows_of_a_mesh_stay_on_their_devices():
    """Wanted positions are sorted on each device by itself: hidden states are not exchanged."""
    mesh = make_mesh({"data": 8})
    hidden, unembed, tokens, _ = problem(0, (16, T, D, V))
    wanted = jnp.asarray(np.random.default_rng(1).random((16, T)) < 0.4)
    given = reshard((jnp.asarray(hidden, jnp.float32), tokens, wanted), row_sharding(mesh))
    unembed = jnp.asarray(unembed, jnp.float32)

    @jax.jit
    def score(hidden, tokens, wanted):
        return token_logprobs(hidden, unembed, tokens, wanted=wanted)

    compiled = on(mesh, score.lower)(*given).compile()
    want = token_logprobs(jnp.asarray(hidden, jnp.float32), unembed, tokens, wanted=wanted)
    for x, y in zip(compiled(*given), want, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-5)
    text = compiled.as_text()
    assert "all-reduce" in text and not any(name in text for name in ("all-gather", "all-to-all", "collective-permute"))


def test_short_rows_and_wrong_arguments():
    hidden, unembed, tokens, _ = problem()
    logprobs, entropy = token_logprobs(hidden[:, :1], unembed, tokens[:, :1], chunk=4)
    assert logprobs.shape == entropy.shape == (B, 1) and not np.any(logprobs)
    for options in ({"chunk": -1}, {"chunk": 4, "temperature": 0.0}):
        with pytest.raises(ValueError):
            token_logprobs(hidden, unembed, tokens, **options)
    with pytest.raises(ValueError, match="fit"):
        token_logprobs(hidden, unembed, tokens[:, 1:], chunk=4)
