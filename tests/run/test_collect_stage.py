"""The stage collect without a policy: questions, second hops and queries beside the point, of all data sets."""

import json

import pytest

from zsjax.config import ConfigError, resolve
from zsjax.run import pipeline
from zsjax.tuning.collect import OFF_TARGET, read_searches

SHAPE = dict(embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16)
NAMES = [f"spring{i:02d}" for i in range(20)]


def config(folder, **collect):
    (folder / "questions.jsonl").write_text("".join(json.dumps(
        {"id": name, "question": f"Which city has {name}?", "golden_answers": [f"bath{name}"]}) + "\n" for name in NAMES))
    (folder / "corpus.jsonl").write_text("".join(json.dumps(
        {"id": name, "title": f"Page {name} - Part", "text": f"The city with {name} is bath{name}."}) + "\n"
        for name in NAMES))
    (folder / "episodes.jsonl").write_text(json.dumps(
        {"question": {"id": NAMES[0], "question": f"Which city has {NAMES[0]}?", "golden_answers": ["x"]},
         "turns": [{"query": query, "documents": []} for query in (f"Which city has {NAMES[0]}?", "the second city")],
         "answer": "x"}) + "\n")
    files = {"train": "questions", "eval": "questions", "corpus": "corpus", "eval_corpus": "corpus"}
    return resolve({
        "tokenizer": "asset:real/tokenizer", "stages": ["collect"], "policy": {"init": "random", "shape": SHAPE}, "seed": 3,
        "data": {"supervised_share": 0.9, **{name: str(folder / f"{file}.jsonl") for name, file in files.items()}},
        "search": {"engine": "bm25", "index_dir": "", "num_documents": 2},
        "warm_start": {"episodes": str(folder / "episodes.jsonl")}, "collect": {"episodes": 0, **collect}})


def test_searches_of_no_policy(tmp_path):
    settings = config(tmp_path, queries=["question", "episodes"], off_target=0.25, shuffle=True)
    pipeline.run(settings, tmp_path / "run")
    _, searches = read_searches(tmp_path / "run" / "searches.jsonl")
    of = {source: [s for s in searches if s.source == source] for source in ("question", "episode", OFF_TARGET)}
    asked = [search.question.id for search in of["question"]]
    assert 10 < len(asked) < 20 and asked != sorted(asked)  # the supervised ones, not in the file's order
    assert [search.query for search in of["episode"]] == ["the second city"]  # its first query is the question
    assert sorted(search.question.id for search in of[OFF_TARGET]) == sorted(asked)
    assert all(search.documents[0].title.startswith("Page") for search in of["question"])
    assert not any(search.query == search.question.question for search in of[OFF_TARGET])


@pytest.mark.parametrize("collect, field", [({}, "collect.episodes"), ({"queries": ["episodes"], "off_target": 0.2},
                                                                       "collect.off_target")])
def test_nothing_to_collect_is_refused(tmp_path, collect, field):
    with pytest.raises(ConfigError) as error:
        config(tmp_path, **collect)
    assert [problem.field for problem in error.value.problems] == [field]
