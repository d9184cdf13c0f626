"""A step's experience: questions -> rollout -> outcomes -> rewards, with the groups that teach nothing replaced."""

import dataclasses

import jax
import numpy as np

from zsjax.rewards import terms as reward_terms
from zsjax.rl import selection
from zsjax.rollout.compiled import occupancy, requests_saved
from zsjax.types import Episodes


@dataclasses.dataclass
class Experience:
    """B finished episodes and what they earned, on the host.

    Attributes:
      episodes: numpy.
      questions, outcomes: object[B], `types.Question` and `reward_terms.Outcome` of each row.
      scores: float32[B] rewards.
      terms: {name: float64[B]} the terms they are made of, unweighted.
      row_valid: bool[B], False for rows that the loss leaves out.
      rounds: rollouts that were played to get them.
      occupancy: of the last of them, see `zsjax.rollout.compiled.occupancy`.
    """

    episodes: Episodes
    questions: np.ndarray
    outcomes: np.ndarray
    scores: np.ndarray
    terms: dict
    row_valid: np.ndarray
    rounds: int
    occupancy: dict
    requests_saved: float | None = None  # of the last of them, likewise


def make_player(config, rollout, stream, tokenizer):
    """A function that plays a step's questions.

    Args:
      config: the run's; train, algorithm and reward are read.
      rollout: of `make_rollout` with group_size config.train.group_size.
      stream: `QuestionStream`.
      tokenizer: the policy's.

    Returns:
      play(params, step, *, noise, key, **given) -> Experience of questions_per_step * group_size rows, a group's next to
      each other; further arguments are the rollout's. A function of its arguments: a resumed run plays the same.
    """
    algorithm, options, reward = config.algorithm, config.train, config.reward
    rounds = 1 + (algorithm.refill_rounds if algorithm.drop_equal_groups else 0)
    count = options.questions_per_step
    place = getattr(rollout, "place", lambda params: params)  # once a step, whatever the rounds

    def play_once(params, step, round, noise, key, given):
        asked = stream.batch(step * rounds + round, count)
        questions = [q for q in asked for _ in range(options.group_size)]
        # Ids go on from round to round, so that no two episodes of a step share their draws.
        ids = np.arange(count, dtype=np.int32) + round * count
        episodes, work = jax.device_get(rollout(params, asked, noise=noise, key=key, group_ids=ids, with_work=True,
                                                **given))
        outcomes = reward_terms.outcomes(episodes, questions, tokenizer,
                                         overlong=(reward.overlong_from, reward.overlong_to))
        scores, terms = reward_terms.score(outcomes, reward.terms)
        shares = occupancy(episodes, work), requests_saved(work)
        return (episodes, scores, terms, _objects(questions), _objects(outcomes)), shares

    def play(params, step, *, noise, key, **given):
        rows = played = busy = None
        params = place(params)
        for played in range(rounds):
            new, busy = play_once(params, step, played, noise, key, given)
            # selection.refill looks at the first two: episodes and scores.
            rows = new if rows is None else selection.refill(rows, new)
            signal = selection.groups_with_signal(rows[1], rows[0].group_id)
            if signal.all():
                break
        episodes, scores, terms, questions, outcomes = rows
        valid = ~reward_terms.masked_rows(outcomes, algorithm.mask)
        if algorithm.drop_equal_groups:
            valid &= signal
        return Experience(episodes, questions, outcomes, scores, terms, valid, played + 1, *busy)

    return play


def _objects(items):
    array = np.empty(len(items), object)
    array[:] = items
    return array
