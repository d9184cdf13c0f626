"""Key-value cache: `k` and `v` of shape [B, K, S, h] for each layer, written in place.

Rows are dense: row b holds positions 0 .. lengths[b] - 1. Slots beyond are not read and may hold anything finite. Layers
are separate arrays in the layout that attention reads: stacked caches and other layouts cost copies of the whole cache at
every step (openxla/xla#18292, and measured here). Carry a cache through `while_loop` inside a jit that donates it, never
through `cond`, which copies it (jax#38145): `when` replaces the "if".

On CPU the slots of a layer are cut into segments of `SEGMENT`, an array each. Attention reads the segments that hold
tokens, so that unused capacity costs no time. (A slice of one array would be copied at every step.) On accelerators there
is one segment.

Layers with a window hold every position too, although they read the last `window` alone. A ring of window + one prefill
chunk slots would save memory: docs/how_to/model_family.md has the bytes. It is not built: a slot would be the position
modulo the size in `write`, `copy_rows`, `grow`, Flash-Decoding and the sharding, int8's scales would follow, visibility
would need stored positions.

A cache of dtype int8 holds `Int8Heads` in place of arrays: rounded when written, never dequantised as a whole.
"""

import functools
import itertools

import flax.struct
import jax
import jax.numpy as jnp

from zsjax.models.layers import DecoderConfig, Int8Heads
from zsjax.models.quant import quantize_heads
from zsjax.parallel.constrain import constrain, platform

SEGMENT = 512  # slots


@flax.struct.dataclass
class KVCache:
    """Keys and values of the tokens read so far.

    Attributes:
      k, v: for each layer its segments, arrays [B, K, S, h] in the cache's dtype or `Int8Heads`; one after the other they
        are the slots.
      lengths: int32[B], tokens held by each row.
    """

    k: tuple[tuple[jax.Array | Int8Heads, ...], ...]
    v: tuple[tuple[jax.Array | Int8Heads, ...], ...]
    lengths: jax.Array

    @property
    def capacity(self) -> int:
        """The number of slots a row has."""
        return sum(segment.shape[2] for segment in self.k[0])

    def write(self, k: jax.Array, v: jax.Array, rows: jax.Array | None = None) -> "KVCache":
        """Writes N new slots behind each row's length, in a cache of one layer; `advance` then makes them count.

        Args:
          k, v: [B, K, N, h]. Slots lengths[b] .. lengths[b] + N - 1 are overwritten, so rows that take fewer than N
            tokens leave meaningless slots beyond their new length. Slots beyond the capacity are dropped.
          rows: int32[C] different rows that k and v [C, K, N, h] belong to, or None for all. Rows from B on are dropped.

        Returns:
          The cache with unchanged lengths.
        """
        slots = self.row_lengths(rows)[:, None] + jnp.arange(k.shape[2])
        if slots.size == 1:
            # A scatter of one index becomes an update of a slice, which XLA on CPU fuses into each of its readers, with
            # copies of the cache. The second, beyond the capacity, is dropped.
            slots = jnp.concatenate([slots, slots + self.capacity], axis=1)
            k, v = jnp.repeat(k, 2, axis=2), jnp.repeat(v, 2, axis=2)

        # Mapped over rows, so that the scatter says rows do not mix: sharded rows then write without a collective
        # (indexing by row number gathers k and v from every device at every step).
        def row(old, new, slots):
            return old.at[:, slots].set(new.astype(old.dtype), mode="drop", unique_indices=True)

        def one(old, new, slots):  # [B, K, S, h], or the scales [B, K, S]
            if rows is None:
                return jax.vmap(row)(old, new, slots)
            return old.at[rows[:, None], :, slots].set(new.swapaxes(1, 2).astype(old.dtype), mode="drop",
                                                       unique_indices=True)

        def put(segments, new):
            new, written = quantize_heads(new) if isinstance(segments[0], Int8Heads) else new, []
            for first, old in placed(segments):
                # Slots of earlier segments go to where nothing is, not to negative indices, which would count from the end.
                own = jnp.where(slots < first, slots + self.capacity, slots - first)
                written.append(jax.tree.map(functools.partial(one, slots=own), old, new))
            return tuple(written)

        (old_k,), (old_v,) = self.k, self.v
        return self.replace(k=(put(old_k, k),), v=(put(old_v, v),))

    def layer(self, index: int) -> "KVCache":
        """The same rows' cache of one layer."""
        return self.replace(k=(self.k[index],), v=(self.v[index],))

    def with_layer(self, index: int, one: "KVCache") -> "KVCache":
        """This cache with a layer out of `one`, a cache of that layer."""
        k, v = ((*mine[:index], *new, *mine[index + 1:]) for mine, new in ((self.k, one.k), (self.v, one.v)))
        return self.replace(k=k, v=v)

    def advance(self, count: jax.Array, rows: jax.Array | None = None) -> "KVCache":
        """Adds count int32[B] tokens to the rows' lengths; with rows int32[C], count int32[C] to theirs."""
        if rows is None:
            return self.replace(lengths=self.lengths + count)
        return self.replace(lengths=self.lengths.at[rows].add(count, mode="drop"))

    def row_lengths(self, rows: jax.Array | None = None) -> jax.Array:
        """int32[B] lengths, or int32[C] of the given rows (of rows from B on: any)."""
        return self.lengths if rows is None else self.lengths.at[rows].get(mode="clip")


