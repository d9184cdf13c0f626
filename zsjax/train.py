"""The reinforcement learning loop, top to bottom.

    questions -> rollout (policy and search, on the device) -> rewards (text, host) -> old, reference and value scores
    -> advantages -> updates -> metrics, evaluation, alarms, checkpoint

Every draw is keyed by (seed, step, episode, position) and questions are a function of (seed, step), so a run that was
killed goes on from its last checkpoint as if nothing had happened.

Between the passes over the device everything is numpy, whole, and the same on every host (`zsjax.rl.passes`), so metrics
and decisions agree.
"""

import logging
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from zsjax import schedules
from zsjax.config import Config, CurriculumConfig, MixConfig
from zsjax.errors import NonFiniteUpdate
from zsjax.models import lora
from zsjax.models.placement import param_shardings
from zsjax.models.value import init_value
from zsjax.monitor import costs, health, usage
from zsjax.monitor.episodes import episode_metrics, sampler_gap, save_trajectories
from zsjax.monitor.writer import Timer, read_jsonl
from zsjax.parallel import hosts
from zsjax.parallel.checkpoint import Checkpointer
from zsjax.parallel.mesh import TRAIN_RULES, device_count, make_mesh, replicated, reshard
from zsjax.rl import credit, roles, selection
from zsjax.rl.batch import token_batch
from zsjax.rl.optimizer import make_optimizer
from zsjax.rl.passes import make_passes
from zsjax.rl.update import load_loss
from zsjax.rollout import make_rollout, reranking
from zsjax.rollout.experience import make_player
from zsjax.search import BudgetSpent, Mixed
from zsjax.search.rerank import init_reranker
from zsjax.types import TokenBatch, TrainState


