"""The tiny world: seeded worlds of invented entities, their documents and questions, and the tokenizers for them.

An entity's name is two words. Each of them is one token where it follows a space. A world's facts are pairs
(entity, relation) -> entity, one document each. Facts chain to questions of several hops. A hash holds out one name in
ten. Only evaluation worlds use these names, so the policy cannot memorise them and must read.

The hard world (experiments/hard_world.py) is the same with other options of `make_world`, and a tokenizer of its own.

`python -m zsjax.tiny_world.world` trains both carried tokenizers anew.
"""

import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np

from zsjax.errors import InputError
from zsjax.search.engine import Document
from zsjax.types import Question

RELATIONS = ("spouse", "mother", "teacher", "rival", "voice", "author", "birthplace", "capital")
# The hard world's: the word that documents use, and the word in which a paraphrased question asks.
PARAPHRASES = dict(word.split(":") for word in """
    spouse:partner mother:mama teacher:tutor rival:opponent voice:narrator author:writer birthplace:hometown capital:seat
    father:papa sister:sibling brother:bro cousin:kin neighbor:adjoiner employer:boss lawyer:attorney doctor:physician
    tailor:dressmaker editor:reviser painter:portraitist composer:songwriter director:filmmaker producer:maker
    coach:trainer captain:skipper pilot:flyer founder:creator successor:heir patron:benefactor guardian:warden
    landlord:lessor tenant:renter translator:interpreter sculptor:carver witness:onlooker sponsor:backer agent:deputy
    banker:financier barber:hairdresser butcher:slaughterer gardener:planter""".split())
ALL_RELATIONS = tuple(PARAPHRASES)  # 40; the first 8 are RELATIONS
HARD_WORDS = (*ALL_RELATIONS, *PARAPHRASES.values())
NUM_FIRST = NUM_LAST = 200

# What a model reads and writes around facts. Names and relations follow a space everywhere, so that a word is the
# same token in a question, a query, a document and an answer.
POLICY_PROMPT = "{question}\n"
HINT = "\nSearch or answer.\n"
DOCUMENTS_OPEN = "\n<information>\n"
DOCUMENTS_CLOSE = "</information>\n"
DOCUMENT_LINE = "* {text}\n"
FIRST_THOUGHT = "<think> look </think>"
BUDGET = " search"  # in front of a question once for each search that the episode may make; the hard world's option
UNKNOWN = "unknown"  # what a thought says when no document answered: "mother of Kora Velim is unknown"
SIMULATOR_PROMPT = "simulate {mode} \nquestion:\n{question} \nanswer:\n{answers} \nquery:\n{query} \ndocuments:\n"

PRE_TOKENIZER = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
                 r"|\s+(?!\S)|\s+")  # Qwen2's
PAD_TOKEN, EOS_TOKEN = "<|pad|>", "<|endoftext|>"

_FIRST = ("Ka Ko Mi Mo Li Lo Ta Tu Ri Ro Se Su Ve Vi Na", "ra len mir dan sha vin lo nor ri tha bel zan mo kel")
_LAST = ("Bra Dru Gra Fle Hul Wen Pel Jor Zol Thi Cru Yar Ul Es On",
         "vik holt mere dov stan wick lund gar tosk heim croft by well sted")


@functools.cache
def name_words() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(200 first words, 200 last words), all different, made from syllables by a seeded generator."""
    rng = np.random.default_rng(2024)
    parts = []
    for starts, ends in (_FIRST, _LAST):
        words = [start + end for start in starts.split() for end in ends.split()]
        parts.append(tuple(words[i] for i in sorted(rng.permutation(len(words))[:NUM_FIRST])))
    return parts[0], parts[1]


@functools.cache
def held_out_names() -> np.ndarray:
    """bool[200, 200]: which (first, last) combinations only evaluation worlds use, by a hash: 10 %."""
    first, last = name_words()

    def digest(a, b):
        return hashlib.blake2b(f"{a} {b}".encode(), digest_size=4).digest()

    return np.array([[int.from_bytes(digest(a, b)) % 10 == 0 for b in last] for a in first])


@dataclasses.dataclass(frozen=True)
class Fact:
    """`relation` of `subject` is `object`: the last two are indices into the world's entities."""

    subject: int
    relation: str
    object: int


@dataclasses.dataclass(frozen=True)
class World:
    """Entities (each "First Last"), facts, and the questions chosen from them."""

    index: int
    split: str
    entities: tuple[str, ...]
    facts: tuple[Fact, ...]
    questions: tuple[Question, ...]

    @property
    def documents(self) -> tuple[Document, ...]:
        """One document a fact: the subject is the title."""
        return tuple(Document(self.entities[f.subject], f"{self.statement(f)}.") for f in self.facts)

    def statement(self, fact: Fact) -> str:
        """"spouse of Kora Velim is Dran Tosk", as documents and thoughts say it."""
        return f"{query_text(fact.relation, self.entities[fact.subject])} is {self.entities[fact.object]}"


def query_text(relation: str, entity: str, *, reworded: bool = False) -> str:
    """The query for one fact, without the space in front. Reworded: the same request in other words."""
    return f"{'the ' if reworded else ''}{relation} of {entity}"


