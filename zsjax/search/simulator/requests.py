"""The requests of a simulator, and the keys of their draws: equal requests get equal documents."""

import zlib
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from zsjax.errors import InputError

REVEAL_GOLD = ("always", "on_target", "useful", "useful_on_target", "never")


@flax.struct.dataclass
class Requests:
    """B requests, in tokens of the simulator's vocabulary.

    Attributes:
      question, answers, query: (int32[B, N], int32[B]) ragged tokens.
      noisy: bool[B], or bool[B, k] for a mode for each document.
      question_key: uint32[B], names the question in the random stream.
      active: bool[B]; the other rows only fill the shape.
    """

    question: tuple[Any, Any]
    answers: tuple[Any, Any]
    query: tuple[Any, Any]
    noisy: Any
    question_key: Any
    active: Any


def hash_tokens(tokens, lengths):
    """uint32[B] hashes of the first lengths[b] tokens of int32[B, N]."""
    tokens = jnp.where(jnp.arange(tokens.shape[1]) < lengths[:, None], tokens + 1, 0).astype(jnp.uint32)

    def step(h, token):
        mixed = (h ^ token) * jnp.uint32(16777619)  # FNV-1a over tokens
        return jnp.where(token > 0, mixed ^ (mixed >> 15), h), None

    return jax.lax.scan(step, jnp.full(tokens.shape[0], 2166136261, jnp.uint32), tokens.T)[0]


def request_keys(key, requests: Requests):
    """A key for each request, from (key, question, mode, query)."""
    fold = jax.vmap(jax.random.fold_in)
    keys = jax.vmap(lambda q: jax.random.fold_in(key, q))(requests.question_key)
    keys = fold(keys, requests.noisy.astype(jnp.uint32))
    return fold(keys, hash_tokens(*requests.query))


def on_target(requests: Requests, blank):
    """bool[B]: whether at least half of the query's tokens, without blank ones (bool[V]), are in the question."""
    (query, query_length), (question, question_length) = requests.query, requests.question
    asked = (jnp.arange(query.shape[1]) < query_length[:, None]) & ~blank[query]
    in_question = jnp.arange(question.shape[1]) < question_length[:, None]
    hit = ((query[:, :, None] == question[:, None, :]) & in_question[:, None, :]).any(axis=2) & asked
    return (asked.sum(axis=1) > 0) & (2 * hit.sum(axis=1) >= asked.sum(axis=1))


def gold_shown(reveal_gold: str, noisy, targeted):
    """Whether a request's prompt holds the gold answers: bool, or bool[B] where noisy or targeted is.

    Args:
      reveal_gold: one of REVEAL_GOLD. "useful": to requests for useful documents; "on_target": where the query asks for
        what the question names; "useful_on_target": where both hold.
      noisy: the request's mode.
      targeted: whether the query is on target.
    """
    of_mode = (noisy ^ True) | (not reveal_gold.startswith("useful"))
    of_query = targeted | (not reveal_gold.endswith("on_target"))
    return of_mode & of_query & (reveal_gold != "never")


def check_reveal_gold(reveal_gold: str):
    """Raises InputError unless it is one of REVEAL_GOLD."""
    if reveal_gold not in REVEAL_GOLD:
        raise InputError(f"reveal_gold={reveal_gold!r} is unknown; use {', '.join(map(repr, REVEAL_GOLD))}")


def question_keys(questions: Sequence) -> np.ndarray:
    """uint32[B] hashes of the questions' keys, their names in random streams."""
    return np.array([zlib.crc32(str(q.key).encode("utf-8", "replace")) for q in questions], np.uint32)
