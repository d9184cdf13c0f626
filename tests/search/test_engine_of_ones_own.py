"""The seam of search engines: one from outside the package trains a policy and evaluates it, by a name in the config."""

import json
import textwrap

import pytest

from zsjax.config import ConfigError, resolve, write_config
from zsjax.errors import UserError
from zsjax.monitor.writer import read_jsonl
from zsjax.run import build, pipeline

# What somebody writes: one file, and no edit elsewhere.
ENGINE = textwrap.dedent("""
    import dataclasses
    from zsjax.config.declare import field
    from zsjax.search import Document, Engine

    @dataclasses.dataclass(frozen=True)
    class Options:
        note: str = "nothing"
        copies: int = field(1, "documents found", "[1, 5]")

    class Echo(Engine):
        def __init__(self, setting, options: Options):
            self.titles, self.options = {document.title for document in setting.documents()}, options
            self.counters = {"echoed": 0}

        def search(self, queries, contexts, *, k):
            self.counters["echoed"] += len(queries)
            return [[Document(title, self.options.note) for title in sorted(self.titles)][:min(k, self.options.copies)]
                    for _ in queries]
""")


@pytest.fixture
def settings(tmp_path, monkeypatch):
    (tmp_path / "echo_engine.py").write_text(ENGINE)
    monkeypatch.syspath_prepend(tmp_path)
    rows = [{"id": f"d{i}", "title": f"T{i}", "text": "x"} for i in range(3)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = str(tmp_path / "corpus.jsonl")
    return {
        "stages": ["train"], "tokenizer": "asset:tiny_world/tokenizer", "prompts": {"policy": "tiny_world"},
        "policy": {"init": "asset:tiny_world/policy"}, "data": {"corpus": corpus, "eval_corpus": corpus},
        "search": {"engine": "echo_engine:Echo", "eval_engine": "echo_engine:Echo", "num_documents": 2,
                   "max_document_tokens": 24, "max_query_tokens": 8, "options": {"note": "Rome", "copies": 2}},
        "rollout": {"max_turns": 2, "max_turn_tokens": 32, "max_prompt_tokens": 64, "max_tokens": 192},
        "train": {"steps": 1, "questions_per_step": 4, "group_size": 2, "minibatches": 1, "eval_every": 1,
                  "eval_questions": 2}}


def test_it_trains_and_evaluates(settings, tmp_path):
    pipeline.run(resolve(settings), tmp_path / "run")
    (line,) = [line for line in read_jsonl(tmp_path / "run" / "metrics.jsonl") if line["stage"] == "train"]
    assert line["step"] == 1 and line["engine/echoed"] > 0 and "eval/em" in line
    (record, *_) = read_jsonl(next((tmp_path / "run" / "trajectories").glob("*.jsonl")))
    shown = [segment["text"] for segment in record["segments"] if segment["role"] == "document"]
    assert shown and all(text.count("Rome") == 2 for text in shown)


def test_its_options_are_checked_before_any_work_and_kept(settings, tmp_path):
    with pytest.raises(ConfigError) as caught:
        resolve(settings, {"search.options.copies": "9", "search.options.nota": "x"})
    assert [problem.field for problem in caught.value.problems] == ["search.options.copies", "search.options"]
    write_config(tmp_path / "run", resolve(settings))
    with pytest.raises(ConfigError, match="search.options.copies"):
        write_config(tmp_path / "run", resolve(settings, {"search.options.copies": "3"}))


def test_a_file_that_it_does_not_find_is_one_line(settings, tmp_path):
    (tmp_path / "absent_engine.py").write_text(ENGINE.replace('self.counters = {"echoed": 0}', "open(options.note)"))
    config = resolve(settings, {"search.options.note": "nowhere.csv"})
    with pytest.raises(UserError, match=r"'absent_engine:Echo' cannot start: .*nowhere.csv.*; check config.search.options"):
        build.engine("absent_engine:Echo", config, settings["data"]["corpus"])
