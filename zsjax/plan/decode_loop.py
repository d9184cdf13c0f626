"""A loop that only decodes: budgets count it (`tests/compiled`), benchmarks time it (`benchmarks/gpu.py`)."""

import jax
import jax.numpy as jnp

from zsjax.models.decoder import extend, logits_of
from zsjax.sampling.logits import row_keys, sample


def make_decode_loop(config, rows: int, steps: int):
    """The jitted (params, cache, lengths int32[B], key) -> (hidden [B, D], cache): `steps` tokens of each of B rows.

    Every call begins at `lengths` and writes over what the last one wrote behind them. The cache is donated.

    Args:
      config: DecoderConfig. rows: B.
    """
    def decode(params, cache, lengths, key):
        def step(carry):
            number, hidden, cache = carry
            keys = row_keys(key, jnp.arange(rows), cache.lengths)
            token, _ = sample(logits_of(params, config, hidden), keys, temperature=1.0)
            hidden, cache = extend(params, config, token[:, None], jnp.ones(rows, jnp.int32), cache)
            return number + 1, hidden[:, 0], cache

        hidden = jnp.zeros((rows, config.embed_dim), config.dtype)
        start = 0, hidden, cache.replace(lengths=lengths)
        _, hidden, cache = jax.lax.while_loop(lambda carry: carry[0] < steps, step, start)
        return hidden, cache

    return jax.jit(decode, donate_argnums=1)
