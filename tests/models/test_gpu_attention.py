"""cuDNN's attention keeps the reference's contract: lengths, windows, gradients, every size of head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax.models.attention import attend, choose
from zsjax.models.layers import DecoderConfig

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("head_dim, window", [(64, None), (128, None), (128, 100), (256, None)])
def test_cudnn_equals_the_einsums(gpu, head_dim, window):
    B, H, K, T = 3, 4, 2, 256
    config = DecoderConfig(vocab_size=8, embed_dim=8, num_layers=1, num_heads=H, num_kv_heads=K, head_dim=head_dim,
                           mlp_dim=8, dtype="bfloat16")
    kernel = choose(config)
    assert kernel == ("cudnn" if gpu.platform == "gpu" else "xla")
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, weight = (jax.random.normal(key, (B, heads, T, head_dim), jnp.bfloat16)
                       for key, heads in zip(keys, (H, K, K, H), strict=True))
    lengths = jnp.array([T, T // 3, 1])
    weight = weight.swapaxes(1, 2).reshape(B, T, -1) * (jnp.arange(T) < lengths[:, None])[..., None]

    def outputs(kernel, *arrays):
        def total(*arrays):
            out = attend(*arrays, kv_lengths=lengths, window=window, kernel=kernel)
            return (out.astype(jnp.float32) * weight).sum(), out * (weight != 0)

        gradients, out = jax.jit(jax.grad(total, (0, 1, 2), has_aux=True))(*arrays)
        return [np.asarray(x, np.float32) for x in (out, *gradients)]

    exact = outputs("xla", *(x.astype(jnp.float32) for x in (q, k, v)))
    for name, found, want in zip("out dq dk dv".split(), outputs(kernel, q, k, v), exact, strict=True):
        assert np.isfinite(found).all(), name
        assert np.abs(found - want).max() <= 0.02 * np.abs(want).max(), name
