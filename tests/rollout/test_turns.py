"""The turn rules, held against a slow oracle that plays the same script in plain Python."""

import dataclasses
import math

import jax
import numpy as np
import pytest

from tests.small_models import (
    ANSWER,
    CONFIG,
    MAX_TOKENS,
    MAX_TURNS,
    PARAMS,
    POLICY,
    QUESTIONS,
    TOKENIZER,
    TURN_TOKENS,
    Library,
    check_rows,
    encode,
    make_config,
    play_oracle,
    says,
    searching,
)
from zsjax import types
from zsjax.data import load_tokenizer
from zsjax.data.assets import asset_path
from zsjax.errors import InputError
from zsjax.models.placement import param_shardings
from zsjax.parallel.mesh import TRAIN_RULES, make_mesh, reshard
from zsjax.rollout import make_rollout, transcript
from zsjax.rollout.policy_prompt import PolicyTemplate
from zsjax.search.simulator.writing import ALL_TAGS
from zsjax.types import Question

RAMBLE = " spouse mother" * TURN_TOKENS  # more than a turn's budget
GOOD = "<think> look </think><search> spouse of Kara Bravik </search>"
SCRIPTS = {
    "answers at once": [ANSWER],
    "searches, answers": [GOOD, ANSWER],
    "two searches": [GOOD, "<search> mother of Kara Bravik </search>", ANSWER],
    "third search is not run": [GOOD, GOOD, "<search> voice of Kara Bravik </search>"],
    "documents full of tags": ["<search> rival of Kara Bravik </search>", ANSWER],
    "nothing found": ["<search> nothing </search>", ANSWER],
    "blank query": ["<search>  </search>", ANSWER],
    "close without open": ["look </search>", " </answer>", ANSWER],
    "answer closed in another turn": ["<answer> Kara </search>", " Bravik </answer>", ANSWER],
    "budget spent": [RAMBLE, ANSWER],
    "budget spent thrice": [RAMBLE, RAMBLE, RAMBLE],
    "EOS at once": ["EOS"],
    "EOS after a search": [GOOD, "EOS"],
    "glued tags": ["<think>a</think><search>voice of Kara</search>", "<answer>b</answer>"],
    "answer inside a search": ["<search> <answer> Kara </answer>"],
}


def scripted(scripts, library):
    """(questions, the oracle's rows, a sampler that says the scripts)."""
    questions = [Question(f"q{i}", f"What is the spouse of Kara Bravik number {i}?", ("x",)) for i in range(len(scripts))]
    expected = [play_oracle(q, s, library) for q, s in zip(questions, scripts, strict=True)]
    table = np.zeros((len(scripts), MAX_TOKENS + 1), np.int32)
    for row, (tokens, *_) in enumerate(expected):
        table[row, :len(tokens)] = tokens
    return questions, expected, says(table)


def test_turn_rules_equal_the_oracle():
    library = Library()
    questions, expected, sampler = scripted(list(SCRIPTS.values()), library)
    rollout = make_rollout(POLICY, library, TOKENIZER, CONFIG, sampler=sampler)
    episodes = jax.device_get(rollout(PARAMS, questions, key=jax.random.key(0)))
    queries = transcript.searches(episodes, TOKENIZER)
    for row, name in enumerate(SCRIPTS):
        tokens, roles, status, asked = expected[row]
        length = episodes.length[row]
        assert TOKENIZER.decode(episodes.tokens[row, :length].tolist()) == TOKENIZER.decode(tokens), name
        assert episodes.tokens[row, :length].tolist() == tokens, name
        assert episodes.roles[row, :length].tolist() == roles, name
        assert types.STATUS_NAMES[episodes.status[row]] == types.STATUS_NAMES[status], name
        assert queries[row] == asked, name
        assert episodes.num_searches[row] == len(asked), name
        assert not episodes.tokens[row, length:].any() and not episodes.roles[row, length:].any(), name
        for turn in np.flatnonzero(episodes.documents_span[row, :, 1]):
            start, stop = episodes.documents_span[row, turn]
            assert (episodes.roles[row, start:stop] == types.DOCUMENT).all(), name
    # B1: every query came with its own question, whoever else had stopped.
    pairs = {(q, f"q{row}") for row, e in enumerate(expected) for q in e[3]}
    assert {(q.strip(), i) for q, i in library.seen} == pairs
    answers = transcript.answers(episodes, TOKENIZER)
    assert answers[list(SCRIPTS).index("documents full of tags")] == "Kara Bravik"
    assert answers[list(SCRIPTS).index("EOS after a search")] is None
    status = dict(zip(SCRIPTS, episodes.search_status.tolist(), strict=True))
    assert status["nothing found"][0] == types.SEARCH_EMPTY
    assert status["blank query"][0] == types.INVALID_ACTION
    assert status["searches, answers"] == [types.SEARCH_OK, types.NOT_SEARCHED]


def test_pairing_with_random_stoppers():
    rng = np.random.default_rng(0)
    scripts = []
    for i in range(64):
        searches = [f"<search> voice of Kara Bravik {i} {turn} </search>" for turn in range(rng.integers(0, 3))]
        scripts.append([*searches, ANSWER])
    library = Library()
    questions, _, sampler = scripted(scripts, library)
    make_rollout(POLICY, library, TOKENIZER, CONFIG, sampler=sampler)(PARAMS, questions, key=jax.random.key(0))
    assert library.seen and all(query.split()[-2] == id[1:] for query, id in library.seen)


# With real draws. Random weights say nothing sensible, so these rows are mostly hints: the cache, the roles, the log-probs
# and the random streams are what is looked at.

