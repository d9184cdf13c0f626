"""Evaluation: questions -> episodes -> scores -> tables. Every question counts; greedy unless asked otherwise."""

import math
from collections.abc import Callable, Sequence

import jax
import numpy as np

from zsjax import rewards
from zsjax.rollout import transcript
from zsjax.types import Episodes, Question

SCORES = {"em": rewards.exact_match, "f1": rewards.f1_score, "contains": rewards.contains_match}


def play(rollout, params, questions: Sequence[Question], *, key, batch_rows: int, temperature: float = 0.0,
         noise: float = 0.0, progress: Callable = iter) -> tuple[list[dict], Episodes]:
    """Plays one episode per question, in batches of one shape (the last is filled up and its extra rows dropped).

    Args:
      rollout: from `make_rollout` with group_size 1.
      key: names the draws, with the question's index: batching changes nothing.
      progress: wraps the iterable of batches, for a progress bar.

    Returns:
      (a record per question as `transcript.records` with the scores of `SCORES`, episodes of all questions as numpy).
    """
    batches, all_records = [], []
    tokenizer = rollout.tokenizer
    for first in progress(range(0, len(questions), batch_rows)):
        ids = np.arange(first, first + batch_rows)
        filled = [questions[min(i, len(questions) - 1)] for i in ids]
        episodes = jax.device_get(rollout(params, filled, noise=noise, key=key, temperature=temperature,
                                          group_ids=ids))
        count = min(batch_rows, len(questions) - first)
        episodes = jax.tree.map(lambda x: x[:count], episodes)
        batches.append(episodes)
        said = transcript.answers(episodes, tokenizer)
        scores = {name: [score(a, q.golden_answers) for a, q in zip(said, filled)] for name, score in SCORES.items()}
        all_records += transcript.records(episodes, filled, tokenizer, **scores)
    return all_records, jax.tree.map(lambda *x: np.concatenate(x), *batches)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (deviation with ddof 1 over sqrt(n)); the error of one value is 0."""
    values = np.asarray(values, np.float64)
    error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return float(values.mean()), float(error)


def on_path(record: dict, question: Question) -> tuple[int, int]:
    """(searches that ask a right query of the question, searches), for questions whose metadata knows "queries"."""
    right = {rewards.normalize_answer(q) for q in question.metadata.get("queries", ())}
    return sum(rewards.normalize_answer(q) in right for q in record["queries"]), len(record["queries"])


def summarize(name: str, records: Sequence[dict], questions: Sequence[Question]) -> list[dict]:
    """Rows of the evaluation table: one per number of hops where questions say it, else one for all."""
    groups = {}
    for record, question in zip(records, questions, strict=True):
        groups.setdefault(question.metadata.get("hops", "all"), []).append((record, question))
    rows = []
    for hops, group in sorted(groups.items(), key=lambda item: str(item[0])):
        row = {"name": name, "hops": hops, "n": len(group)}
        for score in SCORES:
            row[score], row[f"{score}_se"] = mean_and_error([r[score] for r, _ in group])
        row["searches"] = float(np.mean([r["num_searches"] for r, _ in group]))
        row["answered"] = float(np.mean([r["status"] == "answered" for r, _ in group]))
        row["tokens"] = float(np.mean([r["tokens"] for r, _ in group]))
        if all("queries" in q.metadata for _, q in group):
            right, asked = np.sum([on_path(r, q) for r, q in group], axis=0)
            row["on_path"] = float(right / asked) if asked else 0.0
        rows.append(row)
    return rows


def random_document_baseline(engine, questions: Sequence[Question], answer_of: Callable, *, k: int,
                             seed: int) -> list[dict]:
    """The score of answering from a random one of the k documents found for the question's own text.

    What reading without choosing would earn: an agent that does not beat it has not learned to read.

    Args:
      engine: a real engine.
      answer_of: Document -> the answer its text gives (for a corpus where a document gives exactly one).
    """
    from zsjax.search.engine import SearchContext

    rng = np.random.default_rng(seed)
    found = engine.search([q.question for q in questions], [SearchContext(q) for q in questions], k=k)
    records = []
    for question, documents in zip(questions, found, strict=True):
        answer = answer_of(documents[rng.integers(len(documents))]) if documents else None
        scores = {name: score(answer, question.golden_answers) for name, score in SCORES.items()}
        records.append({"queries": [question.question], "num_searches": 1, "tokens": 0,
                        "status": "answered" if answer else "ended_without_answer", **scores})
    return summarize("random retrieved document", records, questions)
