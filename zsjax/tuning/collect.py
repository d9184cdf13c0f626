"""Searches of a policy with the real engine: what simulator examples are made from, with their provenance."""

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np

from zsjax import types
from zsjax.data.question_rows import question_of
from zsjax.data.row_files import read_rows
from zsjax.errors import InputError
from zsjax.parallel import hosts
from zsjax.parallel.files import write_jsonl
from zsjax.rewards import exact_match
from zsjax.rollout import transcript
from zsjax.search.corpus_store import row_of
from zsjax.search.engine import Document, SearchContext, Wrapped, first
from zsjax.tuning.demonstrations import page_name
from zsjax.types import Question

OFF_TARGET = "off target"  # the source of a search beside the point, see `off_target_queries`
DEPTH_FACTOR = 4  # ranked documents kept for each one shown: noisy replies leave some of them out


@dataclasses.dataclass(frozen=True)
class Search:
    """One search of an episode.

    Attributes:
      question: with every gold answer.
      query: what was searched for.
      documents: the engine's ranking, best first, deeper than what is shown.
      correct: whether the episode's final answer was right; None when there was no episode.
      source: "policy", or the name of what else made the query.
      useful: a judge's verdict on each document (collect.label = "judge"); None without a judge.
    """

    question: Question
    query: str
    documents: tuple[Document, ...]
    correct: bool | None = None
    source: str = "policy"
    useful: tuple[bool, ...] | None = None


class RecordingEngine(Wrapped):
    """An engine that keeps the ranking of every search, of at least `depth` documents."""

    def __init__(self, engine, depth: int):
        super().__init__(engine)
        self.depth = depth
        self.found: dict[tuple[str, str], list[Document]] = {}
        self._new: set[tuple[str, str]] = set()  # that other hosts do not know yet

    def search(self, queries: Sequence[str], contexts: Sequence[SearchContext], *, k: int) -> list[list[Document]]:
        rankings = self.engine.search(queries, contexts, k=max(k, self.depth))
        for query, context, ranking in zip(queries, contexts, rankings, strict=True):
            self.found[context.question.key, query.strip()] = ranking
            self._new.add((context.question.key, query.strip()))
        return [first(ranking, k) for ranking in rankings]

    def exchange(self):
        """Gives every host what all have found since the last call. All hosts must call it."""
        mine = [[*name, [dataclasses.asdict(document) for document in self.found[name]]]
                for name in sorted(self._new) if self.found[name]]
        self._new.clear()
        for of_host in hosts.share(mine):
            for key, query, ranking in of_host:
                self.found.setdefault((key, query), [Document(**document) for document in ranking])


def episode_searches(episodes: types.Episodes, questions: Sequence[Question], recorder: RecordingEngine,
                     tokenizer) -> list[Search]:
    """The searches of finished episodes.

    Args:
      episodes: B rows.
      questions: B questions, one a row.
      recorder: the engine that the episodes searched with.
      tokenizer: the policy's.
    """
    searches = []
    said, asked = transcript.answers(episodes, tokenizer), transcript.searches(episodes, tokenizer)
    for question, answer, queries in zip(questions, said, asked, strict=True):
        correct = exact_match(answer, question.golden_answers) > 0
        for query in queries:
            documents = recorder.found.get((question.key, query))
            if documents:
                searches.append(Search(question, query, tuple(documents), correct))
    return searches


def collect_searches(rollout: Callable, recorder: RecordingEngine, params, questions: Sequence[Question], tokenizer, *,
                     episodes: int, batch_questions: int, key, progress: Callable = lambda done: None) -> list[Search]:
    """Plays episodes with the real engine until there are enough of them, and keeps their searches.

    Args:
      rollout: (params, questions, *, key, group_ids) -> Episodes, one episode a question, with `recorder` as its engine.
      recorder: the real engine, which keeps `DEPTH_FACTOR` times as many documents as a reply to be learned has.
      params: the policy's.
      questions: asked in order, again from the first after the last.
      tokenizer: the policy's.
      episodes: number to play, rounded up to whole batches.
      batch_questions: episodes played at a time.
      key: a jax key.
      progress: called with the number of episodes played so far.

    Returns:
      Deduplicated searches, in the order in which they were first made.
    """
    searches, played = [], 0
    while played < episodes:
        rows = np.arange(played, played + batch_questions)
        batch = [questions[i % len(questions)] for i in rows]
        out = rollout(params, batch, key=jax.random.fold_in(key, played), group_ids=rows)
        recorder.exchange()
        searches += episode_searches(out, batch, recorder, tokenizer)
        played += batch_questions
        progress(played)
    return deduplicate(searches)


