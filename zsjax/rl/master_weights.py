"""float32 master copies of parameters that are kept in a narrower dtype (Micikevicius et al., arXiv 1710.03740, 3.1).

A bfloat16 weight has 8 bits: adding an update below 2^-9 of it changes nothing, however often. So the optimizer keeps
the weight in float32, adds there, and the model gets the rounded value.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class MasterState(NamedTuple):
    """inner: state of the wrapped optimizer, made for `master`; master: the parameters in float32."""

    inner: Any
    master: Any


def with_master_weights(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """`optimizer` on float32 copies of the parameters; without effect, and without memory, where all are float32.

    Moments are float32, too, as the inner optimizer is made for the copies. The updates that come out are the float32
    differences to the next rounded parameters, so `optax.apply_updates` gives those parameters.
    """

    def is_narrow(params):
        return any(x.dtype != jnp.float32 for x in jax.tree.leaves(params))

    def init(params):
        if not is_narrow(params):
            return optimizer.init(params)
        master = jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), params)  # updates donate both
        return MasterState(optimizer.init(master), master)

    def update(grads, state, params):
        if not isinstance(state, MasterState):
            return optimizer.update(grads, state, params)
        grads = jax.tree.map(lambda g: g.astype(jnp.float32), grads)
        updates, inner = optimizer.update(grads, state.inner, state.master)
        master = optax.apply_updates(state.master, updates)
        differences = jax.tree.map(lambda m, p: m.astype(p.dtype).astype(jnp.float32) - p.astype(jnp.float32),
                                   master, params)
        return differences, MasterState(inner, master)

    return optax.GradientTransformation(init, update)
