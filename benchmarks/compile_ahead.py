r"""Compiles the programs of experiments/gemma_search.py into JAX's compilation cache before its weights are there.

    python benchmarks/compile_ahead.py blank MODEL OUT --config F.py:arg --workdir DIR    a model folder of random weights
    python benchmarks/compile_ahead.py KIND --config F.py:model=OUT,... --workdir DIR [--config.field=value ...]

MODEL has config.json and the tokenizer. KINDs: warm_start, score, update, rollout (with config.search.engine), evaluation and
collect. Start one process for each, side by side. A run with the same config, flags and cache then compiles hardly anything.
"""

import json
import pathlib
import sys
import time
import types

import jax
import numpy as np

from zsjax import launch, supervised
from zsjax import config as configuration
from zsjax.data import load_tokenizer
from zsjax.monitor.writer import Writer
from zsjax.parallel.mesh import TRAIN_RULES
from zsjax.rl.learner import Learner
from zsjax.rollout import make_rollout
from zsjax.run.stages.policy import real_evaluation
from zsjax.run.stages.run import Run
from zsjax.train import Setup, metered_rollout
from zsjax.types import POLICY, TokenBatch


def blank(model, out, run):
    """A folder of random weights in the shape of MODEL's config.json, and the index of the run's corpus."""
    from zsjax.models.checkpoints.hf import read_config, save_hf
    from zsjax.models.decoder import init_params

    shape, tokenizer = read_config(model), load_tokenizer(model)
    save_hf(pathlib.Path(out), shape, init_params(shape, jax.random.key(0)), tokenizer=tokenizer)
    run.engine("bm25", run.config.data.corpus)


class _Enough(Exception):
    """The program has been compiled and run once."""


def warm_start(run):
    options = run.config.warm_start

    def batches(step):
        if step:
            raise _Enough
        shape = options.batch_rows, options.max_tokens
        return np.ones(shape, np.int32), np.ones(shape, np.float32)

    model, params = run.policy("base", rules=TRAIN_RULES)
    try:
        supervised.train(options, model, params, batches, writer=Writer(None, quiet=True), stage="warm_start",
                         directory=run.path("checkpoints"), lora=run.config.policy.lora, mesh=run.mesh)
    except _Enough:
        pass


def _learning(run):
    """(learner, its state, a batch of the run's shape whose rows have eight tokens)."""
    config = run.config
    model, params = run.start_policy(TRAIN_RULES)
    learner = Learner(config, model, run.mesh)
    B, T = config.train.questions_per_step * config.train.group_size, config.rollout.max_tokens
    zeros = np.zeros((B, T), np.float32)
    roles = np.where(np.arange(T) < 8, POLICY, 0).astype(np.int8) * np.ones((B, 1), np.int8)
    groups = np.repeat(np.arange(config.train.questions_per_step, dtype=np.int32), config.train.group_size)
    batch = TokenBatch(tokens=np.ones((B, T), np.int32), roles=roles, behavior_logprobs=zeros, old_logprobs=None,
                       ref_logprobs=None, advantages=None, returns=None, values=None, rewards=zeros, group_id=groups,
                       row_valid=np.ones(B, bool))
    return learner, learner.start(params), batch


def score(run):
    learner, state, batch = _learning(run)
    learner.score(state, learner.policy(state), batch)


def update(run):
    learner, state, batch = _learning(run)
    reference = None if learner.reference is None else batch.rewards
    batch = learner.assign_credit(batch.replace(old_logprobs=batch.rewards, ref_logprobs=reference), np.float32(0))
    learner.update(state, batch, types.SimpleNamespace(key=jax.random.key(0), step=0, kl_coef=np.float32(0)))


def rollout(run):
    """Training's rollout; where the simulator answers, also its replies to the held-out searches after tuning."""
    from zsjax.tuning.gates import BATCH_ROWS, Probe, find

    config = run.config
    learner, state, _ = _learning(run)
    engine = run.engine(config.search.engine, config.data.corpus, spread=True)
    setup = Setup(config, learner.policy_config, state.params, run.tokenizer, engine, None, mesh=run.mesh)
    count = config.train.questions_per_step
    metered_rollout(setup, run.mesh)(
        learner.policy(state), run.train_questions[:count], noise=0.0, key=jax.random.key(0),
        group_ids=np.arange(count, dtype=np.int32), with_work=True)
    if config.search.engine == "simulator":
        probes = [Probe("", question, question.question) for question in run.train_questions[:BATCH_ROWS]]
        find(run.simulator("simulator_base", rules=TRAIN_RULES), probes, k=config.search.num_documents, key=jax.random.key(0))


def evaluation(run):
    learner, state, _ = _learning(run)
    real_evaluation(run, learner.policy_config)(learner.policy(state))


def collect(run):
    config = run.config
    model, params = run.start_policy()
    count = min(config.evaluate.batch_rows, config.collect.episodes)
    engine, questions = run.engine("bm25", config.data.corpus), run.train_questions
    make_rollout(model, engine, run.tokenizer, config)(
        params, [questions[i % len(questions)] for i in range(count)], key=jax.random.key(0), group_ids=np.arange(count))


KINDS = {function.__name__: function for function in (warm_start, score, update, rollout, evaluation, collect)}


def main(arguments):
    first = next(i for i, argument in enumerate(arguments) if argument.startswith("--"))
    (kind, *given), flags = arguments[:first], arguments[first:]
    began = time.perf_counter()
    options, overrides = launch.parse_flags(flags)
    config = launch._find_config(options, overrides, None)
    run = Run(config, options.workdir, Writer(None, quiet=True), configuration.to_json(config))
    if kind == "blank":
        blank(*given, run)
    else:
        KINDS[kind](run)
    jax.effects_barrier()
    print(json.dumps({"compiled": kind, "seconds": round(time.perf_counter() - began, 1)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
