"""A base of the tiny world starts one of the hard world: shared words keep their embeddings, all else is the same."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax.data import load_tokenizer
from zsjax.data.assets import asset_path
from zsjax.models import decoder
from zsjax.models.checkpoints.hf import load_hf
from zsjax.tiny_world.rows import vocabulary
from zsjax.tiny_world.transfer import read_vocabulary, relate, transfer

OLD, NEW = asset_path("asset:tiny_world/tokenizer"), asset_path("asset:hard_world/tokenizer")


def test_words_keep_their_embeddings_and_new_ones_are_no_rivals_at_the_output():
    config, params = load_hf(asset_path("asset:tiny_world/base"), dtype="float32")
    wider = dataclasses.replace(config, vocab_size=load_tokenizer(NEW).vocab_size)
    made = transfer(params, read_vocabulary(OLD), wider, read_vocabulary(NEW), jax.random.key(0))
    old, new = vocabulary(load_tokenizer(OLD)), vocabulary(load_tokenizer(NEW))
    before, after = np.asarray(params["embed_tokens"]), np.asarray(made["embed_tokens"])
    assert after.shape == (wider.vocab_size, config.embed_dim)
    for name in ("first", "last"):
        np.testing.assert_array_equal(after[getattr(new, name)], before[getattr(old, name)])
    np.testing.assert_array_equal(after[new.relations[:8]], before[old.relations])
    for text in ("<search>", "</think>", " is", "\n<information>\n"):
        np.testing.assert_array_equal(after[list(new.ids(text))], before[list(old.ids(text))])
    fresh = after[np.concatenate([new.relations[8:], new.paraphrases])]
    assert 0.4 < fresh.std() / before.std() < 1 and len(np.unique(fresh, axis=0)) == len(fresh)
    assert made["layers"] is params["layers"]
    text = "What is the rival of Kala Brawick?\n<think> look </think><search> rival of Kala Brawick </search>"
    ids = load_tokenizer(NEW).encode(text)
    share = jax.nn.softmax(decoder.forward(made, wider, np.array([ids], np.int32)), axis=-1)
    known = [new_id for word, new_id in read_vocabulary(NEW).items() if word in read_vocabulary(OLD)]
    assert np.asarray(share)[0, -20:, known].sum(axis=0).min() > 0.9


@pytest.mark.parametrize("similarity", [0.0, 0.7])
def test_two_words_of_a_relation_start_alike_and_the_known_ones_stay(similarity):
    embedding = np.random.default_rng(0).normal(2, 0.5, (200, 256)).astype(np.float32)
    relations, paraphrases = np.arange(100, 120), np.arange(120, 140)[::-1]
    made = np.asarray(relate({"embed_tokens": jnp.asarray(embedding)}, relations, paraphrases, 10, similarity,
                             jax.random.key(0))["embed_tokens"])
    np.testing.assert_array_equal(np.delete(made, np.r_[110:140], axis=0), np.delete(embedding, np.r_[110:140], axis=0))
    words = made - embedding[100:110].mean(axis=0)
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    cosines = words[relations] @ words[paraphrases].T
    assert abs(np.diag(cosines).mean() - similarity) < 0.06
    assert abs(cosines[10:, 10:][~np.eye(10, dtype=bool)]).max() < 0.3


def test_another_shape_cannot_be_started():
    config, params = load_hf(asset_path("asset:tiny_world/base"), dtype="float32")
    with pytest.raises(ValueError, match="3 layers and width 64 cannot start one of 3 layers and width 128"):
        transfer(params, read_vocabulary(OLD), dataclasses.replace(config, embed_dim=128), read_vocabulary(NEW),
                 jax.random.key(0))
