"""Curricula and other schedules: factories in optax's manner, each returning a function count -> float32.

    noise = zero_search(0.0, 0.5, total_steps=203)
    noise(101)                                                # 0.166, with a Python, numpy or traced count
    easy_then_hard = optax.join_schedules([constant(0.0), linear(0.0, 0.5, 100)], boundaries=[50])

Constants are computed in float64 when a schedule is made; with a count comes only float32 arithmetic, so schedules
can stand inside jit and vmap. Counts are scalars or arrays; below 0 they count as 0.
"""

import itertools
import math

import jax.numpy as jnp
import numpy as np


def _check_steps(total_steps):
    if not total_steps > 0:
        raise ValueError(f"total_steps={total_steps} must be > 0")


def _between(start, end, total_steps, shape):
    """count -> start + shape(count / total_steps) * (end - start), and exactly `end` from total_steps on."""
    _check_steps(total_steps)
    start, end, total_steps = float(start), float(end), float(total_steps)

    def schedule(count):
        count = jnp.asarray(count, jnp.float32)
        fraction = jnp.clip(count / jnp.float32(total_steps), 0, 1)
        value = jnp.float32(start) + shape(fraction) * jnp.float32(end - start)
        return jnp.where(count >= total_steps, jnp.float32(end), value)

    return schedule


def zero_search(start, end, total_steps, base=4.0):
    """ZeroSearch's curriculum: the probability of noisy documents, rising slowly first.

      start + (base^(i/m) - 1) / (base - 1) * (end - start),  i = count, m = total_steps,
    held at `end` from m on. Sun et al. 2025 (arXiv 2505.04588), section 3.4; `dynamic_threshold` in their code.

    Args:
      start, end: values at count 0 and from total_steps on.
      total_steps: m, the steps that will really run.
      base: > 1 rises late, < 1 early; towards 1 this becomes `linear`, and is computed accurately there.

    Returns:
      count -> float32.

    Raises:
      ValueError: total_steps <= 0, or base <= 0 or not finite.
    """
    if not (base > 0 and math.isfinite(base)):
        raise ValueError(f"base={base} must be > 0 and finite")
    # base^x - 1 = expm1(x ln(base)). Written with base^x - 1 in float32, base 1 + 1e-7 gives 0 half-way and not 0.5.
    log_base = math.log1p(base - 1) if base > 0.5 else math.log(base)
    if log_base == 0:
        return _between(start, end, total_steps, lambda x: x)
    if log_base < 0:
        return _between(start, end, total_steps, lambda x: jnp.expm1(log_base * x) / math.expm1(log_base))
    # Multiplied through by base^-1, so that no base overflows.
    return _between(start, end, total_steps,
                    lambda x: jnp.exp(log_base * (x - 1)) * (jnp.expm1(-log_base * x) / math.expm1(-log_base)))


def constant(value):
    """count -> float32 `value`."""
    return lambda count: jnp.full(jnp.shape(count), value, jnp.float32)


def linear(start, end, total_steps):
    """start + count / total_steps * (end - start), held at `end`; ValueError for total_steps <= 0."""
    return _between(start, end, total_steps, lambda x: x)


def cosine(start, end, total_steps):
    """start + (end - start) * (1 - cos(pi count / total_steps)) / 2, held at `end`; ValueError for total_steps <= 0."""
    # sin^2(x / 2) is (1 - cos(x)) / 2 without its cancellation near 0.
    return _between(start, end, total_steps, lambda x: jnp.sin(0.5 * math.pi * x) ** 2)


def step(values, boundaries):
    """A staircase: values[0] before boundaries[0], values[i + 1] from count >= boundaries[i] on.

    Args:
      values: sequence of n + 1 floats.
      boundaries: sequence of n counts, rising.

    Returns:
      count -> float32.

    Raises:
      ValueError: the lengths do not fit, or the boundaries do not rise.
    """
    if len(values) != len(boundaries) + 1:
        raise ValueError(f"{len(boundaries)} boundaries need {len(boundaries) + 1} values, not {len(values)}")
    if any(a >= b for a, b in itertools.pairwise(boundaries)):
        raise ValueError(f"boundaries={list(boundaries)} must rise")
    values, boundaries = [float(v) for v in values], list(boundaries)

    def schedule(count):
        count = jnp.asarray(count)
        passed = sum((count >= b).astype(jnp.int32) for b in boundaries) if boundaries else jnp.zeros_like(count, int)
        return jnp.asarray(values, jnp.float32)[passed]

    return schedule


def reverse(schedule, total_steps):
    """count -> schedule(clip(total_steps - count, 0, total_steps)); ValueError for total_steps <= 0."""
    _check_steps(total_steps)
    return lambda count: jnp.asarray(schedule(jnp.clip(total_steps - jnp.asarray(count), 0, total_steps)), jnp.float32)


def follow_reward(noise, average, reward, *, target, rate, decay, low, high):
    """One step of the adaptive curriculum: harder while the policy earns more than `target`, easier while less.

      average' = decay * average + (1 - decay) * reward        (the reward itself where average is NaN: the first step)
      noise'   = clip(noise + rate * (average' - target), low, high)
    An integral controller: at rest the policy's recent reward is the target. Unlike a schedule it needs a state, which a
    run keeps in `TrainState.control`.

    Args:
      noise, average: the state; start with (low, NaN).
      reward: the step's mean reward.
      target: the reward to hold.
      rate: change of noise per step and unit of reward.
      decay: 0 to below 1; how slowly the average forgets.
      low, high: bounds of the noise.

    Returns:
      (noise', average'), numpy float32.
    """
    # Rounded to float32 at every step, as checkpoints keep them: a resumed run goes on with the same numbers.
    average = np.float32(reward if np.isnan(average) else decay * average + (1 - decay) * reward)
    return np.float32(np.clip(noise + rate * (average - target), low, high)), average


def follow_kl(coef, kl, *, target, horizon, episodes):
    """One step of the adaptive KL coefficient of Ziegler et al. 2019 (arXiv 1909.08593), section 2.2.

      coef' = coef * (1 + clip(kl / target - 1, -0.2, 0.2) * episodes / horizon)
    verl's and TRL's `AdaptiveKLController.update` (fixtures in tests/rl/peers.json).

    Args:
      coef: the coefficient so far, > 0.
      kl: measured KL, in the unit of `target` (nats per token).
      target: KL to hold, > 0.
      horizon: episodes in which the coefficient may change by about 20 %.
      episodes: in this step.

    Returns:
      numpy float32.
    """
    error = np.clip(kl / target - 1, -0.2, 0.2)
    return np.float32(coef * (1 + error * episodes / horizon))
