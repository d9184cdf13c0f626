"""How an objective becomes an optimizer step of a whole batch, or of a list of parts of different shapes.

A step over a batch in parts adds up sums and weights and divides once. The step is therefore that of the whole batch,
however it is cut (ZeroSearch's own code divided a smaller second part by the first's count). An objective
(`zsjax.rl.objective`) gets the whole model, `assemble(params, frozen)`: the trained parameters and frozen ones, which get
no gradient (zsjax.models.lora).
"""

import jax
import jax.numpy as jnp
import optax

from zsjax.parallel.mesh import replicated
from zsjax.rl.executable import Executable
from zsjax.types import Metric

METRICS = (
    Metric("loss", "the whole objective, all terms", chart="Loss", curve="loss"),
    Metric("grad_norm", "global norm of the gradient, before clipping", low=0.0,
           healthy="keeps its order of magnitude", alarm="the gradient explodes", chart="Gradient norm", curve="norm"),
    Metric("weight", "what the sums are divided by: tokens or episodes of an update", low=0.0),
    Metric("nonfinite", "updates that were left out because loss or gradient was not finite", "share of updates", 0.0, 1.0,
           healthy="0", read_by=("stop rule",)),
)


def trained_alone(params, frozen):
    """The model where nothing is frozen: the trained parameters."""
    del frozen
    return params


def over_microbatches(rows, microbatch_rows):
    """The jitted rows(params, tokens [B, T], *masks [B, T]) -> tree of [B, T], microbatch_rows at a time; 0 is all."""

    @jax.jit
    def scored(params, tokens, *masks):
        B, T = tokens.shape
        if not 0 < microbatch_rows < B:
            return rows(params, tokens, *masks)
        out = jax.lax.map(lambda part: rows(params, *part), slices((tokens, *masks), microbatch_rows))
        return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(B, T), out)

    return scored


def whole_step(objective, optimizer, microbatch_rows=0, *, assemble=trained_alone):
    """The step of a batch in one array, in one compiled program; microbatches of rows are scanned over.

    Returns:
      update(params, opt_state, batch, coef=None, frozen=None) -> (params, opt_state, info), params and opt_state donated.
    """
    sums_of = _sums_of(objective, assemble)

    def update(params, opt_state, batch, coef=None, frozen=None):
        weights = objective.weigh and objective.weigh(batch)
        scale = weights and divide(*weights)
        total = accumulate(lambda params, part: sums_of(params, part, scale, coef, frozen), params, batch, microbatch_rows)
        return _finish(objective, optimizer, params, opt_state, total, weights)

    return jax.jit(update, donate_argnums=(0, 1))


class PackedStep:
    """The same step over a list of parts of different shapes, driven from the host: see `zsjax.rl.packing`.

    One compiled program for each shape of a part, `programs` names them; params, opt_state and the running sums are donated.
    """

    def __init__(self, objective, optimizer, *, assemble=trained_alone):
        def finish(params, opt_state, total, weights):
            return _finish(objective, optimizer, params, opt_state, total, weights)

        self._sums_of = _sums_of(objective, assemble)
        self.programs = {"finish": Executable(jax.jit(finish, donate_argnums=(0, 1)))}
        if objective.weigh:
            self.programs["weigh"] = Executable(jax.jit(objective.weigh))

    def __call__(self, params, opt_state, parts, coef=None, frozen=None):
        """(params, opt_state, info) of the step. The host does not wait before it reads the info."""
        weights = scale = None
        if weigh := self.programs.get("weigh"):
            weights = jax.tree.map(lambda *x: sum(x), *[weigh(part) for part in parts])
            scale = divide(*weights)
        self._prepare(params, parts[0], scale, coef, frozen)
        total = self.programs["zeros"]()
        for part in parts:
            total = self.programs["add"](total, params, part, scale, coef, frozen)
        return self.programs["finish"](params, opt_state, total, weights)

    def _prepare(self, params, *given):
        """The programs of the running sums, which depend on the parameters' shapes and shardings."""
        if "add" in self.programs:
            return
        # The running sums are sharded as the parameters are. Left to XLA, first and later sums are sharded differently, and
        # the program of each shape is compiled for both: the second time in the middle of a run.
        shapes, places = _shapes(self._sums_of, params, *given), jax.tree.map(lambda x: x.sharding, params)
        mesh = getattr(jax.tree.leaves(places)[0], "mesh", None)
        where = {} if mesh is None else dict(out_shardings=(replicated(mesh), places))

        def add(total, *given):
            return jax.tree.map(jnp.add, total, _with_gradient(self._sums_of, *given))

        def zeros():
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

        self.programs["zeros"] = Executable(jax.jit(zeros, **where))
        self.programs["add"] = Executable(jax.jit(add, donate_argnums=0, **where))

    def _arguments(self, params, part, coef, frozen):
        """(running sums, weights, scale): what the programs take beside their own arguments, as shapes on the mesh."""
        mesh = jax.tree.leaves(params)[0].sharding.mesh
        number = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
        weights, scale = ((number, number), number) if "weigh" in self.programs else (None, None)
        self._prepare(params, part, scale, coef, frozen)

        def place(x, where):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

        sums, grads = jax.eval_shape(self.programs["zeros"].jitted)
        total = (jax.tree.map(lambda x: place(x, replicated(mesh)), sums),
                 jax.tree.map(lambda x, like: place(x, like.sharding), grads, params))
        return total, weights, scale

    def lower(self, params, opt_state, part, coef=None, frozen=None):
        """{"update": one part's gradients, "apply": the optimizer's step}, lowered for shapes with shardings."""
        total, weights, scale = self._arguments(params, part, coef, frozen)
        return {"update": self.programs["add"].lower(total, params, part, scale, coef, frozen),
                "apply": self.programs["finish"].lower(params, opt_state, total, weights)}

    def compile(self, params, opt_state, parts, coef=None, frozen=None):
        """Compiles the programs of these shapes of parts; nothing is run. The parameters are on a mesh."""
        total, weights, scale = self._arguments(params, parts[0], coef, frozen)
        self.programs["zeros"].compile()
        for part in parts:
            if "weigh" in self.programs:
                self.programs["weigh"].compile(part)
            self.programs["add"].compile(total, params, part, scale, coef, frozen)
        self.programs["finish"].compile(params, opt_state, total, weights)


