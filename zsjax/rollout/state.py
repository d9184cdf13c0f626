"""The pieces of a multi-turn rollout: think, search, read, answer, for a batch of rows, on the device.

One turn of a row is one generation. It ends at the closing tag of an action (`rollout/actions.py`), EOS or its budget:

  complete answer            -> ANSWERED
  complete, non-empty query  -> a search: `\\n<information>\\n` + documents + `</information>\\n` are appended
  EOS                        -> ENDED_WITHOUT_ANSWER
  anything else              -> an invalid action: the hint is appended

Searches and invalid actions both use up a turn. After `max_turns` of them one last generation may only answer: whatever
else it does ends the row as OUT_OF_TURNS and is not run. A row whose context is full is OUT_OF_TOKENS.

The pieces (`read_prompts`, `refill`, `generate_turn`, `queries.queries`, `insert`) are pure functions over `RolloutState`.
`zsjax.rollout.compiled` chains them with the simulator in one program; `zsjax.rollout.host` drives them from the host.
Tokens go in and come out: nothing is decoded and encoded again. Roles and log-probs are written when a token is written.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from zsjax import types
from zsjax.models.cache import KVCache, cache_dtype, copy_rows, init_cache
from zsjax.models.decoder import DecoderConfig, extend, logits_of
from zsjax.rollout import actions as table
from zsjax.rollout import schedule
from zsjax.rollout.actions import ACTIONS, DOCUMENTS, HINT, NOTHING, Action
from zsjax.rollout.draws import draw_tokens
from zsjax.rollout.policy_prompt import PolicyTemplate
from zsjax.rollout.queries import separators
from zsjax.sampling.prefill import prefill
from zsjax.sampling.splice import append, concatenate
from zsjax.sampling.tags import TagAutomaton
from zsjax.search.simulator.writing import Replies

PREFILL_CHUNK = 128


@dataclasses.dataclass(frozen=True, eq=False)
class Environment:
    """What is fixed for a rollout: shapes, budgets and the texts the environment inserts. Counts are in tokens."""

    policy: DecoderConfig
    max_turns: int
    max_turn_tokens: int
    max_tokens: int
    max_query_tokens: int
    num_documents: int
    max_document_tokens: int
    information_open: np.ndarray
    information_close: np.ndarray
    hint: np.ndarray
    actions: tuple[Action, ...] = ACTIONS
    group_size: int = 1
    prefill_batch: int | None = None  # rows read at a time where prompts and documents are read; None: all
    noise_per_document: bool = False
    cache_dtype: str = "model"  # of the policy's cache: the dtype of its activations, or "int8"
    sampler: Callable = draw_tokens  # (logits, state, key, temperature) -> (tokens, log-probs); tests pass their own

    @property
    def max_queries(self) -> int:
        """Q, the most queries of one action."""
        return max(action.queries for action in self.actions)

    @property
    def inserted_documents(self) -> int:
        """The most documents that one action is shown."""
        return self.max_queries * self.num_documents


def environment(policy_config, tokenizer, config, group_size: int = 1, sampler=draw_tokens) -> Environment:
    """What a run's config fixes for its rollouts; texts in the policy's tokens."""
    template = PolicyTemplate.load(config.prompts.policy)
    encode = lambda text: np.array(tokenizer.encode(text), np.int32)
    return Environment(
        policy=policy_config.for_tokenizer(tokenizer),
        max_turns=config.rollout.max_turns,
        max_turn_tokens=config.rollout.max_turn_tokens,
        max_tokens=config.rollout.max_tokens,
        max_query_tokens=config.search.max_query_tokens,
        num_documents=config.search.num_documents,
        max_document_tokens=config.search.max_document_tokens,
        information_open=encode(template.information_open),
        information_close=encode(template.information_close),
        hint=encode(template.hint),
        actions=table.load_actions(config.rollout.actions),
        group_size=group_size,
        prefill_batch=config.rollout.prefill_batch or None,
        noise_per_document=config.search.noise_per == "document",
        cache_dtype=config.policy.cache_dtype,
        sampler=sampler,
    )


@flax.struct.dataclass
class Tables:
    """Per-token facts of the policy's vocabulary."""

    automaton: TagAutomaton
    eos: Any  # bool[V]
    separates: Any = None  # bool[V], the token holds a separator of queries; None: no action has several


