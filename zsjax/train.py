"""The reinforcement learning loop, top to bottom.

    questions -> rollout (policy and search, on the device) -> rewards (text, host) -> old, reference and value scores
    -> advantages -> updates -> metrics, evaluation, alarms, checkpoint

Every draw is keyed by (seed, step, episode, position) and questions are a function of (seed, step), so a killed run
resumes exactly from its last checkpoint.

Between the passes over the device all arrays are numpy, whole, and the same on every host (`zsjax.rl.passes`), so metrics
and decisions agree.
"""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from zsjax.config.fields import Config
from zsjax.data import QuestionStream
from zsjax.errors import NonFiniteUpdate
from zsjax.models.layers import DecoderConfig
from zsjax.monitor.costs import Meter
from zsjax.monitor.episodes import episode_metrics, token_metrics
from zsjax.monitor.recorder import Recorder
from zsjax.monitor.usage import RolloutAccount
from zsjax.monitor.writer import Writer
from zsjax.parallel.mesh import device_count, make_mesh
from zsjax.rl.batch import token_batch
from zsjax.rl.learner import Learner
from zsjax.rl.selection import select
from zsjax.rl.steering import Steering
from zsjax.rollout import make_rollout
from zsjax.rollout.actor import Actor
from zsjax.rollout.reranking import Reranking

__all__ = ["NonFiniteUpdate", "Setup", "train"]


@dataclasses.dataclass
class Setup:
    """The objects of a training run.

    Attributes:
      config: train, rollout, search, reward, curriculum, algorithm, value, health, optimizer, mesh and policy.lora are
        read.
      policy_config, params: DecoderConfig and the starting parameters, which are also the reference. The parameters are
        donated, and the setup holds them no more: copy them if you need them afterwards.
      tokenizer: the policy's.
      engine: answers the searches: a `Simulator` or a host engine.
      stream: `QuestionStream`; `stream.batch(step, n)` gives the step's questions.
      loss, advantage: functions in place of `algorithm.loss` and `algorithm.advantage`, of the same contracts.
      scorers: name -> (batch: TokenBatch) -> float32[B, T] log-probs, put into `batch.extra[name]` for
        `algorithm.terms`; beside those of `algorithm.scorers`.
      mesh: None makes config.mesh's.
      make_rollout, make_reranking: `zsjax.rollout.make_rollout` and `Reranking`, or functions of the same contracts.
    """

    config: Config
    policy_config: DecoderConfig
    params: dict
    tokenizer: Any
    engine: Any
    stream: QuestionStream
    loss: Callable | None = None
    advantage: Callable | None = None
    scorers: dict[str, Callable] | None = None
    mesh: Any = None
    make_rollout: Callable = make_rollout
    make_reranking: Callable = Reranking

    def take_params(self) -> dict:
        """The parameters, which this object then holds no more."""
        params, self.params = self.params, None
        return params


def train(setup: Setup, workdir: pathlib.Path, writer: Writer, *, evaluate: Callable | None = None,
          save_best: Callable | None = None, config_json: str = "{}") -> dict:
    """Trains the policy; an interrupted run in `workdir` is resumed.

    Args:
      workdir: folder of checkpoints/train and trajectories/.
      writer: gets a line of metrics a step.
      evaluate: params -> dict of floats, called every `train.eval_every` steps and after the last.
      save_best: params -> None, called when `health.best_metric` of an evaluation is the best so far.
      config_json: kept with the checkpoints.

    Returns:
      The trained parameters; with `policy.lora` the adapters are merged into them.

    Raises (the message says which state is on disk):
      NonFiniteUpdate: the loss or its gradient is not finite.
      health.HealthAlarm: a metric stayed out of its bounds and config.health.stop is set.
      BudgetSpent: the budget of web search is spent.
    """
    config = setup.config
    mesh = make_mesh(config.mesh) if setup.mesh is None else setup.mesh
    learner = Learner(config, setup.policy_config, mesh, loss=setup.loss, advantage=setup.advantage,
                      scorers=setup.scorers)
    rollout = metered_rollout(setup, mesh)
    actor = Actor(config, rollout, setup.stream, setup.tokenizer)
    reranks = config.search.rerank.candidates > 0
    steering = Steering(config, mesh, engine=setup.engine,
                        reranking=setup.make_reranking(setup.policy_config, setup.tokenizer, config) if reranks else None)

    def evaluate_and_keep_best(state, metrics):
        """The state after an evaluation, whose scores join the metrics."""
        metrics |= recorder.timed_evaluation(evaluate, learner.policy(state))
        state, is_best = steering.note_best(state, metrics)
        if is_best and save_best and config.health.keep_best:
            save_best(learner.export(state))
        return state

    with Recorder(config, workdir, writer, setup.tokenizer, config_json=config_json) as recorder:
        state = recorder.restore(steering.start(learner.start(setup.take_params())))
        if evaluate and (metrics := recorder.owed_evaluation(int(state.step))) is not None:
            state = evaluate_and_keep_best(state, metrics)
            recorder.write_owed_evaluation(int(state.step), metrics)
        for step in range(int(state.step), config.train.steps):
            settings = steering.at(step, state)

            with recorder.time("rollout"), recorder.saving_if_stopped(step, state):
                policy = learner.policy(state)
                experience = actor.play(policy, settings)

            with recorder.time("score"):
                batch = token_batch(experience.episodes, experience.scores, row_valid=experience.row_valid)
                batch = learner.score(state, policy, batch)  # old, reference, value
                batch = learner.assign_credit(batch, settings.kl_coef)  # advantages, returns
                of_tokens = token_metrics(batch, experience, learner.scored(batch))

            with recorder.time("update"):
                state, info = learner.update(state, select(config.train, batch, experience), settings)
            recorder.trajectories(step, state, experience, info)  # an update that is not finite ends the run here

            metrics = (steering.metrics(settings) | episode_metrics(experience.as_played) | actor.metrics(experience)
                       | rollout.take() | of_tokens | info)
            state, reranker_metrics = steering.follow(state, settings, experience, metrics)
            metrics |= reranker_metrics
            if evaluate and ((step + 1) % config.train.eval_every == 0 or step + 1 == config.train.steps):
                state = evaluate_and_keep_best(state, metrics)
            recorder.step(step, state, experience, metrics)  # line, checkpoint; an alarm or a spent budget ends the run here

    return learner.export(state)


def metered_rollout(setup: Setup, mesh) -> Meter:
    """The run's rollout, which counts what it uses."""
    config = setup.config
    rollout = setup.make_rollout(setup.policy_config, setup.engine, setup.tokenizer, config, mesh,
                                 group_size=config.train.group_size)
    devices = device_count(mesh, config.mesh)
    return Meter(rollout, setup.engine, devices=devices, account=RolloutAccount(
        setup.policy_config, setup.engine, devices=devices, cache=config.policy.cache_dtype))
