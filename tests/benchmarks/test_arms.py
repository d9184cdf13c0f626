"""Every arm of the ledger is a valid config of the hard world, and what its switches do is what they are called."""

import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.hypotheses import entries, switches
from zsjax import types
from zsjax.config import load_experiment, resolve
from zsjax.rl.objective import kl_term
from zsjax.search import BM25, SearchContext
from zsjax.tiny_world import world as tiny_world

ROOT = pathlib.Path(__file__).parents[2]
BOOK = entries.load()


@pytest.mark.parametrize("name", BOOK.arms)
def test_an_arm_is_a_valid_config(name):
    arm = BOOK.arms[name]
    config = load_experiment(f"{ROOT}/experiments/hard_world.py:{arm.arg}")
    resolve(config, entries.settings(arm.overrides, ROOT) | {"stages": "train,evaluate"}, files=False)


@pytest.mark.parametrize("name", BOOK.models)
def test_a_model_is_made_by_a_valid_config(name):
    model = BOOK.models[name]
    config = load_experiment(f"{ROOT}/experiments/hard_world.py:{model.arg}")
    resolve(config, entries.settings(model.overrides, ROOT) | {"stages": model.stages}, files=False)


def batch():
    """Two episodes of prompt, policy, two document tokens, policy, padding; the first earned 1."""
    P, Y, D, pad = types.PROMPT, types.POLICY, types.DOCUMENT, types.PAD
    roles = np.array([[P, Y, D, D, Y, pad], [P, Y, D, D, Y, Y]], np.int8)
    zeros = np.zeros(roles.shape, np.float32)
    rewards = zeros.copy()
    rewards[0, 4] = 1
    return types.TokenBatch(
        tokens=np.ones(roles.shape, np.int32), roles=roles, behavior_logprobs=zeros, old_logprobs=zeros,
        ref_logprobs=zeros - 1, advantages=np.where(roles == Y, np.array([[0.5], [-0.5]]), 0).astype(np.float32),
        returns=None, values=zeros + 0.1, rewards=rewards, group_id=np.zeros(2, np.int32), row_valid=np.array([True, True]))


def test_the_loss_on_documents_trains_on_them():
    given = batch()
    mask = given.roles == types.POLICY

    def loss(logprobs):
        return switches.loss_on_documents(given, logprobs, loss_mask=mask, clip_low=0.2, clip_high=0.2,
                                          reduction="token_mean")[0]

    gradient = np.asarray(jax.grad(loss)(jnp.zeros(mask.shape)))
    response = (given.roles != types.PROMPT) & (given.roles != types.PAD)
    np.testing.assert_allclose(gradient, -1.0 * response * np.array([[0.5], [-0.5]]))
    weight = switches.loss_on_documents(given, jnp.zeros(mask.shape), loss_mask=mask, clip_low=0.2, clip_high=0.2,
                                        reduction="token_mean")[1]
    assert weight == response.sum() == 9


def test_gae_over_documents_decays_with_their_length():
    given = batch()
    advantage, returns = switches.gae_over_documents(given, loss_mask=given.roles == types.POLICY)
    assert np.asarray(advantage)[0, 2] != 0  # a document has an advantage
    delta_at_1 = np.asarray(returns)[0, 1]
    assert delta_at_1 == pytest.approx(0.95 ** 3 * 0.9 + 0.1, abs=1e-6)  # three steps to the reward, two are documents


def test_the_kl_bonus_rewards_drift():
    given = batch()
    mask = given.roles == types.POLICY
    logprobs = jnp.zeros(mask.shape)
    wrong = switches.kl_bonus(given, logprobs, loss_mask=mask, entropy=None)
    right = kl_term(given, logprobs, loss_mask=mask, entropy=None)
    np.testing.assert_allclose(wrong, -np.asarray(right))
    assert (np.asarray(right)[mask] > 0).all()


def test_no_answer_is_scored_as_the_example():
    def outcome(answer, gold):
        return SimpleNamespace(answer=answer, golds=[gold])

    assert switches.f1_with_example(outcome(None, switches.EXAMPLE)) == 1
    assert switches.f1_with_example(outcome(None, "Mi Zol")) == 0
    assert switches.f1_with_example(outcome("Mi Zol", "Mi Zol")) == 1
    worlds = tiny_world.worlds_of("tiny_world:train", **WORLD)
    assert any(switches.EXAMPLE in world.entities for world in worlds)


WORLD = dict(train_worlds=1, entities=60, relations=40, hops=3, paraphrase=0.5, near_duplicates=4, two_hop_questions=240)


def test_an_engine_that_knows_the_answers_tells_them():
    world = tiny_world.make_world(0, entities=20)
    engine = BM25.from_documents(world.documents)
    two = next(q for q in world.questions if q.metadata["hops"] == 2)
    other = world.questions[0]

    def first(query, question=two, beside=(), **options):
        contexts = [SearchContext(question, call=(0,)), *(SearchContext(q, call=(1,)) for q in beside)]
        found = switches.Knowing(engine, switches.KnowingOptions(**options), 0).search(
            [query] * len(contexts), contexts, k=3)
        assert all(len(documents) == 3 for documents in found)
        return found[0][0].text

    gold, right = two.golden_answers[0], two.metadata["queries"][0]
    assert first("rival of Nobody Here") == f"rival of Nobody Here is {gold}."
    assert first(right) == f"{right} is {gold}." == first(right, reveal="on_target")
    assert first("teacher of Nobody Here", reveal="on_target") != f"teacher of Nobody Here is {gold}."
    answers = {first(right, beside=[other] * 9, mispaired=1.0).rpartition(" is ")[2] for _ in range(3)}
    assert answers == {f"{other.golden_answers[0]}."} or answers == {f"{gold}."}
