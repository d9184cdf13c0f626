"""What a rollout that the host drives knows of its rows: which of them have ended, asked, been replied to."""

import jax
import numpy as np

from zsjax import types
from zsjax.rollout import schedule
from zsjax.rollout.actions import DOCUMENTS, NOTHING
from zsjax.rollout.schedule import Schedule
from zsjax.rollout.searching import Asked, SearchResults
from zsjax.search.simulator.writing import Replies


class Board:
    """The host's view of a rollout's B rows: R rows and E episodes in each shard.

    Attributes:
      status, waits_for: int8[B], as in `RolloutState`.
      left: int32[shards], episodes that no row has begun.
      episode: int32[shards, R], the shard's episode that a row plays; E: none.
      asked, there: bool[B, Q], the requests of each row, and those of them that have a reply.
      replies: of B * Q requests.
      noisy: bool[B, num_documents], the noise draws that the engine obeyed.
    """

    def __init__(self, rows: int, episodes: int, shards: int, env, schedule: Schedule):
        self.rows, self.rows_a_shard, self.episodes_a_shard = rows, rows // shards, episodes // shards
        self.group_size, self.schedule, k = env.group_size, schedule, env.num_documents
        self.status = np.full(rows, types.OUT_OF_TURNS, np.int8)
        self.waits_for = np.full(rows, NOTHING, np.int8)
        self.left = np.full(shards, self.episodes_a_shard, np.int32)
        self.episode = np.full((shards, self.rows_a_shard), self.episodes_a_shard, np.int32)
        self.asked, self.there = np.zeros((rows, env.max_queries), bool), np.zeros((rows, env.max_queries), bool)
        size = self.asked.size
        self.replies = Replies(np.zeros((size, k, env.max_document_tokens), np.int32), np.zeros((size, k), np.int32),
                               np.zeros(size, np.int32))
        self.noisy = np.zeros((rows, k), bool)

    def _by_shard(self, x):
        return x.reshape(self.episode.shape)

    def _ended(self):
        return schedule.ended(self._by_shard(self.status))

    def can_refill(self) -> bool:
        return bool(schedule.can_refill(self._by_shard(self.status), self.left).any())

    def finished(self) -> bool:
        return bool(schedule.finished(self._by_shard(self.status), self.left).all())

    def refill(self):
        """(played, rows, episode), int32[B] each, the arguments of `_refill_pieces`; numbers count within a shard."""
        R, E = self.rows_a_shard, self.episodes_a_shard
        played = np.where(self._ended(), self.episode, E).astype(np.int32)
        rows = np.tile(np.arange(R, 2 * R, dtype=np.int32), (len(played), 1))
        begun = np.zeros_like(rows)
        for shard, ended in enumerate(self._ended()):
            free = np.flatnonzero(ended)[:self.left[shard]]
            rows[shard, :len(free)] = free
            begun[shard, :len(free)] = E - self.left[shard] + np.arange(len(free))
            self.episode[shard, ended] = E
            self.episode[shard, free] = begun[shard, :len(free)]
            self.left[shard] -= len(free)
            self._by_shard(self.status)[shard, free] = types.RUNNING
        return played.ravel(), rows.ravel(), begun.ravel()

    def question(self, rows):
        """int[n], the questions of rows."""
        shard = rows // self.rows_a_shard
        return (shard * self.episodes_a_shard + self.episode.ravel()[rows]) // self.group_size

    @property
    def requested(self):
        """bool[B]: rows whose requests are entered."""
        return self.asked.any(axis=1)

    @property
    def ready(self):
        """bool[B]: rows all of whose requests have a reply."""
        return schedule.replied(self.asked, self.there)

    def unrequested(self):
        """bool[B]: rows that wait for documents and have entered no requests."""
        return schedule.unrequested(self.waits_for, self.requested)

    def enter(self, waits_for, query, noisy, episode_id, turn) -> Asked:
        """Enters the requests of rows that have none: the results of `_ask_pieces`, and names of B rows."""
        self.waits_for = np.array(waits_for)
        tokens, lengths = query
        asked = self.unrequested()[:, None] & (lengths.reshape(self.asked.shape) > 0)
        self.asked |= asked
        self.there &= ~asked
        row, place = np.nonzero(asked)
        self.noisy[row] = False
        at = row * asked.shape[1] + place
        return Asked(row=row, turn=turn[row], place=place, action=self.waits_for[row] - DOCUMENTS,
                     episode_id=episode_id[row], question=self.question(row), query=(tokens[at], lengths[at]),
                     noisy=noisy[row])

    def keep(self, asked: Asked, found: SearchResults):
        """Keeps replies until their rows are answered."""
        at = asked.row * self.asked.shape[1] + asked.place
        for kept, new in zip(jax.tree.leaves(self.replies), jax.tree.leaves(found.replies), strict=True):
            kept[at] = new
        np.logical_or.at(self.noisy, asked.row, found.noisy)
        self.there[asked.row, asked.place] = True

    def stuck(self) -> bool:
        """Whether every row waits for a search or has ended."""
        goes_on = schedule.is_generating(self.status, self.waits_for) | schedule.served(self.waits_for, self.ready)
        return not goes_on.any()

    def low(self):
        """bool[shards]: where too few rows can sample."""
        return schedule.low(*map(self._by_shard, (self.status, self.waits_for)), self.left, self.schedule.decode_threshold)

    def served(self):
        """bool[B]: rows to answer now, in shards where too few rows can sample."""
        return schedule.served(self.waits_for, self.ready) & np.repeat(self.low(), self.rows_a_shard)
