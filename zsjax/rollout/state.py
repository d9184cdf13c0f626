"""The pieces of a multi-turn rollout, for a batch of rows on the device.

One turn of a row is one generation. It ends at the closing tag of an action (`rollout/actions.py`), at EOS, or when
its budget is spent:

  complete answer            -> ANSWERED
  complete, non-empty query  -> a search: `\\n<information>\\n` + documents + `</information>\\n` are appended
  EOS                        -> ENDED_WITHOUT_ANSWER
  anything else              -> an invalid action: the hint is appended

Searches and invalid actions both use up a turn. After `max_turns` of them, one last generation may only answer.
Anything else ends the row as OUT_OF_TURNS, and a search is not run. A row whose context is full ends as OUT_OF_TOKENS.

The pieces (`read_prompts`, `refill`, `generate_turn`, `queries.queries`, `insert`) are pure functions over
`RolloutState`. `zsjax.rollout.compiled` chains them with the simulator in one program, and `zsjax.rollout.host` calls
them from the host. Tokens go in and tokens come out; the host never decodes and encodes them again. Roles and
log-probs are written when a token is written.
"""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from zsjax import types
from zsjax.models.cache import KVCache, cache_dtype, copy_rows, init_cache
from zsjax.models.decoder import extend, logits_of
from zsjax.rollout import actions as table
from zsjax.rollout import schedule
from zsjax.rollout.actions import DOCUMENTS, HINT, NOTHING
from zsjax.rollout.environment import Environment, PolicyTables
from zsjax.sampling.prefill import prefill
from zsjax.sampling.splice import append, concatenate
from zsjax.search.simulator.writing import Replies

PREFILL_CHUNK = 128


@flax.struct.dataclass
class RolloutState:
    """B unfinished rows: the fields of `Episodes`, and the policy's state."""

    tokens: Any  # int32[B, T]
    roles: Any  # int8[B, T]
    behavior_logprobs: Any  # float32[B, T]
    length: Any  # int32[B]
    cache: KVCache  # holds the row's tokens up to `length`
    hidden: Any  # [B, D], at the row's last token
    tag_state: Any  # int32[B], state of the automaton; 0 where a generation begins
    turn_start: Any  # int32[B], where the current generation began
    opened: Any  # int32[B, actions], where this generation completed each opening tag last, or -1
    waits_for: Any  # int8[B], NOTHING, HINT, or DOCUMENTS + the action's place in the table
    turn: Any  # int32[B], searches and invalid actions so far
    status: Any  # int8[B]
    num_searches: Any  # int32[B]
    noisy: Any  # bool[B, M, k]
    search_status: Any  # int8[B, M]
    query_span: Any  # int32[B, M, 2]
    documents_span: Any  # int32[B, M, 2]
    episode_id: Any  # int32[B]
    group_id: Any  # int32[B]
    steps: Any  # int32[1], decode steps so far (one number a device)


@flax.struct.dataclass
class Prompts:
    """Q prompts with their cache: each is read once, and `refill` copies it into rows."""

    tokens: Any  # int32[Q, P]
    lengths: Any  # int32[Q]
    turn: Any  # int32[Q], turns that were taken in the prompt already
    cache: KVCache  # of P slots
    hidden: Any  # [Q, D], at the prompt's last token
    group_id: Any  # int32[Q]


def read_prompts(params, env: Environment, inputs) -> Prompts:
    """Reads each prompt once.

    Args:
      inputs: dict with prompts int32[Q, P], right-padded; prompt_lengths int32[Q]; turn int32[Q], the turns that a
        prompt already contains, which count against max_turns; and group_id int32[Q], which names the questions in
        every random stream. Group ids must differ within a step.
    """
    prompts, lengths = inputs["prompts"], inputs["prompt_lengths"]
    (Q, P), dtype = prompts.shape, jnp.dtype(env.policy.dtype)
    cache = init_cache(env.policy, Q, P, cache_dtype(env.policy, env.cache_dtype))
    hidden, cache = prefill(params, env.policy, prompts, lengths, cache,
                            jnp.zeros((Q, env.policy.embed_dim), dtype), chunk=PREFILL_CHUNK, batch=env.prefill_batch)
    return Prompts(tokens=prompts, lengths=lengths, turn=inputs["turn"], cache=cache, hidden=hidden,
                   group_id=inputs["group_id"])


