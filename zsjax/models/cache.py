"""Key-value cache: per layer one `k` and one `v` of shape [B, K, S, h], written in place.

Rows are dense: row b holds positions 0 .. lengths[b] - 1 and nothing else is ever read, so slots beyond the length
may hold anything finite. Layers stay separate arrays and the layout is the one attention reads, because stacked
caches and other layouts cost copies of the whole cache at every step (openxla/xla#18292, and measured here).
Carry a cache through `while_loop` inside a jit that donates it; never through `cond` (jax#38145 copies it).
"""

import flax.struct
import jax
import jax.numpy as jnp

from zsjax.models.layers import DecoderConfig
from zsjax.sharding import constrain


@flax.struct.dataclass
class KVCache:
    """Keys and values of the tokens read so far.

    Attributes:
      k, v: one array [B, K, S, h] a layer, in the cache's dtype.
      lengths: int32[B], tokens held by each row.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    lengths: jax.Array

    @property
    def capacity(self) -> int:
        """S, the number of slots a row has."""
        return self.k[0].shape[2]

    def write(self, layer: int, k: jax.Array, v: jax.Array) -> "KVCache":
        """Writes N new slots of one layer behind each row's length; `advance` then makes them count.

        Args:
          layer: which layer.
          k, v: [B, K, N, h]. Slots lengths[b] .. lengths[b] + N - 1 are overwritten, so rows that take fewer than N
            tokens leave rubbish beyond their new length, where nothing reads. Slots beyond the capacity are dropped.

        Returns:
          The cache with the layer written and unchanged lengths.
        """
        slots = self.lengths[:, None] + jnp.arange(k.shape[2])

        # Mapped over rows, so that the scatter says rows do not mix: sharded rows then write without a collective
        # (indexing by row number gathers k and v from every device at every step).
        def write(row, new, slots):
            return row.at[:, slots].set(new.astype(row.dtype), mode="drop", unique_indices=True)

        write = jax.vmap(write)
        ks, vs = list(self.k), list(self.v)
        ks[layer], vs[layer] = write(ks[layer], k, slots), write(vs[layer], v, slots)
        return self.replace(k=tuple(ks), v=tuple(vs))

    def advance(self, count: jax.Array) -> "KVCache":
        """Adds count int32[B] tokens to the rows' lengths."""
        return self.replace(lengths=self.lengths + count)


def init_cache(config: DecoderConfig, batch: int, capacity: int, dtype=jnp.float32) -> KVCache:
    """An empty cache for `batch` rows of `capacity` slots."""
    shape = (batch, config.num_kv_heads, capacity, config.head_dim)
    empty = lambda: tuple(constrain(jnp.zeros(shape, dtype), "rows", "kv_heads", None, None)
                          for _ in range(config.num_layers))
    return KVCache(
        k=empty(),
        v=empty(),
        lengths=jnp.zeros(batch, jnp.int32),
    )


def repeat_rows(cache: KVCache, times: int) -> KVCache:
    """Copies every row `times` times, next to each other: a prompt is read once and shared by its group."""
    repeat = lambda x: jnp.repeat(x, times, axis=0)
    return jax.tree.map(repeat, cache)


def grow(cache: KVCache, capacity: int) -> KVCache:
    """The same rows with more slots. A host visit: it copies the cache and compiles a new program."""
    extra = capacity - cache.capacity
    if extra < 0:
        raise ValueError(f"cannot shrink a cache of {cache.capacity} slots to {capacity}")
    pad = lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, extra), (0, 0)))
    return cache.replace(k=tuple(map(pad, cache.k)), v=tuple(map(pad, cache.v)))
