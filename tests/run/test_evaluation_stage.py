"""The evaluation stage: what is kept under which name, what is done again, and what a reader is told."""

import json

import pytest

from zsjax import report
from zsjax.config import resolve
from zsjax.errors import UserError
from zsjax.evaluation import baselines, compare, kept_evaluations
from zsjax.monitor.writer import Writer, read_jsonl
from zsjax.run.stages import evaluation as stage
from zsjax.run.stages import evaluation_parts
from zsjax.run.stages.context import Run
from zsjax.run.stages.policy import evaluation_metrics
from zsjax.types import Question

QUESTIONS = [{"id": "test_0", "question": f"Who wrote book {i}?", "golden_answers": ["Jo"],
              "metadata": {"data_set": "nq" if i < 3 else "popqa"}} for i in range(5)]  # ids repeat, as in joined files


class Played(list):
    """Who played, in order: "base", "policy", or "NAME by policy" of a baseline. failed: of an episode's two searches."""

    failed = 0


class Parts(evaluation_parts.Parts):
    """Evaluations whose episodes are made up: the trained policy is right, its base is wrong."""

    def __init__(self, run, played):
        super().__init__(run)
        self.played = played

    def play(self, title, subject, fault):
        return self._records(self._player(subject), self.config.evaluate.samples), [{"used/searches": 2}]

    def play_baseline(self, name, subject, evaluation):
        return self._records(f"{name} by {self._player(subject)}", 1), []

    def _player(self, subject):
        return subject.source.removeprefix("models/") if subject.source.startswith("models/") else "base"

    def _records(self, player, samples):
        self.played.append(player)
        failed = self.played.failed
        status = ["failed"] * failed + ["empty", "ok"][failed:]
        score = float(player == "policy")
        return [{"id": q.id, "question": q.question, "data_set": q.metadata["data_set"], "sample": sample, "em": score,
                 "f1": score, "contains": score, "num_searches": 2, "search_status": status, "queries": [], "tokens": 7,
                 "status": "answered"} for sample in range(samples) for q in self.questions]


@pytest.fixture
def played():
    return Played()


def evaluate(workdir, played, parts=Parts, **fields):
    source = workdir / "questions.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    overrides = {name.replace("__", "."): str(value) for name, value in fields.items()}
    config = resolve({"policy": {"init": "asset:tiny_world/base"},
                      "data": {"eval": str(source), "eval_corpus": str(source)}}, overrides, check=False)
    with Writer(workdir, quiet=True) as writer:
        run = Run(config, workdir, writer, "")
        stage.evaluate(run, parts(run, played))
    return json.loads((workdir / "evaluation.json").read_text())


def trained(workdir, weights, name="policy"):
    folder = workdir / "models" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text(weights)


def names(workdir):
    return sorted(path.stem.partition("-")[0] for path in (workdir / "evaluation").glob("*-*.jsonl"))


def test_an_evaluation_of_the_base_never_stands_for_the_trained_policy(tmp_path, played):
    rows = evaluate(tmp_path, played)
    assert played == ["base"] and {row["role"] for row in rows} == {"base"}
    trained(tmp_path, "one")
    rows = evaluate(tmp_path, played)
    assert played == ["base", "policy"]  # the base's was kept
    assert [(row["name"], row["em"], row["n"]) for row in rows] == [
        ("before training", 0, 3), ("before training", 0, 2), ("before training", 0, 5),  # two data sets, and both together
        ("after training", 1, 3), ("after training", 1, 2), ("after training", 1, 5)]
    assert {row["policy"] for row in rows} == {"untrained base asset:tiny_world/base", "trained policy models/policy"}
    first = rows[-1]["evaluation"]
    trained(tmp_path, "two")  # trained on
    rows = evaluate(tmp_path, played)
    assert played == ["base", "policy", "policy"] and rows[-1]["evaluation"] != first
    assert names(tmp_path) == ["after", "after", "before"] and (tmp_path / "evaluation" / f"{first}.json").exists()
    evaluate(tmp_path, played)
    assert len(played) == 3
    lines = [line for line in read_jsonl(tmp_path / "metrics.jsonl") if line["stage"] == "evaluate"]
    assert [line["step"] for line in lines] == [1, 2, 3]  # what each has used is counted once


