"""A step's experience: scored, refilled from fresh questions, masked; the same again when played again."""

import dataclasses

import numpy as np
import pytest

from zsjax import types
from zsjax.config import resolve
from zsjax.data import QuestionStream
from zsjax.monitor.episodes import episode_metrics
from zsjax.rollout.compiled import Work
from zsjax.rollout.experience import make_player
from zsjax.types import Episodes, Question

STREAM = QuestionStream([Question(str(i), "who", ("Bo",)) for i in range(40)], seed=0)


class Words:
    def decode(self, ids):
        return " ".join(["", "<answer>", "</answer>", "Bo", "Ada"][i] for i in ids)


def rollout_of(right, truncated=()):
    """A rollout whose group g has answered right in its first right(g) rows; rows in `truncated` were cut off."""
    calls = []

    def rollout(params, asked, *, noise, key, group_ids, with_work):
        calls.append(([q.id for q in asked], list(group_ids), noise, key))
        B = 2 * len(asked)
        group = np.repeat(group_ids, 2)
        good = [int(i % 2 < right(g)) for i, g in enumerate(group)]
        status = [types.OUT_OF_TOKENS if 2 * g + i % 2 in truncated else types.ANSWERED for i, g in enumerate(group)]
        empty = {field.name: np.zeros((B, 1), np.int32) for field in dataclasses.fields(Episodes)}
        return Episodes(**(empty | dict(
            tokens=np.array([[1, 3 if g else 4, 2] for g in good]), roles=np.full((B, 3), types.POLICY, np.int8),
            length=np.full(B, 3), status=np.array(status), num_searches=np.zeros(B, int), group_id=group,
            episode_id=2 * group + np.arange(B) % 2, query_span=np.zeros((B, 1, 2), int), noisy=np.zeros((B, 1, 1), bool),
            documents_span=np.zeros((B, 1, 2), int)))), Work(np.array([4]), np.array([B]), np.array([0]), np.array([0]))

    rollout.calls = calls
    return rollout


def player(rollout, **algorithm):
    config = resolve(dict(train=dict(questions_per_step=3, group_size=2), algorithm=algorithm), check=False)
    return make_player(config, rollout, STREAM, Words())


def test_without_refilling_a_step_is_one_rollout():
    rollout = rollout_of(lambda g: g % 3)
    played = player(rollout)({}, 5, noise=0.25, key="k")
    assert rollout.calls == [([q.id for q in STREAM.batch(5, 3)], [0, 1, 2], 0.25, "k")]
    assert played.scores.tolist() == [0, 0, 1, 0, 1, 1] and played.row_valid.all() and played.rounds == 1
    assert [q.id for q in played.questions[::2]] == rollout.calls[0][0]
    metrics = episode_metrics(played)
    assert metrics["reward"] == metrics["reward/f1"] == 0.5 and metrics["groups_with_signal"] == pytest.approx(1 / 3)


def test_groups_without_a_signal_are_replaced_by_fresh_questions():
    rollout = rollout_of(lambda g: {1: 1, 3: 1, 5: 2, 6: 1, 7: 1}.get(g, 0))
    played = player(rollout, drop_equal_groups=True, refill_rounds=3)({}, 2, noise=0.0, key="k")
    # Round 0 gives group 1, round 1 group 3, round 2 groups 6 and 7, of which one is needed; a third is not played.
    assert played.episodes.group_id.tolist() == [3, 3, 1, 1, 6, 6] and played.rounds == 3 == len(rollout.calls)
    assert played.scores.tolist() == [1, 0] * 3 and played.row_valid.all()
    assert len({i for call in rollout.calls for i in call[0]}) == 9  # nobody is asked twice
    again = player(rollout_of(lambda g: 1), drop_equal_groups=True, refill_rounds=3)({}, 3, noise=0.0, key="k")
    assert not {q.id for q in again.questions} & {q.id for q in played.questions}


def test_what_cannot_be_replaced_leaves_the_loss():
    played = player(rollout_of(lambda g: g == 1), drop_equal_groups=True, refill_rounds=1)({}, 0, noise=0.0, key="k")
    assert played.rounds == 2 and played.row_valid.tolist() == [False, False, True, True, False, False]


def test_truncated_episodes_are_masked_where_asked():
    make = lambda **options: player(rollout_of(lambda g: 1, truncated=(0, 5)), **options)({}, 0, noise=0.0, key="k")
    assert make().row_valid.all() and make().scores.tolist() == [0, 0, 1, 0, 1, 0]
    assert make(mask=("truncated",)).row_valid.tolist() == [False, True, True, True, True, False]