def placed(segments):
    """[(first slot, segment), ...] of a layer's segments, arrays [B, K, S, h] or `Int8Heads`."""
    firsts = itertools.accumulate((segment.shape[2] for segment in segments), initial=0)
    return list(zip(firsts, segments, strict=False))


def when(condition, f, x):
    """f(x) if the condition, bool[], holds, else x: a tree of arrays, whose shapes f keeps.

    `lax.cond` would copy every array of x.
    """
    _, x = jax.lax.while_loop(lambda carry: carry[0], lambda carry: (False, f(carry[1])), (condition, x))
    return x


def _segment_sizes(capacity: int) -> list[int]:
    if platform() != "cpu":
        return [capacity]
    return [min(SEGMENT, capacity - first) for first in range(0, capacity, SEGMENT)]


def init_cache(config: DecoderConfig, batch: int, capacity: int, dtype=None) -> KVCache:
    """An empty cache for `batch` rows of `capacity` slots.

    dtype: None is `cache_dtype(config)`; jnp.int8 rounds what is written, see `quantize_heads`.
    """
    dtype = cache_dtype(config) if dtype is None else dtype

    def zeros(slots):
        shape = batch, config.num_kv_heads, slots, config.head_dim
        heads = constrain(jnp.zeros(shape, dtype), "rows", "kv_heads", None, None)
        if heads.dtype != jnp.int8:
            return heads
        return Int8Heads(heads, constrain(jnp.zeros(shape[:3], jnp.float32), "rows", "kv_heads", None))

    def empty():
        return tuple(tuple(map(zeros, _segment_sizes(capacity))) for _ in range(config.num_layers))

    return KVCache(k=empty(), v=empty(), lengths=jnp.zeros(batch, jnp.int32))


def cache_dtype(config: DecoderConfig, name: str = "model"):
    """The dtype of a model's cache by its name in a config: "int8" rounds, "model" is config.dtype, but float32 on CPU.

    XLA on CPU has no scatter of bfloat16: it would convert the whole cache to float32 and back at every step. Attention
    reads float32 there anyway. Keys and values are rounded to config.dtype before, so that results are the same.
    """
    if name != "model":
        return jnp.dtype(name)
    return jnp.dtype(jnp.float32 if platform() == "cpu" else config.dtype)


def copy_rows(cache: KVCache, rows: jax.Array, source: KVCache, source_rows: jax.Array) -> KVCache:
    """Replaces rows by rows of another cache, so that many rows begin with a prompt that was read once.

    Args:
      rows: int32[C] different rows of `cache`; those from B on are dropped.
      source: a cache of at most as many slots; int8 if this one is.
      source_rows: int32[C] rows of `source`.
    """

    def put(x, y):
        return x.at[rows, :, :y.shape[2]].set(
            y.at[source_rows].get(mode="clip").astype(x.dtype), mode="drop", unique_indices=True)

    def begun(segments, others):  # segments of two caches begin at the same slots
        return tuple(jax.tree.map(put, *pair) for pair in zip(segments, others, strict=False)) + segments[len(others):]

    return KVCache(k=tuple(map(begun, cache.k, source.k)), v=tuple(map(begun, cache.v, source.v)),
                   lengths=cache.lengths.at[rows].set(source.row_lengths(source_rows), mode="drop"))


def grow(cache: KVCache, capacity: int) -> KVCache:
    """The same rows with more slots. A host visit: it copies the cache and compiles a new program."""
    if capacity < cache.capacity:
        raise ValueError(f"cannot shrink a cache of {cache.capacity} slots to {capacity}")

    def longer(segments):
        def resized(segment, size):
            return jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, size - x.shape[2]), (0, 0))[:x.ndim]), segment)

        sizes = _segment_sizes(capacity)
        # Further segments are the last one's zeros, none of its slots and `size` new ones.
        grown = [*segments, *[jax.tree.map(lambda x: x[:, :, :0], segments[-1])] * (len(sizes) - len(segments))]
        return tuple(map(resized, grown, sizes))

    return cache.replace(k=tuple(map(longer, cache.k)), v=tuple(map(longer, cache.v)))