def deduplicate(searches: Iterable[Search]) -> list[Search]:
    """The first search of each (question, query, whether the episode was right); queries differ by words only."""
    kept = {}
    for search in searches:
        kept.setdefault((search.question.key, words_of(search.query), search.correct), search)
    return list(kept.values())


def words_of(query: str) -> str:
    """The query as it is compared: in lower case, one blank between words."""
    return " ".join(query.lower().split())


def search_for(queries: Iterable[tuple[Question, str, str]], engine, *, num_documents: int) -> list[Search]:
    """Searches with (question, query, source) that no policy wrote."""
    queries = list(queries)
    found = engine.search([query for _, query, _ in queries], [SearchContext(question) for question, _, _ in queries],
                          k=DEPTH_FACTOR * num_documents)
    return deduplicate(Search(question, query, tuple(documents), None, source)
                       for (question, query, source), documents in zip(queries, found, strict=True) if documents)


def off_target_queries(searches: Sequence[Search], *, num_documents: int, seed: int) -> list[tuple[Question, str, str]]:
    """(question, query, OFF_TARGET) for each search: in turn, another search's query, and the page of a document shown.

    Args:
      searches: of different questions, for the questions themselves.
      num_documents: that are shown.
      seed: of the choice among searches and documents.
    """
    rng, made = np.random.default_rng(seed), []
    for row, search in enumerate(searches):
        other = searches[(row + rng.integers(1, max(len(searches), 2))) % len(searches)]
        shown = first(search.documents, num_documents)
        names = [other.query, page_name(shown[rng.integers(len(shown))].title)]
        made.append((search.question, names[row % 2] or other.query, OFF_TARGET))
    return [(question, query, source) for question, query, source in made if query.strip() != question.question.strip()]


def write_searches(path: str | os.PathLike, searches: Iterable[Search], *, provenance: dict) -> None:
    """Writes JSON lines, whole or not at all: first {"provenance": {...}}, then one search a line.

    provenance: config hash, seed, engine, corpus hash, policy step, and so on.
    """
    write_jsonl(path, itertools.chain([{"provenance": provenance}], map(dataclasses.asdict, searches)))


def read_searches(path: str | os.PathLike) -> tuple[dict, list[Search]]:
    """(provenance, searches) of a file of `write_searches`, or of one in its form that was made by hand.

    Questions and documents are read as those of their own files, byte order marks and blank lines are skipped.

    Raises:
      InputError: the file cannot be read, or a line is not a search; the message names line and field.
    """
    provenance, searches = None, []
    for record, where in read_rows(str(path)):
        if provenance is None:
            provenance = _field(record, "provenance", dict, "an object, in the first line", where)
        else:
            searches.append(_search(record, where))
    if provenance is None:
        raise InputError(f"{path} is empty")
    return provenance, searches


def _search(record, where) -> Search:
    asked = _field(record, "question", dict, "an object", where)
    question = question_of(asked, where)
    metadata = asked["metadata"] if isinstance(asked.get("metadata"), dict) else question.metadata
    question = dataclasses.replace(question, metadata=metadata,
                                   key=_field({"key": "", **asked}, "key", str, "a text", where))
    documents = tuple(_document(each, where) for each in _field(record, "documents", list, "a list of documents", where))
    useful = _field({"useful": None, **record}, "useful", list | None, "a list or null", where)
    if useful is not None and (len(useful) != len(documents) or not all(isinstance(each, bool) for each in useful)):
        raise InputError(f"{where}: field 'useful' is {useful!r:.200}; it must be true or false for each document")
    return Search(question, _field(record, "query", str, "a text", where), documents,
                  _field(record, "correct", bool | None, "true, false or null", where),
                  _field(record, "source", str, "a text", where), None if useful is None else tuple(useful))


def _document(given, where) -> Document:
    if not isinstance(given, dict):
        raise InputError(f"{where}: a document is {given!r:.200}; it must be an object with title and text")
    score = _field({"score": None, **given}, "score", int | float | None, "a number or null", where)
    return Document(*row_of(given, where), score)


def _field(record, name, kind, must, where):
    value = record.get(name)
    if name not in record or not isinstance(value, kind):
        what = f"is {value!r:.200}" if name in record else "is missing"
        raise InputError(f"{where}: field {name!r} {what}; it must be {must}")
    return value
