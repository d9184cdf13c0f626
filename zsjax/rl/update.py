"""Optimizer steps: (params, opt_state, batch) -> (params, opt_state, info), for reinforcement and supervision.

    score = make_score(model_config, chunk=256)
    old_logprobs, _ = score(params, tokens, attention_mask(roles))
    update = make_update(model_config, "ppo_clip", optimizer, chunk=256, kl_coef=0.001)
    params, opt_state, info = update(params, opt_state, batch)

A batch may be cut into microbatches of rows. Sums and weights are added over them and divided once, so that the step
is that of the whole batch whatever the cut (ZeroSearch's own code divided a smaller second part by the first's count).
"""

import importlib

import jax
import jax.numpy as jnp
import optax

from zsjax.models import decoder
from zsjax.rl import losses, roles
from zsjax.rl.logprobs import token_logprobs
from zsjax.rl.master_weights import with_master_weights


def ppo_clip_loss(batch, logprobs, *, loss_mask, entropy=None, values=None, **hyper):
    """`losses.ppo_clip` of a TokenBatch; hyper: clip_low, clip_high, reduction."""
    del entropy, values
    return losses.ppo_clip(logprobs, batch.old_logprobs, batch.advantages, loss_mask=loss_mask, **hyper)


LOSSES = {"ppo_clip": ppo_clip_loss}


def load_loss(name):
    """The loss of a name in `LOSSES`, or of "package.module:function"; ValueError if there is none."""
    if name in LOSSES:
        return LOSSES[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise ValueError(f"unknown loss {name!r}: one of {sorted(LOSSES)} or 'package.module:function'")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"cannot load the loss {name!r}: {error}") from error


def make_optimizer(config, steps):
    """The optax chain of an `OptimizerConfig`: clip by global norm, AdamW, learning-rate schedule.

    The rate rises linearly to `learning_rate` over `warmup_steps` (the first step already moves), then follows the
    schedule to `final_fraction` of it at step `steps`. Weight decay applies to matrices only. `clip_norm` 0 is no clip.
    With `master_weights`, parameters narrower than float32 are updated in float32 copies (zsjax.rl.master_weights).

    Args:
      config: OptimizerConfig.
      steps: int, optimizer steps of the whole run.

    Raises:
      ValueError: unknown schedule.
    """
    decay_steps = max(steps - config.warmup_steps, 1)
    peak, final = config.learning_rate, config.learning_rate * config.final_fraction
    if config.schedule == "constant":
        decay = optax.constant_schedule(peak)
    elif config.schedule == "linear":
        decay = optax.linear_schedule(peak, final, decay_steps)
    elif config.schedule == "cosine":
        decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=config.final_fraction)
    else:
        raise ValueError(f"unknown learning-rate schedule {config.schedule!r}: 'constant', 'linear' or 'cosine'")

    def rate(count):
        warm = jnp.minimum((count + 1) / max(config.warmup_steps, 1), 1.0)
        return warm * decay(jnp.maximum(count - config.warmup_steps, 0))

    matrices = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    adamw = optax.adamw(rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=matrices)
    chain = optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw
    return with_master_weights(chain) if config.master_weights else chain


def trained_alone(params, frozen):
    """The model where nothing is frozen: what is trained is all there is."""
    del frozen
    return params


def _model_logprobs(params, config, tokens, valid, **options):
    remat = options.pop("remat")
    hidden = decoder.hidden_states(params, config, tokens, valid=valid, remat=remat)
    return token_logprobs(hidden, decoder.unembedding(params, config), tokens, **options)


def _slices(tree, microbatch_rows):
    """[B, ...] -> [n, microbatch_rows, ...] for every array; microbatch i holds the rows i, i + n, i + 2n, ...

    Strided, so that rows sharded over devices in blocks stay on their devices in each microbatch.
    """
    rows = jax.tree.leaves(tree)[0].shape[0]
    if rows % microbatch_rows:
        raise ValueError(f"microbatch_rows={microbatch_rows} does not divide the {rows} rows of the batch")
    n = rows // microbatch_rows
    return jax.tree.map(lambda x: x.reshape(microbatch_rows, n, *x.shape[1:]).swapaxes(0, 1), tree)


