"""Log-probs and entropies of tokens from hidden states, without the logits of a whole batch.

The logits of 32 rows of 4096 tokens over a vocabulary of 152 k are 80 GB in float32. Here they exist for one chunk of
positions at a time, forward and backward. The backward pass computes a chunk's logits again (one product) from the hidden
states and the saved log-normaliser, and sums the unembedding's gradient over chunks in float32. Autodiff of a rematerialised
scan would compute a second softmax (2.6 times the time on CPU, 15 k tokens, V 1000) and, in bfloat16, round that sum once a
chunk. Tokens that no loss counts (prompts, documents) are sorted behind the others, and their chunks are skipped.

On CPU a large vocabulary is also read block by block. A block of the unembedding and of its gradient is then read and
written once for all chunks, and stays in the cache meanwhile. A tied embedding is read as it is stored, [V, D], and its
logits are [v, positions]: on CPU the transpose of 262,144 rows takes as long as the products of a short batch, and 16-bit
products of operands as they are stored are five times as fast as others (benchmarks/RESULTS.md).
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from zsjax.models.operands import transposed
from zsjax.parallel.constrain import parts_of, platform
from zsjax.types import PADDING_LOGIT

LOGITS_BYTES = 2**28  # of one chunk's logits on a device
MIN_CHUNKS = 8  # or a chunk would hold positions that no loss counts beside those that one does
# On CPU: the least and the most tokens of a block of the vocabulary; positions of a chunk where there are blocks.
MIN_VOCAB_BLOCK, MAX_VOCAB_BLOCK, BLOCK_POSITIONS = 1024, 2048, 128


@dataclasses.dataclass(frozen=True)
class _Options:
    """num_chunks: of positions. block: tokens of a block of the vocabulary. The others: see `token_logprobs`."""

    num_chunks: int
    block: int
    with_entropy: bool
    num_ids: int | None
    tied: bool

    @property
    def axis(self) -> int:
        """Of the vocabulary in a chunk's logits."""
        return 0 if self.tied else -1

    def beside(self, x):
        """x of a chunk's positions [B, c], as it meets their logits [B, c, v], or [v, B * c] where tied."""
        return x.reshape(1, -1) if self.tied else x[..., None]