def test_a_run_without_reinforcement_says_whose_figures_these_are(tmp_path, played, monkeypatch):
    notes = []
    monkeypatch.setattr(Writer, "note", lambda self, text: notes.append(text))
    evaluate(tmp_path, played)
    assert notes[-1].endswith("starts from, asset:tiny_world/base")
    trained(tmp_path, "one", "warm_start")
    evaluate(tmp_path, played)
    assert notes[-1].endswith("starts from, models/warm_start")
    trained(tmp_path, "two")
    notes.clear()
    evaluate(tmp_path, played)
    assert notes and "has trained no policy" not in str(notes)


def test_what_decides_the_figures_is_done_again_and_what_does_not_is_kept(tmp_path, played):
    evaluate(tmp_path, played)
    for number, fields in enumerate(({"evaluate__samples": 2}, {"evaluate__temperature": 0.5}, {"data__eval_limit": 3},
                                     {"search__num_documents": 2}, {"search__eval_engine": "http"}, {"seed": 1},
                                     {"prompts__policy": "tiny_world"}, {"policy__cache_dtype": "int8"},
                                     {"tokenizer": "asset:real/tokenizer"}), start=2):
        evaluate(tmp_path, played, **fields)
        assert len(played) == number, fields
    for fields in ({"evaluate__batch_rows": 7}, {"rollout__rows": 4}, {"search__remote__timeout": 3}, {"train__steps": 3},
                   {"search__remote__url": "http://elsewhere/retrieve"}, {"search__engine": "bm25"}, {"name": "x"},
                   {"search__remote__max_tokens": 5}, {"search__mix__end": 0.1}):  # of engines that do not evaluate
        evaluate(tmp_path, played, **fields)
        assert len(played) == 10, fields
    assert names(tmp_path) == ["before"] * 10
    evaluate(tmp_path, played, evaluate__drop_best=0.5)  # adds one and repeats none
    assert len(played) == 11 and names(tmp_path) == ["before"] * 10 + ["before_lossy"]


def test_baselines_are_kept_by_what_they_read(tmp_path, played):
    fields = {"evaluate__baselines": "rag,best_of_n"}

    def count():
        return sum(" by " in player for player in played)

    rows = evaluate(tmp_path, played, **fields)
    assert count() == 2 and rows[-1]["name"] == "baseline best_of_n" and rows[-1]["role"] == "base"
    evaluate(tmp_path, played, evaluate__baseline_samples=3, **fields)
    assert count() == 3
    trained(tmp_path, "one")
    evaluate(tmp_path, played, **fields)
    assert count() == 5 and played[-2:] == ["rag by policy", "best_of_n by policy"]


def test_an_evaluation_whose_records_a_kill_replaced_is_not_kept(tmp_path, played):
    trained(tmp_path, "one")
    played.failed = 1
    evaluate(tmp_path, played)
    records, = (tmp_path / "evaluation").glob("before-*.jsonl")
    records.write_text(records.read_text().replace('"tokens": 7', '"tokens": 8'))  # of a repetition that was killed
    played.failed = 2
    with pytest.raises(stage.SearchesFailed):  # the repetition counts, though more of it failed
        evaluate(tmp_path, played)
    assert '"tokens": 7' in records.read_text()
    played.failed = 0
    assert evaluate(tmp_path, played)[0]["failed_searches"] == 0


class FineTuned(Parts):
    """The made-up evaluations, and the package's own way to a baseline's setting."""

    play_baseline = evaluation_parts.Parts.play_baseline

    def _policy(self, subject):
        return None, None

    def _engine(self, **fault):
        return None


