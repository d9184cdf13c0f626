"""Training rows of the tiny world, as tokens and weights: episodes to imitate, of a poor searcher.

Everything is drawn from a numpy generator that the caller seeds with (seed, step), so that a row is a function of the
step.
"""

import dataclasses

import numpy as np

from zsjax.errors import InputError
from zsjax.tiny_world import world
from zsjax.tiny_world.rows import Vocabulary, draw_names, fact_lines
from zsjax.tiny_world.world import RELATIONS


class FactTable:
    """A small random world as index arrays, with the ranking that BM25 gives its documents, without any text."""

    def __init__(self, rng, *, entities: int = 40, facts_per_entity: int = 4, relations: int = len(RELATIONS),
                 held_out: bool = False):
        """entities, facts_per_entity, relations: as `world.make_world`."""
        self.names = draw_names(rng, entities, held_out=held_out)
        self.subject = np.repeat(np.arange(entities), facts_per_entity)
        self.relation = np.concatenate([rng.permutation(relations)[:facts_per_entity] for _ in range(entities)])
        other = np.concatenate([1 + rng.permutation(entities - 1)[:facts_per_entity] for _ in range(entities)])
        self.object = (self.subject + other) % entities
        self.fact = np.full((entities, relations), -1)
        self.fact[self.subject, self.relation] = np.arange(len(self.subject))
        # Term frequencies as in a document of title (the subject) and text.

        def count(words, n):
            return 2 * (words[self.subject][:, None] == np.arange(n)) + (
                    words[self.object][:, None] == np.arange(n))

        self._first, self._last = (self._weigh(count(self.names[:, i], 200)) for i in (0, 1))
        self._relation = self._weigh((self.relation[:, None] == np.arange(relations)).astype(int))

    @staticmethod
    def _weigh(counts, k1=1.5):
        found = (counts > 0).sum(axis=0)
        idf = np.log1p((len(counts) - found + 0.5) / (found + 0.5))
        return idf * counts * (k1 + 1) / (counts + k1)

    def lookup(self, entity: int, relation: int) -> int:
        """Index of the fact, -1 if there is none."""
        return int(self.fact[entity, relation])

    def search(self, entity: int, relation: int, *, k: int = 3, lose: bool = False, paraphrased: bool = False
               ) -> np.ndarray:
        """Facts of the k best documents for "relation of entity".

        lose: without the asked fact, and without others that have its object. paraphrased: the query's word for the
        relation stands in no document.
        """
        first, last = self.names[entity]
        score = self._first[:, first] + self._last[:, last] + (0 if paraphrased else self._relation[:, relation])
        fact = self.lookup(entity, relation)
        if lose and fact >= 0:
            score = np.where(self.object == self.object[fact], -1.0, score)
        return np.argsort(-score, kind="stable")[:k]


@dataclasses.dataclass(frozen=True)
class Behaviour:
    """How the imitated episodes search. Every number is a probability; tuples have one for each number of hops.

    guided: share of rows that follow the right path with the loss on search decisions (search or answer, and which
      relation) left out: they teach to read, copy and answer without teaching to search. In the other rows:
    answer_at_once: with the question's own entity, unread.
    right_query: asks for the right relation, otherwise for another one of the same entity.
    stop_early: answers with the bridge entity of a two-hop question.
    search_again: when no document answered, rather than to answer with some name that was seen.
    reworded: a repeated search uses other words.
    lost: the engine does not show the asked fact.
    paraphrase: the question names a relation by its other word.
    translated: the query for such a relation has the word of the documents; in guided rows, a half.
    guided_query: weight of the relation that a query of a guided row asks: with 1 only "search or answer" is left out.
    budget_told: the prompt begins with one word "search" for each search that the episode may make, 1 to max_searches.
    """

    guided: float = 0.45
    answer_at_once: tuple[float, ...] = (0.65, 0.68)
    right_query: tuple[float, ...] = (0.6, 0.9)
    stop_early: float = 0.1
    search_again: float = 0.3
    reworded: float = 0.33
    lost: float = 0.25
    paraphrase: float = 0.0
    translated: float = 0.25
    guided_query: float = 0.0
    budget_told: float = 0.0


AT_ONCE_WEIGHT = 3.0  # answers at once are short and all alike: drawn so much more rarely, weighed so much more


class _Episode:
    """Token pieces of one episode and their weights."""

    def __init__(self, vocab, table, rng):
        self.vocab, self.table, self.rng = vocab, table, rng
        self.tokens, self.weights = [], []

    def say(self, text, weight=1.0):
        self.add(self.vocab.ids(text), weight)

    def add(self, ids, weight=1.0):
        self.tokens += ids
        self.weights += [weight] * len(ids)

    def name(self, entity):
        first, last = self.table.names[entity]
        return [int(self.vocab.first[first]), int(self.vocab.last[last])]

    def decide(self, what, weight):
        """"...</think><search>" or "...</think><answer>" from the "><" on: the word is the decision."""
        self.add(self.vocab.ids("><"))
        self.say(what, weight)
        self.say(">")

    def search(self, entity, relation, *, decision, paraphrased=False, reworded=False, lose=False):
        """The query, the engine's documents and the thought that states what was found: the object, -1 for none."""
        word = int((self.vocab.paraphrases if paraphrased else self.vocab.relations)[relation])
        if reworded:
            self.say(" the", decision)
        self.add([word], decision)
        self.say(" of")
        self.add(self.name(entity))
        self.say(" </search>")
        shown = self.rng.permutation(self.table.search(entity, relation, lose=lose, paraphrased=paraphrased))
        self.say(world.DOCUMENTS_OPEN, 0.0)
        table = self.table
        lines = fact_lines(self.vocab, self.vocab.relations[table.relation[shown]], table.names[table.subject[shown]],
                           table.names[table.object[shown]])
        self.add(lines.reshape(-1).tolist(), 0.0)
        self.say(world.DOCUMENTS_CLOSE, 0.0)
        fact = table.lookup(entity, relation)
        found = int(table.object[fact]) if fact in shown else -1
        self.say("<think>")
        self.add([word])
        self.say(" of")
        self.add(self.name(entity))
        self.say(" is")
        self.add(self.name(found) if found >= 0 else self.vocab.ids(f" {world.UNKNOWN}"))
        self.say(" </")
        self.say("think")
        return found, shown


