"""From what an episode earned to the advantage of each token: KL in the reward, the estimator, whitening.

    rewards = kl_rewards(batch, loss_mask=mask, coef=1e-3, kind="k1")         # if the KL is part of the reward
    batch = batch.replace(rewards=rewards)
    advantages, returns = estimate(algorithm, batch, loss_mask=mask)

An advantage of one's own is a function (batch: TokenBatch, *, loss_mask bool[B, T]) -> float[B, T] or float[B] (one an
episode); `algorithm.advantage = "package.module:function"` names it, and `train(advantage=function)` takes it directly.
"""

import importlib
from collections.abc import Callable

import jax.numpy as jnp

from zsjax.errors import InputError
from zsjax.rl import advantages, losses
from zsjax.types import TokenBatch

ADVANTAGES = ("grpo", "rloo", "reinforce", "reinforce_plus_plus", "gae")


def load_function(name: str, what: str) -> Callable:
    """The function "package.module:function"; ValueError says what cannot be loaded."""
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"cannot load the {what} {name!r}: {error}") from error
    if not callable(found):
        raise InputError(f"the {what} {name!r} is no function")
    return found


def load_advantage(name: str) -> Callable | None:
    """The function of "package.module:function", None for a name in `ADVANTAGES`; ValueError for any other."""
    if name in ADVANTAGES:
        return None
    if ":" not in name:
        raise InputError(f"unknown advantage {name!r}: one of {', '.join(ADVANTAGES)} or 'package.module:function'")
    return load_function(name, "advantage")


def kl_rewards(batch: TokenBatch, *, loss_mask, coef, kind):
    """rewards - coef * kl_penalty(old_logprobs, ref_logprobs): the KL to the reference as a cost of each token.

    Minus, so that drifting away costs: ZeroSearch's GRPO had the other sign and paid for it. The penalty is a number
    here, not a loss: no gradient flows through it, it acts through the advantages.

    k1 is the estimator to use here: its expected gradient is the KL's own. A reward f(d) has E[f(d) d logprobs], which
    for k3 is the gradient of KL(policy || ref) - KL(ref || policy): to second order nothing at the reference, and for
    a policy that is sharper than it, over few tokens, even of the wrong sign (tests/rl/test_kl_pull.py shows both). k2
    is weak in the same way. They are here since verl and others offer them, with the same values.

    Args:
      batch: rewards, old_logprobs and ref_logprobs are read, float32[B, T].
      loss_mask: bool[B, T], True at the tokens the policy sampled; elsewhere the result is 0.
      coef: float, >= 0, reward per nat.
      kind: "k1", "k2" or "k3".

    Returns:
      float32[B, T] rewards.
    """
    old, ref = (jnp.where(loss_mask, x, 0) for x in (batch.old_logprobs, batch.ref_logprobs))
    return jnp.where(loss_mask, batch.rewards, 0) - coef * losses.kl_penalty(old, ref, kind=kind)


def estimate(algorithm, batch: TokenBatch, *, loss_mask, own: Callable | None = None):
    """Advantages under an `AlgorithmConfig`.

    Args:
      algorithm: advantage, normalize, gamma, lam and whiten are read.
      batch: rewards, group_id and, for "gae", values are read.
      loss_mask: bool[B, T]. An episode whose row has no True (it is masked, see `AlgorithmConfig.mask`) counts in its
        group's and the batch's baseline all the same, as in TRL's `mask_truncated_completions`, but not in whitening.
      own: takes the place of `algorithm.advantage`.

    Returns:
      (advantages float32[B, T], returns float32[B, T] or None). An advantage per episode stands at every token of its
      row; the loss's mask decides which of them count.
    """
    own = own or load_advantage(algorithm.advantage)
    returns = None
    if own is not None:
        out = jnp.asarray(own(batch, loss_mask=loss_mask), jnp.float32)
        if out.shape not in (loss_mask.shape, loss_mask.shape[:1]):
            raise ValueError(f"the advantage {algorithm.advantage!r} returned {out.shape}, not [B, T] or [B] "
                             f"of {loss_mask.shape}")
        out = out if out.ndim == 2 else out[:, None]
    elif algorithm.advantage == "gae":
        out, returns = advantages.gae(batch.rewards, batch.values, loss_mask=loss_mask, gamma=algorithm.gamma,
                                      lam=algorithm.lam)
    elif algorithm.advantage == "reinforce_plus_plus":
        out = advantages.reinforce_plus_plus(batch.rewards, loss_mask=loss_mask, gamma=algorithm.gamma)
    else:
        scores = batch.rewards.sum(axis=1)
        out = {
            "grpo": lambda: advantages.grpo(scores, group_id=batch.group_id, normalize=algorithm.normalize),
            "rloo": lambda: advantages.rloo(scores, group_id=batch.group_id),
            "reinforce": lambda: advantages.reinforce(scores, baseline="batch"),
        }[algorithm.advantage]()[:, None]
    out = jnp.broadcast_to(out, loss_mask.shape)
    if algorithm.whiten:
        out = advantages.whiten(out, loss_mask=loss_mask)
    return out, returns
