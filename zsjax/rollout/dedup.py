"""The table of a rollout's requests: equal requests are one, written once and kept until the rollout ends.

A reply depends on (key, question, mode, query) alone, so all that make the same request read the same reply, however
late they ask. Rows hold numbers of requests. The simulator's slots take the numbers in the order of asking.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from zsjax.search.simulator.requests import hash_tokens
from zsjax.search.simulator.writing import Replies


@flax.struct.dataclass
class RequestTable:
    """Up to N different requests, in the order of asking. Counts are int32[1], one for each device."""

    question: Any  # int32[N], index of the rollout's question
    query: tuple[Any, Any]  # (int32[N, L], int32[N]) ragged tokens, 0 beyond the length
    noisy: Any  # bool[N], or bool[N, k] for a mode for each document
    fingerprint: Any  # uint32[N] of these three
    replies: Replies  # N
    written: Any  # bool[N], the reply is finished
    asked: Any  # int32[1], requests, equal ones counted again
    distinct: Any  # int32[1], different requests; their numbers are below it
    begun: Any  # int32[1], requests that the simulator has taken


def empty(size: int, env, simulator) -> RequestTable:
    """An empty table for `size` requests of an `Environment`'s rows to a `Simulator`."""
    k, zeros, none = env.num_documents, jnp.zeros(size, jnp.int32), jnp.zeros(1, jnp.int32)
    return RequestTable(
        question=zeros, query=(jnp.zeros((size, env.max_query_tokens), jnp.int32), zeros),
        noisy=jnp.zeros((size, k) if env.noise_per_document else size, bool), fingerprint=jnp.zeros(size, jnp.uint32),
        replies=Replies(tokens=jnp.zeros((size, k, simulator.max_document_tokens), jnp.int32),
                        lengths=jnp.zeros((size, k), jnp.int32), count=zeros),
        written=jnp.zeros(size, bool), asked=none, distinct=none, begun=none)


def ask(table: RequestTable, asks, question, query, noisy):
    """Enters requests.

    Args:
      asks: bool[B], which of the B requests are made.
      question, query, noisy: of B requests, as in the table.

    Returns:
      (RequestTable, int32[B] number of each request, N where none is made).
    """
    N, B, rows = len(table.written), len(asks), (question, query, noisy)
    entered = (table.question, table.query, table.noisy)
    fingerprint = hash_rows(rows)
    # Requests are found by fingerprint, then compared token for token. Where two share a fingerprint, the second one is
    # not found again and is written once more.
    alike = (fingerprint[:, None] == table.fingerprint) & (jnp.arange(N) < table.distinct)
    before = jnp.argmax(alike, axis=1)
    known = alike.any(axis=1) & _equal(rows, entered, before)
    first = jnp.argmax((fingerprint[:, None] == fingerprint) & asks, axis=1)  # of equal requests of this call
    first = jnp.where(_equal(rows, rows, first), first, jnp.arange(B))
    new = asks & ~known & (first == jnp.arange(B))
    number = table.distinct + jnp.cumsum(new, dtype=jnp.int32) - 1
    at = jnp.where(new, number, N)
    (question, query, noisy), fingerprint = jax.tree.map(
        lambda old, x: old.at[at].set(x, mode="drop"), (entered, table.fingerprint), (rows, fingerprint))
    number = jnp.where(known, before, number[first])
    return table.replace(
        question=question, query=query, noisy=noisy, fingerprint=fingerprint,
        asked=table.asked + asks.sum(dtype=jnp.int32), distinct=table.distinct + new.sum(dtype=jnp.int32),
    ), jnp.where(asks, number, N).astype(jnp.int32)


def begin_requests(table: RequestTable, free):
    """(RequestTable, number int32[S] of the next request for each free slot of bool[S], N where there is none)."""
    number = table.begun + jnp.cumsum(free, dtype=jnp.int32) - 1
    number = jnp.where(free & (number < table.distinct), number, table.written.shape[0])
    return table.replace(begun=jnp.minimum(table.begun + free.sum(dtype=jnp.int32), table.distinct)), number


def enter(table: RequestTable, number, replies: Replies) -> RequestTable:
    """Keeps the replies of S slots to requests int32[S]; numbers from N on are ignored."""
    kept = jax.tree.map(lambda old, x: old.at[number].set(x, mode="drop"), table.replies, replies)
    return table.replace(replies=kept, written=table.written.at[number].set(True, mode="drop"))


def hash_rows(requests):
    """uint32[B] hashes of a tree of arrays of B rows."""
    columns = jnp.concatenate([x.reshape(len(x), -1).astype(jnp.int32) for x in jax.tree.leaves(requests)], axis=1)
    return hash_tokens(columns, jnp.full(len(columns), columns.shape[1]))


def _equal(rows, others, which):
    """bool[B]: whether row i equals row which[i] of the others, token for token."""
    same = jax.tree.map(lambda x, y: (x == y[which]).reshape(len(x), -1).all(axis=1), rows, others)
    return jax.tree.reduce(jnp.logical_and, same)
