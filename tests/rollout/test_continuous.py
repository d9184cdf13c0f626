"""The schedule of a rollout changes no trajectory, and keeps rows decoding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.hlo import cache_sized_results, optimised
from tests.small_models import (
    DOCUMENT_TOKENS,
    MAX_TOKENS,
    NUM_DOCUMENTS,
    PARAMS,
    POLICY,
    TOKENIZER,
    check_rows,
    make_config,
    searching,
)
from zsjax import types
from zsjax.models import cache
from zsjax.models.placement import param_shardings
from zsjax.parallel.mesh import TRAIN_RULES, make_mesh, reshard
from zsjax.rollout import compiled, dedup, growing_cache, make_rollout
from zsjax.rollout.environment import Environment, tables
from zsjax.rollout.played import occupancy, requests_saved
from zsjax.rollout.schedule import Schedule
from zsjax.search.simulator.requests import question_keys
from zsjax.search.simulator.writing import Replies
from zsjax.types import Question

ROWS, GROUP = 4, 2
SLOTS = 3
QUESTIONS = [Question(str(i), f"What is the mother of {name}?", ("Kara",)) for i, name in enumerate(
    ("Kara", "Lonor Cruwick", "Kara Lonor", "Cruwick", "Lonor", "Kara Cruwick", "Lonor Kara", "Cruwick Kara"))]


SAMPLER = searching(draws=lambda episode: 2 + 5 * (episode % 3))


def play(simulator, questions, **schedule):
    config = make_config(prefill_batch=2, **schedule)
    rollout = make_rollout(POLICY, simulator, TOKENIZER, config, group_size=GROUP, sampler=SAMPLER)
    ids = [int(q.id) for q in questions]
    return jax.device_get(rollout.play(PARAMS, questions, noise=0.5, key=jax.random.key(4), group_ids=ids))


@pytest.fixture(scope="module")
def lockstep(request, simulator):
    """Batches of ROWS episodes, one after the other: everyone thinks, then everyone who asked is served."""
    with pytest.MonkeyPatch.context() as segments:
        segments.setattr(cache, "SEGMENT", {"whole": cache.SEGMENT, "segments": MAX_TOKENS // 2 + 3}[request.param])
        size = ROWS // GROUP
        parts = [play(simulator, QUESTIONS[i:i + size]) for i in range(0, len(QUESTIONS), size)]
        episodes = jax.tree.map(lambda *x: np.concatenate(x), *[played.episodes for played in parts])
        yield episodes, sum(int(played.work.policy_steps[0]) for played in parts)


SLOW = pytest.mark.slow  # the same properties at other settings, half a minute of compilation each


@pytest.mark.parametrize("lockstep, slots, threshold", [
    ("whole", 1, 0.5), pytest.param("segments", 4, 1.0, marks=SLOW), pytest.param("whole", 4, 0.0, marks=SLOW),
    pytest.param("whole", 4, 1.0, marks=SLOW)], indirect=["lockstep"])
def test_the_schedule_changes_no_trajectory(simulator, lockstep, slots, threshold):
    played = play(simulator, QUESTIONS, rows=ROWS, simulator_slots=slots, decode_threshold=threshold)
    episodes, work = played.episodes, played.work
    expected, lockstep_steps = lockstep
    for field in dataclasses.fields(types.Episodes):
        np.testing.assert_array_equal(getattr(episodes, field.name), getattr(expected, field.name), err_msg=field.name)
    check_rows(episodes, PARAMS)
    assert (episodes.num_searches > 0).all() and episodes.noisy.any() and not episodes.noisy.all()
    policy_tokens = (episodes.roles == types.POLICY).sum()
    assert policy_tokens <= work.policy_steps[0] * work.policy_rows[0]
    assert work.policy_steps[0] < lockstep_steps or not threshold  # a row that does not wait for others ends sooner
    assert (work.policy_rows, work.simulator_slots) == (ROWS, slots)

    # Rows of a question that ask the same, together or one after the other, are one request. (Spans end with the tag: equal
    # spans are equal queries.)
    asked = [(episodes.group_id[b], *episodes.tokens[b, start:stop].tolist(), *episodes.noisy[b, turn].tolist())
             for b in range(len(episodes.tokens)) for turn, (start, stop) in enumerate(episodes.query_span[b]) if stop]
    assert (int(work.requests[0]), int(work.simulated[0])) == (len(asked), len(set(asked))) and len(set(asked)) < len(asked)
    steps = int(work.simulator_steps[0])
    assert slots > 1 or work.simulator_tokens[0] <= steps <= len(set(asked)) * NUM_DOCUMENTS * (DOCUMENT_TOKENS + 1)
    assert all(0 < share <= 1 for share in occupancy(played).values())
    assert requests_saved(work) == pytest.approx(1 - len(set(asked)) / len(asked))


@pytest.mark.parametrize("resumed", [False, True])
def test_neither_cache_is_copied(simulator, resumed):
    """No cache-sized array is written in the whole program but by updates in place, of the policy's or the simulator's.

    Nor in a program that goes on with rows of another, which it is given to keep.
    """
    rows, capacity, prompt = 5, 101, 8  # numbers that no other array has by chance
    env = Environment(
        policy=POLICY, max_turns=2, max_turn_tokens=12, max_tokens=capacity + 50 * resumed, max_query_tokens=6,
        num_documents=2, max_document_tokens=12, information_open=np.array([1, 2]), information_close=np.array([3]),
        hint=np.array([4]), group_size=2, prefill_batch=2)
    Q = 4
    question, answers = simulator.encode_questions(QUESTIONS[:Q])
    questions = {"prompts": jnp.ones((Q, prompt), jnp.int32), "prompt_lengths": jnp.full(Q, prompt), "question": question,
                 "group_id": jnp.arange(Q), "answers": answers, "question_key": question_keys(QUESTIONS[:Q]),
                 "turn": jnp.zeros(Q, jnp.int32)}
    questions = jax.tree.map(jnp.asarray, questions)
    static = compiled.Static(env, Schedule(rows, SLOTS, 0.8), simulator)
    inputs = compiled.Inputs(PARAMS, simulator.params, tables(TOKENIZER, POLICY), simulator.tables, noise=0.5,
                             temperature=1.0, key=jax.random.key(0))
    if resumed:
        prompts, loop = jax.eval_shape(lambda inputs: compiled.begin(static, inputs, questions, capacity), inputs)
        lowered = jax.jit(lambda inputs, prompts, loop: compiled.proceed(static, inputs, questions, prompts, loop),
                          donate_argnums=2).lower(inputs, prompts, loop)
        hlo = optimised(lowered).as_text()
        assert hlo.split("\n", 1)[0].count("-alias)") == len(jax.tree.leaves(loop))
    else:
        hlo = optimised(jax.jit(lambda inputs: compiled.play_compiled(static, inputs, questions)).lower(inputs)).as_text()
    policy_cache = rows * POLICY.num_kv_heads * capacity * POLICY.head_dim
    theirs = simulator.config
    simulator_cache = SLOTS * theirs.num_kv_heads * simulator.idle(simulator.params, 1).cache.capacity * theirs.head_dim
    for size in (policy_cache, simulator_cache):
        inside, found = cache_sized_results(hlo, size)
        assert inside and not found, found


def test_requests_are_told_apart():
    """By question, mode, tokens and length; numbers are given in order, first come first served."""
    class Sizes:
        num_documents, max_document_tokens, max_query_tokens, noise_per_document = 2, 3, 2, False

    table = dedup.empty(6, Sizes, Sizes)
    rows = [(0, [5, 0], 1, False), (0, [5, 0], 1, False), (0, [5, 0], 2, False), (1, [5, 0], 1, False), (0, [5, 0], 1, True),
            (0, [6, 0], 1, False)]

    def ask(table, rows, asks):
        question, tokens, lengths, noisy = map(jnp.array, zip(*rows, strict=True))
        return dedup.ask(table, jnp.array(asks), question, (tokens, lengths), noisy)

    table, numbers = ask(table, rows, [True, True, True, False, True, False])
    assert numbers.tolist() == [0, 0, 1, 6, 2, 6] and (int(table.asked[0]), int(table.distinct[0])) == (4, 3)
    table, given = dedup.begin_requests(table, jnp.array([True, False, True]))
    assert given.tolist() == [0, 6, 1] and int(table.begun[0]) == 2
    table, numbers = ask(table, rows[::-1], [True] * 6)
    assert numbers.tolist() == [3, 2, 4, 1, 0, 0] and (int(table.asked[0]), int(table.distinct[0])) == (10, 5)
    table, given = dedup.begin_requests(table, jnp.ones(4, bool))
    assert given.tolist() == [2, 3, 4, 6] and not table.written.any()
    replies = Replies(tokens=jnp.full((2, 2, 3), 7), lengths=jnp.full((2, 2), 3), count=jnp.array([2, 1]))
    table = dedup.enter(table, jnp.array([4, 6]), replies)
    assert table.written.tolist() == [False] * 4 + [True, False] and table.replies.count.tolist() == [0, 0, 0, 0, 2, 0]


@pytest.mark.parametrize("lockstep", ["segments", pytest.param("whole", marks=SLOW)], indirect=True)
def test_a_cache_that_grows_changes_no_trajectory(monkeypatch, simulator, lockstep):
    """Rows begin with half of the slots; the loop stops before one outgrows them and goes on with all."""
    traced, proceed = [], compiled.proceed  # once a program
    monkeypatch.setattr(compiled, "proceed", lambda *args: traced.append(args[-1].state.cache.capacity) or proceed(*args))
    mesh = make_mesh(dict(data=2), jax.devices()[:2])
    config = make_config(prefill_batch=2, rows=ROWS, simulator_slots=4, decode_threshold=0.5, capacities=2)
    rollout = make_rollout(POLICY, simulator, TOKENIZER, config, mesh, group_size=GROUP, sampler=SAMPLER)
    params = reshard(PARAMS, param_shardings(POLICY, mesh, TRAIN_RULES))
    for _ in range(2):
        played = jax.device_get(rollout.play(params, QUESTIONS, noise=0.5, key=jax.random.key(4)))
    episodes, work = played.episodes, played.work
    assert traced == [MAX_TOKENS // 2, MAX_TOKENS] and len(work.policy_steps) == 2
    assert (lockstep[0].length > MAX_TOKENS // 2).any()
    for field in dataclasses.fields(types.Episodes):
        ours, expected = getattr(episodes, field.name), getattr(lockstep[0], field.name)
        if field.name == "behavior_logprobs":  # products over other shapes
            np.testing.assert_allclose(ours, expected, atol=1e-5)
        else:
            np.testing.assert_array_equal(ours, expected, err_msg=field.name)


def test_sizes_of_a_growing_cache():
    assert growing_cache.capacities(1, 24, 160) == [160] and growing_cache.capacities(3, 24, 160) == [40, 80, 160]
    assert growing_cache.capacities(4, 35, 151) == [35, 38, 76, 151] and growing_cache.capacities(2, 161, 160) == [160]
