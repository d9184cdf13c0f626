"""The simulated search engine: a language model that writes useful or noisy documents on command.

A request is (question, gold answers, query, mode). `SimulatorTemplate` cuts the prompt into texts and slots. On the
device the slots are filled with tokens and spliced, the prompt is read, and the model writes one document on each line.
A document that grows too long is ended by a forced newline. Tokens that would complete one of our tags are forbidden, so
a document can neither end an episode nor answer.

Draws are keyed by (key, question, mode, hash of the query's tokens, position in the reply), so equal requests get equal
documents.
"""

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from zsjax.errors import InputError
from zsjax.models.cache import cache_dtype, copy_rows, init_cache
from zsjax.models.decoder import DecoderConfig, decoding_params, extend, logits_of
from zsjax.sampling import ragged
from zsjax.sampling.logits import sample
from zsjax.sampling.prefill import prefill
from zsjax.sampling.splice import concatenate
from zsjax.search.engine import Document, Engine, SearchContext, check_request
from zsjax.search.rerank import chooser
from zsjax.search.simulator.prompt import MODES, SimulatorTemplate, Slot, bare_line
from zsjax.search.simulator.requests import Requests, check_reveal_gold, gold_shown, on_target, question_keys, request_keys
from zsjax.search.simulator.writing import Replies, SimulatorTables, Tally, Writing, make_tables

PREFILL_CHUNK = 128
# Slots without a limit of their own, and the least tokens for each: carried templates keep the shapes of stored runs.
_GIVEN = {"mode": 8, "num_documents": 4}


