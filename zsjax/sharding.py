"""Where arrays live: a mesh of devices, and rules that say which mesh axis cuts which logical axis.

The mesh has axes ("data", "fsdp", "tensor"). Parameters name their logical axes (`zsjax.models.decoder.ParamSpec`), and
so do activations and the cache, where `constrain` pins them. There are three rule sets: training cuts parameters and
what the optimizer keeps of them over fsdp as well (a layer is gathered when it is used); decoding keeps them whole over
fsdp, so that no step gathers anything; activations are cut by rows and heads. `for_decoding` goes from the first to the
second, once per rollout. Rows of a batch are cut over data and fsdp together.

With many hosts a rollout is each host's own matter: it plays its rows on `local_mesh`, its own devices, with a copy of
the parameters there, and nothing is exchanged until the episodes are finished (`zsjax.hosts`).
"""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")

# Logical axis -> mesh axis; absent or None is not cut.
TRAIN_RULES = {"embed": "fsdp", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}
DECODE_RULES = {"heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}
ACTIVATION_RULES = {"rows": ROWS, "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}


def make_mesh(sizes, devices=None) -> Mesh:
    """A mesh of axes data, fsdp, tensor.

    Args:
      sizes: an object (MeshConfig) or dict with data, fsdp and tensor: devices along each axis; at most one -1 takes
        what is left; absent ones are 1. Of a MeshConfig, the simulator's devices are left out.
      devices: None is all of `jax.devices()`.

    Returns:
      The mesh; neighbours along tensor are neighbours in `devices`, where links are fastest.

    Raises:
      ValueError: an unknown axis, a size that is neither positive nor -1, or sizes that do not give all devices.
    """
    devices, _ = split_devices(sizes, devices)
    return Mesh(np.asarray(devices).reshape(mesh_shape(sizes, len(devices))), AXES)


def simulator_mesh(sizes, devices=None) -> Mesh | None:
    """The mesh of this host's devices that hold the simulator alone; None where it shares the policy's. Arguments as
    `make_mesh`, which gives the others. Raises ValueError where the devices do not divide."""
    _, devices = split_devices(sizes, devices)
    mine = [device for device in devices if device.process_index == jax.process_index()]
    if not mine:
        return None
    if len(mine) % sizes.simulator_tensor:
        raise ValueError(f"mesh.simulator_tensor={sizes.simulator_tensor} does not divide the {len(mine)} devices of the "
                         "simulator")
    return Mesh(np.asarray(mine).reshape(-1, 1, sizes.simulator_tensor), AXES)


def split_devices(sizes, devices=None) -> tuple[list, list]:
    """(the policy's, the simulator's) devices: of each host the last `sizes.simulator_devices` are the simulator's.

    Raises ValueError where none is left for the policy.
    """
    devices = list(jax.devices() if devices is None else devices)
    apart = getattr(sizes, "simulator_devices", 0)
    hosts = {}
    for device in devices:
        hosts.setdefault(device.process_index, []).append(device)
    if apart >= min(map(len, hosts.values())):
        raise ValueError(f"mesh.simulator_devices={apart} leaves none of a host's {min(map(len, hosts.values()))} devices "
                         "for the policy")
    policy = {device for of_host in hosts.values() for device in of_host[:len(of_host) - apart]}
    return [d for d in devices if d in policy], [d for d in devices if d not in policy]


def device_count(mesh: Mesh, sizes) -> int:
    """Devices of the policy's mesh and the simulator's, of all hosts."""
    return mesh.size + sizes.simulator_devices * jax.process_count()


def mesh_shape(sizes, num_devices: int) -> tuple[int, int, int]:
    """Devices along data, fsdp and tensor; arguments and errors as `make_mesh`."""
    given = {axis: getattr(sizes, axis) for axis in AXES} if dataclasses.is_dataclass(sizes) else dict(sizes)
    if set(given) - set(AXES):
        raise ValueError(f"unknown mesh axes {sorted(set(given) - set(AXES))}; there are {', '.join(AXES)}")
    shape = [given.get(axis, 1) for axis in AXES]
    text = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape))
    if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
        raise ValueError(f"mesh ({text}): sizes are positive, and at most one is -1")
    known = math.prod(size for size in shape if size != -1)
    if -1 in shape:
        shape[shape.index(-1)] = max(num_devices // known, 1)
    if math.prod(shape) != num_devices:
        raise ValueError(f"mesh ({text}) does not fit {num_devices} devices: the product must be their number"
                         + (f", and {known} does not divide it" if -1 in (given.get(a, 1) for a in AXES) else ""))
    return tuple(shape)


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
        raise ValueError("; ".join(problems) + ": choose a mesh axis that divides, or a rule set that leaves the "
                         "axis whole (rule None)")
    return fitting


def param_shardings(config, mesh: Mesh, rules: Mapping[str, str | None], specs=None):
    """The tree of NamedShardings of a decoder's parameters, or of others on its axes.

    Args:
      config, mesh, rules: as `fitting_rules`, with its errors.
      specs: a tree of ParamSpecs, such as `zsjax.models.lora.adapter_specs`; None is the decoder's.
    """
    from zsjax.models.decoder import param_specs  # models pin their activations with `constrain`: they import us

    rules = fitting_rules(config, mesh, rules)

    def sharding(spec):
        return NamedSharding(mesh, PartitionSpec(*(rules.get(axis) if axis else None for axis in spec.axes)))

    return jax.tree.map(sharding, param_specs(config) if specs is None else specs, is_leaf=lambda x: hasattr(x, "axes"))


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Rows, the first axis of a batch, over data and fsdp; other axes whole. Rows must be a multiple of both."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def row_shards(mesh: Mesh | None) -> int:
    """Into how many parts rows are cut."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def reshard(tree, shardings):
    """Moves a tree of arrays to other shardings (a tree like it, or one for all); what is in place stays there.

    With many hosts, arrays of a host's own (numpy, or on its devices) are whole and the same on every host, and each
    feeds what its own devices hold.
    """
    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)

    def move(x, sharding):
        if sharding.is_fully_addressable or (isinstance(x, jax.Array) and not x.is_fully_addressable):
            return jax.device_put(x, sharding)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(move, tree, shardings)


def constrain(x, *axes: str | None):
    """Pins an activation to where ACTIVATION_RULES put its logical axes, one name or None a dimension; the leaves of a
    pytree alike (an `Int8Matrix`, whose scale has a dimension of 1: it stays whole).

    Does nothing unless the caller runs under a mesh (`on`); mesh axes that a `shard_map` has taken, or that do not
    divide, are left out. Without pins XLA may cut activations the way fsdp cuts weights, and add up partial products
    over all devices instead of gathering a layer.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return x
    free = {name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind == AxisType.Auto}

    def cut(logical, size):
        names = ACTIVATION_RULES[logical] if logical else ()
        names = tuple(name for name in ((names,) if isinstance(names, str) else names) if name in free)
        return names if names and size % math.prod(mesh.shape[name] for name in names) == 0 else None

    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec(*map(cut, axes, x.shape))), x)


