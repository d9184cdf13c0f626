"""Tuning a simulator on collected searches: supervised, loss on the documents only."""

import dataclasses
import os

from zsjax import supervised
from zsjax.config import Config, SupervisedConfig, UserError
from zsjax.search.simulator import Simulator
from zsjax.simulation.collect import read_searches
from zsjax.simulation.dataset import Emphasis, Encoder, Example, make_batches, make_examples


def tune(config: Config, simulator: Simulator, path: str | os.PathLike, *, writer, directory,
         config_json: str = "{}") -> Simulator:
    """Teaches a simulator to play the engine that was searched with.

    Args:
      config: the run's; tune_simulator, collect, search and seed are read.
      simulator: what to start from.
      path: what `collect.write_searches` wrote.
      writer: `zsjax.metrics.Writer`; the stage is "tune_simulator".
      directory: of this stage's checkpoints; an interrupted run in it goes on.
      config_json: kept with the checkpoints.

    Returns:
      The simulator with tuned parameters.

    Raises:
      UserError: the searches are too few or do not fit the config; the message says how to mend it.
    """
    try:
        provenance, searches = read_searches(path)
        examples = make_examples(searches, simulator.num_documents, balance=config.collect.balance, seed=config.seed)
    except (OSError, ValueError) as error:
        raise UserError(f"tune_simulator: {error}") from error
    writer.note(f"tune_simulator: {len(examples)} examples of {len(searches)} searches "
                f"({provenance.get('engine', 'unknown engine')})")
    return train(config.tune_simulator, simulator, examples, document_format=config.search.document_format,
                 seed=config.seed, stage="tune_simulator", writer=writer, directory=directory, config_json=config_json,
                 lora=config.simulator.lora)


def train(options: SupervisedConfig, simulator: Simulator, examples: list[Example], *, document_format: str, seed: int,
          stage: str, writer, directory, config_json: str = "{}", lora=None) -> Simulator:
    """Supervised training of a simulator on examples; used for tuning and for the tiny world's pretraining.

    options.options may have "emphasis": True, or a dict of `Emphasis`'s fields; without it every document token weighs
    the same. lora: see `supervised.train`.
    """
    try:
        tokens, weights = Encoder(simulator, document_format, emphasis(options)).rows(examples, options.max_tokens)
    except ValueError as error:
        raise UserError(f"{stage}: {error}") from error
    batches = make_batches(tokens, weights, batch_rows=options.batch_rows, seed=seed)
    params = supervised.train(options, simulator.config, simulator.params, batches, writer=writer, stage=stage,
                              directory=directory, config_json=config_json, lora=lora, seed=seed)
    return dataclasses.replace(simulator, params=params)


def emphasis(options: SupervisedConfig) -> Emphasis | None:
    """The `Emphasis` that options.options asks for. Raises ValueError for unknown fields."""
    wanted = options.options.get("emphasis", False)
    if not wanted:
        return None
    fields = {} if wanted is True else dict(wanted)
    known = {field.name for field in dataclasses.fields(Emphasis)}
    if unknown := sorted(set(fields) - known):
        raise ValueError(f"options.emphasis: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return Emphasis(**fields)
