"""Log-probs and entropies of tokens from hidden states, without the logits of a whole batch.

The logits of 32 rows of 4096 tokens over a vocabulary of 152 k are 80 GB in float32. Here they exist for one chunk of
positions at a time, forward and backward. The backward pass computes a chunk's logits again (one product) from the hidden
states and the saved log-normaliser, and sums the unembedding's gradient over chunks in float32. Autodiff of a rematerialised
scan would compute a second softmax (2.6 times the time on CPU, 15 k tokens, V 1000) and, in bfloat16, round that sum once a
chunk. Tokens that no loss counts (prompts, documents) are sorted behind the others, and their chunks are skipped.
"""

import functools
import math

import jax
import jax.numpy as jnp

from zsjax.parallel.constrain import parts_of
from zsjax.types import PADDING_LOGIT

LOGITS_BYTES = 2**28  # of one chunk's logits on a device
MIN_CHUNKS = 8  # or a chunk would hold positions that no loss counts beside those that one does


def positions_at_a_time(positions: int, vocab_size: int, logits_bytes: int = LOGITS_BYTES) -> int:
    """Positions of a chunk on one device: at most an eighth of those there, and `logits_bytes` of float32 logits."""
    return max(1, min(math.ceil(positions / MIN_CHUNKS), logits_bytes // (4 * vocab_size)))


def token_logprobs(hidden, unembed, tokens, *, chunk=0, temperature=1.0, with_entropy=True, wanted=None,
                   num_ids: int | None = None, logits_bytes: int = LOGITS_BYTES):
    """Log-prob and entropy of each token given the tokens before it.

    With z_t = hidden[:, t-1] @ unembed / temperature, for t >= 1:
      logprobs[:, t] = z_t[tokens[:, t]] - logsumexp(z_t)
      entropy[:, t]  = logsumexp(z_t) - sum_v softmax(z_t)_v z_tv
    and both are 0 at t = 0. Rounding can make log-probs positive and entropies negative: they are clamped to 0.
    Gradients ignore the clamp.

    Args:
      hidden: [B, T, D], after the final norm. The products run in its dtype and accumulate in float32 (float64 for
        float64 input); the softmax is in the accumulating dtype.
      unembed: [D, V].
      tokens: int32[B, T], in 0 .. V-1.
      chunk: at most this many positions along T have logits at a time, for all rows: 4 * B * chunk * V bytes. It need not
        divide T. 0: `positions_at_a_time` of all rows on a device together.
      temperature: float or float32[], > 0; the one the tokens were sampled at. No gradient flows to it.
      with_entropy: False saves a sum over V in both passes and returns None for the entropy.
      wanted: None for all, or bool[B, T]; where it is False, log-prob and entropy are 0 and get no gradient. The work is
        that of the wanted tokens, rounded up to whole chunks: with a chunk, of the row that has most; without, of the
        device that has most.
      num_ids: None, or how many of the V are tokens; the others are left out of the softmax (`DecoderConfig.num_ids`).
      logits_bytes: with chunk 0, of the float32 logits that exist at a time on a device, but of at least one position.

    Returns:
      (logprobs, entropy): float32[B, T] each (float64 for float64 input), nats. Gradients flow to hidden and unembed,
      in reverse mode only.

    Raises:
      ValueError: chunk < 0, temperature <= 0, or shapes that do not fit.
    """
    if chunk < 0:
        raise ValueError(f"chunk={chunk} must be at least 1 position, or 0 for as many as logits_bytes hold")
    if isinstance(temperature, int | float) and temperature <= 0:
        raise ValueError(f"temperature={temperature} must be > 0")
    hidden, unembed, tokens = jnp.asarray(hidden), jnp.asarray(unembed), jnp.asarray(tokens)
    B, T, D = hidden.shape
    if tokens.shape != (B, T) or unembed.shape[0] != D:
        raise ValueError(f"hidden {hidden.shape}, unembed {unembed.shape} and tokens {tokens.shape} do not fit")
    dtype = jnp.promote_types(jnp.float32, hidden.dtype)
    if T < 2:
        zeros = jnp.zeros((B, T), dtype)
        return zeros, (zeros if with_entropy else None)
    temperature = jax.lax.stop_gradient(jnp.asarray(temperature, dtype))
    # Without a chunk the rows of a device are one long row, whose wanted positions are sorted together.
    rows = B if chunk else parts_of("rows", B)
    V, N = unembed.shape[1], B // rows * (T - 1)
    chunk = chunk or positions_at_a_time(N, V // parts_of("vocab", V), logits_bytes)

    def folded(x):
        return x.reshape(rows, N, *x.shape[2:])

    out = _logprobs((math.ceil(N / chunk), with_entropy, num_ids), folded(hidden[:, :-1]), unembed, folded(tokens[:, 1:]),
                    temperature, None if wanted is None else folded(wanted[:, 1:]))

    def own(x):
        x = x.reshape(B, T - 1)
        return jnp.pad(x if wanted is None else jnp.where(wanted[:, 1:], x, 0), ((0, 0), (1, 0)))

    return own(out[0]), (own(out[1]) if with_entropy else None)


def _layout(num_chunks, wanted, N):
    """(split, join, live): `split` brings [B, N, ...] to [num_chunks, B, c, ...], the wanted positions of a row first,
    and `join` brings it back; only the first `live` chunks have a wanted position.

    Chunks are of equal size, so that padding is less than num_chunks. Rows are sorted each by itself: those of a mesh stay
    on their devices.
    """
    c = math.ceil(N / num_chunks)
    live, order = num_chunks, None
    if wanted is not None:
        live = (wanted.sum(axis=1).max() + c - 1) // c
        order = jnp.argsort(~wanted, axis=1)  # stable
        places = jnp.argsort(order, axis=1)

    def at(x, indices):
        return jnp.take_along_axis(x, indices.reshape(indices.shape + (1,) * (x.ndim - 2)), axis=1)

    def split(x):
        x = x if order is None else at(x, order)
        x = jnp.pad(x, ((0, 0), (0, num_chunks * c - N)) + ((0, 0),) * (x.ndim - 2))
        return x.reshape(x.shape[0], num_chunks, c, *x.shape[2:]).swapaxes(0, 1)

    def join(x):
        x = x.swapaxes(0, 1)
        x = x.reshape(x.shape[0], -1, *x.shape[3:])[:, :N]
        return x if order is None else at(x, places)

    return split, join, live


def _loop(body, live, carry, xs):
    """`lax.scan` over the first `live` of xs; the outputs of the others are 0."""
    def at(i):
        return jax.tree.map(lambda x: x[i], xs)

    shapes = jax.eval_shape(lambda carry: body(carry, at(0))[1], carry)
    outs = jax.tree.map(lambda s: jnp.zeros((len(jax.tree.leaves(xs)[0]), *s.shape), s.dtype), shapes)

    def iteration(i, state):
        carry, outs = state
        carry, out = body(carry, at(i))
        return carry, jax.tree.map(lambda all, own: all.at[i].set(own), outs, out)

    return jax.lax.fori_loop(0, live, iteration, (carry, outs))


def _logits(hidden, unembed, temperature, num_ids):
    # The same product as zsjax.models.decoder.logits_of, so that scoring agrees with sampling.
    logits = jnp.matmul(hidden, unembed, preferred_element_type=temperature.dtype) / temperature
    return logits if num_ids is None else jnp.where(jnp.arange(logits.shape[-1]) < num_ids, logits, PADDING_LOGIT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logprobs(options, hidden, unembed, tokens, temperature, wanted):
    """[B, N] log-probs and entropies of tokens[b, n] from hidden[b, n]; meaningless, finite, where they are not wanted."""
    return _forward(options, hidden, unembed, tokens, temperature, wanted)[0]


def _forward(options, hidden, unembed, tokens, temperature, wanted):
    num_chunks, with_entropy, num_ids = options
    matrix = unembed.astype(hidden.dtype)
    split, join, live = _layout(num_chunks, wanted, hidden.shape[1])

    def body(_, chunk):
        h, targets = chunk
        logits = _logits(h, matrix, temperature, num_ids)
        chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
        top = logits.max(axis=-1)
        weights = jnp.exp(logits - top[..., None])
        total = weights.sum(axis=-1)
        normalizer = top + jnp.log(total)
        entropy = normalizer - (weights * logits).sum(axis=-1) / total if with_entropy else normalizer
        return (), (chosen - normalizer, entropy, normalizer)

    _, out = _loop(body, live, (), (split(hidden), split(tokens)))
    logprobs, entropy, normalizer = (join(x) for x in out)
    outputs = jnp.minimum(logprobs, 0), jnp.maximum(entropy, 0)
    return outputs, (hidden, unembed, tokens, temperature, wanted, normalizer, entropy)


def _backward(options, residuals, cotangents):
    """d logprob / dz_v = [v is the token] - p_v;  d entropy / dz_v = -p_v (log p_v + entropy)."""
    num_chunks, with_entropy, num_ids = options
    hidden, unembed, tokens, temperature, wanted, normalizer, entropy = residuals
    matrix = unembed.astype(hidden.dtype)
    split, join, live = _layout(num_chunks, wanted, hidden.shape[1])
    vocab = jnp.arange(matrix.shape[1])

    def body(d_unembed, chunk):
        h, targets, normalizer, entropy, g_logprob, g_entropy = (x[..., None] for x in chunk)
        h = h[..., 0]
        log_p = _logits(h, matrix, temperature, num_ids) - normalizer
        p = jnp.exp(log_p)
        slope = g_logprob + g_entropy * (log_p + entropy) if with_entropy else g_logprob
        d_logits = jnp.where(vocab == targets, g_logprob, 0) - p * slope
        # Not rounded to the model's dtype: in bfloat16 that costs 1.4 times the error of a dense backward (measured).
        d_logits = d_logits / temperature
        d_hidden = jnp.einsum("btv,dv->btd", d_logits, matrix, preferred_element_type=temperature.dtype)
        d_unembed += jnp.einsum("btd,btv->dv", h, d_logits, preferred_element_type=temperature.dtype)
        return d_unembed, d_hidden.astype(h.dtype)

    chunks = tuple(split(x) for x in (hidden, tokens, normalizer, entropy, *cotangents))
    d_unembed, d_hidden = _loop(body, live, jnp.zeros(unembed.shape, temperature.dtype), chunks)
    return join(d_hidden), d_unembed.astype(unembed.dtype), None, jnp.zeros_like(temperature), None


_logprobs.defvjp(_forward, _backward)