def _sums_of(objective, assemble):
    """sums_of(params, batch, scale, coef, frozen) -> (the loss's sum, what else is summed)."""

    def sums_of(params, batch, scale, coef, frozen):
        return objective.loss_sum(assemble(params, frozen), batch, scale, coef)

    return sums_of


def _with_gradient(sums_of, params, *given):
    """(sums, their gradient with respect to params alone, float32)."""
    sums, grads = jax.value_and_grad(sums_of, has_aux=True)(params, *given)
    return sums, float32(grads)


def _shapes(sums_of, params, *given):
    """Shapes of `_with_gradient`'s result. No backward pass is traced, which takes most of the time of tracing."""
    return (jax.eval_shape(sums_of, params, *given),
            jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, jnp.float32), params))


def _finish(objective, optimizer, params, opt_state, total, weights):
    """Divides the sums by their weights, once, and makes the step. weights: those of `weigh`, or None."""
    (loss_sum, sums), grads = total
    weight = sums["weight"]
    mismatch = None if weights is None else jnp.abs(weight - weights[0]) > 1e-4 * jnp.abs(weights[0])
    grads = jax.tree.map(lambda g: divide(g, weight), grads)
    loss_value = divide(loss_sum, weight)
    counts = (weight > 0) if mismatch is None else (weight > 0) & ~mismatch
    params, opt_state, info = optimizer_step(optimizer, params, opt_state, grads, loss_value, counts)
    info |= {"loss": loss_value, "weight": weight} | objective.defaults
    info |= {name: divide(*pair) for name, pair in sums["metrics"].items()}
    if mismatch is not None:
        info["weight_mismatch"] = mismatch
    return params, opt_state, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), info)


def float32(tree):
    return jax.tree.map(lambda g: g.astype(jnp.float32), tree)


def accumulate(sums_of, params, batch, microbatch_rows):
    """(sums_of(params, batch), its gradient), added up over microbatches, gradients in float32.

    sums_of: (params, part) -> (loss sum, other sums), each the sum of those of the batch's parts.
    """
    if not 0 < microbatch_rows < jax.tree.leaves(batch)[0].shape[0]:
        return _with_gradient(sums_of, params, batch)
    parts = slices(batch, microbatch_rows)

    def body(total, part):
        return jax.tree.map(jnp.add, total, _with_gradient(sums_of, params, part)), None

    shapes = _shapes(sums_of, params, jax.tree.map(lambda x: x[0], parts))
    return jax.lax.scan(body, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes), parts)[0]


def optimizer_step(optimizer, params, opt_state, grads, loss, counts):
    """One optimizer step. Nothing changes if loss or gradient is not finite, or `counts` (bool[]) is False."""
    grad_norm = optax.global_norm(grads)
    finite = jnp.isfinite(grad_norm) & jnp.isfinite(loss)
    updates, new_state = optimizer.update(grads, opt_state, params)
    new_params = optax.apply_updates(params, updates)
    # A select: the branches of a lax.cond would each hold a copy of everything. The cast keeps the state's dtypes where
    # parameters are bf16 and gradients float32.
    def keep(new, old):
        return jnp.where(finite & counts, new, old).astype(old.dtype)

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
