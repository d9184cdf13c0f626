"""Packed parts: every row once, few shapes, the same step as one batch, and no compiling after the warm-up."""

from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsjax.config import LoraConfig, resolve
from zsjax.models import lora
from zsjax.models.decoder import REMAT, DecoderConfig, init_params
from zsjax.models.value import init_value
from zsjax.parallel.mesh import make_mesh
from zsjax.rl import packing
from zsjax.rl import roles as role_masks
from zsjax.rl.algorithms import preset
from zsjax.rl.learner import Learner
from zsjax.rl.steps import make_packed_update, make_update
from zsjax.rl.value_steps import make_value_score, make_value_update, state_values
from zsjax.types import DOCUMENT, PAD, POLICY, PROMPT, TokenBatch

CONFIG = DecoderConfig(vocab_size=23, embed_dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=16)
SGD = optax.sgd(1.0)
OPTIONS = dict(chunk=8, kl_coef=0.3, kl_kind="k2", entropy_coef=0.2)


def params_of(seed):
    return jax.tree.map(lambda p: p * 5 if p.ndim > 1 else p, init_params(CONFIG, jax.random.key(seed)))


PARAMS = params_of(0)


def make_batch(B, T, seed=0):
    """numpy rows of many lengths, P x x D x x D ... with random log-probs near each other."""
    rng = np.random.default_rng(seed)
    roles = np.tile(np.array([PROMPT, POLICY, POLICY, DOCUMENT], np.int8), T)[:T]
    lengths = rng.integers(2, T + 1, B)
    roles = np.where(np.arange(T) < lengths[:, None], roles, PAD).astype(np.int8)

    def draw(scale):
        return (rng.normal(size=(B, T)) * scale).astype(np.float32)

    old = -3 + draw(0.1)
    return TokenBatch(tokens=rng.integers(0, 23, (B, T)).astype(np.int32), roles=roles, behavior_logprobs=old,
                      old_logprobs=old, ref_logprobs=old + draw(0.3), advantages=draw(1.0), returns=draw(1.0),
                      values=draw(0.5), rewards=draw(1.0), group_id=np.arange(B) // 2, row_valid=np.arange(B) != 1)


def close(a, b, atol=1e-6):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(st.lists(st.integers(1, 300), min_size=1, max_size=40), st.sampled_from([100, 512, 4096]), st.sampled_from([1, 4]))
def test_every_row_is_in_one_part_of_few_shapes(lengths, budget, multiple):
    parts = packing.pack(lengths, budget=budget, max_length=300, multiple=multiple, shortest=32)
    assert sorted(np.concatenate([part.rows for part in parts]).tolist()) == list(range(len(lengths)))
    shapes = {(part.num_rows, part.length) for part in parts}
    assert len(shapes) <= len(packing.length_buckets(300, 32))
    for part in parts:
        assert len(part.rows) <= part.num_rows and part.num_rows % multiple == 0
        assert max(lengths[row] for row in part.rows) <= part.length
        assert part.num_rows * part.length <= max(budget, multiple * part.length)


def test_length_buckets_and_taking_and_putting_back():
    assert packing.length_buckets(300, 32) == [32, 48, 64, 96, 128, 192, 256, 300] and packing.length_buckets(64) == [64]
    with pytest.raises(ValueError, match="301"):
        packing.pack([301], budget=10, max_length=300)
    batch = make_batch(5, 20)
    lengths = (batch.roles != PAD).sum(axis=1)
    parts = packing.pack(lengths, budget=24, max_length=24, shortest=8)
    micro = [packing.take(batch, part) for part in parts]
    assert {x.tokens.shape for x in micro} <= {(3, 8), (2, 12), (1, 16), (1, 24)} and len(parts) > 2
    assert all(not x.row_valid[len(part.rows):].any() for x, part in zip(micro, parts, strict=True))
    back = packing.put_back(parts, [x.old_logprobs for x in micro], batch.tokens.shape)
    np.testing.assert_array_equal(back, np.where(np.arange(20) < back.astype(bool).sum(1)[:, None], batch.old_logprobs, 0))
    assert (back.astype(bool).sum(axis=1) >= lengths).all()


@pytest.mark.parametrize("reduction", ["sequence_mean", ("fixed_length", 40)])
def test_the_packed_step_is_the_whole_batchs(reduction):
    batch = make_batch(8, 20)
    whole = make_update(CONFIG, "ppo_clip", SGD, reduction=reduction, **OPTIONS)
    packed = make_packed_update(CONFIG, "ppo_clip", SGD, reduction=reduction, **OPTIONS)

    def copy():
        return jax.tree.map(lambda x: x.copy(), PARAMS)

    want, _, want_info = whole(copy(), SGD.init(PARAMS), batch)
    parts = packing.pack((batch.roles != PAD).sum(axis=1), budget=40, max_length=20, shortest=16)
    assert len({part.length for part in parts}) > 1
    got, _, info = packed(copy(), SGD.init(PARAMS), [packing.take(batch, part) for part in parts])
    close(got, want)
    assert {name: float(x) for name, x in info.items()} == pytest.approx(
        {name: float(x) for name, x in want_info.items()}, abs=1e-5)


def test_nothing_compiles_after_the_warm_up():
    packed = make_packed_update(CONFIG, "ppo_clip", SGD, **OPTIONS)
    params, state = jax.tree.map(lambda x: x.copy(), PARAMS), SGD.init(PARAMS)
    seen, counts = set(), []
    for seed in range(6):
        batch = make_batch(8, 20 - seed, seed)  # the batch's own width changes from step to step
        parts = packing.pack((batch.roles != PAD).sum(axis=1), budget=40, max_length=20, shortest=12)
        seen |= {(part.num_rows, part.length) for part in parts}
        params, state, _ = packed(params, state, [packing.take(batch, part) for part in parts])
        counts.append({name: program.jitted._cache_size() for name, program in packed.programs.items()})
    # One program a shape, and no more than the ladder has lengths, whatever comes.
    assert counts[-1]["add"] == len(seen) <= len(packing.length_buckets(20, 12))
    assert counts[-1]["finish"] == 1
    warm = counts[-1]
    for seed in range(6):
        batch = make_batch(8, 20 - seed, seed)
        parts = packing.pack((batch.roles != PAD).sum(axis=1), budget=40, max_length=20, shortest=12)
        params, state, _ = packed(params, state, [packing.take(batch, part) for part in parts])
    assert {name: program.jitted._cache_size() for name, program in packed.programs.items()} == warm


def test_fixed_length_needs_its_length():
    with pytest.raises(ValueError, match="fixed_length"):
        make_packed_update(CONFIG, "ppo_clip", SGD, chunk=8, reduction="fixed_length")


def test_remat_changes_no_gradient():
    def step(remat):
        return make_update(CONFIG, "ppo_clip", SGD, remat=remat, **OPTIONS)(
            jax.tree.map(lambda x: x.copy(), PARAMS), SGD.init(PARAMS), make_batch(4, 12))[0]

    want = step("none")
    for name in REMAT:
        close(step(name), want, 1e-5)


def test_a_token_is_valued_by_what_stands_before_it():
    value_params = init_value(CONFIG, PARAMS, jax.random.key(1), scale=1.0)
    batch = make_batch(4, 12)
    valid = role_masks.attention_mask(batch.roles)
    values = np.asarray(make_value_score(CONFIG)(value_params, batch.tokens, valid))
    assert not values[:, 0].any() and not values[~np.asarray(valid)].any()
    changed = batch.tokens.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 23
    other = np.asarray(state_values(value_params, CONFIG, changed, valid))
    np.testing.assert_allclose(other[:, :6], values[:, :6], atol=1e-6)  # token 5's own value has not read it
    later = np.asarray(valid)[:, 6]
    assert (np.abs(other[later, 6] - values[later, 6]) > 1e-6).all()
    close(make_value_score(CONFIG, microbatch_rows=2)(value_params, batch.tokens, valid), values)


def test_the_value_model_learns_the_returns_in_parts_as_whole():
    batch = make_batch(8, 20)
    batch = batch.replace(values=np.zeros_like(batch.values),
                          returns=np.where(batch.roles == POLICY, batch.returns, np.nan).astype(np.float32))
    adam = optax.adam(0.02)
    update, packed = (make_value_update(CONFIG, adam, clip=0.0, packed=packed) for packed in (False, True))

    def start():
        return init_value(CONFIG, PARAMS, jax.random.key(1))

    params = start()
    state, errors = adam.init(params), []
    parts = packing.pack((batch.roles != PAD).sum(axis=1), budget=80, max_length=20, shortest=20)
    in_parts, _, packed_info = packed(start(), adam.init(params), [packing.take(batch, part) for part in parts])
    for step in range(40):
        params, state, info = update(params, state, batch)
        errors.append(float(info["value_error"]))
        if step == 0:
            close(in_parts, params, 1e-5)
            assert float(packed_info["loss"]) == pytest.approx(float(info["loss"]), rel=1e-5)
    mask = (batch.roles == POLICY) & batch.row_valid[:, None]
    assert errors[0] == pytest.approx((batch.returns[mask] ** 2).mean(), rel=1e-5)  # the head begins at 0
    assert errors[-1] < 0.3 * errors[0] and float(info["nonfinite"]) == 0


def test_adapters_take_the_same_step_in_parts_and_as_a_whole():
    adapters, batch = LoraConfig(rank=2), make_batch(6, 12)

    def start():
        return jax.tree.map(lambda x: x + 0.1, lora.init_adapters(CONFIG, adapters, jax.random.key(1)))

    options = dict(OPTIONS, assemble=lora.assembler(adapters))
    parts = [packing.take(batch, part) for part in packing.pack(
        (batch.roles != PAD).sum(axis=1), budget=24, max_length=12, multiple=1, shortest=8)]
    assert len(parts) > 1
    whole, _, info = make_update(CONFIG, "ppo_clip", SGD, microbatch_rows=3, **options)(
        start(), SGD.init(start()), batch, None, PARAMS)
    packed, _, packed_info = make_packed_update(CONFIG, "ppo_clip", SGD, **options)(
        start(), SGD.init(start()), parts, None, PARAMS)
    close(packed, whole, atol=1e-5)
    close(packed_info, info, atol=1e-5)
    assert jax.tree.structure(whole) == jax.tree.structure(start())  # the rest gets no gradient
    assert min(np.abs(a - b).max() for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(start()), strict=True)) > 1e-5


