"""The kernel's arithmetic, interpreted on CPU, and where it is chosen; test_gpu_decoding.py runs it on a GPU."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax.models.attention import attend_cached, choose_cached
from zsjax.models.flash_decoding import flash_decode
from zsjax.models.layers import DecoderConfig
from zsjax.models.quant import quantize_heads
from zsjax.parallel.constrain import compiling_for, on, over_rows
from zsjax.parallel.mesh import make_mesh


@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize("int8", [False, True])
def test_it_equals_the_einsums_and_reads_live_slots_only(window, int8):
    B, K, G, h, S = 4, 2, 3, 16, 200
    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = map(jax.random.normal, keys, ((B, K, G, h), (B, K, S, h), (B, K, S, h)))
    lengths = jnp.array([200, 1, 77, 0])
    dead = jnp.arange(S)[None, None, :, None] >= lengths[:, None, None, None]
    cached = (lambda x: quantize_heads(x)) if int8 else (lambda x: jnp.where(dead, jnp.nan, x))
    found = flash_decode(q, cached(k), cached(v), lengths, window, interpret=True)
    ks, vs = (quantize_heads(k), quantize_heads(v)) if int8 else (k, v)
    want = attend_cached(q.reshape(B, K * G, 1, h), (ks,), (vs,), kv_lengths=lengths, q_positions=lengths[:, None] - 1,
                         window=window).reshape(B, K, G, h)
    np.testing.assert_allclose(found[:3], want[:3], atol=2e-6)
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
        assert chosen(head_dim=96) == "xla" and chosen(dtype="float32") == "xla"
        assert chosen(num_heads=34) == "xla"  # 17 queries a kv head
    with compiling_for("gpu", capability=(7, 5)):
        assert chosen() == "xla"


def test_it_is_used_under_a_mesh_only_where_every_device_has_its_own_rows():
    config = DecoderConfig(vocab_size=8, embed_dim=8, num_layers=1, num_heads=8, num_kv_heads=2, head_dim=64, mlp_dim=8,
                           dtype="bfloat16")
    seen = []

    def look(x):
        seen.append(choose_cached(config, 8))
        return x

    with compiling_for("gpu", capability=(9, 0)):
        for sizes in (dict(data=8), dict(data=4, tensor=2)):
            mesh = make_mesh(sizes)
            jax.eval_shape(over_rows(look, mesh, rows=("x",)), jnp.zeros(8))
            on(mesh, lambda: jax.eval_shape(look, jnp.zeros(8)))()
    assert seen == ["flash", "xla", "xla", "xla"]