@dataclasses.dataclass(frozen=True, eq=False)
class Simulator(Engine):
    """A decoder that plays the search engine, for compiled rollouts (`idle` to `replies`) and for the host (`search`).

    Attributes:
      config, params: the decoder.
      tokenizer: its tokenizer. In compiled rollouts it is the policy's too.
      template: the prompt.
      num_documents: documents of a reply, 1 to 20.
      max_document_tokens: tokens of a document, its newline included; a longer one is ended there.
      max_query_tokens, max_question_tokens, max_answer_tokens: sizes of the slots; longer texts are cut at the end.
      temperature, top_p: sampling.
      shuffle_documents: show documents in random order (a tuned simulator may have learned to put the best first).
      reveal_gold: whether the prompt holds the gold answers: "always", "never", "on_target": if at least half of the
        query's tokens are in the question, "useful": if useful documents are asked for, or "useful_on_target": if both
        hold. A simulator that always sees the answers may leak them, into noisy documents too.
      cache_dtype: "model" or "int8", see `zsjax.models.cache.cache_dtype`.
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
    cache_dtype: str = "model"
    uses_devices: ClassVar[bool] = True

    def __post_init__(self):
        if not 1 <= self.num_documents <= 20:
            raise InputError(f"num_documents={self.num_documents} is out of range; use 1 to 20")
        check_reveal_gold(self.reveal_gold)
        object.__setattr__(self, "config", self.config.for_tokenizer(self.tokenizer))

    def obeys_noise(self, queries: Sequence[str], contexts: Sequence[SearchContext]) -> list[bool]:
        return [True] * len(queries)

    @functools.cached_property
    def tables(self) -> SimulatorTables:
        with jax.ensure_compile_time_eval():  # cached arrays, never tracers, also if first used inside a jit
            return make_tables(self.tokenizer, self.config.vocab_size)

    @functools.cached_property
    def _pieces(self):
        return self.template.pieces(self.tokenizer)

    @functools.cached_property
    def _newline(self) -> int:
        if self.tokenizer.newline_id is None:
            raise InputError(f"the simulator's tokenizer {self.tokenizer.path} cannot write a newline, which ends each "
                             "document; use a tokenizer with byte fallback")
        return self.tokenizer.newline_id

    @functools.cached_property
    def prompt_size(self) -> int:
        """The longest prompt, in tokens."""
        size = {"question": self.max_question_tokens, "answers": self.max_answer_tokens, "query": self.max_query_tokens}
        return sum(len(piece) if isinstance(piece, list) else
                   self._given(piece)[0].shape[1] if piece.value in _GIVEN else size[piece.value] for piece in self._pieces)

    def _given(self, slot: Slot):
        """A slot for the mode or the number of documents, filled: a ragged pair with a row for each mode, or one row.

        It holds the characters of the template that touch the slot, so it is as wide as they make it.
        """
        values = MODES if slot.value == "mode" else [self.num_documents]
        longest = max(len(slot.encode(self.tokenizer, value)) for value in values)
        return self._encode(slot, values, max(longest, _GIVEN[slot.value]))

    def encode_queries(self, texts: Sequence[str]):
        """(int32[B, max_query_tokens], int32[B]) of queries, cut at the end."""
        return self._encode(self.template.slot("query"), texts, self.max_query_tokens)

    def encode_questions(self, questions: Sequence):
        """The question and answer slots of `Question`s, two ragged pairs."""
        return (self._encode(self.template.slot("question"), [q.question for q in questions], self.max_question_tokens),
                self._encode(self.template.slot("answers"), [q.golden_answers for q in questions], self.max_answer_tokens))

    def _encode(self, slot: Slot, values: Sequence, size: int):
        return ragged.pad([slot.encode(self.tokenizer, value) for value in values], size)

    def prompts(self, requests: Requests):
        """Splices the prompts: (int32[B, prompt_size], int32[B]). Pure; traced inside the rollout."""
        B = requests.noisy.shape[0]
        answers, answers_length = requests.answers
        if self.reveal_gold != "always":
            shown = gold_shown(self.reveal_gold, jnp.asarray(requests.noisy), on_target(requests, self.tables.blank))
            hidden, hidden_length = self._encode(self.template.slot("answers"), [""], answers.shape[1])
            answers = jnp.where(shown[:, None], answers, hidden)
            answers_length = jnp.where(shown, answers_length, hidden_length)
        slots = {"question": requests.question, "answers": (answers, answers_length), "query": requests.query}

        def filled(slot: Slot):
            if slot.value == "mode":
                return jax.tree.map(lambda of: jnp.asarray(of)[requests.noisy.astype(int)], self._given(slot))
            if slot.value == "num_documents":
                return jax.tree.map(lambda of: jnp.repeat(of, B, axis=0), self._given(slot))
            return slots[slot.value]

        pieces = [np.array(piece, np.int32) if isinstance(piece, list) else filled(piece) for piece in self._pieces]
        return concatenate(pieces, size=self.prompt_size)

    def write(self, params, tables: SimulatorTables, requests: Requests, key, num_shown: int | None = None) -> Replies:
        """Reads the prompts of the active requests and writes their documents. Pure; traced inside the rollout.

        num_shown: how many of the documents are returned; None: all.
        """
        params = decoding_params(params, self.config)  # once, outside of the loops
        writing = self.idle(params, *requests.noisy.shape)
        choose = None if num_shown in (None, self.num_documents) else chooser(None, num_shown)
        return self.replies(self.proceed(params, tables, self.take(params, writing, requests, key)), choose)

    def idle(self, params, slots: int, per_document: int = 0) -> "Writing":
        """Empty slots. The common beginning of all prompts is read here, once.

        per_document: 0, or the number of shown documents if each has a mode. Each request then writes a useful and a
          noisy reply, and document i comes from the reply of its mode. Two prompts are needed because the simulator was
          tuned on prompts with a single mode. Requests whose modes are all equal write one reply.
        """
        config, k, N = self.config, self.num_documents, self.max_document_tokens
        noisy, size = jnp.zeros((slots, per_document) if per_document else slots, bool), jnp.zeros(slots, jnp.int32)
        asked = tuple((jnp.zeros((slots, tokens), jnp.int32), size)
                      for tokens in (self.max_question_tokens, self.max_query_tokens))
        slots = slots * 2 if per_document else slots
        dtype = cache_dtype(config, self.cache_dtype)
        cache = init_cache(config, slots, self.prompt_size + self._budget, dtype)
        hidden = jnp.zeros((slots, config.embed_dim), config.dtype)
        if shared := self.shared_prefix:
            one = init_cache(config, 1, len(shared), dtype)
            _, one = prefill(params, config, jnp.array([shared], jnp.int32), jnp.array([len(shared)], jnp.int32), one,
                             hidden[:1], chunk=PREFILL_CHUNK)
            # Its length counts: whatever passes over other slots leave in this one is written behind it.
            cache = copy_rows(cache, jnp.arange(slots), one, jnp.zeros(slots, jnp.int32))
        zeros = jnp.zeros(slots, jnp.int32)
        return Writing(cache=cache, hidden=hidden, documents=jnp.zeros((slots, k, N), jnp.int32),
                       lengths=jnp.zeros((slots, k), jnp.int32), count=zeros, tag_state=zeros, step=zeros,
                       keys=jnp.zeros((slots, 2), jnp.uint32), unfinished=jnp.zeros(slots, bool), noisy=noisy,
                       asked=asked, steps=jnp.zeros(1, jnp.int32), tally=Tally(
                           read=jnp.full(1, len(shared), jnp.int32), drawn=jnp.zeros(1, jnp.int32),
                           attended=jnp.zeros(1)))

    def take(self, params, writing: "Writing", requests: Requests, key, *, prefill_batch: int | None = None) -> "Writing":
        """Begins the active requests, each in the slot of its row.

        prefill_batch: prompts that one pass reads, see `prefill`.
        """
        began = requests.active

        def put(new, old):
            return jnp.where(began[:, None] if new.ndim == 2 else began, _fitted(new, old), old)

        asked = jax.tree.map(put, (requests.question, requests.query), writing.asked)
        noisy = jnp.where(began if requests.noisy.ndim == 1 else began[:, None], requests.noisy, writing.noisy)
        if requests.noisy.ndim == 2:
            B, began, modes = len(began), jnp.tile(began, 2), requests.noisy
            halves = [requests.replace(noisy=jnp.full(B, mode), active=requests.active & wanted)
                      for mode, wanted in ((False, ~modes.all(axis=1)), (True, modes.any(axis=1)))]
            requests = jax.tree.map(lambda *x: jnp.concatenate(x), *halves)
        new = requests.active
        tokens, lengths = self.prompts(requests)
        shared = len(self.shared_prefix)
        cache = writing.cache.replace(lengths=jnp.where(new, shared, writing.cache.lengths))
        hidden, cache = prefill(params, self.config, tokens[:, shared:], jnp.where(new, lengths - shared, 0), cache,
                                writing.hidden, chunk=PREFILL_CHUNK, batch=prefill_batch)
        fresh = {name: jnp.where(began.reshape(-1, *[1] * (old.ndim - 1)), 0, old).astype(old.dtype)
                 for name in ("documents", "lengths", "count", "tag_state", "step") for old in [getattr(writing, name)]}
        keys = jax.random.key_data(request_keys(key, requests))
        read = writing.tally.read + jnp.where(new, lengths - shared, 0).sum()
        return writing.replace(
            tally=writing.tally.replace(read=read),
            cache=cache, hidden=hidden, keys=jnp.where(new[:, None], keys, writing.keys),
            unfinished=writing.unfinished | new, noisy=noisy, asked=asked, **fresh)

    def proceed(self, params, tables: SimulatorTables, writing: "Writing", goes_on=None) -> "Writing":
        """Writes a token of every unfinished reply in each step, while there is one and `goes_on(writing)` is True.

        goes_on: writing -> bool[]; None: always True.
        """
        config, k, N = self.config, self.num_documents, self.max_document_tokens
        rows = jnp.arange(writing.unfinished.shape[0])

        def body(w: Writing) -> Writing:
            used = w.lengths[rows, jnp.minimum(w.count, k - 1)]
            logits = logits_of(params, config, w.hidden)
            # A tokenizer may have ids without a row of the model, and a model rows without an id.
            forbidden = tables.automaton.forbidden(w.tag_state)[:, :logits.shape[1]]
            logits = logits.at[:, :forbidden.shape[1]].set(
                jnp.where(forbidden, -jnp.inf, logits[:, :forbidden.shape[1]]))
            logits = jnp.where(tables.special, -jnp.inf, logits)
            draw_keys = jax.vmap(jax.random.fold_in)(jax.random.wrap_key_data(w.keys), w.step.astype(jnp.uint32))
            token, _ = sample(logits, draw_keys, temperature=self.temperature, top_p=self.top_p)
            token = jnp.where(used == N - 1, self._newline, token)
            ended = tables.eos[token]
            token = jnp.where(ended & (used > 0), self._newline, token)  # the end of a reply ends its last document
            ended_blank = ended & (used == 0)
            writes = w.unfinished & ~ended_blank & ~((used == 0) & tables.blank[token])
            at = jnp.where(writes, w.count, k)  # writes of other rows are dropped
            count = w.count + (writes & tables.ends_line[token])
            tag_state, _ = tables.automaton.step(w.tag_state, token)
            # The last token of a reply is not read back: no token follows it.
            unfinished = w.unfinished & ~ended & (count < k) & (w.step + 1 < self._budget)
            states, cache = extend(params, config, token[:, None], unfinished.astype(jnp.int32), w.cache)
            tally = w.tally.replace(drawn=w.tally.drawn + w.unfinished.sum(), attended=w.tally.attended + jnp.where(
                w.unfinished, w.cache.lengths + 1, 0).sum())
            return w.replace(
                tally=tally,
                cache=cache, hidden=states[:, 0], documents=w.documents.at[rows, at, used].set(token, mode="drop"),
                lengths=w.lengths.at[rows, at].add(1, mode="drop"), count=count,
                tag_state=jnp.where(w.unfinished, tag_state, w.tag_state), step=w.step + w.unfinished,
                unfinished=unfinished, steps=w.steps + 1)

        return jax.lax.while_loop(lambda w: w.unfinished.any() & (goes_on is None or goes_on(w)), body, writing)

    def replies(self, writing: "Writing", choose=None) -> Replies:
        """The finished documents so far; shuffled if `shuffle_documents`.

        choose: (documents, lengths, noisy bool[B], question, query) -> int32[B, shown], the documents of a reply to show,
          see `zsjax.search.rerank.chooser`; None shows all, in the order of writing.
        """
        k, documents, count = self.num_documents, writing.documents, writing.count
        complete = jnp.arange(k) < count[:, None]
        lengths = jnp.where(complete, writing.lengths, 0)
        if choose is not None:
            copies = len(count) // len(writing.noisy)
            noisy = writing.noisy if copies == 1 else jnp.arange(len(count)) >= len(writing.noisy)
            asked = jax.tree.map(lambda x: jnp.tile(x, (copies, *[1] * (x.ndim - 1))), writing.asked)
            order = choose(documents, lengths, noisy, *asked)
            k = order.shape[1]
            documents = jnp.take_along_axis(documents, order[:, :, None], axis=1)
            lengths = jnp.take_along_axis(lengths, order, axis=1)
            count = jnp.minimum(count, k)
            complete = lengths > 0
        if self.shuffle_documents:
            # Keyed by the request like the draws; no draw uses the position -1.
            keys = jax.vmap(jax.random.fold_in, (0, None))(jax.random.wrap_key_data(writing.keys), 2**32 - 1)
            order = jax.vmap(lambda key: jax.random.uniform(key, (k,)))(keys)
            order = jnp.argsort(jnp.where(complete, order, 2.0), axis=1)
            documents = jnp.take_along_axis(documents, order[:, :, None], axis=1)
            lengths = jnp.take_along_axis(lengths, order, axis=1)
        if writing.noisy.ndim == 1:
            return Replies(tokens=documents, lengths=lengths, count=count)
        B = len(writing.noisy)
        documents = jnp.where(writing.noisy[:, :, None], documents[B:], documents[:B])
        lengths = jnp.where(writing.noisy, lengths[B:], lengths[:B])
        return Replies(tokens=documents, lengths=lengths, count=(lengths > 0).sum(axis=1))

    @property
    def _budget(self) -> int:
        """Decode steps of a reply: k documents of N tokens, and up to k blank lines, which are not documents."""
        return self.num_documents * (self.max_document_tokens + 1)

    @functools.cached_property
    def shared_prefix(self) -> list[int]:
        """The tokens with which all prompts begin."""
        texts = itertools.takewhile(lambda piece: isinstance(piece, list), self._pieces)
        return [token for text in texts for token in text]

    @functools.cached_property
    def _write(self):
        return jax.jit(self.write, static_argnames="num_shown")

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext], *, k: int) -> list[list[Document]]:
        """Writes documents for text queries, for gates, notebooks and single questions.

        Args:
          contexts: question, gold answers, noisy and key (the first context's key holds for the whole call; None is 0).
          k: documents for each query, at most `num_documents`.

        Returns:
          Up to k documents for each query, the first that were written; titles are empty.
        """
        check_request(queries, contexts, k)
        if k > self.num_documents:
            raise ValueError(f"k={k} is more than the {self.num_documents} documents that the simulator writes; use fewer")
        if not queries:
            return []
        # A reply is a function of these alone, so equal requests are written once.
        names = [(c.question.identity, query, c.noisy) for query, c in zip(queries, contexts, strict=True)]
        first = {name: row for row, name in reversed(list(enumerate(names)))}
        rows = sorted(first.values())
        size = ragged.batch_size(len(rows))
        filled = ragged.fill(rows, size)
        question, answers = self.encode_questions([contexts[row].question for row in filled])
        requests = Requests(
            question=question, answers=answers,
            query=self.encode_queries([queries[row] for row in filled]),
            noisy=np.array([contexts[row].noisy for row in filled]),
            question_key=question_keys([contexts[row].question for row in filled]),
            active=np.arange(size) < len(rows),
        )
        key = contexts[0].key if contexts[0].key is not None else jax.random.key(0)
        replies = jax.device_get(self._write(self.params, self.tables, requests, key, num_shown=k))
        written = {names[row]: [
            Document("", bare_line(self.tokenizer.decode(replies.tokens[b, i, :replies.lengths[b, i]].tolist())))
            for i in range(min(k, replies.count[b]))] for b, row in enumerate(rows)}
        return [written[name] for name in names]


def _fitted(x, like):
    """x [B] or [B, N], cut or padded to like's N."""
    if x.ndim == 1:
        return x
    return jnp.pad(x, ((0, 0), (0, max(0, like.shape[1] - x.shape[1]))))[:, :like.shape[1]]
