"""A base of one vocabulary as the start of a base of another: words that both know keep their embeddings."""

import json
import pathlib

import jax
import jax.numpy as jnp

from zsjax.errors import InputError
from zsjax.models.layers import DecoderConfig


def transfer(params, tokens: dict[str, int], config: DecoderConfig, new_tokens: dict[str, int], key):
    """The parameters with an embedding of the new vocabulary.

    Args:
      params: of a decoder with tied embeddings, as `param_specs`.
      tokens: its vocabulary, token -> id.
      config: the decoder with the new vocabulary, else of the same shape.
      new_tokens: the new vocabulary.
      key: of the draws. A word that the old vocabulary lacks gets the mean of the old embeddings, plus noise of half
        their deviation. (A copy of an old word would be a rival of that word at the output.)

    Returns:
      New params; all arrays but the embedding are the given ones.

    Raises:
      InputError: the shapes differ in more than the vocabulary.
    """
    old = jnp.asarray(params["embed_tokens"], jnp.float32)
    if not config.tie_embeddings or old.shape[1] != config.embed_dim or len(params["layers"]) != config.num_layers:
        raise InputError(f"a base of {len(params['layers'])} layers and width {old.shape[1]} cannot start one of "
                         f"{config.num_layers} layers and width {config.embed_dim}, or one without tied embeddings")
    known = {word: new for word, new in new_tokens.items() if word in tokens}
    noise = jax.random.normal(key, (config.vocab_size, config.embed_dim))
    embedding = old.mean(axis=0) + 0.5 * old.std() * noise
    new, its_old = (jnp.array(ids) for ids in (list(known.values()), [tokens[word] for word in known]))
    return {**params, "embed_tokens": embedding.at[new].set(old[its_old])}


def relate(params, relations, paraphrases, known: int, similarity: float, key):
    """The parameters with new relations placed among the known ones, and each paraphrase near its relation.

    A language model knows that "spouse" and "partner" mean the same before it searches. Here that is a start.

    Args:
      params: with a tied embedding [V, D].
      relations, paraphrases: int[R] token ids; the words at one place mean the same.
      known: number of relations, the first ones, that keep their embeddings.
      similarity: cosine of a paraphrase and its relation, both taken from the mean of the known relations.
      key: of the draws.
    """
    embedding = params["embed_tokens"]
    mean, spread = embedding[relations[:known]].mean(axis=0), embedding[relations[:known]].std(axis=0).mean()
    draws = spread * jax.random.normal(key, (2, len(relations), embedding.shape[1]))
    embedding = embedding.at[relations[known:]].set(mean + draws[0, known:])
    own = similarity * (embedding[relations] - mean) + (1 - similarity ** 2) ** 0.5 * draws[1]
    return {**params, "embed_tokens": embedding.at[paraphrases].set(mean + own)}


def read_vocabulary(folder: pathlib.Path) -> dict[str, int]:
    """token -> id of the tokenizer.json in a folder."""
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    return content["model"]["vocab"] | {token["content"]: token["id"] for token in content["added_tokens"]}
