"""The compiled rollout with more episodes than rows: a row that ends takes the next episode, and nobody waits in step.

Policy rows and simulator slots are filled from queues on the device. One outer `while_loop` goes round; in every round
each kind of work runs zero or more times (a `while_loop` is the "if": a `cond` would copy the caches, jax#38145):

  decode   the policy, as long as more than `Schedule.busy` of its rows have a token to draw
  seat     rows that have ended hand their episode over and take the next one, at once: it costs no model a step
  ask      rows that wait for documents enter their requests; equal ones of the whole rollout are one request
  write    the simulator, in whose slots the requests go in the order they were asked, until a reading pass of the policy
           is full or nothing is left to write
  answer   replies that are there and hints are inserted, and their rows draw again

With a row and a slot for every episode and busy=0 this is lockstep: everyone thinks, then everyone who asked is served.
Draws depend on (key, episode, position) and on the request alone, so the schedule changes no trajectory: bit for bit where
decoding and reading have the same shapes (rows, slots, lanes), in the last bits of a matmul elsewhere.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from zsjax import types
from zsjax.models.cache import when
from zsjax.models.decoder import decoding_params
from zsjax.models.placement import for_decoding
from zsjax.parallel.constrain import over_rows
from zsjax.rollout import dedup
from zsjax.rollout import state as pieces
from zsjax.rollout.played import Played, RolloutWork, num_bytes
from zsjax.rollout.state import DOCUMENTS, HINT, Environment, Prompts, RolloutState, generating
from zsjax.sampling.prefill import first_rows
from zsjax.search.rerank import chooser
from zsjax.search.simulator.requests import Requests, question_keys
from zsjax.search.simulator.simulator import Simulator
from zsjax.search.simulator.writing import Writing


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
class Loop:
    """The carry of the outer loop. E episodes, R rows, S slots, N requests."""

    episodes: types.Episodes  # of E rows, filled as episodes end
    next: Any  # int32[1], the first episode that was not begun
    state: RolloutState  # R rows
    episode: Any  # int32[R], which episode a row plays, E: none
    request: Any  # int32[R], the request a row waits for, N: none
    ledger: dedup.Ledger  # N
    writing: Writing  # S slots
    writes: Any  # int32[S], the request that is written in a slot, N: none


def play(policy_params, simulator_params, env: Environment, schedule: Schedule, tables, simulator: Simulator,
         simulator_tables, inputs, noise, temperature, key, reranker=None) -> Played:
    """A whole rollout against a simulator with the policy's tokenizer, as one program. Pure.

    Args:
      inputs: dict of what `read_prompts` takes, and for each question question, answers (ragged pairs) and question_key.
      noise: float32[], P(noisy). temperature: float32[], of the policy. key: the step's key.
      reranker: weights of `zsjax.search.rerank`, which choose from what the simulator writes; None: the first are shown.

    Returns:
      Played, with episodes of all questions x group_size rows.
    """
    policy_params, simulator_params = _cast(policy_params, simulator_params, env, simulator)
    prompts, loop = begin(policy_params, simulator_params, env, schedule, simulator, inputs, env.max_tokens)
    loop = go_on(policy_params, simulator_params, env, schedule, tables, simulator, simulator_tables, inputs, noise,
                 temperature, key, reranker, prompts, loop)
    return Played(loop.episodes, work_of(loop))


def _cast(policy_params, simulator_params, env, simulator):
    """Matrices in the dtype they are used in: once, outside of all loops."""
    return decoding_params(policy_params, env.policy), decoding_params(simulator_params, simulator.config)


def begin(policy_params, simulator_params, env: Environment, schedule: Schedule, simulator: Simulator, inputs,
          capacity: int) -> tuple[Prompts, Loop]:
    """What `go_on` goes on with: the prompts, read, and empty rows of `capacity` slots. Other arguments as `play`'s."""
    policy_params, simulator_params = _cast(policy_params, simulator_params, env, simulator)
    E = inputs["prompts"].shape[0] * env.group_size
    R, S = schedule.sizes(E)
    N = E * env.max_turns
    loop = Loop(
        episodes=pieces.finish(pieces.empty_rows(env, E)), next=jnp.zeros(1, jnp.int32),
        state=pieces.empty_rows(env, R, capacity), episode=jnp.full(R, E, jnp.int32), request=jnp.full(R, N, jnp.int32),
        ledger=dedup.empty(N, env, simulator), writes=jnp.full(S, N, jnp.int32),
        writing=simulator.idle(simulator_params, S, env.num_documents if env.noise_per_document else 0))
    return pieces.read_prompts(policy_params, env, inputs), loop