def test_a_fine_tuned_baseline_never_goes_on_from_a_checkpoint_of_other_settings(tmp_path, played, monkeypatch):
    folders = []

    def fine_tuned(setting):
        folders.append(setting.directory)
        return Parts(Run(setting.config, tmp_path, Writer(None, quiet=True), ""), played)._records("tuned", 1)

    monkeypatch.setitem(baselines.METHODS, "trajectory_sft", fine_tuned)
    fields = {"evaluate__baselines": "trajectory_sft", "trajectory_sft__steps": 2}
    corpus = tmp_path / "train.jsonl"
    corpus.write_text(json.dumps({"id": "d", "title": "T", "text": "one"}) + "\n")
    changes = ({}, {"trajectory_sft__optimizer__learning_rate": 0.1}, {"collect__episodes": 999},
               {"data__corpus": str(corpus)}, {"data__train": str(corpus)}, {"evaluate__batch_rows": 7})
    for number, change in enumerate(changes, 1):
        for _ in range(2):
            evaluate(tmp_path, played, parts=FineTuned, **fields, **change)
        assert len(folders) == number, change
    corpus.write_text(corpus.read_text().replace("one", "two"))
    evaluate(tmp_path, played, parts=FineTuned, **fields, data__corpus=str(corpus))
    assert len(set(folders)) == len(folders) == 7
    assert all(folder.name.startswith("baseline_trajectory_sft-") for folder in folders)


def test_another_corpus_of_the_same_size_and_another_file_of_an_engine_are_evaluated(tmp_path, played):
    corpus, table = tmp_path / "corpus.jsonl", tmp_path / "table.csv"
    corpus.write_text(json.dumps({"id": "d", "title": "T", "text": "one"}) + "\n")
    table.write_text("one")
    fields = {"data__eval_corpus": corpus, "search__options": {"path": str(table)}}
    evaluate(tmp_path, played, **fields)
    evaluate(tmp_path, played, **fields)
    assert len(played) == 1
    corpus.write_text(corpus.read_text().replace("one", "two"))
    evaluate(tmp_path, played, **fields)
    assert len(played) == 2
    table.write_text("two")
    evaluate(tmp_path, played, **fields)
    assert len(played) == 3


def test_failed_searches_are_told_everywhere_and_repeated(tmp_path, played):
    played.failed = 1
    trained(tmp_path, "one")
    rows = evaluate(tmp_path, played)
    assert [row["failed_searches"] for row in rows] == [3, 2, 5, 3, 2, 5]
    assert "5 searches FAILED" in (tmp_path / "evaluation" / "table.md").read_text()
    assert "10 searches of this evaluation FAILED" in report.write(tmp_path).read_text()
    text = compare.comparison_table(compare.compare_runs(tmp_path, tmp_path))
    assert "first: trained policy models/policy" in text and "5 of 10 searches FAILED" in text
    played.failed = 0
    evaluate(tmp_path, played)
    assert len(played) == 4 and "FAILED" not in (tmp_path / "evaluation" / "table.md").read_text()
    assert "FAILED" not in report.write(tmp_path).read_text()
    evaluate(tmp_path, played)
    assert len(played) == 4
    assert names(tmp_path) == ["after", "before"]


def test_an_evaluation_whose_searches_mostly_failed_is_not_finished(tmp_path, played):
    played.failed = 2
    with pytest.raises(stage.SearchesFailed, match="before training: 10 of 10 searches failed") as error:
        evaluate(tmp_path, played)
    assert error.value.exit_code == 1 and not (tmp_path / "evaluation.json").exists()
    with pytest.raises(UserError, match="most searches of its evaluation failed"):
        compare.compare_runs(tmp_path, tmp_path)
    assert "not finished" in report.write(tmp_path).read_text()
    played.failed = 1
    assert evaluate(tmp_path, played)[0]["failed_searches"] == 3
    played.failed = 2  # the server is down when asked again: what was better stays
    assert evaluate(tmp_path, played)[0]["failed_searches"] == 3 and len(played) == 3


