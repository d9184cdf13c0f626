"""A base of the tiny world starts one of the hard world: shared words keep their embeddings, all else is the same."""

import dataclasses

import jax
import numpy as np
import pytest

from zsjax.data import load_tokenizer
from zsjax.data.assets import asset_path
from zsjax.models.checkpoints.hf import load_hf
from zsjax.tiny_world.rows import vocabulary
from zsjax.tiny_world.transfer import read_vocabulary, transfer

OLD, NEW = asset_path("asset:tiny_world/tokenizer"), asset_path("asset:hard_world/tokenizer")


def test_words_keep_their_embeddings_and_new_ones_are_like_old_ones():
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
    assert 0.8 < fresh.std() / before.std() < 1.5 and len(np.unique(fresh, axis=0)) == len(fresh)
    assert made["layers"] is params["layers"]


def test_another_shape_cannot_be_started():
    config, params = load_hf(asset_path("asset:tiny_world/base"), dtype="float32")
    with pytest.raises(ValueError, match="3 layers and width 64 cannot start one of 3 layers and width 128"):
        transfer(params, read_vocabulary(OLD), dataclasses.replace(config, embed_dim=128), read_vocabulary(NEW),
                 jax.random.key(0))
