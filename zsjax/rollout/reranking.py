"""Reranking in a rollout: orders the documents of host engines, and trains the scorer on finished episodes.

In the compiled rollout `Simulator.replies` applies `zsjax.search.rerank.chooser`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from zsjax import types
from zsjax.rollout.documents import encode_documents
from zsjax.rollout.environment import environment, tables
from zsjax.rollout.queries import cut_text
from zsjax.sampling import ragged
from zsjax.sampling.splice import take_span
from zsjax.search.rerank import (
    RerankerState,
    Seen,
    choose_documents,
    encode_texts,
    init_reranker,
    make_reranker_update,
    score_documents,
)
from zsjax.search.simulator.prompt import SimulatorTemplate, Slot
from zsjax.search.simulator.writing import line_ends

_choose = jax.jit(lambda weights, documents, lengths, noisy, question, query, num_shown: choose_documents(
    score_documents(weights, documents, lengths, question, query), lengths, noisy, num_shown), static_argnames="num_shown")


class HostReranker:
    """Orders the documents that host engines find. candidates: how many documents it chooses from."""

    def __init__(self, config, tokenizer):
        """config: the run's; search and rollout are read."""
        self.candidates, self.num_shown = config.search.num_candidates, config.search.num_documents
        self._sizes = config.rollout.max_prompt_tokens, config.search.max_query_tokens
        self._search, self._tokenizer = config.search, tokenizer

    def __call__(self, weights, found, queries, contexts):
        """The documents to show of each list, first to last; `Failed` stays as it is.

        Args:
          weights: of the scorer. found: R lists of `Document`s; queries: R texts; contexts: R `SearchContext`s.
        """
        if not found:
            return []
        # A few sizes of batches, so that few programs are compiled.
        filled, queries, contexts = (ragged.fill(x, ragged.batch_size(len(found))) for x in (found, queries, contexts))
        documents, lengths, _ = encode_documents(
            filled, self._tokenizer, self._search.document_format, num_documents=self.candidates,
            max_document_tokens=self._search.max_document_tokens)
        question = encode_texts([context.question.question for context in contexts], self._tokenizer, self._sizes[0])
        query = encode_texts(queries, self._tokenizer, self._sizes[1])
        noisy = np.array([context.noisy for context in contexts])
        order = np.asarray(_choose(weights, documents, lengths, noisy, question, query, self.num_shown))
        return [[reply[i] for i in of_row if i < len(reply)] if reply else reply
                for reply, of_row in zip(found, order[:len(found)].tolist(), strict=True)]


def make_reader(policy_config, tokenizer, config):
    """A function (episodes, questions of the rows) -> `Seen`, numpy: the queries and documents in the rows' tokens."""
    env = environment(policy_config, tokenizer, config)
    automaton = tables(tokenizer, policy_config, env.actions).automaton
    shown = jax.jit(functools.partial(shown_documents, env, line_ends(tokenizer, policy_config.vocab_size)))

    slot = Slot("question")  # with one blank in front, as `encode_texts` has it
    if config.search.engine == "simulator":  # whose choice reads the question as it stands in the simulator's prompt
        slot = SimulatorTemplate.load(config.prompts.simulator).slot("question")

    def read(episodes: types.Episodes, questions) -> Seen:
        question = ragged.pad([slot.encode(tokenizer, q.question) for q in questions], config.rollout.max_prompt_tokens)
        documents, lengths, query = jax.device_get(shown(
            automaton, episodes.tokens, episodes.roles, episodes.query_span, episodes.documents_span))
        return Seen(documents, lengths, query, question)

    return read


def shown_documents(env, ends_line, automaton, tokens, roles, query_span, documents_span):
    """The documents and queries of episodes, as the rollout cut them.

    Args:
      env: `Environment` of the rollout. ends_line: bool[V], tokens with a newline, which ends each document.

    Returns:
      (documents int32[B, M, k, N], lengths int32[B, M, k], queries (int32[B, M, L], int32[B, M])).
    """
    (B, T), M = tokens.shape, query_span.shape[1]
    k, N = env.max_inserted_documents, env.max_document_tokens
    rows = jnp.repeat(tokens, M, axis=0)
    start, stop = query_span.reshape(-1, 2).T
    # The generation began behind the last token before the query that is not the policy's.
    others = jax.lax.cummax(jnp.where(roles == types.POLICY, -1, jnp.arange(T)), axis=1)
    began = jnp.take_along_axis(others, query_span[:, :, 0], axis=1).reshape(-1) + 1
    generation, length = take_span(rows, began, jnp.where(stop > 0, stop, began), size=env.max_turn_tokens)
    query, query_length = cut_text(automaton, env.actions, generation, length, size=env.max_query_tokens)

    start, stop = documents_span.reshape(-1, 2).T
    text, length = take_span(rows, start, stop, size=k * N)
    at = jnp.arange(k * N)
    inside = at < length[:, None]
    ends = ends_line[text] & inside
    line = jnp.cumsum(ends, axis=1) - ends
    begins = jnp.concatenate([jnp.ones_like(ends[:, :1]), ends[:, :-1]], axis=1)
    place = at - jax.lax.cummax(jnp.where(begins, at, 0), axis=1)
    where = jnp.where(inside, line, k), place  # tokens outside are dropped
    each = jnp.arange(B * M)[:, None]
    documents = jnp.zeros((B * M, k, N), tokens.dtype).at[each, *where].set(text, mode="drop")
    lengths = jnp.zeros((B * M, k), jnp.int32).at[each, where[0]].add(1, mode="drop")
    return jax.tree.map(lambda x: x.reshape(B, M, *x.shape[1:]), (documents, lengths, (query, query_length)))


class Reranking:
    """The reranker of a training run."""

    def __init__(self, policy_config, tokenizer, config, *, read=None):
        """read: in place of `make_reader`'s function of these arguments."""
        self._options = config.search.rerank
        self._read = read or make_reader(policy_config, tokenizer, config)
        self._update = make_reranker_update(self._options.learning_rate)

    def start(self) -> RerankerState:
        return init_reranker(self._options)

    def learn(self, state: RerankerState, experience) -> tuple[RerankerState, dict[str, float]]:
        """(state, metrics) after one update on a step's episodes: numpy, whole, so every host computes the same."""
        inputs = self._read(experience.episodes, experience.questions)
        state, info = jax.device_get(self._update(state, inputs, experience.scores, experience.episodes.group_id,
                                                  experience.row_valid))
        return state, {f"rerank/{name}": float(value) for name, value in info.items() if np.isfinite(value)}
