"""Updates that are too small for bfloat16 are not lost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zsjax.config import OptimizerConfig
from zsjax.rl.master_weights import MasterState, with_master_weights
from zsjax.rl.optimizer import make_optimizer

PARAMS = {"w": jnp.full((2, 3), 1.0, jnp.bfloat16), "norm": jnp.ones(3, jnp.float32)}
GRADS = jax.tree.map(lambda x: jnp.ones(x.shape, jnp.float32), PARAMS)


def run(optimizer, params, steps):
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(GRADS, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def test_many_tiny_updates_add_up():
    config = OptimizerConfig(learning_rate=1e-4, clip_norm=0.0)  # Adam moves each weight by the rate, every step
    with_copies, state = run(make_optimizer(config, 200), PARAMS, 100)
    assert isinstance(state, MasterState)
    np.testing.assert_allclose(state.master["w"], 0.99, atol=1e-5)
    np.testing.assert_array_equal(with_copies["w"], jnp.full((2, 3), 0.99, jnp.bfloat16))
    np.testing.assert_allclose(with_copies["norm"], 0.99, atol=1e-5)
    assert with_copies["w"].dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(state.inner) if x.ndim} == {jnp.dtype("float32")}  # moments as well
    without, _ = run(make_optimizer(OptimizerConfig(learning_rate=1e-4, clip_norm=0.0, master_weights=False), 200),
                     PARAMS, 100)
    np.testing.assert_array_equal(without["w"], 1.0)  # 1 - 1e-4 rounds to 1: this is what is lost


def test_parameters_are_the_rounded_copies():
    key = jax.random.key(0)
    params = {"w": jax.random.normal(key, (50, 8), jnp.bfloat16), "norm": jnp.ones(3)}
    optimizer = with_master_weights(optax.sgd(0.05, momentum=0.9))
    state = optimizer.init(params)
    for i in range(20):
        grads = {name: jax.random.normal(jax.random.fold_in(key, i), x.shape) for name, x in params.items()}
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    np.testing.assert_array_equal(params["w"], state.master["w"].astype(jnp.bfloat16))


def test_float32_parameters_need_no_copies():
    params = jax.tree.map(lambda x: x.astype(jnp.float32), PARAMS)
    plain, wrapped = optax.adam(1e-2), with_master_weights(optax.adam(1e-2))
    a, b = run(plain, params, 3), run(wrapped, params, 3)
    assert jax.tree.structure(a[1]) == jax.tree.structure(b[1])
    jax.tree.map(np.testing.assert_array_equal, a, b)
