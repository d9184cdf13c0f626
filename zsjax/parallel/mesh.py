"""Where arrays live: a mesh of devices, and rules that say which mesh axis cuts which logical axis.

The mesh has axes ("data", "fsdp", "tensor"). Parameters name their logical axes (`zsjax.models.decoder.ParamSpec`), and
so do activations and the cache (`zsjax.parallel.constrain`). There are three rule sets: training cuts parameters and
what the optimizer keeps of them over fsdp as well (a layer is gathered when it is used); decoding keeps them whole over
fsdp, so that no step gathers anything; activations are cut by rows and heads. `zsjax.models.placement.for_decoding` goes
from the first to the second, once per rollout. Rows of a batch are cut over data and fsdp together.

With many hosts a rollout is each host's own matter: it plays its rows on `local_mesh`, its own devices, with a copy of
the parameters there, and nothing is exchanged until the episodes are finished (`zsjax.parallel.hosts`).
"""

import dataclasses
import math

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zsjax.errors import InputError
from zsjax.parallel.constrain import AXES, ROWS

# Logical axis -> mesh axis; absent or None is not cut.
TRAIN_RULES = {"embed": "fsdp", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}
DECODE_RULES = {"heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}


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
        raise InputError(f"mesh.simulator_tensor={sizes.simulator_tensor} does not divide the {len(mine)} devices of the "
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
        raise InputError(f"mesh.simulator_devices={apart} leaves none of a host's {min(map(len, hosts.values()))} devices "
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
        raise InputError(f"unknown mesh axes {sorted(set(given) - set(AXES))}; there are {', '.join(AXES)}")
    shape = [given.get(axis, 1) for axis in AXES]
    text = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape, strict=True))
    if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
        raise InputError(f"mesh ({text}): sizes are positive, and at most one is -1")
    known = math.prod(size for size in shape if size != -1)
    if -1 in shape:
        shape[shape.index(-1)] = max(num_devices // known, 1)
    if math.prod(shape) != num_devices:
        raise InputError(f"mesh ({text}) does not fit {num_devices} devices: the product must be their number"
                         + (f", and {known} does not divide it" if -1 in (given.get(a, 1) for a in AXES) else ""))
    return tuple(shape)


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Rows, the first axis of a batch, over data and fsdp; other axes whole. Rows must be a multiple of both."""
    return NamedSharding(mesh, PartitionSpec(ROWS))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


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
        raise InputError(f"mesh.tensor={mesh.shape['tensor']} reaches over hosts of {jax.local_device_count()} devices: "
                         "choose one that divides a host's devices")
    lines = lines[[all(line) for line in mine]]
    return Mesh(lines[:, None], AXES)


def local_row_shards(mesh: Mesh) -> list[int]:
    """Which of the `row_shards` parts of the rows this host's devices hold, in the order of `local_mesh`."""
    lines = mesh.devices.reshape(-1, mesh.shape["tensor"])
    return [i for i, line in enumerate(lines) if line[0].process_index == jax.process_index()]
