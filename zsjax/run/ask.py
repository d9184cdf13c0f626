"""Questions to a run's policy, one by one: models are loaded and compiled once."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable

import jax

from zsjax.config import Config
from zsjax.errors import UserError
from zsjax.evaluate import SCORES, play
from zsjax.monitor.writer import Writer
from zsjax.rollout import make_rollout, transcript
from zsjax.run import build
from zsjax.run.export import trained_policy
from zsjax.run.stages.context import Run
from zsjax.types import Question


class Asker:
    """A policy with the evaluation engine, which answers questions greedily."""

    def __init__(self, config: Config, workdir=None, *, show: Callable[[str, str], None] | None = None):
        """Loads the policy and the engine.

        Args:
          config: names policy, tokenizer and engine.
          workdir: a run whose policy answers: the trained one, else that of its newest checkpoint, else the one that
            training starts from. Without a run, the trained policy of the tiny world that the package carries answers if
            the config begins from the carried base, else config.policy.init. One line of the log says which.
          show: called with (role, text) of each new piece of an episode, the policy's text token by token.

        Raises:
          UserError: there is no such workdir.
        """
        self._run, self._show = run_of(config, workdir), show
        config = self._run.config
        model, self._params = _answering_policy(self._run, workdir)
        engine = self._run.engine(config.search.eval_engine, config.data.eval_corpus)
        # The host looks for new text after each token.
        config = dataclasses.replace(config, rollout=dataclasses.replace(config.rollout, visit_every=1))
        self._rollout = make_rollout(model, engine, self._run.tokenizer, config, watch=self._watch if show else None)

    def __call__(self, question: str) -> dict:
        """Plays the episode of a question.

        Returns:
          A record as `transcript.records` gives, without scores: the right answer is not known.

        Raises:
          UserError: the question is empty or too long.
        """
        check_question(question)
        self._stream = transcript.Stream(self._run.tokenizer, self._show)
        records, _ = play(self._rollout, self._params, [Question("asked", question, ())],
                          key=jax.random.key(self._run.config.seed), batch_rows=1)
        return {name: value for name, value in records[0].items() if name not in (*SCORES, "reach")}

    def _watch(self, state):
        self._stream(state)


def check_question(question: str):
    """Raises UserError for an empty question."""
    if not question.strip():
        raise UserError('the question is empty; ask one, such as "Who wrote Emma?"')


def run_of(config: Config, workdir=None) -> Run:
    """The run in a folder, to be read only; without a folder, a run that keeps nothing.

    Raises:
      UserError: there is no such folder.
    """
    if workdir is None:
        config = dataclasses.replace(config, search=dataclasses.replace(config.search, index_dir=""))
    elif not pathlib.Path(workdir).is_dir():
        raise UserError(f"there is no run in {workdir}: no such folder; leave --workdir out to use the carried models")
    return Run(config, pathlib.Path(workdir or "."), Writer(None, quiet=True), "")


def _answering_policy(run: Run, workdir):
    """(DecoderConfig, params) of the policy that answers. Logs which one it is."""
    carried = build.carried(run.config, "policy") if workdir is None else None
    found = None if workdir is None else trained_policy(run)
    if found is not None:
        model, params, source = found
    elif carried is not None:
        model, params = build.model(run.config.policy, run.tokenizer, seed=0, path=carried)
        source = "the trained policy of the tiny world, which the package carries"
    else:
        model, params = run.start_policy()
        source = f"policy.init = {run.config.policy.init!r}" if workdir is None else (
            f"the one that training starts from; {workdir} has neither models/policy nor a checkpoint of training")
    logging.info("the policy that answers: %s", source)
    return model, params
