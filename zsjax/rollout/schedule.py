"""Which row does what next: the scheduling rules that the compiled and the host rollout share.

The rules take numpy or jax arrays. Rows are the last dimension, R of them; shards, if any, stand before it. `left`
counts the episodes of the shard that no row has begun.
"""

import dataclasses

import numpy as np

from zsjax.rollout.actions import DOCUMENTS, HINT, NOTHING
from zsjax.types import RUNNING


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the work is interleaved.

    Attributes:
      rows: episodes played at a time; 0: all.
      slots: requests written at a time; 0: a quarter of the rows, or all where all episodes are played at a time.
      decode_threshold: fraction in [0, 1). The policy keeps decoding while more than this fraction of its rows (of those
        that are left, at the end) can sample. Below it, refills and searches are served first. 0: when no row can sample.
    """

    rows: int = 0
    slots: int = 0
    decode_threshold: float = 0.0

    def sizes(self, episodes: int) -> tuple[int, int]:
        """(rows, slots) of a rollout of so many episodes."""
        rows = min(self.rows or episodes, episodes)
        return rows, self.num_slots(rows)

    def num_slots(self, rows: int) -> int:
        """Slots beside so many rows."""
        return min(self.slots or (-(-rows // 4) if self.rows else rows), rows)


def ended(status):
    """bool[..., R], rows without an episode under way."""
    return status != RUNNING


def generating(status, waits_for):
    """bool[..., R], rows that sample the next token."""
    return (status == RUNNING) & (waits_for == NOTHING)


def low(status, waits_for, left, threshold: float):
    """bool[...], whether so few rows can sample that other work comes first."""
    remaining = (left + (status == RUNNING).sum(-1)).clip(max=status.shape[-1])  # rows that still have an episode to play
    return generating(status, waits_for).sum(-1) <= np.float32(threshold) * remaining.astype(np.float32)


def can_refill(status, left):
    """bool[...], whether a row that has ended can take another episode."""
    return ended(status).any(-1) & (left > 0)


def finished(status, left):
    """bool[...], whether every episode has ended."""
    return ended(status).all(-1) & (left == 0)


def unrequested(waits_for, requested):
    """bool[..., R], rows whose search was not yet requested."""
    return (waits_for >= DOCUMENTS) & ~requested


def replied(asked, there):
    """bool[..., R], rows that made requests, of which all replies are there. asked, there: bool[..., R, Q]."""
    return asked.any(-1) & (there | ~asked).all(-1)


def served(waits_for, replied):
    """bool[..., R], rows that can be answered: with a hint, or with documents that are there."""
    return (waits_for == HINT) | replied
