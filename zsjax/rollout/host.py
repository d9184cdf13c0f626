"""Rollouts that the host drives: an engine of text searches, or a simulator on devices of its own.

The pieces and the rounds are those of `zsjax.rollout.compiled`. Searches run in threads while other rows decode:

  decode   the policy samples while more than `Schedule.decode_threshold` of its rows can; for at most `visit_every`
           steps where searches run or other work is ready
  refill   rows that have ended store their episode and begin the next one
  ask      rows that wait for documents enter their requests; a thread searches for a batch of these at a time
  answer   once too few rows can sample, documents that were found and hints are inserted

When no row can sample, the host waits for a search. With one row per episode, a threshold of 0 and a fast engine this
reduces to lockstep, except that each search starts as soon as its row asks. Draws depend on (key, episode, position)
and documents on the request, and every program has one shape. So no trajectory depends on how long a search takes.
"""

import concurrent.futures
import threading
import time
from concurrent.futures import Future
from typing import NamedTuple

import jax
import numpy as np

from zsjax import types
from zsjax.models.decoder import decoding_params
from zsjax.parallel import stops
from zsjax.parallel.constrain import over_rows, row_shards
from zsjax.parallel.mesh import replicated, reshard
from zsjax.rollout import schedule
from zsjax.rollout import state as pieces
from zsjax.rollout.actions import DOCUMENTS, NOTHING
from zsjax.rollout.draws import draw_noise
from zsjax.rollout.played import Played, RolloutWork, allocated_bytes
from zsjax.rollout.queries import queries
from zsjax.rollout.schedule import Schedule
from zsjax.rollout.searching import Asked, SearchResults
from zsjax.search.simulator.writing import Replies

# Where too few rows can sample, the host waits for running searches, at most this share of the last decode's time. The
# documents of a quick engine arrive in that time, which saves steps of half-empty batches. A slow engine costs little.
PATIENCE = 0.25


class Waiting(NamedTuple):
    """What the decode program needs to know of the rows that wait for the host.

    Attributes:
      requested, ready: bool[R], the row's requests are entered, and all of their replies are there.
      left: int32[1], episodes that no row has begun.
    """

    requested: np.ndarray
    ready: np.ndarray
    left: np.ndarray


