"""What a traced program may know of the devices: its platform, and where activations are cut.

Models pin their activations with `constrain`; it does nothing unless the caller traces under a mesh (`on`).
"""

import contextlib
import contextvars
import dataclasses
import functools
import inspect
import math

import jax
from jax.sharding import AxisType, Mesh, PartitionSpec

AXES = ("data", "fsdp", "tensor")
ROWS = ("data", "fsdp")
ACTIVATION_RULES = {"rows": ROWS, **dict.fromkeys(("heads", "kv_heads", "mlp", "vocab"), ("tensor",))}


@dataclasses.dataclass(frozen=True)
class Target:
    """What programs are traced for.

    Attributes:
      platform: "cpu", "gpu" or "tpu".
      kind: the device's name, for messages.
      capability: of an NVIDIA GPU, such as (9, 0); None elsewhere.
      devices: how many.
    """

    platform: str
    kind: str
    capability: tuple[int, int] | None = None
    devices: int = 1


_target = contextvars.ContextVar("target", default=None)


def target() -> Target:
    """What programs are traced for: this machine's devices, or what `compiling_for` names."""
    return _target.get() or _present()


@functools.cache
def _present() -> Target:
    device = jax.devices()[0]
    capability = getattr(device, "compute_capability", None) if "cuda" in device.client.platform_version.lower() else None
    return Target(device.platform, device.device_kind, capability and tuple(map(int, capability.split("."))),
                  jax.device_count())


def platform() -> str:
    """"cpu", "gpu" or "tpu": what programs are traced for, which is where they run but under `compiling_for`."""
    return _target.get().platform if _target.get() else jax.default_backend()


@contextlib.contextmanager
def compiling_for(name: str, kind: str | None = None, *, capability: tuple[int, int] | None = None, devices: int = 1):
    """Programs traced in this context are for other devices than this machine's; see `Target`."""
    token = _target.set(Target(name, kind or name, capability, devices))
    try:
        yield
    finally:
        _target.reset(token)


def row_shards(mesh: Mesh | None) -> int:
    """Into how many parts rows are cut."""
    return 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]


def constrain(x, *axes: str | None):
    """Pins an activation to where ACTIVATION_RULES put its logical axes, one name or None a dimension; the leaves of a
    pytree alike (an `Int8Matrix`, whose scale has a dimension of 1: it stays whole).

    Does nothing unless the caller runs under a mesh (`on`); mesh axes that a `shard_map` has taken, or that do not
    divide, are left out. Without pins XLA may cut activations the way fsdp cuts weights, and add up partial products
    over all devices instead of gathering a layer.
    """
    if not free_axes():
        return x

    def cut(x):
        return PartitionSpec(*(cut_over(axis, size) for axis, size in zip(axes, x.shape, strict=True)))

    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, cut(x)), x)


def cut_over(axis: str | None, size: int) -> tuple[str, ...] | None:
    """The axes of the caller's mesh that `constrain` cuts a dimension of this logical axis over; None: it stays whole."""
    free = free_axes()
    names = tuple(name for name in ACTIVATION_RULES[axis] if name in free) if axis else ()
    return names if names and size % math.prod(free[name] for name in names) == 0 else None


def free_axes() -> dict[str, int]:
    """Axes of the caller's mesh that no `shard_map` has taken -> their devices; {} without a mesh or on one device."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return {}
    return {name: size for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
            if kind == AxisType.Auto}


def parts_of(axis: str, size: int) -> int:
    """Into how many parts `constrain` cuts a dimension of this logical axis."""
    free = free_axes()
    return math.prod(free[name] for name in cut_over(axis, size) or ())


def on(mesh: Mesh | None, function):
    """The function, traced and called under the mesh, so that `constrain` knows it."""
    if mesh is None or mesh.size == 1:
        return function

    def call(*args, **kwargs):
        with jax.set_mesh(mesh):
            return function(*args, **kwargs)

    return call


def over_rows(function, mesh: Mesh | None, *, rows):
    """The function, run by each group of devices on its own rows. Devices exchange data along the tensor axis only.

    Loops in it end where their own rows have ended, each group's at its own time.

    Args:
      function: of positional arguments; its result's arrays all begin with rows.
      mesh: None, or of one device: the function as it is.
      rows: names of the arguments that are cut by rows. All devices get the whole of the others.
    """
    names = list(inspect.signature(function).parameters)
    if unknown := set(rows) - set(names):
        raise ValueError(f"rows={tuple(rows)}: {sorted(unknown)} are not arguments of the function; it has {names}")
    if mesh is None or mesh.size == 1:
        return function
    cut = PartitionSpec(ROWS)
    return jax.shard_map(function, mesh=mesh, in_specs=tuple(cut if name in rows else PartitionSpec() for name in names),
                         out_specs=cut, axis_names=set(AXES if mesh.shape["tensor"] == 1 else ROWS), check_vma=False)
