"""The kernels keep the reference's contract; which one runs is decided once, told, and never swapped in silence."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax.models import attention
from zsjax.models.attention import attend, attend_cached, choose
from zsjax.models.layers import DecoderConfig
from zsjax.parallel.constrain import compiling_for, on, row_shards
from zsjax.parallel.mesh import make_mesh

CONFIG = DecoderConfig(vocab_size=40, embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=24)


def _inputs(T, dtype=jnp.float32, head_dim=16, B=2):
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, g = (jax.random.normal(key, (B, heads, T, head_dim), dtype)
                  for key, heads in zip(keys, (4, 2, 2, 4), strict=True))
    lengths = jnp.array([T, T // 3] + [T // 2] * (B - 2))
    weight = g.swapaxes(1, 2).reshape(B, T, -1) * (jnp.arange(T) < lengths[:, None])[..., None]
    return q, k, v, lengths, weight


def _outputs_and_gradients(function, q, k, v, weight):
    """What a kernel gives where somebody looks, and the gradients of it."""

    def total(q, k, v):
        return (function(q, k, v).reshape(weight.shape).astype(jnp.float32) * weight).sum()

    out = function(q, k, v).reshape(weight.shape).astype(jnp.float32) * (weight != 0)
    return [np.asarray(x, np.float32) for x in (out, *jax.grad(total, (0, 1, 2))(q, k, v))]


@pytest.mark.parametrize("sizes, window", [(None, 5), (dict(data=2, fsdp=2, tensor=2), None), (dict(data=2, tensor=4), 5)])
def test_splash_equals_the_reference(sizes, window):
    """Two tiles, the second one cut. On a mesh each device has its rows and heads; with tensor=4 two share a kv head."""
    q, k, v, lengths, weight = _inputs(140, B=8)
    mesh = sizes and make_mesh(sizes)

    @jax.jit
    def splash(q, k, v):
        return attention._splash(q, k, v, lengths, window, interpret=True)

    @jax.jit
    def reference(q, k, v):
        return attend(q, k, v, kv_lengths=lengths, window=window)

    ours = on(mesh, _outputs_and_gradients)(splash, q, k, v, weight)
    for a, b in zip(ours, _outputs_and_gradients(reference, q, k, v, weight), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    if mesh:
        heads = 4 // mesh.shape["tensor"]
        assert f"tensor<{8 // row_shards(mesh)}x{heads}x140x16xf32>" in on(mesh, splash.lower)(q, k, v).as_text()


@pytest.mark.parametrize("head_dim", [64, 256])
def test_splash_is_lowered_for_tpus_on_a_mesh(head_dim):
    """Mosaic accepts the tiles, and no kernel is left for XLA to partition. Needs no TPU's compiler."""
    arrays = [jax.ShapeDtypeStruct((8, heads, 300, head_dim), jnp.bfloat16) for heads in (4, 2, 2)]
    lengths = jax.ShapeDtypeStruct((8,), jnp.int32)

    def total(q, k, v, lengths):
        return attend(q, k, v, kv_lengths=lengths, kernel="splash").astype(jnp.float32).sum()

    def lower():
        return jax.jit(jax.grad(total, (0, 1, 2))).trace(*arrays, lengths).lower(lowering_platforms=("tpu",)).as_text()

    text = on(make_mesh(dict(data=2, fsdp=2, tensor=2)), lower)()
    assert text.count("tpu_custom_call") == 3 and text.count("sdy.manual_computation") > 0  # forward and two backward