def make_world(seed: int, split: str = "train", *, entities: int = 40, facts_per_entity: int = 4,
               two_hop_questions: int = 160, share_first: float = 0.3, share_last: float = 0.15, relations: int = 8,
               hops: int = 2, paraphrase: float = 0.0, near_duplicates: int = 0, taken: Iterable[str] = ()) -> World:
    """One world.

    Args:
      seed: names the world within its split.
      split: "train", or "eval" for names that no training world has.
      entities: their number.
      facts_per_entity: facts that questions ask, each with another relation and another object.
      two_hop_questions: the most questions of each number of hops above one. Every fact has a one-hop question.
      share_first, share_last: share of entities that take over another's first or last word, so that a document
        about one shares words with questions about the other.
      relations: the first of `ALL_RELATIONS` that facts use.
      hops: the most hops of a question; each number from 1 is as frequent.
      paraphrase: share of the relations of questions that are asked by another word than documents use.
      near_duplicates: further facts per entity, with other relations. No question asks them.
      taken: names that may not be used: a corpus of several worlds must not say two things about one name.

    Raises:
      ValueError: unknown split, or more facts than relations or than other entities.
    """
    facts_in_all = facts_per_entity + near_duplicates
    if split not in ("train", "eval"):
        raise InputError(f"split={split!r} must be 'train' or 'eval'")
    if not 1 <= relations <= len(ALL_RELATIONS):
        raise InputError(f"relations={relations} must be 1 to {len(ALL_RELATIONS)}")
    if not 1 <= facts_per_entity <= facts_in_all <= min(relations, entities - 1):
        raise InputError(f"facts_per_entity={facts_per_entity} + near_duplicates={near_duplicates} must be 1 to "
                         f"{min(relations, entities - 1)}")
    rng = np.random.default_rng([int(split == "eval"), seed])
    names = _draw_names(rng, entities, split, share_first, share_last, set(taken))
    facts, asked = [], []
    for subject in range(entities):
        chosen = rng.permutation(relations)[:facts_in_all]
        others = rng.permutation([e for e in range(entities) if e != subject])[:facts_in_all]
        facts += [Fact(subject, ALL_RELATIONS[r], int(o)) for r, o in zip(chosen, others, strict=True)]
        asked += facts[len(facts) - facts_in_all:len(facts) - near_duplicates]
    world = World(seed, split, names, tuple(facts), ())
    return dataclasses.replace(world, questions=tuple(_questions(world, asked, hops, two_hop_questions, paraphrase, rng)))


def _draw_names(rng, entities: int, split: str, share_first: float, share_last: float, taken: set[str]) -> tuple[str, ...]:
    """Different names of a split."""
    first, last = name_words()
    pairs = []
    while len(pairs) < entities:
        a, b = int(rng.integers(NUM_FIRST)), int(rng.integers(NUM_LAST))
        draw = rng.random()
        if pairs and draw < share_first:
            a = pairs[rng.integers(len(pairs))][0]
        elif pairs and draw < share_first + share_last:
            b = pairs[rng.integers(len(pairs))][1]
        if held_out_names()[a, b] == (split == "eval") and (a, b) not in pairs and f"{first[a]} {last[b]}" not in taken:
            pairs.append((a, b))
    return tuple(f"{first[a]} {last[b]}" for a, b in pairs)


def _questions(world: World, asked: list[Fact], hops: int, most: int, paraphrase: float, rng: np.random.Generator
               ) -> list[Question]:
    """Every one-hop question and `most` of each further number of hops, in turns while they last, in a seeded order."""
    by_subject = {}
    for fact in asked:
        by_subject.setdefault(fact.subject, []).append(fact)
    chains, kinds = [(fact,) for fact in asked], []
    for length in range(1, hops + 1):
        kinds.append([chains[i] for i in rng.permutation(len(chains))[:most if length > 1 else None]])
        # A chain that comes back to an entity would be answered by repeating a name of its own.
        chains = [(*chain, g) for chain in chains for g in by_subject[chain[-1].object]
                  if g.object not in [fact.subject for fact in chain]]
    longest = max(map(len, kinds))
    chosen = [chain for i in range(longest) for kind in kinds for chain in kind[i:i + 1]]
    words = [[_asked(fact.relation, paraphrase, rng) for fact in chain] for chain in chosen]
    return [_question(world, *pair, number) for number, pair in enumerate(zip(chosen, words, strict=True))]


def _asked(relation: str, paraphrase: float, rng: np.random.Generator) -> str:
    """The word by which a question asks for a relation."""
    return PARAPHRASES[relation] if paraphrase and rng.random() < paraphrase else relation


def _question(world: World, chain: tuple[Fact, ...], words: list[str], number: int) -> Question:
    entities = world.entities
    path = [entities[chain[0].subject]] + [entities[fact.object] for fact in chain]
    asked = " of ".join(f"the {word}" for word in reversed(words))
    metadata = {
        "hops": len(chain), "world": world.index, "split": world.split, "path": path,
        "queries": [query_text(fact.relation, subject) for fact, subject in zip(chain, path, strict=False)],
    }
    return Question(f"{world.split}-{world.index}-{number}", f"What is {asked} of {path[0]}?",
                    _answers(world, path[-1]), metadata)


