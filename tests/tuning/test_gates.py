"""Gates: what is asked, and that each kind of bad simulator fails its own gate and the real engine none."""

import pytest

from zsjax.config import GatesConfig
from zsjax.search import BM25, Document
from zsjax.tiny_world import world as tiny_world
from zsjax.tuning import dataset
from zsjax.tuning import simulator_gates as gates
from zsjax.types import Question

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


def test_the_gates_of_held_out_searches():
    good = {"useful": 0.95, "noisy": 0.05, "engine": 0.9, "off_useful": 0.12, "off_engine": 0.1}
    assert gates.failed_on_held_out(good, GATES) == [] == gates.failed_on_held_out({"useful": 0, "noisy": 1}, GatesConfig())
    for change, failing in (({"useful": 0.85}, "at least 0.9 needed"), ({"noisy": 0.2}, "at most 0.1 allowed"),
                            ({"off_useful": 0.16}, "another question's query")):
        (line,) = gates.failed_on_held_out(good | change, GATES)
        assert failing in line
    assert gates.failed_on_held_out({"useful": 0.95, "noisy": 0.05, "engine": 0.9}, GATES) == []  # one question alone


def test_held_out_searches_stop_a_run_whose_questions_know_no_queries(tmp_path, world):
    from zsjax.config import Config
    from zsjax.errors import read_json
    from zsjax.monitor.writer import Writer
    from zsjax.run.stages.context import GateFailed, Run
    from zsjax.run.stages.gate_checks import check_held_out

    bad = {"useful": 0.4, "noisy": 0.4, "engine": 0.6}
    rows = [{"simulator": name, **bad} for name in ("before tuning", "after tuning")] + [{"gate": "replies", "useful": "x"}]
    with Writer(None) as writer:
        run = Run(Config(gates=GatesConfig(noisy=0.1)), tmp_path, writer, "{}")
        for questions, stops in ((world.questions, False), ([Question("1", "?", ("a",))], True)):
            run.train_questions = questions
            if stops:
                with pytest.raises(GateFailed, match="0.40 of the noisy replies, at most 0.1"):
                    check_held_out(run, rows)
                check_held_out(run, rows[:1])  # before tuning nothing is asked for
            else:
                check_held_out(run, rows)
            assert {"gate": "held-out searches", **rows[0]} in read_json(tmp_path / "gates.json", "", list)


@pytest.mark.parametrize("rows", ["[1]", "[{}]", '[{"gate": ["reading"]}]'])
def test_gates_that_no_stage_wrote_are_one_line(tmp_path, rows):
    from zsjax.config import Config
    from zsjax.errors import InputError
    from zsjax.monitor.writer import Writer
    from zsjax.run.stages.context import Run

    (tmp_path / "gates.json").write_text(rows)
    with Writer(None) as writer, pytest.raises(InputError, match="gates.json holds .* not the row of a gate; remove it"):
        Run(Config(), tmp_path, writer, "{}").add_gates([{"gate": "reading"}], [])


def test_questions_must_know_their_queries(world):
    import dataclasses

    bare = [dataclasses.replace(world.questions[0], metadata={})]
    with pytest.raises(ValueError, match="right queries"):
        gates.make_probes(bare, limit=3)
