"""Episodes to imitate: what a policy should say for a question, and the documents that it would be shown.

A file of them has one JSON object a line:

    {"question": {"id": "q1", "question": "Who ...?", "golden_answers": ["..."]},
     "turns": [{"query": "...", "documents": [{"title": "...", "text": "..."}, ...]}, ...],
     "answer": "..."}

A question may have "metadata". Turns come in the order of the searches, documents in the order in which they are shown,
and at most config.search.num_documents of them are. `write_demonstrations` makes such a file from questions and an engine.

`encode` puts an episode into tokens as a rollout would have: prompt, tags and documents go through the same functions, so
that the policy is trained on what it will see.
"""

import dataclasses
import gzip
import json
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from zsjax import types
from zsjax.parallel.files import write_jsonl
from zsjax.rewards import contains_match
from zsjax.rollout.actions import ANSWER, SEARCH, Action
from zsjax.rollout.documents import encode_documents
from zsjax.rollout.policy_prompt import PolicyTemplate
from zsjax.search.engine import Document, SearchContext
from zsjax.types import Question


@dataclasses.dataclass(frozen=True)
class Turn:
    """A search: what was asked for, and what was shown."""

    query: str
    documents: tuple[Document, ...]


@dataclasses.dataclass(frozen=True)
class Demonstration:
    """An episode that ends with an answer."""

    question: Question
    turns: tuple[Turn, ...]
    answer: str


@dataclasses.dataclass(frozen=True)
class Shown:
    """How a rollout shows documents and what it has room for, of a config and the policy's tokenizer."""

    config: object
    tokenizer: object

    def lines(self, documents: Sequence[Document]) -> list[list[int]]:
        """Ids of each document's line, as the rollout inserts them."""
        search = self.config.search
        tokens, lengths, count = encode_documents(
            [documents], self.tokenizer, search.document_format, num_documents=search.num_documents,
            max_document_tokens=search.max_document_tokens)
        return [tokens[0, i, :lengths[0, i]].tolist() for i in range(count[0])]

    def text(self, turns: Sequence[Turn]) -> str:
        """What the documents of some turns say, as far as they are shown."""
        return "".join(self.tokenizer.decode(line) for turn in turns for line in self.lines(turn.documents))

    def actions(self, demonstration: Demonstration) -> list[list[int]]:
        """Ids of what the policy says: a search a turn, then the answer."""
        texts = [_action(SEARCH, turn.query) for turn in demonstration.turns]
        return [self.tokenizer.encode(text) for text in (*texts, _action(ANSWER, demonstration.answer))]

    def fits(self, query: str) -> bool:
        """Whether a search for it is run as it is: longer queries are cut, longer turns are no action."""
        query_tokens, turn_tokens = (len(self.tokenizer.encode(text)) for text in (f" {query} ", _action(SEARCH, query)))
        return (query_tokens <= self.config.search.max_query_tokens
                and turn_tokens <= self.config.rollout.max_turn_tokens)


def _action(action: Action, text: str) -> str:
    return f"{action.open} {text} {action.close}"


def make_demonstrations(questions: Sequence[Question], engine, shown: Shown) -> list[Demonstration]:
    """The episodes that reach their answer, of those that search with the question and go on by supporting titles.

    The first query is the question. As long as no gold answer stands in what is shown and turns are left, the next query
    is a supporting title (metadata "supporting_titles") that is not among the documents and can be known: it stands in
    the question or in what is shown. So a question of several hops gets a query for each hop that the first one missed.
    The answer is the first gold answer that is shown; a question without one is left out.

    Args:
      questions: in the order of the episodes.
      engine: see `zsjax.search.engine.Engine`.
      shown: its config's search.num_documents and rollout.max_turns count.
    """
    k, max_turns = shown.config.search.num_documents, shown.config.rollout.max_turns
    turns: list[tuple[Turn, ...]] = [() for _ in questions]
    asked = {row: question.question for row, question in enumerate(questions) if shown.fits(question.question)}
    done = {}
    for _ in range(max_turns):
        rows = list(asked)
        if not rows:
            break
        found = engine.search([asked[row] for row in rows], [SearchContext(questions[row]) for row in rows], k=k)
        for row, documents in zip(rows, found, strict=True):
            question = questions[row]
            turns[row] += (Turn(asked.pop(row), tuple(documents)),)
            text = shown.text(turns[row])
            answer = next((gold for gold in question.golden_answers if contains_match(text, [gold])), None)
            if answer is not None:
                done[row] = Demonstration(question, turns[row], answer)
            elif (title := _next_title(question, turns[row], text)) and shown.fits(title):
                asked[row] = title
    return [done[row] for row in sorted(done)]


