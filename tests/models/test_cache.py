"""The cached path computes what the dense one does, and writes its cache in place."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.hlo import cache_sized_results, operations_in_loops, optimised
from tests.small_decoders import CONFIG, VARIANTS, extend_logits, make_params
from zsjax.models import cache as cache_module
from zsjax.models.cache import KVCache, copy_rows, grow, init_cache
from zsjax.models.decoder import extend, forward
from zsjax.models.families import gemma3
from zsjax.models.layers import DecoderConfig
from zsjax.sampling import decode


@pytest.mark.parametrize("name", VARIANTS)
def test_any_split_into_chunks_equals_the_dense_forward(name, segments):
    config, B, T = VARIANTS[name], 4, 24
    params = make_params(config)
    rng = np.random.default_rng(1)
    tokens = rng.integers(0, config.vocab_size, (B, T)).astype(np.int32)
    lengths = np.array([T, 1, 17, 9])
    valid = np.arange(T) < lengths[:, None]
    dense = np.asarray(jax.jit(forward, static_argnums=1)(params, config, tokens, valid=valid))
    assert dense[valid].std() > 0.3
    step = jax.jit(extend_logits, static_argnums=1)
    # A full cache is the harder case: the meaningless end of a chunk falls beyond it.
    cache, found = init_cache(config, B, T if name == "qwen2" else T + 9), np.full_like(dense, np.nan)
    while (cache.lengths < lengths).any():
        N = int(rng.choice([1, 5]))
        start = np.asarray(cache.lengths)
        count = np.minimum(rng.integers(0, N + 1, B), lengths - start)  # rows advance unevenly, some not at all
        piece = rng.integers(0, config.vocab_size, (B, N))  # tokens beyond the count must not matter
        for b in range(B):
            piece[b, :count[b]] = tokens[b, start[b]:start[b] + count[b]]
        logits, cache = step(params, config, piece.astype(np.int32), count.astype(np.int32), cache)
        for b in range(B):
            found[b, start[b]:start[b] + count[b]] = logits[b, :count[b]]
    np.testing.assert_array_equal(cache.lengths, lengths)
    assert np.abs(found - dense)[valid].max() <= 1e-5


def test_grown_and_repeated_rows_go_on_alike(segments):
    params, prompt = make_params(CONFIG), jnp.array([[3, 1, 4, 1, 5], [9, 2, 6, 0, 0]], jnp.int32)

    @jax.jit
    def shared(params):
        _, cache = extend(params, CONFIG, prompt, jnp.array([5, 3]), init_cache(CONFIG, 2, 5))
        cache = copy_rows(init_cache(CONFIG, 4, 8), jnp.arange(4), grow(cache, 6), jnp.array([0, 0, 1, 1]))
        return extend_logits(params, CONFIG, jnp.array([[7], [8], [7], [8]]), jnp.ones(4, jnp.int32), cache)

    logits, cache = shared(params)
    np.testing.assert_array_equal(cache.lengths, [6, 6, 4, 4])
    rows = jnp.array([[3, 1, 4, 1, 5, 7], [3, 1, 4, 1, 5, 8], [9, 2, 6, 7, 0, 0], [9, 2, 6, 8, 0, 0]], jnp.int32)
    dense = jax.jit(forward, static_argnums=1)(params, CONFIG, rows)[np.arange(4), np.array([5, 5, 3, 3])]
    np.testing.assert_allclose(logits[:, 0], dense, atol=1e-5)
    with pytest.raises(ValueError, match="shrink"):
        grow(cache, 4)


def test_how_a_cpu_stores_bfloat16_changes_nothing():
    config = DecoderConfig(**{**CONFIG.__dict__, "dtype": "bfloat16"})
    params, tokens = make_params(config), jnp.array([[3, 1, 4, 1], [5, 9, 2, 6]], jnp.int32)
    step = jax.jit(extend_logits, static_argnums=1)
    found = []
    for dtype in (None, jnp.bfloat16):
        _, cache = step(params, config, tokens, jnp.array([4, 2]), init_cache(config, 2, 6, dtype))
        found.append(step(params, config, tokens[:, :1], jnp.ones(2, jnp.int32), cache))
    assert found[0][1].k[0][0].dtype == (jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    np.testing.assert_array_equal(found[0][0], found[1][0])


# ------------------------------------------------------------------------------------------- in place, by the HLO

def _decode_hlo(B=7):
    P, N = 20, 13
    size = B * CONFIG.num_kv_heads * (P + N - 1) * CONFIG.head_dim
    # A new jit each time: a cached trace would hide the other write.
    call = jax.jit(lambda *args: decode._generate.__wrapped__(args[0], CONFIG, *args[1:], max_new_tokens=N))
    prompts = decode.PromptRows(jnp.zeros((B, P), jnp.int32), jnp.full(B, P), jnp.arange(B))
    args = (make_params(CONFIG), prompts, jax.random.key(0), jnp.float32(1), jnp.array([3]))
    return optimised(call.lower(*args)).as_text(), size


@pytest.mark.parametrize("rows", [1, 7])
def test_the_decode_loop_writes_its_cache_in_place(rows, monkeypatch):
    hlo, size = _decode_hlo(rows)
    inside, found = cache_sized_results(hlo, size)
    assert inside and not found, found
    with monkeypatch.context() as patch:
        patch.setattr(cache_module, "SEGMENT", 16)
        hlo, _ = _decode_hlo(rows)
        assert f"f32[{rows},2,16,16]" in hlo and f"f32[{rows},2,32,16]" not in hlo
        inside, found = cache_sized_results(hlo, size // 2)
        assert inside and not found, found

    def select(self, k, v, rows=None):  # the write this test exists to refuse
        hit = (jnp.arange(self.capacity) == self.lengths[:, None])[:, None, :, None]
        ((old_k,),), ((old_v,),) = self.k, self.v
        return self.replace(k=((jnp.where(hit, k, old_k),),), v=((jnp.where(hit, v, old_v),),))

    write = KVCache.write
    monkeypatch.setattr(KVCache, "write", lambda self, *a: (select if a[0].shape[2] == 1 else write)(self, *a))
    assert len(cache_sized_results(*_decode_hlo(rows))[1]) >= 2 * CONFIG.num_layers


def test_the_decode_loop_computes_no_angles():
    """It looks them up: fused into their use, they would be computed for every head of every layer."""
    hlo, _ = _decode_hlo()
    assert "cosine(" in hlo and "cosine" not in operations_in_loops(hlo)


def test_the_decode_loop_copies_no_weights_for_one_row():
    """Its products take the matrices in halves, which must stay views; the tied unembedding is read as it is stored."""
    hlo, _ = _decode_hlo(1)
    for size in (CONFIG.vocab_size * CONFIG.embed_dim, CONFIG.embed_dim * CONFIG.mlp_dim):
        assert cache_sized_results(hlo, size)[1] == []


def test_reading_many_tokens_in_a_loop_writes_in_place():
    from zsjax.sampling.prefill import prefill

    B, S = 7, 40
    cache = init_cache(CONFIG, B, S)
    call = jax.jit(lambda params, tokens, count, cache, hidden: prefill(
        params, CONFIG, tokens, count, cache, hidden, chunk=6), donate_argnums=3)
    compiled = optimised(call.lower(make_params(CONFIG), jnp.zeros((B, 24), jnp.int32), jnp.full(B, 3), cache,
                                    jnp.zeros((B, CONFIG.embed_dim))))
    size = B * CONFIG.num_kv_heads * S * CONFIG.head_dim
    inside, found = cache_sized_results(compiled.as_text(), size)
    assert inside and not found, found
    assert compiled.memory_analysis().alias_size_in_bytes >= 2 * CONFIG.num_layers * size * 4  # donated and used


@pytest.mark.parametrize("name, slots, today, with_rings", [
    ("gemma3-270m", 832, 15_335_424, 12_386_304), ("gemma3-270m", 4096, 75_497_472, 22_413_312),
    ("gemma3-1b", 832, 22_151_168, 17_825_792), ("gemma3-1b", 4096, 109_051_904, 31_195_136)])
def test_windowed_layers_cost_what_the_page_says(name, slots, today, with_rings):
    config = gemma3.PRESETS[name]
    shapes = jax.eval_shape(lambda: init_cache(config, 1, slots, jnp.bfloat16))
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves((shapes.k, shapes.v))) == today
    ring = config.sliding_window + 128  # sizes of zsjax.rollout.state's and the simulator's prefill chunks
    saved = len(config.sliding_layers) * max(0, slots - ring) * today // (config.num_layers * slots)
    assert today - saved == with_rings
    page = pathlib.Path(__file__).parents[2] / "docs" / "how_to" / "model_family.md"
    assert f"{slots:,} | {today:,} | {with_rings:,}" in page.read_text()
