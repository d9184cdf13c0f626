"""The schedule of a rollout changes no trajectory, and keeps rows busy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.hlo import cache_sized_results
from tests.rollout.test_turns import PARAMS, POLICY, TOKENIZER, check_rows, make_config, searching, simulator  # noqa: F401
from zsjax import types
from zsjax.rollout import continuous, make_rollout
from zsjax.rollout import engine as pieces
from zsjax.search.simulator import question_keys
from zsjax.types import Question

ROWS, GROUP = 4, 2
SLOTS = 3
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


def test_neither_cache_is_copied(simulator):  # noqa: F811
    """No cache-sized array is written in the whole program but by updates in place, of the policy's or the simulator's."""
    rows, capacity, prompt = 5, 101, 8  # numbers that no other array has by chance
    env = pieces.Environment(
        policy=POLICY, max_turns=2, max_turn_tokens=12, max_tokens=capacity, max_query_tokens=6, num_documents=2,
        max_document_tokens=12, information_open=np.array([1, 2]), information_close=np.array([3]), hint=np.array([4]),
        group_size=2, lanes=2)
    Q = 4
    question, answers = simulator.encode_questions(QUESTIONS[:Q])
    inputs = {"prompts": jnp.ones((Q, prompt), jnp.int32), "prompt_lengths": jnp.full(Q, prompt), "question": question,
              "group_id": jnp.arange(Q), "answers": answers, "question_key": question_keys(QUESTIONS[:Q]),
              "turn": jnp.zeros(Q, jnp.int32)}
    tables, simulator_tables = pieces.tables(TOKENIZER, POLICY), simulator.tables
    schedule = continuous.Schedule(rows, SLOTS, 0.8)
    call = jax.jit(lambda params, theirs, inputs: continuous.play(
        params, theirs, env, schedule, tables, simulator, simulator_tables, inputs, 0.5, 1.0, jax.random.key(0)))
    hlo = call.lower(PARAMS, simulator.params, inputs).compile().as_text()
    policy_cache = rows * POLICY.num_kv_heads * capacity * POLICY.head_dim
    theirs = simulator.config
    simulator_cache = SLOTS * theirs.num_kv_heads * simulator.idle(simulator.params, 1).cache.capacity * theirs.head_dim
    for size in (policy_cache, simulator_cache):
        inside, found = cache_sized_results(hlo, size)
        assert inside and not found, found
