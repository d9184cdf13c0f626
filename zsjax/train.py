"""The reinforcement learning loop, top to bottom.

    questions -> rollout (policy and search, on the device) -> rewards (text, host) -> old and reference log-probs
    -> advantages -> updates -> metrics, checkpoint, evaluation

Every draw is keyed by (seed, step, episode, position) and questions are a function of (seed, step), so a run that was
killed goes on from its last checkpoint as if nothing had happened.
"""

import json
import logging
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from zsjax import costs, rewards, schedules, sharding, types
from zsjax.checkpoint import Checkpointer
from zsjax.config import AlgorithmConfig, Config, CurriculumConfig, MixConfig, UserError
from zsjax.evaluate import on_path
from zsjax.metrics import Timer
from zsjax.rl import advantages, roles
from zsjax.rl.batch import token_batch
from zsjax.rl.update import load_loss, make_optimizer, make_score, make_update
from zsjax.rollout import make_rollout, transcript
from zsjax.search import Mixed
from zsjax.types import TokenBatch, TrainState


class NonFiniteUpdate(UserError):
    """The loss or its gradient is NaN or infinite; the step's trajectories were saved."""

    exit_code = 1


def train(config: Config, workdir: pathlib.Path, *, policy_config, params, tokenizer, engine, stream, writer,
          evaluate_now: Callable | None = None, config_json: str = "{}"):
    """Trains the policy.

    Args:
      config: the run's; train, rollout, search, curriculum, algorithm and optimizer are read.
      workdir: where checkpoints/train and trajectories/ go; an interrupted run in it is resumed.
      policy_config, params: DecoderConfig and the starting parameters, which are also the reference.
      tokenizer: the policy's.
      engine: what answers searches: a `Simulator` or a host engine.
      stream: `QuestionStream`; `stream.batch(step, n)` gives the step's questions.
      writer: `zsjax.metrics.Writer`.
      evaluate_now: params -> dict of floats, called every `train.eval_every` steps.
      config_json: kept with the checkpoints.

    Returns:
      The trained parameters.

    Raises:
      NonFiniteUpdate: see there.
    """
    steps, algorithm, options = config.train.steps, config.algorithm, config.train
    mesh = sharding.make_mesh(config.mesh)
    rows = sharding.row_sharding(mesh)
    params = sharding.reshard(params, sharding.param_shardings(policy_config, mesh, sharding.TRAIN_RULES))
    reference = jax.tree.map(jnp.copy, params) if algorithm.track_kl or algorithm.kl_coef else None

    noise_at, share_at = curriculum(config.curriculum, steps), curriculum(config.search.mix, steps)
    optimizer = make_optimizer(config.optimizer, steps * options.minibatches)
    rollout = make_rollout(policy_config, engine, tokenizer, config, mesh, group_size=options.group_size)
    temperature = config.rollout.temperature
    score = make_score(policy_config, chunk=options.logprob_chunk, temperature=temperature, remat=options.remat,
                       microbatch_rows=options.microbatch_rows)
    update = make_update(
        policy_config, load_loss(algorithm.loss), optimizer, chunk=options.logprob_chunk, temperature=temperature,
        remat=options.remat, microbatch_rows=options.microbatch_rows, kl_coef=algorithm.kl_coef,
        kl_kind=algorithm.kl_kind, entropy_coef=algorithm.entropy_coef, reduction=algorithm.reduction,
        invert_mask=algorithm.invert_mask, clip_low=algorithm.clip_low, clip_high=algorithm.clip_high)

    counters = costs.EngineCounters(engine)
    root = jax.random.key(config.seed)
    # Counters lie on the mesh like the rest, or the second update would compile again.
    opt_state = jax.tree.map(lambda x: x if x.ndim else jax.device_put(x, sharding.replicated(mesh)),
                             optimizer.init(params))
    state = TrainState(step=jnp.int32(0), params=params, opt_state=opt_state, key=jax.random.key_data(root))
    checkpoints = Checkpointer(workdir / "checkpoints" / "train", keep=options.keep_checkpoints,
                               config_json=config_json)
    if (restored := checkpoints.restore(state)) is not None:
        _, state, _ = restored
        logging.info("train: resumed at step %d", int(state.step))
    first_step = int(state.step)
    writer.truncate("train", first_step)

    with writer.progress("train", total=steps, done=first_step):
        for step in range(first_step, steps):
            timer = Timer()
            noise = float(noise_at(step))
            key = jax.random.fold_in(jax.random.wrap_key_data(state.key), step)
            asked = stream.batch(step, options.questions_per_step)
            questions = [q for q in asked for _ in range(options.group_size)]

            if isinstance(engine, Mixed):
                engine.share = float(share_at(step))
            with timer("rollout"):
                episodes = jax.device_get(rollout(state.params, asked, noise=noise, key=key))

            with timer("score"):
                said = transcript.answers(episodes, tokenizer)
                scores = np.array([rewards.f1_score(a, q.golden_answers) for a, q in zip(said, questions)], np.float32)
                batch = jax.device_put(token_batch(episodes, scores), rows)
                valid = roles.attention_mask(batch.roles)
                batch = batch.replace(old_logprobs=score(state.params, batch.tokens, valid)[0])
                if reference is not None:
                    batch = batch.replace(ref_logprobs=score(reference, batch.tokens, valid)[0])
                batch = jax.block_until_ready(batch.replace(advantages=estimate_advantages(algorithm, batch, scores)))

            with timer("update"):
                params, opt_state, infos = state.params, state.opt_state, []
                gap = sampler_gap(batch)
                for minibatch in minibatches(batch, options.minibatches, key):
                    params, opt_state, info = update(params, opt_state, minibatch)
                    infos.append(info)
                infos = jax.device_get(infos)

            nonfinite = any(info["nonfinite"] for info in infos)
            if nonfinite or step % options.trajectories_every == 0 or step + 1 == steps:
                path = workdir / "trajectories" / f"train_{step + 1:06d}.jsonl"
                save_trajectories(path, episodes, questions, tokenizer, scores, every=nonfinite)
            if nonfinite:
                raise NonFiniteUpdate(f"step {step + 1}: the loss or its gradient is not finite. The step's trajectories "
                                      f"are in {path}, the last good state in {checkpoints.directory}")

            state = state.replace(step=jnp.int32(step + 1), params=params, opt_state=opt_state)
            metrics = {
                "noise": noise,
                **({"real_searches": engine.share} if isinstance(engine, Mixed) else {}),
                **episode_metrics(episodes, questions, said, scores, tokenizer),
                **costs.used(episodes, devices=mesh.size),
                **counters.take(),
                **gap,
                **{name: float(np.mean([info[name] for info in infos])) for name in infos[0]},
            }
            if evaluate_now and ((step + 1) % options.eval_every == 0 or step + 1 == steps):
                with timer("evaluate"):
                    metrics |= evaluate_now(state.params)
            seconds = timer.take()
            speed = int(episodes.length.sum()) / sum(seconds[f"time/{part}"] for part in ("rollout", "score", "update"))
            writer.write(step + 1, metrics | seconds | {"time/step": sum(seconds.values()),
                                                        "speed/tokens_per_second": speed}, "train")
            if (step + 1) % options.checkpoint_every == 0 or step + 1 == steps:
                checkpoints.save(step + 1, state, {"data_position": step + 1})

    checkpoints.close()
    return state.params