def empty_rows(env: Environment, rows: int, capacity: int | None = None) -> RolloutState:
    """Rows without an episode: their status is not RUNNING. capacity: slots of their cache; None: max_tokens."""
    T, M, k, dtype = env.max_tokens, env.max_turns, env.num_documents, jnp.dtype(env.policy.dtype)
    zeros = jnp.zeros(rows, jnp.int32)
    return RolloutState(
        tokens=jnp.zeros((rows, T), jnp.int32),
        roles=jnp.zeros((rows, T), jnp.int8),
        behavior_logprobs=jnp.zeros((rows, T), jnp.float32),
        length=zeros,
        cache=init_cache(env.policy, rows, capacity or T, cache_dtype(env.policy, env.cache_dtype)),
        hidden=jnp.zeros((rows, env.policy.embed_dim), dtype),
        tag_state=zeros,
        turn_start=zeros,
        opened=jnp.full((rows, len(env.actions)), -1, jnp.int32),
        waits_for=jnp.zeros(rows, jnp.int8),
        turn=zeros,
        status=jnp.full(rows, types.OUT_OF_TURNS, jnp.int8),
        num_searches=zeros,
        noisy=jnp.zeros((rows, M, k), bool),
        search_status=jnp.zeros((rows, M), jnp.int8),
        query_span=jnp.zeros((rows, M, 2), jnp.int32),
        documents_span=jnp.zeros((rows, M, 2), jnp.int32),
        episode_id=zeros,
        group_id=zeros,
        steps=jnp.zeros(1, jnp.int32),
    )


def refill(env: Environment, state: RolloutState, prompts: Prompts, rows, episode) -> RolloutState:
    """Begins episodes in rows.

    Args:
      rows: int32[C], different rows; numbers from B on are ignored.
      episode: int32[C], 0 .. Q * group_size - 1. The episodes of a question are neighbours. An episode's id is
        group_id * group_size + its place in the group.
    """
    G, T = env.group_size, env.max_tokens
    question, C = episode // G, rows.shape[0]
    P = prompts.tokens.shape[1]
    length = prompts.lengths[question]
    group_id = prompts.group_id[question]
    is_prompt = jnp.arange(T) < length[:, None]
    tokens = jnp.where(is_prompt, jnp.pad(prompts.tokens[question], ((0, 0), (0, T - P))), 0)
    fresh = empty_rows(env, C).replace(
        tokens=tokens, roles=jnp.where(is_prompt, types.PROMPT, types.PAD).astype(jnp.int8), length=length,
        hidden=prompts.hidden[question], turn_start=length, turn=prompts.turn[question],
        status=jnp.full(C, types.RUNNING, jnp.int8), episode_id=group_id * G + episode % G, group_id=group_id)

    def put(name):
        return getattr(state, name).at[rows].set(getattr(fresh, name), mode="drop", unique_indices=True)

    cache = copy_rows(state.cache, rows, prompts.cache, question)
    names = [f.name for f in dataclasses.fields(RolloutState) if f.name not in ("cache", "steps")]
    return state.replace(cache=cache, **{name: put(name) for name in names})


def generating(state: RolloutState):
    """bool[B]: rows whose next token is the policy's."""
    return schedule.is_generating(state.status, state.waits_for)


def outgrows(env: Environment, state: RolloutState):
    """bool[], whether the next token of a row, or its next insertion, might not fit into its cache."""
    insertion = _insertion_size(env, env.max_inserted_documents, env.max_document_tokens)
    next = jnp.where(state.waits_for == NOTHING, 1, insertion)
    needed = jnp.minimum(state.length + next, env.max_tokens)
    return ((state.status == types.RUNNING) & (needed > state.cache.capacity)).any()


