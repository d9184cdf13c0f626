"""Training rows of the tiny world, as tokens and weights: facts to read, and episodes to imitate.

Everything is drawn from a numpy generator that the caller seeds with (seed, step), so that a row is a function of the
step. Names are token pairs (first, last) throughout; combinations of held-out names are never drawn unless asked for.
"""

import dataclasses
import functools

import numpy as np

from zsjax.errors import InputError
from zsjax.tiny_world import world
from zsjax.tiny_world.world import ALL_RELATIONS, NUM_FIRST, NUM_LAST, PARAPHRASES, RELATIONS, held_out_names, name_words


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Token ids of the world's words and glue. Hashable by identity of the tokenizer: made once by `vocabulary`."""

    first: np.ndarray  # int32[200]
    last: np.ndarray  # int32[200]
    relations: np.ndarray  # int32[R], the words of documents; R is 8, or 40 in the hard world
    paraphrases: np.ndarray  # int32[R], other words for the same; where there are none, the same words
    tokenizer: object = dataclasses.field(repr=False)

    @functools.cache  # noqa: B019 - one vocabulary lives as long as the process
    def ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a piece of glue."""
        return tuple(self.tokenizer.encode(text))

    def __hash__(self):
        return id(self.tokenizer)

    def __eq__(self, other):
        return self is other


@functools.cache
def vocabulary(tokenizer) -> Vocabulary:
    """Looks the world's words up: those of the hard world where the tokenizer knows its last word as one token.

    Raises ValueError if a word is not a single token after a space.
    """
    def single(word):
        ids = tokenizer.encode(" " + word)
        if len(ids) != 1:
            raise InputError(f"{word!r} is {len(ids)} tokens in this tokenizer: the tiny world needs its own")
        return ids[0]

    hard = len(tokenizer.encode(" " + ALL_RELATIONS[-1])) == 1
    relations = (ALL_RELATIONS, PARAPHRASES.values()) if hard else (RELATIONS, RELATIONS)
    words = [np.array([single(w) for w in group], np.int32) for group in (*name_words(), *relations)]
    return Vocabulary(*words, tokenizer)


def draw_names(rng, count: int, *, held_out: bool = False, share_first=0.3, share_last=0.15) -> np.ndarray:
    """int[count, 2] different names; some take over the first or last word of an earlier one."""
    names, seen = [], set()
    while len(names) < count:
        a, b = int(rng.integers(NUM_FIRST)), int(rng.integers(NUM_LAST))
        draw = rng.random()
        if names and draw < share_first:
            a = names[int(rng.integers(len(names)))][0]
        elif names and draw < share_first + share_last:
            b = names[int(rng.integers(len(names)))][1]
        if (a, b) not in seen and held_out_names()[a, b] == held_out:
            names.append((a, b))
            seen.add((a, b))
    return np.array(names)


def _fact_line(vocab: Vocabulary, relations, subjects, objects):
    """int32[n, 9] lines "* relation of S1 S2 is O1 O2.\\n" of the relations' token ids and names int[n, 2]."""
    star, of, is_, end = (vocab.ids(text)[0] for text in ("*", " of", " is", ".\n"))
    fixed = lambda token: np.full(len(relations), token)
    return np.stack([
        fixed(star), relations, fixed(of), vocab.first[subjects[:, 0]], vocab.last[subjects[:, 1]],
        fixed(is_), vocab.first[objects[:, 0]], vocab.last[objects[:, 1]], fixed(end)], axis=1).astype(np.int32)


LINE = 9  # tokens of a fact line
OBJECT = slice(6, 8)  # its object


def reading_rows(rng, vocab: Vocabulary, *, rows: int, max_tokens: int, facts: tuple[int, int] | int,
                 unknown: float = 0.0, held_out: bool = False, paraphrase: float = 0.0, glue_weight: float = 0.1):
    """Rows of n facts followed by the same facts again in another order: a question is a fact's beginning.

    Facts come from a small grid of entities and relations drawn for the row, so that the same subject with another
    relation, the same relation of another subject, and the reverse are common.

    Args:
      rows, max_tokens: B and T; a row holds T // 9 lines.
      facts: n, or a pair (low, high) to draw it from, both included.
      unknown: share of asked lines whose fact is not there: the object is the word "unknown".
      held_out: draw from the names of evaluation worlds.
      paraphrase: share of asked lines that name the relation by its other word.
      glue_weight: weight of every token but asked objects, which weigh 1.

    Returns:
      (tokens int32[B, T], weights float32[B, T], asked bool[B, T // 9]: lines that ask for a fact for
      the first time, so that the answer stands nowhere but in the fact itself).
    """
    low, high = (facts, facts) if isinstance(facts, int) else facts
    lines = max_tokens // LINE
    tokens, weights = np.zeros((rows, max_tokens), np.int32), np.zeros((rows, max_tokens), np.float32)
    asked = np.zeros((rows, lines), bool)
    nowhere = vocab.ids(f" {world.UNKNOWN}")[0]
    for row in range(rows):
        n = int(rng.integers(low, high + 1))
        cells = lines if unknown else n  # facts that are thought of; the first n are told
        # Few relations a row: with many, a fact's relation alone tells it apart and subjects are never looked at.
        kinds = int(rng.integers(1, 5))
        fewest = -(-cells // kinds)
        subjects = int(rng.integers(fewest, max(fewest, n) + 1))
        grid = rng.permutation(subjects * kinds)[:cells]
        subject, relation = grid // kinds, rng.permutation(len(vocab.relations))[grid % kinds]
        names = draw_names(rng, subjects + n, held_out=held_out)
        # Mostly objects that stand nowhere else: where every name occurs often, any of them is a fair guess.
        other = np.resize(rng.permutation(subjects + n), cells)
        other = np.where(other == subject, (other + 1) % (subjects + n), other)
        order = np.concatenate([rng.permutation(n) for _ in range(-(-(lines - n) // n))])[:lines - n]
        if unknown:
            absent = rng.random(lines - n) < unknown
            order = np.where(absent, rng.integers(n, cells, lines - n), order)
        order = np.concatenate([np.arange(n), order])
        words = vocab.relations[relation[order]]
        if paraphrase:
            words[n:] = np.where(rng.random(lines - n) < paraphrase, vocab.paraphrases[relation[order]][n:], words[n:])
        text = _fact_line(vocab, words, names[subject[order]], names[other[order]])
        weight = np.full((lines, LINE), glue_weight, np.float32)
        weight[n:, OBJECT] = 1
        asked[row, n:2 * n] = order[n:2 * n] < n
        flat, keep = text.reshape(-1), np.ones(lines * LINE, bool)
        if unknown:
            missing = np.flatnonzero(order >= n)
            text[missing, OBJECT.start] = nowhere
            keep = keep.reshape(lines, LINE)
            keep[missing, OBJECT.start + 1] = False
            flat, keep = text.reshape(-1), keep.reshape(-1)
        flat = flat[keep]
        tokens[row, :len(flat)] = flat
        weights[row, :len(flat)] = weight.reshape(-1)[keep]
    return tokens, weights, asked


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
        count = lambda words, n: 2 * (words[self.subject][:, None] == np.arange(n)) + (
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
        lines = _fact_line(self.vocab, self.vocab.relations[table.relation[shown]], table.names[table.subject[shown]],
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
    chance = lambda p: rng.random() < p
    decision = 0.0 if guided else 1.0
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
        found, shown = e.search(path[at], relation, decision=decision, paraphrased=paraphrased,
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
      hops: questions have 1 to so many, each as often.
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