def curriculum(config: CurriculumConfig | MixConfig, steps: int):
    """The schedule count -> P(noisy), or P(real engine), over the `steps` steps that really run."""
    if config.schedule == "constant":
        return schedules.constant(config.end)
    if config.schedule == "zero_search":
        return schedules.zero_search(config.start, config.end, steps, config.base)
    return {"linear": schedules.linear, "cosine": schedules.cosine}[config.schedule](config.start, config.end, steps)


def estimate_advantages(algorithm: AlgorithmConfig, batch: TokenBatch, scores):
    """float32[B, T] advantages under `algorithm.advantage`; see `zsjax.rl.advantages`."""
    scores = jnp.asarray(scores)
    if algorithm.advantage == "reinforce_plus_plus":
        return advantages.reinforce_plus_plus(batch.rewards, loss_mask=roles.loss_mask(batch.roles), gamma=1.0)
    per_episode = {
        "grpo": lambda: advantages.grpo(scores, group_id=batch.group_id, normalize=algorithm.normalize),
        "rloo": lambda: advantages.rloo(scores, group_id=batch.group_id),
        "reinforce": lambda: advantages.reinforce(scores, baseline="batch"),
    }[algorithm.advantage]()
    return jnp.broadcast_to(per_episode[:, None], batch.tokens.shape)


