"""Evaluation: questions -> episodes -> scores -> tables. Every question counts; greedy by default."""

import collections
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from zsjax import rewards
from zsjax.data.question_metadata import data_set_of, group_of, right_queries
from zsjax.errors import InputError
from zsjax.rollout import transcript
from zsjax.sampling import ragged
from zsjax.search.simulator.prompt import bare_line
from zsjax.types import Episodes, Metric, Question

SCORES = {"em": rewards.exact_match, "f1": rewards.f1_score, "contains": rewards.contains_match}

_EVAL = "Real engine, while training"
METRICS = (
    Metric("eval/em", "exact match with the real engine", "share of questions", 0.0, 1.0, "rises", chart=_EVAL,
           curve="exact match", read_by=("best policy",)),
    Metric("eval/f1", "F1 with the real engine", "", 0.0, 1.0, chart=_EVAL, curve="F1", read_by=("best policy",)),
    Metric("eval/searches", "searches with the real engine", "per question", 0.0, chart="Searches", curve="real engine"),
    Metric("eval/failed_searches", "searches that the real engine failed at", "searches", 0.0, healthy="0"),
    Metric("eval/em_1_hop", "exact match of questions with one hop", "share of questions", 0.0, 1.0,
           chart="Real engine, by hops", curve="one hop"),
    Metric("eval/em_2_hop", "exact match of questions with two hops", "share of questions", 0.0, 1.0,
           chart="Real engine, by hops", curve="two hops"),
    Metric("eval/em_*_hop", "exact match of questions with this number of hops", "share of questions", 0.0, 1.0),
)


def play_samples(rollout, params, questions: Sequence[Question], *, key, samples: int, **options) -> list[dict]:
    """`play`, `samples` times, each with its own key: a record of every episode with its "sample" number, the first sample
    of all questions first."""
    records = []
    for sample in range(samples):
        played, _ = play(rollout, params, questions, key=jax.random.fold_in(key, sample) if sample else key, **options)
        records += [record | {"sample": sample} for record in played]
    return records


def play(rollout, params, questions: Sequence[Question], *, key, batch_rows: int, temperature: float = 0.0,
         noise: float = 0.0, progress: Callable = iter) -> tuple[list[dict], Episodes]:
    """Plays one episode per question, in batches of one shape; the last batch is filled, and its extra rows are dropped.

    Args:
      rollout: from `make_rollout` with group_size 1.
      key: of the draws, with the question's index; batching changes nothing.
      progress: wraps the iterable of batches, for a progress bar.

    Returns:
      (records of `scored_records`, episodes of all questions as numpy).

    Raises:
      InputError: there are no questions.
    """
    if not questions:
        raise InputError("there are no questions to evaluate on; check data.eval, data.benchmarks and their splits")
    batches, all_records = [], []
    tokenizer, params = rollout.tokenizer, rollout.place(params)  # once for all batches
    for first in progress(range(0, len(questions), batch_rows)):
        ids = np.arange(first, first + batch_rows)
        filled = ragged.fill(questions[first:first + batch_rows], batch_rows)
        episodes = jax.device_get(rollout(params, filled, noise=noise, key=key, temperature=temperature,
                                          group_ids=ids))
        count = min(batch_rows, len(questions) - first)
        episodes = jax.tree.map(lambda x, count=count: x[:count], episodes)
        batches.append(episodes)
        all_records += scored_records(episodes, filled[:count], tokenizer)
    return all_records, jax.tree.map(lambda *x: np.concatenate(x), *batches)


def scored_records(episodes: Episodes, questions: Sequence[Question], tokenizer) -> list[dict]:
    """`transcript.records` of finished episodes (numpy), one a question, with the scores of `SCORES`, "reach", and the
    question's "data_set" if it has one."""
    said = transcript.answers(episodes, tokenizer)
    scores = {name: [score(a, q.golden_answers) for a, q in zip(said, questions, strict=True)]
              for name, score in SCORES.items()}
    return [record | {"reach": reach(_documents(record), q.golden_answers)} | data_set_of(q)
            for record, q in zip(transcript.records(episodes, questions, tokenizer, **scores), questions, strict=True)]


