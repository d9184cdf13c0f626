"""The actor: from a step's questions to finished episodes with their rewards."""

import jax
import numpy as np

from zsjax import types
from zsjax.config.fields import Config
from zsjax.rewards import terms
from zsjax.rl.selection import groups_with_signal
from zsjax.rollout.actions import load_actions
from zsjax.rollout.experience import Experience, replace_groups
from zsjax.rollout.outcomes import outcomes as outcomes_of
from zsjax.rollout.played import occupancy, requests_saved

METRICS = (types.Metric("groups_after_refill", "groups whose rewards differ, after others took the place of those without; "
                        "logged where algorithm.refill_rounds is set", "share of groups", 0.0, 1.0, "near 1"),)


class Actor:
    """Plays a step's questions and scores the episodes. The result depends on step and settings alone, also after a resume.

    Where the algorithm drops groups of equal reward, up to `algorithm.refill_rounds` further rollouts on fresh questions
    replace them (DAPO, arXiv 2503.14476, section 3.2).
    """

    def __init__(self, config: Config, rollout, stream, tokenizer):
        """config: algorithm, train, reward and rollout.actions are read. stream: `QuestionStream`. tokenizer: the policy's.
        rollout: a `Rollout` with group_size config.train.group_size, or a `Meter` around it."""
        self.config, self.rollout, self.stream, self.tokenizer = config, rollout, stream, tokenizer
        self.actions = load_actions(config.rollout.actions)
        self.rounds = 1 + (config.algorithm.refill_rounds if config.algorithm.drop_equal_groups else 0)

    def play(self, policy, settings) -> Experience:
        """Experience of questions_per_step * group_size rows. The rows of a group are neighbours.

        policy: the decoder's parameters. settings: `zsjax.rl.steering.Settings` of the step.
        """
        policy = self.rollout.place(policy)  # once for all rounds
        experience = self._play_round(policy, settings, 0)
        signal = groups_with_signal(experience.scores, experience.episodes.group_id)
        for round in range(1, self.rounds):
            if signal.all():
                break
            experience = replace_groups(experience, self._play_round(policy, settings, round))
            signal = groups_with_signal(experience.scores, experience.episodes.group_id)
        if self.config.algorithm.drop_equal_groups:
            experience.row_valid &= signal
        return experience

    def metrics(self, experience: Experience) -> dict[str, float]:
        """What the replacement of groups came to; {} without it. The other metrics are of `Experience.as_played`."""
        if self.rounds == 1:
            return {}
        return {"groups_after_refill": float(groups_with_signal(experience.scores, experience.episodes.group_id).mean())}

    def _play_round(self, policy, settings, round: int) -> Experience:
        count, size, reward = self.config.train.questions_per_step, self.config.train.group_size, self.config.reward
        batch = self.stream.batch(settings.step * self.rounds + round, count)
        questions = [question for question in batch for _ in range(size)]
        # Ids continue from round to round: no two episodes of a step share their draws.
        ids = np.arange(count, dtype=np.int32) + round * count
        weights = None if settings.reranker is None else settings.reranker.weights
        played = jax.device_get(self.rollout.play(policy, batch, noise=settings.noise, key=settings.key, group_ids=ids,
                                                  reranker=weights))
        episodes = played.episodes
        outcomes = outcomes_of(episodes, questions, self.tokenizer, overlong=(reward.overlong_from, reward.overlong_to),
                               actions=self.actions)
        scores, by_term = terms.score(outcomes, reward.terms)
        return Experience(
            episodes=episodes, questions=_objects(questions), outcomes=_objects(outcomes), scores=scores, terms=by_term,
            row_valid=~terms.masked_rows(outcomes, self.config.algorithm.mask), rounds=round + 1,
            occupancy=occupancy(played), requests_saved=requests_saved(played.work))


def _objects(items):
    array = np.empty(len(items), object)
    array[:] = items
    return array
