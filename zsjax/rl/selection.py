"""Which episodes an update learns from. numpy on the host, over scores and groups.

A group whose rewards are all equal has no gradient under a group baseline, and dilutes a token mean; DAPO drops such
groups and plays others (arXiv 2503.14476, section 3.2). `keep_rows` goes further and keeps the most informative share.
"""

import jax
import numpy as np

from zsjax.types import Episodes


def groups_with_signal(scores, group_id) -> np.ndarray:
    """bool[B]: whether the row's group holds two different scores."""
    scores, group_id = np.asarray(scores), np.asarray(group_id)
    _, index = np.unique(group_id, return_inverse=True)
    high, low = np.full(index.max(initial=-1) + 1, -np.inf), np.full(index.max(initial=-1) + 1, np.inf)
    np.maximum.at(high, index, scores)
    np.minimum.at(low, index, scores)
    return (high > low)[index]


def refill(first, second):
    """Rows of `second` that have a signal take the places of rows of `first` that have none, group by group.

    Args:
      first, second: (Episodes, scores float[B], ...) tuples of trees whose leaves have rows first, numpy; rows of a
        group stand next to each other, and all groups have the same size.

    Returns:
      A tuple like `first`, of as many rows.
    """
    empty, spare = (_groups(*part[:2]) for part in (first, second))
    places, offers = np.flatnonzero(~empty[0]), np.flatnonzero(spare[0])
    size, count = empty[1], min(len(places), len(offers))
    to = (places[:count, None] * size + np.arange(size)).ravel()
    come = (offers[:count, None] * size + np.arange(size)).ravel()

    def put(old, new):
        old = np.array(old)
        old[to] = np.asarray(new)[come]
        return old

    return jax.tree.map(put, first, second)


def _groups(episodes: Episodes, scores):
    """(bool[groups] with a signal, rows a group) of rows whose groups stand next to each other."""
    group_id = np.asarray(episodes.group_id)
    size = len(group_id) // len(np.unique(group_id))
    return groups_with_signal(scores, group_id)[::size], size


def keep_rows(how: str, count: int, *, scores, group_id, num_searches) -> np.ndarray:
    """int[count] rows to learn from, rising.

    Args:
      how: "reward_spread": whole groups first whose scores have the largest deviation, as those say most about what
        made the difference; "search_depth": the episodes with the most searches, which are the rare ones early on
        (in the spirit of CuSearch; a plain ranking here).
      count: rows wanted.
      scores: float[B]; group_id, num_searches: int[B].

    Raises:
      ValueError: unknown `how`.
    """
    scores = np.asarray(scores, np.float64)
    if how == "reward_spread":
        _, index = np.unique(group_id, return_inverse=True)
        sizes = np.bincount(index)
        mean = np.bincount(index, scores) / sizes
        spread = np.sqrt(np.bincount(index, (scores - mean[index]) ** 2) / sizes)
        # Ties by group, so that a group is not cut in two by another one as good.
        order = np.lexsort((index, -spread[index]))
    elif how == "search_depth":
        order = np.lexsort((np.arange(len(scores)), -np.asarray(num_searches)))
    else:
        raise ValueError(f"unknown choice of rows {how!r}: 'reward_spread' or 'search_depth'")
    return np.sort(order[:count])