def test_a_comparison_says_whose_it_is(tmp_path, played):
    one, two = tmp_path / "one", tmp_path / "two"
    for workdir in (one, two):
        workdir.mkdir()
        evaluate(workdir, played)
    trained(two, "x")
    with pytest.raises(UserError, match="two: its trained policy was not evaluated"):
        compare.compare_runs(one, two)
    assert "models/policy) was not evaluated" in report.write(two).read_text()
    evaluate(two, played)
    rows = compare.compare_runs(one, two)
    text = compare.comparison_table(rows)
    assert rows[0]["n"] == 5 and "first: untrained base asset:tiny_world/base of" in text
    assert "second: trained policy models/policy of" in text and "differ in" not in text
    assert "no trained policy: every row is of the untrained base" in report.write(one).read_text()
    assert "was not evaluated" not in report.write(two).read_text()
    trained(two, "y")
    with pytest.raises(UserError, match="was not evaluated"):
        compare.compare_runs(one, two)
    evaluate(two, played, search__num_documents=2)
    text = compare.comparison_table(compare.compare_runs(one, two))
    assert "The two evaluations differ in search.num_documents" in text
    assert "Other evaluations in this folder" in report.write(two).read_text()
    older = next((two / "evaluation").glob("before-*.jsonl"))
    assert "second: untrained base" in compare.comparison_table(compare.compare_runs(one, older))
    with pytest.raises(UserError, match="no such evaluation"):
        compare.compare_runs(one, older.with_name("never.jsonl"))


def test_a_damaged_evaluation_is_one_line(tmp_path, played):
    name = evaluate(tmp_path, played)[0]["evaluation"]
    path = tmp_path / "evaluation" / f"{name}.json"
    for text in ('{"part": ', "[]", '{"part": "before"}'):
        path.write_text(text)
        with pytest.raises(UserError, match=f"{name}.json: not an evaluation"):
            kept_evaluations.Kept(tmp_path).all()
        assert "not an evaluation" in report.write(tmp_path).read_text()


def test_a_changed_number_of_an_evaluation_is_noticed(tmp_path, played):
    name = evaluate(tmp_path, played)[0]["evaluation"]
    about, records = (tmp_path / "evaluation" / f"{name}.{ending}" for ending in ("json", "jsonl"))
    whole = records.read_text()
    one, other = ('"em": 1', '"em": 0') if '"em": 1' in whole else ('"em": 0', '"em": 1')
    records.write_text(whole.replace(one, other, 1))
    assert records.read_text() != whole
    with pytest.raises(UserError, match=f"{name}.jsonl is not what the evaluation left; remove .*{name}.json "):
        evaluate(tmp_path, played)
    about.write_text(about.read_text().replace('"searches": ', '"searches": 9', 1))
    with pytest.raises(UserError, match=f"{name}.json is not what the evaluation left; remove it"):
        kept_evaluations.Kept(tmp_path).all()


def test_an_evaluation_in_training_says_that_searches_failed():
    record = {"em": 1.0, "f1": 1.0, "contains": 1.0, "num_searches": 1, "tokens": 3, "status": "answered", "queries": []}
    questions = [Question("q", "Who wrote book 1?", ("Jo",))]
    found = evaluation_metrics([record | {"search_status": ["failed"]}], questions, {"used/searches": 1, "time/step": 9.0})
    assert found == {"eval/em": 1, "eval/f1": 1, "eval/searches": 1, "eval/failed_searches": 1, "eval/used/searches": 1}
    assert "eval/failed_searches" not in evaluation_metrics([record | {"search_status": ["ok"]}], questions, {})


def test_a_base_plays_its_own_prompt_after_its_warm_start(tmp_path, played):
    """Without documents the warm start is the closed-book floor; the untrained model knows nothing of its prompt's form."""
    folder = tmp_path / "models" / "warm_start"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_text("warm")
    fields = {"evaluate__baselines": "direct,no_search", "evaluate__baseline_model": "base"}
    evaluate(tmp_path, played, **fields)
    assert played == ["warm_start", "direct by base", "no_search by warm_start"]
    evaluate(tmp_path, played, **fields)
    assert len(played) == 3
    evaluate(tmp_path, played, prompts__baseline_examples=True, **fields)
    assert played[3:] == ["direct by base", "no_search by warm_start"]
