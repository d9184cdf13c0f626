"""The value model's part of PPO: predictions before the update, and the step that fits them to the returns.

V(tokens[:, :t]) is the model's prediction at position t - 1, after the tokens before t, whatever their roles. So every
[B, T] array speaks of its own token, as everywhere, and the value of a policy token behind documents has read them.
"""

import jax.numpy as jnp

from zsjax.models.value import value_forward
from zsjax.rl import losses, roles
from zsjax.rl.objective import Objective
from zsjax.rl.step_programs import PackedStep, over_microbatches, whole_step
from zsjax.types import Metric

METRICS = (
    Metric("value/value_error", "squared error of the value model before its update", "squared reward", 0.0,
           chart="Value model", curve="error"),
    Metric("value/*", "loss, grad_norm, nonfinite, weight and clip fraction of the value model's updates"),
)


def state_values(value_params, model_config, tokens, valid, *, remat="none"):
    """float32[B, T]: V of the state before each token; 0 at position 0 and where `valid` (bool[B, T]) is False."""
    after = value_forward(value_params, model_config, tokens, valid=valid, remat=remat)
    before = jnp.pad(after[:, :-1], ((0, 0), (1, 0)))
    return jnp.where(valid, before, 0)


def make_value_score(model_config, *, microbatch_rows=0):
    """Returns the jitted values(value_params, tokens int32[B, T], valid bool[B, T]) -> float32[B, T] `state_values`."""
    return over_microbatches(lambda params, *rows: state_values(params, model_config, *rows), microbatch_rows)


def make_value_update(model_config, optimizer, *, clip, reduction="token_mean", remat="none", microbatch_rows=0,
                      packed=False):
    """Makes one optimizer step of the value model towards `batch.returns`, with `losses.value_clip`.

    Args:
      model_config: DecoderConfig of its trunk.
      optimizer: an optax.GradientTransformation.
      clip: see `losses.value_clip`; 0 turns it off.
      reduction, remat, microbatch_rows: as `zsjax.rl.steps.make_update`.
      packed: the step takes a list of parts, as `make_packed_update`.

    Returns:
      update(value_params, opt_state, batch) -> (value_params, opt_state, info); batch.values, returns and the masks are
      read. info: loss, grad_norm, nonfinite, weight, value_error (mean squared error before the step),
      value_clip_fraction.
    """

    def loss_sum(params, batch, scale, coef):
        del scale, coef
        values = state_values(params, model_config, batch.tokens, roles.attention_mask(batch.roles), remat=remat)
        mask = roles.loss_mask(batch.roles) & batch.row_valid[:, None]
        how = ("fixed_length", mask.shape[1]) if reduction == "fixed_length" else reduction
        total, weight, info = losses.value_clip(values, batch.values, batch.returns, loss_mask=mask,
                                                clip=clip or jnp.inf, reduction=how)
        return total, {"weight": weight, "metrics": info}

    objective = Objective(loss_sum)
    return PackedStep(objective, optimizer) if packed else whole_step(objective, optimizer, microbatch_rows)
