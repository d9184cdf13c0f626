"""Checks of what learns: algorithm, rewards, curriculum, alarms, optimizers, the loops' sizes."""

import math

from zsjax.config.checks.names import CURRICULA, RATES, REDUCTIONS, SUPERVISED


def check_algorithm(found, config):
    algorithm = config.algorithm
    found.one_of("algorithm.reduction", REDUCTIONS)
    found.one_of("algorithm.kl_in", ("loss", "reward"))
    found.at_least(0, *(f"algorithm.{name}" for name in (
        "kl_coef", "entropy_coef", "clip_low", "clip_high", "kl_target", "sampler_clip", "refill_rounds")))
    found.at_least(1, "algorithm.kl_horizon")
    found.within(0, 1, "algorithm.gamma", "algorithm.lam")
    if algorithm.kl_kind == "k1" and algorithm.kl_in == "loss":
        found.add("algorithm.kl_kind", "as a loss, k1 has an expected gradient of zero",
                  "give k2 or k3, or set algorithm.kl_in to 'reward'")
    else:
        found.one_of("algorithm.kl_kind", ("k1", "k2", "k3"))
    if algorithm.kl_target and not algorithm.kl_coef > 0:
        found.add("algorithm.kl_target", "an adaptive coefficient grows from kl_coef, which is 0",
                  "set algorithm.kl_coef to where it starts")
    if algorithm.dual_clip and not algorithm.dual_clip > 1:
        found.add("algorithm.dual_clip", "bounds the loss at a ratio that no clip has reached", "give more than 1, or 0")
    if algorithm.dual_clip and algorithm.loss == "gspo":
        found.add("algorithm.dual_clip", "the loss 'gspo' has none", "set it to 0, or algorithm.loss to 'ppo_clip'")
    if algorithm.advantage == "gae" and not algorithm.value_model:
        found.add("algorithm.value_model", "the advantage 'gae' needs values", "set it to true")
    if algorithm.refill_rounds and not algorithm.drop_equal_groups:
        found.add("algorithm.refill_rounds", "nothing is dropped that could be replaced",
                  "set algorithm.drop_equal_groups to true")
    unknown = [name for name in algorithm.mask if name not in ("truncated", "overlong")]
    if unknown:
        found.add("algorithm.mask", f"{unknown[0]!r} is unknown", "name some of truncated, overlong")
    from zsjax.rl.credit import load_advantage
    from zsjax.rl.update import load_loss

    _check_function(found, "algorithm.loss", load_loss, "ppo_clip, gspo")
    _check_function(found, "algorithm.advantage", load_advantage, "one of grpo, rloo, reinforce, reinforce_plus_plus, gae")
    _check_reward(found, config.reward)
    _check_curriculum(found, config.curriculum)
    found.at_least(0, "value.clip", "value.warmup_steps")
    _check_optimizer(found, "value.optimizer")
    _check_health(found, config.health)


def _check_function(found, field, load, names):
    try:
        load(found.value(field))
    except Exception as error:  # importing a user's module may raise anything
        found.add(field, str(error).split("\n")[0] or type(error).__name__,
                  f"give {names}, or package.module:function of a module that imports")


def _check_reward(found, reward):
    from zsjax.rewards.terms import TERMS, load_term

    if not reward.terms:
        found.add("reward.terms", "no reward at all", "give at least one term, as {'f1': 1.0}")
    for name, weight in reward.terms.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            found.add("reward.terms", f"the weight of {name!r} is no number", "give a finite number")
        try:
            load_term(name)
        except Exception as error:  # importing a user's module may raise anything
            found.add("reward.terms", str(error).split("\n")[0] or type(error).__name__,
                      f"give {', '.join(TERMS)}, or package.module:function")
    if reward.overlong_to and not 0 < reward.overlong_from < reward.overlong_to:
        found.add("reward.overlong_to", f"is not above reward.overlong_from = {reward.overlong_from}",
                  "give policy tokens 0 < overlong_from < overlong_to")
    used = "overlong" in reward.terms or "overlong" in found.config.algorithm.mask
    if used and not reward.overlong_to:
        found.add("reward.overlong_to", "says from where on an episode is overlong", "give policy tokens")


def _check_curriculum(found, curriculum):
    found.one_of("curriculum.schedule", CURRICULA)
    found.within(0, 1, "curriculum.start", "curriculum.end")
    found.positive("curriculum.base")
    found.at_least(0, "curriculum.rate")
    if not 0 <= curriculum.decay < 1:
        found.add("curriculum.decay", "out of range", "give 0 up to, but not, 1")
    if curriculum.schedule == "step":
        if len(curriculum.values) != len(curriculum.boundaries) + 1:
            found.add("curriculum.values", f"{len(curriculum.boundaries)} boundaries need one value more",
                      "give the noise before the first boundary and from each boundary on")
        if any(not 0 <= value <= 1 for value in curriculum.values):
            found.add("curriculum.values", "out of range", "give probabilities, 0 to 1")
        if any(a >= b for a, b in zip(curriculum.boundaries, curriculum.boundaries[1:])):
            found.add("curriculum.boundaries", "do not rise", "give steps in rising order")
    if curriculum.schedule == "adaptive" and curriculum.reverse:
        found.add("curriculum.reverse", "an adaptive curriculum follows the reward, not the step", "set it to false")


