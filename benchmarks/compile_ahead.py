r"""Compiles the programs of experiments/gemma_search.py into JAX's compilation cache before its weights are there.

    python benchmarks/compile_ahead.py blank MODEL OUT --config F.py:arg --workdir DIR    a model folder of random weights
    python benchmarks/compile_ahead.py KIND --config F.py:model=OUT,... --workdir DIR [--config.field=value ...]

MODEL has config.json and the tokenizer. KINDs: warm_start, score N, update N, rollout (with config.search.engine),
evaluation and collect; N is 0 to 2, the width of a batch. Start one process for each, side by side. A run with the same
config, flags and cache then compiles hardly anything.
"""

import json
import pathlib
import sys
import time

import jax
import numpy as np

from zsjax import config as configuration
from zsjax import launch, supervised
from zsjax.data import load_tokenizer
from zsjax.models.lora import assembler
from zsjax.models.placement import param_shardings
from zsjax.monitor.writer import Writer
from zsjax.parallel.mesh import TRAIN_RULES, reshard, row_sharding
from zsjax.rl import packing, roles
from zsjax.rl.learner import Learner
from zsjax.rl.objective import load_loss
from zsjax.rl.optimizer import make_optimizers
from zsjax.rl.passes import make_programs
from zsjax.rollout import make_rollout
from zsjax.run.commanded import find_config
from zsjax.run.stages.context import Run
from zsjax.run.stages.policy import real_evaluation
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
        supervised.fit(options, model, params, batches, writer=Writer(None, quiet=True), stage="warm_start",
                         directory=run.path("checkpoints"), lora=run.config.policy.lora, mesh=run.mesh)
    except _Enough:
        pass


def _policy(run):
    """(DecoderConfig, params) where the learner's state has them."""
    model, params = run.start_policy(TRAIN_RULES)
    return model, reshard(params, param_shardings(model, run.mesh, TRAIN_RULES))


def _batch(run):
    """A batch of the run's shape whose rows have eight tokens."""
    config = run.config
    B, T = config.train.questions_per_step * config.train.group_size, config.rollout.max_tokens
    zeros = np.zeros((B, T), np.float32)
    said = np.where(np.arange(T) < 8, POLICY, 0).astype(np.int8) * np.ones((B, 1), np.int8)
    groups = np.repeat(np.arange(config.train.questions_per_step, dtype=np.int32), config.train.group_size)
    return TokenBatch(tokens=np.ones((B, T), np.int32), roles=said, behavior_logprobs=zeros, old_logprobs=None,
                      ref_logprobs=None, advantages=None, returns=None, values=None, rewards=zeros, group_id=groups,
                      row_valid=np.ones(B, bool))


def _programs(run, model):
    """The functions of a step as a learner makes them."""
    config = run.config
    return make_programs(config, model, loss=load_loss(config.algorithm.loss), optimizer=make_optimizers(config)[0],
                         assemble=assembler(config.policy.lora))


def _cut(run, batch, width):
    """The batch without its rows in the width-th of the shapes that it may have."""
    part = packing.Part(np.arange(0), len(batch.roles), packing.widths(run.config.rollout.max_tokens)[int(width)])
    return packing.take(batch, part)


def score(run, width):
    model, params = _policy(run)
    cut = _cut(run, _batch(run), width)
    programs = _programs(run, model)
    masks = roles.attention_mask(cut.roles), programs.scored(cut.roles)
    programs.score.lower(params, *reshard((cut.tokens, *masks), row_sharding(run.mesh))).compile()


def update(run, width):
    model, params = run.start_policy(TRAIN_RULES)
    learner, batch = Learner(run.config, model, run.mesh), _batch(run)
    state = learner.start(params)
    reference = None if learner.reference is None else batch.rewards
    batch = learner.assign_credit(batch.replace(old_logprobs=batch.rewards, ref_logprobs=reference), np.float32(0))
    given = reshard(_cut(run, batch, width), row_sharding(run.mesh))
    _programs(run, learner.policy_config).update.lower(state.params, state.opt_state, given, None, learner.frozen).compile()


def rollout(run):
    """Training's rollout; where the simulator answers, also its replies to the held-out searches after tuning."""
    from zsjax.tuning.simulator_gates import BATCH_ROWS, Probe, search_probes

    config = run.config
    model, params = _policy(run)
    engine = run.engine(config.search.engine, config.data.corpus, spread=True)
    setup = Setup(config, model, params, run.tokenizer, engine, None, mesh=run.mesh)
    count = config.train.questions_per_step
    metered_rollout(setup, run.mesh).play(params, run.train_questions[:count], noise=0.0, key=jax.random.key(0),
                                          group_ids=np.arange(count, dtype=np.int32))
    if config.search.engine == "simulator":
        probes = [Probe("", question, question.question) for question in run.train_questions[:BATCH_ROWS]]
        search_probes(run.simulator("simulator_base", rules=TRAIN_RULES), probes, k=config.search.num_documents,
             key=jax.random.key(0))


def evaluation(run):
    model, params = _policy(run)
    real_evaluation(run, model)(params)


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
    config = find_config(options, overrides, None)
    run = Run(config, options.workdir, Writer(None, quiet=True), configuration.to_json(config))
    if kind == "blank":
        blank(*given, run)
    else:
        KINDS[kind](run, *given)
    jax.effects_barrier()
    print(json.dumps({"compiled": kind, "seconds": round(time.perf_counter() - began, 1)}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
