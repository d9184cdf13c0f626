"""One question to a run's policy."""

import dataclasses
import logging
import pathlib

import jax

from zsjax.config import Config
from zsjax.errors import UserError
from zsjax.evaluate import play
from zsjax.monitor.writer import Writer
from zsjax.rollout import make_rollout, transcript
from zsjax.run import build
from zsjax.run.stages.run import Run
from zsjax.types import Question


def ask(question: str, config: Config, workdir=None, *, show=None) -> dict:
    """One question through the policy and the evaluation engine; greedy.

    Args:
      question: the question.
      config: names policy, tokenizer and engine.
      workdir: a run whose trained policy answers; without one, or where it has none, the carried policy of the tiny
        world if the config is the tiny world's, else config.policy.init.
      show: called with (role, text) of each piece of the episode as soon as it is there, what the policy writes token by
        token.

    Returns:
      A record as `transcript.records` gives.

    Raises:
      UserError: the question is empty, or there is no such workdir.
    """
    if not question.strip():
        raise UserError('the question is empty; ask one, such as "Who wrote Emma?"')
    if workdir is not None and not pathlib.Path(workdir).is_dir():
        raise UserError(f"there is no run in {workdir}: no such folder; leave --workdir out to ask the carried policy")
    if workdir is None:  # nowhere to keep an index
        config = dataclasses.replace(config, search=dataclasses.replace(config.search, index_dir=""))
    with Writer(None) as writer:
        context = Run(config, pathlib.Path(workdir or "."), writer, "")
        model, params = _answering_policy(context, workdir)
        engine = context.engine(config.search.eval_engine, config.data.eval_corpus)
        stream = transcript.Stream(context.tokenizer, show) if show else None
        # After each token there is a look at what is new.
        config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, visit_every=1))
        rollout = make_rollout(model, engine, context.tokenizer, config, watch=stream)
        records, _ = play(rollout, params, [Question("asked", question, ())], key=jax.random.key(config.seed), batch_rows=1)
    return records[0]


def _answering_policy(run: Run, workdir):
    if workdir is not None and build.checkpoint_exists(run.path("models/policy")):
        return run.policy("policy")
    if run.config.tokenizer == "asset:tiny_world/tokenizer":
        from zsjax.data.assets import asset_path

        if workdir is not None:
            logging.warning("no trained policy in %s: the carried one of the tiny world answers", workdir)
        return build.model(run.config.policy, run.tokenizer, seed=0, path=asset_path("asset:tiny_world/policy"))
    logging.warning("no trained policy in %s: %s answers", workdir, run.config.policy.init)
    return run.start_policy()