@flax.struct.dataclass
class RolloutState:
    """B rows under way. Everything an `Episodes` has, and the policy's view of it."""

    tokens: Any  # int32[B, T]
    roles: Any  # int8[B, T]
    behavior_logprobs: Any  # float32[B, T]
    length: Any  # int32[B]
    cache: KVCache  # holds the row's tokens up to `length`
    hidden: Any  # [B, D], at the row's last token
    tag_state: Any  # int32[B], of the automaton, since the generation began
    turn_start: Any  # int32[B], where the generation began
    opened: Any  # int32[B, actions], position of the token that completed the last opening tag of this generation, or -1
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


def tables(tokenizer, config: DecoderConfig, actions: Sequence[Action] = ACTIONS) -> Tables:
    """The tables of a tokenizer for a model with `config.vocab_size` embedding rows."""
    eos = jnp.zeros(config.vocab_size, bool).at[jnp.array(list(tokenizer.eos_ids), jnp.int32)].set(True)
    several = any(action.queries > 1 for action in actions)
    return Tables(automaton=TagAutomaton.from_tokenizer(tokenizer, table.tags(actions)), eos=eos,
                  separates=separators(tokenizer, config.vocab_size) if several else None)


@flax.struct.dataclass
class Prompts:
    """Q prompts that were read once; `refill` puts an episode of one of them into a row."""

    tokens: Any  # int32[Q, P]
    lengths: Any  # int32[Q]
    turn: Any  # int32[Q], turns that were taken in the prompt already
    cache: KVCache  # of P slots
    hidden: Any  # [Q, D], at the prompt's last token
    group_id: Any  # int32[Q]


def read_prompts(params, env: Environment, inputs) -> Prompts:
    """Reads prompts, each once.

    Args:
      inputs: dict with prompts int32[Q, P] right-padded, prompt_lengths int32[Q], turn int32[Q] (turns that were taken in
        the prompt already: they count against max_turns) and group_id int32[Q], which names the questions in every random
        stream: ids must differ within a step.
    """
    prompts, lengths = inputs["prompts"], inputs["prompt_lengths"]
    (Q, P), dtype = prompts.shape, jnp.dtype(env.policy.dtype)
    cache = init_cache(env.policy, Q, P, cache_dtype(env.policy, env.cache_dtype))
    hidden, cache = prefill(params, env.policy, prompts, lengths, cache,
                            jnp.zeros((Q, env.policy.embed_dim), dtype), chunk=PREFILL_CHUNK, batch=env.prefill_batch)
    return Prompts(tokens=prompts, lengths=lengths, turn=inputs["turn"], cache=cache, hidden=hidden,
                   group_id=inputs["group_id"])


def empty_rows(env: Environment, rows: int, capacity: int | None = None) -> RolloutState:
    """Rows that have nothing to do: their status is not RUNNING. capacity: slots of their cache; None: max_tokens."""
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
      rows: int32[C] different rows; those from B on are ignored.
      episode: int32[C], 0 .. Q * group_size - 1; those of a question stand next to each other. An episode's id is
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
    put = lambda x, y: x.at[rows].set(y, mode="drop", unique_indices=True)
    cache = copy_rows(state.cache, rows, prompts.cache, question)
    names = [f.name for f in dataclasses.fields(RolloutState) if f.name not in ("cache", "steps")]
    return state.replace(cache=cache, **{name: put(getattr(state, name), getattr(fresh, name)) for name in names})


def generating(state: RolloutState):
    """bool[B]: rows whose next token is the policy's."""
    return schedule.generating(state.status, state.waits_for)


def outgrows(env: Environment, state: RolloutState):
    """bool[], whether a row's next token, or what is inserted next, might not fit into the slots of its cache."""
    next = jnp.where(state.waits_for == NOTHING, 1, _insertion_size(env, env.inserted_documents, env.max_document_tokens))
    needed = jnp.minimum(state.length + next, env.max_tokens)
    return ((state.status == types.RUNNING) & (needed > state.cache.capacity)).any()


def _insertion_size(env: Environment, k: int, N: int) -> int:
    """Tokens that k documents of N tokens, or a hint, take at most."""
    return max(len(env.information_open) + k * N + len(env.information_close), len(env.hint))


