"""The simulated search engine: a language model that writes useful or noisy documents on command.

A request is (question, gold answers, query, mode). `SimulatorTemplate` turns it into a prompt of text pieces and slots;
on device the slots are filled with tokens and spliced (no text in between), the prompt is read, and the model writes one
document a line until the number asked for is there. A document that grows too long is ended by a forced newline, and no
token is allowed that would complete one of our tags: what a simulator writes can neither end an episode nor answer.

Draws are keyed by (key, question, mode, hash of the query's tokens, position in the reply), so identical requests get
identical documents whoever asks.
"""

import dataclasses
import functools
import zlib
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from zsjax.models.cache import init_cache
from zsjax.models.decoder import DecoderConfig, extend, logits_of
from zsjax.sampling.logits import sample
from zsjax.sampling.prefill import prefill
from zsjax.sampling.splice import concatenate
from zsjax.sampling.tags import TagAutomaton
from zsjax.search.engine import Document, SearchContext, check_request
from zsjax.search.prompts import SimulatorTemplate, bare_line

ALL_TAGS = ("<search>", "</search>", "<answer>", "</answer>", "<information>", "</information>", "<think>", "</think>")
PREFILL_CHUNK = 128


@flax.struct.dataclass
class Requests:
    """B requests, in tokens of the simulator's vocabulary.

    Attributes:
      question, answers, query: (int32[B, N], int32[B]) ragged tokens.
      noisy: bool[B].
      question_key: uint32[B], names the question in the random stream.
      active: bool[B]; the other rows cost their share of the batch and write nothing.
    """

    question: tuple[Any, Any]
    answers: tuple[Any, Any]
    query: tuple[Any, Any]
    noisy: Any
    question_key: Any
    active: Any


@flax.struct.dataclass
class Replies:
    """What was written: tokens int32[B, k, N], lengths int32[B, k] (0 beyond count), count int32[B] documents.

    A document is one line; its last token writes the newline.
    """

    tokens: Any
    lengths: Any
    count: Any


@flax.struct.dataclass
class Tables:
    """Per-token facts about the simulator's vocabulary; V rows of the embedding (ids without a token are False)."""

    automaton: TagAutomaton
    ends_line: Any  # bool[V], the token's bytes hold a newline
    blank: Any  # bool[V], nothing but white space
    eos: Any  # bool[V]


def _tables(tokenizer, vocab_size: int) -> Tables:
    pieces = [tokenizer.token_bytes(i) if i < tokenizer.vocab_size else None for i in range(vocab_size)]
    return Tables(
        automaton=TagAutomaton.from_tokenizer(tokenizer, ALL_TAGS),
        ends_line=jnp.array([bool(p) and b"\n" in p for p in pieces]),
        blank=jnp.array([p is not None and not p.strip() for p in pieces]),
        eos=jnp.zeros(vocab_size, bool).at[jnp.array(list(tokenizer.eos_ids), jnp.int32)].set(True),
    )


def hash_tokens(tokens, lengths):
    """uint32[B] hash of the first lengths[b] tokens of int32[B, N]."""
    tokens = jnp.where(jnp.arange(tokens.shape[1]) < lengths[:, None], tokens + 1, 0).astype(jnp.uint32)

    def step(h, token):
        mixed = (h ^ token) * jnp.uint32(16777619)  # FNV-1a, a token at a time
        return jnp.where(token > 0, mixed ^ (mixed >> 15), h), None

    return jax.lax.scan(step, jnp.full(tokens.shape[0], 2166136261, jnp.uint32), tokens.T)[0]


def request_keys(key, requests: Requests):
    """One key a request, from (key, question, mode, query)."""
    fold = jax.vmap(jax.random.fold_in)
    keys = jax.vmap(lambda q: jax.random.fold_in(key, q))(requests.question_key)
    keys = fold(keys, requests.noisy.astype(jnp.uint32))
    return fold(keys, hash_tokens(*requests.query))


def on_target(requests: Requests, blank):
    """bool[B]: at least half of the query's tokens, blank ones (bool[V]) left out, stand in the question."""
    (query, query_length), (question, question_length) = requests.query, requests.question
    asked = (jnp.arange(query.shape[1]) < query_length[:, None]) & ~blank[query]
    in_question = jnp.arange(question.shape[1]) < question_length[:, None]
    hit = ((query[:, :, None] == question[:, None, :]) & in_question[:, None, :]).any(axis=2) & asked
    return (asked.sum(axis=1) > 0) & (2 * hit.sum(axis=1) >= asked.sum(axis=1))


