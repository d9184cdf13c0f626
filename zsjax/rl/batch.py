"""From finished episodes and their scores to the arrays a loss sees. numpy on the host."""

import jax
import numpy as np

from zsjax.types import POLICY, Episodes, TokenBatch


def token_batch(episodes: Episodes, scores, *, row_valid=None) -> TokenBatch:
    """Places each row's score on its last POLICY token.

    Args:
      episodes: B rows of T tokens, numpy.
      scores: float[B], one reward a row.
      row_valid: bool[B], False for rows that the loss leaves out; None keeps all.

    Returns:
      TokenBatch of T tokens; old_logprobs, advantages and the optional arrays are None, to be filled in.
    """
    roles = np.asarray(episodes.roles)
    is_policy = roles == POLICY
    B, T = roles.shape
    last = T - 1 - np.argmax(is_policy[:, ::-1], axis=1)
    rewards = np.zeros((B, T), np.float32)
    rewards[np.arange(B), last] = scores
    rewards = np.where(is_policy, rewards, 0)  # a row without POLICY tokens earns nothing
    return TokenBatch(tokens=np.asarray(episodes.tokens), roles=roles,
                      behavior_logprobs=np.asarray(episodes.behavior_logprobs), old_logprobs=None, ref_logprobs=None,
                      advantages=None, returns=None, values=None, rewards=rewards, group_id=np.asarray(episodes.group_id),
                      row_valid=np.ones(B, bool) if row_valid is None else row_valid)


def minibatches(batch: TokenBatch, count: int, epochs: int, key):
    """`epochs` times the rows in random order, cut into `count` equal parts; one part is the batch as it is."""
    for epoch in range(epochs):
        if count == 1:
            yield batch
            continue
        order = jax.random.permutation(jax.random.fold_in(key, 2**31 + epoch), batch.tokens.shape[0])
        for part in np.split(np.asarray(order), count):
            yield jax.tree.map(lambda x, part=part: x[part], batch)
