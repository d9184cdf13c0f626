"""The kernel's arithmetic, interpreted on CPU, and where it is chosen; test_gpu_decoding.py runs it on a GPU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax.models import attention, flash_decoding
from zsjax.models.attention import attend_cached, choose_cached
from zsjax.models.flash_decoding import flash_decode
from zsjax.models.layers import DecoderConfig
from zsjax.models.quant import quantize_heads
from zsjax.parallel.constrain import compiling_for, on, over_rows
from zsjax.parallel.mesh import make_mesh


def make(B, R, K, n, h, S):
    """q [B, K, n, h] and keys and values [R, K, S, h]."""
    shapes = (B, K, n, h), (R, K, S, h), (R, K, S, h)
    return [jax.random.normal(key, shape) for key, shape in zip(jax.random.split(jax.random.key(0), 3), shapes, strict=True)]


@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize("int8", [False, True])
def test_it_equals_the_einsums_and_reads_live_slots_only(window, int8):
    B, K, G, h, S = 4, 2, 3, 16, 200
    q, k, v = make(B, B, K, G, h, S)
    lengths = jnp.array([200, 1, 77, 0])
    dead = jnp.arange(S)[None, None, :, None] >= lengths[:, None, None, None]
    cached = (lambda x: quantize_heads(x)) if int8 else (lambda x: jnp.where(dead, jnp.nan, x))
    last = jnp.repeat(lengths[:, None] - 1, G, axis=1)
    found = flash_decode(q, cached(k), cached(v), last, window=window, interpret=True)
    ks, vs = (quantize_heads(k), quantize_heads(v)) if int8 else (k, v)
    want = attend_cached(q.reshape(B, K * G, 1, h), (ks,), (vs,), kv_lengths=lengths, q_positions=lengths[:, None] - 1,
                         window=window).reshape(B, K, G, h)
    np.testing.assert_allclose(found[:3], want[:3], atol=2e-6)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize("programs", [512, 6])  # with the live slots split among programs, and not
def test_many_queries_of_some_rows(window, programs, monkeypatch):
    B, R, K, G, T, h, S = 3, 5, 2, 3, 50, 16, 200  # 150 queries a kv head: two programs' worth
    monkeypatch.setattr(flash_decoding, "PROGRAMS", programs)
    monkeypatch.setattr(attention, "_flash", functools.partial(attention._flash, interpret=True))
    q, k, v = make(B, R, K, G * T, h, S)
    rows, begun, count = jnp.array([3, 0, R + 1]), jnp.array([140, 3, 9]), jnp.array([T, 7, 0])
    lengths = jnp.zeros(R, jnp.int32).at[rows].set(begun + count, mode="drop")
    k, v = (jnp.where(jnp.arange(S)[:, None] < lengths[:, None, None, None], x, jnp.nan) for x in (k, v))

    def attended(kernel, k, v):
        return attend_cached(q.reshape(B, K * G, T, h), (k,), (v,), kv_lengths=jnp.where(count > 0, begun + count, 0),
                             q_positions=begun[:, None] + jnp.arange(T), rows=rows, window=window, kernel=kernel)

    found, want = attended("flash", k, v), attended("xla", jnp.nan_to_num(k), jnp.nan_to_num(v))
    for row, n in ((0, T), (1, 7)):
        np.testing.assert_allclose(found[row, :n], want[row, :n], atol=2e-6)
    assert np.isfinite(found).all()


def test_where_it_is_chosen():
    config = DecoderConfig(vocab_size=8, embed_dim=8, num_layers=1, num_heads=8, num_kv_heads=2, head_dim=64, mlp_dim=8,
                           dtype="bfloat16")

    def on_h100():
        return compiling_for("gpu", capability=(9, 0))

    def chosen(rows=8, **changes):
        return choose_cached(dataclasses.replace(config, **changes), rows)

    assert chosen() == "xla"  # on this machine
    with on_h100():
        assert chosen() == "flash" and chosen(attention="xla") == "xla"
        assert chosen(rows=7) == "xla"  # too few rows to be faster
        assert choose_cached(config, 1, 8) == "flash" and choose_cached(config, 1, 7) == "xla"
        assert chosen(head_dim=96) == "xla" and chosen(dtype="float32") == "xla"
        assert chosen(num_heads=34) == "xla"  # 17 queries a kv head
    with compiling_for("gpu", capability=(7, 5)):
        assert chosen() == "xla"


def test_each_device_of_a_mesh_reads_its_own_rows_and_heads():
    B, K, G, h, S = 4, 2, 3, 16, 70
    q, k, v = make(B, B, K, G, h, S)
    last = jnp.repeat(jnp.array([69, 0, 32, 63])[:, None], G, axis=1)
    given = q, quantize_heads(k), quantize_heads(v), last

    @jax.jit
    def flash(*given):
        return attention._flash(*given, interpret=True)

    found = on(make_mesh(dict(data=2, fsdp=2, tensor=2)), flash)(*given)
    np.testing.assert_allclose(found, flash_decode(*given, interpret=True), atol=2e-6)


def test_chosen_rows_are_read_where_devices_share_heads_only():
    B, K, G, h, S = 2, 2, 3, 16, 70
    q, k, v = make(B, 5, K, G, h, S)
    given = q, k, v, jnp.repeat(jnp.array([69, 20])[:, None], G, axis=1)

    @jax.jit
    def flash(*given):
        return attention._flash(*given, rows=jnp.array([4, 1]), interpret=True)

    found = on(make_mesh(dict(data=4, tensor=2)), flash)(*given)
    np.testing.assert_allclose(found, flash(*given), atol=2e-6)


def test_it_is_used_under_a_mesh_where_no_devices_share_a_kv_head():
    config = DecoderConfig(vocab_size=8, embed_dim=8, num_layers=1, num_heads=8, num_kv_heads=2, head_dim=64, mlp_dim=8,
                           dtype="bfloat16")
    seen = []

    def look(x):
        seen.append(choose_cached(config, 64))
        return x

    with compiling_for("gpu", capability=(9, 0)):
        for sizes in (dict(data=8), dict(data=4, tensor=2), dict(data=2, tensor=4)):
            mesh = make_mesh(sizes)
            jax.eval_shape(over_rows(look, mesh, rows=("x",)), jnp.zeros(8))
            on(mesh, lambda: jax.eval_shape(look, jnp.zeros(8)))()
    assert seen == ["flash"] * 4 + ["xla"] * 2