def on(mesh: Mesh | None, function):
    """The function, traced and called under the mesh, so that `constrain` knows it."""
    if mesh is None or mesh.size == 1:
        return function

    def call(*args, **kwargs):
        with jax.set_mesh(mesh):
            return function(*args, **kwargs)

    return call


def over_rows(function, mesh: Mesh | None, in_rows):
    """The function, run by each group of devices on its own rows: nothing is exchanged but within the tensor axis.

    Loops in it end where their own rows have ended, each group's at its own time.

    Args:
      function: its result's arrays all begin with rows.
      mesh: None, or of one device: the function as it is.
      in_rows: a bool for each argument: cut by rows, or the same for all.
    """
    if mesh is None or mesh.size == 1:
        return function
    rows = PartitionSpec(ROWS)
    return jax.shard_map(function, mesh=mesh, in_specs=tuple(rows if cut else PartitionSpec() for cut in in_rows),
                         out_specs=rows, axis_names=set(AXES if mesh.shape["tensor"] == 1 else ROWS), check_vma=False)


def local_mesh(mesh: Mesh) -> Mesh:
    """The part of the mesh that is this host's: the same axes, its rows along data, tensor whole.

    Raises:
      ValueError: tensor groups reach over hosts.
    """
    if all(device.process_index == jax.process_index() for device in mesh.devices.flat):
        return mesh
    lines = mesh.devices.reshape(-1, mesh.shape["tensor"])
    mine = [[device.process_index == jax.process_index() for device in line] for line in lines]
    if any(any(line) != all(line) for line in mine):
        raise ValueError(f"mesh.tensor={mesh.shape['tensor']} reaches over hosts of {jax.local_device_count()} devices: "
                         "choose one that divides a host's devices")
    lines = lines[[all(line) for line in mine]]
    return Mesh(lines[:, None], AXES)


def local_row_shards(mesh: Mesh) -> list[int]:
    """Which of the `row_shards` parts of the rows this host's devices hold, in the order of `local_mesh`."""
    lines = mesh.devices.reshape(-1, mesh.shape["tensor"])
    return [i for i, line in enumerate(lines) if line[0].process_index == jax.process_index()]


def for_decoding(params, config, mesh: Mesh | None):
    """Parameters as rollouts read them: under DECODE_RULES, on this host's own part of the mesh, matrices in the dtype
    that they are used in. What is so already is not copied. They may have adapters or int8 matrices."""
    if mesh is None or mesh.size == 1:
        return params
    from zsjax.models.decoder import cast_matrices, specs_of

    mine, specs = local_mesh(mesh), specs_of(params, config)
    here = param_shardings(config, mine, DECODE_RULES, specs)
    used = jax.eval_shape(lambda params: cast_matrices(params, config), params)
    there = lambda x, sharding, used: x.sharding.is_equivalent_to(sharding, x.ndim) and x.dtype == used.dtype
    if all(jax.tree.leaves(jax.tree.map(there, params, here, used))):
        return params
    if mine is mesh:
        return jax.device_put(cast_matrices(params, config), here)
    shardings, treedef = jax.tree.flatten(param_shardings(config, mesh, DECODE_RULES, specs))
    whole = _gathering(config, treedef, tuple(shardings))(params)
    local = lambda x, sharding: jax.make_array_from_single_device_arrays(
        x.shape, sharding, [shard.data for shard in x.addressable_shards])
    return jax.tree.map(local, whole, here)


@functools.cache
def _gathering(config, treedef, shardings):
    from zsjax.models.decoder import cast_matrices

    return jax.jit(lambda params: cast_matrices(params, config), out_shardings=treedef.unflatten(shardings))