def _check_health(found, health):
    found.at_least(1, "health.patience")
    for name, bounds in health.alarms.items():
        numbers = isinstance(bounds, list | tuple) and len(bounds) == 2 and all(
            b is None or (isinstance(b, int | float) and not isinstance(b, bool)) for b in bounds)
        if not numbers or bounds[0] is None is bounds[1]:
            found.add("health.alarms", f"the bounds of {name!r} are not [low, high]",
                      "give two numbers, one of which may be None")


def check_train(found, config):
    train = config.train
    _check_optimizer(found, "optimizer")
    counts = [f"train.{name}" for name in ("questions_per_step", "group_size", "minibatches", "logprob_chunk",
                                           "checkpoint_every", "keep_checkpoints", "trajectories_every", "eval_every")]
    found.at_least(1 if "train" in config.stages else 0, "train.steps")
    found.at_least(1, *counts)
    found.at_least(1, "train.epochs")
    found.at_least(0, "train.microbatch_rows", "train.microbatch_tokens", "train.eval_questions")
    from zsjax.models.decoder import REMAT

    found.one_of("train.remat", ("none", *REMAT))
    found.one_of("train.keep", ("all", "reward_spread", "search_depth"))
    if not 0 < train.keep_fraction <= 1:
        found.add("train.keep_fraction", "out of range", "give a share above 0, up to 1")
        return
    if train.keep == "all" and train.keep_fraction < 1:
        found.add("train.keep_fraction", "nothing says what to keep",
                  "set train.keep to 'reward_spread' or 'search_depth', or this to 1")
    if train.microbatch_rows > 0 and train.microbatch_tokens > 0:
        found.add("train.microbatch_tokens", f"train.microbatch_rows = {train.microbatch_rows} cuts already",
                  "set one of the two to 0")
    if config.algorithm.advantage in ("grpo", "rloo") and train.group_size == 1:
        found.add("train.group_size", f"{config.algorithm.advantage} compares the episodes of a group",
                  "give 2 or more, or another algorithm.advantage")
    rows = train.questions_per_step * train.group_size
    product = f"questions_per_step x group_size = {train.questions_per_step} x {train.group_size} = {rows} rows"
    if train.keep != "all":
        rows = round(train.keep_fraction * rows)
        product = f"the {rows} rows that keep_fraction leaves of {product}"
    if train.minibatches > 0 and rows % train.minibatches:
        found.add("train.minibatches", f"does not divide {product}", f"give a divisor of {rows}")
        return
    rows //= max(train.minibatches, 1)
    if train.microbatch_rows > 0 and rows % train.microbatch_rows:
        found.add("train.microbatch_rows", f"does not divide the {rows} rows of a minibatch",
                  f"give a divisor of {rows}")
    shards = max(config.mesh.data, 1) * max(config.mesh.fsdp, 1)
    if rows > 0 and rows % shards:
        found.add("mesh.data", f"{shards} shards (data x fsdp) do not divide the {rows} rows of a minibatch",
                  f"give a divisor of {rows}, or change train.questions_per_step or train.group_size")


def check_supervised(found, config):
    from zsjax.models.decoder import REMAT

    for stage in SUPERVISED:
        _check_optimizer(found, f"{stage}.optimizer")
        found.at_least(1, f"{stage}.batch_rows", f"{stage}.max_tokens", f"{stage}.checkpoint_every")
        found.at_least(0, f"{stage}.steps", f"{stage}.microbatch_tokens")
        found.one_of(f"{stage}.remat", ("none", *REMAT))
        if stage in config.stages and getattr(config, stage).steps == 0:
            found.add(f"{stage}.steps", f"the stage {stage!r} would do nothing",
                      "give its steps, or take it from stages")


def _check_optimizer(found, prefix):
    found.one_of(f"{prefix}.schedule", RATES)
    found.positive(f"{prefix}.learning_rate")
    found.at_least(0, f"{prefix}.warmup_steps", f"{prefix}.weight_decay", f"{prefix}.clip_norm")
    found.within(0, 1, f"{prefix}.final_fraction")
    for name in ("b1", "b2"):
        if not 0 <= found.value(f"{prefix}.{name}") < 1:
            found.add(f"{prefix}.{name}", "out of range", "give 0 up to, but not, 1")
    from zsjax.rl.optimizer import transformation

    for link in found.value(f"{prefix}.chain"):
        try:
            transformation(link, lambda count: 0.0)
        except Exception as error:  # optax checks arguments in its own ways
            found.add(f"{prefix}.chain", str(error).split("\n")[0] or type(error).__name__,
                      "give dicts of a name in optax and its arguments, as dict(name='scale_by_adam', b1=0.9)")
