"""The scheduling rules that the compiled and the host rollout share: which row does what next.

The rules take numpy or jax arrays. The last dimension is R rows; shards, if any, come before it. `left` counts the
episodes of a shard that no row has begun.
"""

import dataclasses

import numpy as np

from zsjax.rollout.actions import DOCUMENTS, HINT, NOTHING
from zsjax.types import RUNNING


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How a rollout interleaves its kinds of work.

    Attributes:
      rows: episodes played at a time; 0: all.
      slots: requests that the simulator writes at a time; 0: a quarter of the rows, or all rows if `rows` is 0.
      decode_threshold: fraction in [0, 1]. The policy keeps decoding while more than this fraction of its rows can
        sample; at the end of the queue, of the rows that still have an episode. Below it, other work comes first. With 0
        other work waits until no row can sample.
    """

    rows: int = 0
    slots: int = 0
    decode_threshold: float = 0.0

    def sizes(self, episodes: int) -> tuple[int, int]:
        """(rows, slots) of a rollout."""
        rows = min(self.rows or episodes, episodes)
        return rows, self.num_slots(rows)

    def num_slots(self, rows: int) -> int:
        """Slots of the simulator for a number of rows."""
        return min(self.slots or (-(-rows // 4) if self.rows else rows), rows)


def ended(status):
    """bool[..., R], rows without an unfinished episode."""
    return status != RUNNING


def is_generating(status, waits_for):
    """bool[..., R], rows that sample the next token."""
    return (status == RUNNING) & (waits_for == NOTHING)


def low(status, waits_for, left, threshold: float):
    """bool[...], whether other work comes first, because few rows can sample."""
    remaining = (left + (status == RUNNING).sum(-1)).clip(max=status.shape[-1])
    return is_generating(status, waits_for).sum(-1) <= np.float32(threshold) * remaining.astype(np.float32)


def can_refill(status, left):
    """bool[...], whether a row that has ended can take another episode."""
    return ended(status).any(-1) & (left > 0)


def finished(status, left):
    """bool[...], whether every episode has ended."""
    return ended(status).all(-1) & (left == 0)


def unrequested(waits_for, requested):
    """bool[..., R], rows that wait for documents and have entered no requests."""
    return (waits_for >= DOCUMENTS) & ~requested


def replied(asked, there):
    """bool[..., R], rows with a reply to each of their requests. asked, there: bool[..., R, Q]."""
    return asked.any(-1) & (there | ~asked).all(-1)


def served(waits_for, replied):
    """bool[..., R], rows that can be answered: with the hint, or with documents."""
    return (waits_for == HINT) | replied
