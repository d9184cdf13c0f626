"""Gates of a simulator, before a policy learns from it: it helps right queries, misleads on command, and never cheats.

A simulator that shows the gold answer for any query teaches the policy that queries do not matter: one policy learned to
score 0.66 inside such a simulator and 0.02 outside. Each question is therefore searched for by its right query and by
several wrong ones, and the share of replies that hold a gold answer is compared with the real engine's.
"""

import collections
import dataclasses
from collections.abc import Callable, Sequence

import jax
import numpy as np

from zsjax.config.fields import GatesConfig
from zsjax.errors import InputError
from zsjax.sampling import ragged
from zsjax.search.engine import Document, SearchContext
from zsjax.tuning.dataset import holds_gold
from zsjax.types import Question

RIGHT = "right last query"
FIRST_HOP = "first hop"
OUTER = "outer relation of the subject"
WRONG_ENTITY = "right relation, wrong entity"
WRONG_RELATION = "wrong relation, right entity"
KINDS = (RIGHT, FIRST_HOP, OUTER, WRONG_ENTITY, WRONG_RELATION)
BATCH_ROWS = 128  # requests simulated at a time: one shape, one program


@dataclasses.dataclass(frozen=True)
class Probe:
    """A query for a question. kind: one of KINDS."""

    kind: str
    question: Question
    query: str


def make_probes(questions: Sequence[Question], *, limit: int, seed: int = 0) -> list[Probe]:
    """Right and wrong queries for questions that know their right ones.

    Args:
      questions: metadata has "hops", "world", "queries" (the right query of each hop, each ending in its entity's
        name) and "path" (the entities from the question's subject to the answer).
      limit: questions of each number of hops that are probed, the first ones.
      seed: of the wrong entities and relations, which come from the same world's questions.

    Raises:
      ValueError: a question lacks that metadata.
    """
    rng = np.random.default_rng(seed)
    entities, requests = collections.defaultdict(dict), {}
    for question in questions:
        m = question.metadata
        if not all(m.get(name) not in (None, []) for name in ("hops", "world", "queries", "path")):
            raise InputError(f"question {question.id!r} does not know its right queries: gates need metadata "
                             "hops, world, queries, path")
        entities[m["world"]].update(dict.fromkeys(m["path"]))
        requests.update(dict.fromkeys(_request(question, hop) for hop in range(len(m["queries"]))))
    probes, probed = [], collections.Counter()
    for question in questions:
        m = question.metadata
        probed[m["hops"]] += 1
        if probed[m["hops"]] > limit:
            continue
        last, subject = _request(question, -1), m["path"][-2]
        probes.append(Probe(RIGHT, question, m["queries"][-1]))
        if m["hops"] > 1:
            probes.append(Probe(FIRST_HOP, question, m["queries"][0]))
            probes.append(Probe(OUTER, question, last + m["path"][0]))
        others = [entity for entity in entities[m["world"]] if entity not in m["path"]]
        probes.append(Probe(WRONG_ENTITY, question, last + others[rng.integers(len(others))]))
        wrong = [request for request in requests if request != last]
        probes.append(Probe(WRONG_RELATION, question, wrong[rng.integers(len(wrong))] + subject))
    return probes


def _request(question: Question, hop: int) -> str:
    """A hop's query without the entity at its end: "spouse of "."""
    query, path = question.metadata["queries"][hop], question.metadata["path"]
    return query.removesuffix(path[:-1][hop])


def search_probes(engine, probes: Sequence[Probe], *, k: int, noisy: bool = False, key=None,
         progress: Callable = iter) -> list[list[Document]]:
    """The documents of each probe, from an engine or a simulator; requests go in batches of one shape."""
    found = []
    for first in progress(range(0, len(probes), BATCH_ROWS)):
        batch = probes[first:first + BATCH_ROWS]
        filled = ragged.fill(batch, BATCH_ROWS)
        contexts = [SearchContext(probe.question, noisy=noisy, key=key) for probe in filled]
        found += engine.search([probe.query for probe in filled], contexts, k=k)[:len(batch)]
    return found


def any_holds_gold(documents: Sequence[Document], question: Question) -> bool:
    """Whether one of the documents holds a gold answer, see `dataset.holds_gold`."""
    return any(holds_gold(document, question.golden_answers) for document in documents)