def go_on(policy_params, simulator_params, env: Environment, schedule: Schedule, tables, simulator: Simulator,
          simulator_tables, inputs, noise, temperature, key, reranker, prompts: Prompts, loop: Loop) -> Loop:
    """Plays until all episodes have ended, or until one could outgrow the slots that are allocated (`outgrows`).

    Arguments are those of `play`, prompts and loop those of `begin`, or the loop that was returned, its cache grown.
    """
    policy_params, simulator_params = _cast(policy_params, simulator_params, env, simulator)
    policy_key, simulator_key, noise_key = (jax.random.fold_in(key, i) for i in range(3))
    E, R, N = (len(x) for x in (loop.episodes.length, loop.episode, loop.ledger.written))
    lanes = env.lanes or R
    chosen = reranker is not None or simulator.num_documents > env.num_documents
    choose = chooser(reranker, env.num_documents) if chosen else None
    # Rows that are allocated whole need no look: nothing is compiled for it.
    full = (lambda state: pieces.outgrows(env, state)) if loop.state.cache.capacity < env.max_tokens else lambda state: False

    def remaining(loop):  # rows that can still be kept busy
        return jnp.minimum(R, E - loop.next[0] + (loop.state.status == types.RUNNING).sum())

    def low(loop):
        return generating(loop.state).sum() <= schedule.busy * remaining(loop)

    def ended(loop):
        return loop.state.status != types.RUNNING

    def can_seat(loop):
        return ended(loop).any() & (loop.next[0] < E)

    def asks(loop):
        return (loop.state.waits_for == DOCUMENTS) & (loop.request == N)

    def waits(loop):
        return loop.state.waits_for != pieces.NOTHING

    def ready(loop):  # rows that need not wait any longer
        return (loop.state.waits_for == HINT) | loop.ledger.written.at[loop.request].get(mode="fill", fill_value=False)

    def decode(loop):
        def go_on(state):
            now = loop.replace(state=state)
            return ~can_seat(now) & ~(low(now) & waits(now).any()) & jnp.logical_not(full(state))

        state = pieces.generate_turn(policy_params, env, tables, loop.state, policy_key, temperature, go_on)
        return loop.replace(state=state)

    def seat(loop):
        episodes = hand_over(loop)
        rows = first_rows(ended(loop), R)
        episode = loop.next + jnp.arange(R, dtype=jnp.int32)
        rows = jnp.where(episode < E, rows, R + jnp.arange(R, dtype=jnp.int32))
        state = pieces.seat(env, loop.state, prompts, rows, jnp.minimum(episode, E - 1))
        plays = jnp.where(ended(loop), E, loop.episode).at[rows].set(episode, mode="drop", unique_indices=True)
        return loop.replace(episodes=episodes, next=loop.next + (rows < R).sum(dtype=jnp.int32), state=state, episode=plays)

    def ask(loop):
        state, query = pieces.queries(env, tables, loop.state)
        loop = loop.replace(state=state)
        question = jnp.minimum(loop.episode, E - 1) // env.group_size
        noisy = pieces.coins(env, state, noise, noise_key)
        ledger, number = dedup.ask(loop.ledger, asks(loop), question, query, noisy)
        return loop.replace(ledger=ledger, request=jnp.where(asks(loop), number, loop.request))

    def take(loop):
        ledger, number = dedup.begin(loop.ledger, loop.writes == N)
        new = lambda of_all: jax.tree.map(lambda x: x.at[number].get(mode="clip"), of_all)
        of_question = lambda name: jax.tree.map(lambda x: x[new(ledger.question)], inputs[name])
        asked = Requests(question=of_question("question"), answers=of_question("answers"), query=new(ledger.query),
                         noisy=new(ledger.noisy), question_key=of_question("question_key"), active=number < N)
        writing = simulator.take(simulator_params, loop.writing, asked, simulator_key, lanes=env.lanes)
        return loop.replace(ledger=ledger, writing=writing, writes=jnp.where(number < N, number, loop.writes))

    def write(loop):
        def go_on(writing):
            finished = (loop.request[:, None] == loop.writes) & (loop.writes < N) & ~writing.working
            return (ready(loop) | finished.any(axis=1)).sum() < lanes

        writing = simulator.proceed(simulator_params, simulator_tables, loop.writing, go_on)
        done = jnp.where(writing.working, N, loop.writes)
        return loop.replace(writing=writing, ledger=dedup.enter(loop.ledger, done, simulator.replies(writing, choose)),
                            writes=jnp.where(writing.working, loop.writes, N))

    def answer(loop):
        replies = jax.tree.map(lambda x: x.at[loop.request].get(mode="clip"), loop.ledger.replies)
        served, noisy = ready(loop), pieces.coins(env, loop.state, noise, noise_key)
        state = pieces.insert(policy_params, env, loop.state, replies.tokens, replies.lengths, replies.count,
                              pieces.per_document(noisy, (R, env.num_documents)), served)
        return loop.replace(state=state, request=jnp.where(served, N, loop.request))

    def around(loop):
        loop = decode(loop)
        loop = when(can_seat(loop), seat, loop)
        loop = when(low(loop) & asks(loop).any(), ask, loop)
        loop = when(low(loop) & (loop.writes == N).any() & (loop.ledger.begun < loop.ledger.different)[0], take, loop)
        loop = when(low(loop) & (loop.writes < N).any(), write, loop)
        return when(low(loop) & ready(loop).any() & jnp.logical_not(full(loop.state)), answer, loop)

    def hand_over(loop):
        done = jnp.where(ended(loop), loop.episode, E)
        put = lambda all_rows, rows: all_rows.at[done].set(rows, mode="drop")
        return jax.tree.map(put, loop.episodes, pieces.finish(loop.state))

    loop = jax.lax.while_loop(lambda loop: unfinished(loop) & jnp.logical_not(full(loop.state)), around, loop)
    return loop.replace(episodes=hand_over(loop))


