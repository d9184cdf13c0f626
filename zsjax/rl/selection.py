"""The choice of the episodes that an update learns from. numpy on the host, over scores and groups.

Under a group baseline, a group of equal rewards has no gradient and dilutes a token mean. DAPO drops such groups and plays
others (arXiv 2503.14476, section 3.2). `keep_rows` goes further and keeps the most informative share.
"""

import jax
import numpy as np


def groups_with_signal(scores, group_id) -> np.ndarray:
    """bool[B]: whether the row's group holds two different scores."""
    scores, group_id = np.asarray(scores), np.asarray(group_id)
    _, index = np.unique(group_id, return_inverse=True)
    high, low = np.full(index.max(initial=-1) + 1, -np.inf), np.full(index.max(initial=-1) + 1, np.inf)
    np.maximum.at(high, index, scores)
    np.minimum.at(low, index, scores)
    return (high > low)[index]


def merge_groups(first, second, *, scores, group_id):
    """Replaces groups of `first` without a signal by groups of `second` with one, in order.

    Args:
      first, second: trees of numpy arrays [B, ...]; the rows of a group are neighbours, and all groups have one size.
      scores, group_id: of the two, (float[B], float[B]) and (int[B], int[B]).

    Returns:
      A new tree of the shapes of `first`.
    """
    (has, size), (offers, _) = (_groups(*pair) for pair in zip(group_id, scores, strict=True))
    places, offers = np.flatnonzero(~has), np.flatnonzero(offers)
    count = min(len(places), len(offers))
    to = (places[:count, None] * size + np.arange(size)).ravel()
    source = (offers[:count, None] * size + np.arange(size)).ravel()

    def put(old, new):
        old = np.array(old)
        old[to] = np.asarray(new)[source]
        return old

    return jax.tree.map(put, first, second)


def _groups(group_id, scores):
    """(bool[groups] with a signal, rows a group) of rows whose groups are neighbours."""
    group_id = np.asarray(group_id)
    size = len(group_id) // len(np.unique(group_id))
    return groups_with_signal(scores, group_id)[::size], size


def keep_rows(how: str, count: int, *, scores, group_id, num_searches, row_valid=None) -> np.ndarray:
    """int[count] rows to learn from, rising.

    Args:
      how: "reward_spread": groups with the largest deviation of scores first, whole where count is a multiple of their
        size; "search_depth": the episodes with the most searches, which are rare early on (after CuSearch; a plain ranking
        here).
      count: rows wanted.
      scores: float[B]; group_id, num_searches: int[B].
      row_valid: bool[B], rows that the loss counts, which come before all others; None: all.

    Raises:
      ValueError: unknown `how`.
    """
    scores = np.asarray(scores, np.float64)
    out = np.zeros(len(scores), bool) if row_valid is None else ~np.asarray(row_valid)
    if how == "reward_spread":
        _, index = np.unique(group_id, return_inverse=True)
        sizes = np.bincount(index)
        mean = np.bincount(index, scores) / sizes
        spread = np.sqrt(np.bincount(index, (scores - mean[index]) ** 2) / sizes)
        # Ties by group, so that a group is not cut in two by another one as good.
        order = np.lexsort((index, -spread[index], out))
    elif how == "search_depth":
        order = np.lexsort((np.arange(len(scores)), -np.asarray(num_searches), out))
    else:
        raise ValueError(f"unknown choice of rows {how!r}; use 'reward_spread' or 'search_depth'")
    return np.sort(order[:count])


def select(options, batch, experience):
    """The rows of a `TokenBatch` that are updated on: all, or the `keep_fraction` of them that `train.keep` prefers.

    options: config.train. experience: `zsjax.rollout.experience.Experience` of the same rows.
    """
    if options.keep == "all":
        return batch
    count = round(options.keep_fraction * len(experience.scores))
    rows = keep_rows(options.keep, count, scores=experience.scores, group_id=experience.episodes.group_id,
                     num_searches=experience.episodes.num_searches, row_valid=batch.row_valid)
    return jax.tree.map(lambda x: x[rows], batch)
