"""The searches of a rollout: equal ones are one request, written once, and remembered until the rollout has ended.

A reply depends on (key, question, mode, query) alone, so rows that ask the same, at the same time or much later, can read
the same one. Rows hold a request's number; the simulator's slots take the numbers in the order in which they were asked.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from zsjax.search.simulator.requests import hash_tokens
from zsjax.search.simulator.writing import Replies


@flax.struct.dataclass
class RequestTable:
    """Up to N different requests, in the order in which they were first asked. Counts are int32[1] (one a device)."""

    question: Any  # int32[N], which of the rollout's questions
    query: tuple[Any, Any]  # (int32[N, L], int32[N]) ragged tokens, 0 beyond the length
    noisy: Any  # bool[N], or bool[N, k] for a mode for each document
    fingerprint: Any  # uint32[N] of these three
    replies: Replies  # N
    written: Any  # bool[N], the reply is there
    asked: Any  # int32[1], searches, equal ones counted again
    distinct: Any  # int32[1], numbers that were given out: those below it are in use
    begun: Any  # int32[1], numbers that were given to the simulator


def empty(size: int, env, simulator) -> RequestTable:
    """Room for `size` requests of an `Environment`'s rows to a `Simulator`."""
    k, zeros, none = env.num_documents, jnp.zeros(size, jnp.int32), jnp.zeros(1, jnp.int32)
    return RequestTable(
        question=zeros, query=(jnp.zeros((size, env.max_query_tokens), jnp.int32), zeros),
        noisy=jnp.zeros((size, k) if env.noise_per_document else size, bool), fingerprint=jnp.zeros(size, jnp.uint32),
        replies=Replies(tokens=jnp.zeros((size, k, simulator.max_document_tokens), jnp.int32),
                        lengths=jnp.zeros((size, k), jnp.int32), count=zeros),
        written=jnp.zeros(size, bool), asked=none, distinct=none, begun=none)


def ask(table: RequestTable, asks, question, query, noisy):
    """Enters the searches of the rows that ask.

    Args:
      asks: bool[B].
      question, query, noisy: of B rows, as the table's.

    Returns:
      (RequestTable, number int32[B] of each row's request, N for rows that do not ask).
    """
    N, B, rows = len(table.written), len(asks), (question, query, noisy)
    entered = (table.question, table.query, table.noisy)
    fingerprint = fingerprints(rows)
    # Found by fingerprint and compared token for token; of two that differ under one fingerprint the second is just not
    # found again.
    alike = (fingerprint[:, None] == table.fingerprint) & (jnp.arange(N) < table.distinct)
    before = jnp.argmax(alike, axis=1)
    known = alike.any(axis=1) & _equal(rows, entered, before)
    first = jnp.argmax((fingerprint[:, None] == fingerprint) & asks, axis=1)  # of the rows that ask alike
    first = jnp.where(_equal(rows, rows, first), first, jnp.arange(B))
    new = asks & ~known & (first == jnp.arange(B))
    number = table.distinct + jnp.cumsum(new, dtype=jnp.int32) - 1
    at = jnp.where(new, number, N)
    put = lambda all_of_them, x: all_of_them.at[at].set(x, mode="drop")
    question, query, noisy = jax.tree.map(put, entered, rows)
    number = jnp.where(known, before, number[first])
    return table.replace(
        question=question, query=query, noisy=noisy, fingerprint=put(table.fingerprint, fingerprint),
        asked=table.asked + asks.sum(dtype=jnp.int32), distinct=table.distinct + new.sum(dtype=jnp.int32),
    ), jnp.where(asks, number, N).astype(jnp.int32)


def begin(table: RequestTable, free):
    """(RequestTable, number int32[S] of the next request for each free slot of bool[S], N where there is none)."""
    number = table.begun + jnp.cumsum(free, dtype=jnp.int32) - 1
    number = jnp.where(free & (number < table.distinct), number, table.written.shape[0])
    return table.replace(begun=jnp.minimum(table.begun + free.sum(dtype=jnp.int32), table.distinct)), number


def enter(table: RequestTable, number, replies: Replies) -> RequestTable:
    """Keeps the replies of S slots to the requests int32[S]; N and more: of none."""
    put = lambda all_of_them, x: all_of_them.at[number].set(x, mode="drop")
    return table.replace(replies=jax.tree.map(put, table.replies, replies),
                          written=table.written.at[number].set(True, mode="drop"))


def fingerprints(requests):
    """uint32[B] of a tree of arrays of B rows: equal rows have equal ones, different rows hardly ever."""
    columns = jnp.concatenate([x.reshape(len(x), -1).astype(jnp.int32) for x in jax.tree.leaves(requests)], axis=1)
    return hash_tokens(columns, jnp.full(len(columns), columns.shape[1]))


def _equal(rows, others, which):
    """bool[B]: whether row i equals number which[i] of the others, token for token."""
    same = lambda x, y: (x == y[which]).reshape(len(x), -1).all(axis=1)
    return jax.tree.reduce(jnp.logical_and, jax.tree.map(same, rows, others))
