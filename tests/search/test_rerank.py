"""The scorer of documents: what it computes, what it learns, and whom it shows."""

import jax
import numpy as np
import optax
import pytest

from zsjax.config.fields import RerankConfig
from zsjax.search import rerank

OPTIONS = RerankConfig(candidates=4, learning_rate=0.03, buckets=64)
GOOD, BAD = 7, 9  # tokens that decide what a document is worth


def score_oracle(weights, document, question, query):
    """Plain Python on lists of ids."""
    old = [t in query or t in question for t in document]

    def share(text):
        return sum(t in document for t in text) / max(len(text), 1)

    n = max(len(document), 1)
    overlap = [share(query), share(question), (len(old) - sum(old)) / n, len(document) / 6]
    buckets = [((t * 2654435761) % 2**32 >> 8) % weights["bags"].shape[1] for t in document]
    return float(np.dot(overlap, weights["overlap"]) + sum(
        weights["bags"][int(is_old), bucket] for is_old, bucket in zip(old, buckets, strict=True)) / np.sqrt(n))


def ragged(rows, size):
    tokens = np.zeros((len(rows), size), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[:len(ids)] = ids
    return tokens, np.array([len(ids) for ids in rows], np.int32)


def random_requests(rng, B=5, k=4):
    def text(low, high):
        return rng.integers(1, 30, rng.integers(low, high)).tolist()

    documents = [[text(1, 7) for _ in range(rng.integers(0, k + 1))] for _ in range(B)]
    tokens, lengths = np.zeros((B, k, 6), np.int32), np.zeros((B, k), np.int32)
    for b, found in enumerate(documents):
        for i, ids in enumerate(found):
            tokens[b, i, :len(ids)], lengths[b, i] = ids, len(ids)
    question, query = [text(2, 9) for _ in range(B)], [text(1, 5) for _ in range(B)]
    return documents, question, query, (tokens, lengths, ragged(question, 8), ragged(query, 6))


def test_scores_and_order_equal_an_oracle():
    rng = np.random.default_rng(0)
    weights = {"overlap": rng.normal(size=4).astype(np.float32), "bags": rng.normal(size=(2, 64)).astype(np.float32)}
    for _ in range(4):
        documents, question, query, arrays = random_requests(rng)
        scores = np.asarray(jax.jit(rerank.score_documents)(weights, *arrays))
        noisy = rng.random(5) < 0.5
        order = np.asarray(rerank.choose_documents(scores, arrays[1], noisy, 3))
        for b, found in enumerate(documents):
            expected = [score_oracle(weights, d, question[b], query[b]) for d in found]
            np.testing.assert_allclose(scores[b, :len(found)], expected, rtol=2e-5, atol=1e-5)
            ranked = sorted(range(len(found)), key=lambda i: expected[i] if noisy[b] else -expected[i])
            assert order[b].tolist()[:len(found)] == ranked[:3]
            assert all(i >= len(found) for i in order[b].tolist()[len(found):])


def test_an_untrained_scorer_keeps_the_order():
    *_, arrays = random_requests(np.random.default_rng(1))
    tokens, lengths, question, query = arrays
    lengths = np.maximum(lengths, 1)
    for weights in (rerank.init_reranker(OPTIONS).weights, None):
        order = rerank.chooser(weights, 3)(tokens, lengths, np.arange(5) % 2 == 0, question, query)
        assert np.asarray(order).tolist() == [[0, 1, 2]] * 5


def seen_by(rng, groups=6, size=4):
    """Episodes of one turn and two documents: the reward is the group's level, a point more with GOOD, less with BAD."""
    B = groups * size
    documents = rng.integers(10, 30, (B, 1, 2, 6)).astype(np.int32)
    group = np.repeat(np.arange(groups), size)
    kind = rng.integers(0, 3, B)  # nothing, GOOD or BAD
    documents[kind == 1, 0, rng.integers(0, 2), 3], documents[kind == 2, 0, 0, 2] = GOOD, BAD
    level = rng.normal(size=groups)[group] * 5  # easy and hard questions: far more than the documents matter
    rewards = (level + np.array([0.0, 1.0, -1.0])[kind]).astype(np.float32)
    question, query = ragged([[1, 2, 3]] * B, 4), (np.full((B, 1, 2), 4, np.int32), np.full((B, 1), 2, np.int32))
    return rerank.Seen(documents, np.full((B, 1, 2), 6, np.int32), query, question), rewards, group


def learned(steps=60, seed=0):
    rng, state, infos = np.random.default_rng(seed), rerank.init_reranker(OPTIONS), []
    update = rerank.make_reranker_update(OPTIONS.learning_rate)
    for _ in range(steps):
        seen, rewards, group = seen_by(rng)
        state, info = update(state, seen, rewards, group, np.ones(len(rewards), bool))
        infos.append(jax.device_get(info))
    return state, infos


def test_a_planted_signal_is_learned_and_shown():
    state, infos = learned()
    assert infos[0]["concordance"] == 0.5 and np.mean([i["concordance"] for i in infos[-10:]]) > 0.85
    assert np.mean([i["loss"] for i in infos[-10:]]) < 0.5 * infos[0]["loss"]
    documents = np.array([[[11, 12, BAD, 13], [11, 14, 15, 16], [17, 18, GOOD, 19]]] * 2, np.int32)
    order = rerank.chooser(state.weights, 2)(documents, np.full((2, 3), 4, np.int32), np.array([False, True]),
                                             ragged([[1, 2, 3]] * 2, 4), ragged([[4, 4]] * 2, 4))
    assert np.asarray(order).tolist() == [[2, 1], [0, 1]]


def test_what_all_episodes_of_a_group_share_does_not_count():
    seen, rewards, group = seen_by(np.random.default_rng(2))
    weights = {"overlap": np.ones(4, np.float32), "bags": np.random.default_rng(0).normal(size=(2, 64)).astype(np.float32)}
    valid = np.ones(len(rewards), bool)
    value_loss = jax.jit(rerank.value_loss)

    def loss(rewards, valid=valid, seen=seen):
        return float(value_loss(weights, seen, rewards, group, valid)[0])

    assert loss(rewards + 3 * group) == pytest.approx(loss(rewards), rel=1e-4)
    # Episodes that are left out, or saw nothing, have no influence.
    without = np.arange(len(rewards)) != 5
    changed = rewards.copy()
    changed[5] += 9
    assert loss(changed, without) == pytest.approx(loss(rewards, without), rel=1e-5) and loss(changed) != loss(rewards)
    blind = seen.replace(lengths=np.where(np.arange(len(rewards))[:, None, None] == 5, 0, seen.lengths))
    assert loss(changed, seen=blind) == pytest.approx(loss(rewards, seen=blind), rel=1e-5)


def test_learning_is_deterministic_and_needs_no_new_program():
    (one, _), (two, _) = learned(steps=3), learned(steps=3)
    jax.tree.map(np.testing.assert_array_equal, one, two)
    assert rerank.make_reranker_update(OPTIONS.learning_rate)._cache_size() == 1
    assert jax.tree.structure(one.opt_state) == jax.tree.structure(optax.adam(0.1).init(one.weights))