def gold_shares(simulator, engine, questions: Sequence[Question], *, k: int, limit: int, seed: int = 0,
            progress: Callable = iter) -> list[dict]:
    """Shares of replies that hold a gold answer.

    Args:
      simulator: the simulated engine, at its own temperature.
      engine: the real one.
      questions: as `make_probes`; the simulator must know about them.
      k: documents a reply.
      limit: questions of each number of hops.
      seed: of probes and draws.
      progress: wraps an iterable, for a progress bar.

    Returns:
      One dict per kind of query and number of hops: kind, hops, n, and the shares useful, noisy, engine. real_useful and
      real_noisy are the shares of simulated documents that the corpus has, by a search for their text: they show how much
      the simulator remembers, and no gate reads them.
    """
    probes = make_probes(questions, limit=limit, seed=seed)
    key = jax.random.key(seed)
    found = {"useful": search_probes(simulator, probes, k=k, key=key, progress=progress),
             "noisy": search_probes(simulator, probes, k=k, noisy=True, key=key, progress=progress),
             "engine": search_probes(engine, probes, k=k, progress=progress)}
    shares = {name: [any_holds_gold(documents, probe.question) for documents, probe in zip(replies, probes, strict=True)]
              for name, replies in found.items()}
    for name in ("useful", "noisy"):
        shares[f"real_{name}"] = _real(found[name], engine)
    cells = collections.defaultdict(list)
    for row, probe in enumerate(probes):
        cells[probe.kind, probe.question.metadata["hops"]].append(row)
    order = sorted(cells, key=lambda cell: (KINDS.index(cell[0]), cell[1]))
    return [{"kind": kind, "hops": hops, "n": len(cells[kind, hops]),
             **{name: float(np.mean([values[row] for row in cells[kind, hops]])) for name, values in shares.items()}}
            for kind, hops in order]


def _real(replies: Sequence[Sequence[Document]], engine) -> list[float]:
    """Share of each reply's documents whose text a document of the corpus ends in or is."""
    texts = sorted({document.text for documents in replies for document in documents if document.text.strip()})
    found = engine.search(texts, None, k=1) if texts else []
    real = {text for text, best in zip(texts, found, strict=True) if best and text.endswith(best[0].text)}
    return [float(np.mean([document.text in real for document in documents])) if documents else 0.0
            for documents in replies]


def failed_gates(rows: Sequence[dict], gates: GatesConfig) -> list[str]:
    """A readable line for each gate that fails. A gate that is None is not checked."""
    failed = []
    for row in rows:
        where = f"{row['kind']}, {row['hops']} hop{'s' if row['hops'] > 1 else ''}"
        if row["kind"] == RIGHT:
            failed += _failed_on_target(where, row, gates)
        else:
            failed += _failed_off_target(where, row["useful"], row["engine"], gates)
    return failed


def failed_on_held_out(row: dict, gates: GatesConfig) -> list[str]:
    """As `failed_gates`, for the shares of held-out searches that `tune.held_out_replies` gives.

    Their queries are the policy's own, so not all of them are right ones: gates.useful may ask for less than of probes.
    """
    failed = list(_failed_on_target("held-out searches", row, gates))
    if "off_useful" in row:
        failed += _failed_off_target("another question's query", row["off_useful"], row["off_engine"], gates)
    return failed


def _failed_on_target(where, row, gates):
    useful, noisy = row["useful"], row["noisy"]
    if gates.useful is not None and useful < gates.useful:
        yield f"{where}: gold in {useful:.2f} of the useful replies, at least {gates.useful} needed"
    if gates.noisy is not None and noisy > gates.noisy:
        yield f"{where}: gold in {noisy:.2f} of the noisy replies, at most {gates.noisy} allowed"


def _failed_off_target(where, useful, engine, gates):
    if gates.leak is not None and useful > engine + gates.leak:
        yield (f"{where}: gold in {useful:.2f} of the useful replies, at most {gates.leak} above the real engine's "
               f"{engine:.2f} allowed: the simulator shows the answer for any query")


def shares_table(rows: Sequence[dict]) -> str:
    """The measurement as aligned text: share of replies that hold a gold answer."""
    lines = [f"{'gold in the documents':<32}{'hops':>5}{'n':>6}{'useful':>8}{'noisy':>8}{'engine':>8}"]
    lines += [f"{row['kind']:<32}{row['hops']:>5}{row['n']:>6}{row['useful']:>8.2f}{row['noisy']:>8.2f}"
              f"{row['engine']:>8.2f}" for row in rows]
    return "\n".join(lines)
