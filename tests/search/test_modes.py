"""A noise draw for each document: each comes from the reply of its mode, whatever the batch."""

import jax
import jax.numpy as jnp
import numpy as np

from zsjax.config import resolve
from zsjax.data import load_tokenizer
from zsjax.data.assets import asset_path
from zsjax.models.decoder import DecoderConfig, init_params
from zsjax.rollout.draws import draw_noise
from zsjax.rollout.environment import environment
from zsjax.sampling import ragged
from zsjax.search.simulator.prompt import SimulatorTemplate
from zsjax.search.simulator.requests import Requests
from zsjax.search.simulator.simulator import Simulator

TOKENIZER = load_tokenizer(asset_path("asset:tiny_world/tokenizer"))
CONFIG = DecoderConfig(vocab_size=TOKENIZER.vocab_size, embed_dim=32, num_layers=1, num_heads=2, num_kv_heads=1,
                       head_dim=16, mlp_dim=32)
K = 3


def test_each_document_is_of_its_own_mode():
    simulator = Simulator(config=CONFIG, params=init_params(CONFIG, jax.random.key(0)), tokenizer=TOKENIZER,
                          template=SimulatorTemplate.load("tiny_world"), num_documents=K, max_document_tokens=6,
                          max_query_tokens=6, max_question_tokens=8, max_answer_tokens=4, temperature=1.0)
    noisy = np.array([[False] * K, [True] * K, [True, False, True], [False, True, False], [True, False, False]])

    def slot(size):
        return ragged.pad([TOKENIZER.encode_text(" spouse of Lonor")] * len(noisy), size)

    requests = Requests(question=slot(8), answers=slot(4), query=slot(6), noisy=noisy,
                        question_key=np.arange(len(noisy), dtype=np.uint32),
                        active=np.array([True, True, True, True, False]))
    tables = simulator.tables
    write = jax.jit(lambda requests: simulator.write(simulator.params, tables, requests, jax.random.key(1)))
    mixed = write(requests)
    useful, bad = (write(requests.replace(noisy=np.full(len(noisy), mode))) for mode in (False, True))
    assert not np.array_equal(useful.tokens, bad.tokens)
    for b in range(4):
        for i in range(K):
            source = bad if noisy[b, i] else useful
            assert mixed.lengths[b, i] == source.lengths[b, i] > 0
            np.testing.assert_array_equal(mixed.tokens[b, i], source.tokens[b, i])
    assert mixed.count.tolist() == [K] * 4 + [0] and not mixed.lengths[4].any()


def test_noise_draws_have_the_asked_for_frequency_and_shape():
    class State:
        episode_id, turn = jnp.arange(4000), jnp.zeros(4000, jnp.int32)

    class Environment:
        num_documents, noise_per_document, noise_per_question, group_size = K, True, False, 4

    draws = draw_noise(Environment, State, jnp.float32(0.3), jax.random.key(0))
    assert draws.shape == (4000, K)
    np.testing.assert_allclose(draws.mean(axis=0), 0.3, atol=0.03)
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.06  # each is tossed on its own
    Environment.noise_per_document = False
    assert draw_noise(Environment, State, jnp.float32(0.3), jax.random.key(0)).shape == (4000,)


def test_the_episodes_of_a_question_may_share_their_luck():
    """Six questions of four episodes: one draw a question and turn, whatever row an episode is in; by default its own."""
    class State:
        episode_id, turn = jnp.arange(24)[::-1], jnp.zeros(24, jnp.int32)

    class Later(State):
        turn = jnp.ones(24, jnp.int32)

    def draws(state, per):
        env = environment(CONFIG, TOKENIZER, resolve({"search": {"noise_per": per}}, check=False), group_size=4)
        return np.asarray(draw_noise(env, state, jnp.float32(0.5), jax.random.key(1)))

    shared = draws(State, "question").reshape(6, 4)
    assert (shared == shared[:, :1]).all() and 0 < shared[:, 0].sum() < 6
    assert (draws(Later, "question") != draws(State, "question")).any()
    own = draws(State, "search").reshape(6, 4)
    assert (own != own[:, :1]).any()
