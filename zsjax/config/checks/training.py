"""Checks of algorithm, rewards, curriculum, alarms, optimizers and the sizes of the loops."""

import itertools

from zsjax.config.allowed import function_problem, is_sensible
from zsjax.config.read import known_name

SUPERVISED = ("pretrain", "pretrain_simulator", "warm_start", "tune_simulator", "trajectory_sft")


def check_algorithm(found, config):
    from zsjax.rl.credit import ADVANTAGES
    from zsjax.rl.objective import LOSSES, OBJECTIVE_TERMS

    algorithm = config.algorithm
    if algorithm.kl_kind == "k1" and algorithm.kl_in == "loss":
        found.add("algorithm.kl_kind", "as a loss, k1 has an expected gradient of zero",
                  "give k2 or k3, or set algorithm.kl_in to 'reward'")
    if algorithm.kl_target and not algorithm.kl_coef > 0:
        found.add("algorithm.kl_target", "an adaptive coefficient grows from kl_coef, which is 0",
                  "set algorithm.kl_coef to where it starts")
    if algorithm.dual_clip and not algorithm.dual_clip > 1:
        found.add("algorithm.dual_clip", "a bound of 1 or less is below every clipped ratio", "give more than 1, or 0")
    if algorithm.dual_clip and algorithm.loss in LOSSES and "dual_clip" not in LOSSES.entry(algorithm.loss).reads:
        found.add("algorithm.dual_clip", f"the loss {algorithm.loss!r} has none",
                  "set it to 0, or algorithm.loss to 'ppo_clip'")
    if "values" in ADVANTAGES.entry(algorithm.advantage).needs and not algorithm.value_model:
        found.add("algorithm.value_model", f"the advantage {algorithm.advantage!r} needs values", "set it to true")
    _check_named(found, "algorithm.terms", OBJECTIVE_TERMS, known=())
    for name, function in algorithm.scorers.items():
        if not isinstance(function, str) or ":" not in function or function_problem(function):
            found.add("algorithm.scorers", f"{name!r} is {function!r}",
                      "give package.module:function of a module that imports")
    advantage = algorithm.advantage
    if algorithm.drop_equal_groups and advantage in ADVANTAGES and "groups" not in ADVANTAGES.entry(advantage).needs:
        found.add("algorithm.drop_equal_groups", f"the advantage {advantage!r} does not compare a group's episodes, so that "
                  "groups of equal reward teach, too", "set it to false, or algorithm.advantage to 'rloo' or 'grpo'")
    if algorithm.refill_rounds and not algorithm.drop_equal_groups:
        found.add("algorithm.refill_rounds", "nothing is dropped that could be replaced",
                  "set algorithm.drop_equal_groups to true")
    if algorithm.invert_mask:
        _check_invert_mask(found, algorithm, ADVANTAGES)
    if algorithm.value_model and config.value.warmup_steps >= config.train.steps:
        found.add("value.warmup_steps", f"the policy would make no update in {config.train.steps} steps",
                  "give fewer than train.steps")
    _check_reward(found, config.reward)
    _check_curriculum(found, config.curriculum)
    _check_chain(found, "value.optimizer.chain")
    _check_health(found, config)


def _check_invert_mask(found, algorithm, advantages):
    """Nothing may be 0 at the tokens that the ablation trains on."""
    if algorithm.whiten:
        found.add("algorithm.whiten", "whitened advantages are 0 at the tokens that algorithm.invert_mask trains on",
                  "set it to false")
    if "gamma" in advantages.entry(algorithm.advantage).reads:  # each token has its own, discounted
        found.add("algorithm.advantage", f"those of {algorithm.advantage!r} are 0 at the tokens that algorithm.invert_mask "
                  "trains on", "take one of a whole episode, as 'grpo'")
    if algorithm.sampler_clip:
        found.add("algorithm.sampler_clip", "the sampler gave no log-probs of the tokens that algorithm.invert_mask "
                  "trains on", "set it to 0")


def _check_reward(found, reward):
    from zsjax.rewards.terms import TERMS

    if not reward.terms:
        found.add("reward.terms", "no reward at all", "give at least one term, as {'f1': 1.0}")
    _check_named(found, "reward.terms", TERMS, known=TERMS)
    if reward.overlong_to and not 0 < reward.overlong_from < reward.overlong_to:
        found.add("reward.overlong_to", f"is not above reward.overlong_from = {reward.overlong_from}",
                  "give policy tokens 0 < overlong_from < overlong_to")
    used = "overlong" in reward.terms or "overlong" in found.config.algorithm.mask
    if used and not reward.overlong_to:
        found.add("reward.overlong_to", "0 means that no episode is overlong", "give policy tokens")


