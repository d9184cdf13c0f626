"""Rollouts against engines that live on the host (BM25, HTTP, a simulator with another tokenizer).

The same compiled pieces as `zsjax.rollout.engine`, with a visit to the host once a turn: queries come out as tokens and
are decoded for the engine, documents are made inert, encoded, cut to size and inserted.
"""

import collections
import dataclasses
import logging
import re

import jax
import numpy as np

from zsjax import sharding, types
from zsjax.models.decoder import cast_matrices
from zsjax.rollout import engine as pieces
from zsjax.rollout.continuous import Work
from zsjax.search.engine import Document, Failed, SearchContext
from zsjax.search.prompts import format_document
from zsjax.search.simulator import ALL_TAGS

_TAG = re.compile("|".join(re.escape(tag) for tag in ALL_TAGS))
# Control characters of both kinds, and those that turn the direction of what follows them: they hide and reorder text.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
CHARACTERS_PER_TOKEN = 64  # more of a document is not read than its tokens could hold


def inert(text: str) -> str:
    """The text as data: our tags lose their brackets, control characters become spaces.

    >>> inert("Paris</information><answer>Rome")
    'Paris /information  answer Rome'
    """
    text = _CONTROL.sub(" ", text)
    while _TAG.search(text):
        text = _TAG.sub(lambda m: m.group().replace("<", " ").replace(">", " "), text)
    return text


def encode_inert(line: str, tokenizer) -> list[int]:
    """Ids of a document's line that are text and nothing else: no tag of ours, no special token of the model's."""
    text = inert(line.rstrip("\n"))
    while True:
        ids = tokenizer.encode(text + "\n")
        special = {id for id in ids if tokenizer.token_bytes(id) is None}
        names = [name for id in special if (name := tokenizer.decode([id])) and name in text]
        if not names:
            return [id for id in ids if id not in special]
        for name in names:  # "<|im_end|>" was written out: broken up, it is spelled with ordinary tokens
            text = text.replace(name, f"{name[:1]} {name[1:]}" if len(name) > 1 else " ")


def encode_documents(found, tokenizer, document_format: str, *, num_documents: int, max_document_tokens: int):
    """(int32[B, k, N], int32[B, k], int32[B]) of lists of documents: a line each, cut to N tokens, newline kept."""
    newline = tokenizer.encode("\n")[-1]
    tokens = np.zeros((len(found), num_documents, max_document_tokens), np.int32)
    lengths = np.zeros((len(found), num_documents), np.int32)
    for b, documents in enumerate(found):
        for i, document in enumerate(documents[:num_documents]):
            cut = Document(document.title[:CHARACTERS_PER_TOKEN * max_document_tokens],
                           document.text[:CHARACTERS_PER_TOKEN * max_document_tokens])
            ids = encode_inert(format_document(document_format, i + 1, cut), tokenizer)
            if len(ids) > max_document_tokens:
                ids = ids[:max_document_tokens - 1] + [newline]
            tokens[b, i, :len(ids)] = ids
            lengths[b, i] = len(ids)
    return tokens, lengths, np.array([min(len(d), num_documents) for d in found], np.int32)


def document_encoder(tokenizer, search):
    """(found, num_documents) -> `encode_documents`, in the form of config.search."""
    return lambda found, num_documents: encode_documents(
        found, tokenizer, search.document_format, num_documents=num_documents,
        max_document_tokens=search.max_document_tokens)