def _documents(record: dict) -> str:
    return "\n".join(segment["text"] for segment in record["segments"] if segment["role"] == "document")


def reach(shown: str, golden_answers: Sequence[str]) -> float:
    """1.0 where the documents that an episode was shown hold a gold answer, else 0.0: the most that reading can earn.

    shown: a line each. Their numbers do not count: "Doc 1" does not hold the answer "1".
    """
    return rewards.contains_match("\n".join(map(bare_line, shown.splitlines())), golden_answers)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (deviation with ddof 1 over sqrt(n)); the error of one value is 0."""
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), float(error)


def on_path(record: dict, question: Question) -> tuple[int, int]:
    """(searches whose query is one of the question's `right_queries`, searches)."""
    right = {rewards.normalize_answer(q) for q in right_queries(question)}
    return sum(rewards.normalize_answer(q) in right for q in record["queries"]), len(record["queries"])


def name_of_group(row: Mapping) -> str:
    """A row's data set, or "all, open answers", as a table shows it; "" for a row of `summarize` without one."""
    return f"{row['data_set']}, {row['answers']} answers" if "answers" in row else str(row.get("data_set", ""))


def failed_searches(record: Mapping) -> int:
    """Searches of a record at which the engine failed; a search that found nothing did not fail."""
    return record.get("failed_searches", list(record.get("search_status", ())).count("failed"))


def summarize(name: str, records: Sequence[dict], questions: Sequence[Question], *, total: bool = False) -> list[dict]:
    """Rows of the evaluation table: one per data set or number of hops where questions have one, else one for all.

    Args:
      name: of the rows.
      records: of `play` or `play_samples`. The scores of a question's samples are averaged first, so that standard errors
        are over questions.
      questions: all that were asked.
      total: add a last row of data set "all" where there are several data sets, and one for each `rewards.answer_kind`
        ("answers") where there are several of them.

    Returns:
      Rows of name, hops or data_set, n questions, scores and their standard errors, means of searches, answered and
      tokens, and failed_searches, the number of searches at which the engine failed.

    Raises:
      ValueError: the number of records is not a multiple of the number of questions.
    """
    if not questions or len(records) % len(questions):
        raise ValueError(f"{len(records)} records of {len(questions)} questions")
    groups = {}
    for row, record in enumerate(records):
        question = questions[row % len(questions)]
        groups.setdefault(group_of(question), {}).setdefault(row % len(questions), []).append(record)
    in_order = sorted(groups.items(), key=lambda item: str(item[0]))
    if total and sum(kind == "data_set" for kind, _ in groups) > 1:
        everything = {i: samples for group in groups.values() for i, samples in group.items()}
        kinds = {i: rewards.answer_kind(question.question, question.golden_answers) for i, question in enumerate(questions)}
        in_order.append((("data_set", "all"), everything))
        in_order += [(("answers", kind), {i: samples for i, samples in everything.items() if kinds[i] == kind})
                     for kind in rewards.ANSWER_KINDS if kind in kinds.values() and len(set(kinds.values())) > 1]
    rows = []
    for (kind, value), group in in_order:
        played = [record for samples in group.values() for record in samples]
        row = {"name": name, "hops": value if kind == "hops" else "all", "n": len(group)}
        row |= {"data_set": value} if kind == "data_set" else {"data_set": "all", kind: value} if kind == "answers" else {}
        row |= {"samples": len(records) // len(questions)} if len(records) > len(questions) else {}
        for score in SCORES:
            row[score], row[f"{score}_se"] = mean_and_error(
                [np.mean([record[score] for record in samples]) for samples in group.values()])
        row["searches"] = float(np.mean([r["num_searches"] for r in played]))
        row["failed_searches"] = sum(map(failed_searches, played))
        if all("reach" in record for record in played):
            row["reach"], row["reach_se"] = mean_and_error(
                [np.mean([record["reach"] for record in samples]) for samples in group.values()])
        row["answered"] = float(np.mean([r["status"] == "answered" for r in played]))
        row["tokens"] = float(np.mean([r["tokens"] for r in played]))
        asked = [(record, questions[i]) for i, samples in group.items() for record in samples]
        if all(right_queries(question) for _, question in asked):
            right, searches = np.sum([on_path(record, question) for record, question in asked], axis=0)
            row["on_path"] = float(right / searches) if searches else 0.0
        rows.append(row)
    return rows


def key_of(record: dict) -> str:
    """The key of a record's question; without one, id and data set as `run.build.benchmarks` joins them."""
    name = record.get("data_set")
    return record.get("key") or (record["id"] if name is None else f"{name}:{record['id']}")


def paired_bootstrap(first: Sequence[dict], second: Sequence[dict], *, score: str = "em", resamples: int = 10_000,
                     seed: int = 0) -> dict:
    """Whether the second of two runs over the same questions is better (Efron and Tibshirani 1993, chapter 16).

    Questions are drawn with replacement, both runs' scores of a question together.

    Args:
      first, second: records of `play` or `play_samples`, paired by their questions' keys, samples averaged.
      score: a name in `SCORES`.

    Returns:
      n questions, first and second mean, difference second - first, its 95 % interval low and high, and p: twice the share
      of resamples on the rarer side of zero (ties count half), at most 1.

    Raises:
      InputError: the runs did not answer the same questions.
    """
    scores = [_by_question(records, score) for records in (first, second)]
    if scores[0].keys() != scores[1].keys() or not scores[0]:
        missing = sorted({str(key[0]) for key in scores[0].keys() ^ scores[1].keys()})[:3]
        raise InputError(f"the two runs did not answer the same questions ({len(scores[0])} and {len(scores[1])}; "
                         f"only one has {', '.join(missing)})")
    a, b = (np.array([np.mean(side[id]) for id in scores[0]]) for side in scores)
    rng = np.random.default_rng(seed)
    # The mean of a resample is a weighted mean; blocks keep the counts small in memory.
    counts = (rng.multinomial(len(a), np.full(len(a), 1 / len(a)), size=min(1000, resamples - done))
              for done in range(0, resamples, 1000))
    differences = np.concatenate([block @ (b - a) / len(a) for block in counts])
    low, high = np.quantile(differences, [0.025, 0.975])
    tiny = 1e-12
    below = float(np.mean(differences < -tiny) + 0.5 * np.mean(abs(differences) <= tiny))
    return {"score": score, "n": len(a), "first": float(a.mean()), "second": float(b.mean()),
            "difference": float((b - a).mean()), "low": float(low), "high": float(high),
            "p": min(1.0, 2 * min(below, 1 - below))}


def _by_question(records, score):
    """{(key, text, number among questions of the same key and text): scores of its samples}."""
    scores, seen = collections.defaultdict(list), collections.Counter()
    for record in records:
        key = (key_of(record), record.get("question"))
        scores[*key, seen[key, record.get("sample")]].append(record[score])
        seen[key, record.get("sample")] += 1
    return scores


def random_document_baseline(engine, questions: Sequence[Question], answer_of: Callable, *, k: int,
                             seed: int) -> list[dict]:
    """Records of answering from a random one of the k documents found for the question's own text.

    This is the score of reading without choosing: a policy that is not better has not learned to read.

    Args:
      engine: a real engine.
      answer_of: Document -> the answer in its text, of a corpus whose documents have exactly one each.
    """
    from zsjax.search.engine import AskedByLead, Failed, SearchContext

    rng = np.random.default_rng(seed)
    found = AskedByLead(engine).search([q.question for q in questions], [SearchContext(q) for q in questions], k=k)
    records = []
    for question, documents in zip(questions, found, strict=True):
        answer = answer_of(documents[rng.integers(len(documents))]) if documents else None
        scores = {name: score(answer, question.golden_answers) for name, score in SCORES.items()}
        records.append({"id": question.id, "question": question.question, "queries": [question.question],
                        "num_searches": 1, "failed_searches": int(isinstance(documents, Failed)), "tokens": 0,
                        "status": "answered" if answer else "ended_without_answer", **scores, **data_set_of(question)})
    return records
