"""The same numbers as verl's and TRL's own functions on the same inputs (peers.json says which), where they mean the same.

Where they do not, the test says what differs, and the function's docstring says why.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax import schedules
from zsjax.config import AlgorithmConfig
from zsjax.rl import advantages, credit, losses
from zsjax.types import TokenBatch

PEERS = json.loads((pathlib.Path(__file__).parent / "peers.json").read_text())
INPUTS = {name: np.array(value) for name, value in PEERS["inputs"].items()}
MASK, OUT = INPUTS["mask"] == 1, PEERS["outputs"]
N = MASK.sum()
REDUCTIONS = {"token_mean": "token_mean", "sequence_mean": "sequence_mean", "fixed_length": ("fixed_length", MASK.shape[1])}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def close(got, want, atol=1e-9):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=0, atol=atol)


def value_and_grad(loss, first, *rest, **options):
    def mean(first):
        loss_sum, weight, _ = loss(first, *map(jnp.asarray, rest), loss_mask=jnp.asarray(MASK), **options)
        return loss_sum / weight

    return jax.value_and_grad(mean)(jnp.asarray(first))


def test_verl_gae():
    want = OUT["verl compute_gae_advantage_return"]
    got, returns = advantages.gae(INPUTS["rewards"], INPUTS["values"], loss_mask=MASK, gamma=want["gamma"], lam=want["lam"])
    close(returns[MASK], np.array(want["returns"])[MASK])
    # verl whitens inside, with the unbiased variance; `whiten` has the population's.
    white = advantages.whiten(got, loss_mask=MASK)
    close(white[MASK] * np.sqrt((N - 1) / N), np.array(want["whitened"])[MASK], 1e-7)


def test_verl_group_baselines():
    scores, groups = INPUTS["scores"], INPUTS["group_id"]
    several = np.array([(groups == g).sum() > 1 for g in groups])
    for got, want in (
        (advantages.grpo(scores, group_id=groups), OUT["verl compute_grpo_outcome_advantage norm=True"]),
        (advantages.grpo(scores, group_id=groups, normalize=False), OUT["verl compute_grpo_outcome_advantage norm=False"]),
        (advantages.rloo(scores, group_id=groups), OUT["verl compute_rloo_outcome_advantage"]),
    ):
        close(np.asarray(got)[several], np.array(want)[several])
        # A group of one has nothing to be compared with: ours is 0, verl gives back the score (over 1 + eps).
        close(np.asarray(got)[~several], 0)
        close(np.array(want)[~several], scores[~several], 1e-5)


def test_verl_reinforce_plus_plus():
    want = OUT["verl compute_reinforce_plus_plus_outcome_advantage"]
    got = advantages.reinforce_plus_plus(INPUTS["rewards"], loss_mask=MASK, gamma=want["gamma"])
    close(got * np.sqrt((N - 1) / N), want["advantages"], 1e-7)  # the same difference in variance as above


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name, loss", [("vanilla", losses.ppo_clip), ("gspo", losses.gspo)])
def test_verl_policy_losses(name, loss, reduction):
    want = OUT[f"verl compute_policy_loss_{name} {reduction}"]
    options = dict(clip_low=want["clip_ratio_low"], clip_high=want["clip_ratio_high"], reduction=REDUCTIONS[reduction],
                   token_weights=INPUTS["weights"])
    if name == "vanilla":
        options["dual_clip"] = want["clip_ratio_c"]
    got, grad = value_and_grad(loss, INPUTS["new"], INPUTS["old"], INPUTS["advantages"], **options)
    close(got, want["loss"], 1e-8)  # verl adds 1e-8 to the tokens of a row
    close(grad, want["grad"], 1e-8)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_verl_value_loss(reduction):
    want = OUT[f"verl compute_value_loss {reduction}"]
    got, grad = value_and_grad(losses.value_clip, INPUTS["values"], INPUTS["old_values"], INPUTS["rewards"],
                               clip=want["clip"], reduction=REDUCTIONS[reduction])
    close(got, want["loss"], 1e-8)
    close(grad, want["grad"], 1e-8)


def test_verl_kl():
    for kind in ("k1", "k2", "k3"):
        close(losses.kl_penalty(INPUTS["new"], INPUTS["ref"], kind=kind), OUT[f"verl kl_penalty_forward {kind}"])
    want = OUT["verl AdaptiveKLController"]
    coef = np.float32(want["start"])
    for kl, then in zip(want["kls"], want["coefs"], strict=True):
        coef = schedules.follow_kl(coef, kl, target=want["target"], horizon=want["horizon"], episodes=want["episodes"])
        assert coef.dtype == np.float32
        close(coef, then, 1e-7)


def test_trl_rloo_with_k1_in_the_reward():
    want = OUT["trl RLOOTrainer._generate_and_score_completions"]
    last = MASK.shape[1] - 1 - np.argmax(MASK[:, ::-1], axis=1)
    rewards = np.zeros(MASK.shape)
    rewards[np.arange(len(last)), last] = INPUTS["scores"]
    rewards = np.where(MASK, rewards, 0)
    batch = TokenBatch(**dict.fromkeys(TokenBatch.__dataclass_fields__)).replace(
        rewards=rewards, old_logprobs=INPUTS["old"], ref_logprobs=INPUTS["ref"], group_id=np.array(want["group_id"]))
    batch = batch.replace(rewards=credit.kl_rewards(batch, loss_mask=MASK, coef=want["beta"], kind="k1"))
    got, _ = credit.estimate(AlgorithmConfig(advantage="rloo"), batch, loss_mask=jnp.asarray(MASK))
    # The last row has no policy token: ours earned nothing, TRL's has its score. It stands in group 1.
    group = np.array(want["group_id"]) == 0
    assert MASK[group].any(axis=1).all()
    close(got[group, 0], np.array(want["advantages"])[group], 1e-9)


@pytest.mark.parametrize("level, loss", [("token", losses.ppo_clip), ("sequence", losses.gspo)])
def test_trl_grpo_loss(level, loss):
    want = OUT[f"trl GRPOTrainer._compute_loss {level}"]

    def mean(new):
        options = dict(loss_mask=MASK, reduction="sequence_mean")
        policy, weight, _ = loss(new, INPUTS["old"], INPUTS["scores"][:, None], clip_low=want["clip_low"],
                                 clip_high=want["clip_high"], **options)
        kl, _ = losses.aggregate(losses.kl_penalty(new, INPUTS["ref"], kind="k3"), **options)
        return (policy + want["beta"] * kl) / weight

    got, grad = jax.value_and_grad(mean)(jnp.asarray(INPUTS["new"]))
    # TRL's mean is over all rows; ours over those with a token.
    rows = MASK.any(axis=1).mean()
    close(got * rows, want["loss"])
    close(grad * rows, want["grad"])