def _draw_chain(rng, table: FactTable, hops: int):
    """(entities of the path, relations asked in order) of a random question of the table."""
    while True:
        path, relations = [int(rng.integers(len(table.names)))], []
        for _ in range(hops):
            fact = rng.choice(np.flatnonzero(table.subject == path[-1]))
            relations.append(int(table.relation[fact]))
            path.append(int(table.object[fact]))
        if len(set(path)) == len(path):
            return path, relations


def _write_episode(rng, vocab, table, behaviour: Behaviour, hops: int, max_searches: int) -> _Episode:
    path, relations = _draw_chain(rng, table, hops)
    b, guided = behaviour, rng.random() < behaviour.guided

    def chance(p):
        return rng.random() < p

    decision, asking = (0.0, b.guided_query) if guided else (1.0, 1.0)
    e = _Episode(vocab, table, rng)
    if b.budget_told and chance(b.budget_told):
        max_searches = int(rng.integers(1, max_searches + 1))
        e.say(world.BUDGET * max_searches + "\n", 0.0)
    asks_otherwise = [bool(b.paraphrase) and chance(b.paraphrase) for _ in relations]
    _ask(e, path[0], relations, asks_otherwise)
    answer, at, again = path[0], 0, False
    p = b.answer_at_once[hops - 1]
    at_once = not guided and chance(p / (p + AT_ONCE_WEIGHT * (1 - p)))
    if at_once:
        max_searches = 0
    for _ in range(max_searches):
        right = guided or again or chance(b.right_query[hops - 1])
        relation = relations[at]
        if not right:
            # The commonest mistake is to ask the outer relation of the question's own entity.
            relation = relations[-1] if hops > 1 and at == 0 and chance(0.6) else int(rng.integers(len(vocab.relations)))
        on_path = relation == relations[at]
        paraphrased = on_path and asks_otherwise[at] and not chance(0.5 if guided or again else b.translated)
        e.decide("search", decision)
        found, shown = e.search(path[at], relation, decision=asking, paraphrased=paraphrased,
                                reworded=again and chance(b.reworded), lose=chance(b.lost))
        again = False
        if found < 0:
            if guided or chance(b.search_again):
                again = True
                continue
            answer = path[0] if chance(0.5) else int(table.object[rng.choice(shown)])
            break
        answer = found
        if on_path:
            at += 1
            if at == hops or (not guided and chance(b.stop_early)):
                break
        elif chance(0.6):
            break
    e.decide("answer", AT_ONCE_WEIGHT if at_once else decision)
    e.add(e.name(answer))
    e.say(" </answer>")
    return e


def _ask(e: _Episode, entity: int, relations, asks_otherwise):
    """The question and the first thought."""
    e.say("What is", 0.0)
    for relation, otherwise in zip(reversed(relations), reversed(asks_otherwise), strict=True):
        e.say(" the", 0.0)
        e.add([int((e.vocab.paraphrases if otherwise else e.vocab.relations)[relation])], 0.0)
        e.say(" of", 0.0)
    e.add(e.name(entity), 0.0)
    e.say("?\n", 0.0)
    e.say(world.FIRST_THOUGHT.removesuffix(">"))


def episode_rows(rng, vocab: Vocabulary, *, rows: int, max_tokens: int, behaviour: Behaviour, max_searches: int = 3,
                 hops: int = 2, **table):
    """Rows of one episode each, over one random world, in the very tokens that a rollout would hold.

    Args:
      hops: the most hops of a question; each number from 1 is as frequent.
      **table: options of `FactTable`.

    Returns:
      (tokens int32[B, T], weights float32[B, T]): weight 1 on what the policy writes, 0 on the question, documents and
      what `Behaviour.guided` leaves out. Raises ValueError if an episode is longer than max_tokens.
    """
    table = FactTable(rng, relations=len(vocab.relations), **table)
    tokens, weights = np.zeros((rows, max_tokens), np.int32), np.zeros((rows, max_tokens), np.float32)
    for row in range(rows):
        length = 1 + min(int((1 - rng.random()) * hops), hops - 1)
        episode = _write_episode(rng, vocab, table, behaviour, length, max_searches)
        if len(episode.tokens) > max_tokens:
            raise InputError(f"an episode of {len(episode.tokens)} tokens does not fit max_tokens={max_tokens}")
        tokens[row, :len(episode.tokens)] = episode.tokens
        weights[row, :len(episode.tokens)] = episode.weights
    return tokens, weights
