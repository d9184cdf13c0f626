"""Schedules: hand numbers, the linear limit of zero_search, jit, vmap and optax composition."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsjax import schedules
from zsjax.config import resolve
from zsjax.rl.steering import curriculum, next_control, start_control


def test_zero_search_gives_the_papers_numbers():
    noise = schedules.zero_search(0.0, 0.5, 203)
    got = [float(noise(i)) for i in (0, 25, 50, 101, 150, 203, 204, 10**6)]
    np.testing.assert_allclose(got, [0, 0.031, 0.068, 0.166, 0.298, 0.5, 0.5, 0.5], atol=5e-4)
    noise = schedules.zero_search(0.25, 0.5, 203)
    got = [float(noise(i)) for i in (0, 25, 50, 101, 150, 203)]
    np.testing.assert_allclose(got, [0.25, 0.266, 0.284, 0.333, 0.399, 0.5], atol=5e-4)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(st.floats(-2, 2), st.floats(-2, 2), st.integers(1, 5000), st.floats(-12, 12), st.integers(-5, 6000))
def test_zero_search_equals_its_formula_in_high_precision(start, end, total, log_base, count):
    base = math.exp(log_base)
    x = min(max(count, 0) / total, 1.0)
    log_base = math.log(base)
    shape = x if abs(log_base) < 1e-12 else math.expm1(x * log_base) / math.expm1(log_base)
    want = start + shape * (end - start)
    got = schedules.zero_search(start, end, total, base)(count)
    assert got.dtype == jnp.float32 and got.shape == ()
    assert abs(float(got) - want) < 5e-6


@pytest.mark.parametrize("base", [1.0, 1 + 1e-7, 1 - 1e-7, 1 + 1e-12, 1 + 2.3e-16])
def test_zero_search_near_base_one_is_linear(base):
    schedule = jax.jit(schedules.zero_search(0.0, 1.0, 1000, base))
    for count in (1, 250, 500, 999):
        assert abs(float(schedule(count)) - count / 1000) < 3e-7


def test_extreme_bases_stay_finite_and_bounded():
    for base in (1e-300, 1e-40, 1e40, 1e300):
        values = jax.vmap(schedules.zero_search(0.0, 1.0, 10, base))(jnp.arange(11))
        assert bool(jnp.all((values >= 0) & (values <= 1))) and float(values[0]) == 0 and float(values[10]) == 1


def test_other_schedules_by_hand():
    linear = schedules.linear(1.0, 3.0, 4)
    assert [float(linear(i)) for i in (-1, 0, 1, 2, 4, 9)] == [1, 1, 1.5, 2, 3, 3]
    cosine = schedules.cosine(0.0, 2.0, 4)
    np.testing.assert_allclose([float(cosine(i)) for i in (0, 1, 2, 3, 4, 5)],
                               [0, 1 - math.sqrt(0.5), 1, 1 + math.sqrt(0.5), 2, 2], atol=1e-6)
    stairs = schedules.step([0.1, 0.2, 0.4], [5, 10])
    np.testing.assert_allclose([float(stairs(i)) for i in (0, 4, 5, 9, 10, 99)], [0.1, 0.1, 0.2, 0.2, 0.4, 0.4])
    assert float(schedules.step([0.3], [])(7)) == pytest.approx(0.3)
    assert float(schedules.constant(0.25)(7)) == 0.25
    back = schedules.reverse(linear, 4)
    assert [float(back(i)) for i in (-1, 0, 1, 4, 5)] == [3, 3, 2.5, 1, 1]


FACTORIES = {
    "zero_search": schedules.zero_search(0.0, 0.5, 7),
    "constant": schedules.constant(0.5),
    "linear": schedules.linear(0.0, 1.0, 7),
    "cosine": schedules.cosine(0.0, 1.0, 7),
    "step": schedules.step([0.0, 1.0], [3]),
    "reverse": schedules.reverse(schedules.zero_search(0.0, 0.5, 7), 7),
    "joined": optax.join_schedules([schedules.constant(0.0), schedules.zero_search(0.0, 0.5, 5)], [3]),
}


@pytest.mark.parametrize("name", FACTORIES)
def test_traced_counts_give_the_same_float32(name):
    schedule = FACTORIES[name]
    counts = np.arange(10, dtype=np.int32)
    want = np.array([schedule(int(c)) for c in counts])
    for got in (jax.vmap(schedule)(counts), jax.jit(jax.vmap(schedule))(counts)):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-7)
    with jax.enable_x64(True):
        assert jax.jit(schedule)(np.int64(2)).dtype == jnp.float32


def test_held_exactly_at_the_end():
    for make in (schedules.zero_search, schedules.linear, schedules.cosine):
        schedule = make(0.1, 0.7, 9)
        assert float(schedule(9)) == float(schedule(10)) == float(np.float32(0.7))
        assert float(schedule(0)) == float(np.float32(0.1))


def test_impossible_arguments_are_refused():
    for make in (lambda n: schedules.zero_search(0, 1, n), lambda n: schedules.linear(0, 1, n),
                 lambda n: schedules.cosine(0, 1, n), lambda n: schedules.reverse(schedules.constant(1), n)):
        for n in (0, -3):
            with pytest.raises(ValueError, match="total_steps"):
                make(n)
    for base in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="base"):
            schedules.zero_search(0, 1, 10, base)
    for values, boundaries in (([1.0], [1]), ([1.0, 2.0, 3.0], [5, 5]), ([1.0, 2.0], [])):
        with pytest.raises(ValueError):
            schedules.step(values, boundaries)


def test_noise_follows_the_reward_and_holds_the_target():
    state = np.float32(0.0), np.float32(np.nan)
    options = dict(target=0.6, rate=0.2, decay=0.5, low=0.0, high=0.5)
    noise, average = schedules.follow_reward(*state, 0.8, **options)
    assert (noise.dtype, average.dtype) == (np.float32, np.float32)
    assert float(average) == pytest.approx(0.8) and float(noise) == pytest.approx(0.2 * 0.2)
    noise, average = schedules.follow_reward(noise, average, 0.2, **options)
    assert float(average) == pytest.approx(0.5) and float(noise) == pytest.approx(0.04 - 0.2 * 0.1)
    for reward, bound in ((1.0, 0.5), (0.0, 0.0)):
        for _ in range(50):
            noise, average = schedules.follow_reward(noise, average, reward, **options)
        assert float(noise) == bound
    # A policy that earns 1 - noise comes to rest where it earns the target.
    for _ in range(200):
        noise, average = schedules.follow_reward(noise, average, 1 - float(noise), **options)
    assert float(noise) == pytest.approx(0.4, abs=1e-3)


def test_the_kl_coefficient_follows_the_kl():
    def follow(coef, kl):
        return float(schedules.follow_kl(coef, kl, target=0.1, horizon=1000, episodes=100))

    assert follow(1.0, 0.1) == 1.0
    assert follow(1.0, 9.0) == pytest.approx(1.02) and follow(1.0, 0.0) == pytest.approx(0.98)  # at most 20 % a horizon
    assert follow(1.0, 0.11) == pytest.approx(1.01)


@pytest.mark.parametrize("options, want", [
    (dict(schedule="constant", end=0.3), [0.3] * 5),
    (dict(schedule="linear", start=0.0, end=0.4), [0, 0.1, 0.2, 0.3, 0.4]),
    (dict(schedule="linear", start=0.0, end=0.4, reverse=True), [0.4, 0.3, 0.2, 0.1, 0]),
    (dict(schedule="cosine", start=0.0, end=1.0), [0, 0.14645, 0.5, 0.85355, 1]),
    (dict(schedule="zero_search", start=0.0, end=1.0, base=4.0), [0, 0.13807, 1 / 3, 0.60948, 1]),
    (dict(schedule="step", values=[0.1, 0.6], boundaries=[2]), [0.1, 0.1, 0.6, 0.6, 0.6]),
])
def test_curricula_of_the_config(options, want):
    config = resolve(dict(curriculum=options), check=False).curriculum
    np.testing.assert_allclose([float(curriculum(config, 4)(i)) for i in range(5)], want, atol=1e-5)


def test_the_adaptive_curriculum_has_no_schedule_but_a_state():
    config = resolve(dict(curriculum=dict(schedule="adaptive", start=0.1, end=0.5, target=0.5, rate=0.1, decay=0.0),
                          algorithm=dict(kl_coef=0.2, kl_target=0.1)), check=False)
    assert curriculum(config.curriculum, 4) is None
    control = jax.device_get(start_control(config))
    after = next_control(config, control, {"reward": 1.0, "kl": 1.0})
    assert float(control["noise"]) == pytest.approx(0.1) and float(after["noise"]) == pytest.approx(0.15)
    assert float(after["kl_coef"]) > float(control["kl_coef"]) == pytest.approx(0.2)
    assert {name: value.dtype for name, value in after.items()} == dict.fromkeys(control, np.float32)
    assert next_control(config, control, {"reward": 1.0})["kl_coef"] == control["kl_coef"]  # nothing was measured
