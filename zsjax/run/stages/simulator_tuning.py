"""Collection of searches with the real engine, and tuning of the simulator on them."""

import collections
import dataclasses
import functools
import hashlib

import jax
import numpy as np

from zsjax.models.placement import for_decoding
from zsjax.monitor import costs
from zsjax.parallel import hosts, mesh
from zsjax.rollout import make_rollout
from zsjax.run import build
from zsjax.run.stages.context import Run
from zsjax.run.stages.gate_checks import check_held_out, check_reading, check_simulator
from zsjax.run.stages.warm_start import find_episodes
from zsjax.search import registry
from zsjax.tuning.demonstrations import Shown


def collect(run: Run):
    if run.done("collect", "searches.jsonl"):
        return
    config, questions = run.config, run.supervised_questions
    if config.collect.shuffle:
        questions = [questions[i] for i in np.random.default_rng(config.seed).permutation(len(questions))]
    name = registry.real_or(config.search.eval_engine, "bm25")
    engine = run.engine(name, config.data.corpus)
    searches = _played(run, questions, engine) if config.collect.episodes else []
    episodes = find_episodes(run, Shown(config, run.tokenizer)) if "episodes" in config.collect.queries else []
    hosts.from_lead(lambda: _write(run, searches + _asked(config, questions, episodes, engine), questions, engine, name))


def _played(run, questions, engine):
    """The searches of episodes that the starting policy plays."""
    from zsjax.tuning.collect import DEPTH_FACTOR, RecordingEngine, collect_searches

    config = run.config
    model, params = run.start_policy(mesh.DECODE_RULES)
    params = for_decoding(params, model, run.mesh)
    check_reading(run, model, params)
    batch = min(config.evaluate.batch_rows, config.collect.episodes)
    with run.writer.track("collect", config.collect.episodes) as advance:
        played = 0

        def progress(total):
            nonlocal played
            advance(total - played)
            played = total

        recorder = RecordingEngine(engine, DEPTH_FACTOR * config.search.num_candidates)
        meter = costs.Meter(make_rollout(model, recorder, run.tokenizer, config, run.mesh), engine,
                            devices=mesh.device_count(run.mesh, config.mesh))
        searches = collect_searches(
            meter, recorder, params, questions, run.tokenizer, episodes=config.collect.episodes, batch_questions=batch,
            key=jax.random.fold_in(jax.random.key(config.seed), 1), progress=progress)
    run.writer.truncate("collect", 0)
    run.writer.write(1, meter.take(), "collect", show=False)
    run.writer.note(f"collect: {len(searches)} different searches of {config.collect.episodes} episodes")
    return searches


def _asked(config, questions, episodes, engine):
    """The searches that config.collect.queries and .off_target add: those beside the point last."""
    from zsjax.tuning.collect import deduplicate, off_target_queries, search_for

    options, k = config.collect, config.search.num_candidates
    asked = [(question, question.question, "question") for question in questions if "question" in options.queries]
    added = search_for(asked, engine, num_documents=k) if asked else []
    queries = [(episode.question, turn.query, "episode") for episode in episodes for turn in episode.turns]
    if options.off_target:
        queries += off_target_queries(added, num_documents=k, seed=config.seed)
    return deduplicate(added + (search_for(queries, engine, num_documents=k) if queries else []))


def _write(run, searches, questions, engine, name):
    """Writes searches.jsonl: the policy's searches with the engine called `name`, and what the config adds to them."""
    from zsjax.tuning.collect import search_for, write_searches
    from zsjax.tuning.simulator_gates import make_probes

    config = run.config
    if config.collect.queries:
        counts = collections.Counter(search.source for search in searches)
        run.writer.note("collect: searches by source: " + ", ".join(f"{source} {n}" for source, n in sorted(counts.items())))
    if config.collect.probes:
        probes = make_probes(questions, limit=config.collect.probes, seed=config.seed + 1)
        queries = [(probe.question, probe.query, probe.kind) for probe in probes]
        searches = searches + search_for(queries, engine, num_documents=config.search.num_candidates)
        run.writer.note(f"collect: {len(searches)} with the probes")
    counted = {}
    if config.collect.label == "judge":
        from zsjax.tuning.judge import judge_searches

        judging = config.collect.judge
        searches, counts = judge_searches(searches, build.judge(config))
        counted = {"judge": {"model": judging.init or judging.model, "template": judging.template, **counts}}
        run.writer.note(f"collect: {counts['useful']} of {counts['judged']} documents help, says the judge; "
                        + ", ".join(f"{name} {count}" for name, count in counts.items() if name not in ("useful", "judged")))
    provenance = {"config_sha256": hashlib.sha256(run.config_json.encode()).hexdigest(), "seed": config.seed,
                  "engine": name, "corpus": config.data.corpus, "policy": config.policy.init,
                  "episodes": config.collect.episodes, "probes": config.collect.probes, **counted}
    write_searches(run.path("searches.jsonl"), searches, provenance=provenance)


def tune_simulator(run: Run):
    if run.done("tune_simulator", "models/simulator"):
        return
    from zsjax.tuning import tune

    simulator = tune.tune(run.config, run.simulator("simulator_base", rules=mesh.TRAIN_RULES),
                          run.path("searches.jsonl"), writer=run.writer, mesh=run.mesh,
                          directory=run.path("checkpoints") / "tune_simulator", config_json=run.config_json,
                          report=functools.partial(check_held_out, run))
    plays = build.frozen(run.config.simulator, simulator)
    check_simulator(run, dataclasses.replace(plays, params=for_decoding(plays.params, plays.config, run.mesh)))
    run.save_model("simulator", simulator.config, simulator.params)