def make_score(model_config, *, chunk, temperature=1.0, remat=False, microbatch_rows=0):
    """Returns the jitted score(params, tokens int32[B, T], valid bool[B, T]) -> (logprobs, entropy) float32[B, T].

    Nats, of each token given those before it under softmax(logits / temperature), by the forward that training uses;
    0 at position 0 and where `valid` is False. `microbatch_rows` > 0 runs that many rows at a time: the training
    update's number makes the ratio of the first update 1 to the last bit on CPU.
    """

    def rows(params, tokens, valid):
        out = _model_logprobs(params, model_config, tokens, valid, remat=remat, chunk=chunk, temperature=temperature)
        return jax.tree.map(lambda x: jnp.where(valid, x, 0), out)

    @jax.jit
    def score(params, tokens, valid):
        B, T = tokens.shape
        if not 0 < microbatch_rows < B:
            return rows(params, tokens, valid)
        out = jax.lax.map(lambda part: rows(params, *part), _slices((tokens, valid), microbatch_rows))
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(B, T), out)

    return score


def _accumulate(value_and_grad, params, batch, microbatch_rows):
    """Sums value_and_grad(params, microbatch) over the microbatches, gradients in float32."""
    float32 = lambda tree: jax.tree.map(lambda g: g.astype(jnp.float32), tree)
    if not 0 < microbatch_rows < jax.tree.leaves(batch)[0].shape[0]:
        sums, grads = value_and_grad(params, batch)
        return sums, float32(grads)
    parts = _slices(batch, microbatch_rows)

    def body(total, part):
        sums, grads = value_and_grad(params, part)
        return jax.tree.map(jnp.add, total, (sums, float32(grads))), None

    shapes = jax.eval_shape(lambda *a: value_and_grad(*a)[0], params, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    start = zeros, jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    return jax.lax.scan(body, start, parts)[0]


def _step(optimizer, params, opt_state, grads, loss, weight):
    """One optimizer step; nothing changes where loss or gradient is not finite, or no token had a weight."""
    grad_norm = optax.global_norm(grads)
    finite = jnp.isfinite(grad_norm) & jnp.isfinite(loss)
    updates, new_state = optimizer.update(grads, opt_state, params)
    new_params = optax.apply_updates(params, updates)
    # A select, not a lax.cond, whose branches would each hold a copy of everything. The cast keeps the dtypes that
    # the state was made with when parameters are bf16 and gradients float32.
    keep = lambda new, old: jnp.where(finite & (weight > 0), new, old).astype(old.dtype)
    params, opt_state = jax.tree.map(keep, (new_params, new_state), (params, opt_state))
    return params, opt_state, {"grad_norm": grad_norm, "nonfinite": (~finite).astype(jnp.float32)}


def _divide(x, weight):
    return jnp.where(weight > 0, x / jnp.where(weight > 0, weight, 1), 0)


def make_update(model_config, loss, optimizer, *, chunk, temperature=1.0, remat=False, microbatch_rows=0, kl_coef=0.0,
                kl_kind="k3", entropy_coef=0.0, reduction="token_mean", invert_mask=False, assemble=trained_alone,
                **loss_hyper):
    """Makes one optimizer step of reinforcement learning.

    The objective that is minimised, with the mask roles == POLICY and sums over the whole batch, is
      loss_sum / weight + kl_coef * mean(kl_penalty) - entropy_coef * mean(entropy),
    the means taken with the same reduction as the loss.

    Args:
      model_config: DecoderConfig of the policy.
      loss: a name (see `load_loss`) or a function (batch: TokenBatch, logprobs float32[B, T], *, loss_mask, entropy,
        values, reduction, **loss_hyper) -> (loss_sum, weight, info dict name -> (sum, weight)). It is called on one
        microbatch of rows; rows of a group need not be in the same one. With KL or entropy terms its weight must not
        depend on the logprobs.
      optimizer: an optax.GradientTransformation, see `make_optimizer`.
      chunk: positions per chunk of `token_logprobs`.
      temperature: the sampling temperature of the rollout.
      remat: recompute layers in the backward pass.
      microbatch_rows: rows at a time; 0 is all. Must divide the batch's rows.
      kl_coef, kl_kind: KL to `batch.ref_logprobs` as a loss, "k2" or "k3".
      entropy_coef: > 0 rewards entropy.
      reduction: see `losses.aggregate`; the bare name "fixed_length" stands for ("fixed_length", T).
      invert_mask: an ablation that trains on every token but the policy's; the caller broadcasts the advantages.
      assemble: (params, frozen) -> the decoder's parameters, where what is trained is not the whole model (LoRA).
      **loss_hyper: given to the loss.

    Returns:
      update(params, opt_state, batch: TokenBatch, frozen=None) -> (params, opt_state, info), jitted, with params and
      opt_state donated; frozen is a pytree for `assemble`. info: dict of float32[]: loss (all terms), grad_norm (before
      clipping), weight (the loss's), entropy and kl (k3, 0 without ref_logprobs) in nats per token, ratio_mean,
      approx_kl, clip_fraction (0 unless the loss tells), nonfinite (1 if loss or gradient was not finite: then params
      and opt_state are unchanged, as they are when the weight is 0), and what the loss's info adds.

    Raises:
      ValueError: kl_kind "k1" or unknown, an unknown loss; while tracing, rows that microbatch_rows does not divide, or
        kl_coef without ref_logprobs.
    """
    if kl_kind not in ("k2", "k3"):
        why = ("k1 as a loss has an expected gradient of zero: E[d logprobs] = 0 over the policy's own tokens; use k2 "
               "or k3, or put k1 into the reward") if kl_kind == "k1" else "k2 or k3"
        raise ValueError(f"kl_kind={kl_kind!r}: {why}")
    loss_fn = loss if callable(loss) else load_loss(loss)

    def mask_of(batch):
        mask = roles.inverted_mask(batch.roles) if invert_mask else roles.loss_mask(batch.roles)
        return mask if batch.row_valid is None else mask & batch.row_valid[:, None]

    def terms(batch, logprobs, entropy):
        """(loss_sum, weight, penalty_sum, penalty_weight, metrics), sums over the rows of `batch`."""
        mask = mask_of(batch)
        how = ("fixed_length", mask.shape[1]) if reduction == "fixed_length" else reduction
        loss_sum, weight, info = loss_fn(batch, logprobs, loss_mask=mask, entropy=entropy, values=None,
                                         reduction=how, **loss_hyper)
        mean = lambda x: losses.aggregate(jax.lax.stop_gradient(x), loss_mask=mask, reduction="token_mean")
        safe = lambda x: jnp.where(mask, x, 0)
        log_ratio = jnp.clip(safe(logprobs) - safe(batch.old_logprobs), -losses.MAX_LOG_RATIO, losses.MAX_LOG_RATIO)
        metrics = {"entropy": mean(entropy), "ratio_mean": mean(jnp.exp(log_ratio)),
                   "approx_kl": mean(jnp.expm1(log_ratio) - log_ratio)}
        penalty = -entropy_coef * entropy
        if batch.ref_logprobs is not None:
            kl = lambda kind: losses.kl_penalty(safe(logprobs), safe(batch.ref_logprobs), kind=kind)
            metrics["kl"] = mean(kl("k3"))
            penalty += kl_coef * kl(kl_kind) if kl_coef else 0
        elif kl_coef:
            raise ValueError(f"kl_coef={kl_coef} needs batch.ref_logprobs, which are None")
        penalty_sum, penalty_weight = losses.aggregate(penalty, loss_mask=mask, reduction=how)
        return loss_sum, weight, penalty_sum, penalty_weight, metrics | info

    def objective(params, batch, scale, frozen):
        logprobs, entropy = _model_logprobs(assemble(params, frozen), model_config, batch.tokens,
                                            roles.attention_mask(batch.roles), remat=remat, chunk=chunk,
                                            temperature=temperature)
        loss_sum, weight, penalty_sum, _, metrics = terms(batch, logprobs, entropy)
        if kl_coef or entropy_coef:
            loss_sum = loss_sum + scale * penalty_sum
        return loss_sum, {"weight": weight, "metrics": metrics}

    def update(params, opt_state, batch, frozen=None):
        # The loss's weight over the penalty's: 1 for the registered losses. Both weights come from masks, so XLA drops
        # the rest of this call.
        _, weight, _, penalty_weight, _ = terms(batch, batch.old_logprobs, jnp.zeros_like(batch.old_logprobs))
        scale = _divide(weight, penalty_weight)
        value_and_grad = lambda *given: jax.value_and_grad(objective, has_aux=True)(*given, scale, frozen)
        (loss_sum, sums), grads = _accumulate(value_and_grad, params, batch, microbatch_rows)
        weight = sums["weight"]
        grads = jax.tree.map(lambda g: _divide(g, weight), grads)
        loss_value = _divide(loss_sum, weight)
        params, opt_state, info = _step(optimizer, params, opt_state, grads, loss_value, weight)
        info |= {"loss": loss_value, "weight": weight, "clip_fraction": 0.0, "kl": 0.0}
        info |= {name: _divide(*pair) for name, pair in sums["metrics"].items()}
        return params, opt_state, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), info)

    return jax.jit(update, donate_argnums=(0, 1))


