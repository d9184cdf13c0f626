"""The random draws of a rollout: tokens and noise. Keys belong to episodes, never to rows of a batch."""

import jax
import jax.numpy as jnp
import numpy as np

from zsjax.sampling.logits import row_keys, sample


def draw_tokens(logits, state, key, temperature):
    """(int32[B] tokens, float32[B] log-probs in nats) drawn from logits float32[B, V], keyed by (key, episode, position)."""
    return sample(logits, row_keys(key, state.episode_id, state.length), temperature=temperature)


def draw_noise(env, state, noise, key):
    """Draws of P(True) = noise, keyed by (key, episode, turn), with env.noise_per_question by (key, question, turn): the
    episodes of a question then differ by what they do and not by their luck.

    Returns:
      bool[B], whether this turn's search is noisy; with env.noise_per_document bool[B, k], one draw for each document.
    """
    owner = state.episode_id // env.group_size if env.noise_per_question else state.episode_id
    keys = row_keys(key, owner, state.turn)
    shape = (env.num_documents,) if env.noise_per_document else ()
    return jax.vmap(lambda key: jax.random.uniform(key, shape))(keys) < noise


def per_document(noisy, shape):
    """bool[B, k] of `draw_noise`, numpy or jax: a search's draw holds for all of its documents."""
    xp = np if isinstance(noisy, np.ndarray) else jnp
    return xp.broadcast_to(noisy if noisy.ndim == 2 else noisy[:, None], shape)