def minibatches(batch: TokenBatch, count: int, key):
    """The rows in random order, cut into `count` equal parts."""
    if count == 1:
        return [batch]
    order = jax.random.permutation(jax.random.fold_in(key, 2**31), batch.tokens.shape[0])
    return [jax.tree.map(lambda x: x[part], batch) for part in jnp.split(order, count)]


def sampler_gap(batch: TokenBatch) -> dict[str, float]:
    """|log-prob recomputed by the trainer - recorded by the sampler| over POLICY tokens, in nats."""
    gap = np.abs(np.asarray(batch.old_logprobs) - np.asarray(batch.behavior_logprobs))
    gap = gap[np.asarray(roles.loss_mask(batch.roles))]
    return {"sampler_gap_mean": float(gap.mean()), "sampler_gap_p99": float(np.quantile(gap, 0.99)),
            "sampler_gap_max": float(gap.max())}


def episode_metrics(episodes, questions, said, scores, tokenizer) -> dict[str, float]:
    """Means over the step's episodes."""
    asked = transcript.searches(episodes, tokenizer)
    right, searches = np.sum([on_path({"queries": a}, q) for a, q in zip(asked, questions)], axis=0)
    status = np.bincount(episodes.status, minlength=len(types.STATUS_NAMES)) / len(scores)
    per_role = [(episodes.roles == role).sum() / len(scores) for role in (types.POLICY, types.DOCUMENT)]
    ran = episodes.search_status != types.NOT_SEARCHED
    groups = {}
    for group, value in zip(episodes.group_id.tolist(), scores.tolist()):
        groups.setdefault(group, []).append(value)
    return {
        "reward": float(scores.mean()),
        "em": float(np.mean([rewards.exact_match(a, q.golden_answers) for a, q in zip(said, questions)])),
        "searches": float(episodes.num_searches.mean()),
        "on_path": float(right / searches) if searches else 0.0,
        "noisy_share": float(episodes.noisy.any(axis=2).sum() / max(episodes.num_searches.sum(), 1)),
        "invalid_actions": float((episodes.search_status == types.INVALID_ACTION).sum() / len(scores)),
        "short_replies": float(np.isin(episodes.search_status, (types.SEARCH_SHORT, types.SEARCH_FAILED)).sum()
                               / max(ran.sum(), 1)),
        "groups_with_signal": float(np.mean([len(set(values)) > 1 for values in groups.values()])),
        "response_tokens": float(per_role[0]),
        "document_tokens": float(per_role[1]),
        "length": float(episodes.length.mean()),
        **{f"share_{name}": float(share) for name, share in zip(types.STATUS_NAMES[1:], status[1:])},
    }


def save_trajectories(path: pathlib.Path, episodes, questions, tokenizer, scores, *, every: bool = False):
    """Writes trajectories as JSON lines: one a question, or all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _, first = np.unique(episodes.group_id, return_index=True)
    rows = None if every else sorted(first.tolist())
    lines = transcript.records(episodes, questions, tokenizer, rows=rows, reward=scores)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

