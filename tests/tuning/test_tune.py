"""The simulator's pretraining and tuning: they run from a config, learn, and say what is wrong with their input."""

import dataclasses

import jax
import numpy as np
import pytest

from zsjax.config import (
    CollectConfig,
    Config,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    PromptsConfig,
    SearchConfig,
    SupervisedConfig,
    UserError,
)
from zsjax.monitor.writer import Writer, read_jsonl
from zsjax.run import build
from zsjax.search import BM25, Document
from zsjax.tiny_world import world
from zsjax.tiny_world.pretrain_simulator import train_simulator_base, world_examples
from zsjax.tuning import collect, tune
from zsjax.tuning import simulator_gates as gates
from zsjax.types import Question

SHAPE = dict(embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)
PHASE = SupervisedConfig(steps=30, batch_rows=8, max_tokens=80, checkpoint_every=30,
                         optimizer=OptimizerConfig(learning_rate=1e-2, b2=0.98),
                         options={"examples_per_query": 2, "emphasis": True})
CONFIG = Config(world={"train_worlds": 1, "entities": 10}, data=DataConfig(), tune_simulator=PHASE,
                pretrain_simulator=PHASE, prompts=PromptsConfig(policy="tiny_world", simulator="tiny_world"),
                search=SearchConfig(num_documents=3, max_document_tokens=12, max_query_tokens=12,
                                    document_format="* {text}"),
                simulator=ModelConfig(init="random", shape=SHAPE, positional_bias_init=True))


@pytest.fixture(scope="module")
def tokenizer():
    return build.tokenizer(CONFIG)


def start(tokenizer):
    return build.simulator(CONFIG, *build.model(CONFIG.simulator, tokenizer, seed=1), tokenizer)


def losses(workdir, stage):
    return [line["loss"] for line in read_jsonl(workdir / "metrics.jsonl") if line["stage"] == stage]


def test_pretraining_then_tuning(tmp_path, tokenizer):
    worlds = build.worlds(CONFIG, CONFIG.data.corpus)
    engine = BM25.from_documents(world.documents(worlds))
    probes = gates.make_probes(world.questions(worlds), limit=20)
    searches = collect.search_for([(p.question, p.query, p.kind) for p in probes], engine, num_documents=3)
    collect.write_searches(tmp_path / "searches.jsonl", searches, provenance={"engine": "bm25"})
    with Writer(tmp_path, tensorboard=False) as writer:
        simulator = train_simulator_base(CONFIG, start(tokenizer), writer=writer, directory=tmp_path / "a")
        tuned = tune.tune(CONFIG, simulator, tmp_path / "searches.jsonl", writer=writer, directory=tmp_path / "b")
        # Finished stages are not trained again, and give the same parameters.
        again = tune.tune(CONFIG, simulator, tmp_path / "searches.jsonl", writer=writer, directory=tmp_path / "b")
    for stage in ("pretrain_simulator", "tune_simulator"):
        fell = losses(tmp_path, stage)
        assert len(fell) == 3 and fell[-1] < fell[0], (stage, fell)
    for a, b in zip(jax.tree.leaves(tuned.params), jax.tree.leaves(again.params), strict=True):
        np.testing.assert_array_equal(a, b)
    rows = gates.gold_shares(tuned, engine, world.questions(worlds), k=3, limit=8)
    assert all(0 <= row[share] <= 1 for row in rows for share in ("useful", "noisy", "engine"))


def test_the_mode_word_means_nothing_in_pretraining():
    worlds = build.worlds(CONFIG, CONFIG.data.corpus)
    engine = BM25.from_documents(world.documents(worlds))
    examples = world_examples(worlds, 3, seed=0, per_query=40)
    best = {query: engine.search([query], k=1)[0][0] for query in {example.query for example in examples}}
    complete = np.array([best[example.query] in example.documents for example in examples])
    noisy = np.array([example.noisy for example in examples])
    assert len(examples) == 40 * 80 and all(len(example.documents) == 3 for example in examples)
    assert abs(np.mean(noisy) - 0.5) < 0.04 and abs(np.mean(complete) - 1 / 3) < 0.04
    assert abs(np.corrcoef(noisy, complete)[0, 1]) < 0.06


class Echo:
    """Useful replies repeat the query, noisy ones do not."""

    num_documents = 1

    def search(self, queries, contexts, *, k):
        return [[Document("", "no" if context.noisy else query)] for query, context in zip(queries, contexts, strict=True)]


def test_held_out_questions_are_asked_their_own_and_another_query():
    searches = [collect.Search(Question(str(i), "?", (f"word{i}",)), f"about word{i}", (Document("", f"word{found}"),))
                for i, found in ((0, 0), (0, 5), (1, 0), (2, 2))]
    shares, replies = tune.held_out_replies(Echo(), searches)
    # Question 0 is asked about word1 both times, whose search found word0; question 1 about word2, and 2 about word0.
    assert shares == {"n": 4, "useful": 1.0, "noisy": 0.0, "engine": 0.5, "off_useful": 0.0, "off_noisy": 0.0,
                      "off_engine": 0.5}
    assert replies[2] == {"question": "?", "answers": "word1", "query": "about word1", "useful": "about word1",
                          "noisy": "no", "engine": "word0"}
    alone, _ = tune.held_out_replies(Echo(), searches[:2])
    assert set(alone) == {"n", "useful", "noisy", "engine"}


