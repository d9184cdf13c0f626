"""A simulator base for the tiny world, from scratch: it remembers the training worlds as an LLM remembers Wikipedia.

It reads lists of documents of the training worlds behind prompts in the simulator's form, whose mode word is drawn by a
coin that nothing else depends on. So it knows the facts and the form, and knows nothing of useful and noisy: tuning has
to teach that, as it has to teach a real LLM.
"""

import numpy as np

from zsjax.config import Config
from zsjax.errors import UserError
from zsjax.models.decoder import DecoderConfig
from zsjax.run import build
from zsjax.search import BM25
from zsjax.tuning import tune
from zsjax.tuning.collect import DEPTH_FACTOR
from zsjax.tuning.dataset import Example, noisy_documents

EXAMPLES_PER_QUERY = 8
COMPLETE = 1 / 3  # share of replies that hold the best document


def pretrain_simulator(config: Config, tokenizer, *, writer, directory, config_json: str = "{}"
                       ) -> tuple[DecoderConfig, dict]:
    """Trains the base of `config.simulator` on the worlds of `config.data.corpus`.

    Args:
      config: the run's; pretrain_simulator, simulator, data, search and seed are read.
        pretrain_simulator.options may have "examples_per_query" and "emphasis" (see `simulation.tune.train`).
      tokenizer: the tiny world's.
      writer: `zsjax.monitor.writer.Writer`; the stage is "pretrain_simulator".
      directory: of this stage's checkpoints; an interrupted run in it goes on.
      config_json: kept with the checkpoints.

    Returns:
      (DecoderConfig, params).

    Raises:
      UserError: the corpus is not the tiny world's.
    """
    if not config.data.corpus.startswith(build.TINY_WORLD):
        raise UserError(f"pretrain_simulator makes a base for the tiny world, but data.corpus is "
                        f"{config.data.corpus!r}: set simulator.init to a pretrained model and drop the stage")
    options = config.pretrain_simulator
    simulator = build.simulator(config, *build.model(config.simulator, tokenizer, seed=config.seed + 1), tokenizer)
    examples = make_examples(
        build.worlds(config, config.data.corpus), simulator.num_documents, seed=config.seed,
        per_query=options.options.get("examples_per_query", EXAMPLES_PER_QUERY))
    simulator = tune.train(options, simulator, examples, document_format=config.search.document_format,
                           seed=config.seed, stage="pretrain_simulator", writer=writer, directory=directory,
                           config_json=config_json)
    return simulator.config, simulator.params


def make_examples(worlds, num_documents: int, *, seed: int, per_query: int) -> list[Example]:
    """`per_query` prompts for every query of the worlds (each relation of each entity, whether there is such a fact or
    not), each with a question drawn at random.

    A third of the replies are what BM25 finds for the query, the others the same without its best document.
    """
    from zsjax.tiny_world import world as tiny_world

    engine = BM25.from_documents(tiny_world.documents(worlds))
    questions = tiny_world.questions(worlds)
    queries = [tiny_world.query_text(relation, entity)
               for world in worlds for entity in world.entities for relation in tiny_world.RELATIONS]
    rankings = engine.search(queries, k=DEPTH_FACTOR * num_documents)
    rng = np.random.default_rng([seed, 17])
    examples = []
    for query, ranking in zip(queries, rankings, strict=True):
        for _ in range(per_query):
            question = questions[rng.integers(len(questions))]
            noisy, complete = bool(rng.random() < 0.5), rng.random() < COMPLETE
            documents = ranking[:num_documents] if complete else noisy_documents(ranking, (), num_documents)
            examples.append(Example(question, query, noisy, tuple(documents)))
    return examples
