"""The objects that a config names: tokenizer, models, questions, corpora, engines, simulator."""

import dataclasses
import functools
import logging
import pathlib

import jax
import jax.numpy as jnp

from zsjax import sharding
from zsjax.config import Config, ModelConfig
from zsjax.data import load_corpus, load_questions, load_tokenizer
from zsjax.data.assets import asset_path
from zsjax.models import attention, hub
from zsjax.models.decoder import DecoderConfig, init_params
from zsjax.search import BM25, Document, DropBest, Empty
from zsjax.search.prompts import SimulatorTemplate
from zsjax.search.simulator import Simulator
from zsjax.types import Question

TINY_WORLD = "tiny_world:"


def tokenizer(config: Config):
    return load_tokenizer(_local(config.tokenizer, weights=False))


def _local(name: str, *, weights: bool) -> pathlib.Path:
    """The path of "asset:NAME", "hf:OWNER/NAME" or a path."""
    return hub.local_folder(name, weights=weights) if name.startswith(hub.PREFIX) else asset_path(name)


def model(config: ModelConfig, tokenizer, *, seed: int, path=None, mesh=None, rules=None) -> tuple[DecoderConfig, dict]:
    """(DecoderConfig, params) of a model: random, or loaded from `path` or, without one, `config.init`.

    Activations get `config.dtype`, parameters `config.param_dtype`, whatever the checkpoint was written in. With a mesh
    of several devices, parameters are cut over it under `rules` (`zsjax.sharding`).

    Raises:
      ValueError, FileNotFoundError: what `load_hf` says of the checkpoint, or an attention kernel that cannot run.
    """
    path = path or config.init
    mesh = None if mesh is None or mesh.size == 1 else mesh
    if str(path) == "random":
        shape = DecoderConfig(**({"vocab_size": tokenizer.vocab_size} | dict(config.shape)), dtype=config.dtype,
                              attention=config.attention)
        attention.choose(shape)
        params = init_params(shape, jax.random.key(seed), jnp.dtype(config.param_dtype))
        if config.positional_bias_init:
            from zsjax.models.init import positional_bias_init

            params = positional_bias_init(params, shape, jax.random.key(seed))
        return shape, params if mesh is None else sharding.reshard(params, sharding.param_shardings(shape, mesh, rules))
    from zsjax.models.hf import load_hf, read_config

    folder = _local(str(path), weights=True)
    shape = dataclasses.replace(read_config(folder), dtype=config.dtype, attention=config.attention)
    attention.choose(shape)
    _, params = load_hf(folder, dtype=config.param_dtype, mesh=mesh, rules=rules, tokenizer=tokenizer,
                        check_finite=config.check_finite)
    return shape, params


def worlds(config: Config, name: str):
    """The tiny worlds behind "tiny_world:train" or "tiny_world:eval"."""
    from zsjax.data import tiny_world

    return tiny_world.resolve(name, **config.world)


def questions(config: Config, source: str, limit: int | None = None) -> list[Question]:
    if source.startswith(TINY_WORLD):
        from zsjax.data import tiny_world

        return list(tiny_world.questions(worlds(config, source)))[:limit]
    return list(load_questions(source, limit=limit))


def corpus(config: Config, source: str) -> list[Document]:
    if source.startswith(TINY_WORLD):
        from zsjax.data import tiny_world

        return tiny_world.documents(worlds(config, source))
    return load_corpus(source)


def engine(name: str, config: Config, source: str, *, drop_best: float = 0.0):
    """A host engine by name over the corpus `source`; drop_best > 0 loses the best document at random."""
    if name == "empty":
        return Empty()
    found = BM25.from_documents(corpus(config, source))
    return DropBest(found, drop_best, seed=config.seed) if drop_best else found


def simulator(config: Config, model_config: DecoderConfig, params, tokenizer) -> Simulator:
    search, template = config.search, SimulatorTemplate.load(config.prompts.simulator)
    if config.prompts.simulator_chat:
        template = template.in_chat(tokenizer)
    _tell_form(template.name, config.prompts.simulator_chat)
    return Simulator(
        config=model_config, params=params, tokenizer=tokenizer, template=template, num_documents=search.num_documents,
        max_document_tokens=search.max_document_tokens, max_query_tokens=search.max_query_tokens,
        max_question_tokens=config.rollout.max_prompt_tokens, temperature=search.temperature, top_p=search.top_p,
        shuffle_documents=search.shuffle_documents)


@functools.cache  # once a run
def _tell_form(template: str, chat: bool):
    form = "in the tokenizer's chat template" if chat else "as plain text"
    logging.info("simulator prompts: template %r %s", template, form)


def frozen(config: ModelConfig, simulator: Simulator) -> Simulator:
    """The simulator as it plays: with `config.quantize`, which cannot be trained any more."""
    if config.quantize == "none":
        return simulator
    from zsjax.models.quant import quantize

    return dataclasses.replace(simulator, params=quantize(simulator.params))


def checkpoint_exists(path: pathlib.Path) -> bool:
    """Whether a folder holds a whole model: `save_hf` renames it into place when it is complete."""
    return (path / "config.json").exists()
