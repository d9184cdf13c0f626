"""Algorithms as data: each name is a choice of advantage, loss, reduction and bounds, fields of `AlgorithmConfig`.

    c.algorithm = algorithms.preset("rloo", kl_coef=1e-3)

There is no class per algorithm. What differs between them are the functions of `zsjax.rl.advantages` and
`zsjax.rl.losses` that are composed, and any field can be set after the preset; so every mixture is one more dict.
"""

from zsjax.errors import InputError
from zsjax.rl.objective import OBJECTIVE_TERMS

PRESETS: dict[str, dict] = {
    # Williams 1992, with the batch's mean as baseline.
    "reinforce": dict(advantage="reinforce", loss="ppo_clip"),
    # Hu 2025 (arXiv 2501.03262): k1 in the reward, discounted returns whitened over the batch.
    "reinforce_plus_plus": dict(advantage="reinforce_plus_plus", loss="ppo_clip", kl_coef=1e-3, kl_in="reward",
                                kl_kind="k1"),
    # Ahmadian et al. 2024 (arXiv 2402.14740).
    "rloo": dict(advantage="rloo", loss="ppo_clip"),
    # Shao et al. 2024 (arXiv 2402.03300) without its KL term, which the paper weighs 0.04.
    "grpo": dict(advantage="grpo", loss="ppo_clip"),
    # Liu et al. 2025 (arXiv 2503.20783): no division by the group's deviation or the answer's length.
    "dr_grpo": dict(advantage="grpo", normalize=False, loss="ppo_clip", reduction="fixed_length"),
    # Yu et al. 2025 (arXiv 2503.14476): the band is wider above, groups without a signal are dropped and replaced, tokens
    # count alike, episodes that were cut off teach nothing.
    "dapo": dict(advantage="grpo", loss="ppo_clip", clip_high=0.28, drop_equal_groups=True, refill_rounds=2,
                 mask=("truncated",)),
    # Zheng et al. 2025 (arXiv 2507.18071): one ratio a sequence.
    "gspo": dict(advantage="grpo", loss="gspo", clip_low=3e-4, clip_high=4e-4, reduction="sequence_mean"),
    # Schulman et al. 2017 (arXiv 1707.06347) with a value model; advantages whitened over the batch.
    "ppo": dict(advantage="gae", value_model=True, whiten=True, loss="ppo_clip"),
}


def preset(name: str, **fields) -> dict:
    """Fields of `AlgorithmConfig` for an algorithm's name; `fields` are set on top.

    Raises:
      ValueError: unknown name.
    """
    if name not in PRESETS:
        raise InputError(f"unknown algorithm {name!r}: one of {', '.join(PRESETS)}")
    return {**PRESETS[name], **fields}


def needs_reference(algorithm) -> bool:
    """Whether an `AlgorithmConfig` has every step scored by the reference, too."""
    needs = (OBJECTIVE_TERMS.entry(name).needs for name in algorithm.terms)
    return bool(algorithm.track_kl or algorithm.kl_coef or algorithm.kl_target or any("reference" in of for of in needs))
