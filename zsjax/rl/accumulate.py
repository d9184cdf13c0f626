"""One optimizer step over a batch in pieces: sums and weights are added over the pieces and divided once.

So the step is that of the whole batch whatever the cut (ZeroSearch's own code divided a smaller second part by the
first's count). An objective is a pair of functions over the rows of any part of a batch:

    weigh(batch) -> (weight of the loss, weight of its penalties)            no model is run
    loss_sum(params, batch, scale, coef) -> (loss_sum, {"weight": ..., "metrics": {name: (sum, weight)}})

`scale` is the quotient of the two weights over the whole batch; `coef` is None or float32[], a coefficient that changes
from step to step. An objective is given the whole model. What is trained of it may be less: `assemble(params, frozen)`
is the model of the trained parameters and of others, which get no gradient (zsjax.models.lora).
"""

import jax
import jax.numpy as jnp
import optax

from zsjax.parallel.mesh import replicated


def trained_alone(params, frozen):
    """The model where nothing is frozen: what is trained is all there is."""
    del frozen
    return params


def whole_step(objective, optimizer, microbatch_rows=0, *, defaults=None, assemble=trained_alone):
    """The step of a batch in one array, in one compiled program; microbatches of rows are scanned over.

    Returns:
      update(params, opt_state, batch, coef=None, frozen=None) -> (params, opt_state, info), params and opt_state donated.
    """
    weigh, value_and_grad = _differentiated(objective, assemble)

    def update(params, opt_state, batch, coef=None, frozen=None):
        scale = divide(*weigh(batch))
        sums, grads = accumulate(lambda params, part: value_and_grad(params, part, scale, coef, frozen), params, batch,
                                 microbatch_rows)
        return _finish(optimizer, params, opt_state, sums, grads, defaults or {})

    return jax.jit(update, donate_argnums=(0, 1))


def packed_step(objective, optimizer, *, defaults=None, assemble=trained_alone):
    """The same step over a list of parts of different shapes, driven from the host: see `zsjax.rl.packing`.

    Returns:
      update(params, opt_state, parts, coef=None, frozen=None) -> (params, opt_state, info). One compiled program for each
      shape of a part, `update.programs` names them; params, opt_state and the running sums are donated.
    """
    weigh, value_and_grad = _differentiated(objective, assemble)

    def part_of(params, *given):
        sums, grads = value_and_grad(params, *given)
        return sums, float32(grads)

    def add_part(total, *given):
        return jax.tree.map(jnp.add, total, part_of(*given))

    def finish(params, opt_state, total):
        return _finish(optimizer, params, opt_state, *total, defaults or {})

    programs = {"weigh": jax.jit(weigh), "finish": jax.jit(finish, donate_argnums=(0, 1))}

    def prepare(params, *given):
        # The running sums lie as the parameters do. Left to XLA, sums that begin and sums that go on lie differently, and
        # the program of each shape is compiled for both: the second time in the middle of a run.
        shapes, places = jax.eval_shape(part_of, params, *given), jax.tree.map(lambda x: x.sharding, params)
        mesh = getattr(jax.tree.leaves(places)[0], "mesh", None)
        where = {} if mesh is None else dict(out_shardings=(replicated(mesh), places))
        programs["zeros"] = jax.jit(lambda params: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), **where)
        programs["add"] = jax.jit(add_part, donate_argnums=0, **where)

    def update(params, opt_state, parts, coef=None, frozen=None):
        # On the device, in order: nothing waits for the host until the info is asked for.
        scale = divide(*jax.tree.map(lambda *x: sum(x), *[programs["weigh"](part) for part in parts]))
        if "add" not in programs:
            prepare(params, parts[0], scale, coef, frozen)
        total = programs["zeros"](params)
        for part in parts:
            total = programs["add"](total, params, part, scale, coef, frozen)
        return programs["finish"](params, opt_state, total)

    def lower(params, opt_state, part, coef=None, frozen=None):
        """{"update": one part's gradients, "apply": the optimizer's step}, lowered for shapes that say where they lie."""
        mesh = jax.tree.leaves(params)[0].sharding.mesh
        like = lambda shapes, places: jax.tree.map(
            lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, places)
        scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
        prepare(params, part, scale, coef, frozen)
        sums, grads = jax.eval_shape(programs["zeros"], params)
        total = (like(sums, jax.tree.map(lambda _: replicated(mesh), sums)),
                 like(grads, jax.tree.map(lambda x: x.sharding, params)))
        return {"update": programs["add"].lower(total, params, part, scale, coef, frozen),
                "apply": programs["finish"].lower(params, opt_state, total)}

    update.programs, update.lower = programs, lower
    return update


def _differentiated(objective, assemble):
    """(weigh, value_and_grad(params, batch, scale, coef, frozen)), the gradient with respect to params alone."""
    weigh, loss_sum = objective
    whole = lambda params, batch, scale, coef, frozen: loss_sum(assemble(params, frozen), batch, scale, coef)
    return weigh, jax.value_and_grad(whole, has_aux=True)


def _finish(optimizer, params, opt_state, sums, grads, defaults):
    """Divides the sums by their weights, once, and makes the step."""
    loss_sum, sums = sums
    weight = sums["weight"]
    grads = jax.tree.map(lambda g: divide(g, weight), grads)
    loss_value = divide(loss_sum, weight)
    params, opt_state, info = step(optimizer, params, opt_state, grads, loss_value, weight)
    info |= {"loss": loss_value, "weight": weight} | defaults
    info |= {name: divide(*pair) for name, pair in sums["metrics"].items()}
    return params, opt_state, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), info)


def float32(tree):
    return jax.tree.map(lambda g: g.astype(jnp.float32), tree)


def accumulate(value_and_grad, params, batch, microbatch_rows):
    """Sums value_and_grad(params, microbatch) over the microbatches, gradients in float32."""
    if not 0 < microbatch_rows < jax.tree.leaves(batch)[0].shape[0]:
        sums, grads = value_and_grad(params, batch)
        return sums, float32(grads)
    parts = slices(batch, microbatch_rows)

    def body(total, part):
        sums, grads = value_and_grad(params, part)
        return jax.tree.map(jnp.add, total, (sums, float32(grads))), None

    shapes = jax.eval_shape(lambda *a: value_and_grad(*a)[0], params, jax.tree.map(lambda x: x[0], parts))
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    start = zeros, jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    return jax.lax.scan(body, start, parts)[0]


def step(optimizer, params, opt_state, grads, loss, weight):
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


def divide(x, weight):
    return jnp.where(weight > 0, x / jnp.where(weight > 0, weight, 1), 0)


def slices(tree, microbatch_rows):
    """[B, ...] -> [n, microbatch_rows, ...] for every array; microbatch i holds the rows i, i + n, i + 2n, ...

    Strided, so that rows sharded over devices in blocks stay on their devices in each microbatch.
    """
    rows = jax.tree.leaves(tree)[0].shape[0]
    if rows % microbatch_rows:
        raise ValueError(f"microbatch_rows={microbatch_rows} does not divide the {rows} rows of the batch")
    n = rows // microbatch_rows
    return jax.tree.map(lambda x: x.reshape(microbatch_rows, n, *x.shape[1:]).swapaxes(0, 1), tree)
