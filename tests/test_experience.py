"""A step's experience: scored, refilled from fresh questions, masked; the same again when played again."""

import dataclasses

import numpy as np
import pytest

from zsjax import types
from zsjax.config import resolve
from zsjax.data import QuestionStream
from zsjax.monitor.episodes import episode_metrics
from zsjax.rl.steering import Settings
from zsjax.rollout.actor import Actor
from zsjax.rollout.played import Played, RolloutWork
from zsjax.types import Episodes, Question

STREAM = QuestionStream([Question(str(i), "who", ("Bo",)) for i in range(40)], seed=0)


class Words:
    def decode(self, ids):
        return " ".join(["", "<answer>", "</answer>", "Bo", "Ada"][i] for i in ids)


class FakeRollout:
    """Group g answers right in its first right(g) rows; rows in `truncated` are cut off."""

    def __init__(self, right, truncated=()):
        self.right, self.truncated, self.calls = right, truncated, []

    def place(self, params):
        return params

    def play(self, params, asked, *, noise, key, group_ids, reranker):
        self.calls.append(([q.id for q in asked], list(group_ids), noise, key))
        B = 2 * len(asked)
        group = np.repeat(group_ids, 2)
        good = [int(i % 2 < self.right(g)) for i, g in enumerate(group)]
        cut = [2 * g + i % 2 in self.truncated for i, g in enumerate(group)]
        empty = {field.name: np.zeros((B, 1), np.int32) for field in dataclasses.fields(Episodes)}
        return Played(Episodes(**(empty | dict(
            tokens=np.array([[1, 3 if g else 4, 2] for g in good]), roles=np.full((B, 3), types.POLICY, np.int8),
            length=np.full(B, 3), status=np.where(cut, types.OUT_OF_TOKENS, types.ANSWERED),
            num_searches=np.zeros(B, int), group_id=group, episode_id=2 * group + np.arange(B) % 2,
            query_span=np.zeros((B, 1, 2), int), noisy=np.zeros((B, 1, 1), bool),
            documents_span=np.zeros((B, 1, 2), int)))), RolloutWork(*np.array([[4], [B], [0], [0]])))


def actor(rollout, **algorithm):
    algorithm = {"drop_equal_groups": "refill_rounds" in algorithm} | algorithm
    config = resolve(dict(train=dict(questions_per_step=3, group_size=2), algorithm=algorithm), check=False)
    return Actor(config, rollout, STREAM, Words())


def play(rollout, step, noise=0.0, **algorithm):
    settings = Settings(step=step, key="k", noise=noise, real_share=None, kl_coef=np.float32(0), reranker=None)
    return actor(rollout, **algorithm).play({}, settings)


def test_without_refilling_a_step_is_one_rollout():
    rollout = FakeRollout(lambda g: g % 3)
    played = play(rollout, 5, noise=0.25)
    assert rollout.calls == [([q.id for q in STREAM.batch(5, 3)], [0, 1, 2], 0.25, "k")]
    assert played.scores.tolist() == [0, 0, 1, 0, 1, 1] and played.row_valid.all() and played.rounds == 1
    assert [q.id for q in played.questions[::2]] == rollout.calls[0][0]
    assert played.as_played is played and actor(rollout).metrics(played) == {}
    metrics = episode_metrics(played)
    assert metrics["reward"] == metrics["reward/f1"] == 0.5 and metrics["groups_with_signal"] == pytest.approx(1 / 3)


def test_short_replies_are_a_share_of_searches_not_of_invalid_actions():
    experience = play(FakeRollout(lambda g: g % 3), 5)
    status = np.full((6, 2), types.NOT_SEARCHED)
    status[0], status[1], status[2] = types.INVALID_ACTION, (types.SEARCH_SHORT, types.SEARCH_OK), types.SEARCH_OK
    experience.episodes = experience.episodes.replace(search_status=status)
    assert episode_metrics(experience)["short_replies"] == 0.25


def test_groups_without_a_signal_are_replaced_by_fresh_questions():
    rollout = FakeRollout(lambda g: {1: 1, 3: 1, 5: 2, 6: 1, 7: 1}.get(g, 0))
    played = play(rollout, 2, refill_rounds=3)
    # Round 0 gives group 1, round 1 group 3, round 2 groups 6 and 7, of which one is needed; a third is not played.
    assert played.episodes.group_id.tolist() == [3, 3, 1, 1, 6, 6] and played.rounds == 3 == len(rollout.calls)
    assert played.scores.tolist() == [1, 0] * 3 and played.row_valid.all()
    assert len({i for call in rollout.calls for i in call[0]}) == 9  # nobody is asked twice
    metrics = episode_metrics(played.as_played)  # of the first round, since the others' groups were chosen for their rewards
    assert (metrics["reward"], metrics["groups_with_signal"]) == (pytest.approx(1 / 6), pytest.approx(1 / 3))
    assert metrics["rounds"] == 3 and actor(rollout, refill_rounds=3).metrics(played) == {"groups_after_refill": 1.0}
    again = play(FakeRollout(lambda g: 1), 3, refill_rounds=3)
    assert not {q.id for q in again.questions} & {q.id for q in played.questions}


def test_what_cannot_be_replaced_leaves_the_loss():
    played = play(FakeRollout(lambda g: g == 1), 0, refill_rounds=1)
    assert played.rounds == 2 and played.row_valid.tolist() == [False, False, True, True, False, False]


def test_truncated_episodes_are_masked_where_asked():
    rollout = FakeRollout(lambda g: 1, truncated=(0, 5))
    plain = play(rollout, 0)
    assert plain.row_valid.all() and plain.scores.tolist() == [0, 0, 1, 0, 1, 0]
    assert play(rollout, 0, mask=("truncated",)).row_valid.tolist() == [False, True, True, True, True, False]
