"""10,000 episodes, many of which stop early: every search is answered for its own question, gold answer and query.

The reference indexed a compressed list of queries into the full list of questions: with 10 % early stoppers, 92 % of its
searches were simulated for somebody else's question. The model is cut out (the scripted sampler does not look at it), so
that so many episodes take seconds; turns, queries, requests and insertion are the real ones.
"""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small_models import (
    ANSWER,
    NUM_DOCUMENTS,
    PARAMS,
    POLICY,
    TOKENIZER,
    document_ids,
    make_config,
    make_simulator,
    play_oracle,
    says,
)
from zsjax import types
from zsjax.rollout import make_rollout
from zsjax.rollout import state as pieces
from zsjax.search import Document
from zsjax.search.simulator.simulator import Simulator
from zsjax.types import Question

ROWS, MAX_TOKENS, KEY = 5_000, 144, jax.random.key(0)
CONFIG = make_config(max_tokens=MAX_TOKENS)
CONFIG = dataclasses.replace(CONFIG, search=dataclasses.replace(CONFIG.search, max_document_tokens=16))


def noise_draws(turns: int):
    """bool[ROWS, turns], the draw of each episode's turn: its own, whatever slot wrote the reply."""
    key = jax.random.fold_in(KEY, 2)

    def draw(episode, turn):
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(key, episode), turn)) < 0.5

    return np.asarray(jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(jnp.arange(ROWS), jnp.arange(turns)))


class Silent:
    """An engine that answers with nothing; `play_oracle` asks it for a script's documents."""

    def documents(self, query):
        return []


def number(i):
    """A number in words of the tokenizer's vocabulary: digits, one by one."""
    return " ".join(str(i).zfill(4))


@pytest.fixture
def episodes_of(monkeypatch):
    """engine -> finished episodes of ROWS scripts of 0 to 2 searches, some ending in EOS, rambling or an empty query."""
    rng = np.random.default_rng(0)
    questions = [Question(f"q{i}", f"What is the spouse of {number(i)}?", (f"Kara {number(i)}", f"Dran {number(i)}"))
                 for i in range(ROWS)]
    scripts = []
    for i in range(ROWS):
        actions = [f"<search> {number(i)} mother {turn} </search>" for turn in range(rng.integers(0, 3))]
        if rng.random() < 0.2:
            actions = [*actions[:1], "EOS"]
        elif rng.random() < 0.1 and actions:
            actions[0] = "<search>  </search>"
        scripts.append([*actions, ANSWER])

    def play(engine, documents, config=CONFIG, document_ids=document_ids):
        """documents: (i, query) -> what stands in the row for it."""
        table = np.zeros((ROWS, MAX_TOKENS + 1), np.int32)
        for row in range(ROWS):
            library = Silent()
            library.documents = lambda query, row=row: documents(row, query)
            tokens, _, _, _ = play_oracle(questions[row], scripts[row], library, document_ids)
            assert len(tokens) < MAX_TOKENS
            table[row, :len(tokens)] = tokens

        def no_model(cache, count, B):
            return (jnp.zeros((B, POLICY.embed_dim)), cache.advance(count))

        monkeypatch.setattr(pieces, "prefill", lambda params, config, tokens, lengths, cache, hidden, **_:
                            no_model(cache, lengths, tokens.shape[0]))
        monkeypatch.setattr(pieces, "extend", lambda params, config, tokens, count, cache: (
            jnp.zeros((tokens.shape[0], 1, POLICY.embed_dim)), cache.advance(count)))
        rollout = make_rollout(POLICY, engine, TOKENIZER, config, sampler=says(table))
        episodes = jax.device_get(rollout(PARAMS, questions, noise=0.5, key=KEY))
        assert (episodes.status != types.RUNNING).all() and episodes.num_searches.sum() > 0.7 * ROWS
        assert (episodes.num_searches < 2).mean() > 0.5  # stoppers there are
        return episodes, table

    return questions, play


def test_host_engines(episodes_of):
    questions, play = episodes_of
    wrong, seen = [], []

    class Checking:
        def search(self, queries, contexts, *, k):
            for query, context in zip(queries, contexts, strict=True):
                i = int("".join(re.findall(r"\d", query)[:4]))
                seen.append(i)
                if context.question != questions[i]:
                    wrong.append((query, context.question))
            return [[] for _ in queries]

    episodes, _ = play(Checking(), lambda i, query: [])
    assert len(seen) == episodes.num_searches.sum() and not wrong


def test_compiled_simulator(episodes_of, monkeypatch):
    """The simulator's requests, as tokens: it writes back whose gold and whose query it was given, with fewer slots than
    rows and fewer rows than episodes, so that all three are paired anew again and again."""
    questions, play = episodes_of
    newline = TOKENIZER.encode("\n")[-1]

    def take(self, params, writing, requests, key, *, prefill_batch):
        lines, lengths = [], []
        for tokens, length in (requests.answers, requests.query):
            length = jnp.minimum(length, self.max_document_tokens - 1)
            line = jnp.zeros((tokens.shape[0], self.max_document_tokens), jnp.int32)
            size = min(tokens.shape[1], self.max_document_tokens)
            line = line.at[:, :size].set(tokens[:, :size])
            line = jnp.where(jnp.arange(self.max_document_tokens) == length[:, None], newline, line)
            lines.append(line)
            lengths.append(length + 1)

        def put(new, old):
            return jnp.where(requests.active.reshape(-1, *[1] * (old.ndim - 1)), new, old)

        return writing.replace(documents=put(jnp.stack(lines, 1), writing.documents), noisy=requests.noisy,
                               lengths=put(jnp.stack(lengths, 1), writing.lengths), count=put(NUM_DOCUMENTS, writing.count))

    simulator = make_simulator(max_document_tokens=16, shuffle_documents=False)
    monkeypatch.setattr(Simulator, "take", take)

    def line(document):
        return [*TOKENIZER.encode(document.text)[:15], newline]

    def gold(i):
        return " " + "; ".join(questions[i].golden_answers)  # as a slot is filled

    schedule = dataclasses.replace(CONFIG.rollout, rows=1_000, simulator_slots=300, decode_threshold=0.5)
    episodes, table = play(simulator, lambda i, query: [Document("", gold(i)), Document("", f" {query}")],
                           dataclasses.replace(CONFIG, rollout=schedule), line)
    wrong = [row for row in range(ROWS) if episodes.tokens[row].tolist() != table[row, :MAX_TOKENS].tolist()]
    assert not wrong, (len(wrong), TOKENIZER.decode(episodes.tokens[wrong[0]].tolist()))
    searched = episodes.search_status != types.NOT_SEARCHED
    ran = episodes.query_span[:, :, 1] > 0
    np.testing.assert_array_equal(episodes.noisy[:, :, 0], ran & noise_draws(episodes.noisy.shape[1]))
    assert searched.sum() >= ran.sum() == episodes.num_searches.sum()