@pytest.mark.parametrize("algorithm", [dict(preset("rloo"), kl_coef=0.1), dict(preset("ppo"), whiten=True)])
def test_rows_without_signal_are_left_out_and_the_step_is_the_same(algorithm, monkeypatch):
    """The whole batch, which computes on every row and drops some in the loss, is what packed parts without them equal."""
    batch = make_batch(8, 24).replace(row_valid=np.arange(8) % 4 < 2)
    rewards = np.where((batch.roles == POLICY).any(1), np.random.default_rng(1).random(8), 0).astype(np.float32)
    batch = batch.replace(old_logprobs=None, ref_logprobs=None, values=None, advantages=None, returns=None,
                          rewards=np.eye(24, dtype=np.float32)[1] * rewards[:, None])
    # Adam would blow up the last bits of gradients near 0.
    plain = dict(learning_rate=0.1, chain=[dict(name="sgd", learning_rate="schedule")])
    settings = SimpleNamespace(kl_coef=0.1, step=9, key=jax.random.key(0))
    taken, original, found = [], packing.take, {}

    def take(batch, part):
        taken.append(part.rows)
        return original(batch, part)

    monkeypatch.setattr(packing, "take", take)
    for packed in (0, 48):
        learner = Learner(resolve(dict(
            algorithm=algorithm, rollout=dict(max_tokens=24, max_prompt_tokens=4, max_turn_tokens=4),
            optimizer=plain, value=dict(optimizer=plain), train=dict(microbatch_tokens=packed, minibatches=2)), check=False),
            CONFIG, make_mesh({}, jax.devices()[:1]))
        state = learner.start(params_of(0))
        taken.clear()
        scored = learner.score(state, learner.policy(state), batch)
        of_scores = {int(row) for rows in taken for row in rows}
        updated = learner.update(state, learner.assign_credit(scored, 0.1), settings)
        found[packed] = jax.tree.map(np.asarray, (updated[0].params, updated[0].value_params, updated[1]))
        dead = np.asarray(scored.old_logprobs)[~batch.row_valid]
        assert dead.any() == (not packed) and of_scores == ({0, 1, 4, 5} if packed else set(range(8)))
    close(found[48], found[0], atol=1e-5)
    taken.clear()
    scored = learner.score(state := learner.start(params_of(0)), learner.policy(state), batch.replace(
        row_valid=np.zeros(8, bool)))
    _, info = learner.update(state, learner.assign_credit(scored, 0.1), settings)
    assert not any(len(rows) for rows in taken) and info["grad_norm"] == 0  # a step without any signal