def train(config: Config, workdir: pathlib.Path, *, policy_config, params, tokenizer, engine, stream, writer,
          evaluate_now: Callable | None = None, save_best: Callable | None = None, loss: Callable | None = None,
          advantage: Callable | None = None, config_json: str = "{}"):
    """Trains the policy.

    Args:
      config: the run's; train, rollout, search, reward, curriculum, algorithm, value, health, optimizer and policy.lora
        are read.
      workdir: where checkpoints/train and trajectories/ go; an interrupted run in it is resumed.
      policy_config, params: DecoderConfig and the starting parameters, which are also the reference. They are donated:
        copy them if you need them afterwards.
      tokenizer: the policy's.
      engine: what answers searches: a `Simulator` or a host engine.
      stream: `QuestionStream`; `stream.batch(step, n)` gives the step's questions.
      writer: `zsjax.monitor.writer.Writer`.
      evaluate_now: params -> dict of floats, called every `train.eval_every` steps.
      save_best: params -> None, called when `health.best_metric` of an evaluation is the best so far.
      loss, advantage: functions in place of `algorithm.loss` and `algorithm.advantage`, of the same contracts.
      config_json: kept with the checkpoints.

    Returns:
      The trained parameters; with `policy.lora` the adapters are merged into them.

    Raises:
      NonFiniteUpdate: a loss or gradient is not finite; the step's trajectories are saved.
      health.HealthAlarm: a metric stayed out of its bounds and config.health.stop is set.
      BudgetSpent: see there. After each of these the state before the error is on disk where it is still whole, and the
        message says which state there is.
    """
    steps, algorithm, options = config.train.steps, config.algorithm, config.train
    mesh = make_mesh(config.mesh)
    everywhere = replicated(mesh)
    optimizers = make_optimizers(config)
    state, frozen = start_state(config, policy_config, params, optimizers, mesh)
    # With adapters the policy is frozen weights, which are the reference as well, and what is trained beside them.
    adapted = frozen is not None
    whole = lora.assembler(config.policy.lora)
    merged = lambda trained: lora.merge(frozen, trained, config.policy.lora) if adapted else trained
    needs_reference = algorithm.track_kl or algorithm.kl_coef or algorithm.kl_target
    reference = None if not needs_reference else frozen if adapted else jax.tree.map(jnp.copy, state.params)

    passes = make_passes(config, policy_config, mesh, loss=loss or load_loss(algorithm.loss), optimizer=optimizers[0],
                         value_optimizer=optimizers[1], assemble=whole)
    rollout = make_rollout(policy_config, engine, tokenizer, config, mesh, group_size=options.group_size)
    devices = device_count(mesh, config.mesh)
    rollout = costs.Meter(rollout, engine, devices=devices, account=usage.RolloutAccount(
        policy_config, engine, devices=devices, cache=config.policy.cache_dtype))
    compiles, timer = usage.CompileCount(), Timer()
    play = make_player(config, rollout, stream, tokenizer)
    learn_reranking = reranking.make_learner(policy_config, tokenizer, config)
    noise_at, share_at = curriculum(config.curriculum, steps), real_share(config.search.mix, steps)

    checkpoints = Checkpointer(workdir / "checkpoints" / "train", keep=options.keep_checkpoints,
                               config_json=config_json)
    if (restored := checkpoints.restore(state)) is not None:
        _, state, _ = restored
        logging.info("train: resumed at step %d", int(state.step))
    first_step = int(state.step)
    writer.truncate("train", first_step)
    history = [line for line in read_jsonl(workdir / "metrics.jsonl") if line["stage"] == "train"]

    with checkpoints, writer.progress("train", total=steps, done=first_step):
        for step in range(first_step, steps):
            control = hosts.fetch(state.control)
            noise = float(control["noise"] if noise_at is None else noise_at(step))
            key = jax.random.fold_in(jax.random.wrap_key_data(np.asarray(state.key)), step)

            if isinstance(engine, Mixed):
                engine.share = float(share_at(step))
            reranker = hosts.fetch(state.reranker)
            shown = {} if reranker is None else {"reranker": reranker.weights}
            with timer("rollout"):
                policy = whole(state.params, frozen)
                try:
                    played = play(policy, step, noise=noise, key=key, **shown)
                except BudgetSpent as error:
                    checkpoints.save(step, state, {"data_position": step})
                    raise BudgetSpent(f"{error}; {checkpoints.whereabouts()}") from error
                episodes, scores = played.episodes, played.scores

            with timer("score"):
                batch = token_batch(episodes, scores, multiple=config.rollout.max_tokens).replace(row_valid=played.row_valid)
                mask = roles.loss_mask(batch.roles) & batch.row_valid[:, None]
                batch = batch.replace(old_logprobs=passes.logprobs(policy, batch))
                if reference is not None:
                    batch = batch.replace(ref_logprobs=passes.logprobs(reference, batch))
                if algorithm.value_model:
                    batch = batch.replace(values=passes.values(state.value_params, batch))
                if algorithm.kl_in == "reward":
                    batch = batch.replace(rewards=np.asarray(credit.kl_rewards(
                        batch, loss_mask=roles.loss_mask(batch.roles), coef=control["kl_coef"], kind=algorithm.kl_kind)))
                estimated, returns = jax.device_get(credit.estimate(algorithm, batch, loss_mask=mask, own=advantage))
                batch = batch.replace(advantages=estimated, returns=returns)
                gap = sampler_gap(batch)

            with timer("update"):
                params, opt_state, infos = state.params, state.opt_state, []
                value_params, value_opt_state, value_infos = state.value_params, state.value_opt_state, []
                coef = jnp.float32(control["kl_coef"]) if algorithm.kl_target and algorithm.kl_in == "loss" else None
                for minibatch in minibatches(kept(options, batch, played), options.minibatches, options.epochs, key):
                    if algorithm.value_model:
                        value_params, value_opt_state, info = passes.update_value(value_params, value_opt_state, minibatch)
                        value_infos.append(info)
                    if not (algorithm.value_model and step < config.value.warmup_steps):
                        params, opt_state, info = passes.update(params, opt_state, minibatch, coef, frozen)
                        infos.append(info)
                infos, value_infos = jax.device_get((infos, value_infos))

            nonfinite = any(info["nonfinite"] for info in infos + value_infos)
            path = workdir / "trajectories" / f"train_{step + 1:06d}.jsonl"
            if hosts.is_lead() and (nonfinite or step % options.trajectories_every == 0 or step + 1 == steps):
                save_trajectories(path, episodes, played.questions, tokenizer, scores, every=nonfinite)
            if nonfinite:
                if all(info["nonfinite"] for info in infos + value_infos):  # no update changed anything
                    checkpoints.save(step, state.replace(params=params, opt_state=opt_state, value_params=value_params,
                                                         value_opt_state=value_opt_state), {"data_position": step})
                raise NonFiniteUpdate(f"step {step + 1}: the loss or its gradient is not finite. The step's trajectories "
                                      f"are in {path}; {checkpoints.whereabouts()}")

            metrics = {
                "noise": noise,
                **({"real_searches": engine.share} if isinstance(engine, Mixed) else {}),
                **episode_metrics(played),
                **rollout.take(),
                **gap,
                **means(infos),
                **means(value_infos, prefix="value/"),
            }
            if learn_reranking:
                reranker, info = learn_reranking(reranker, played)
                metrics |= info
            if algorithm.kl_target:
                metrics["kl_coef"] = float(control["kl_coef"])
            control = next_control(config, control, metrics)
            state = state.replace(step=reshard(np.int32(step + 1), everywhere), params=params, opt_state=opt_state,
                                  value_params=value_params, value_opt_state=value_opt_state,
                                  reranker=reshard(reranker, everywhere))
            spent = None
            if evaluate_now and ((step + 1) % options.eval_every == 0 or step + 1 == steps):
                with timer("evaluate"):
                    try:
                        metrics |= evaluate_now(whole(state.params, frozen))
                    except BudgetSpent as error:
                        spent = error  # the step itself is whole: it is written first
                if metrics.get(config.health.best_metric, -np.inf) > control["best"]:
                    control["best"] = np.float32(metrics[config.health.best_metric])
                    if save_best and config.health.keep_best:
                        save_best(merged(state.params))
            state = state.replace(control=reshard(jax.tree.map(np.float32, control), everywhere))

            history = [*history, metrics][-config.health.patience:]
            ringing = health.alarms(history, config.health.alarms, config.health.patience)
            alarm = health.stop_message(ringing, metrics, config.health.alarms, config.health.patience)
            seconds = timer.take()
            speed = int(episodes.length.sum()) / sum(seconds[f"time/{part}"] for part in ("rollout", "score", "update"))
            writer.write(step + 1, metrics | ringing | seconds | compiles.take() | {
                "time/step": sum(seconds.values()), "speed/tokens_per_second": speed}, "train")
            alarmed = alarm is not None and config.health.stop
            if (step + 1) % options.checkpoint_every == 0 or step + 1 == steps or alarmed or spent:
                with timer("checkpoint"):  # after the line is written: these seconds stand in the next one
                    checkpoints.save(step + 1, state, {"data_position": step + 1})
            if spent:
                raise BudgetSpent(f"{spent}; {checkpoints.whereabouts()}") from spent
            if alarmed:
                raise health.HealthAlarm(f"stopped after step {step + 1}, {alarm}; {checkpoints.whereabouts()}. Widen "
                                         "config.health.alarms or set health.stop to false to go on from there")

    return merged(state.params)


