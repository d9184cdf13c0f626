"""From generations to queries: what the actions that end them ask for, in the policy's tokens, on the device."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from zsjax.rollout.actions import DOCUMENTS, HINT, Action
from zsjax.sampling.splice import take_span
from zsjax.sampling.tags import TagAutomaton, extract


def cut_text(automaton: TagAutomaton, actions: Sequence[Action], tokens, lengths, *, size: int):
    """The text of the asking action with which a generation ends.

    Args:
      automaton: of `actions.tags(actions)`.
      tokens: int32[B, N], a generation each, with lengths int32[B].
      size: tokens per returned row; a longer text is cut at its end.

    Returns:
      (int32[B, size], 0 beyond the length; int32[B]); length 0 where no action asks or its text is blank.
    """
    texts = [extract(automaton, tokens, lengths, open_tag=2 * i, close_tag=2 * i + 1, size=size)
             for i, action in enumerate(actions) if action.asks]
    # A generation ends with one closing tag: at most one of the texts has a length.
    return jax.tree.map(lambda *x: functools.reduce(jnp.add, x), *texts)


def queries(env, tables, state):
    """The requests of the rows that wait for documents. A row that asks for nothing becomes an invalid action.

    Returns:
      (state, (query int32[B * Q, max_query_tokens], lengths int32[B * Q])). Request r * Q + q is query q of row r, with
      Q = env.max_queries. Its length is 0 where the row asks for less.
    """
    generation, length = take_span(state.tokens, state.turn_start, state.length, size=env.max_turn_tokens)
    if env.max_queries > 1:
        most = jnp.array([action.queries for action in env.actions])[jnp.maximum(state.waits_for - DOCUMENTS, 0)]
        text, text_length = cut_text(tables.automaton, env.actions, generation, length, size=env.max_turn_tokens)
        query, query_length = split_queries(text, text_length, most, tables, env.max_queries, size=env.max_query_tokens)
    else:
        query, query_length = cut_text(tables.automaton, env.actions, generation, length, size=env.max_query_tokens)
    asks = state.waits_for >= DOCUMENTS
    blank = query_length.reshape(len(asks), -1).sum(axis=1) == 0
    size = jnp.where(jnp.repeat(asks, env.max_queries), query_length, 0)
    waits_for = jnp.where(asks & blank, HINT, state.waits_for).astype(jnp.int8)
    return state.replace(waits_for=waits_for), (jnp.where(size[:, None] > 0, query, 0), size)


def split_queries(text, lengths, most, tables, Q: int, *, size: int):
    """Cuts texts at the tokens that hold a separator.

    Args:
      text: int32[B, N], with lengths int32[B].
      most: int32[B], queries of each text, at most Q; a text of one query is not cut.
      tables: `environment.PolicyTables`, with `separates`.
      size: tokens of a query; a longer one is cut at its end.

    Returns:
      (int32[B * Q, size], int32[B * Q]); length 0 for a blank query.
    """
    B, at = len(text), jnp.arange(text.shape[1])
    inside = at < lengths[:, None]
    cuts = tables.separates[text] & inside & (most > 1)[:, None]
    place = jnp.cumsum(cuts, axis=1)
    start = jax.lax.cummax(jnp.where(cuts, at + 1, 0), axis=1)
    kept = inside & ~cuts & (place < most[:, None]) & (at - start < size)
    each, place = jnp.arange(B)[:, None], jnp.where(kept, place, Q)  # what is not kept is dropped
    query = jnp.zeros((B, Q, size), text.dtype).at[each, place, at - start].set(text, mode="drop")
    count = jnp.zeros((B, Q), jnp.int32)
    length = count.at[each, place].add(1, mode="drop")
    words = count.at[each, place].add((~tables.automaton.blank[text]).astype(jnp.int32), mode="drop")
    return query.reshape(B * Q, size), jnp.where(words > 0, length, 0).reshape(B * Q)
