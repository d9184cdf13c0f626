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
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from zsjax import types
from zsjax.errors import InputError, json_value, reading
from zsjax.parallel.files import write_jsonl
from zsjax.rewards import answer_kind, contains_match, normalize_answer
from zsjax.rollout.actions import ANSWER, SEARCH, Action
from zsjax.rollout.documents import encode_documents
from zsjax.rollout.policy_prompt import PolicyTemplate
from zsjax.search.engine import Document, SearchContext, chance
from zsjax.search.simulator.prompt import bare_line
from zsjax.types import Question

MAX_NAME_WORDS, MIN_NAME_LETTERS = 8, 4  # of a page's name that is looked for in a text


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
        """The text of some turns' documents, as far as it is shown, without their numbers: "Doc 1" shows no answer "1"."""
        return "\n".join(bare_line(self.tokenizer.decode(line)) for turn in turns for line in self.lines(turn.documents))

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


def make_demonstrations(questions: Sequence[Question], engine, shown: Shown, titles: Iterable[str] = (),
                        ) -> list[Demonstration]:
    """Episodes that search with the question, then with titles of pages, until a gold answer is shown.

    The first query is the question. While turns are left and no shown document holds a gold answer, the next query is the
    name of a page that was not found yet and that the question or a shown document names, so that a policy could have
    written it. It is a bridge (`find_bridges`) or else a supporting title (metadata "supporting_titles"). A question of
    several hops thus gets a query for each hop that the first one missed. With config.warm_start.every_hop a shown answer
    does not end the searches of a question of several hops: where it is shown by chance, or one entity of a comparison was
    not looked at, a policy would learn to guess. The answer is the first gold answer that is shown. Questions without one
    are left out, and so are those of yes and no, whose answer stands in no document.

    Args:
      questions: in the order of the episodes.
      engine: see `zsjax.search.engine.Engine`.
      shown: search.num_documents, rollout.max_turns and warm_start.every_hop of its config are read.
      titles: of the corpus, among which bridges are found; (): no bridges.
    """
    k, max_turns = shown.config.search.num_documents, shown.config.rollout.max_turns
    turns: list[tuple[Turn, ...]] = [() for _ in questions]
    asked = {row: question.question for row, question in enumerate(questions) if shown.fits(question.question)
             and answer_kind(question.question, question.golden_answers) != "yes_no"}
    pages = {normalize_answer(page_name(title)): page_name(title) for title in titles}
    done = {}
    for turn in range(max_turns):
        rows, unanswered = list(asked), {}
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
            else:
                unanswered[row] = Demonstration(question, turns[row], "")
            if answer is None or shown.config.warm_start.every_hop:
                title = _next_title(question, turns[row], text, hops_only=answer is not None)
                if title is not None and shown.fits(title):
                    asked[row] = title
        if pages and turn + 1 < max_turns:
            asked |= find_bridges(unanswered, pages, engine, shown)
    return [done[row] for row in sorted(done)]


def shorten(demonstration: Demonstration, shown: Shown, num_documents: int) -> Demonstration | None:
    """The episode with at most `num_documents` documents of each search, in the order in which the engine found them.

    The best documents stay, and the best that holds what the episode needs next: the next query, or the answer. Every search
    of every episode shows as many, or a policy would learn from the number whether to search again. None where the answer
    is then shown no more.
    """
    turns, needed = [], [*(turn.query for turn in demonstration.turns[1:]), demonstration.answer]
    for turn, text in zip(demonstration.turns, needed, strict=True):
        places = range(len(turn.documents))
        first = [place for place in places if _shows(shown, [Turn(turn.query, (turn.documents[place],))], text)][:1]
        kept = sorted((first + [place for place in places if place not in first])[:num_documents])
        turns.append(Turn(turn.query, tuple(turn.documents[place] for place in kept)))
    if not _shows(shown, turns, demonstration.answer):
        return None
    return dataclasses.replace(demonstration, turns=tuple(turns))


def _shows(shown, turns, text) -> bool:
    return contains_match(shown.text(turns), [text]) > 0


def page_name(title: str) -> str:
    """The page of a title that names a section behind it: "Emma - Plot" and "Emma -" are of the page "Emma"."""
    return title.partition(" - ")[0].removesuffix(" -").strip()


