"""Gates: what is asked, and that each kind of bad simulator fails its own gate and the real engine none."""

import pytest

from zsjax.config import GatesConfig
from zsjax.search import BM25, Document
from zsjax.tiny_world import world as tiny_world
from zsjax.tuning import dataset
from zsjax.tuning import simulator_gates as gates

GATES = GatesConfig(useful=0.9, noisy=0.1, leak=0.05)


@pytest.fixture(scope="module")
def world():
    return tiny_world.make_world(0)


@pytest.fixture(scope="module")
def engine(world):
    return BM25.from_documents(world.documents)


class Perfect:
    """Plays the engine as the tuning examples ask for it."""

    def __init__(self, engine):
        self.engine = engine

    def search(self, queries, contexts, *, k):
        rankings = self.engine.search(queries, contexts, k=4 * k)
        return [[Document("", f"* {d.text}") for d in self.reply(ranking, context, k)]
                for ranking, context in zip(rankings, contexts, strict=True)]

    def reply(self, ranking, context, k):
        if context.noisy:
            return dataset.noisy_documents(ranking, context.question.golden_answers, k)
        return ranking[:k]


class Deaf(Perfect):
    """Ignores the noisy word."""

    def reply(self, ranking, context, k):
        return ranking[:k]


class Leaky(Perfect):
    """Shows the answer to any useful query."""

    def reply(self, ranking, context, k):
        if context.noisy:
            return super().reply(ranking, context, k)
        return [Document("", f"it is {context.question.golden_answers[0]}."), *ranking[:k - 1]]


class Useless(Perfect):
    """Always noisy."""

    def reply(self, ranking, context, k):
        return dataset.noisy_documents(ranking, context.question.golden_answers, k)


def test_probes_ask_what_they_say(world):
    names = world.entities
    facts = {tiny_world.query_text(f.relation, names[f.subject]): names[f.object] for f in world.facts}
    probes = gates.make_probes(world.questions, limit=50)
    assert {(p.kind, p.question.metadata["hops"]) for p in probes} == (
        {(kind, 2) for kind in gates.KINDS} | {(k, 1) for k in (gates.RIGHT, gates.WRONG_ENTITY, gates.WRONG_RELATION)})
    assert len([p for p in probes if p.kind == gates.RIGHT]) == 100
    for probe in probes:
        path, relation = probe.question.metadata["path"], probe.query.split(" of ")[0]
        right = probe.question.metadata["queries"][-1]
        entity = probe.query.split(" of ")[1]
        if probe.kind == gates.RIGHT:
            assert facts[probe.query] == path[-1]
        elif probe.kind == gates.FIRST_HOP:
            assert facts[probe.query] == path[1]
        elif probe.kind == gates.OUTER:
            assert entity == path[0] and right.startswith(f"{relation} of ")
        elif probe.kind == gates.WRONG_ENTITY:
            assert entity in world.entities and entity not in path and right.startswith(f"{relation} of ")
        else:
            assert right.endswith(f" of {entity}")
            assert not right.startswith(relation) and relation in tiny_world.RELATIONS
    assert probes == gates.make_probes(world.questions, limit=50)
    assert probes != gates.make_probes(world.questions, limit=50, seed=1)


@pytest.mark.parametrize("simulator, failing", [(Perfect, ""), (Deaf, "noisy replies"), (Leaky, "shows the answer"),
                                                (Useless, "needed")])
def test_each_failure_is_caught(world, engine, simulator, failing):
    rows = gates.gold_shares(simulator(engine), engine, world.questions, k=3, limit=60)
    failed = gates.failed_gates(rows, GATES)
    assert all(failing in line for line in failed) and bool(failed) == bool(failing), failed
    assert gates.failed_gates(rows, GatesConfig()) == []
    assert len(gates.shares_table(rows).splitlines()) == 9
    right = rows[0]
    assert right["kind"] == gates.RIGHT and right["n"] == 60 and right["engine"] == 1.0
    assert right["real_useful"] == pytest.approx(2 / 3 if simulator is Leaky else 1)


def test_questions_must_know_their_queries(world):
    import dataclasses

    bare = [dataclasses.replace(world.questions[0], metadata={})]
    with pytest.raises(ValueError, match="right queries"):
        gates.make_probes(bare, limit=3)