@dataclasses.dataclass(frozen=True, eq=False)
class Simulator:
    """A decoder that plays the search engine, for compiled rollouts (`write`) and for the host (`search`).

    Attributes:
      config, params: the decoder.
      tokenizer: its tokenizer; compiled rollouts need the policy to have the same.
      template: the prompt.
      num_documents: documents written per request, 1 to 20.
      max_document_tokens: tokens of a document, its newline included; a longer one is ended there.
      max_query_tokens, max_question_tokens, max_answer_tokens: sizes of the slots; longer texts are cut at the end.
      temperature, top_p: sampling.
      shuffle_documents: shown in random order (a tuned simulator may have learned to put the best first).
      reveal_gold: whether the gold answers stand in the prompt: "always", "never", or "on_target", for queries of which at
        least half of the tokens stand in the question. A simulator that sees them whatever is asked may leak them.
    """

    config: DecoderConfig
    params: Any
    tokenizer: Any
    template: SimulatorTemplate
    num_documents: int = 5
    max_document_tokens: int = 64
    max_query_tokens: int = 64
    max_question_tokens: int = 128
    max_answer_tokens: int = 64
    temperature: float = 0.8
    top_p: float = 1.0
    shuffle_documents: bool = False
    reveal_gold: str = "always"
    obeys_noise: ClassVar[bool] = True

    def __post_init__(self):
        if not 1 <= self.num_documents <= 20:
            raise ValueError(f"num_documents={self.num_documents}: a reply has 1 to 20 documents")
        if self.reveal_gold not in ("always", "on_target", "never"):
            raise ValueError(f"reveal_gold={self.reveal_gold!r}: give 'always', 'on_target' or 'never'")
        if self.tokenizer.vocab_size > self.config.vocab_size:
            raise ValueError(f"the tokenizer has {self.tokenizer.vocab_size} tokens, the simulator's embedding only "
                             f"{self.config.vocab_size} rows")

    @functools.cached_property
    def tables(self) -> Tables:
        return _tables(self.tokenizer, self.config.vocab_size)

    @functools.cached_property
    def _pieces(self):
        return self.template.pieces(self.tokenizer)

    @functools.cached_property
    def _newline(self) -> int:
        return self.tokenizer.encode("\n")[-1]

    @functools.cached_property
    def prompt_size(self) -> int:
        """The longest prompt, in tokens."""
        size = {"mode": 8, "num_documents": 4, "question": self.max_question_tokens,
                "answers": self.max_answer_tokens, "query": self.max_query_tokens}
        return sum(len(value) if kind == "text" else size[value] for kind, value in self._pieces)

    def _slot(self, text: str) -> np.ndarray:
        return np.array(self.template.encode_slot(self.tokenizer, text), np.int32)

    def encode_slots(self, texts: Sequence[str], size: int):
        """(int32[B, size], int32[B]) of slot texts, cut at the end."""
        rows = [self._slot(text)[:size] for text in texts]
        tokens = np.zeros((len(rows), size), np.int32)
        for i, row in enumerate(rows):
            tokens[i, :len(row)] = row
        return tokens, np.array([len(row) for row in rows], np.int32)

    def encode_questions(self, questions: Sequence):
        """The question and answer slots of `Question`s: two ragged pairs; all gold answers are shown."""
        return (self.encode_slots([q.question for q in questions], self.max_question_tokens),
                self.encode_slots(["; ".join(q.golden_answers) for q in questions], self.max_answer_tokens))

    def prompts(self, requests: Requests):
        """Splices the prompts: (int32[B, prompt_size], int32[B]). Pure; traced inside the rollout."""
        B = requests.noisy.shape[0]
        (useful, useful_length), (noisy, noisy_length) = [self.encode_slots([w], 8) for w in ("useful", "noisy")]
        (number, number_length) = self.encode_slots([str(self.num_documents)], 4)
        answers, answers_length = requests.answers
        if self.reveal_gold != "always":
            shown = on_target(requests, self.tables.blank) if self.reveal_gold == "on_target" else False
            answers_length = jnp.where(shown, answers_length, 0)
        slots = {
            "question": requests.question,
            "answers": (answers, answers_length),
            "query": requests.query,
            "mode": (jnp.where(requests.noisy[:, None], noisy, useful),
                     jnp.where(requests.noisy, noisy_length, useful_length)),
            "num_documents": (jnp.broadcast_to(number, (B, 4)), jnp.broadcast_to(number_length, (B,))),
        }
        pieces = [np.array(value, np.int32) if kind == "text" else slots[value] for kind, value in self._pieces]
        return concatenate(pieces, size=self.prompt_size)

    def write(self, params, tables: Tables, requests: Requests, key) -> Replies:
        """Reads the prompts of the active requests and writes their documents. Pure; traced inside the rollout."""
        config, k, N = self.config, self.num_documents, self.max_document_tokens
        tokens, lengths = self.prompts(requests)
        B = tokens.shape[0]
        # A blank line costs a step and is no document; k of them are borne.
        budget = k * N + k
        cache = init_cache(config, B, self.prompt_size + budget, jnp.dtype(config.dtype))
        hidden, cache = prefill(params, config, tokens, jnp.where(requests.active, lengths, 0), cache,
                                jnp.zeros((B, config.embed_dim), config.dtype), chunk=PREFILL_CHUNK)
        keys = request_keys(key, requests)
        rows = jnp.arange(B)

        def body(carry):
            step, hidden, cache, documents, document_lengths, count, state, done = carry
            used = document_lengths[rows, jnp.minimum(count, k - 1)]
            logits = logits_of(params, config, hidden)
            forbidden = tables.automaton.forbidden(state)
            logits = logits.at[:, :forbidden.shape[1]].set(
                jnp.where(forbidden, -jnp.inf, logits[:, :forbidden.shape[1]]))
            draw_keys = jax.vmap(jax.random.fold_in)(keys, jnp.full(B, step, jnp.uint32))
            token, _ = sample(logits, draw_keys, temperature=self.temperature, top_p=self.top_p)
            token = jnp.where(used == N - 1, self._newline, token)
            ended = tables.eos[token]
            writes = ~done & ~ended & ~((used == 0) & tables.blank[token])
            documents = documents.at[rows, jnp.where(writes, count, k), used].set(token, mode="drop")
            document_lengths = document_lengths.at[rows, jnp.where(writes, count, k)].add(1, mode="drop")
            count = count + (writes & tables.ends_line[token])
            state, _ = tables.automaton.step(state, token)
            done = done | ended | (count == k)
            # The last token of a reply is not read back: nobody looks at what would follow.
            states, cache = extend(params, config, token[:, None], (~done).astype(jnp.int32), cache)
            return step + 1, states[:, 0], cache, documents, document_lengths, count, state, done

        zeros = jnp.zeros(B, jnp.int32)
        carry = (jnp.int32(0), hidden, cache, jnp.zeros((B, k, N), jnp.int32), jnp.zeros((B, k), jnp.int32), zeros,
                 zeros, ~requests.active)
        carry = jax.lax.while_loop(lambda c: (c[0] < budget) & ~c[-1].all(), body, carry)
        _, _, _, documents, document_lengths, count, _, _ = carry
        complete = jnp.arange(k) < count[:, None]
        document_lengths = jnp.where(complete, document_lengths, 0)
        if self.shuffle_documents:
            # Keyed by the request like the draws; no draw uses the position -1.
            shuffle_keys = jax.vmap(jax.random.fold_in)(keys, jnp.full(B, 2**32 - 1, jnp.uint32))
            order = jax.vmap(lambda key: jax.random.uniform(key, (k,)))(shuffle_keys)
            order = jnp.argsort(jnp.where(complete, order, 2.0), axis=1)
            documents = jnp.take_along_axis(documents, order[:, :, None], axis=1)
            document_lengths = jnp.take_along_axis(document_lengths, order, axis=1)
        return Replies(tokens=documents, lengths=document_lengths, count=count)

    @functools.cached_property
    def _write(self):
        return jax.jit(self.write)

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext], *, k: int) -> list[list[Document]]:
        """Writes documents for text queries: the engine's protocol, for gates, notebooks and single questions.

        Args:
          queries: what is searched for.
          contexts: question, gold answers, noisy flag, and key (one for the whole call: the first context's, or 0).
          k: documents wanted, at most `num_documents`.

        Returns:
          Up to k documents a query; a line's text is the document's text, and titles are empty.
        """
        check_request(queries, contexts, k)
        if k > self.num_documents:
            raise ValueError(f"k={k} documents asked of a simulator that writes {self.num_documents}")
        if not queries:
            return []
        # A reply is a function of these alone, so equal requests are written once. (In the compiled rollout all rows
        # advance together and nothing would be saved by leaving some out.)
        names = [(c.question.id, query, c.noisy) for query, c in zip(queries, contexts, strict=True)]
        first = {name: row for row, name in reversed(list(enumerate(names)))}
        rows = sorted(first.values())
        size = max(8, 1 << (len(rows) - 1).bit_length())  # few shapes, few programs
        filled = rows + [rows[-1]] * (size - len(rows))
        question, answers = self.encode_questions([contexts[row].question for row in filled])
        requests = Requests(
            question=question, answers=answers,
            query=self.encode_slots([queries[row] for row in filled], self.max_query_tokens),
            noisy=np.array([contexts[row].noisy for row in filled]),
            question_key=question_keys([contexts[row].question for row in filled]),
            active=np.arange(size) < len(rows),
        )
        key = contexts[0].key if contexts[0].key is not None else jax.random.key(0)
        replies = jax.device_get(self._write(self.params, self.tables, requests, key))
        written = {names[row]: [
            Document("", bare_line(self.tokenizer.decode(replies.tokens[b, i, :replies.lengths[b, i]].tolist())))
            for i in range(min(k, replies.count[b]))] for b, row in enumerate(rows)}
        return [written[name] for name in names]


def question_keys(questions: Sequence) -> np.ndarray:
    """uint32[B], a name for each question in random streams: a hash of its id."""
    return np.array([zlib.crc32(str(q.id).encode()) for q in questions], np.uint32)