def unfinished(loop: Loop):
    """bool[], whether an episode is left to play."""
    return (loop.next[0] < len(loop.episodes.length)) | (loop.state.status == types.RUNNING).any()


def work_of(loop: Loop) -> RolloutWork:
    """What was done so far."""
    one = lambda x: jnp.full(1, x, jnp.int32)
    return RolloutWork(policy_steps=loop.state.steps, policy_rows=one(len(loop.episode)), simulator_steps=loop.writing.steps,
                simulator_slots=one(len(loop.writes)), simulator_tokens=one(loop.ledger.replies.lengths.sum()),
                requests=loop.ledger.asked, simulated=loop.ledger.begun, tally=loop.writing.tally,
                policy_cache=num_bytes(loop.state.cache), simulator_cache=num_bytes(loop.writing.cache))


def compiled_program(env, schedule, simulator: Simulator, mesh):
    """The whole rollout as one jitted program; its arguments are those of `program` below, parameters as
    `for_decoding` gives them."""
    def program(policy_params, simulator_params, tables, simulator_tables, inputs, noise, temperature, key, reranker=None):
        return play(policy_params, simulator_params, env, schedule, tables, simulator, simulator_tables, inputs, noise,
                    temperature, key, reranker)

    in_rows = (False, False, False, False, True, False, False, False, False)
    return jax.jit(over_rows(program, mesh, in_rows))


class CompiledRollout:
    """Call with (params, inputs, questions, noise, temperature, key, reranker): plays them by the program."""

    def __init__(self, program, tables, simulator: Simulator, mesh):
        """program: `compiled_program` or a `GrowingRollout`. mesh: None, or this host's."""
        self.program, self.tables, self.simulator, self.mesh = program, tables, simulator, mesh
        self._simulator_params = None  # placed by the first rollout

    def __call__(self, params, inputs, questions, noise, temperature, key, reranker=None) -> Played:
        simulator = self.simulator
        if self._simulator_params is None:
            self._simulator_params = for_decoding(simulator.params, simulator.config, self.mesh)
        question, answers = simulator.encode_questions(questions)
        inputs = dict(inputs, question=question, answers=answers, question_key=question_keys(questions))
        return self.program(params, self._simulator_params, self.tables, simulator.tables, inputs, noise, temperature, key,
                            reranker)