class HostRollout:
    """Compiled pieces plus a host engine. Call with (params, inputs, questions, noise, temperature, key)."""

    def __init__(self, env, tables, search_engine, tokenizer, document_format: str, mesh=None, watch=None, reranker=None):
        """mesh: None, or this host's mesh, over whose rows the episodes are spread. watch: called with the state after
        every generation and every insertion, for who wants to see it grow. reranker: a `HostReranker`, for calls with its
        weights."""
        self.env, self.tables, self.engine, self.tokenizer = env, tables, search_engine, tokenizer
        self.document_format, self.watch, self.reranker = document_format, watch or (lambda state: None), reranker
        over_rows = lambda function, *in_rows: sharding.over_rows(function, mesh, in_rows)
        cast = lambda params: cast_matrices(params, env.policy)  # once a call, outside of its loop
        self._start = jax.jit(over_rows(lambda params, inputs: pieces.start(
            env, pieces.read_prompts(cast(params), env, inputs)), False, True))

        def turn(params, tables, state, key, temperature, noise):
            state = pieces.generate_turn(cast(params), env, tables, state, jax.random.fold_in(key, 0), temperature)
            state, query = pieces.queries(env, tables, state)
            return state, query, pieces.coins(env, state, noise, jax.random.fold_in(key, 2))

        self._turn = jax.jit(over_rows(turn, False, False, True, False, False, False), donate_argnums=2)
        self._insert = jax.jit(over_rows(lambda params, state, documents, lengths, count, noisy: pieces.insert(
            cast(params), env, state, documents, lengths, count, noisy), False, True, True, True, True, True),
            donate_argnums=1)

    def __call__(self, params, inputs, questions, noise, temperature, key, reranker=None) -> tuple[types.Episodes, Work]:
        env = self.env
        state = self._start(params, inputs)
        self.watch(state)
        row_questions = [q for q in questions for _ in range(env.group_size)]
        while True:
            state, query, noisy = self._turn(params, self.tables, state, key, temperature, noise)
            self.watch(state)
            waits_for, query, noisy, calls = jax.device_get(
                (state.waits_for, query, noisy, (state.episode_id, state.turn)))
            if not waits_for.any():
                rows = np.full_like(state.steps, len(row_questions) // len(state.steps))
                none = np.zeros_like(rows)
                return pieces.finish(state), Work(jax.device_get(state.steps), rows, none, none)
            noisy = np.asarray(pieces.per_document(noisy, (len(row_questions), env.num_documents)))
            (documents, lengths, count), obeyed = self._search(row_questions, waits_for, query, noisy, calls, key, reranker)
            state = self._insert(params, state, documents, lengths, count, obeyed)
            self.watch(state)

    def _search(self, questions, waits_for, query, noisy, calls, key, reranker):
        """(encoded documents, bool[B, k] the coins that an engine obeyed)."""
        env = self.env
        rows = np.flatnonzero(waits_for == pieces.DOCUMENTS)
        found, obeyed = [[] for _ in questions], np.zeros(noisy.shape, bool)
        if len(rows):
            texts = [self.tokenizer.decode(query[0][b, :query[1][b]].tolist()) for b in rows]
            simulator_key, draw = jax.random.fold_in(key, 1), int(jax.random.bits(key))
            contexts = [SearchContext(questions[b], key=simulator_key, call=(draw, *(int(c[b]) for c in calls)))
                        for b in rows]
            obeys = getattr(self.engine, "obeys_noise", False)
            obeyed[rows] = noisy[rows] & np.array(obeys(texts, contexts) if callable(obeys) else obeys)[..., None]
            try:
                results = self._ask(texts, contexts, obeyed[rows], reranker)
            except (OSError, TimeoutError) as error:  # an engine without failures of its own: the episodes record it
                logging.warning("search failed for %d queries: %s", len(rows), error)
                results = [Failed("error") for _ in rows]
            kinds = collections.Counter(documents.kind for documents in results if isinstance(documents, Failed))
            if kinds:
                logging.warning("%d of %d searches failed: %s", kinds.total(), len(rows),
                                ", ".join(f"{kind} {count}" for kind, count in kinds.items()))
            for b, documents in zip(rows, results, strict=True):
                found[b] = documents
        return encode_documents(found, self.tokenizer, self.document_format, num_documents=env.num_documents,
                                max_document_tokens=env.max_document_tokens), obeyed

    def _ask(self, texts, contexts, modes, reranker):
        """Searches for each text, in the modes bool[R, k] of its documents: where they differ, document i comes from the
        reply that its mode says, as `Simulator.idle` tells."""
        asked = [(row, mode) for row, of_row in enumerate(modes.tolist()) for mode in dict.fromkeys(of_row)]
        found = self.engine.search(
            [texts[row] for row, _ in asked], [dataclasses.replace(contexts[row], noisy=mode) for row, mode in asked],
            k=self.env.num_documents if reranker is None else self.reranker.candidates)
        if reranker is not None:
            found = self.reranker(reranker, found, [contexts[row].question for row, _ in asked],
                                  [texts[row] for row, _ in asked], [mode for _, mode in asked])
        replies = dict(zip(asked, found, strict=True))
        mixed = [[reply[i] for i, mode in enumerate(of_row) if i < len(reply := replies[row, mode])]
                 for row, of_row in enumerate(modes.tolist())]
        # With nothing to show, the reply says why: it may be a failure.
        return [documents or replies[row, bool(modes[row, 0])] for row, documents in enumerate(mixed)]
