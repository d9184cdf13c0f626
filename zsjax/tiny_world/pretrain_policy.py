"""A base for the tiny world's policy, from scratch. It reads, knows the form of an episode, and searches badly.

Two phases, each with its own warm-up and decay of the learning rate:
  reading   facts, then the same facts asked in another order; short rows first
  episodes  episodes of a poor searcher, beside rows of facts that preserve reading. In guided episodes the loss leaves
            out the decisions on searching: the model learns to use documents, and reinforcement must teach to find them.
"""

import dataclasses
import pathlib

import jax
import numpy as np

from zsjax import supervised
from zsjax.config.fields import Config, OptimizerConfig, SupervisedConfig
from zsjax.data.assets import asset_path
from zsjax.errors import UserError
from zsjax.models.checkpoints.hf import load_hf
from zsjax.models.decoder import DecoderConfig
from zsjax.models.placement import for_decoding
from zsjax.tiny_world.imitation import Behaviour, episode_rows
from zsjax.tiny_world.induction import induction_init
from zsjax.tiny_world.reading import reading_accuracy
from zsjax.tiny_world.rows import LINE, Vocabulary, reading_rows, vocabulary
from zsjax.tiny_world.transfer import read_vocabulary, relate, transfer
from zsjax.tiny_world.world import RELATIONS


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How `pretrain_policy` trains; fields may be set by config.pretrain.options.

    start: "" starts from `induction_init`. Else a folder or asset with base/ and tokenizer/, a base of another vocabulary
      (`zsjax.tiny_world.transfer`).
    similarity: of a relation's two words at such a start (`zsjax.tiny_world.transfer.relate`).
    reading_steps: steps of the first phase, of config.pretrain.steps in all.
    short_steps: of these, steps with rows of half the length and at most 4 facts.
    max_facts: the most facts told in a row; the fewest are 2.
    unknown: share of asked facts that were not told.
    paraphrase: share of asked facts whose relation is named by its other word.
    episode_rate: learning rate of the second phase.
    episode_tokens: row length of the second phase.
    episodes, reading: rows of each kind in a step of the second phase.
    hops, max_searches: of the episodes.
    table: options of `FactTable`, the worlds that episodes are about.
    behaviour: fields of `Behaviour`.
    """

    start: str = ""
    similarity: float = 0.0
    reading_steps: int = 400
    short_steps: int = 100
    max_facts: int = 10
    unknown: float = 0.15
    paraphrase: float = 0.0
    episode_rate: float = 4e-3
    episode_tokens: int = 192
    episodes: int = 20
    reading: int = 8
    hops: int = 2
    max_searches: int = 3
    table: dict = dataclasses.field(default_factory=dict)
    behaviour: dict = dataclasses.field(default_factory=dict)


# The carried base: 30 rows of 16 facts a step.
POLICY_BASE = SupervisedConfig(
    steps=1400, batch_rows=30, max_tokens=16 * LINE, checkpoint_every=100, optimizer=OptimizerConfig(
        learning_rate=7e-3, schedule="cosine", warmup_steps=50, b2=0.98, weight_decay=0.01))


def pretrain_policy(config: Config, model_config: DecoderConfig, tokenizer, *, writer, directory,
                    config_json: str = "{}", mesh=None) -> dict:
    """Trains the base of the policy from `induction_init`.

    Args:
      config: the run's; pretrain and seed are read. `Recipe` has the options of pretrain; with 0 steps `POLICY_BASE` is
        used.
      model_config: the policy's shape.
      tokenizer: the tiny world's.
      writer: `zsjax.monitor.writer.Writer`; the stages are "pretrain_reading" and "pretrain_episodes".
      directory: of the checkpoints; an interrupted run in it goes on.
      config_json: kept with the checkpoints.
      mesh: see `zsjax.supervised.fit`.

    Returns:
      The parameters, on the mesh.

    Raises:
      UserError: unknown options, or the model's shape does not allow its start.
    """
    options = config.pretrain if config.pretrain.steps else POLICY_BASE
    try:
        recipe = Recipe(**options.options)
        behaviour = Behaviour(**recipe.behaviour)
    except TypeError as error:
        raise UserError(f"pretrain.options: {error}") from error
    vocab = vocabulary(tokenizer)
    try:
        params = _start(recipe, config, model_config, vocab)
    except ValueError as error:
        raise UserError(f"policy.shape: {error}") from error
    reading_steps = min(recipe.reading_steps, options.steps)

    def facts(step):
        short = step < recipe.short_steps
        rng = np.random.default_rng([config.seed, 0, step])
        return reading_rows(rng, vocab, rows=options.batch_rows * (1 + short), max_tokens=options.max_tokens // (1 + short),
                            facts=(2, min(4, recipe.max_facts) if short else recipe.max_facts), unknown=recipe.unknown,
                            paraphrase=recipe.paraphrase)[:2]

    def episodes(step):
        rng = np.random.default_rng([config.seed, 1, step])
        parts = [
            episode_rows(rng, vocab, rows=recipe.episodes, max_tokens=recipe.episode_tokens, behaviour=behaviour,
                         max_searches=recipe.max_searches, hops=recipe.hops, **recipe.table),
            reading_rows(rng, vocab, rows=recipe.reading, max_tokens=recipe.episode_tokens,
                         facts=(2, recipe.max_facts), unknown=recipe.unknown, paraphrase=recipe.paraphrase)[:2]]
        return tuple(np.concatenate(arrays) for arrays in zip(*parts, strict=True))

    def measure(params):
        params = for_decoding(params, model_config, mesh)
        scores = {f"reading_{n}": reading_accuracy(model_config, params, tokenizer, n) for n in (2, 4, 8)}
        if recipe.paraphrase:
            scores["reading_4_paraphrased"] = reading_accuracy(model_config, params, tokenizer, 4, paraphrase=1.0)
        return scores

    phases = [("reading", facts, reading_steps, options.optimizer.learning_rate, options.max_tokens),
              ("episodes", episodes, options.steps - reading_steps, recipe.episode_rate, recipe.episode_tokens)]
    for name, batches, steps, rate, max_tokens in phases:
        phase = dataclasses.replace(options, steps=steps, max_tokens=max_tokens,
                                    optimizer=dataclasses.replace(options.optimizer, learning_rate=rate))
        if steps:
            params = supervised.fit(phase, model_config, params, batches, writer=writer, stage=f"pretrain_{name}",
                                    directory=pathlib.Path(directory) / name, config_json=config_json, measure=measure,
                                    mesh=mesh)
    return params


def _start(recipe: Recipe, config: Config, model_config: DecoderConfig, vocab: Vocabulary):
    """What pretraining starts from."""
    key = jax.random.key(config.seed)
    if not recipe.start:
        return induction_init(model_config, key)
    _, params = load_hf(asset_path(f"{recipe.start}/base"))
    old, new = (read_vocabulary(asset_path(name)) for name in (f"{recipe.start}/tokenizer", config.tokenizer))
    params = transfer(params, old, model_config, new, key)
    return relate(params, vocab.relations, vocab.paraphrases, len(RELATIONS), recipe.similarity, key)