def make_optimizers(config: Config):
    """(the policy's, the value model's) optimizers of the run."""
    updates = config.train.steps * config.train.minibatches * config.train.epochs
    return make_optimizer(config.optimizer, updates), make_optimizer(config.value.optimizer, updates)


def start_state(config: Config, policy_config, params, optimizers, mesh) -> tuple[TrainState, dict | None]:
    """The state before the first step, and the frozen policy where only adapters (policy.lora) are trained, else None."""
    everywhere = replicated(mesh)
    place = lambda tree, specs=None: reshard(
        tree, param_shardings(policy_config, mesh, TRAIN_RULES, specs))
    # Counters lie on the mesh like the rest, or the second update would compile again.
    on_mesh = lambda tree: jax.tree.map(lambda x: x if x.ndim else reshard(x, everywhere), tree)
    root, adapters = jax.random.key(config.seed), config.policy.lora
    policy = trained = place(params)
    if adapters.rank:
        trained = place(lora.init_adapters(policy_config, adapters, jax.random.fold_in(root, 2**30)),
                        lora.adapter_specs(policy_config, adapters))
    counters = reshard((np.int32(0), jax.random.key_data(root), start_control(config)), everywhere)
    state = TrainState(step=counters[0], params=trained, opt_state=on_mesh(optimizers[0].init(trained)), key=counters[1],
                       control=counters[2])
    if config.search.rerank.candidates:
        state = state.replace(reranker=reshard(init_reranker(config.search.rerank), everywhere))
    if config.algorithm.value_model:  # all of it is trained, whatever is of the policy
        value_params = init_value(policy_config, policy, jax.random.fold_in(root, 2**31))
        value_params["value_head"] = reshard(value_params["value_head"], everywhere)
        state = state.replace(value_params=value_params, value_opt_state=on_mesh(optimizers[1].init(value_params)))
    return state, policy if adapters.rank else None


