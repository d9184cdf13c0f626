"""Episodes to imitate: the actions that a policy should take for a question, and the documents that it is shown.

A file of them has one JSON object a line:

    {"question": {"id": "q1", "question": "Who ...?", "golden_answers": ["..."]},
     "turns": [{"query": "...", "documents": [{"title": "...", "text": "..."}, ...]}, ...],
     "answer": "..."}

A question may have "metadata". Turns are in the order of the searches; a turn's documents are in the order in which they
are shown, at most config.search.num_documents of them. `write_demonstrations` writes such a file.

`encode` makes an episode's tokens with the functions of a rollout, so the policy trains on what it will see.
"""

import dataclasses
import gzip
import os
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from zsjax import types
from zsjax.errors import InputError, json_value, reading
from zsjax.parallel.files import write_jsonl
from zsjax.rewards import contains_match
from zsjax.rollout.actions import ANSWER, SEARCH, Action
from zsjax.rollout.documents import encode_documents
from zsjax.rollout.policy_prompt import PolicyTemplate
from zsjax.search.engine import Document, SearchContext
from zsjax.types import Question


@dataclasses.dataclass(frozen=True)
class Turn:
    """A search: its query and the documents that were shown."""

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
    """How a rollout of this config and tokenizer shows documents, and its budgets."""

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
        """The text of some turns' documents, as far as it is shown."""
        return "".join(self.tokenizer.decode(line) for turn in turns for line in self.lines(turn.documents))

    def actions(self, demonstration: Demonstration) -> list[list[int]]:
        """Ids of the policy's actions: a search for each turn, then the answer."""
        texts = [_action(SEARCH, turn.query) for turn in demonstration.turns]
        return [self.tokenizer.encode(text) for text in (*texts, _action(ANSWER, demonstration.answer))]

    def fits(self, query: str) -> bool:
        """Whether the query is within the budgets: a longer query is cut, a longer turn is an invalid action."""
        query_tokens, turn_tokens = (len(self.tokenizer.encode(text)) for text in (f" {query} ", _action(SEARCH, query)))
        return (query_tokens <= self.config.search.max_query_tokens
                and turn_tokens <= self.config.rollout.max_turn_tokens)


def _action(action: Action, text: str) -> str:
    return f"{action.open} {text} {action.close}"


def make_demonstrations(questions: Sequence[Question], engine, shown: Shown) -> list[Demonstration]:
    """Episodes that search with the question, then with supporting titles, until a gold answer is shown.

    The first query is the question. While turns are left and no shown document holds a gold answer, the next query is a
    supporting title (metadata "supporting_titles") that was not found yet and occurs in the question or in a shown
    document. A question of several hops thus gets a query for each hop that the first one missed. With
    config.warm_start.every_hop a shown answer does not end the searches: where it is shown by chance, or one entity of a
    comparison was not looked at, a policy would learn to guess. A title that holds a gold answer, and that the question
    does not name, then is the answer and no hop. The answer is the first gold answer that is shown; a question without
    one is left out.

    Args:
      questions: in the order of the episodes.
      engine: see `zsjax.search.engine.Engine`.
      shown: search.num_documents, rollout.max_turns and warm_start.every_hop of its config are read.
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
            if answer is None or shown.config.warm_start.every_hop:
                title = _next_title(question, turns[row], text, hops_only=answer is not None)
                if title is not None and shown.fits(title):
                    asked[row] = title
    return [done[row] for row in sorted(done)]


def shorten(demonstration: Demonstration, shown: Shown, num_documents: int) -> Demonstration | None:
    """The episode with at most `num_documents` documents in all, evenly over its searches and at least one each.

    Of each search the best documents stay, in their order, but the best that holds what the episode needs next: the next
    query, or the answer. None where the answer is then shown no more.
    """
    turns, k = [], max(num_documents // len(demonstration.turns), 1)
    needed = [*(turn.query for turn in demonstration.turns[1:]), demonstration.answer]
    for turn, text in zip(demonstration.turns, needed, strict=True):
        places = range(len(turn.documents))
        holding = [place for place in places
                   if contains_match(shown.text([Turn(turn.query, (turn.documents[place],))]), [text])]
        first = holding[:1]
        kept = sorted((first + [place for place in places if place not in first])[:k])
        turns.append(Turn(turn.query, tuple(turn.documents[place] for place in kept)))
    if not contains_match(shown.text(turns), [demonstration.answer]):
        return None
    return dataclasses.replace(demonstration, turns=tuple(turns))


def _next_title(question: Question, turns: Sequence[Turn], text: str, hops_only: bool) -> str | None:
    """A supporting title that was not found yet and occurs in the question or in the shown text.

    hops_only: not a title that holds a gold answer, unless the question names it.
    """
    seen = {document.title.lower() for turn in turns for document in turn.documents}
    seen |= {turn.query.lower() for turn in turns}
    known = f"{question.question}\n{text}"
    return next((title for title in question.metadata.get("supporting_titles", ())
                 if title.lower() not in seen and contains_match(known, [title])
                 and not (hops_only and contains_match(title, question.golden_answers)
                          and not contains_match(question.question, [title]))), None)


def encode(demonstrations: Sequence[Demonstration], shown: Shown, max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """(tokens int32[N, max_tokens], roles int8[N, max_tokens]) of the N episodes that keep to all budgets.

    Episodes are left out that are longer than max_tokens or rollout.max_tokens, or whose prompt, query, turn or number of
    turns exceeds the rollout's.
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
      InputError: the file cannot be read, a line is not an episode, or there is none; the message names line and field.
    """
    demonstrations = []
    opener: Callable = gzip.open if str(path).endswith(".gz") else open
    with reading(path), opener(path, "rt", encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                demonstrations.append(_demonstration(json_value(line)))
            except KeyError as error:
                raise InputError(f"{path}, line {number}: field {error} is missing; an episode has question, turns and "
                                 "answer") from error
            except (ValueError, TypeError, AttributeError) as error:
                raise InputError(f"{path}, line {number} is not an episode ({error}); use the form of "
                                 "zsjax.tuning.demonstrations") from error
    if not demonstrations:
        raise InputError(f"{path} has no episode; give at least one")
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
        raise InputError(f"{value!r} is not a text")
    return value
