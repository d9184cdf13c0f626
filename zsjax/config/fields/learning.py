"""Fields of learning: optimizer, algorithm, rewards, alarms and the sizes of the loops."""

import dataclasses

from zsjax.config.declare import COUNT, REMAT, SHARE, TOKENS, fast, field, free, group, later, limit


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """An optax chain: clip by global norm, AdamW, learning-rate schedule."""

    learning_rate: float = field(1e-6, "its peak", "(0, 1000]")
    schedule: str = field("constant", "after warmup_steps", choices=("constant", "linear", "cosine"))
    warmup_steps: int = field(0, "the rate rises linearly over these", "[0, 1e9]", unit="steps")
    final_fraction: float = field(0.1, "share of the rate that is left at the end", SHARE)
    b1: float = field(0.9, "AdamW's", "[0, 1)")
    b2: float = field(0.999, "AdamW's", "[0, 1)")
    weight_decay: float = field(0.0, "AdamW's, of matrices only", "[0, 1000]")
    clip_norm: float = field(1.0, "of the whole gradient; 0: no clip", "[0, 1e9]")
    chain: tuple[dict, ...] = field(
        (), 'any optax chain in place of clip and AdamW: dicts of a transformation\'s name in optax and its arguments, as '
        '[dict(name="clip_by_global_norm", max_norm=1.0), dict(name="lion", learning_rate="schedule")]; "schedule" is '
        'the learning-rate schedule; b1, b2, weight_decay and clip_norm are then ignored')
    master_weights: bool = field(
        True, "parameters narrower than float32 are updated in float32 copies, which the optimizer keeps")


@dataclasses.dataclass(frozen=True)
class AlgorithmConfig:
    """How rewards become a loss."""

    advantage: str = field("grpo", "how a reward becomes an advantage", names="function",
                           choices=("zsjax.rl.credit:ADVANTAGES",))
    loss: str = field("ppo_clip", "the policy's loss", names="function", choices=("zsjax.rl.objective:LOSSES",))
    terms: dict = field({}, "further terms of the objective, name -> coefficient: functions (batch, logprobs, *, "
                        'loss_mask, entropy) -> float[B, T], as "package.module:function" (zsjax.rl.objective.Term)')
    scorers: dict = field({}, 'other models that score tokens, name -> "package.module:function": a function (config, mesh) '
                          "-> scorer(batch) -> float32[B, T]; batch.extra[name] holds the result for terms and losses")
    normalize: bool = field(True, "GRPO divides by the group's deviation")
    kl_coef: float = field(0.0, "weight of the KL to the reference", "[0, 1e6]")
    kl_kind: str = field("k3", "its estimator: k2 or k3 as a loss; k1 in the reward, where k2 and k3 pull little "
                         "(zsjax.rl.credit.kl_rewards)", choices=("k1", "k2", "k3"))
    track_kl: bool = field(True, "log the KL even when kl_coef is 0; costs a copy of the reference and a forward pass")
    clip_low: float = field(0.2, "the ratio is clipped below 1 - this", "[0, 1e6]")
    clip_high: float = field(0.2, "the ratio is clipped above 1 + this", "[0, 1e6]")
    entropy_coef: float = field(0.0, "> 0 rewards entropy", "[0, 1e6]")
    reduction: str = field("token_mean", '"fixed_length" divides by rollout.max_tokens',
                           choices=("token_mean", "sequence_mean", "fixed_length"))
    invert_mask: bool = field(False, "an ablation that trains on every token but the policy's")
    kl_in: str = field("loss", "where the KL counts: in the loss, or as a cost of tokens", choices=("loss", "reward"))
    kl_target: float = field(0.0, "KL that an adaptive kl_coef holds; 0: fixed", "[0, 1e6]", unit="nats per token")
    kl_horizon: int = field(10_000, "episodes in which an adaptive kl_coef changes by about 20 %", COUNT, unit="episodes")
    gamma: float = field(1.0, 'of "gae" and "reinforce_plus_plus", per policy token', SHARE)
    lam: float = field(1.0, 'of "gae", per policy token', SHARE)
    value_model: bool = field(False, 'train a value model beside the policy (config.value), which "gae" needs')
    whiten: bool = field(False, "advantages get mean 0 and deviation 1 over the batch's policy tokens")
    dual_clip: float = field(0.0, "> 1 bounds the loss of a token with a negative advantage (zsjax.rl.losses.ppo_clip); "
                             "0: off", "[0, 1e6]")
    sampler_clip: float = field(0.0, "> 0 weighs tokens by min(trainer's / sampler's probability, this); 0: off", "[0, 1e6]")
    drop_equal_groups: bool = field(False, "groups whose rewards are all equal leave the loss")
    refill_rounds: int = field(0, "rounds at most in which further questions are played to replace them", "[0, 1000]")
    mask: tuple[str, ...] = field((), 'episodes that leave the loss: "truncated" (the context was full), "overlong" '
                                  '(reward.overlong_to)', choices=("truncated", "overlong"))


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """An episode's reward: the sum of weight * term, see zsjax.rewards.terms."""

    terms: dict = field({"f1": 1.0}, 'term -> weight: names in zsjax.rewards.terms.TERMS or "package.module:function"; '
                        'penalties get negative weights')
    overlong_from: int = field(0, 'policy tokens from which the term "overlong" rises from 0', "[0, 1e7]", unit="tokens")
    overlong_to: int = field(0, 'policy tokens at which it is 1; 0: it is always 0', "[0, 1e7]", unit="tokens")