def curriculum(config: CurriculumConfig, steps: int):
    """The schedule count -> P(noisy) over the `steps` steps that really run; None for the adaptive one."""
    start, end = config.start, config.end
    schedule = {
        "adaptive": lambda: None,
        "constant": lambda: schedules.constant(end),
        "zero_search": lambda: schedules.zero_search(start, end, steps, config.base),
        "linear": lambda: schedules.linear(start, end, steps),
        "cosine": lambda: schedules.cosine(start, end, steps),
        "step": lambda: schedules.step(config.values, config.boundaries),
    }[config.schedule]()
    return schedules.reverse(schedule, steps) if config.reverse else schedule


def real_share(mix: MixConfig, steps: int):
    """The schedule count -> P(the real engine answers a search) of a mixed engine."""
    return curriculum(CurriculumConfig(schedule=mix.schedule, start=mix.start, end=mix.end, base=mix.base), steps)


def start_control(config: Config) -> dict:
    """What steers the run and is learned on the way, float32[] each: the adaptive curriculum's noise and average
    reward, the adaptive KL coefficient, the best evaluation so far."""
    start = dict(noise=config.curriculum.start, reward_average=np.nan, kl_coef=config.algorithm.kl_coef, best=-np.inf)
    return {name: np.float32(value) for name, value in start.items()}


def next_control(config: Config, control: dict, metrics: dict) -> dict:
    """The control of the next step, after this step's metrics."""
    control, rule, algorithm = dict(control), config.curriculum, config.algorithm
    control["noise"], control["reward_average"] = schedules.follow_reward(
        control["noise"], control["reward_average"], metrics["reward"], target=rule.target, rate=rule.rate,
        decay=rule.decay, low=min(rule.start, rule.end), high=max(rule.start, rule.end))
    if algorithm.kl_target and "kl" in metrics:
        episodes = config.train.questions_per_step * config.train.group_size
        control["kl_coef"] = schedules.follow_kl(control["kl_coef"], metrics["kl"], target=algorithm.kl_target,
                                                 horizon=algorithm.kl_horizon, episodes=episodes)
    return control


def kept(options, batch: TokenBatch, played) -> TokenBatch:
    """The rows that are updated on: all, or the most informative `keep_fraction` of them."""
    if options.keep == "all":
        return batch
    count = round(options.keep_fraction * len(played.scores))
    rows = selection.keep_rows(options.keep, count, scores=played.scores, group_id=played.episodes.group_id,
                               num_searches=played.episodes.num_searches)
    return jax.tree.map(lambda x: x[rows], batch)


def minibatches(batch: TokenBatch, count: int, epochs: int, key):
    """`epochs` times the rows in random order, cut into `count` equal parts."""
    for epoch in range(epochs):
        if count == 1:
            yield batch
            continue
        order = jax.random.permutation(jax.random.fold_in(key, 2**31 + epoch), batch.tokens.shape[0])
        for part in np.split(np.asarray(order), count):
            yield jax.tree.map(lambda x, part=part: x[part], batch)


def means(infos: list[dict], prefix: str = "") -> dict[str, float]:
    """The mean of each number over a step's updates."""
    return {prefix + name: float(np.mean([info[name] for info in infos])) for name in infos[0]} if infos else {}