def test_no_query_of_a_held_out_search_is_tuned_on():
    """Searches beside the point ask another question's query, and two questions may have the same second hop."""
    questions = [Question(str(i), f"Who is {i}?", (f"a{i}",)) for i in range(40)]
    named = [Question(f"n{i}", f"Is it a{i} or b?", (f"a{i}",)) for i in range(40)]
    searches = [collect.Search(q, f"Query  {q.id}", ()) for q in questions + named]
    searches += [collect.Search(q, f"hop {int(q.id) % 7}", (), source="episode") for q in questions]
    searches += [collect.Search(q, f"query {(int(q.id) + 1) % 40}", (), source=collect.OFF_TARGET) for q in questions]
    tuned, held_out = tune.split_by_question(searches, 0.3, leave_out=("named",))

    def each(name, side):
        return {getattr(search, name) for search in side}

    def ids(side):
        return {search.question.id for search in side if search.source == "policy"}

    queries = [{query.lower().split()[-1] for query in each("query", side) if "hop" not in query}
               for side in (tuned, held_out)]
    assert queries[1] and not queries[0] & queries[1]
    assert each("source", held_out) == {"policy"} and each("source", tuned) == {"policy", "episode", collect.OFF_TARGET}
    # A query beside the point costs an example, not a held-out search.
    assert ids(held_out) == {question.id for question in questions} - ids(tuned)
    assert ids(tune.split_by_question(searches, 0.3)[1]) & {question.id for question in named}
    assert tune.split_by_question(searches, 0.0) == (searches, [])


def test_tuning_reports_held_out_searches(tmp_path, tokenizer, capsys):
    config = dataclasses.replace(CONFIG, collect=CollectConfig(hold_out=0.4),
                                 tune_simulator=dataclasses.replace(PHASE, steps=1))
    worlds = build.worlds(config, config.data.corpus)
    queries = [(p.question, p.query, p.kind) for p in gates.make_probes(world.questions(worlds), limit=20)]
    searches = collect.search_for(queries, BM25.from_documents(world.documents(worlds)), num_documents=3)
    collect.write_searches(tmp_path / "searches.jsonl", searches, provenance={})
    rows = []
    with Writer(None) as writer:
        tune.tune(config, start(tokenizer), tmp_path / "searches.jsonl", writer=writer, directory=tmp_path / "a",
                  report=rows.extend)
    held_out = tune.split_by_question(searches, 0.4)[1]
    before, after, *replies = rows
    for row, name in ((before, "before tuning"), (after, "after tuning")):
        assert row["simulator"] == name and row["n"] == len(held_out)
        assert 0 < row["off_engine"] < 1 and 0 < row["engine"] < 1
    assert before["engine"] == after["engine"]
    assert [reply["gate"] for reply in replies] == ["replies before tuning"] * 10 + ["replies after tuning"] * 10
    assert [reply["query"] for reply in replies[10:]] == [search.query for search in held_out[:10]]
    assert all(reply[name] and reply[name].count("\n") < 3 for reply in replies for name in ("useful", "noisy", "engine"))

    # Where tuning has seen every query there is nothing to measure, and that is said.
    alike = [dataclasses.replace(search, query="the same") for search in searches]
    collect.write_searches(tmp_path / "alike.jsonl", alike, provenance={})
    rows.clear()
    with Writer(None) as writer:
        tune.tune(config, start(tokenizer), tmp_path / "alike.jsonl", writer=writer, directory=tmp_path / "b",
                  report=rows.extend)
    assert not rows and "nothing is measured" in capsys.readouterr().out


def test_mistakes_are_told(tmp_path, tokenizer):
    simulator = start(tokenizer)
    with Writer(None) as writer:
        told = dict(writer=writer, directory=tmp_path / "c")
        with pytest.raises(UserError, match="nothing.jsonl"):
            tune.tune(CONFIG, simulator, tmp_path / "nothing.jsonl", **told)
        collect.write_searches(tmp_path / "none.jsonl", [], provenance={})
        with pytest.raises(UserError, match="collect more searches"):
            tune.tune(CONFIG, simulator, tmp_path / "none.jsonl", **told)
        other = dataclasses.replace(CONFIG, data=DataConfig(corpus="corpus.jsonl"))
        with pytest.raises(UserError, match="corpus.jsonl"):
            train_simulator_base(other, simulator, **told)
    with pytest.raises(ValueError, match="loud"):
        tune.emphasis(SupervisedConfig(options={"emphasis": {"loud": 1}}))
