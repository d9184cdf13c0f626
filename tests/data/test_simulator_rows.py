"""Published replies of a search engine, in each form that such data sets have, become examples of a simulator."""

import json
import time

import pyarrow
import pyarrow.parquet
import pytest

from zsjax import launch
from zsjax.data.simulator_rows import SimulatorRow, simulator_row
from zsjax.errors import InputError
from zsjax.run.import_searches import import_searches
from zsjax.tuning.collect import read_searches
from zsjax.tuning.dataset import make_examples

REPLY = "Doc 1: Emma is a novel by Jane Austen.\nDoc 2: Jane Austen lived in Chawton."


def prompt(mode="useful", golds="Jane Austen", question="Who wrote Emma?"):
    """Our own words with the marks of the published prompt."""
    return (f"You play a search engine. Write five {mode} documents for the query.\n\n"
            f"Somebody asks this question: {question} whose answer is {golds}.\n"
            f"Each has thirty words.\n\nQuery: author of Emma\n{mode.capitalize()} Output:\n")


WANTED = SimulatorRow("Who wrote Emma?", ("Jane Austen",), "author of Emma", False,
                      ("Emma is a novel by Jane Austen.", "Jane Austen lived in Chawton."))


@pytest.mark.parametrize("row", [
    {"instruction": prompt(), "input": "", "output": REPLY},
    {"instruction": prompt().partition("Query:")[0], "input": "Query:" + prompt().partition("Query:")[2], "output": REPLY},
    {"messages": [{"role": "system", "content": ""}, {"role": "user", "content": prompt()},
                  {"role": "assistant", "content": REPLY}]},
    {"conversations": [{"from": "human", "value": prompt()}, {"from": "gpt", "value": REPLY}]},
    {"prompt": prompt(), "response": REPLY}, {"prompt": [{"role": "user", "content": prompt()}], "completion": REPLY},
    {"prompt": prompt(question='"Who wrote Emma?"'), "response": REPLY}])
def test_forms(row):
    assert simulator_row(row, "f") == WANTED


def test_modes_and_golds():
    noisy = simulator_row({"prompt": prompt("noisy", "['Jane Austen', 'Austen']"), "response": REPLY}, "f")
    assert noisy.noisy and noisy.golds == ("Jane Austen", "Austen")
    bare = simulator_row({"prompt": "Write noisy documents.\nQuery: x y", "response": REPLY}, "f")
    assert (bare.question, bare.golds, bare.query, bare.noisy) == ("", (), "x y", True)


@pytest.mark.parametrize("row, message", [
    ({"text": "x"}, "has no prompt .fields: text."), ({"prompt": prompt()}, "has no reply"),
    ({"prompt": "Query: x", "response": REPLY}, "neither useful nor noisy"),
    ({"prompt": "useful documents", "response": REPLY}, "no line 'Query: ...'"),
    ({"prompt": prompt(), "response": "..."}, "has no document")])
def test_what_cannot_be_read_is_named(row, message):
    with pytest.raises(InputError, match=f"^f, line 3: .*{message}"):
        simulator_row(row, "f, line 3")


def test_a_file_becomes_examples(tmp_path, capsys):
    rows = [{"instruction": prompt(mode, question=f"Who wrote Emma {i}?"), "input": "", "output": REPLY}
            for i in range(3) for mode in ("useful", "noisy")]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "tuning.parquet")
    out = tmp_path / "run" / "searches.jsonl"
    assert launch.main(["import", str(tmp_path / "tuning.parquet"), str(out)]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    provenance, searches = read_searches(out)
    assert provenance == {"engine": "published", "file": "tuning.parquet"} and len(searches) == 6
    assert len({search.question.key for search in searches}) == 3
    examples = make_examples(searches, 2, label="answer")
    assert [example.noisy for example in examples] == [False] * 3 + [True] * 3
    assert examples[0].query == "author of Emma" and examples[0].question.golden_answers == ("Jane Austen",)
    with pytest.raises(InputError, match="exists already"):
        import_searches(tmp_path / "tuning.parquet", out)
    (tmp_path / "bad.jsonl").write_text(json.dumps(rows[0]) + "\n" + json.dumps({"prompt": "x"}) + "\n")
    with pytest.raises(InputError, match="bad.jsonl, line 2: has no reply"):
        import_searches(tmp_path / "bad.jsonl", tmp_path / "other.jsonl")


@pytest.mark.parametrize("prompt", [
    "useful documents\nquery: a\nquestion:" + " " * 5000 + "x", "useful documents" + "\n" * 50_000 + "query: a",
    "useful documents\nquery: a\n" + "question:" * 20_000 + " whose answer is " * 2000,
    "useful documents\nquery: a\nquestion: q whose answer is " + "a " * 20_000 + "." * 2000 + " " * 20_000 + "\tb"])
def test_white_space_without_end_costs_no_time(prompt):
    begun = time.perf_counter()
    assert simulator_row({"prompt": prompt, "response": "Doc 1: a"}, "here").query == "a"
    assert time.perf_counter() - begun < 2
