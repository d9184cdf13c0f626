"""Reranking by reward: a scorer chooses which of the written (or found) documents are shown.

The scorer learns online from the rewards of the episodes that saw a document. A useful reply shows the k of N candidates
with the highest scores, best first. A noisy reply shows the k with the lowest scores: they read as plausibly as the
others, but the least reward followed them. Candidates of equal scores keep their order, so an untrained scorer shows the
first k.

The scorer is linear and begins at 0. B requests, k candidates of N tokens:

    score = overlap . (query's tokens in the document, question's tokens in it, its tokens in neither, its length)
            + sum over its tokens of bags[in query or question, hash(token)] / sqrt(length)

It never sees a gold answer. `value_loss` is its loss.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from zsjax.sampling import ragged
from zsjax.types import Metric

OVERLAPS = 4
METRICS = (
    Metric("rerank/loss", "squared error of the reranker's scores, see zsjax.search.rerank.value_loss", low=0.0),
    Metric("rerank/concordance", "pairs of documents within a group that the scorer orders as their rewards; 0.5 is chance",
           "share of pairs", 0.0, 1.0, healthy="above 0.5"),
)


@flax.struct.dataclass
class Seen:
    """The documents that B episodes of M turns saw, k in a turn, in tokens.

    Attributes:
      documents, lengths: int32[B, M, k, N] and int32[B, M, k], 0: no document.
      query: (int32[B, M, Q], int32[B, M]) ragged tokens, of each turn.
      question: (int32[B, P], int32[B]).
    """

    documents: Any
    lengths: Any
    query: tuple[Any, Any]
    question: tuple[Any, Any]


@flax.struct.dataclass
class RerankerState:
    """weights: {"overlap": float32[4], "bags": float32[2, buckets]}; opt_state: of its optax optimizer."""

    weights: Any
    opt_state: Any


def init_reranker(options) -> RerankerState:
    """A scorer that gives every document 0. options: of config.search.rerank; buckets and learning_rate are read."""
    weights = {"overlap": jnp.zeros(OVERLAPS, jnp.float32), "bags": jnp.zeros((2, options.buckets), jnp.float32)}
    return RerankerState(weights, optax.adam(options.learning_rate).init(weights))


def score_documents(weights, documents, lengths, question, query):
    """float32[B, k] scores of documents int32[B, k, N] with lengths int32[B, k].

    question, query: ragged, (int32[B, n], int32[B]).
    """
    inside = jnp.arange(documents.shape[2]) < lengths[:, :, None]

    def meets(text):
        """(bool[B, k, N] the document's tokens that are in the text, float32[B, k] share of the text's tokens in it)."""
        tokens, length = text
        counts = jnp.arange(tokens.shape[1]) < length[:, None]
        same = (documents[:, :, :, None] == tokens[:, None, None, :]) & inside[:, :, :, None] & counts[:, None, None, :]
        return same.any(axis=3), same.any(axis=2).sum(axis=2) / jnp.maximum(length, 1)[:, None]

    (in_query, query_share), (in_question, question_share) = meets(query), meets(question)
    old = in_query | in_question
    size = jnp.maximum(lengths, 1)
    overlap = jnp.stack([query_share, question_share, (inside & ~old).sum(axis=2) / size, lengths / documents.shape[2]], -1)
    # Knuth's multiplicative hash; its high bits are the good ones.
    bucket = ((documents.astype(jnp.uint32) * jnp.uint32(2654435761)) >> 8) % weights["bags"].shape[1]
    of_token = jnp.where(inside, weights["bags"][old.astype(jnp.int32), bucket], 0)
    return overlap @ weights["overlap"] + of_token.sum(axis=2) / jnp.sqrt(size)


def choose_documents(scores, lengths, noisy, num_shown: int):
    """int32[B, num_shown], the candidates to show, first to last. Candidates of length 0 come last.

    Args:
      scores: float32[B, k]; lengths: int32[B, k].
      noisy: bool[B], lowest scores first instead of highest.
    """
    key = jnp.where(noisy[:, None], scores, -scores)
    return jnp.argsort(jnp.where(lengths > 0, key, jnp.inf), axis=1)[:, :num_shown].astype(jnp.int32)  # stable


def chooser(weights, num_shown: int):
    """A `choose_documents` for `Simulator.replies`. weights: None shows the first documents."""
    def choose_shown(documents, lengths, noisy, question, query):
        if weights is None:
            scores = jnp.zeros(lengths.shape)
        else:
            scores = score_documents(weights, documents, lengths, question, query)
        return choose_documents(scores, lengths, noisy, num_shown)

    return choose_shown


def value_loss(weights, seen: Seen, scores, group_id, valid):
    """The squared error of predicting an episode's advantage over its group from the documents that it saw.

        v[e] = mean over its documents of score        (episodes without documents are left out)
        loss = mean of ((v - group's mean of v) - (reward - group's mean of reward))^2 / 2

    Both sides are centred by group, as in a regression with fixed effects: how hard a question is does not count. v is
    a mean and not a sum, because more searches do not make better documents.

    Args:
      scores: float32[B] rewards; group_id: int32[B]; valid: bool[B], episodes that count.

    Returns:
      (float32[], {"loss", "concordance"}). The concordance is the share of pairs with different rewards within a group
      whose higher reward has the higher v (ties count half). 0.5 is chance, and NaN says that there is no pair.
    """
    B, M, k, N = seen.documents.shape
    question = jax.tree.map(lambda x: jnp.repeat(x, M, axis=0), seen.question)
    documents, lengths, query = jax.tree.map(lambda x: x.reshape(B * M, *x.shape[2:]),
                                             (seen.documents, seen.lengths, seen.query))
    each = score_documents(weights, documents, lengths, question, query)
    shown = (seen.lengths > 0).reshape(B, M * k)
    value = jnp.where(shown, each.reshape(B, M * k), 0).sum(axis=1) / jnp.maximum(shown.sum(axis=1), 1)
    valid = valid & shown.any(axis=1)
    group = (group_id[:, None] == group_id[None, :]) & valid[:, None] & valid[None, :]

    def centred(x):
        return jnp.where(valid, x - (group * x).sum(axis=1) / jnp.maximum(group.sum(axis=1), 1), 0)

    loss = 0.5 * ((centred(value) - centred(scores)) ** 2).sum() / jnp.maximum(valid.sum(), 1)
    pairs = group & (scores[:, None] > scores[None, :])
    agree = jnp.where(value[:, None] > value[None, :], 1.0, jnp.where(value[:, None] == value[None, :], 0.5, 0.0))
    return loss, {"loss": loss, "concordance": (pairs * agree).sum() / pairs.sum()}


@functools.cache
def make_reranker_update(learning_rate: float):
    """A jitted, pure update(state, seen, scores, group_id, valid) -> (state, info): one step of Adam on `value_loss`.

    info is that of the scorer before the step.
    """
    optimizer = optax.adam(learning_rate)

    def update(state: RerankerState, seen: Seen, scores, group_id, valid):
        gradient, info = jax.grad(value_loss, has_aux=True)(state.weights, seen, scores, group_id, valid)
        updates, opt_state = optimizer.update(gradient, state.opt_state)
        return RerankerState(optax.apply_updates(state.weights, updates), opt_state), info

    return jax.jit(update)


def encode_texts(texts, tokenizer, size: int):
    """(int32[B, size], int32[B]) of texts with one blank in front, as in the simulator's prompt; cut at the end."""
    return ragged.pad([tokenizer.encode_text(f" {text.strip()}") if text.strip() else [] for text in texts], size)
