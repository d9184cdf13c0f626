"""The compiled rollout: the policy and the simulator in one program, with more episodes than rows.

Rows of the policy and slots of the simulator are refilled from queues on the device. An outer `while_loop` repeats
rounds. In a round each kind of work runs zero or more times (a `while_loop` is the "if": a `cond` would copy the
caches, jax#38145):

  decode   the policy samples while more than `Schedule.decode_threshold` of its rows can
  refill   rows that have ended store their episode and begin the next one; this costs no model step
  ask      rows that wait for documents enter their requests; equal requests of the whole rollout are one
  start    free slots of the simulator take the next requests, in the order of asking
  write    the simulator writes until a prefill batch of the policy can be answered or all replies are written
  answer   finished replies and hints are inserted, and their rows sample again

With a row and a slot for every episode and a threshold of 0, all rows run in lockstep. Draws depend on (key, episode,
position) and on the request alone, so the schedule changes no trajectory. Trajectories are bit-identical for equal
shapes (rows, slots, prefill batch); other shapes change the last bits of matmuls.
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
from zsjax.rollout import dedup, schedule
from zsjax.rollout import state as pieces
from zsjax.rollout.actions import NOTHING
from zsjax.rollout.draws import draw_noise, per_document
from zsjax.rollout.environment import Environment
from zsjax.rollout.played import Played, RolloutWork, allocated_bytes
from zsjax.rollout.queries import queries
from zsjax.rollout.schedule import Schedule
from zsjax.rollout.state import Prompts, RolloutState
from zsjax.sampling.prefill import first_rows
from zsjax.search.rerank import chooser
from zsjax.search.simulator.requests import Requests, question_keys
from zsjax.search.simulator.simulator import Simulator
from zsjax.search.simulator.writing import Writing


@dataclasses.dataclass(frozen=True, eq=False)
class Static:
    """What a program is compiled for; its arrays are inputs."""

    env: Environment
    schedule: Schedule
    simulator: Simulator  # without its parameters and tables


@flax.struct.dataclass
class Inputs:
    """The inputs of a program beside the questions.

    Attributes:
      policy_params, simulator_params: as `for_decoding` gives them.
      tables, simulator_tables: of both vocabularies, `environment.tables` and `Simulator.tables`.
      noise: float32[], P(noisy). temperature: float32[], of the policy. key: of the step.
      reranker: weights of `zsjax.search.rerank`, which choose the documents to show; None shows the first.
    """

    policy_params: Any
    simulator_params: Any
    tables: Any
    simulator_tables: Any
    noise: Any
    temperature: Any
    key: Any
    reranker: Any = None


@flax.struct.dataclass
class LoopState:
    """The carry of the outer loop. E episodes, R rows of at most Q queries, S slots, N requests."""

    episodes: types.Episodes  # of E rows, filled as episodes end
    next: Any  # int32[1], the first episode that no row has begun
    state: RolloutState  # R rows
    episode: Any  # int32[R], the episode that a row plays; E: none
    request: Any  # int32[R * Q], the request that query q of row r waits for, at r * Q + q; N: none
    requests: dedup.RequestTable  # N
    writing: Writing  # S slots
    writes: Any  # int32[S], the request that a slot writes; N: none


class Round:
    """`__call__` is one round of the outer loop. An object lives within one trace."""

    def __init__(self, static: Static, inputs: Inputs, questions: dict, prompts: Prompts, loop: LoopState):
        env, simulator = static.env, static.simulator
        self.env, self.simulator, self.inputs, self.questions, self.prompts = env, simulator, inputs, questions, prompts
        self.threshold = static.schedule.decode_threshold
        self.policy_key, self.simulator_key, self.noise_key = (jax.random.fold_in(inputs.key, i) for i in range(3))
        self.E, self.R, self.N = (len(x) for x in (loop.episodes.length, loop.episode, loop.requests.written))
        chosen = inputs.reranker is not None or simulator.num_documents > env.num_documents
        self.choose = chooser(inputs.reranker, env.num_documents) if chosen else None
        self.grows = loop.state.cache.capacity < env.max_tokens  # rows allocated whole never outgrow their cache

    def __call__(self, loop: LoopState) -> LoopState:
        # The scopes are names in profiles and plans.
        decode, refill, ask, start, write, answer = (jax.named_scope(work.__name__)(work) for work in (
            self.decode, self.refill, self.ask, self.start, self.write, self.answer))
        loop = decode(loop)
        loop = when(self.can_refill(loop), refill, loop)
        loop = when(self.low(loop) & self.asks(loop).any(), ask, loop)
        loop = when(self.low(loop) & self.can_start(loop), start, loop)
        loop = when(self.low(loop) & (loop.writes < self.N).any(), write, loop)
        return when(self.low(loop) & self.served(loop).any() & ~self.full(loop.state), answer, loop)

    # The rules of `zsjax.rollout.schedule`, on the loop's arrays.

    def left(self, loop):
        return self.E - loop.next[0]

    def low(self, loop):
        return schedule.low(loop.state.status, loop.state.waits_for, self.left(loop), self.threshold)

    def can_refill(self, loop):
        return schedule.can_refill(loop.state.status, self.left(loop))

    def asks(self, loop):
        return schedule.unrequested(loop.state.waits_for, self.by_row(loop.request != self.N).any(axis=1))

    def served(self, loop, finished=False):
        """bool[R]: rows that can be answered. finished: bool[R * Q], requests with a reply not yet in the table."""
        written = loop.requests.written.at[loop.request].get(mode="fill", fill_value=False)
        return schedule.served(loop.state.waits_for, schedule.replied(self.by_row(loop.request != self.N),
                                                                      self.by_row(written | finished)))

    def by_row(self, x):
        return x.reshape(self.R, -1)

    def can_start(self, loop):
        return (loop.writes == self.N).any() & (loop.requests.begun < loop.requests.distinct)[0]

    def full(self, state):
        return pieces.outgrows(self.env, state) if self.grows else jnp.array(False)

    # The kinds of work.

    def decode(self, loop):
        def goes_on(state):
            now = loop.replace(state=state)
            other_work = self.low(now) & (state.waits_for != NOTHING).any()
            return ~self.can_refill(now) & ~other_work & ~self.full(state)

        inputs = self.inputs
        return loop.replace(state=pieces.generate_turn(
            inputs.policy_params, self.env, inputs.tables, loop.state, self.policy_key, inputs.temperature, goes_on))

    def refill(self, loop):
        E, R, ended = self.E, self.R, schedule.ended(loop.state.status)
        episodes = self.store_ended(loop)
        rows = first_rows(ended, R)
        episode = loop.next + jnp.arange(R, dtype=jnp.int32)
        rows = jnp.where(episode < E, rows, R + jnp.arange(R, dtype=jnp.int32))
        state = pieces.refill(self.env, loop.state, self.prompts, rows, jnp.minimum(episode, E - 1))
        plays = jnp.where(ended, E, loop.episode).at[rows].set(episode, mode="drop", unique_indices=True)
        return loop.replace(episodes=episodes, next=loop.next + (rows < R).sum(dtype=jnp.int32), state=state, episode=plays)

    def store_ended(self, loop):
        """The E episodes, with those of rows that have ended."""
        done = jnp.where(schedule.ended(loop.state.status), loop.episode, self.E)
        return jax.tree.map(lambda stored, ended: stored.at[done].set(ended, mode="drop"), loop.episodes,
                            pieces.finish(loop.state))

    def ask(self, loop):
        state, query = queries(self.env, self.inputs.tables, loop.state)
        loop = loop.replace(state=state)
        question = jnp.minimum(loop.episode, self.E - 1) // self.env.group_size
        noisy = draw_noise(self.env, state, self.inputs.noise, self.noise_key)
        asks, question, noisy = (jnp.repeat(x, self.env.max_queries, axis=0) for x in (self.asks(loop), question, noisy))
        asks &= query[1] > 0
        requests, number = dedup.ask(loop.requests, asks, question, query, noisy)
        return loop.replace(requests=requests, request=jnp.where(asks, number, loop.request))

    def start(self, loop):
        requests, number = dedup.begin_requests(loop.requests, loop.writes == self.N)
        question, query, noisy = jax.tree.map(lambda x: x.at[number].get(mode="clip"),
                                              (requests.question, requests.query, requests.noisy))
        of_question = jax.tree.map(lambda x: x[question],
                                   {name: self.questions[name] for name in ("question", "answers", "question_key")})
        asked = Requests(query=query, noisy=noisy, active=number < self.N, **of_question)
        writing = self.simulator.take(self.inputs.simulator_params, loop.writing, asked, self.simulator_key,
                                      prefill_batch=self.env.prefill_batch)
        return loop.replace(requests=requests, writing=writing, writes=jnp.where(number < self.N, number, loop.writes))

    def write(self, loop):
        N, batch = self.N, self.env.prefill_batch or self.R

        def goes_on(writing):
            finished = (loop.request[:, None] == loop.writes) & (loop.writes < N) & ~writing.working
            return self.served(loop, finished.any(axis=1)).sum() < batch

        writing = self.simulator.proceed(self.inputs.simulator_params, self.inputs.simulator_tables, loop.writing, goes_on)
        done = jnp.where(writing.working, N, loop.writes)
        replies = self.simulator.replies(writing, self.choose)
        return loop.replace(writing=writing, requests=dedup.enter(loop.requests, done, replies),
                            writes=jnp.where(writing.working, loop.writes, N))

    def answer(self, loop):
        env = self.env
        replies = jax.tree.map(lambda x: x.at[loop.request].get(mode="clip"), loop.requests.replies)
        served, noisy = self.served(loop), draw_noise(env, loop.state, self.inputs.noise, self.noise_key)
        state = pieces.insert(self.inputs.policy_params, env, loop.state, replies, loop.request != self.N,
                              per_document(noisy, (self.R, env.num_documents)), served)
        return loop.replace(state=state, request=jnp.where(jnp.repeat(served, env.max_queries), self.N, loop.request))


def play_compiled(static: Static, inputs: Inputs, questions: dict) -> Played:
    """A whole rollout against a simulator with the policy's tokenizer; pure.

    questions: the inputs of `read_prompts`, and for each question `question` and `answers` (ragged pairs) and
      `question_key`.
    """
    inputs = _cast(static, inputs)
    prompts, loop = begin(static, inputs, questions, static.env.max_tokens)
    loop = proceed(static, inputs, questions, prompts, loop)
    return Played(loop.episodes, work_of(loop))


def _cast(static: Static, inputs: Inputs) -> Inputs:
    """Casts the matrices to the dtype they are used in, once and outside of all loops."""
    return inputs.replace(policy_params=decoding_params(inputs.policy_params, static.env.policy),
                          simulator_params=decoding_params(inputs.simulator_params, static.simulator.config))


def begin(static: Static, inputs: Inputs, questions: dict, capacity: int) -> tuple[Prompts, LoopState]:
    """(prompts that are read, empty rows of `capacity` cache slots): the first inputs of `proceed`."""
    env, simulator, inputs = static.env, static.simulator, _cast(static, inputs)
    E = questions["prompts"].shape[0] * env.group_size
    R, S = static.schedule.sizes(E)
    N = E * env.max_turns * env.max_queries
    loop = LoopState(
        episodes=pieces.finish(pieces.empty_rows(env, E)), next=jnp.zeros(1, jnp.int32),
        state=pieces.empty_rows(env, R, capacity), episode=jnp.full(R, E, jnp.int32),
        request=jnp.full(R * env.max_queries, N, jnp.int32),
        requests=dedup.empty(N, env, simulator), writes=jnp.full(S, N, jnp.int32),
        writing=simulator.idle(inputs.simulator_params, S, env.num_documents if env.noise_per_document else 0))
    with jax.named_scope("read_prompts"):
        return pieces.read_prompts(inputs.policy_params, env, questions), loop


def proceed(static: Static, inputs: Inputs, questions: dict, prompts: Prompts, loop: LoopState) -> LoopState:
    """Plays until all episodes have ended, or until a row could outgrow its cache (`state.outgrows`).

    prompts, loop: of `begin`, or the returned loop with a larger cache.
    """
    round = Round(static, _cast(static, inputs), questions, prompts, loop)
    loop = jax.lax.while_loop(lambda loop: unfinished(loop) & ~round.full(loop.state), round, loop)
    return loop.replace(episodes=round.store_ended(loop))


def unfinished(loop: LoopState):
    """bool[], whether an episode has not ended."""
    return ~schedule.finished(loop.state.status, len(loop.episodes.length) - loop.next[0])


def work_of(loop: LoopState) -> RolloutWork:
    """The work done so far."""

    def one(x):
        return jnp.full(1, x, jnp.int32)

    requests, writing = loop.requests, loop.writing
    return RolloutWork(
        policy_steps=loop.state.steps, policy_rows=one(len(loop.episode)), simulator_steps=writing.steps,
        simulator_slots=one(len(loop.writes)), simulator_tokens=one(requests.replies.lengths.sum()),
        requests=requests.asked, simulated=requests.begun, tally=writing.tally,
        policy_cache=allocated_bytes(loop.state.cache), simulator_cache=allocated_bytes(writing.cache))


def compiled_program(static: Static, mesh):
    """The jitted program (Inputs, questions) -> Played. mesh: None, or the mesh over which questions are sharded."""
    def program(inputs, questions):
        return play_compiled(static, inputs, questions)

    return jax.jit(over_rows(program, mesh, rows=("questions",)))


class CompiledRollout:
    """Call with (params, inputs, questions, noise, temperature, key, reranker) -> Played."""

    def __init__(self, program, tables, simulator: Simulator, mesh):
        """program: `compiled_program` or a `GrowingRollout`. mesh: None, or this host's."""
        self.program, self.tables, self.simulator, self.mesh = program, tables, simulator, mesh
        self._simulator_params = None  # placed by the first rollout

    def __call__(self, params, inputs, questions, noise, temperature, key, reranker=None) -> Played:
        simulator = self.simulator
        if self._simulator_params is None:
            self._simulator_params = for_decoding(simulator.params, simulator.config, self.mesh)
        question, answers = simulator.encode_questions(questions)
        asked = dict(inputs, question=question, answers=answers, question_key=question_keys(questions))
        return self.program(Inputs(params, self._simulator_params, self.tables, simulator.tables, noise, temperature, key,
                                   reranker), asked)