def generate_turn(params, env: Environment, tables: Tables, state: RolloutState, key, temperature,
                  goes_on=lambda state: True) -> RolloutState:
    """Samples until every row has ended or waits for documents or a hint, or until `goes_on(state)` is False."""
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
        invalid = ~complete & ~eos & (spent | closes)
        last_turn = s.turn >= env.max_turns
        status = jnp.select(
            [complete & (rule.ends != types.RUNNING), eos, (complete | invalid) & last_turn, length >= T],
            [rule.ends, types.ENDED_WITHOUT_ANSWER, types.OUT_OF_TURNS, types.OUT_OF_TOKENS], types.RUNNING)
        waits_for = jnp.select([status != types.RUNNING, complete, invalid], [NOTHING, rule.waits_for, HINT], NOTHING)

        # Rows that have just ended are not read back: nobody looks at what would follow.
        read = alive & (status == types.RUNNING)
        states, cache = extend(params, env.policy, token[:, None], read.astype(jnp.int32), s.cache)
        keep = lambda new, old: jnp.where(alive, new.astype(old.dtype), old)
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

    return jax.lax.while_loop(lambda s: generating(s).any() & goes_on(s), step, state)


def insert(params, env: Environment, state: RolloutState, replies: Replies, asked, noisy, served) -> RolloutState:
    """Answers waiting rows: documents or the hint are written behind them and read into the policy's cache.

    Args:
      replies: of B * Q requests, in the order of `queries.queries`; count -1: the search failed.
      asked: bool[B * Q], which of the requests the rows made.
      noisy: bool[B, num_documents], recorded.
      served: bool[B], which of the waiting rows.

    Returns:
      The rows, generating again, or OUT_OF_TOKENS where what was found does not fit.
    """
    B, T, M, k, N = len(state.length), env.max_tokens, env.max_turns, env.inserted_documents, replies.tokens.shape[2]
    documents = replies.tokens.reshape(B, k, N)
    document_lengths = jnp.where(asked[:, None], replies.lengths, 0).reshape(B, k)
    rows = jnp.arange(B)
    searched, hinted = (state.waits_for >= DOCUMENTS) & served, (state.waits_for == HINT) & served
    size = _insertion_size(env, k, N)
    lines = [(documents[:, i], document_lengths[:, i]) for i in range(k)]
    text, text_length = concatenate([env.information_open, *lines, env.information_close], size=size)
    hint = np.pad(env.hint, (0, size - len(env.hint)))
    text = jnp.where(searched[:, None], text, hint)
    text_length = jnp.select([searched, hinted], [text_length, len(env.hint)], 0)
    at = jnp.arange(size)
    documents_length = document_lengths.sum(axis=1)
    is_document = (at >= len(env.information_open)) & (at < len(env.information_open) + documents_length[:, None])
    roles = jnp.where(searched[:, None] & is_document, types.DOCUMENT, types.TEMPLATE).astype(jnp.int8)

    waiting = searched | hinted
    fits = state.length + text_length < T  # and one token of the policy behind it
    added = jnp.where(waiting & fits, text_length, 0)
    hidden, cache = prefill(params, env.policy, text, added, state.cache, state.hidden, chunk=PREFILL_CHUNK,
                            batch=env.prefill_batch)
    turn = jnp.where(waiting, state.turn, M)  # writes of other rows are dropped
    run = jnp.where(searched, turn, M)
    query_start = state.opened[rows, jnp.maximum(state.waits_for - DOCUMENTS, 0)]
    documents_start = state.length + len(env.information_open)
    asked, count = asked.reshape(B, -1), jnp.where(asked, replies.count, 0).reshape(B, -1)
    found, wanted = jnp.maximum(count, 0).sum(axis=1), env.num_documents * asked.sum(axis=1)
    status = jnp.select(
        [hinted, found >= wanted, found > 0, (count < 0).any(axis=1)],
        [types.INVALID_ACTION, types.SEARCH_OK, types.SEARCH_SHORT, types.SEARCH_FAILED], types.SEARCH_EMPTY)
    span = lambda start, stop: jnp.stack([start, stop], axis=1)
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
        noisy=state.noisy.at[rows, run].set(noisy, mode="drop"),
        search_status=state.search_status.at[rows, turn].set(status.astype(jnp.int8), mode="drop"),
        query_span=state.query_span.at[rows, run].set(span(query_start, state.length), mode="drop"),
        documents_span=state.documents_span.at[rows, jnp.where(fits, run, M)].set(
            span(documents_start, documents_start + documents_length), mode="drop"),
    )


def finish(state: RolloutState) -> types.Episodes:
    """The rows as `Episodes`."""
    names = [field.name for field in dataclasses.fields(types.Episodes)]
    return types.Episodes(**{name: getattr(state, name) for name in names})