class HostRollout:
    """Call with (params, inputs, questions, noise, temperature, key, reranker). One rollout at a time."""

    def __init__(self, env, schedule: Schedule, tables, search, mesh=None, watch=None, *, visit_every: int = 16,
                 search_batches: int = 1):
        """Compiles nothing yet.

        Args:
          search: `TextSearch` or `SimulatorSearch`.
          mesh: None, or this host's mesh, over which the episodes are sharded. Each shard has its own queue.
          watch: called with the state after every refill, generation and insertion.
          visit_every: decode steps between two looks at the running searches, and between two calls of watch.
          search_batches: batches that run at a time; more than one calls the engine from several threads.
        """
        self.env, self.schedule, self.search, self.mesh = env, schedule, search, mesh
        self.watch, self.visit_every, self.search_batches = watch or (lambda state: None), visit_every, search_batches
        self.always_visit = watch is not None
        self.tables = tables if mesh is None or mesh.size == 1 else reshard(tables, replicated(mesh))

        def jitted(function, *rows, **options):
            return jax.jit(over_rows(function, mesh, rows=rows), **options)

        self._cast = jax.jit(lambda params: decoding_params(params, env.policy))  # once a rollout
        self._begin = jitted(self._begin_pieces, "inputs")
        self._decode = jitted(self._decode_pieces, "state", "waiting", donate_argnums=2)
        self._refill = jitted(self._refill_pieces, "state", "episodes", "prompts", "played", "rows", "episode",
                              donate_argnums=(0, 1))
        self._ask = jitted(self._ask_pieces, "state")
        self._answer = jitted(self._answer_pieces, "state", "replies", "asked", "noisy", "served", donate_argnums=1)

    # What runs on the devices. R rows, E episodes.

    def _begin_pieces(self, params, inputs):
        prompts = pieces.read_prompts(params, self.env, inputs)
        E = prompts.tokens.shape[0] * self.env.group_size
        R, _ = self.schedule.sizes(E)
        return prompts, pieces.empty_rows(self.env, R), pieces.finish(pieces.empty_rows(self.env, E))

    def _decode_pieces(self, params, tables, state, waiting: Waiting, may_ask, key, temperature):
        """The decode program. may_ask: bool[], whether another search can be begun."""
        begun, (requested, ready, left) = state.steps[0], waiting

        def goes_on(state):
            status, waits_for = state.status, state.waits_for
            has_work = schedule.served(waits_for, ready) | (schedule.unrequested(waits_for, requested) & may_ask)
            other_work = has_work.any() | schedule.can_refill(status, left[0])
            low = schedule.low(status, waits_for, left[0], self.schedule.decode_threshold)
            visit = (other_work | requested.any() | self.always_visit) & (state.steps[0] - begun >= self.visit_every)
            return ~((other_work & low) | visit)

        return pieces.generate_turn(params, self.env, tables, state, jax.random.fold_in(key, 0), temperature, goes_on)

    def _refill_pieces(self, state, episodes, prompts, played, rows, episode):
        """Stores ended episodes and begins others.

        Args:
          played: int32[R], the episode that each row stores, E: none.
          rows, episode: int32[R], rows and the episodes that they begin; rows from R on begin none.
        """
        episodes = jax.tree.map(lambda stored, ended: stored.at[played].set(ended, mode="drop"), episodes,
                                pieces.finish(state))
        return pieces.refill(self.env, state, prompts, rows, episode), episodes

    def _ask_pieces(self, tables, state, noise, key):
        state, query = queries(self.env, tables, state)
        return state.waits_for, query, draw_noise(self.env, state, noise, jax.random.fold_in(key, 2))

    def _answer_pieces(self, params, state, replies, asked, noisy, served):
        return pieces.insert(params, self.env, state, replies, asked, noisy, served)

    def __call__(self, params, inputs, questions, noise, temperature, key, reranker=None) -> Played:
        params = self._cast(params)
        prompts, state, episodes = self._begin(params, inputs)
        board = _Board(len(state.length), len(episodes.length), row_shards(self.mesh), self.env, self.schedule)
        find, at_a_time = self.search.begin(questions, key, board.asked.size, reranker)
        start = in_thread if self.search.in_threads else at_once
        pending: list[Asked] = []
        running: dict[Future, Asked] = {}
        simulator_steps = 0

        def collect(seconds):
            """Keeps the results of finished searches. Where too few rows can sample, waits `seconds` for one at most."""
            nonlocal simulator_steps
            if running and (board.stuck() or board.low().any()):
                concurrent.futures.wait(running, None if board.stuck() else seconds, concurrent.futures.FIRST_COMPLETED)
            for search in [search for search in running if search.done()]:
                found = search.result()
                board.keep(running.pop(search), found)
                simulator_steps += found.steps

        try:
            while True:
                begun = time.perf_counter()
                waiting = Waiting(board.requested, board.ready, board.left)
                state = self._decode(params, self.tables, state, waiting, len(running) < self.search_batches, key,
                                     temperature)
                self.watch(state)
                board.status, board.waits_for = map(np.array, jax.device_get((state.status, state.waits_for)))
                patience = PATIENCE * (time.perf_counter() - begun)

                if board.can_refill() or board.finished():
                    state, episodes = self._refill(state, episodes, prompts, *board.refill())
                    self.watch(state)
                if board.finished():
                    rows, slots = (np.full_like(board.left, n) for n in (board.rows_a_shard, self.search.slots))
                    steps = np.zeros_like(rows)
                    steps[0] = simulator_steps
                    return Played(episodes, RolloutWork(
                        policy_steps=jax.device_get(state.steps), policy_rows=rows, simulator_steps=steps,
                        simulator_slots=slots,
                        policy_cache=np.repeat(allocated_bytes(state.cache) / len(rows), len(rows))))

                collect(patience)  # so that the next batch can be asked for
                if board.unrequested().any() and len(running) < self.search_batches:
                    waits_for, query, noisy = self._ask(self.tables, state, noise, key)
                    state = state.replace(waits_for=waits_for)  # a blank query waits for the hint
                    pending.append(board.enter(*jax.device_get((waits_for, query, noisy, state.episode_id, state.turn))))
                while any(map(len, pending)) and len(running) < self.search_batches:
                    asked = jax.tree.map(lambda *x: np.concatenate(x), *pending)
                    running[search := Future()] = asked[:at_a_time]
                    start(search, find, asked[:at_a_time])
                    pending = [asked[at_a_time:]]

                collect(patience)

                served = board.served()
                if served.any():
                    asked = board.asked.flatten()  # a copy: the program may read it while the next line changes the board
                    state = self._answer(params, state, board.replies, asked, board.noisy, served)
                    board.asked &= ~served[:, None]
                    self.watch(state)
        except BaseException as error:  # a signal too
            with stops.ending():  # what was sent may have been paid for, and engines keep it
                concurrent.futures.wait([search for search in running if not search.cancel()],
                                        None if isinstance(error, Exception) else stops.PATIENCE)
            raise


class _Board:
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


def in_thread(future: Future, function, argument):
    """Begins function(argument) in a thread of its own. The thread is a daemon: it holds up no process that ends."""
    threading.Thread(target=at_once, args=(future, function, argument), daemon=True, name="search").start()


def at_once(future: Future, function, argument):
    """Calls function(argument) unless the future is cancelled. A thread gains nothing for work on the policy's devices."""
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(function(argument))
        except BaseException as error:
            future.set_exception(error)
