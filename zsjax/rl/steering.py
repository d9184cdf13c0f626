"""Settings that change from step to step: noise, share of the real engine, KL coefficient, reranker, best score."""

import dataclasses
from typing import Any

import jax
import numpy as np

from zsjax import schedules
from zsjax.config.fields import Config, CurriculumConfig, MixConfig
from zsjax.parallel import hosts
from zsjax.parallel.mesh import replicated, reshard
from zsjax.rl.curricula import CURRICULA
from zsjax.types import Metric, TrainState

METRICS = (
    Metric("noise", "P(noisy) that the curriculum asks for", "share of searches", 0.0, 1.0, healthy="follows the schedule",
           chart="Noise", curve="curriculum"),
    Metric("real_searches", "P(the real engine answers) of a mixed engine", "share of searches", 0.0, 1.0),
    Metric("kl_coef", "adaptive coefficient of the KL", low=0.0, chart="KL coefficient", curve="adaptive"),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """One step's settings, on the host.

    Attributes:
      step: steps done before this one.
      key: a jax key, of this step alone.
      noise: P(a search asks for noisy documents).
      real_share: P(the real engine answers a search) of a mixed engine, else None.
      kl_coef: float32, the KL's coefficient.
      reranker: `zsjax.search.rerank.RerankerState` where search.rerank is on, else None.
    """

    step: int
    key: Any
    noise: float
    real_share: float | None
    kl_coef: np.float32
    reranker: Any


class Steering:
    """Schedules of the step counter, and settings that follow the metrics, which `TrainState.control` keeps."""

    def __init__(self, config: Config, mesh, *, engine=None, reranking=None):
        """config: curriculum, search.mix, algorithm, health and train are read. engine: of training; a mixed engine's
        `share` is set. reranking: `zsjax.rollout.reranking.Reranking`, None where search.rerank is off."""
        self.config, self._place, self._reranking = config, replicated(mesh), reranking
        steps = config.train.steps
        self._noise, self._share = curriculum(config.curriculum, steps), real_share(config.search.mix, steps)
        self._mixed = engine if getattr(engine, "share", None) is not None else None

    def start(self, state: TrainState) -> TrainState:
        """The state with the control and the reranker of a run's first step."""
        reranker = None if self._reranking is None else self._reranking.start()
        control, reranker = reshard((start_control(self.config), reranker), self._place)
        return state.replace(control=control, reranker=reranker)

    def at(self, step: int, state: TrainState) -> Settings:
        """The settings of a step. A mixed engine is given its share."""
        control = hosts.fetch(state.control)
        share = None
        if self._mixed is not None:
            share = self._mixed.share = float(self._share(step))
        return Settings(
            step=step, key=jax.random.fold_in(jax.random.wrap_key_data(np.asarray(state.key)), step),
            noise=float(control["noise"] if self._noise is None else self._noise(step)), real_share=share,
            kl_coef=control["kl_coef"], reranker=hosts.fetch(state.reranker))

    def metrics(self, settings: Settings) -> dict[str, float]:
        """The settings that a step's line shows."""
        return {"noise": settings.noise,
                **({} if settings.real_share is None else {"real_searches": settings.real_share}),
                **({"kl_coef": float(settings.kl_coef)} if self.config.algorithm.kl_target else {})}

    def follow(self, state: TrainState, settings: Settings, experience,
               metrics: dict) -> tuple[TrainState, dict[str, float]]:
        """The state after a step: its counter, and reranker and control updated by the step's episodes and metrics.

        Returns:
          (state, metrics of the reranker).
        """
        reranker, info = settings.reranker, {}
        if self._reranking is not None:
            reranker, info = self._reranking.learn(reranker, experience)
        control = next_control(self.config, hosts.fetch(state.control), metrics)
        step, reranker, control = reshard((np.int32(settings.step + 1), reranker, control), self._place)
        return state.replace(step=step, reranker=reranker, control=control), info

    def note_best(self, state: TrainState, metrics: dict) -> tuple[TrainState, bool]:
        """(state, whether `health.best_metric` of an evaluation is the best so far)."""
        score = np.float32(metrics.get(self.config.health.best_metric, -np.inf))
        if not score > hosts.fetch(state.control["best"]):
            return state, False
        return state.replace(control=state.control | reshard({"best": score}, self._place)), True


def curriculum(config: CurriculumConfig, steps: int):
    """The schedule count -> P(noisy) over the `steps` steps that really run; None for the adaptive one."""
    if config.schedule == "adaptive":
        return None
    schedule = CURRICULA.load(config.schedule)(config, steps)
    return schedules.reverse(schedule, steps) if config.reverse else schedule


def real_share(mix: MixConfig, steps: int):
    """The schedule count -> P(the real engine answers a search) of a mixed engine."""
    return curriculum(CurriculumConfig(schedule=mix.schedule, start=mix.start, end=mix.end, base=mix.base), steps)


def start_control(config: Config) -> dict:
    """The control before the first step, float32[] each: the adaptive curriculum's noise and average reward, the
    adaptive KL coefficient, the best evaluation so far."""
    start = dict(noise=config.curriculum.start, reward_average=np.nan, kl_coef=config.algorithm.kl_coef, best=-np.inf)
    return {name: np.float32(value) for name, value in start.items()}


def next_control(config: Config, control: dict, metrics: dict) -> dict:
    """The control of the next step, after this step's metrics."""
    control, rule, algorithm = dict(control), config.curriculum, config.algorithm
    control["noise"], control["reward_average"] = schedules.follow_reward(
        control["noise"], control["reward_average"], metrics["reward"], target=rule.target, rate=rule.rate,
        decay=rule.decay, low=min(rule.start, rule.end), high=max(rule.start, rule.end))
    if algorithm.kl_target and "kl" in metrics:
        episodes = config.train.questions_per_step * config.train.group_size
        control["kl_coef"] = schedules.follow_kl(control["kl_coef"], metrics["kl"], target=algorithm.kl_target,
                                                 horizon=algorithm.kl_horizon, episodes=episodes)
    return jax.tree.map(np.float32, control)
