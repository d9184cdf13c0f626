"""Optimizers from the config: clip and AdamW by default, any chain of optax transformations by name.

    OptimizerConfig(learning_rate=1e-5, chain=[dict(name="clip_by_global_norm", max_norm=1.0),
                                               dict(name="lion", learning_rate="schedule", b1=0.95)])
"""

import inspect

import jax
import jax.numpy as jnp
import optax

from zsjax.errors import InputError
from zsjax.rl.master_weights import with_master_weights

SCHEDULE = "schedule"  # as an argument's value: the learning-rate schedule of the config


def make_optimizer(config, steps):
    """The optax chain of an `OptimizerConfig`: clip by global norm, AdamW, learning-rate schedule; or `config.chain`.

    The rate rises linearly to `learning_rate` over `warmup_steps` (above 0 at the first step), then follows the schedule to
    `final_fraction` of it at step `steps`. Weight decay applies to matrices only. `clip_norm` 0 turns clipping off. With
    `master_weights`, parameters narrower than float32 are updated in float32 copies (zsjax.rl.master_weights).

    Args:
      config: OptimizerConfig.
      steps: int, optimizer steps of the whole run.

    Raises:
      ValueError: unknown schedule, or a chain that cannot be built.
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
        raise InputError(f"unknown learning-rate schedule {config.schedule!r}: 'constant', 'linear' or 'cosine'")

    def rate(count):
        warm = jnp.minimum((count + 1) / max(config.warmup_steps, 1), 1.0)
        return warm * decay(jnp.maximum(count - config.warmup_steps, 0))

    if config.chain:
        optimizer = optax.chain(*[transformation(link, rate) for link in config.chain])
    else:
        def matrices(params):
            return jax.tree.map(lambda p: p.ndim > 1, params)

        adamw = optax.adamw(rate, b1=config.b1, b2=config.b2, weight_decay=config.weight_decay, mask=matrices)
        optimizer = optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw
    return with_master_weights(optimizer) if config.master_weights else optimizer


def transformation(link, rate):
    """One link of a chain: the optax function `link["name"]` called with the other entries.

    Only public names of optax are looked up, so that a config runs nothing else.

    Raises:
      ValueError: no such transformation, or arguments it does not take.
    """
    arguments = {key: rate if value == SCHEDULE else value for key, value in link.items() if key != "name"}
    name = link.get("name", "")
    make = getattr(optax, name, None) if isinstance(name, str) and name.isidentifier() and name[0] != "_" else None
    if not inspect.isfunction(make) and not isinstance(make, type(jax.jit(lambda: None))):
        raise InputError(f"{name!r} is not a transformation of optax {optax.__version__}")
    try:
        made = make(**arguments)
    except TypeError as error:
        raise InputError(f"optax.{name}: {error}") from error
    if not isinstance(made, optax.GradientTransformation):
        raise InputError(f"optax.{name} makes a {type(made).__name__}, not a transformation of gradients; use another name")
    return made


def make_optimizers(config):
    """(the policy's, the value model's) optimizers of a run. The policy makes no update in `value.warmup_steps`."""
    updates = config.train.minibatches * config.train.epochs
    waits = config.value.warmup_steps if config.algorithm.value_model else 0
    return (make_optimizer(config.optimizer, (config.train.steps - waits) * updates),
            make_optimizer(config.value.optimizer, config.train.steps * updates))
