"""A simulator base for the tiny world, from scratch. It remembers the training worlds as an LLM remembers Wikipedia.

It is trained on documents of the training worlds behind prompts in the simulator's form. The prompt's mode word is
random and says nothing about the documents. So the base knows the facts and the form; tuning must teach useful and
noisy, as for a real LLM.
"""

import numpy as np

from zsjax.config.fields import Config
from zsjax.search import BM25
from zsjax.search.simulator.simulator import Simulator
from zsjax.tiny_world import world as tiny_world
from zsjax.tuning import tune
from zsjax.tuning.collect import DEPTH_FACTOR
from zsjax.tuning.dataset import Example, noisy_documents

EXAMPLES_PER_QUERY = 8
COMPLETE = 1 / 3  # share of replies that hold the best document


def train_simulator_base(config: Config, simulator: Simulator, *, writer, directory, config_json: str = "{}",
                         mesh=None) -> Simulator:
    """Trains the base of the simulator on the worlds of `config.data.corpus`.

    Args:
      config: the run's; pretrain_simulator, data, world, search and seed are read. pretrain_simulator.options may have
        "examples_per_query" and "paraphrase" (see `world_examples`), and "emphasis" (see
        `zsjax.tuning.tune.fit_simulator`).
      simulator: with the parameters to start from, and the tiny world's tokenizer.
      writer: `zsjax.monitor.writer.Writer`; the stage is "pretrain_simulator".
      directory: of this stage's checkpoints; an interrupted run in it goes on.
      config_json: kept with the checkpoints.
      mesh: see `zsjax.supervised.fit`.

    Returns:
      The simulator with trained parameters.

    Raises:
      InputError: the corpus is not the tiny world's.
    """
    options = config.pretrain_simulator
    examples = world_examples(
        tiny_world.worlds_of(config.data.corpus, **config.world), simulator.num_documents, seed=config.seed,
        per_query=options.options.get("examples_per_query", EXAMPLES_PER_QUERY),
        paraphrase=options.options.get("paraphrase", 0.0))
    return tune.fit_simulator(options, simulator, examples, document_format=config.search.document_format, seed=config.seed,
                              stage="pretrain_simulator", writer=writer, directory=directory, config_json=config_json,
                              mesh=mesh)


def world_examples(worlds, num_documents: int, *, seed: int, per_query: int, paraphrase: float = 0.0) -> list[Example]:
    """`per_query` prompts for every query of the worlds, each with a question drawn at random.

    A query asks a relation of an entity. As many of them have no fact as have one. A third of the replies are what BM25
    finds for the query, the others the same without its best document.

    Args:
      worlds: of `zsjax.tiny_world.world`.
      num_documents: documents of a reply.
      seed: of the draws.
      per_query: prompts for each query.
      paraphrase: share of the queries whose word for the relation is not the documents'.
    """
    engine = BM25.from_documents(tiny_world.documents(worlds))
    questions = tiny_world.questions(worlds)
    queries = [tiny_world.query_text(relation, entity) for relation, entity in _requests(worlds, seed)]
    if paraphrase:
        rng = np.random.default_rng([seed, 18])
        queries = [_paraphrased(query) if rng.random() < paraphrase else query for query in queries]
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


def _requests(worlds, seed: int) -> list[tuple[str, str]]:
    """(relation, entity): every fact, and as many pairs of every entity that have none."""
    from zsjax.tiny_world import world as tiny_world

    rng, found = np.random.default_rng([seed, 19]), []
    for world in worlds:
        told = {}
        for fact in world.facts:
            told.setdefault(fact.subject, []).append(fact.relation)
        used = {fact.relation for fact in world.facts}
        relations = [relation for relation in tiny_world.ALL_RELATIONS if relation in used]
        for subject, entity in enumerate(world.entities):
            absent = [relation for relation in relations if relation not in told[subject]]
            absent = {absent[i] for i in rng.permutation(len(absent))[:len(told[subject])]}
            found += [(relation, entity) for relation in relations if relation in absent or relation in told[subject]]
    return found


def _paraphrased(query: str) -> str:
    from zsjax.tiny_world import world as tiny_world

    relation, of, entity = query.partition(" of ")
    return tiny_world.PARAPHRASES[relation] + of + entity
