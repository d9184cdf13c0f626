"""Where a decoder's parameters are: their shardings on a mesh, and the copy that decoding reads."""

import functools
from collections.abc import Mapping

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zsjax.errors import InputError
from zsjax.models.decoder import cast_matrices, param_specs, specs_of
from zsjax.parallel.mesh import DECODE_RULES, local_mesh


def fitting_rules(config, mesh: Mesh, rules: Mapping[str, str | None]) -> dict[str, str | None]:
    """The rules as this decoder can follow them on this mesh.

    Heads are counted whole: a head cut in two would make attention wrong or slow. Where kv heads are too few for the
    mesh axis that cuts the query heads (Qwen2.5-3B has 2), every device keeps all of them: they are a small part of
    the weights, and a query head still finds its kv head at home. A vocabulary that does not divide stays whole, too.

    Args:
      config: DecoderConfig.
      mesh: of `make_mesh`.
      rules: logical axis -> mesh axis, such as TRAIN_RULES; absent or None is not cut.

    Raises:
      ValueError: another axis that is cut does not divide, with fields and sizes named.
    """
    sizes = {"heads": ("num_heads", config.num_heads), "kv_heads": ("num_kv_heads", config.num_kv_heads),
             "embed": ("embed_dim", config.embed_dim), "mlp": ("mlp_dim", config.mlp_dim),
             "vocab": ("vocab_size", config.vocab_size)}
    fitting, problems = dict(rules), []
    for logical, axis in rules.items():
        if axis is None:
            continue
        if axis not in mesh.shape:
            raise ValueError(f"rule {logical!r} -> {axis!r}: the mesh has axes {', '.join(mesh.axis_names)}")
        if logical not in sizes:
            raise ValueError(f"unknown logical axis {logical!r}; parameters have {', '.join(sizes)}")
        field, size = sizes[logical]
        if size % mesh.shape[axis] == 0:
            continue
        if logical in ("kv_heads", "vocab"):
            fitting[logical] = None
        else:
            problems.append(f"{field}={size} is not a multiple of mesh.{axis}={mesh.shape[axis]}")
    if problems:
        raise InputError("; ".join(problems) + ": choose a mesh axis that divides, or a rule set that leaves the "
                         "axis whole (rule None)")
    return fitting


def param_shardings(config, mesh: Mesh, rules: Mapping[str, str | None], specs=None):
    """The tree of NamedShardings of a decoder's parameters, or of others on its axes.

    Args:
      config, mesh, rules: as `fitting_rules`, with its errors.
      specs: a tree of ParamSpecs, such as `zsjax.models.lora.adapter_specs`; None is the decoder's.
    """
    # On one device nothing is cut. Names of axes would come back from a program in another order, and the next program
    # would be compiled for both.
    rules = fitting_rules(config, mesh, rules) if mesh.size > 1 else {}

    def sharding(spec):
        return NamedSharding(mesh, PartitionSpec(*(rules.get(axis) if axis else None for axis in spec.axes)))

    return jax.tree.map(sharding, param_specs(config) if specs is None else specs, is_leaf=lambda x: hasattr(x, "axes"))


def for_decoding(params, config, mesh: Mesh | None):
    """Parameters as rollouts read them: under DECODE_RULES, on this host's own part of the mesh, matrices in the dtype
    that they are used in. What is so already is not copied. They may have adapters or int8 matrices."""
    if mesh is None or mesh.size == 1:
        return params
    mine, specs = local_mesh(mesh), specs_of(params, config)
    here = param_shardings(config, mine, DECODE_RULES, specs)
    used = jax.eval_shape(lambda params: cast_matrices(params, config), params)

    def there(x, sharding, used):
        return x.sharding.is_equivalent_to(sharding, x.ndim) and x.dtype == used.dtype

    if all(jax.tree.leaves(jax.tree.map(there, params, here, used))):
        return params
    if mine is mesh:
        return jax.device_put(cast_matrices(params, config), here)
    shardings, treedef = jax.tree.flatten(param_shardings(config, mesh, DECODE_RULES, specs))
    whole = _gathering(config, treedef, tuple(shardings))(params)

    def local(x, sharding):
        return jax.make_array_from_single_device_arrays(
            x.shape, sharding, [shard.data for shard in x.addressable_shards])

    return jax.tree.map(local, whole, here)


@functools.cache
def _gathering(config, treedef, shardings):
    return jax.jit(lambda params: cast_matrices(params, config), out_shardings=treedef.unflatten(shardings))