def test_compiled_rollout(simulator):
    rollout = make_rollout(POLICY, simulator, TOKENIZER, CONFIG, group_size=2, sampler=searching())
    episodes = jax.device_get(rollout(PARAMS, QUESTIONS, noise=0.5, key=jax.random.key(3)))
    check_rows(episodes, PARAMS)
    assert (episodes.num_searches == MAX_TURNS).all()
    assert 0 < episodes.noisy.any(axis=2).mean() < 1
    for row in range(len(episodes.length)):
        for start, stop in episodes.documents_span[row]:
            text = TOKENIZER.decode(episodes.tokens[row, start:stop].tolist())
            assert text == "" or text.endswith("\n")
            assert not any(tag in text for tag in ALL_TAGS)

    # A row does not depend on its batch mates, bit for bit at equal shapes.
    order = [4, 1, 0, 5, 3, 2]
    shuffled = jax.device_get(rollout(PARAMS, [QUESTIONS[i] for i in order], noise=0.5, key=jax.random.key(3),
                                      group_ids=order))
    rows = np.concatenate([[2 * i, 2 * i + 1] for i in order])
    for name in ("tokens", "roles", "behavior_logprobs", "noisy", "documents_span", "episode_id"):
        np.testing.assert_array_equal(getattr(shuffled, name), getattr(episodes, name)[rows], err_msg=name)

    # The host-driven rollout with the same simulator, its documents as text, gives the same episodes wherever the
    # documents' text has but one spelling.
    other = dataclasses.replace(simulator, tokenizer=load_tokenizer(asset_path("asset:tiny_world/tokenizer")))
    host = jax.device_get(make_rollout(POLICY, other, TOKENIZER, CONFIG, group_size=2, sampler=searching())(
        PARAMS, QUESTIONS, noise=0.5, key=jax.random.key(3)))
    first_turn = episodes.query_span[:, 0, 1]
    for row, stop in enumerate(first_turn):
        np.testing.assert_array_equal(host.tokens[row, :stop], episodes.tokens[row, :stop])
    np.testing.assert_array_equal(host.noisy, episodes.noisy)


def play_three(engine, params, mesh):
    questions = [dataclasses.replace(QUESTIONS[i], id=f"r{i}") for i in range(3)]  # fill no mesh evenly
    rollout = make_rollout(POLICY, engine, TOKENIZER, CONFIG, mesh, group_size=2, sampler=searching())
    return jax.device_get(rollout(params, questions, noise=0.5, key=jax.random.key(4)))


@pytest.fixture(scope="module", params=["simulator", "library"])
def on_one_device(request, simulator):
    """(an engine, episodes against it on one device)."""
    engine = Library() if request.param == "library" else simulator
    return engine, play_three(engine, PARAMS, None)


@pytest.mark.parametrize("sizes", [pytest.param(dict(data=8), marks=pytest.mark.slow), dict(fsdp=2, tensor=2)])
def test_many_devices_equal_one(on_one_device, sizes):
    engine, one = on_one_device
    mesh = make_mesh(sizes, jax.devices()[:math.prod(sizes.values())])
    many = play_three(engine, reshard(PARAMS, param_shardings(POLICY, mesh, TRAIN_RULES)), mesh)
    assert len(many.tokens) == 6 and one.num_searches.sum() > 0
    np.testing.assert_array_equal(one.tokens, many.tokens)
    np.testing.assert_array_equal(one.noisy, many.noisy)
    np.testing.assert_allclose(one.behavior_logprobs, many.behavior_logprobs, atol=1e-5)


@pytest.mark.parametrize("real", [False, True])
def test_prefixes_go_on_on_many_devices(simulator, real):
    questions, engine, key = QUESTIONS[:3], Library() if real else simulator, jax.random.key(4)
    mesh = make_mesh(dict(data=2), jax.devices()[:2])  # a row too many

    def play(mesh, **options):
        return jax.device_get(make_rollout(POLICY, engine, TOKENIZER, CONFIG, mesh, sampler=searching())(
            PARAMS, questions, noise=0.5, key=key, **options))

    whole = play(None)
    behind = whole.documents_span[:, 0, 1] + len(encode(PolicyTemplate.load(CONFIG.prompts.policy).information_close))
    again = play(mesh, prefixes=[(tokens[:stop].tolist(), 1) for tokens, stop in zip(whole.tokens, behind, strict=True)])
    np.testing.assert_array_equal(again.tokens, whole.tokens)
    np.testing.assert_array_equal(again.noisy[:, 1:], whole.noisy[:, 1:])
    np.testing.assert_array_equal(again.num_searches, whole.num_searches - 1)
    assert (again.roles[np.arange(whole.tokens.shape[1]) < behind[:, None]] == types.PROMPT).all()


def test_no_questions_and_beginnings_without_room_are_refused():
    play = make_rollout(POLICY, Library(), TOKENIZER, CONFIG)
    with pytest.raises(InputError, match="no questions"):
        play(PARAMS, [], key=jax.random.key(0))
    for length in (MAX_TOKENS, MAX_TOKENS + 9):
        with pytest.raises(InputError, match=f"'q0'.*{length} tokens; raise rollout.max_tokens from {MAX_TOKENS}"):
            play(PARAMS, QUESTIONS[:1], prefixes=[([5] * length, 0)], key=jax.random.key(0))


def test_long_prompts_are_refused():
    with pytest.raises(ValueError, match="q0.*max_prompt_tokens"):
        make_rollout(POLICY, Library(), TOKENIZER, make_config(max_prompt_tokens=4))(PARAMS, QUESTIONS,
                                                                                      key=jax.random.key(0))