@pytest.mark.parametrize("window, block, num_blocks", [(None, 128, 1), (None, 4, 3), (3, 5, 3)])
def test_the_reference_equals_jax(window, block, num_blocks, monkeypatch):
    monkeypatch.setattr(attention, "MIN_BLOCK", block)  # the last one is cut where it does not divide the row
    q, k, v, lengths, weight = _inputs(12)
    assert len(list(attention._blocks(12, window))) == num_blocks

    def by_jax(q, k, v):
        return jax.nn.dot_product_attention(
            *(x.swapaxes(1, 2) for x in (q, k, v)), is_causal=True, query_seq_lengths=lengths.astype(jnp.int32),
            key_value_seq_lengths=lengths.astype(jnp.int32), local_window_size=window and (window - 1, 0))

    for a, b in zip(_outputs_and_gradients(lambda *x: attend(*x, kv_lengths=lengths, window=window), q, k, v, weight),
                    _outputs_and_gradients(by_jax, q, k, v, weight), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


def test_keys_after_a_block_are_not_multiplied():
    """Of the products of whole rows with eight blocks, (8 + 1) / 16 are left, forward and backward."""
    q, k, v, lengths, weight = _inputs(1024, B=1)

    def flop(function):
        return jax.jit(function).lower(q, k, v).cost_analysis()["flops"]

    positions = jnp.arange(1024)[None]

    def whole(q, k, v):
        return (attend_cached(q, (k,), (v,), kv_lengths=lengths[:1], q_positions=positions) * weight).sum()

    def blocks(q, k, v):
        return (attend(q, k, v, kv_lengths=lengths[:1]) * weight).sum()

    assert flop(blocks) < 0.65 * flop(whole)
    assert flop(jax.grad(blocks, (0, 1, 2))) < 0.75 * flop(jax.grad(whole, (0, 1, 2)))  # weights computed again


def test_the_choice_is_told_once_and_what_cannot_run_is_refused(caplog):
    attention._choose.cache_clear()
    with caplog.at_level(logging.INFO):
        assert [choose(CONFIG) for _ in range(3)] == ["xla"] * 3
    assert [record.getMessage() for record in caplog.records] == ["attention of whole rows on cpu: xla"]
    for kernel, words in (("cudnn", "needs an NVIDIA GPU"), ("splash", "needs a TPU"), ("flash", "unknown")):
        with pytest.raises(ValueError, match=f"attention='{kernel}' .*{words}"):
            choose(DecoderConfig(**{**CONFIG.__dict__, "attention": kernel}))


@pytest.mark.parametrize("dtype, head_dim, capability, chosen, why", [
    ("bfloat16", 128, (8, 0), "cudnn", "attention of whole rows on an H100: cudnn"),
    ("float32", 128, (9, 0), "xla", "because cudnn computes in bfloat16"),
    ("bfloat16", 256, (9, 0), "cudnn", "on an H100: cudnn"),
    ("bfloat16", 256, (8, 0), "xla", "because cudnn needs a head_dim"),
    ("bfloat16", 128, None, "xla", "because cudnn needs an NVIDIA GPU")])
def test_the_kernel_is_chosen_for_the_target_not_for_this_machine(caplog, dtype, head_dim, capability, chosen, why):
    config = DecoderConfig(**{**CONFIG.__dict__, "dtype": dtype, "head_dim": head_dim})
    attention._choose.cache_clear()
    with caplog.at_level(logging.INFO), compiling_for("gpu", "an H100", capability=capability):
        assert choose(config) == chosen
    assert why in caplog.text
    assert choose(config) == "xla"  # here


def test_splash_is_chosen_for_tpus():
    for devices in (1, 4):
        with compiling_for("tpu", devices=devices):
            assert choose(CONFIG) == "splash"


@pytest.mark.parametrize("window, new", [(None, 1), (20, 1), (None, 4)])
def test_only_segments_that_hold_something_are_read_and_say_the_same(window, new):
    q, k, v, *_ = _inputs(70, B=3)
    q = q[:, :, :new]

    def read(lengths, sizes, v=v, rows=None, q=q):
        lengths, cut = jnp.array(lengths), lambda x: tuple(jnp.split(x, np.cumsum(sizes)[:-1], axis=2))
        return np.asarray(jax.jit(lambda q, k, v: attend_cached(
            q, cut(k), cut(v), kv_lengths=lengths, q_positions=lengths[:, None] - new + jnp.arange(new), rows=rows,
            window=window))(q, k, v))

    whole, split = read([70, 5, 33], [70]), read([70, 5, 33], [32, 32, 6])
    np.testing.assert_allclose(split, whole, atol=1e-6)
    # Bit for bit the same beside shorter rows, when fewer segments are read; nothing in the others is looked at.
    short = read([40, 5, 33], [32, 32, 6], v.at[:, :, 64:].set(jnp.nan))
    np.testing.assert_array_equal(short[1:], split[1:])
    rows = jnp.array([2, 0, 7])  # the last one is any
    np.testing.assert_allclose(read([33, 70, 1], [32, 32, 6], rows=rows, q=q[jnp.array([2, 0, 0])])[:2], whole[[2, 0]],
                               atol=1e-6)
