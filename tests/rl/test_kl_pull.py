"""Zero reward and a KL term: one step from a perturbed policy brings it nearer to the reference, wherever the term stands.

The policy is a table of logits per position, so that the KL is known exactly and rows are drawn from the policy itself.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax.config import AlgorithmConfig
from zsjax.rl import credit, losses
from zsjax.types import POLICY, TokenBatch

B, T, V, SEEDS = 2048, 4, 50, 20


def exact_kl(logits, reference):
    p, q = jax.nn.log_softmax(logits), jax.nn.log_softmax(reference)
    return (jnp.exp(p) * (p - q)).sum()


def step(key, kl_in, kind, sign=1.0):
    """The relative change of the exact KL in one step of gradient descent."""
    keys = jax.random.split(key, 3)
    reference = jax.random.normal(keys[0], (T, V))
    logits = reference + 1.5 * jax.random.normal(keys[1], (T, V))
    tokens = jax.random.categorical(keys[2], logits, shape=(B, T))

    def of(logits):
        return jax.nn.log_softmax(logits)[jnp.arange(T), tokens]

    mask, old, ref = jnp.ones((B, T), bool), of(logits), of(reference)
    batch = TokenBatch(tokens=tokens, roles=jnp.full((B, T), POLICY), behavior_logprobs=old, old_logprobs=old,
                       ref_logprobs=ref, advantages=None, returns=None, values=None, rewards=jnp.zeros((B, T)),
                       group_id=jnp.zeros(B, int), row_valid=jnp.ones(B, bool))

    def objective(logits):
        new = of(logits)
        if kl_in == "loss":
            total, weight = losses.aggregate(losses.kl_penalty(new, ref, kind=kind), loss_mask=mask,
                                             reduction="token_mean")
            return sign * total / weight
        rewards = credit.kl_rewards(batch, loss_mask=mask, coef=sign, kind=kind)
        advantages, _ = credit.estimate(AlgorithmConfig(advantage="rloo"), batch.replace(rewards=rewards), loss_mask=mask)
        total, weight, _ = losses.ppo_clip(new, old, advantages, loss_mask=mask)
        return total / weight

    before = exact_kl(logits, reference)
    return exact_kl(logits - 0.3 * jax.grad(objective)(logits), reference) / before - 1


@pytest.mark.parametrize("kl_in, kind", [("loss", "k2"), ("loss", "k3"), ("reward", "k1"), ("reward", "k2"),
                                         ("reward", "k3")])
def test_one_step_lowers_the_kl(kl_in, kind):
    changes = jax.jit(jax.vmap(lambda key: step(key, kl_in, kind)))(jax.random.split(jax.random.key(0), SEEDS))
    mean, error = float(changes.mean()), float(changes.std(ddof=1) / np.sqrt(SEEDS))
    assert mean < -3 * error, (mean, error)


def test_the_wrong_sign_raises_it():
    changes = jax.jit(jax.vmap(lambda key: step(key, "reward", "k1", sign=-1.0)))(
        jax.random.split(jax.random.key(0), SEEDS))
    assert float(changes.mean()) > 0


def test_k3_in_the_reward_can_push_the_wrong_way():
    """Why credit.kl_rewards recommends k1: over few tokens, a policy that is sharper than the reference is driven off."""
    rng, change = np.random.default_rng(0), {"k1": [], "k3": []}
    for _ in range(200):
        reference = rng.normal(size=7)
        logits = 2 * reference + 0.5 * rng.normal(size=7)
        p, q = (np.exp(x) / np.exp(x).sum() for x in (logits, reference))
        d = np.log(p / q)
        for kind, values in change.items():
            cost = np.asarray(losses.kl_penalty(np.log(p), np.log(q), kind=kind))
            gradient = p * (cost - p @ cost)  # of the expected cost, by the score function: all a reward can do
            new = np.exp(logits - 0.3 * gradient)
            new /= new.sum()
            values.append(new @ np.log(new / q) / (p @ d) - 1)
    assert np.mean(change["k1"]) < -0.03 and np.mean(change["k3"]) > 0.005
