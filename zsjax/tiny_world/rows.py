"""Training rows of the tiny world, as tokens and weights: facts to read.

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


def fact_lines(vocab: Vocabulary, relations, subjects, objects):
    """int32[n, 9] lines "* relation of S1 S2 is O1 O2.\\n" of the relations' token ids and names int[n, 2]."""
    star, of, is_, end = (vocab.ids(text)[0] for text in ("*", " of", " is", ".\n"))

    def fixed(token):
        return np.full(len(relations), token)

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
        text = fact_lines(vocab, words, names[subject[order]], names[other[order]])
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
