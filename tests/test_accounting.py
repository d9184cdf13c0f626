"""What a run's rollouts did, counted by hand and against the program's own counters; compilations by jax's events."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small_models import PARAMS, POLICY, TOKENIZER, Library, make_config, searching
from zsjax.models.decoder import DecoderConfig, init_params
from zsjax.models.flops import forward_flops
from zsjax.monitor import usage
from zsjax.parallel import constrain
from zsjax.rollout import make_rollout
from zsjax.rollout.played import Played, RolloutWork
from zsjax.types import DOCUMENT, PAD, TEMPLATE, Episodes, Question
from zsjax.types import POLICY as SAID
from zsjax.types import PROMPT as ASKED

# One layer of one kv head of 4 numbers: 2 * 4 * 4 bytes a cache slot.
MODEL = DecoderConfig(vocab_size=10, embed_dim=8, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4, mlp_dim=8)


def test_by_hand(monkeypatch):
    monkeypatch.setattr(usage, "copy_bandwidth", lambda: 1000.0)
    params = init_params(MODEL, jax.random.key(0))
    roles = np.array([[ASKED, ASKED, SAID, TEMPLATE, DOCUMENT, DOCUMENT, SAID], [ASKED, ASKED, SAID, SAID, *[PAD] * 3]])
    rest = {field.name: None for field in dataclasses.fields(Episodes)}
    episodes = Episodes(**rest | dict(roles=roles, group_id=np.array([7, 7])))
    work = RolloutWork(*(np.array([n, 0]) for n in (3, 2, 0, 0)), policy_cache=np.array([100.0, 100.0]))
    account = usage.RolloutAccount(MODEL, None, devices=2)
    assert account.take() == {}
    for _ in range(2):
        account.add(params, Played(episodes, work), 0.5)
    weights, slot = 4 * sum(x.size for x in jax.tree.leaves(params)), 2 * 4 * 4
    taken = account.take()
    assert taken.pop("prefill/policy") == pytest.approx(5 / 9)  # the prompt once; template and documents
    read, drawn = forward_flops(MODEL, 5, 1 + 2 + 4 + 5 + 6, 0), forward_flops(MODEL, 4, 3 + 7 + 3 + 4, 4)
    assert taken.pop("prefill/operations") == pytest.approx(read / (read + drawn))
    assert taken.pop("speed/bandwidth_share") == pytest.approx(2 * (3 * weights + 17 * slot) / 2 / 1.0 / 1000)
    assert taken == {"speed/policy_tokens_per_second": 8.0, "speed/document_tokens_per_second": 4.0, "time/play": 1.0,
                     "cache_bytes/policy": 100.0, "speed/copy_bandwidth": 1000.0}
    assert account.take() == {}


def test_untied_embeddings_and_narrow_matrices_are_read_as_they_are_used():
    model = dataclasses.replace(MODEL, tie_embeddings=False, dtype="bfloat16")
    params = init_params(model, jax.random.key(0))
    matrices = sum(x.size for x in jax.tree.leaves(params) if x.ndim == 2) - params["embed_tokens"].size
    vectors = sum(x.size for x in jax.tree.leaves(params) if x.ndim == 1)
    assert usage.decoding_bytes(params, model) == 2 * matrices + 4 * vectors
    with constrain.compiling_for("gpu"):  # on CPU a cache is float32
        assert usage.slot_bytes(model) == 2 * 4 * 2


@pytest.mark.parametrize("compiled", [True, False])
def test_of_a_real_rollout(simulator, compiled):
    questions = [Question(str(i), f"What is the mother of {name}?", ("Kara",)) for i, name in enumerate(("Kara", "Lonor"))]
    engine = simulator if compiled else Library()
    config = make_config(rows=2, prefill_batch=1)
    rollout = make_rollout(POLICY, engine, TOKENIZER, config, group_size=2, sampler=searching())
    played = jax.device_get(rollout.play(PARAMS, questions, noise=0.5, key=jax.random.key(3)))
    episodes, work = played.episodes, played.work
    account = usage.RolloutAccount(POLICY, engine)
    account.add(PARAMS, played, 2.0)
    taken = account.take()
    rows, slot = work.policy_rows[0], usage.slot_bytes(POLICY)
    assert taken["cache_bytes/policy"] == rows * (episodes.tokens.shape[1] * slot + 4)
    assert 0 < taken["prefill/policy"] < 1 and 0 < taken["speed/bandwidth_share"]
    assert taken["speed/document_tokens_per_second"] == (episodes.roles == DOCUMENT).sum() / 2 > 0
    assert ("prefill/simulator" in taken) == compiled == ("cache_bytes/simulator" in taken)
    if not compiled:
        return
    # All that the simulator drew, and no more: a step of every slot at most, what is shown at least.
    drawn, steps = int(work.tally.drawn[0]), int(work.simulator_steps[0])
    assert 0 < work.simulator_tokens[0] <= drawn <= steps * work.simulator_slots[0]
    asked = int(work.simulated[0])  # equal searches are read once
    shared = len(simulator.shared_prefix)
    per_prompt = (int(work.tally.read[0]) - shared) / asked
    assert 0 < per_prompt <= simulator.prompt_size - shared
    # Every draw sees the whole prompt, the shared beginning included, and what was drawn before it.
    assert drawn * (per_prompt + shared) * 0.8 < work.tally.attended[0] < drawn * (
        simulator.prompt_size + simulator._budget)


def test_compilations_are_counted_and_what_was_kept_told_apart(tmp_path):
    from jax.experimental.compilation_cache import compilation_cache

    x, options = jnp.arange(3.0), ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs",
                                   "jax_persistent_cache_min_entry_size_bytes")
    before = {name: getattr(jax.config, name) for name in options}
    counts = usage.CompileCount()
    try:
        for name, value in zip(options, (str(tmp_path), 0, -1)):
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        counts.take()
        make = lambda: jax.jit(lambda x: jnp.sin(x) * 3 + 1)
        first, again = make(), make()
        first(x)
        taken = counts.take()
        assert (taken["compile/step"], taken["compile/cached"]) == (1, 0) and taken["time/compile"] > 0
        first(x)
        assert counts.take()["compile/step"] == 0
        again(x)  # another function of the same program
        taken = counts.take()
        assert (taken["compile/step"], taken["compile/cached"], taken["compile/total"]) == (0, 1, 1)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()


def test_the_copy_bandwidth_is_plausible():
    assert 1e8 < usage.copy_bandwidth() < 1e14 and usage.copy_bandwidth() == usage.copy_bandwidth()