@dataclasses.dataclass(frozen=True)
class ValueConfig:
    """The value model of algorithm.value_model: the starting policy's trunk and a scalar head."""

    optimizer: OptimizerConfig = group(OptimizerConfig, learning_rate=1e-5)
    clip: float = field(0.2, "a prediction that moved further than this from the old one is not trained; 0: no clip",
                        "[0, 1e6]", unit="reward")
    warmup_steps: int = field(0, "first steps, which train the value model alone", "[0, 1e9]", unit="steps")


@dataclasses.dataclass(frozen=True)
class HealthConfig:
    """Signs of collapse, see zsjax.monitor.health."""

    alarms: dict = free({
        "entropy": [1e-4, None], "response_tokens": [2.0, None], "repetition": [None, 0.8],
        "share_answered": [0.05, None], "searches": [0.02, None], "sampler_gap_mean": [None, 0.1],
        "grad_norm": [None, 100.0]},
        "metric -> [low, high], either may be None; a step's metric outside of them raises its alarm")
    patience: int = free(3, "steps in a row outside before the alarm rings", COUNT, unit="steps")
    stop: bool = free(False, "an alarm stops the run, after a checkpoint")
    keep_best: bool = free(True, "the policy with the best best_metric so far is kept in models/best")
    best_metric: str = free("eval/em", "of the evaluations in training")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The RL loop. One step: questions_per_step x group_size episodes, cut into `minibatches` updates, `epochs` times."""

    steps: int = field(200, "of the whole run", COUNT, unit="steps")
    questions_per_step: int = field(64, "drawn for a step", "[1, 1e7]", unit="questions")
    group_size: int = field(5, "episodes of a question", "[1, 1e6]", unit="episodes")
    minibatches: int = field(1, "updates that a step's rows are cut into", "[1, 1e6]")
    epochs: int = field(1, "passes over a step's rows", "[1, 1000]")
    microbatch_rows: int = fast(0, "rows whose activations exist at a time; 0: a minibatch at once", "[0, 1e7]", unit="rows")
    microbatch_tokens: int = fast(0, "> 0 cuts by tokens instead: rows are sorted by length into a few shapes of about "
                                  "this many", "[0, 1e9]", unit="tokens")
    logprob_chunk: int = fast(0, "positions of each row whose logits exist at a time; 0: of all rows together, as many as "
                              "256 MiB on a device hold", "[0, 1e7]", unit="tokens")
    remat: str = fast("none", "what the backward pass computes again instead of keeping", choices=REMAT)
    keep: str = field("all", 'episodes that are updated on: "reward_spread": groups whose rewards differ most; '
                      '"search_depth": episodes that searched most', choices=("all", "reward_spread", "search_depth"))
    keep_fraction: float = field(1.0, "share of the episodes that is kept", "(0, 1]")
    checkpoint_every: int = free(20, "steps between two checkpoints", COUNT, unit="steps")
    keep_checkpoints: int = free(2, "last checkpoints that are kept", "[1, 1e6]")
    trajectories_every: int = free(10, "steps between two files of trajectories", COUNT, unit="steps")
    trajectories_kept: int = free(1000, "files of trajectories that are kept: the first and the newest", "[2, 1e9]")
    eval_every: int = later(20, "steps between two evaluations; the last step always has one", COUNT, unit="steps")
    eval_questions: int = later(64, "of such an evaluation", COUNT, unit="questions")


@dataclasses.dataclass(frozen=True)
class SupervisedConfig:
    """One phase of supervised training: pretraining of the policy or the simulator, simulator tuning."""

    steps: int = field(0, "of the phase", "[0, 1e9]", unit="steps")
    batch_rows: int = field(32, "of a step", "[1, 1e7]", unit="rows")
    max_tokens: int = limit(128, "of a row; a longer one is an error, never cut", TOKENS, unit="tokens")
    microbatch_tokens: int = fast(0, "of a part of a step; rows are sorted by length and packed for it; 0: the whole batch "
                                  "at once", "[0, 1e9]", unit="tokens")
    remat: str = fast("none", "as of TrainConfig", choices=REMAT)
    logprob_chunk: int = fast(0, "as of TrainConfig", "[0, 1e7]", unit="tokens")
    checkpoint_every: int = free(100, "steps between two checkpoints", COUNT, unit="steps")
    optimizer: OptimizerConfig = group(OptimizerConfig)
    options: dict = field({}, "options of this phase alone; see the function that runs it")


@dataclasses.dataclass(frozen=True)
class WarmStartConfig(SupervisedConfig):
    """Supervised training of the policy on episodes, loss on its own tokens; RL then starts from its result."""

    episodes: str = field("", "a .jsonl[.gz] file of episodes (zsjax.tuning.demonstrations has its form); \"\" writes them "
                          "from data.train and the real engine", names="path")
    every_hop: bool = field(False, "episodes that it writes search until all supporting titles of the question were found, "
                            "also where an answer is shown before; off, the first shown answer ends them")
    episode_documents: int = field(0, "at most, of each search of an episode that it writes, as many whatever the number of "
                                   "its searches; what holds the answer or the next query stays. 0: all that were found",
                                   "[0, 1e6]", unit="documents")
    bridges: bool = field(False, "where no answer was shown, an episode that it writes searches on for a page that the "
                          "question or a shown document names and that shows the answer; each of them costs a search, and "
                          "all titles of the corpus are read")
    named_share: float = field(1.0, "of the episodes that it writes, at most this share answers a question that names the "
                               "answer", SHARE)
