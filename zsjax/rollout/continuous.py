"""The compiled rollout with more episodes than rows: a row that ends takes the next episode, and nobody waits in step.

Policy rows and simulator slots are filled from queues on the device. One outer `while_loop` goes round; in every round
each kind of work runs zero or more times (a `while_loop` is the "if": a `cond` would copy the caches, jax#38145):

  decode   the policy, as long as more than `Schedule.busy` of its rows have a token to draw
  seat     rows that have ended hand their episode over and take the next one
  ask      rows that wait for documents give their requests to free simulator slots
  write    the simulator, as long as the policy would run too empty
  answer   finished replies and hints are inserted, and their rows draw again

With a row and a slot for every episode and busy=0 this is lockstep: everyone thinks, then everyone who asked is served.
Draws depend on (key, episode, position) and on the request alone, so the schedule changes no trajectory: bit for bit where
decoding and reading have the same shapes (rows, slots, lanes), in the last bits of a matmul elsewhere.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from zsjax import types
from zsjax.models import quant
from zsjax.models.decoder import cast_matrices
from zsjax.rollout import engine as pieces
from zsjax.rollout.engine import DOCUMENTS, HINT, Environment, RolloutState, generating
from zsjax.sampling.prefill import first_rows
from zsjax.search.rerank import chooser
from zsjax.search.simulator import Requests, Simulator, Tally, Writing


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How the work is interleaved.

    rows: episodes played at a time; 0: all.
    slots: requests written at a time; 0: a quarter of the rows, or all where all episodes are played at a time.
    busy: the policy decodes while more than this share of its rows (of those that are left, at the end) has a token to
      draw. 0: until no row has.
    """

    rows: int = 0
    slots: int = 0
    busy: float = 0.0

    def sizes(self, episodes: int) -> tuple[int, int]:
        """(rows, slots) of a rollout of so many episodes."""
        rows = min(self.rows or episodes, episodes)
        return rows, min(self.slots or (-(-rows // 4) if self.rows else rows), rows)


@flax.struct.dataclass
class Work:
    """What a rollout did, as int32[1] (one a device): useful tokens over (rows x steps) is the occupancy.

    tally: of the simulator; None where it is not in the program. policy_cache, simulator_cache: float32[1], bytes.
    """

    policy_steps: Any
    policy_rows: Any
    simulator_steps: Any
    simulator_slots: Any
    tally: Tally | None = None
    policy_cache: Any = None
    simulator_cache: Any = None


def num_bytes(cache):
    """float32[1] bytes of a cache, as `Work` has them."""
    return np.full(1, quant.num_bytes(cache), np.float32)


def occupancy(episodes: types.Episodes, work: Work) -> dict[str, float]:
    """Shares of the decode steps' places that held a token of an episode, "policy" and "simulator"; numpy.

    Everything else counts as idle: rows that wait, the end of the queue, documents that were cut or not shown. No entry
    for a model that took no step.
    """
    parts = {"policy": (types.POLICY, work.policy_steps, work.policy_rows),
             "simulator": (types.DOCUMENT, work.simulator_steps, work.simulator_slots)}
    places = {name: float((np.asarray(steps) * np.asarray(at_once)).sum()) for name, (_, steps, at_once) in parts.items()}
    return {name: float((np.asarray(episodes.roles) == role).sum()) / places[name]
            for name, (role, *_) in parts.items() if places[name]}


@flax.struct.dataclass
class Loop:
    """The carry of the outer loop. E episodes, R rows, S slots."""

    episodes: types.Episodes  # of E rows, filled as episodes end
    next: Any  # int32[], the first episode that was not begun
    state: RolloutState  # R rows
    episode: Any  # int32[R], which episode a row plays, E: none
    writing: Writing  # S slots
    owner: Any  # int32[S], the row whose request a slot holds, R: none
    asked: Any  # bool[R], whether the row's request is in a slot


def play(policy_params, simulator_params, env: Environment, schedule: Schedule, tables, simulator: Simulator,
         simulator_tables, inputs, noise, temperature, key, reranker=None) -> tuple[types.Episodes, Work]:
    """A whole rollout against a simulator with the policy's tokenizer, as one program. Pure.

    Args:
      inputs: dict of what `read_prompts` takes, and for each question question, answers (ragged pairs) and question_key.
      noise: float32[], P(noisy). temperature: float32[], of the policy. key: the step's key.
      reranker: weights of `zsjax.search.rerank`, which choose from what the simulator writes; None: the first are shown.

    Returns:
      (Episodes of all questions x group_size rows, Work).
    """
    # Cast once, outside of all loops.
    policy_params = cast_matrices(policy_params, env.policy)
    simulator_params = cast_matrices(simulator_params, simulator.config)
    policy_key, simulator_key, noise_key = (jax.random.fold_in(key, i) for i in range(3))
    prompts = pieces.read_prompts(policy_params, env, inputs)
    E = prompts.tokens.shape[0] * env.group_size
    R, S = schedule.sizes(E)
    lanes = env.lanes or R
    chosen = reranker is not None or simulator.num_documents > env.num_documents
    choose = chooser(reranker, env.num_documents) if chosen else None

    def remaining(loop):  # rows that can still be kept busy
        return jnp.minimum(R, E - loop.next + (loop.state.status == types.RUNNING).sum())

    def low(loop):
        return generating(loop.state).sum() <= schedule.busy * remaining(loop)

    def ended(loop):
        return loop.state.status != types.RUNNING

    def pending(loop):
        return (loop.state.waits_for == DOCUMENTS) & ~loop.asked

    def other_work(loop):
        return (loop.state.waits_for != pieces.NOTHING).any() | (ended(loop).any() & (loop.next < E))

    def decode(loop):
        go_on = lambda state: ~low(loop.replace(state=state)) | ~other_work(loop.replace(state=state))
        state = pieces.generate_turn(policy_params, env, tables, loop.state, policy_key, temperature, go_on)
        return loop.replace(state=state)

    def seat(loop):
        episodes = hand_over(loop)
        rows = first_rows(ended(loop), R)
        episode = loop.next + jnp.arange(R, dtype=jnp.int32)
        rows = jnp.where(episode < E, rows, R + jnp.arange(R, dtype=jnp.int32))
        state = pieces.seat(env, loop.state, prompts, rows, jnp.minimum(episode, E - 1))
        plays = jnp.where(ended(loop), E, loop.episode).at[rows].set(episode, mode="drop", unique_indices=True)
        return loop.replace(episodes=episodes, next=loop.next + (rows < R).sum(), state=state, episode=plays)

    def ask(loop):
        state, query = pieces.queries(env, tables, loop.state)
        loop = loop.replace(state=state)
        rows = first_rows(pending(loop), S)
        slots = first_rows(loop.owner == R, S)
        given = (rows < R) & (slots < S)
        owner = loop.owner.at[jnp.where(given, slots, S)].set(rows, mode="drop")
        of_row = lambda x: x.at[jnp.minimum(owner, R - 1)].get(mode="clip")
        of_question = lambda x: x[jnp.minimum(of_row(loop.episode), E - 1) // env.group_size]
        noisy = pieces.coins(env, loop.state, noise, noise_key)
        requests = Requests(
            question=jax.tree.map(of_question, inputs["question"]), answers=jax.tree.map(of_question, inputs["answers"]),
            query=jax.tree.map(of_row, query), noisy=of_row(noisy),
            question_key=of_question(inputs["question_key"]),
            active=jnp.zeros(S, bool).at[jnp.where(given, slots, S)].set(True, mode="drop"))
        writing = simulator.take(simulator_params, loop.writing, requests, simulator_key, lanes=env.lanes)
        asked = loop.asked.at[jnp.where(given, rows, R)].set(True, mode="drop")
        return loop.replace(writing=writing, owner=owner, asked=asked)

    def write(loop):
        # Until a reading pass of the policy is full, or nothing is left to write.
        finished = lambda writing: ((loop.owner < R) & ~writing.working).sum()
        go_on = lambda writing: finished(writing) < lanes
        return loop.replace(writing=simulator.proceed(simulator_params, simulator_tables, loop.writing, go_on))

    def answer(loop):
        replies = simulator.replies(loop.writing, choose)
        ready = (loop.owner < R) & ~loop.writing.working
        rows = jnp.where(ready, loop.owner, R)
        of_slot = lambda x: jnp.zeros((R, *x.shape[1:]), x.dtype).at[rows].set(x, mode="drop")
        served = jnp.zeros(R, bool).at[rows].set(True, mode="drop")
        noisy = pieces.coins(env, loop.state, noise, noise_key)
        state = pieces.insert(
            policy_params, env, loop.state, of_slot(replies.tokens), of_slot(replies.lengths), of_slot(replies.count),
            pieces.per_document(noisy, (R, env.num_documents)), served | (loop.state.waits_for == HINT))
        return loop.replace(state=state, owner=jnp.where(ready, R, loop.owner), asked=loop.asked & ~served)

    def around(loop):
        loop = decode(loop)
        loop = when(ended(loop).any() & (loop.next < E), seat, loop)
        loop = when(low(loop) & pending(loop).any() & (loop.owner == R).any(), ask, loop)
        loop = when(low(loop) & loop.writing.busy.any(), write, loop)
        ready = ((loop.owner < R) & ~loop.writing.working).any() | (loop.state.waits_for == HINT).any()
        return when(low(loop) & ready, answer, loop)

    def hand_over(loop):
        done = jnp.where(ended(loop), loop.episode, E)
        put = lambda all_rows, rows: all_rows.at[done].set(rows, mode="drop")
        return jax.tree.map(put, loop.episodes, pieces.finish(loop.state))

    idle = simulator.idle(simulator_params, S, env.num_documents if env.noise_per_document else 0)
    loop = Loop(
        episodes=pieces.finish(pieces.empty_rows(env, E)), next=jnp.int32(0), state=pieces.empty_rows(env, R),
        episode=jnp.full(R, E, jnp.int32), writing=idle, owner=jnp.full(S, R, jnp.int32),
        asked=jnp.zeros(R, bool))
    unfinished = lambda loop: (loop.next < E) | (loop.state.status == types.RUNNING).any()
    loop = jax.lax.while_loop(unfinished, around, loop)
    one = lambda x: jnp.full(1, x, jnp.int32)
    work = Work(policy_steps=loop.state.steps, policy_rows=one(R), simulator_steps=loop.writing.steps,
                simulator_slots=one(S), tally=loop.writing.tally, policy_cache=num_bytes(loop.state.cache),
                simulator_cache=num_bytes(loop.writing.cache))
    return hand_over(loop), work


def when(condition, f, x):
    """f(x) if the condition holds, else x; without the copy of every array in x that `lax.cond` makes."""
    _, x = jax.lax.while_loop(lambda carry: carry[0], lambda carry: (False, f(carry[1])), (condition, x))
    return x