def positions_at_a_time(positions: int, vocab_size: int, logits_bytes: int = LOGITS_BYTES) -> int:
    """Positions of a chunk on one device: at most an eighth of those there, and `logits_bytes` of float32 logits."""
    return max(1, min(math.ceil(positions / MIN_CHUNKS), logits_bytes // (4 * vocab_size)))


def vocab_block(vocab_size: int) -> int:
    """Tokens of a block on CPU: the largest divisor of the vocabulary's size within the bounds, or all tokens."""
    fitting = [size for size in range(MIN_VOCAB_BLOCK, MAX_VOCAB_BLOCK + 1) if vocab_size % size == 0]
    return max(fitting, default=vocab_size)


def token_logprobs(hidden, unembed, tokens, *, chunk=0, temperature=1.0, with_entropy=True, wanted=None,
                   num_ids: int | None = None, logits_bytes: int = LOGITS_BYTES, tied: bool = False):
    """Log-prob and entropy of each token given the tokens before it.

    With z_t = hidden[:, t-1] @ unembed / temperature, for t >= 1:
      logprobs[:, t] = z_t[tokens[:, t]] - logsumexp(z_t)
      entropy[:, t]  = logsumexp(z_t) - sum_v softmax(z_t)_v z_tv
    and both are 0 at t = 0. Rounding can make log-probs positive and entropies negative: they are clamped to 0.
    Gradients ignore the clamp.

    Args:
      hidden: [B, T, D], after the final norm. The products run in its dtype and accumulate in float32 (float64 for
        float64 input); the softmax is in the accumulating dtype.
      unembed: [D, V], or [V, D] where `tied`.
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
      tied: unembed is an embedding, [V, D], and so is its gradient.

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
    V, matrix_width = unembed.shape if tied else unembed.shape[::-1]
    if tokens.shape != (B, T) or matrix_width != D:
        raise ValueError(f"hidden {hidden.shape}, unembed {unembed.shape} and tokens {tokens.shape} do not fit")
    dtype = jnp.promote_types(jnp.float32, hidden.dtype)
    if T < 2:
        zeros = jnp.zeros((B, T), dtype)
        return zeros, (zeros if with_entropy else None)
    temperature = jax.lax.stop_gradient(jnp.asarray(temperature, dtype))
    # Without a chunk the rows of a device are one long row, whose wanted positions are sorted together.
    rows = B if chunk else parts_of("rows", B)
    N, parts = B // rows * (T - 1), parts_of("vocab", V)
    block = vocab_block(V) if platform() == "cpu" and parts == 1 else V
    if not chunk:
        chunk = positions_at_a_time(N, V // parts, logits_bytes)
        chunk = chunk if block == V else min(chunk, BLOCK_POSITIONS)
    if tied and block == V:  # one program for both, whose bits and layouts are those of an untied matrix
        unembed, tied = unembed.T, False
    options = _Options(math.ceil(N / chunk), block, with_entropy, num_ids, tied)

    def folded(x):
        return x.reshape(rows, N, *x.shape[2:])

    out = _logprobs(options, folded(hidden[:, :-1]), unembed, folded(tokens[:, 1:]), temperature,
                    None if wanted is None else folded(wanted[:, 1:]))

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


def _over_vocab(options, unembed, body, carry):
    """The last carry of body(carry, first, matrix) -> (carry, out), over the blocks of the vocabulary: `first` is the first
    token of a block, `matrix` its part of the unembedding. And the outs, which are like matrix, in one array."""
    axis = 0 if options.tied else 1
    V = unembed.shape[axis]
    if options.block == V:
        return body(carry, 0, unembed)
    shape = jax.eval_shape(lambda: body(carry, 0, jax.lax.slice_in_dim(unembed, 0, options.block, axis=axis))[1])
    whole = jax.tree.map(lambda x: jnp.zeros(unembed.shape, x.dtype), shape)

    def iteration(i, state):
        carry, whole = state
        first = i * options.block
        carry, out = body(carry, first, jax.lax.dynamic_slice_in_dim(unembed, first, options.block, axis))
        return carry, jax.tree.map(lambda whole, x: jax.lax.dynamic_update_slice_in_dim(whole, x, first, axis), whole, out)

    return jax.lax.fori_loop(0, V // options.block, iteration, (carry, whole))


def _vocab(options, first):
    """int32: the tokens of a block, as they meet a chunk's logits."""
    return jax.lax.expand_dims(first + jnp.arange(options.block), (-1,) if options.tied else (0, 1))


def _logits(options, hidden, matrix, first, temperature):
    # The same product as zsjax.models.decoder.logits_of, so that scoring agrees with sampling.
    if options.tied:
        operands = matrix, transposed(hidden.reshape(-1, hidden.shape[-1]))
    else:
        operands = hidden, matrix
    logits = jnp.matmul(*operands, preferred_element_type=temperature.dtype) / temperature
    if options.num_ids is None:
        return logits
    return jnp.where(_vocab(options, first) < options.num_ids, logits, PADDING_LOGIT)


def _gradients(options, d_logits, hidden, matrix):
    """(d hidden [B, c, D], d matrix) of a chunk, in d_logits' dtype.

    d_logits is not rounded to the model's dtype: in bfloat16 that costs 1.4 times the error of a dense backward (measured).
    """
    accumulated = dict(preferred_element_type=d_logits.dtype)
    if not options.tied:
        return (jnp.einsum("btv,dv->btd", d_logits, matrix, **accumulated),
                jnp.einsum("btd,btv->dv", hidden, d_logits, **accumulated))
    shape, hidden = hidden.shape, hidden.reshape(-1, hidden.shape[-1])
    if matrix.dtype != jnp.bfloat16:
        return (jnp.matmul(d_logits.T, matrix, **accumulated).reshape(shape), jnp.matmul(d_logits, hidden, **accumulated))
    # Two products in bfloat16 keep 16 bits of d_logits' digits, and are faster than one in float32.
    rounded = jax.lax.reduce_precision(d_logits, exponent_bits=8, mantissa_bits=7)
    parts = [x.astype(matrix.dtype) for x in (rounded, d_logits - rounded)]
    return (sum(jnp.matmul(transposed(x), matrix, **accumulated) for x in parts).reshape(shape),
            sum(jnp.matmul(x, hidden, **accumulated) for x in parts))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _logprobs(options, hidden, unembed, tokens, temperature, wanted):
    """[B, N] log-probs and entropies of tokens[b, n] from hidden[b, n]; meaningless, finite, where they are not wanted."""
    return _forward(options, hidden, unembed, tokens, temperature, wanted)[0]


def _forward(options, hidden, unembed, tokens, temperature, wanted):
    """The running softmax of Milakov and Gimelshein (2018) over the blocks of the vocabulary."""
    split, join, live = _layout(options.num_chunks, wanted, hidden.shape[1])
    chunks = split(hidden), split(tokens)
    zeros = jnp.zeros(chunks[1].shape, temperature.dtype)

    def block(sums, first, matrix):
        matrix = matrix.astype(hidden.dtype)

        def body(_, chunk):
            h, targets, (highest, total, chosen, moment) = chunk
            logits = _logits(options, h, matrix, first, temperature)

            def over_block(reduce, x):
                return reduce(x, axis=options.axis).reshape(targets.shape)

            place = targets - first
            own = jnp.take_along_axis(logits, options.beside(jnp.clip(place, 0, options.block - 1)), axis=options.axis)
            chosen += jnp.where((place >= 0) & (place < options.block), own.reshape(targets.shape), 0)
            top = jnp.maximum(highest, over_block(jnp.max, logits))
            kept, weights = jnp.exp(highest - top), jnp.exp(logits - options.beside(top))
            total = total * kept + over_block(jnp.sum, weights)
            if options.with_entropy:
                moment = moment * kept + over_block(jnp.sum, weights * logits)
            return (), (top, total, chosen, moment)

        return _loop(body, live, (), (*chunks, sums))[1], ()

    (top, total, chosen, moment), _ = _over_vocab(options, unembed, block, (zeros - jnp.inf, zeros, zeros, zeros))
    total = jnp.where(total > 0, total, 1)  # 0 in chunks that are skipped
    normalizer = top + jnp.log(total)
    entropy = normalizer - moment / total if options.with_entropy else normalizer
    logprobs, entropy, normalizer = (join(x) for x in (chosen - normalizer, entropy, normalizer))
    outputs = jnp.minimum(logprobs, 0), jnp.maximum(entropy, 0)
    return outputs, (hidden, unembed, tokens, temperature, wanted, normalizer, entropy)


def _backward(options, residuals, cotangents):
    """d logprob / dz_v = [v is the token] - p_v;  d entropy / dz_v = -p_v (log p_v + entropy)."""
    hidden, unembed, tokens, temperature, wanted, normalizer, entropy = residuals
    split, join, live = _layout(options.num_chunks, wanted, hidden.shape[1])
    chunks = tuple(split(x) for x in (hidden, tokens, normalizer, entropy, *cotangents))
    dtype = temperature.dtype

    def block(d_hidden, first, matrix):
        matrix = matrix.astype(hidden.dtype)
        vocab = _vocab(options, first)

        def body(d_matrix, chunk):
            h, *chunk, d_hidden = chunk
            targets, normalizer, entropy, g_logprob, g_entropy = (options.beside(x) for x in chunk)
            log_p = _logits(options, h, matrix, first, temperature) - normalizer
            p = jnp.exp(log_p)
            slope = g_logprob + g_entropy * (log_p + entropy) if options.with_entropy else g_logprob
            d_logits = jnp.where(vocab == targets, g_logprob, 0) - p * slope
            of_hidden, of_matrix = _gradients(options, d_logits / temperature, h, matrix)
            return d_matrix + of_matrix, (d_hidden + of_hidden).astype(d_hidden.dtype)

        d_matrix, d_hidden = _loop(body, live, jnp.zeros(matrix.shape, dtype), (*chunks, d_hidden))
        return d_hidden, d_matrix.astype(unembed.dtype)

    # Sums over blocks are in the accumulating dtype.
    whole = options.block == unembed.shape[0 if options.tied else 1]
    d_hidden, d_unembed = _over_vocab(options, unembed, block,
                                      jnp.zeros(chunks[0].shape, hidden.dtype if whole else dtype))
    return join(d_hidden).astype(hidden.dtype), d_unembed, None, jnp.zeros_like(temperature), None


_logprobs.defvjp(_forward, _backward)
