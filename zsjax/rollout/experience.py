"""A step's experience: finished episodes with their questions, outcomes and rewards, on the host."""

import dataclasses

import numpy as np

from zsjax.rl.selection import merge_groups
from zsjax.types import Episodes


@dataclasses.dataclass
class Experience:
    """B finished episodes with their rewards. Arrays are numpy.

    Attributes:
      episodes: rows of a group stand next to each other.
      questions, outcomes: object[B], `types.Question` and `rewards.terms.Outcome` of each row.
      scores: float32[B] rewards.
      terms: {name: float64[B]}, the unweighted terms of the scores.
      row_valid: bool[B], False for rows that the loss leaves out.
      rounds: rollouts that were played.
      occupancy, requests_saved: of the last rollout, see `zsjax.rollout.played`.
      before_refill: the first rollout, where groups of it were replaced: a measure of the policy, which those chosen for
        their rewards are not. None: no group was replaced.
    """

    episodes: Episodes
    questions: np.ndarray
    outcomes: np.ndarray
    scores: np.ndarray
    terms: dict
    row_valid: np.ndarray
    rounds: int
    occupancy: dict
    requests_saved: float | None = None
    before_refill: "Experience | None" = None

    @property
    def as_played(self) -> "Experience":
        """The episodes before any choice by their rewards, with the rounds and the work of all."""
        if self.before_refill is None:
            return self
        return dataclasses.replace(self.before_refill, rounds=self.rounds, occupancy=self.occupancy,
                                   requests_saved=self.requests_saved)


ROWS = ("episodes", "questions", "outcomes", "scores", "terms", "row_valid")  # fields whose arrays begin with rows


def replace_groups(first: Experience, second: Experience) -> Experience:
    """`first`, where groups without a signal are replaced by groups of `second` with one; it is kept as before_refill."""
    merged = merge_groups(*({name: getattr(experience, name) for name in ROWS} for experience in (first, second)),
                          scores=(first.scores, second.scores),
                          group_id=(first.episodes.group_id, second.episodes.group_id))
    return dataclasses.replace(second, **merged, before_refill=first.before_refill or first)
