"""The schedule of a rollout changes no trajectory, and keeps rows busy."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.rollout.test_turns import PARAMS, POLICY, TOKENIZER, check_rows, make_config, searching, simulator  # noqa: F401
from zsjax import types
from zsjax.rollout import make_rollout
from zsjax.types import Question

ROWS, GROUP = 4, 2
QUESTIONS = [Question(str(i), f"What is the mother of {name}?", ("Kara",)) for i, name in enumerate(
    ("Kara", "Lonor Cruwick", "Kara Lonor", "Cruwick", "Lonor", "Kara Cruwick", "Lonor Kara", "Cruwick Kara"))]


def play(simulator, questions, **schedule):  # noqa: F811
    rollout = make_rollout(POLICY, simulator, TOKENIZER, make_config(lanes=2, **schedule), group_size=GROUP)
    ids = [int(q.id) for q in questions]
    return jax.device_get(rollout(PARAMS, questions, noise=0.5, key=jax.random.key(4), group_ids=ids, with_work=True))


@pytest.fixture(scope="module")
def lockstep(simulator):  # noqa: F811
    """Batches of ROWS episodes, one after the other: everyone thinks, then everyone who asked is served."""
    with pytest.MonkeyPatch.context() as patch:
        searching(patch, draws=lambda episode: 2 + 5 * (episode % 3))
        size = ROWS // GROUP
        parts = [play(simulator, QUESTIONS[i:i + size]) for i in range(0, len(QUESTIONS), size)]
    episodes = jax.tree.map(lambda *x: np.concatenate(x), *[episodes for episodes, _ in parts])
    return episodes, sum(int(work.policy_steps[0]) for _, work in parts)


@pytest.mark.parametrize("slots,busy", [(4, 0.0), (4, 0.7), (4, 1.0), (1, 0.5)])
def test_the_schedule_changes_no_trajectory(monkeypatch, simulator, lockstep, slots, busy):  # noqa: F811
    searching(monkeypatch, draws=lambda episode: 2 + 5 * (episode % 3))
    episodes, work = play(simulator, QUESTIONS, rows=ROWS, simulator_slots=slots, busy=busy)
    expected, lockstep_steps = lockstep
    for field in dataclasses.fields(types.Episodes):
        np.testing.assert_array_equal(getattr(episodes, field.name), getattr(expected, field.name), err_msg=field.name)
    check_rows(episodes, PARAMS)
    assert (episodes.num_searches > 0).all() and episodes.noisy.any() and not episodes.noisy.all()
    policy_tokens = (episodes.roles == types.POLICY).sum()
    assert policy_tokens <= work.policy_steps[0] * work.policy_rows[0]
    assert work.policy_steps[0] < lockstep_steps or not busy  # a row that does not wait for others ends sooner
    assert (work.policy_rows, work.simulator_slots) == (ROWS, slots)