def _found(turns: Sequence[Turn]) -> set[str]:
    """The names, in lower case, of the pages that some turns found or searched for."""
    return {page_name(name).lower() for turn in turns
            for name in (turn.query, *(document.title for document in turn.documents))}


def hops_of(question: Question) -> list[str]:
    """The pages that a question's supporting titles name, without one that is the answer: a title that holds a gold answer
    and that the question does not name."""
    names = dict.fromkeys(map(page_name, question.metadata.get("supporting_titles", ())))
    return [name for name in names if contains_match(question.question, [name])
            or not contains_match(name, question.golden_answers)]


def _next_title(question: Question, turns: Sequence[Turn], text: str, hops_only: bool) -> str | None:
    """A supporting page that was not found yet and that the question or the shown text names.

    hops_only: only one of `hops_of`, of a question with several of them.
    """
    hops, found, known = hops_of(question), _found(turns), f"{question.question}\n{text}"
    names = hops if hops_only else [page_name(title) for title in question.metadata.get("supporting_titles", ())]
    if hops_only and len(hops) < 2:
        return None
    return next((name for name in names if name.lower() not in found and contains_match(known, [name])), None)


def find_bridges(episodes: Mapping[int, Demonstration], pages: Mapping[str, str], engine, shown: Shown) -> dict[int, str]:
    """{number of an episode: the next query} for the unanswered episodes that a bridge leads on.

    A bridge is a page that the question or a shown document names, that was not found yet, that does not name the answer,
    and that shows a gold answer where a search for its name finds it. Supporting pages come first, then the order in which
    they are named. A question of one hop (one of `hops_of`) has no bridge.

    Args:
      episodes: so far.
      pages: {normalised name: name} of the corpus.
    """
    wanted = [(number, name) for number, episode in episodes.items() for name in _named_pages(episode, pages, shown)]
    found = engine.search([name for _, name in wanted], [SearchContext(episodes[number].question) for number, _ in wanted],
                          k=shown.config.search.num_documents) if wanted else []
    bridges = {}
    for (number, name), documents in zip(wanted, found, strict=True):
        page = tuple(each for each in documents if page_name(each.title).lower() == name.lower())
        if page and contains_match(shown.text([Turn(name, page)]), episodes[number].question.golden_answers):
            bridges.setdefault(number, name)
    return bridges


def _named_pages(episode, pages, shown) -> list[str]:
    """The pages that may be a bridge of an episode, in the order in which they are tried."""
    question, hops = episode.question, {name.lower() for name in hops_of(episode.question)}
    if len(hops) == 1:
        return []
    words = normalize_answer(f"{question.question}\n{shown.text(episode.turns)}").split()
    names = (pages.get(" ".join(words[at:at + size])) for at in range(len(words)) for size in range(1, MAX_NAME_WORDS + 1))
    found = _found(episode.turns)
    named = [name for name in dict.fromkeys(filter(None, names))
             if len(name) >= MIN_NAME_LETTERS and name.lower() not in found and shown.fits(name)
             and not contains_match(name, question.golden_answers)]
    return sorted(named, key=lambda name: name.lower() not in hops)


def thin_named(demonstrations: Sequence[Demonstration], share: float) -> list[Demonstration]:
    """The episodes in order, without some of those whose question names the answer: at most `share` of the result.

    Which of them stay is a function of their questions' keys.
    """
    named = [contains_match(each.question.question, [each.answer]) > 0 for each in demonstrations]
    most = len(named) if share == 1 else int((len(named) - sum(named)) * share / (1 - share))
    by_chance = sorted((row for row, is_named in enumerate(named) if is_named),
                       key=lambda row: chance("named", demonstrations[row].question.key))
    dropped = set(by_chance[most:])
    return [each for row, each in enumerate(demonstrations) if row not in dropped]


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
    asked = Question(str(question["id"]), _text(question["question"]), golds, question.get("metadata", {}),
                     _text(question.get("key", "")))
    return Demonstration(asked, turns, _text(row["answer"]))


def _text(value) -> str:
    if not isinstance(value, str):
        raise InputError(f"{value!r} is not a text")
    return value