def _next_title(question: Question, turns: Sequence[Turn], text: str) -> str | None:
    """A supporting title that was not found yet and stands in the question or in what is shown."""
    seen = {document.title.lower() for turn in turns for document in turn.documents}
    seen |= {turn.query.lower() for turn in turns}
    known = f"{question.question}\n{text}"
    return next((title for title in question.metadata.get("supporting_titles", ())
                 if title.lower() not in seen and contains_match(known, [title])), None)


def encode(demonstrations: Sequence[Demonstration], shown: Shown, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32[N, max_tokens], roles int8[N, max_tokens]) of the episodes that a rollout has room for.

    Left out are episodes longer than max_tokens or rollout.max_tokens, with a longer prompt, query or turn than the
    rollout allows, or with more turns.
    """
    config, tokenizer = shown.config, shown.tokenizer
    template = PolicyTemplate.load(config.prompts.policy)
    opening, closing = tokenizer.encode(template.information_open), tokenizer.encode(template.information_close)
    rows = []
    for demonstration in demonstrations:
        prompt = template.encode(tokenizer, demonstration.question.question, chat=config.prompts.chat)
        *searches, answer = shown.actions(demonstration)
        parts = [(types.PROMPT, prompt)]
        for action, turn in zip(searches, demonstration.turns, strict=True):
            parts += [(types.POLICY, action), (types.TEMPLATE, opening),
                      *((types.DOCUMENT, line) for line in shown.lines(turn.documents)), (types.TEMPLATE, closing)]
        parts.append((types.POLICY, answer))
        length = sum(len(ids) for _, ids in parts)
        if (length <= min(max_tokens, config.rollout.max_tokens) and len(prompt) <= config.rollout.max_prompt_tokens
                and len(searches) <= config.rollout.max_turns and len(answer) <= config.rollout.max_turn_tokens
                and all(shown.fits(turn.query) for turn in demonstration.turns)):
            rows.append(parts)
    tokens, roles = np.zeros((len(rows), max_tokens), np.int32), np.zeros((len(rows), max_tokens), np.int8)
    for row, parts in enumerate(rows):
        ids = [(token, role) for role, part in parts for token in part]
        tokens[row, :len(ids)], roles[row, :len(ids)] = zip(*ids, strict=True)
    return tokens, roles


def write_demonstrations(path: str | os.PathLike, demonstrations: Iterable[Demonstration]) -> None:
    """Writes the file, whole or not at all; see the head of this module."""
    write_jsonl(path, map(dataclasses.asdict, demonstrations))


def read_demonstrations(path: str | os.PathLike) -> list[Demonstration]:
    """The episodes of a .jsonl[.gz] file.

    Raises:
      OSError: the file cannot be read.
      ValueError: a line is not an episode, or the file has none; the message names the line and the field.
    """
    demonstrations = []
    opener: Callable = gzip.open if str(path).endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                demonstrations.append(_demonstration(json.loads(line)))
            except KeyError as error:
                raise ValueError(f"{path}, line {number}: field {error} is missing; an episode has question, turns and "
                                 "answer") from error
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}, line {number} is not an episode ({error}); use the form of "
                                 "zsjax.tuning.demonstrations") from error
    if not demonstrations:
        raise ValueError(f"{path} has no episode; give at least one")
    return demonstrations


def _demonstration(row: dict) -> Demonstration:
    question = row["question"]
    turns = tuple(Turn(_text(turn["query"]), tuple(Document(_text(document["title"]), _text(document["text"]))
                                                   for document in turn["documents"])) for turn in row["turns"])
    golds = tuple(_text(gold) for gold in question["golden_answers"])
    return Demonstration(Question(str(question["id"]), _text(question["question"]), golds, question.get("metadata", {})),
                         turns, _text(row["answer"]))


def _text(value) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    return value