def _answers(world: World, name: str) -> tuple[str, ...]:
    """The full name and, where no other entity of the world has it, the last word alone."""
    last = name.split()[1]
    unambiguous = sum(entity.split()[1] == last for entity in world.entities) == 1
    return (name, last) if unambiguous else (name,)


def make_worlds(split: str, count: int, *, seed: int = 0, **options) -> list[World]:
    """`count` worlds that share no entity; options as for `make_world`."""
    worlds, taken = [], set()
    for index in range(count):
        worlds.append(make_world(1000 * seed + index, split, taken=taken, **options))
        taken.update(worlds[-1].entities)
    return worlds


def documents(worlds: Iterable[World]) -> list[Document]:
    """The corpus of some worlds."""
    return [document for world in worlds for document in world.documents]


def answer_of(document: Document) -> str:
    """The object of a document's fact: what answering from it, whatever was asked, would say."""
    return document.text.rpartition(" is ")[2].removesuffix(".")


def questions(worlds: Sequence[World]) -> list[Question]:
    """The questions of some worlds, world after world in turns: prefixes are balanced over hops."""
    longest = max(len(world.questions) for world in worlds)
    hops = max(question.metadata["hops"] for question in worlds[0].questions)
    return [question for i in range(0, longest, hops) for world in worlds for question in world.questions[i:i + hops]]


def worlds_of(name: str, *, train_worlds: int = 3, eval_worlds: int = 8, shuffle_documents: bool = False,
              **options) -> list[World]:
    """The worlds behind "tiny_world:train" or "tiny_world:eval". Options: `config.world`. Raises ValueError.

    shuffle_documents: the documents of a world stand in a seeded random order. BM25 orders documents of equal score by
    row. In the order in which they are made, an entity's asked facts come before its near-duplicates, so a query that
    names the entity alone finds what questions ask. Shuffled, it finds any of them.
    """
    prefix, _, split = name.partition(":")
    if prefix != "tiny_world" or split not in ("train", "eval"):
        raise InputError(f"{name!r} must be 'tiny_world:train' or 'tiny_world:eval'")
    worlds = make_worlds(split, train_worlds if split == "train" else eval_worlds, **options)
    return [_shuffled(world) for world in worlds] if shuffle_documents else worlds


def _shuffled(world: World) -> World:
    """The world with its facts in another order. The generator is of its own: names, facts and questions stay."""
    order = np.random.default_rng([int(world.split == "eval"), world.index, 1]).permutation(len(world.facts))
    return dataclasses.replace(world, facts=tuple(world.facts[i] for i in order))


def tokenizer_text(relations: Sequence[str] = RELATIONS) -> list[str]:
    """Texts in which every word of the world occurs as it does in use; each word becomes one token."""
    first, last = name_words()
    names = [f" {a} {b}" for a, b in zip(first, last, strict=True)]
    texts = [DOCUMENT_LINE.format(text=f"{r} of{n} is{n}.") for r in relations for n in names[:2]] + names
    question = POLICY_PROMPT.format(question=f"What is the spouse of the mother of{names[0]}?")
    documents = DOCUMENTS_OPEN + texts[0] * 2 + DOCUMENTS_CLOSE
    thought = f"<think> mother of{names[0]} is {UNKNOWN} </think>"
    texts += [
        question, f"{FIRST_THOUGHT}<search> the mother of{names[0]} </search>", documents,
        f"{thought}<search> mother of{names[0]} </search>", f"{thought}<answer>{names[0]} </answer>", HINT,
        *(SIMULATOR_PROMPT.format(mode=mode, question=question.strip(), answers=names[0], query=f" mother of{names[0]}")
          for mode in ("useful", "noisy")),
    ]
    return texts


def train_tokenizer(path: str | pathlib.Path, relations: Sequence[str] = RELATIONS) -> None:
    """Writes tokenizer.json and tokenizer_config.json: byte-level BPE over Qwen2's pattern, tags not special.

    relations: the words for relations that become tokens; `HARD_WORDS` for the hard world.
    """
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = tokenizers.normalizers.NFC()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([
        tokenizers.pre_tokenizers.Split(tokenizers.Regex(PRE_TOKENIZER), "isolated"),
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    # min_frequency 1 and no limit: merging goes on until every word of the text is one token.
    tokenizer.train_from_iterator(tokenizer_text(relations), tokenizers.trainers.BpeTrainer(
        vocab_size=10_000, min_frequency=1, special_tokens=[PAD_TOKEN, EOS_TOKEN], show_progress=False,
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())))
    path = pathlib.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS_TOKEN, "pad_token": PAD_TOKEN,
        "clean_up_tokenization_spaces": False, "model_max_length": 1024}, indent=2) + "\n")


if __name__ == "__main__":
    assets = pathlib.Path(__file__).parents[1] / "data" / "assets"
    train_tokenizer(assets / "tiny_world" / "tokenizer")
    train_tokenizer(assets / "hard_world" / "tokenizer", HARD_WORDS)
