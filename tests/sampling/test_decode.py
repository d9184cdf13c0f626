"""`generate` samples from the model it is given, and every row on its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax.models.decoder import forward, init_params
from zsjax.models.layers import DecoderConfig
from zsjax.sampling import decode, generate

CONFIG = DecoderConfig(vocab_size=61, embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=48,
                       tie_embeddings=False)  # tied ones repeat their input when untrained
B, P, N = 6, 9, 14
LENGTHS = np.array([9, 1, 4, 7, 2, 5], np.int32)
PROMPTS = (np.random.default_rng(0).integers(0, 61, (B, P)) * (np.arange(P) < LENGTHS[:, None])).astype(np.int32)


@pytest.fixture(scope="module")
def params():
    # Larger than the usual start, so that the argmax depends on the context.
    return jax.tree.map(lambda x: 8 * x if x.ndim > 1 else x, init_params(CONFIG, jax.random.key(0)))


def _run(params, prompts=PROMPTS, lengths=LENGTHS, **options):
    options = dict(key=jax.random.key(3), max_new_tokens=N) | options
    out = generate(params, CONFIG, prompts, lengths, **options)
    assert out.tokens.dtype == out.lengths.dtype == jnp.int32 and out.logprobs.dtype == jnp.float32
    return jax.tree.map(np.asarray, out)


def _dense_logits(params, out):
    """float32[B, N, V]: logits before each new token, from whole rows without a cache."""
    T = P + N
    rows = np.zeros((B, T), np.int32)
    for b in range(B):
        rows[b, :LENGTHS[b]] = PROMPTS[b, :LENGTHS[b]]
        rows[b, LENGTHS[b]:LENGTHS[b] + N] = out.tokens[b]
    logits = np.asarray(jax.jit(forward, static_argnums=1)(params, CONFIG, rows))
    return logits[np.arange(B)[:, None], LENGTHS[:, None] - 1 + np.arange(N)]


def test_greedy_equals_the_naive_argmax_loop(params):
    out = _run(params, temperature=0.0)
    step = jax.jit(forward, static_argnums=1)
    rows, ends = np.zeros((B, P + N), np.int32), LENGTHS.copy()
    rows[:, :P] = PROMPTS
    for i in range(N):
        chosen = np.asarray(step(params, CONFIG, rows))[np.arange(B), ends - 1].argmax(axis=-1)
        np.testing.assert_array_equal(out.tokens[:, i], chosen)
        rows[np.arange(B), ends] = chosen
        ends += 1
    assert np.mean([len(set(row)) for row in out.tokens]) > 4  # a model that repeats one token would show nothing
    logprobs = jax.nn.log_softmax(_dense_logits(params, out))
    expected = np.take_along_axis(np.asarray(logprobs), out.tokens[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(out.logprobs, expected, atol=1e-4)


@pytest.mark.parametrize("temperature, top_k, top_p", [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.3, 5, 0.8)])
def test_recorded_logprobs_equal_recomputed_ones(params, temperature, top_k, top_p):
    out = _run(params, temperature=temperature, top_k=top_k, top_p=top_p)
    logits = _dense_logits(params, out)
    logprobs = jax.nn.log_softmax(logits / temperature)
    expected = np.take_along_axis(np.asarray(logprobs), out.tokens[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(out.logprobs, expected, atol=1e-4)
    if top_k:
        rank = (logits > np.take_along_axis(logits, out.tokens[..., None], axis=-1)).sum(axis=-1)
        assert rank.max() < top_k


def test_a_stop_token_ends_its_row_only(params):
    free = _run(params)
    stops = (int(free.tokens[0, 3]), int(free.tokens[1, 0]))
    out = _run(params, stop_ids=stops)
    hit = np.isin(free.tokens, stops)
    lengths = np.where(hit.any(axis=1), hit.argmax(axis=1) + 1, N)
    assert lengths[1] == 1 and (lengths == N).any()
    np.testing.assert_array_equal(out.lengths, lengths)
    kept = np.arange(N) < lengths[:, None]
    np.testing.assert_array_equal(out.tokens, np.where(kept, free.tokens, 0))
    np.testing.assert_array_equal(out.logprobs, np.where(kept, free.logprobs, 0))  # bit for bit


def test_a_row_does_not_depend_on_its_batch_mates(params):
    ids = np.array([40, 7, 3, 12, 99, 0], np.int32)
    stops = (int(_run(params, row_ids=ids).tokens[2, 5]),)
    base = _run(params, row_ids=ids, stop_ids=stops)
    rng = np.random.default_rng(5)
    for row, slot in ((0, 4), (2, 0), (3, 3)):
        prompts, lengths = rng.integers(0, 61, (B, P)).astype(np.int32), rng.integers(1, P + 1, B).astype(np.int32)
        others = rng.integers(1000, 2000, B).astype(np.int32)
        prompts[slot, :LENGTHS[row]], lengths[slot], others[slot] = PROMPTS[row, :LENGTHS[row]], LENGTHS[row], ids[row]
        out = _run(params, prompts, lengths, row_ids=others, stop_ids=stops)  # what stands beyond the length varies too
        np.testing.assert_array_equal(out.tokens[slot], base.tokens[row])
        np.testing.assert_array_equal(out.logprobs[slot], base.logprobs[row])
        assert out.lengths[slot] == base.lengths[row]


def test_draws_are_the_same_at_other_shapes(params):
    base = _run(params, row_ids=np.arange(10, 10 + B))
    wide = np.pad(PROMPTS, ((0, 0), (0, 7)))
    for rows, prompts, new in ((slice(0, B), wide, N), (slice(2, 5), PROMPTS, N), (slice(0, B), PROMPTS, 5)):
        out = _run(params, prompts[rows], LENGTHS[rows], row_ids=np.arange(10, 10 + B)[rows], max_new_tokens=new)
        np.testing.assert_array_equal(out.tokens, base.tokens[rows, :new])
        np.testing.assert_allclose(out.logprobs, base.logprobs[rows, :new], atol=1e-5)


def test_keys_rows_and_kinds_of_keys(params):
    base = _run(params)
    np.testing.assert_array_equal(_run(params, key=jax.random.PRNGKey(3)).tokens, base.tokens)  # raw and typed
    assert (_run(params, key=jax.random.key(4)).tokens != base.tokens).any(axis=1).all()
    twins = _run(params, np.repeat(PROMPTS[:1], B, 0), np.repeat(LENGTHS[:1], B))
    assert len({tuple(row) for row in twins.tokens}) == B  # rows of a group draw apart


def test_temperature_and_stop_ids_of_one_number_compile_once(params, monkeypatch):
    traces = []
    monkeypatch.setattr(decode, "grow", lambda *args, grow=decode.grow: traces.append(1) or grow(*args))
    for temperature, stops in ((1.0, (1, 2, 3)), (0.3, (4, 5, 6)), (0, (7, 8, 9))):
        _run(params, temperature=temperature, stop_ids=stops, max_new_tokens=N + 1)  # a shape no other test has
    assert len(traces) == 1


def test_bad_arguments_are_refused(params):
    with pytest.raises(ValueError, match="max_new_tokens"):
        _run(params, max_new_tokens=0)
    with pytest.raises(ValueError, match="tokens must be"):
        _run(params, PROMPTS[0], LENGTHS)
    with pytest.raises(ValueError, match="top_p"):
        _run(params, top_p=0.0)
