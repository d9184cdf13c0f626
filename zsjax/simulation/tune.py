"""Tuning the simulator on collected searches: prompt, then useful or noisy documents, loss on the documents only."""

import dataclasses
import pathlib

from zsjax import supervised
from zsjax.config import Config
from zsjax.search.simulator import Simulator
from zsjax.simulation.collect import read_searches
from zsjax.simulation.dataset import Emphasis, Encoder, make_batches, make_examples


def tune(config: Config, simulator: Simulator, searches: pathlib.Path, *, writer, directory,
         config_json: str = "{}") -> Simulator:
    """The simulator, fine-tuned on the searches.

    Args:
      config: tune_simulator, collect, search and seed are read. `tune_simulator.options["emphasis"]`: fields of
        `Emphasis`; absent weighs every document token 1.
      simulator: the base; its prompts and budgets are those of the examples.
      searches: a file of `write_searches`.
      writer, directory, config_json: as `supervised.train`.
    """
    options, settings = config.tune_simulator, config.search
    _, found = read_searches(searches)
    examples = make_examples(found, settings.num_documents, balance=config.collect.balance, seed=config.seed)
    emphasis = options.options.get("emphasis")
    encoder = Encoder(simulator, settings.document_format, emphasis if emphasis is None else Emphasis(**emphasis))
    tokens, weights = encoder.rows(examples, options.max_tokens)
    writer.note(f"tune_simulator: {len(examples)} examples from {len(found)} searches")
    batches = make_batches(tokens, weights, batch_rows=options.batch_rows, seed=config.seed)
    params = supervised.train(options, simulator.config, simulator.params, batches, writer=writer,
                              stage="tune_simulator", directory=directory, config_json=config_json)
    return dataclasses.replace(simulator, params=params)