def make_supervised_update(model_config, optimizer, *, chunk, remat=False, microbatch_rows=0, assemble=trained_alone):
    """Makes one optimizer step of weighted next-token prediction, -sum(w_t log p(token_t)) / sum(w_t).

    Args:
      model_config, optimizer, chunk, remat, microbatch_rows, assemble: as `make_update`.

    Returns:
      update(params, opt_state, tokens int32[B, T], weights float32[B, T], valid bool[B, T], frozen=None) -> (params,
      opt_state, info), jitted, with params and opt_state donated. weights[b, t] >= 0 is the weight of predicting
      tokens[b, t]; it is ignored at position 0 and where `valid` (a prefix of each row) is False. info: loss (nats per
      unit of weight), grad_norm, weight, nonfinite; what holds for them in `make_update` holds here.
    """

    def objective(params, part, frozen):
        tokens, weights, valid = part
        logprobs, _ = _model_logprobs(assemble(params, frozen), model_config, tokens, valid, remat=remat, chunk=chunk,
                                      with_entropy=False)
        used = valid & (weights != 0) & (jnp.arange(tokens.shape[1]) > 0)
        weights = jnp.where(used, weights, 0).astype(jnp.float32)
        return -(weights * jnp.where(used, logprobs, 0)).sum(), weights.sum()

    def update(params, opt_state, tokens, weights, valid, frozen=None):
        value_and_grad = lambda *given: jax.value_and_grad(objective, has_aux=True)(*given, frozen)
        (loss_sum, weight), grads = _accumulate(value_and_grad, params, (tokens, weights, valid), microbatch_rows)
        grads = jax.tree.map(lambda g: _divide(g, weight), grads)
        loss = _divide(loss_sum, weight)
        params, opt_state, info = _step(optimizer, params, opt_state, grads, loss, weight)
        info |= {"loss": loss, "weight": weight}
        return params, opt_state, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), info)

    return jax.jit(update, donate_argnums=(0, 1))
