"""The whole compiled rollout, policy and simulator, on a GPU: the CPU's episodes, token for token; and an update."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.scripted import scripted_episodes
from zsjax import types
from zsjax.config.fields import OptimizerConfig
from zsjax.models.decoder import init_params
from zsjax.models.layers import DecoderConfig
from zsjax.rl.optimizer import make_optimizer
from zsjax.rl.steps import make_update
from zsjax.types import TokenBatch

pytestmark = pytest.mark.gpu

CONFIG = DecoderConfig(vocab_size=256, embed_dim=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=128)
WORK = {"batch": 8, "group": 2, "turns": 2, "prompt": 16, "turn_tokens": 24, "turn_lengths": [4, 8, 13, 24],
        "answer_share": 0.3, "documents": 2, "document_tokens": 10, "line_tokens": 6, "simulator_prompt": 176,
        "max_tokens": 160, "rows": 4, "slots": 2, "decode_threshold": 0.5}


def test_the_rollout_equals_the_cpus(gpu, cpu):
    def play():
        return scripted_episodes(CONFIG, init_params(CONFIG, jax.random.key(0)), WORK, np.random.default_rng(0))().episodes

    with jax.default_matmul_precision("highest"):
        found = play()
        with cpu():
            want = play()
    assert want.num_searches.sum() >= 4 and (want.status == types.ANSWERED).any()
    assert (want.roles == types.DOCUMENT).sum() > 20
    for name in ("tokens", "roles", "length", "status", "num_searches", "documents_span", "query_span", "episode_id"):
        np.testing.assert_array_equal(getattr(found, name), getattr(want, name), err_msg=name)
    np.testing.assert_allclose(found.behavior_logprobs, want.behavior_logprobs, atol=1e-4)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-3), ("bfloat16", 3e-2)])
def test_an_update_equals_the_cpus(gpu, cpu, dtype, tolerance):
    """Loss, norm of the gradient and log-prob statistics; in bfloat16 with cuDNN's attention."""
    rng, B, T = np.random.default_rng(0), 4, 128
    tokens = rng.integers(3, CONFIG.vocab_size, (B, T)).astype(np.int32)
    roles = np.where(np.arange(T) < [[16], [40], [8], [64]], types.PROMPT, types.POLICY).astype(np.int8)
    roles = np.where(np.arange(T) < [[128], [99], [70], [128]], roles, types.PAD).astype(np.int8)
    advantages, old = rng.normal(size=(B, 1)), np.full((B, T), -np.log(256.0), np.float32)

    def step(dtype):
        config = dataclasses.replace(CONFIG, dtype=dtype)
        params = init_params(config, jax.random.key(0))
        optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3, schedule="constant", clip_norm=1.0), 1)
        update = make_update(config, "ppo_clip", optimizer, chunk=32, kl_coef=0.01, clip_low=0.2, clip_high=0.2)
        batch = TokenBatch(
            tokens=jnp.array(tokens), roles=jnp.array(roles), behavior_logprobs=jnp.array(old), old_logprobs=jnp.array(old),
            ref_logprobs=jnp.array(old + 0.1), advantages=jnp.array(np.broadcast_to(advantages, (B, T)), jnp.float32),
            returns=None, values=None, rewards=jnp.zeros((B, T)), group_id=jnp.arange(B), row_valid=jnp.ones(B, bool))
        _, _, info = update(params, jax.jit(optimizer.init)(params), batch)
        return jax.device_get(info)

    with jax.default_matmul_precision("highest"):
        found = step(dtype)
        with cpu():
            want = step("float32")
    assert found["nonfinite"] == 0 and want["grad_norm"] > 1e-2
    for name in ("loss", "grad_norm", "entropy", "kl"):
        np.testing.assert_allclose(found[name], want[name], rtol=tolerance, err_msg=name)
