"""Draws follow the distribution, are cut exactly, and belong to (key, row, position)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax.sampling.logits import row_keys, sample

draw = jax.jit(sample, static_argnames=("top_k", "top_p"))
LOGITS = np.array([2.0, 0.5, 1.5, -1.0, 0.0, 1.0, -9.0], np.float32)


def _many(count=20000, **options):
    keys = row_keys(jax.random.key(0), jnp.arange(count), jnp.zeros(count, jnp.int32))
    tokens, logprobs = draw(jnp.broadcast_to(jnp.array(LOGITS), (count, LOGITS.size)), keys, **options)
    return np.asarray(tokens), np.asarray(logprobs)


def _softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


@pytest.mark.parametrize("temperature, top_k, top_p, kept", [
    (1.0, 0, 1.0, range(7)),
    (0.5, 0, 1.0, range(7)),
    (1.0, 3, 1.0, (0, 2, 5)),
    (1.0, 0, 0.7, (0, 2, 5)),  # probabilities .42 .26 .16 .09: two sum to .68, three to .84
    (1.0, 0, 0.5, (0, 2)),
    (1.0, 3, 0.7, (0, 2)),  # renormalised by top_k first: .50 .31 .19
    (1.0, 0, 1e-9, (0,)),
])
def test_draws_follow_the_cut_distribution(temperature, top_k, top_p, kept):
    tokens, logprobs = _many(temperature=temperature, top_k=top_k, top_p=top_p)
    p = _softmax(LOGITS.astype(np.float64) / temperature)
    expected = np.where(np.isin(np.arange(7), list(kept)), p, 0)
    expected /= expected.sum()
    counts = np.bincount(tokens, minlength=7)
    assert not counts[expected == 0].any()
    live = expected * len(tokens) > 5
    chi2 = (((counts - expected * len(tokens)) ** 2)[live] / (expected * len(tokens))[live]).sum()
    assert chi2 < 25  # 6 degrees of freedom: exceeded by chance once in 3,000
    np.testing.assert_allclose(logprobs, np.log(p)[tokens], atol=1e-5)  # of the whole softmax, cut or not


def test_greedy_takes_the_first_maximum_and_plain_logprobs():
    logits = jnp.array([[0.0, 3.0, 3.0, 1.0], [5.0, -2.0, 5.0, 5.0]])
    keys = row_keys(jax.random.PRNGKey(0), jnp.arange(2), jnp.arange(2))  # raw keys are fine
    expected = jax.nn.log_softmax(logits)[np.arange(2), np.array([1, 0])]
    for options in (dict(temperature=0), dict(temperature=jnp.zeros(2), top_k=2), dict(temperature=0, top_p=0.9)):
        tokens, logprobs = draw(logits, keys, **options)
        np.testing.assert_array_equal(tokens, [1, 0])
        np.testing.assert_allclose(logprobs, expected, atol=1e-6)


def test_rows_may_have_their_own_temperatures():
    logits = jax.random.normal(jax.random.key(1), (3, 50))
    keys = row_keys(jax.random.key(2), jnp.arange(3), jnp.zeros(3, jnp.int32))
    mixed = draw(logits, keys, temperature=jnp.array([0.0, 0.7, 2.0]))
    for row, temperature in enumerate((0.0, 0.7, 2.0)):
        for together, alone in zip(mixed, draw(logits, keys, temperature=temperature), strict=True):
            assert together[row] == alone[row]


def test_a_cut_changes_only_draws_that_would_have_fallen_in_the_tail():
    whole, _ = _many(temperature=1.0)
    cut, _ = _many(temperature=1.0, top_k=3)
    inside = np.isin(whole, (0, 2, 5))
    np.testing.assert_array_equal(cut[inside], whole[inside])
    assert not inside.all()


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_draws_from_many_tokens_follow_the_distribution(temperature):
    V, ids = 2 ** 14, np.array([3, 4, 40, 5000, 5001, 9999, 2 ** 14 - 1])  # some share a block of 32
    logits = jnp.full(V, -jnp.inf).at[ids].set(LOGITS)
    keys = row_keys(jax.random.key(0), jnp.arange(20_000), jnp.zeros(20_000, jnp.int32)).reshape(100, 200)
    tokens, logprobs = jax.jit(lambda keys: jax.lax.map(lambda part: sample(
        jnp.broadcast_to(logits, (200, V)), part, temperature=temperature), keys))(keys)
    tokens, p = np.asarray(tokens).ravel(), _softmax(LOGITS.astype(np.float64) / temperature)
    places = np.searchsorted(ids, tokens)
    np.testing.assert_array_equal(ids[places], tokens)
    counts, live = np.bincount(places, minlength=7), p * len(tokens) > 5
    assert ((counts - p * len(tokens)) ** 2 / (p * len(tokens)))[live].sum() < 25  # by chance once in 3,000
    np.testing.assert_allclose(np.ravel(logprobs), np.log(p)[places], atol=1e-5)


@pytest.mark.parametrize("V", [2 ** 14, 512 * 297, 128 * 1187, 50_257])  # two of Qwen's and GPT-2's, which has no blocks
def test_many_tokens_greedy_and_logprobs(V):
    logits = jax.random.normal(jax.random.key(1), (4, V)).at[:, jnp.array([700, 9000, V - 1])].set(9.0)
    logits = logits.at[3].set(logits[3].at[700].set(0.0))
    keys = row_keys(jax.random.key(2), jnp.arange(4), jnp.zeros(4, jnp.int32))
    tokens, logprobs = draw(logits, keys, temperature=jnp.array([0.0, 0.0, 1.0, 0.0]))
    np.testing.assert_array_equal(tokens[jnp.array([0, 1, 3])], [700, 700, 9000])
    np.testing.assert_allclose(logprobs, jax.nn.log_softmax(logits)[np.arange(4), tokens], atol=2e-6)
    for row, temperature in enumerate((0.0, 0.0, 1.0, 0.0)):  # a row's draw does not depend on the others
        alone, _ = draw(logits[row:row + 1], keys[row:row + 1], temperature=temperature)
        assert alone[0] == tokens[row]


def test_keys_name_row_and_position():
    keys = jax.random.key_data(row_keys(jax.random.key(0), jnp.array([0, 1, 1, 7]), jnp.array([1, 0, 1, 7])))
    assert len({tuple(k) for k in np.asarray(keys)}) == 4
    one = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 7), 7)
    np.testing.assert_array_equal(keys[3], jax.random.key_data(one))


@pytest.mark.parametrize("options", [dict(top_k=-1), dict(top_p=0.0), dict(top_p=1.5)])
def test_bad_cuts_are_refused(options):
    with pytest.raises(ValueError, match="top_k"):
        sample(jnp.zeros((1, 4)), row_keys(jax.random.key(0), jnp.zeros(1, int), jnp.zeros(1, int)), temperature=1.0,
               **options)
