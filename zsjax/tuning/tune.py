"""Tuning a simulator on collected searches: supervised, loss on the documents only."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence

import jax
import numpy as np

from zsjax import supervised
from zsjax.config.fields import Config, SupervisedConfig
from zsjax.errors import InputError
from zsjax.models.placement import for_decoding
from zsjax.parallel import hosts
from zsjax.rewards import answer_kind
from zsjax.search.engine import chance
from zsjax.search.simulator.simulator import Simulator
from zsjax.tuning.collect import OFF_TARGET, Search, read_searches, words_of
from zsjax.tuning.dataset import Emphasis, Encoder, Example, make_batches, make_examples
from zsjax.tuning.simulator_gates import Probe, any_holds_gold, search_probes


def tune(config: Config, simulator: Simulator, path: str | os.PathLike, *, writer, directory,
         config_json: str = "{}", report: Callable = lambda rows: None, mesh=None) -> Simulator:
    """Teaches a simulator to answer as the engine whose searches were collected.

    Args:
      config: the run's; tune_simulator, collect, search and seed are read.
      simulator: what to start from.
      path: what `collect.write_searches` wrote.
      writer: `zsjax.monitor.writer.Writer`; the stage is "tune_simulator".
      directory: of this stage's checkpoints; an interrupted run in it goes on.
      config_json: kept with the checkpoints.
      report: called with rows about held-out searches where config.collect.hold_out > 0: the shares before and after
        tuning, and ten replies each under their own "gate".
      mesh: see `supervised.fit`.

    Returns:
      The simulator with tuned parameters.

    Raises:
      InputError: the searches are too few or do not fit the config.
    """
    try:
        provenance, searches = read_searches(path)
        searches, held_out = split_by_question(searches, config.collect.hold_out, config.data.leave_out)
        collect = config.collect
        examples = make_examples(searches, simulator.num_documents, label=collect.label, balance=collect.balance,
                                 pairs=collect.pairs, off_target=collect.off_target, seed=config.seed)
    except InputError as error:
        raise InputError(f"tune_simulator: {error}") from error
    writer.note(f"tune_simulator: {len(examples)} examples of {len(searches)} searches "
                f"({provenance.get('engine', 'unknown engine')})")
    tuned = fit_simulator(config.tune_simulator, simulator, examples, document_format=config.search.document_format,
                  seed=config.seed, stage="tune_simulator", writer=writer, directory=directory, config_json=config_json,
                  lora=config.simulator.lora, mesh=mesh)
    if held_out:
        rows, shown = [], []
        for name, which in (("before tuning", simulator), ("after tuning", tuned)):
            plays = dataclasses.replace(which, params=for_decoding(which.params, which.config, mesh))
            shares, replies = hosts.from_lead(functools.partial(held_out_replies, plays, held_out, seed=config.seed))
            rows.append(row := {"simulator": name, **shares})
            shown += [{"gate": f"replies {name}", **reply} for reply in replies]
            writer.note(f"held-out searches, {row['simulator']}: gold in {row['useful']:.2f} of useful and "
                        f"{row['noisy']:.2f} of noisy replies (n={row['n']}; the engine itself {row['engine']:.2f})"
                        + (f"; to another question's query in {row['off_useful']:.2f} and {row['off_noisy']:.2f} "
                           f"({row['off_engine']:.2f})" if "off_useful" in row else ""))
        report(rows + shown)
    elif config.collect.hold_out:
        writer.note("held-out searches: none asks what tuning has not seen, so nothing is measured, and no gate is set; "
                    "collect more searches, or set collect.hold_out higher")
    return tuned


def split_by_question(searches: Sequence[Search], hold_out: float,
                      leave_out: Sequence[str] = ()) -> tuple[list[Search], list[Search]]:
    """(tuned on, held out): by question, and no query of a held-out search is tuned on.

    Searches beside the point are not held out: `held_out_replies` asks beside the point by itself. They are not tuned on
    either where a held-out search has their query, since their target is what the engine finds for it.

    Args:
      searches: as collected.
      hold_out: share of the questions that are held out, by a hash of their keys.
      leave_out: kinds of question (`rewards.answer_kind`) that are not held out, since no policy will ask them.
    """
    sides = ([], [])
    for search in searches:
        sides[chance("hold out", search.question.key) < hold_out].append(search)
    tuned, held_out = sides
    held_out = [search for search in held_out if search.source != OFF_TARGET
                and answer_kind(search.question.question, search.question.golden_answers) not in leave_out]
    asked = {words_of(search.query) for search in held_out}
    tuned = [search for search in tuned if search.source != OFF_TARGET or words_of(search.query) not in asked]
    seen = {words_of(search.query) for search in tuned}
    return tuned, [search for search in held_out if words_of(search.query) not in seen]


def held_out_replies(simulator: Simulator, searches: Sequence[Search], *, limit: int = 256, examples: int = 10,
                     seed: int = 0) -> tuple[dict, list[dict]]:
    """({n, useful, noisy, engine, off_useful, off_noisy, off_engine}, the first replies of each kind).

    The numbers are shares of searches whose reply holds a gold answer. Those with "off_" are of replies to the query of the
    next search that is another question's; they are left out where there is only one question. A reply has question,
    answers, query, and the documents of useful, noisy and engine, a line each.
    """
    searches = searches[:limit]
    found = _replies(simulator, searches, searches, seed)
    replies = [{"question": search.question.question, "answers": "; ".join(search.question.golden_answers),
                "query": search.query, **{name: _lines(documents[row]) for name, documents in found.items()}}
               for row, search in enumerate(searches[:examples])]
    if all(others := [_next_of_another(searches, row) for row in range(len(searches))]):
        found |= {f"off_{name}": documents for name, documents in _replies(simulator, searches, others, seed).items()}
    shares = {name: float(np.mean([any_holds_gold(documents, search.question)
                                   for documents, search in zip(replied, searches, strict=True)]))
              for name, replied in found.items()}
    return {"n": len(searches), **shares}, replies


def _replies(simulator, searches, asked, seed):
    """{"useful", "noisy", "engine": the documents for each search's question and the query of the one that is asked}."""
    k = simulator.num_documents
    probes = [Probe(search.source, search.question, other.query) for search, other in zip(searches, asked, strict=True)]
    return {name: search_probes(simulator, probes, k=k, noisy=name == "noisy", key=jax.random.key(seed))
            for name in ("useful", "noisy")} | {"engine": [list(search.documents[:k]) for search in asked]}


def _next_of_another(searches, row):
    """The next search of another question, around the end; None without one."""
    own = searches[row].question.key
    return next((search for search in (*searches[row + 1:], *searches[:row]) if search.question.key != own), None)


def _lines(documents):
    return "\n".join(f"{document.title} {document.text}".strip() for document in documents)


def fit_simulator(options: SupervisedConfig, simulator: Simulator, examples: list[Example], *, document_format: str,
                  seed: int, stage: str, writer, directory, config_json: str = "{}", lora=None, mesh=None) -> Simulator:
    """Supervised training of a simulator on examples; used for tuning and for the tiny world's pretraining.

    options.options may have "emphasis": True, or a dict of `Emphasis`'s fields; without it every document token weighs
    the same. lora, mesh: see `supervised.fit`.
    """
    try:
        tokens, weights = Encoder(simulator, document_format, emphasis(options)).rows(examples, options.max_tokens)
    except InputError as error:
        raise InputError(f"{stage}: {error}") from error
    batches = make_batches(tokens, weights, batch_rows=options.batch_rows, seed=seed)
    params = supervised.fit(options, simulator.config, simulator.params, batches, writer=writer, stage=stage,
                              directory=directory, config_json=config_json, lora=lora, seed=seed, mesh=mesh)
    return dataclasses.replace(simulator, params=params)


def emphasis(options: SupervisedConfig) -> Emphasis | None:
    """The `Emphasis` that options.options asks for. Raises ValueError for unknown fields."""
    wanted = options.options.get("emphasis", False)
    if not wanted:
        return None
    fields = {} if wanted is True else dict(wanted)
    known = {field.name for field in dataclasses.fields(Emphasis)}
    if unknown := sorted(set(fields) - known):
        raise InputError(f"options.emphasis: unknown {', '.join(unknown)}; known are {', '.join(sorted(known))}")
    return Emphasis(**fields)