def _insertion_size(env: Environment, k: int, N: int) -> int:
    """The most tokens of an insertion: k documents of N tokens, or the hint."""
    return max(len(env.information_open) + k * N + len(env.information_close), len(env.hint))


def generate_turn(params, env: Environment, tables: PolicyTables, state: RolloutState, key, temperature,
                  goes_on=None) -> RolloutState:
    """Samples until every row has ended or waits for documents or a hint, or until `goes_on(state)` is False.

    goes_on: state -> bool[]; None: always True.
    """
    T, rows = env.max_tokens, jnp.arange(state.length.shape[0])
    rules = jnp.array(table.rules(env.actions))

    def step(s: RolloutState) -> RolloutState:
        alive = generating(s)
        token, logprob = env.sampler(logits_of(params, env.policy, s.hidden), s, key, temperature)
        at = jnp.where(alive, s.length, T)  # writes of other rows are dropped
        tag_state, event = tables.automaton.step(s.tag_state, token)
        rule = table.Rule(*rules[event].T)
        closes, action = rule.closes > 0, rule.action[:, None] == jnp.arange(s.opened.shape[1])
        opened = jnp.where(action & (rule.opens > 0)[:, None], s.length[:, None], s.opened)
        length = s.length + 1

        complete = closes & (action & (opened >= 0)).any(axis=1)
        eos = tables.eos[token]
        spent = length - s.turn_start >= env.max_turn_tokens
        writes_on = complete & (rule.waits_for == NOTHING) & (rule.ends == types.RUNNING)  # behind a note, for example
        invalid = ~eos & jnp.where(complete, writes_on & spent, spent | closes)
        last_turn = s.turn >= env.max_turns
        status = jnp.select(
            [complete & (rule.ends != types.RUNNING), eos, ((complete & ~writes_on) | invalid) & last_turn, length >= T],
            [rule.ends, types.ENDED_WITHOUT_ANSWER, types.OUT_OF_TURNS, types.OUT_OF_TOKENS], types.RUNNING)
        waits_for = jnp.select([status != types.RUNNING, invalid, complete], [NOTHING, HINT, rule.waits_for], NOTHING)

        # A row that has just ended is not read back: it samples no further token.
        read = alive & (status == types.RUNNING)
        states, cache = extend(params, env.policy, token[:, None], read.astype(jnp.int32), s.cache)

        def keep(new, old):
            return jnp.where(alive, new.astype(old.dtype), old)

        return s.replace(
            tokens=s.tokens.at[rows, at].set(token, mode="drop"),
            roles=s.roles.at[rows, at].set(types.POLICY, mode="drop"),
            behavior_logprobs=s.behavior_logprobs.at[rows, at].set(logprob, mode="drop"),
            length=keep(length, s.length),
            cache=cache,
            hidden=jnp.where(read[:, None], states[:, 0], s.hidden),
            tag_state=keep(tag_state, s.tag_state),
            opened=jnp.where(alive[:, None], opened, s.opened),
            waits_for=keep(waits_for, s.waits_for),
            status=keep(status, s.status),
            steps=s.steps + 1,
        )

    return jax.lax.while_loop(lambda s: generating(s).any() & (goes_on is None or goes_on(s)), step, state)


