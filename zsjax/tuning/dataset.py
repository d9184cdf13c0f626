"""Examples that teach a model to play the search engine: prompt and documents in tokens, weights on the documents.

An example's prompt is spliced as in the compiled rollout (`Simulator.prompts`), so the simulator sees in use what it saw
in training. `config.collect.label` says which examples a search of the real engine gives:

  "ranking"   useful: what the engine found, best first (shown documents are shuffled later: `search.shuffle_documents`);
              noisy: its ranking without the best document and without every one that holds a gold answer.
  "answer"    the paper's first version: the ranking is useful if the episode's final answer was right, else noisy.
  "contains"  its second version labels document by document; here a document that holds a gold answer is useful.
              Useful: the ranking, if at least one of its k best is useful; noisy: the best documents that are not.
  "judge"     the same with the verdicts of a judge model (zsjax.tuning.judge) in place of containment.

With `config.collect.pairs` a search gives both kinds or neither, and no document is in both. Useful: of the documents
found, those that hold a gold answer (help, says the judge; are the k best, with "ranking") before others; noisy: the best
without a gold answer that the useful reply leaves. The mode alone then tells the two apart. Both keep the engine's order.

Except with "answer", the targets are true documents that the engine ranks high, so a simulator that obeys the noisy word
neither leaks nor invents facts. With "answer", noisy documents are those that a failed episode found.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from zsjax.errors import InputError
from zsjax.rewards import contains_match
from zsjax.rollout.documents import encode_documents
from zsjax.sampling import ragged
from zsjax.search.engine import Document
from zsjax.search.simulator.requests import Requests
from zsjax.search.simulator.simulator import Simulator
from zsjax.tuning.collect import OFF_TARGET, words_of
from zsjax.types import Question

PROMPT_ROWS = 256  # prompts spliced at a time


@dataclasses.dataclass(frozen=True)
class Example:
    """One supervised reply of the simulator."""

    question: Question
    query: str
    noisy: bool
    documents: tuple[Document, ...]


@dataclasses.dataclass(frozen=True)
class Emphasis:
    """Weights of the documents' tokens, for a small model that must learn first what matters most.

    The first word of a line that is not common decides which document it will be; useful and noisy replies differ there,
    at every line. (With weight on the first line only, the last line of 40 % of noisy replies was the fact that was asked
    for.) A token is common when more than half of all documents hold it ("of", "is").
    """

    lead: float = 3.0
    rest: float = 1.0
    common: float = 0.1


def useful_documents(ranking: Sequence[Document], k: int) -> list[Document]:
    """The k best documents, best first."""
    return list(ranking[:k])


def noisy_documents(ranking: Sequence[Document], golds: Sequence[str], k: int) -> list[Document]:
    """The k best documents, without the best one and those that hold a gold answer (whole words)."""
    return [document for document in ranking[1:] if not holds_gold(document, golds)][:k]


def holds_gold(document: Document, golds: Sequence[str]) -> bool:
    """Whether the document holds a gold answer as whole words."""
    return contains_match(f"{document.title}\n{document.text}", golds) > 0


def targets_of(search, k: int, label: str) -> dict[bool, list[Document]]:
    """{noisy: documents of the reply} of a search under a label; one or both may be missing.

    Raises InputError for an unknown label.
    """
    ranking, golds = search.documents, search.question.golden_answers
    if label == "ranking":
        return {False: useful_documents(ranking, k), True: noisy_documents(ranking, golds, k)}
    if label == "answer":
        return {} if search.correct is None else {not search.correct: useful_documents(ranking, k)}
    useful = _useful(search, label)
    noisy = [document for document, is_useful in zip(ranking, useful, strict=True) if not is_useful][:k]
    return {True: noisy} | ({False: useful_documents(ranking, k)} if any(useful[:k]) else {})


def pair_of(search, k: int, label: str) -> dict[bool, list[Document]]:
    """{noisy: documents of the reply} of a search's two replies, at most k each, which share no document.

    {} where "contains" or "judge" finds no useful document among the k best. Raises InputError for another label that
    does not label documents.
    """
    by_rank = label == "ranking"
    useful = dict(zip(search.documents, _useful(search, "contains" if by_rank else label), strict=True))
    ranking = list(useful)  # without repetitions
    if not by_rank and not any(useful[document] for document in ranking[:k]):
        return {}
    shown = ranking[:k] if by_rank else sorted(ranking, key=lambda document: not useful[document])[:k]
    return {False: [document for document in ranking if document in shown],
            True: [document for document in ranking if not useful[document] and document not in shown][:k]}


def _useful(search, label: str) -> Sequence[bool]:
    """Whether each document of the ranking is useful."""
    if label == "contains":
        return [holds_gold(document, search.question.golden_answers) for document in search.documents]
    if label != "judge":
        raise InputError(f"label {label!r} is unknown, or does not label documents; there are ranking, answer, contains, "
                         "judge")
    if search.useful is None:
        raise InputError("the searches have no verdicts of a judge: collect them with collect.label='judge'")
    return search.useful


def make_examples(searches: Sequence, num_documents: int, *, label: str = "ranking", balance: bool = True,
                  pairs: bool = False, off_target: float = 0.0, seed: int = 0) -> list[Example]:
    """The useful and noisy examples, each once, of every search with enough documents for them; those beside the point last.

    Args:
      searches: `collect.Search` records: question, query, documents as the engine ranked them.
      num_documents: k, documents of a reply.
      label: what makes a reply useful or noisy; see the head of this module.
      balance: drop random examples of the larger kind, until there are as many noisy as useful ones.
      pairs: use only searches that give both kinds, with documents of their own; see the head of this module.
      off_target: at most this share of all examples is of searches beside the point (`collect.OFF_TARGET`): useful, with
        the engine's k best documents whatever they hold.
      seed: of the choices.

    Raises:
      InputError: there are no examples of one of the two kinds.
    """
    sides, seen = {False: [], True: []}, set()
    beside = [search for search in searches if search.source == OFF_TARGET and len(search.documents) >= num_documents]
    for search in searches:
        if search.source == OFF_TARGET:
            continue
        targets = pair_of(search, num_documents, label) if pairs else targets_of(search, num_documents, label)
        if pairs and any(len(documents) < num_documents for documents in targets.values()):
            continue
        for noisy, documents in targets.items():
            name = (search.question.key, words_of(search.query), noisy)
            repeats = label == "ranking" and not pairs
            if len(documents) == num_documents and (repeats or name not in seen):
                seen.add(name)
                sides[noisy].append(Example(search.question, search.query, noisy, tuple(documents)))
    if not (sides[False] and sides[True]):
        raise InputError(f"{len(searches)} searches give {len(sides[False])} useful and {len(sides[True])} noisy "
                         f"replies of {num_documents} documents; collect more searches, or with a deeper ranking")
    rng = np.random.default_rng(seed)
    if balance:
        size = min(map(len, sides.values()))
        sides = {noisy: [side[i] for i in np.sort(rng.permutation(len(side))[:size])] for noisy, side in sides.items()}
    most = round(sum(map(len, sides.values())) * off_target / (1 - off_target))
    chosen = (beside[i] for i in np.sort(rng.permutation(len(beside))[:most]))
    return sides[False] + sides[True] + [
        Example(search.question, search.query, False, tuple(useful_documents(search.documents, num_documents)))
        for search in chosen]


@dataclasses.dataclass(frozen=True, eq=False)
class Encoder:
    """Turns examples into rows of tokens and weights, with the splice of the simulator in a rollout.

    Attributes:
      simulator: its prompts, budgets and number of documents are used; its parameters are not.
      document_format: how a document becomes a line.
      emphasis: None weighs every document token 1.
    """

    simulator: Simulator
    document_format: str
    emphasis: Emphasis | None = None

    @functools.cached_property
    def _prompts(self):
        return jax.jit(self.simulator.prompts)

    def prompts(self, examples: Sequence[Example]) -> list[np.ndarray]:
        """int32[P] prompt of each example."""
        simulator, prompts = self.simulator, []
        for first in range(0, len(examples), PROMPT_ROWS):
            batch = examples[first:first + PROMPT_ROWS]
            filled = ragged.fill(batch, PROMPT_ROWS)
            question, answers = simulator.encode_questions([example.question for example in filled])
            tokens, lengths = jax.device_get(self._prompts(Requests(
                question=question, answers=answers,
                query=simulator.encode_queries([example.query for example in filled]),
                noisy=np.array([example.noisy for example in filled]),
                question_key=np.zeros(len(filled), np.uint32), active=np.ones(len(filled), bool))))
            prompts += [tokens[i, :lengths[i]] for i in range(len(batch))]
        return prompts

    def lines(self, found: Sequence[Sequence[Document]]) -> list[list[list[int]]]:
        """Tokens of every document's line, of every list: inert, cut to the budget, newline included."""
        tokens, lengths, count = encode_documents(
            found, self.simulator.tokenizer, self.document_format, num_documents=self.simulator.num_documents,
            max_document_tokens=self.simulator.max_document_tokens)
        return [[tokens[b, i, :lengths[b, i]].tolist() for i in range(count[b])] for b in range(len(found))]

    def rows(self, examples: Sequence[Example], max_tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens int32[N, max_tokens], weights float32[N, max_tokens]) of N examples, right-padded with 0.

        The prompt weighs 0. Raises InputError where a row is longer than max_tokens, or does not have as many documents
        as the simulator writes.
        """
        k = self.simulator.num_documents
        if any(len(example.documents) != k for example in examples):
            raise InputError(f"every example must have the {k} documents that the simulator writes")
        prompts = self.prompts(examples)
        lines = self.lines([example.documents for example in examples])
        lengths = [len(prompt) + sum(map(len, documents)) for prompt, documents in zip(prompts, lines, strict=True)]
        if max(lengths, default=0) > max_tokens:
            raise InputError(f"the longest example has {max(lengths)} tokens; raise max_tokens from {max_tokens}")
        common = self._common(lines)
        tokens = np.zeros((len(examples), max_tokens), np.int32)
        weights = np.zeros((len(examples), max_tokens), np.float32)
        for row, (prompt, documents) in enumerate(zip(prompts, lines, strict=True)):
            tokens[row, :lengths[row]] = np.concatenate([prompt, *documents])
            spread = [self._weights(line, common) for line in documents]
            weights[row, len(prompt):lengths[row]] = np.concatenate(spread)
        return tokens, weights

    def _common(self, lines) -> set[int]:
        """Tokens that occur in more than half of the lines."""
        lines = [set(line) for documents in lines for line in documents]
        counts = collections.Counter(token for line in lines for token in line)
        return {token for token, count in counts.items() if count > len(lines) / 2}

    def _weights(self, line: Sequence[int], common: set[int]) -> list[float]:
        e = self.emphasis
        if e is None:
            return [1.0] * len(line)
        lead = next((place for place, token in enumerate(line) if token not in common), None)
        return [e.common if token in common else e.lead if place == lead else e.rest
                for place, token in enumerate(line)]


def make_batches(tokens: np.ndarray, weights: np.ndarray, *, batch_rows: int, seed: int) -> Callable:
    """batches(step) -> (tokens int32[B, T], weights float32[B, T]): epoch after epoch, each in its own order.

    A function of the step alone, so a resumed run sees the same batches.
    """
    if not len(tokens):
        raise InputError("no examples to train on")

    def batches(step):
        rows = []
        for position in range(step * batch_rows, (step + 1) * batch_rows):
            epoch, index = divmod(position, len(tokens))
            rows.append(_order(seed, epoch, len(tokens))[index])
        return tokens[rows], weights[rows]

    cache = {}

    def _order(seed, epoch, size):
        if epoch not in cache:
            cache.clear()  # steps come in order, so one epoch's order is enough
            cache[epoch] = np.random.default_rng([seed, epoch]).permutation(size)
        return cache[epoch]

    return batches
