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

import time
from typing import NamedTuple

import jax
import numpy as np

from zsjax.models.decoder import decoding_params
from zsjax.parallel.constrain import over_rows, row_shards
from zsjax.parallel.mesh import replicated, reshard
from zsjax.rollout import schedule
from zsjax.rollout import state as pieces
from zsjax.rollout.board import Board
from zsjax.rollout.draws import draw_noise
from zsjax.rollout.played import Played, RolloutWork, allocated_bytes
from zsjax.rollout.queries import queries
from zsjax.rollout.running import RunningSearches
from zsjax.rollout.schedule import Schedule

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
        board = Board(len(state.length), len(episodes.length), row_shards(self.mesh), self.env, self.schedule)
        find, batch = self.search.begin(questions, key, board.asked.size, reranker)
        with RunningSearches(find, batch, limit=self.search_batches, in_threads=self.search.in_threads) as searches:
            while True:
                begun = time.perf_counter()
                waiting = Waiting(board.requested, board.ready, board.left)
                state = self._decode(params, self.tables, state, waiting, searches.has_room(), key, temperature)
                self.watch(state)
                board.status, board.waits_for = map(np.array, jax.device_get((state.status, state.waits_for)))
                patience = PATIENCE * (time.perf_counter() - begun)

                if board.can_refill() or board.finished():
                    state, episodes = self._refill(state, episodes, prompts, *board.refill())
                    self.watch(state)
                if board.finished():
                    return Played(episodes, self._work(state, board, searches.simulator_steps))

                _collect(board, searches, patience)  # so that the next batch can be asked for
                if board.unrequested().any() and searches.has_room():
                    waits_for, query, noisy = self._ask(self.tables, state, noise, key)
                    state = state.replace(waits_for=waits_for)  # a blank query waits for the hint
                    searches.add(board.enter(*jax.device_get((waits_for, query, noisy, state.episode_id, state.turn))))
                searches.start()
                _collect(board, searches, patience)

                served = board.served()
                if served.any():
                    asked = board.asked.flatten()  # a copy: the program may read it while the next line changes the board
                    state = self._answer(params, state, board.replies, asked, board.noisy, served)
                    board.asked &= ~served[:, None]
                    self.watch(state)

    def _work(self, state, board, simulator_steps: int) -> RolloutWork:
        rows, slots = (np.full_like(board.left, n) for n in (board.rows_a_shard, self.search.slots))
        steps = np.zeros_like(rows)
        steps[0] = simulator_steps
        return RolloutWork(policy_steps=jax.device_get(state.steps), policy_rows=rows, simulator_steps=steps,
                           simulator_slots=slots,
                           policy_cache=np.repeat(allocated_bytes(state.cache) / len(rows), len(rows)))


def _collect(board: Board, searches: RunningSearches, patience: float):
    """Puts the results of finished searches on the board. Where too few rows can sample it waits for one, `patience` seconds
    at most; where no row can, as long as it takes."""
    for asked, found in searches.finished(None if board.stuck() else patience if board.low().any() else 0):
        board.keep(asked, found)