def insert(params, env: Environment, state: RolloutState, replies: Replies, asked, noisy, served) -> RolloutState:
    """Answers waiting rows: appends documents or the hint, and reads them into the policy's cache.

    Args:
      replies: of B * Q requests, in the order of `queries.queries`; count -1: the search failed.
      asked: bool[B * Q], which of the requests the rows made.
      noisy: bool[B, num_documents], recorded.
      served: bool[B], which of the waiting rows.

    Returns:
      The rows, which sample again, or OUT_OF_TOKENS where the insertion does not fit.
    """
    B, T, M, k, N = len(state.length), env.max_tokens, env.max_turns, env.max_inserted_documents, replies.tokens.shape[2]
    rows = jnp.arange(B)
    searched, hinted = (state.waits_for >= DOCUMENTS) & served, (state.waits_for == HINT) & served
    waiting = searched | hinted
    documents, lengths = replies.tokens.reshape(B, k, N), jnp.where(asked[:, None], replies.lengths, 0).reshape(B, k)
    documents_length = lengths.sum(axis=1)
    text, text_length, roles = _insertion(env, documents, lengths, searched, hinted)
    fits = state.length + text_length < T  # with one token of the policy behind it
    added = jnp.where(waiting & fits, text_length, 0)
    hidden, cache = prefill(params, env.policy, text, added, state.cache, state.hidden, chunk=PREFILL_CHUNK,
                            batch=env.prefill_batch)
    turn = jnp.where(waiting, state.turn, M)  # writes of other rows are dropped
    searched_turn = jnp.where(searched, turn, M)
    query_start = state.opened[rows, jnp.maximum(state.waits_for - DOCUMENTS, 0)]
    documents_start = state.length + len(env.information_open)
    search_status = _search_status(env, asked.reshape(B, -1), replies.count.reshape(B, -1), hinted)
    query_span = jnp.stack([query_start, state.length], axis=1)
    documents_span = jnp.stack([documents_start, documents_start + documents_length], axis=1)
    length = state.length + added
    return state.replace(
        tokens=append(state.tokens, state.length, text, added),
        roles=append(state.roles, state.length, roles, added),
        length=length,
        cache=cache,
        hidden=hidden,
        tag_state=jnp.where(waiting, 0, state.tag_state),
        turn_start=jnp.where(waiting, length, state.turn_start),
        opened=jnp.where(waiting[:, None], -1, state.opened),
        waits_for=jnp.where(waiting, NOTHING, state.waits_for).astype(jnp.int8),
        turn=state.turn + waiting,
        status=jnp.where(waiting & ~fits, types.OUT_OF_TOKENS, state.status).astype(jnp.int8),
        num_searches=state.num_searches + searched,
        noisy=state.noisy.at[rows, searched_turn].set(noisy, mode="drop"),
        search_status=state.search_status.at[rows, turn].set(search_status, mode="drop"),
        query_span=state.query_span.at[rows, searched_turn].set(query_span, mode="drop"),
        documents_span=state.documents_span.at[rows, jnp.where(fits, searched_turn, M)].set(documents_span,
                                                                                           mode="drop"),
    )


def _insertion(env: Environment, documents, lengths, searched, hinted):
    """(text int32[B, S], length int32[B], roles int8[B, S]) of what each row is given; length 0 where it is nothing.

    documents, lengths: int32[B, k, N], int32[B, k]. searched, hinted: bool[B], rows that get documents, and the hint.
    """
    _, k, N = documents.shape
    size, begin = _insertion_size(env, k, N), len(env.information_open)
    lines = [(documents[:, i], lengths[:, i]) for i in range(k)]
    text, length = concatenate([env.information_open, *lines, env.information_close], size=size)
    text = jnp.where(searched[:, None], text, np.pad(env.hint, (0, size - len(env.hint))))
    length = jnp.select([searched, hinted], [length, len(env.hint)], 0)
    at = jnp.arange(size)
    is_document = (at >= begin) & (at < begin + lengths.sum(axis=1)[:, None])
    return text, length, jnp.where(searched[:, None] & is_document, types.DOCUMENT, types.TEMPLATE).astype(jnp.int8)


def _search_status(env: Environment, asked, count, hinted):
    """int8[B], how the searches of each row's turn went. asked, count: bool[B, Q], int32[B, Q], see `insert`."""
    count = jnp.where(asked, count, 0)
    found, wanted = jnp.maximum(count, 0).sum(axis=1), env.num_documents * asked.sum(axis=1)
    status = jnp.select(
        [hinted, found >= wanted, found > 0, (count < 0).any(axis=1)],
        [types.INVALID_ACTION, types.SEARCH_OK, types.SEARCH_SHORT, types.SEARCH_FAILED], types.SEARCH_EMPTY)
    return status.astype(jnp.int8)


def finish(state: RolloutState) -> types.Episodes:
    """The rows as `Episodes`."""
    names = [field.name for field in dataclasses.fields(types.Episodes)]
    return types.Episodes(**{name: getattr(state, name) for name in names})
