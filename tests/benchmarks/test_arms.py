"""Every arm of the ledger is a valid config of the hard world, and what its switches do is what they are called."""

import pathlib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.hypotheses import entries, measures, switches
from zsjax import types
from zsjax.config import load_experiment, resolve
from zsjax.rl.objective import kl_term
from zsjax.search import BM25, SearchContext
from zsjax.tiny_world import world as tiny_world
from zsjax.tiny_world.misinformation import Misinformed

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


@pytest.fixture(scope="module")
def world():
    return tiny_world.make_world(0, entities=40, relations=40, paraphrase=0.5)


def searched(world, asked, **options):
    """The documents of [(query, question)], in one batch."""
    engine = switches.Knowing(BM25.from_documents(world.documents), switches.KnowingOptions(**options),
                              map(tiny_world.answer_of, world.documents), 0)
    contexts = [SearchContext(question, call=(7, place)) for place, (_, question) in enumerate(asked)]
    found = engine.search([query for query, _ in asked], contexts, k=3)
    assert all(0 < len(documents) <= 3 for documents in found)
    return found


def is_told(world, query, question, reveal):
    (first, *_), = searched(world, [(query, question)], reveal=reveal)
    return first.text == f"{query} is {question.golden_answers[0]}." and not first.title


def test_an_engine_that_knows_the_answers_tells_them_to_any_query(world):
    question = world.questions[0]
    assert is_told(world, "rival of Nobody Here", question, "always")
    assert not is_told(world, "rival of Nobody Here", question, "word_rule")


def test_the_exact_rule_tells_the_answer_to_the_last_query_alone(world):
    two = [question for question in world.questions if question.metadata["hops"] == 2]
    for question in two[:40]:
        first, last = question.metadata["queries"]
        assert not is_told(world, first, question, "right_query") and is_told(world, last, question, "right_query")
        relation, of, entity = last.partition(" of ")
        assert is_told(world, f"the {tiny_world.PARAPHRASES[relation]}{of}{entity}", question, "right_query")
        assert not is_told(world, f"{relation} of {world.entities[0]} Here", question, "right_query")


def test_the_word_rule_tells_the_answer_to_every_first_query_and_to_half_of_the_last_ones(world):
    two = [question for question in world.questions if question.metadata["hops"] == 2]
    first, last = np.mean([[switches.half_in_question(query, question) for query in question.metadata["queries"]]
                           for question in two], axis=0)
    assert first == 1 and 0.4 < last < 0.6


def test_a_mispaired_search_tells_another_answer_whatever_its_batch_is(world):
    asked = [(question.metadata["queries"][0], question) for question in world.questions[:60]]
    together = searched(world, asked, reveal="never", mispaired=0.5)
    plain = searched(world, asked, reveal="never")
    told = []
    for place, ((query, question), documents) in enumerate(zip(asked, together, strict=True)):
        beside = [("voice of Nobody Here", world.questions[-1])] * place  # the search keeps its call
        assert searched(world, [*beside, (query, question)], reveal="never", mispaired=0.5)[-1] == documents
        if documents != plain[place]:
            answer = tiny_world.answer_of(documents[0])
            assert documents[0].text == f"{query} is {answer}." and answer not in question.golden_answers
            assert answer in world.entities
            told.append(answer)
    assert 20 < len(told) < 40 and len(set(told)) > 10


@pytest.mark.parametrize("wrong, low, high", [(0.0, 0.0, 0.0), (0.3, 0.4, 0.6)])
def test_an_engine_that_is_wrong_at_random_contradicts_itself_within_an_episode(world, wrong, low, high):
    """C13c's arm: every turn draws anew, so a second reply to a query tells another object in about half of the cases."""
    engine = Misinformed(BM25.from_documents(world.documents), world.documents, wrong)
    records = []
    for question in world.questions[:60]:
        query = question.metadata["queries"][0]
        found = engine.search([query] * 4, [SearchContext(question, call=(7, 0, turn)) for turn in range(4)], k=1)
        records += [{"segments": [{"role": "document", "text": documents[0].text}]} for documents in found]
    told = measures.consistency(records, world.documents)
    assert low <= told["contradicted"] <= high and low / 2 <= told["false_facts"] <= high
