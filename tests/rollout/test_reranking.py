"""Reranking in rollouts: who is shown equals an oracle, in the compiled loop and for host engines."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.small_models import PARAMS, POLICY, QUESTIONS, TOKENIZER, make_config, searching
from zsjax.config import resolve
from zsjax.data import load_tokenizer
from zsjax.rollout import make_rollout, reranking
from zsjax.rollout.experience import Experience
from zsjax.search import Document
from zsjax.search.rerank import chooser, encode_texts, init_reranker, score_documents
from zsjax.search.simulator import simulator as simulation

CANDIDATES, SHOWN = 4, 2
HOST_QUESTIONS = [question for question in QUESTIONS[:2] for _ in range(2)]


def config_of(**rerank):
    config = make_config()
    rerank = dataclasses.replace(config.search.rerank, **{"candidates": CANDIDATES, **rerank})
    return resolve(dataclasses.replace(config, search=dataclasses.replace(config.search, rerank=rerank)), check=False)


def random_weights(seed=0):
    state = init_reranker(config_of().search.rerank)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), state.weights)


def written(engine, **changes):
    """A simulator that writes CANDIDATES documents; hot, since random weights repeat themselves."""
    return dataclasses.replace(engine, num_documents=CANDIDATES, temperature=2.0, **changes)


def lines_of(documents, lengths):
    return [tuple(documents[i, :n].tolist()) for i, n in enumerate(lengths) if n]


def ranked(weights, documents, lengths, noisy, *asked):
    """The lines of each reply in the order in which they should be shown."""
    scores = np.asarray(score_documents(weights, documents, lengths, *asked))
    pairs = [zip(scores[b] if noisy else -scores[b], lines_of(documents[b], lengths[b]), strict=False)
             for b in range(len(documents))]
    return [[line for _, line in sorted(of_row, key=lambda pair: pair[0])] for of_row in pairs]


def test_the_compiled_loop_shows_what_an_oracle_would(caplog, simulator):
    config, key, weights = config_of(), jax.random.key(3), random_weights()
    engine = written(simulator, shuffle_documents=False)
    rollout = make_rollout(POLICY, engine, TOKENIZER, config, sampler=searching())

    def play(weights):
        return jax.device_get(rollout(PARAMS, QUESTIONS, noise=0.5, key=key, reranker=weights))

    episodes = play(weights)
    seen = reranking.make_reader(POLICY, TOKENIZER, config)(episodes, QUESTIONS)

    # Every search once more, all of its candidates: equal requests give equal replies.
    turns = np.argwhere(seen.lengths.any(axis=2))
    questions = [QUESTIONS[b] for b, _ in turns]
    question, answers = engine.encode_questions(questions)
    query = jax.tree.map(lambda x: x[turns[:, 0], turns[:, 1]], seen.query)
    order = {}
    for noisy in (False, True):
        replies = jax.device_get(engine.write(engine.params, engine.tables, simulation.Requests(
            question=question, answers=answers, query=query, noisy=np.full(len(turns), noisy),
            question_key=simulation.question_keys(questions), active=np.ones(len(turns), bool)), jax.random.fold_in(key, 1)))
        assert replies.tokens.shape[1] == CANDIDATES
        order[noisy] = ranked(weights, replies.tokens, replies.lengths, noisy, question, query)
    for row, (b, m) in enumerate(turns):
        modes = episodes.noisy[b, m].tolist()
        expected = [order[mode][row][i] for i, mode in enumerate(modes) if i < len(order[mode][row])]
        assert lines_of(seen.documents[b, m], seen.lengths[b, m]) == expected
    assert len(turns) >= len(QUESTIONS) and episodes.noisy.any() and not episodes.noisy.all()
    assert (seen.lengths > 0).sum(axis=2).max() == SHOWN

    # A scorer that has learned needs no new program, and one that has not shows the first ones.
    with jax.log_compiles():
        untrained = play(jax.tree.map(np.zeros_like, weights))
    assert not [record for record in caplog.records if "XLA compilation" in record.message]
    assert (untrained.tokens != episodes.tokens).any()


def test_with_a_draw_for_each_document_both_replies_are_ranked(simulator):
    engine, weights, rng = written(simulator, shuffle_documents=False), random_weights(), np.random.default_rng(0)
    S, N = 3, engine.max_document_tokens
    question = encode_texts([q.question for q in QUESTIONS[:S]], TOKENIZER, engine.max_question_tokens)
    query = encode_texts(["voice of Kara", "mother", "rival of Lonor"], TOKENIZER, engine.max_query_tokens)
    modes = np.array([[False, False], [True, False], [True, True]])
    lengths, count = rng.integers(1, N, (2 * S, CANDIDATES)).astype(np.int32), np.array([4, 4, 1, 0, 3, 4], np.int32)
    documents = rng.integers(1, 90, (2 * S, CANDIDATES, N)).astype(np.int32)
    none = {field.name: None for field in dataclasses.fields(simulation.Writing)}
    writing = simulation.Writing(**none | dict(documents=documents, lengths=lengths, count=count, noisy=modes,
                                               asked=(question, query)))
    replies = engine.replies(writing, chooser(weights, SHOWN))
    finished = np.where(np.arange(CANDIDATES) < count[:, None], lengths, 0)
    useful = ranked(weights, documents[:S], finished[:S], False, question, query)
    noisy = ranked(weights, documents[S:], finished[S:], True, question, query)
    for slot, of_slot in enumerate(modes):
        expected = [side[i] for i, mode in enumerate(of_slot) if i < len(side := (noisy if mode else useful)[slot])]
        assert lines_of(np.asarray(replies.tokens[slot]), np.asarray(replies.lengths[slot])) == expected
    assert replies.count.tolist() == [2, 2, 2]
    assert replies.tokens.shape == (S, SHOWN, N)


class Shelf:
    """Finds up to CANDIDATES documents; the shortest is the last."""

    def __init__(self):
        self.asked = []

    def search(self, queries, contexts, *, k):
        self.asked.append(k)
        texts = [*(f"mother of Kara {'mother ' * i}" for i in range(CANDIDATES - 1)), "spouse"]
        return [[Document("", text) for text in texts[:k]] for _ in queries]


@pytest.fixture(scope="module")
def host():
    """(engine, play(reranker) -> (episodes of HOST_QUESTIONS, what they saw)), compiled once."""
    shelf, config = Shelf(), config_of()
    rollout = make_rollout(POLICY, shelf, TOKENIZER, config, group_size=2, sampler=searching())
    read = reranking.make_reader(POLICY, TOKENIZER, config)

    def play(reranker=None):
        episodes = jax.device_get(rollout(PARAMS, QUESTIONS[:2], key=jax.random.key(0), reranker=reranker))
        return episodes, read(episodes, HOST_QUESTIONS)

    return shelf, play


def test_host_engines_give_candidates_and_are_reranked(host):
    shelf, play = host
    weights = jax.tree.map(np.zeros_like, random_weights())
    weights["overlap"][3] = -1.0  # the shorter the better
    lines = {}
    for name, chosen in (("off", None), ("untrained", jax.tree.map(np.zeros_like, weights)), ("on", weights)):
        _, seen = play(chosen)
        lines[name] = {tuple(TOKENIZER.decode(line) for line in lines_of(seen.documents[b, m], seen.lengths[b, m]))
                       for b, m in np.argwhere(seen.lengths.any(axis=2))}
    assert set(shelf.asked) == {SHOWN, CANDIDATES}
    assert lines["off"] == lines["untrained"] == {("* mother of Kara\n", "* mother of Kara mother\n")}
    assert lines["on"] == {("* spouse\n", "* mother of Kara\n")}


def test_seen_is_what_stands_in_the_rows(host):
    episodes, seen = host[1]()
    for b, m in np.ndindex(episodes.search_status.shape):
        start, stop = episodes.documents_span[b, m]
        ids = [i for line in lines_of(seen.documents[b, m], seen.lengths[b, m]) for i in line]
        assert ids == episodes.tokens[b, start:stop].tolist()
        query = TOKENIZER.decode(seen.query[0][b, m, :seen.query[1][b, m]].tolist())
        assert query.strip() == ("voice of Kara" if stop else "")
    tokens, lengths = encode_texts([QUESTIONS[0].question], TOKENIZER, 24)
    assert seen.question[0][0].tolist() == tokens[0].tolist() and seen.question[1][0] == lengths[0]
    assert (seen.lengths > 0).any()


def test_the_learner_reads_the_question_as_the_simulators_chooser_does(tmp_path):
    (tmp_path / "simulator.txt").write_text('{mode}: "{question}"\nQuery: {query} \n')
    config = config_of()
    config = dataclasses.replace(config, search=dataclasses.replace(config.search, engine="simulator"),
                                 prompts=dataclasses.replace(config.prompts, simulator=str(tmp_path / "simulator.txt")))
    rollout = make_rollout(POLICY, Shelf(), TOKENIZER, config, group_size=2, sampler=searching())
    episodes = jax.device_get(rollout(PARAMS, QUESTIONS[:2], key=jax.random.key(0)))
    seen = reranking.make_reader(POLICY, TOKENIZER, config)(episodes, HOST_QUESTIONS)
    assert TOKENIZER.decode(seen.question[0][0, :seen.question[1][0]].tolist()) == f' "{QUESTIONS[0].question}"\n'


def test_a_simulator_of_another_tokenizer_is_reranked_in_the_order_of_writing(simulator, monkeypatch):
    order = []
    monkeypatch.setattr(reranking.HostReranker, "__call__", lambda self, weights, found, queries, contexts: found)
    monkeypatch.setattr(simulation.Simulator, "search", lambda self, queries, contexts, *, k: order.append(
        self.shuffle_documents) or [[Document("", "x")]] * len(queries))
    other = dataclasses.replace(simulator, tokenizer=load_tokenizer("asset:tiny_world/tokenizer"), shuffle_documents=True)
    for candidates in (CANDIDATES, 0):
        config = config_of()
        config = dataclasses.replace(config, search=dataclasses.replace(
            config.search, rerank=dataclasses.replace(config.search.rerank, candidates=candidates)))
        order.clear()
        make_rollout(POLICY, other, TOKENIZER, config, sampler=searching())(PARAMS, QUESTIONS[:1], key=jax.random.key(0))
        assert set(order) == {not candidates}


def test_a_learner_learns_from_an_experience(host):
    (episodes, _), config = host[1](), config_of()
    # One episode of each group saw nothing else than the others: only a made-up document tells them apart.
    tokens, (b, m) = episodes.tokens.copy(), np.argwhere(episodes.documents_span[:, :, 1] > 0)[0]
    tokens[b, episodes.documents_span[b, m, 0] + 1] = TOKENIZER.encode(" teacher")[0]
    episodes = episodes.replace(tokens=tokens)
    scores = (np.arange(4) == b).astype(np.float32)
    played = Experience(episodes, np.array(HOST_QUESTIONS, object), None, scores, {}, np.ones(4, bool), 1, {})
    learner = reranking.Reranking(POLICY, TOKENIZER, config)
    state, metrics = learner.learn(learner.start(), played)
    assert metrics["rerank/loss"] > 0 and metrics["rerank/concordance"] == 0.5
    _, metrics = learner.learn(state, played)
    assert metrics["rerank/concordance"] == 1.0
