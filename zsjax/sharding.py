"""Where arrays live: a mesh of devices, rules from logical axes to mesh axes, shardings of parameters and rows.

The mesh has axes ("data", "fsdp", "tensor"). Rows of a batch are cut over data and fsdp together. Parameters name
their logical axes (`zsjax.models.decoder.ParamSpec`); a rule set says which mesh axis cuts which. Training cuts
`embed` over fsdp (gathered when used); decoding keeps parameters whole over fsdp, so that no step gathers anything:
`reshard` goes from one to the other once per rollout.
"""

import dataclasses
import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zsjax.models.decoder import ParamSpec, param_specs
from zsjax.models.layers import DecoderConfig

AXES = ("data", "fsdp", "tensor")

# Logical axis -> mesh axis; absent or None is not cut.
TRAIN_RULES = {"embed": "fsdp", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}
DECODE_RULES = {"heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "vocab": "tensor"}


def make_mesh(sizes, devices=None) -> Mesh:
    """A mesh of axes data, fsdp, tensor.

    Args:
      sizes: an object (MeshConfig) or dict with data, fsdp and tensor: devices along each axis; at most one -1 takes
        what is left; absent ones are 1.
      devices: None is all of `jax.devices()`.

    Returns:
      The mesh; neighbours along tensor are neighbours in `devices`, where links are fastest.

    Raises:
      ValueError: an unknown axis, a size that is neither positive nor -1, or sizes that do not give all devices.
    """
    given = dataclasses.asdict(sizes) if dataclasses.is_dataclass(sizes) else dict(sizes)
    if set(given) - set(AXES):
        raise ValueError(f"unknown mesh axes {sorted(set(given) - set(AXES))}; there are {', '.join(AXES)}")
    devices = list(jax.devices() if devices is None else devices)
    shape = [given.get(axis, 1) for axis in AXES]
    text = ", ".join(f"{axis}={size}" for axis, size in zip(AXES, shape))
    if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
        raise ValueError(f"mesh ({text}): sizes are positive, and at most one is -1")
    known = math.prod(size for size in shape if size != -1)
    if -1 in shape:
        shape[shape.index(-1)] = max(len(devices) // known, 1)
    if math.prod(shape) != len(devices):
        raise ValueError(f"mesh ({text}) does not fit {len(devices)} devices: the product must be their number"
                         + (f", and {known} does not divide it" if -1 in (given.get(a, 1) for a in AXES) else ""))
    return Mesh(np.asarray(devices).reshape(shape), AXES)


def _check_divides(config: DecoderConfig, mesh: Mesh, rules: Mapping[str, str | None]):
    """Every cut axis divides. Heads are counted whole: a head cut in two would make attention wrong or slow."""
    sizes = {"heads": ("num_heads", config.num_heads), "kv_heads": ("num_kv_heads", config.num_kv_heads),
             "embed": ("embed_dim", config.embed_dim), "mlp": ("mlp_dim", config.mlp_dim),
             "vocab": ("vocab_size", config.vocab_size)}
    problems = []
    for logical, axis in rules.items():
        if axis is None:
            continue
        if axis not in mesh.shape:
            raise ValueError(f"rule {logical!r} -> {axis!r}: the mesh has axes {', '.join(mesh.axis_names)}")
        if logical not in sizes:
            raise ValueError(f"unknown logical axis {logical!r}; parameters have {', '.join(sizes)}")
        field, size = sizes[logical]
        if size % mesh.shape[axis]:
            problems.append(f"{field}={size} is not a multiple of mesh.{axis}={mesh.shape[axis]}")
    if problems:
        raise ValueError("; ".join(problems) + ": choose a mesh axis that divides, or a rule set that leaves the "
                         "axis whole (rule None)")


def param_shardings(config: DecoderConfig, mesh: Mesh, rules: Mapping[str, str | None], specs=None):
    """The tree of NamedShardings of a decoder's parameters, or of others on its axes.

    Args:
      config: the decoder.
      mesh: of `make_mesh`.
      rules: logical axis -> mesh axis, such as TRAIN_RULES; absent or None is not cut.
      specs: a tree of ParamSpecs, such as `zsjax.models.lora.adapter_specs`; None is the decoder's.

    Raises:
      ValueError: heads, kv heads or another cut axis does not divide, with fields and sizes named.
    """
    _check_divides(config, mesh, rules)

    def sharding(spec: ParamSpec):
        return NamedSharding(mesh, PartitionSpec(*(rules.get(axis) if axis else None for axis in spec.axes)))

    specs = param_specs(config) if specs is None else specs
    return jax.tree.map(sharding, specs, is_leaf=lambda x: isinstance(x, ParamSpec))


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Rows, the first axis of a batch, over data and fsdp; other axes whole. Rows must be a multiple of both."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def reshard(tree, shardings):
    """Moves a tree of arrays to other shardings (a tree like it, or one for all); what is in place stays there."""
    return jax.device_put(tree, shardings)
