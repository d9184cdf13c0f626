"""From finished episodes and their scores to the arrays a loss sees. numpy on the host."""

import numpy as np

from zsjax.types import POLICY, Episodes, TokenBatch

_PER_TOKEN = ("tokens", "roles", "behavior_logprobs")


def token_batch(episodes: Episodes, scores, *, multiple: int = 64) -> TokenBatch:
    """Trims the columns that no row reaches and places each row's score on its last POLICY token.

    Args:
      episodes: B rows of T tokens, numpy.
      scores: float[B], one reward a row.
      multiple: the trimmed length is a multiple of this, so that few shapes are compiled; T and more trims nothing.

    Returns:
      TokenBatch of T' <= T tokens; old_logprobs, advantages and the optional arrays are None, to be filled in.
    """
    T = episodes.tokens.shape[1]
    longest = int(np.max(episodes.length))
    size = min(T, -(-longest // multiple) * multiple)
    trimmed = {name: np.asarray(getattr(episodes, name))[:, :size] for name in _PER_TOKEN}
    is_policy = trimmed["roles"] == POLICY
    last = size - 1 - np.argmax(is_policy[:, ::-1], axis=1)
    rewards = np.zeros(is_policy.shape, np.float32)
    rewards[np.arange(len(last)), last] = scores
    rewards = np.where(is_policy, rewards, 0)  # a row without POLICY tokens earns nothing
    return TokenBatch(**trimmed, old_logprobs=None, ref_logprobs=None, advantages=None, returns=None, values=None,
                      rewards=rewards, group_id=np.asarray(episodes.group_id), row_valid=np.ones(len(last), bool))
