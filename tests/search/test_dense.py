"""Dense retrieval: exact neighbours, an index that survives the disk, and our decoders as embedders."""

import jax
import numpy as np
import pytest

from zsjax.data import load_tokenizer
from zsjax.models.decoder import DecoderConfig, hidden_states, init_params
from zsjax.search import Dense, Document, decoder_embedder


def letters(texts):
    """Counts of letters: an embedder that a person can follow."""
    return np.array([[text.lower().count(c) for c in "abcdefgh"] for text in texts], np.float32)


CORPUS = [Document("", "aaab"), Document("b", "bb"), Document("", "gh"), Document("", "aab"), Document("", "aaaabb")]


def test_nearest_by_cosine_and_ties_in_order():
    engine = Dense.from_documents(CORPUS, letters, batch_size=2)
    assert [d.text for d in engine.search(["aaab"], None, k=3)[0]] == ["aaab", "aab", "aaaabb"]
    twins = engine.search(["aab"], None, k=2)[0]
    assert [d.text for d in twins] == ["aab", "aaaabb"] and twins[0].score == pytest.approx(1.0, abs=1e-6)
    assert [len(found) for found in engine.search(["b"] * 70, None, k=99)] == [5] * 70
    assert engine.search([], None, k=1) == []


def test_equal_to_a_slow_version():
    rng = np.random.default_rng(0)
    table = {f"t{i}": rng.normal(size=16) for i in range(300)}

    def embed(texts):
        return np.stack([table[text.strip()] for text in texts])

    engine = Dense.from_documents([{"text": f"t{i}"} for i in range(200)], embed)
    queries = [f"t{i}" for i in range(150, 300)]

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    scores = unit(embed(queries)) @ unit(embed([f"t{i}" for i in range(200)])).T
    for row, found in zip(scores, engine.search(queries, None, k=7), strict=True):
        assert [d.text for d in found] == [f"t{i}" for i in np.argsort(-row)[:7]]


def test_stored_index(tmp_path):
    engine = Dense.from_documents(CORPUS, letters, name="letters")
    engine.save(tmp_path / "index")
    loaded = Dense.load(tmp_path / "index", letters, name="letters")
    assert isinstance(loaded._vectors, np.memmap)
    assert loaded.search(["ab", "g"], None, k=3) == engine.search(["ab", "g"], None, k=3)
    with pytest.raises(ValueError, match="'letters', not 'other'"):
        Dense.load(tmp_path / "index", letters, name="other")


@pytest.mark.parametrize("embed", [lambda texts: np.zeros(len(texts)), lambda texts: np.zeros((1, 4)),
                                   lambda texts: np.full((len(texts), 2), np.nan)])
def test_bad_embedders(embed):
    with pytest.raises(ValueError, match="it must return finite"):
        Dense.from_documents(CORPUS, embed)
    with pytest.raises(ValueError, match="corpus is empty"):
        Dense.from_documents([], letters)


def test_our_decoder_embeds_by_its_last_token():
    tokenizer = load_tokenizer("asset:real/tokenizer")
    config = DecoderConfig(vocab_size=4096, embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)
    params = init_params(config, jax.random.key(0))
    texts = ["a short text", "", "one that is rather longer than the others, so that it is cut " * 3, "zwei Wörter"]
    embed = decoder_embedder(config, params, tokenizer, max_tokens=24, batch_rows=2)
    vectors = embed(texts)
    for text, vector in zip(texts, vectors, strict=True):  # each row alone, without padding
        ids = [*tokenizer.encode(text)[:23], tokenizer.pad_id]
        hidden = np.asarray(hidden_states(params, config, np.array([ids])))[0, -1]
        np.testing.assert_allclose(vector, hidden / np.linalg.norm(hidden), atol=1e-5)
    asked = decoder_embedder(config, params, tokenizer, max_tokens=24, text_format="Query:{query}")
    np.testing.assert_allclose(asked(["a"]), embed(["Query:a"]), atol=1e-5)