def _check_named(found, field, registry, known):
    """A dict of numbers by the name of a function. known: the registered names that it may hold."""
    own = "package.module:function"
    for name, weight in found.value(field).items():
        if not is_sensible(weight):
            found.add(field, f"the weight of {name!r} is {weight!r}", "give a finite number, at most 1e9")
        elif name in registry and name not in known:
            found.add(field, f"{name!r} has a field of its own", f"set algorithm.{name}_coef")
        elif name not in registry and (reason := function_problem(name) if ":" in name else f"{name!r} is unknown"):
            found.add(field, reason, "give " + ", or ".join([*[", ".join(known)][:len(known)], own]))


def _check_curriculum(found, curriculum):
    from zsjax.rl.steering import curriculum as schedule_of
    from zsjax.rl.steering import real_share

    if ":" in curriculum.schedule:
        found.loads("curriculum.schedule", lambda name: schedule_of(curriculum, found.config.train.steps)(0),
                    "check the fields that it reads")
    found.loads("search.mix.schedule", lambda name: real_share(found.config.search.mix, found.config.train.steps),
                "give another curriculum")
    if curriculum.schedule == "step":
        if len(curriculum.values) != len(curriculum.boundaries) + 1:
            found.add("curriculum.values", f"{len(curriculum.boundaries)} boundaries need one value more",
                      "give the noise before the first boundary and from each boundary on")
        if any(a >= b for a, b in itertools.pairwise(curriculum.boundaries)):
            found.add("curriculum.boundaries", "do not rise", "give steps in rising order")
    if curriculum.schedule == "adaptive" and curriculum.reverse:
        found.add("curriculum.reverse", "an adaptive curriculum follows the reward, not the step", "set it to false")


def _check_health(found, config):
    from zsjax.monitor.catalog import is_evaluation_metric, is_step_metric, metric_names
    from zsjax.monitor.health import ALARMS

    health, known = config.health, metric_names(config.reward.terms)
    own = ":" in config.algorithm.loss  # whose metrics are its own
    for name, bounds in health.alarms.items():
        pair = bounds if isinstance(bounds, list | tuple) and len(bounds) == 2 else [None, None]
        if pair == [None, None] or not all(bound is None or is_sensible(bound) for bound in pair):
            found.add("health.alarms", f"the bounds of {name!r} are {bounds!r}, not [low, high]",
                      "give two numbers, one of which may be None")
        elif None not in pair and pair[0] > pair[1]:
            found.add("health.alarms", f"the bounds of {name!r} are the wrong way round: {bounds!r}", "give [low, high]")
        elif ":" in name:
            if reason := function_problem(name):
                found.add("health.alarms", reason, "give a metric of a step, or package.module:function")
        elif not own and name not in ALARMS and not is_step_metric(name, config.reward.terms):
            found.add("health.alarms", f"{name!r} is not a metric of a step", known_name(name, known))
    if not is_evaluation_metric(health.best_metric):
        found.add("health.best_metric", "not a metric of the evaluations in training",
                  "give eval/em, eval/f1, or eval/em_N_hop of questions that know their hops")


def updated_rows(train) -> int:
    """The episodes of a step that its updates learn from."""
    rows = train.questions_per_step * train.group_size
    return rows if train.keep == "all" else round(train.keep_fraction * rows)


def check_train(found, config):
    from zsjax.rl.credit import ADVANTAGES

    train = config.train
    _check_chain(found, "optimizer.chain")
    if train.keep == "all" and train.keep_fraction < 1:
        found.add("train.keep_fraction", "nothing says what to keep",
                  "set train.keep to 'reward_spread' or 'search_depth', or this to 1")
    if train.microbatch_rows > 0 and train.microbatch_tokens > 0:
        found.add("train.microbatch_tokens", f"train.microbatch_rows = {train.microbatch_rows} cuts already",
                  "set one of the two to 0")
    if "groups" in ADVANTAGES.entry(config.algorithm.advantage).needs and train.group_size == 1:
        found.add("train.group_size", f"{config.algorithm.advantage} compares the episodes of a group",
                  "give 2 or more, or another algorithm.advantage")
    every, rows = train.questions_per_step * train.group_size, updated_rows(train)
    product = f"questions_per_step x group_size = {train.questions_per_step} x {train.group_size} = {every} rows"
    if train.keep != "all":
        product = f"the {rows} rows that keep_fraction leaves of {product}"
    if every and not rows:
        found.add("train.keep_fraction", f"leaves none of {every} rows", f"give more than {0.5 / every:.2g}")
        return
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
    for stage in SUPERVISED:
        _check_chain(found, f"{stage}.optimizer.chain")
        if stage in config.stages and getattr(config, stage).steps == 0:
            found.add(f"{stage}.steps", f"the stage {stage!r} would do nothing",
                      "give its steps, or take it from stages")


def _check_chain(found, field):
    from zsjax.rl.optimizer import transformation

    found.loads(field, lambda chain: [transformation(link, lambda count: 0.0) for link in chain],
                "give dicts of a name in optax and its arguments, as dict(name='scale_by_adam', b1=0.9)")
