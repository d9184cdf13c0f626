"""One kernel of a compiled program: its bytes, products, exchange between devices, and what it stores again.

A gather or a slice reads the elements that it takes, an update in place writes those that it puts, and values inside a
fusion are not stored. A TPU's arrays that stay on the chip cost no bytes. A Pallas kernel reads its whole operands, and its
products are not counted. Of `zsjax.models.flash_decoding` the rows that are asked for count, with all their slots.
"""

import collections
import dataclasses
import json
import math
import re

from zsjax.plan.targets import Chip

# Calls of a TPU that only name arrays.
_NAMES_ONLY = {"ConcatBitcast", "AllocateBuffer"}
_TAKES, _PUTS = {"gather": 1, "dynamic-slice": 1, "slice": 1}, {"scatter": 2, "dynamic-update-slice": 1}
_EXCHANGES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
              "ragged-all-to-all")
_FLASH = "/flash_decode/pallas_call"  # in the name of its instruction; operands: last, q, k, v, scales, rows
_HALVES = {"bf16", "f16", "s8", "f8e4m3fn", "f8e5m2"}
_VIEWS = {"bitcast", "reshape", "copy", "transpose", "convert"}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One launch.

    Attributes:
      name, opcode: as in the text; of a fusion "fusion".
      reads, writes: bytes.
      flops: (dtype of the operands, FLOPs of products) pairs.
      repeated: of these, those that remat computes again.
      exchanged: bytes of an exchange between devices, 0 for other kernels.
      exchange: its kind, such as "all-gather".
      devices: the number that take part in the exchange.
      copied: bytes, if it only stores an array again (moved, transposed, or in another dtype); 0 for other kernels.
      widened: whether the array that is copied had a smaller dtype.
    """

    name: str
    opcode: str
    reads: float
    writes: float
    flops: tuple[tuple[str, float], ...] = ()
    repeated: tuple[tuple[str, float], ...] = ()
    exchanged: float = 0.0
    exchange: str = ""
    devices: int = 1
    copied: float = 0.0
    widened: bool = False

    @property
    def bytes(self) -> float:
        return self.reads + self.writes

    def seconds(self, chip: Chip) -> float:
        """Bytes at the bandwidth that kernels reach, FLOPs at the peak, the exchange at the link's speed: whichever takes
        longest, and the launch."""
        passes = 2 if self.exchange == "all-reduce" else 1
        link = passes * self.exchanged * (1 - 1 / self.devices) / chip.link
        return chip.launch + max(self.bytes / (chip.reached * chip.bandwidth), product_seconds(self.flops, chip), link)


def product_seconds(flops, chip: Chip) -> float:
    """Of (dtype, FLOPs) pairs, at the chip's peak: half of it for float32."""
    return sum(count / (chip.flops if dtype in _HALVES else chip.flops / 2) for dtype, count in flops)


@dataclasses.dataclass(frozen=True)
class Counted:
    """A kernel with its operands.

    Attributes:
      read: operand -> bytes.
      updates: number of a result -> the operand that it is written into, in place.
    """

    kernel: Kernel
    read: dict[str, float]
    updates: dict[int, str]


def count(module, lines, line, channels: set[str]) -> Counted:
    """Counts an instruction that is launched.

    Args:
      module: `hlo.Module`. lines: the computation of the instruction.
      channels: of exchanges that were counted; those of this kernel are added. A TPU's kernels may begin an exchange, go on
        with it and end it, and each names it.
    """
    fused = module.computations[line.called[0]] if line.opcode == "fusion" and line.called else None
    read, writes = _traffic(lines, line) if fused is None else _fused_traffic(fused, line)
    updates = _updates(line) if fused is None else _fused_updates(fused, line)
    flops, repeated = collections.Counter(), collections.Counter()
    exchanged, kind, devices = 0.0, "", 1
    for inner, owner in [(line, lines)] if fused is None else _inner(module, fused):
        found = _products(owner, inner)
        flops.update(found)
        if "rematted_computation" in inner.attributes:
            repeated.update(found)
        size, group = _exchange(owner, inner)
        if size and (channel := inner.attribute("channel_id") or inner.name) not in channels:
            channels.add(channel)
            exchanged, kind, devices = exchanged + size, inner.opcode.removesuffix("-start"), group
    copied, widened = _copy(lines, line, fused)
    return Counted(Kernel(line.name, line.opcode, sum(read.values()), writes, tuple(sorted(flops.items())),
                          tuple(sorted(repeated.items())), exchanged, kind, devices, copied, widened), read, updates)


def _inner(module, computation):
    """(instruction, its computation) of a fused computation and of the computations it calls."""
    for line in computation.values():
        yield line, computation
        if line.opcode in ("fusion", "call"):
            for called in line.called:
                yield from _inner(module, module.computations[called])


def _traffic(lines, line):
    """({operand: bytes} that an instruction by itself reads, bytes that it writes)."""
    arrays = [lines[name] for name in dict.fromkeys(line.operands) if name in lines]
    whole = {x.name: x.stored for x in arrays}
    if _FLASH in line.attributes:
        read = lines[line.operands[1]].shapes[0].dims[0]
        return {x.name: x.stored * min(1.0, read / x.shapes[0].dims[0]) for x in arrays}, line.stored
    if line.opcode in _TAKES:
        return whole | {arrays[0].name: min(_part(arrays[0], line), arrays[0].stored)}, line.stored
    if line.opcode in _PUTS:
        put = line.operands[_PUTS[line.opcode]]
        return whole | {line.operands[0]: 0.0}, min(lines[put].bytes, line.stored)
    if line.opcode == "copy-start":  # its result names target and source
        return whole, line.shapes[0].stored
    if line.opcode == "slice-start":  # source and target
        return {arrays[0].name: min(line.shapes[1].bytes, arrays[0].stored)}, line.shapes[1].stored
    if line.attribute("custom_call_target").strip('"') in _NAMES_ONLY:
        return {}, 0.0
    written = line.stored
    if "output_to_operand_aliasing=" in line.attributes:
        written -= min(written, arrays[0].stored)
    return whole, written


def _updates(line) -> dict[int, str]:
    aliased = re.search(r"output_to_operand_aliasing=\{\{(\d*)\}: \((\d+)", line.attributes)
    if aliased:
        return {int(aliased.group(1) or 0): line.operands[int(aliased.group(2))]}
    return {0: line.operands[0]} if line.opcode in _PUTS else {}


def _fused_updates(fused, line) -> dict[int, str]:
    operands, found = dict(zip((x.name for x in fused.parameters), line.operands, strict=True)), {}
    for number, result in enumerate(_results(fused)):
        source = _through_views(fused, result)
        if source.opcode in _PUTS and (into := _through_views(fused, fused[source.operands[0]]).name) in operands:
            found[number] = operands[into]
    return found


def _part(array, result) -> float:
    """Bytes that a result's elements have in the array that they are taken from."""
    return result.shapes[0].size * array.stored / max(array.shapes[0].size, 1)


def _fused_traffic(fused, line):
    """({operand: bytes} that a fusion reads, bytes that it writes)."""
    written, kept = 0.0, set()
    for result in _results(fused):
        source = _through_views(fused, result)
        if source.opcode in _PUTS:
            kept.add(_through_views(fused, fused[source.operands[0]]).name)
            written += min(fused[source.operands[_PUTS[source.opcode]]].bytes, result.stored)
        elif source.opcode != "parameter" or result.opcode != "parameter":
            written += result.stored
    read = collections.Counter()
    for name, parameter in zip(line.operands, fused.parameters, strict=True):
        read[name] += 0.0 if parameter.name in kept and _only_put(fused, parameter) else _taken(fused, parameter)
    return read, written


def _results(fused):
    root = fused.root
    return [fused[name] for name in root.operands] if root.opcode == "tuple" else [root]


def _through_views(fused, line):
    while line.opcode == "bitcast" and line.operands[0] in fused:
        line = fused[line.operands[0]]
    return line


def _only_put(fused, parameter) -> bool:
    """Whether nothing reads a parameter but the update of it."""
    readers = fused.readers[parameter.name]
    return all(x.opcode in _PUTS or (x.opcode == "bitcast" and _only_put(fused, x)) for x in readers)


def _taken(fused, line) -> float:
    """Bytes of an array that its readers take: of their slices, or all."""
    whole, taken = line.stored, 0.0
    for reader in fused.readers[line.name]:
        if reader.opcode in _TAKES and reader.operands[0] == line.name:
            taken += _part(line, reader)
        elif reader.opcode == "bitcast":
            taken += _taken(fused, reader)
        else:
            return whole
    return min(taken, whole)


def _products(lines, line) -> dict[str, float]:
    """{dtype of the operands: FLOPs} of a product, or of a library's call for one."""
    if line.opcode == "dot":
        left = lines[line.operands[0]].shapes[0]
        depth = math.prod(left.dims[i] for i in line.numbers("lhs_contracting_dims"))
        return {left.dtype: 2.0 * line.shapes[0].size * depth}
    if line.opcode == "convolution":  # a TPU's products
        return {lines[line.operands[0]].shapes[0].dtype: _convolved(lines, line)}
    if line.opcode != "custom-call":
        return {}
    if _FLASH in line.attributes:
        q, k = (lines[name].shapes[0] for name in line.operands[1:3])
        return {q.dtype: 4.0 * q.size * k.dims[2]}
    target, options = line.attribute("custom_call_target").strip('"'), _backend(line)
    if "gemm" in target or "matmul" in target:
        left = lines[line.operands[0]].shapes[0]
        numbers = options.get("gemm_backend_config", {}).get("dot_dimension_numbers", {})
        depth = math.prod(left.dims[int(i)] for i in numbers.get("lhs_contracting_dimensions", [len(left.dims) - 1]))
        return {left.dtype: 2.0 * line.shapes[0].size * depth}
    if "fmha" in target:
        options = options.get("cudnn_fmha_backend_config", {})
        pairs = math.prod(int(n) for n in options.get("intermediate_tensor_shape", {}).get("dimensions", [0]))
        q = lines[line.operands[0]].shapes[0]
        causal = 0.5 if "CAUSAL" in str(options.get("mask_type", "")) else 1.0
        return {q.dtype: causal * (10.0 if "Backward" in target else 4.0) * pairs * q.dims[-1]}
    return {}


def _convolved(lines, line) -> float:
    """FLOPs of a convolution. A batched product is one whose dilated window meets one element of each batch."""
    inputs, kernel, out = line.attribute("dim_labels").replace("->", "_").split("_")
    x, w, result = lines[line.operands[0]].shapes[0], lines[line.operands[1]].shapes[0], line.shapes[0]
    pairs = 2.0 * result.dims[out.index("b")] * result.dims[out.index("f")] * w.dims[kernel.index("i")]
    window = dict(re.findall(r"(\w+)=(\S+)", line.attribute("window")))
    for i in range(len(kernel) - 2):
        def of(name, default, i=i):
            return window[name].split("x")[i] if name in window else default

        size, stride, dilated, apart = (int(of(name, 1)) for name in ("size", "stride", "lhs_dilate", "rhs_dilate"))
        low, length = int(str(of("pad", "0_0")).split("_")[0]), x.dims[inputs.index(str(i))]
        pairs *= sum(0 <= at <= (length - 1) * dilated and at % dilated == 0
                     for begin in range(0, result.dims[out.index(str(i))] * stride, stride)
                     for at in range(begin - low, begin - low + size * apart, apart))
    return pairs


def _backend(line) -> dict:
    at = line.attributes.find("backend_config=")
    if at < 0:
        return {}
    try:
        return json.JSONDecoder().raw_decode(line.attributes[at + len("backend_config="):])[0]
    except ValueError:
        return {}


def _exchange(lines, line) -> tuple[float, int]:
    """(bytes, devices) of an exchange: of the gathered array, or of a device's operands."""
    kind = line.opcode.removesuffix("-start")
    if kind not in _EXCHANGES:
        return 0.0, 1
    given = sum(lines[name].bytes for name in line.operands if name in lines)
    devices = _group(line)
    return (given * devices if kind == "all-gather" else given), devices


def _group(line) -> int:
    """The number of devices that exchange with each other."""
    groups = re.search(r"replica_groups=(?:\{\{([\d,]*)\}|\[(\d+),(\d+)\]|mesh\[([^\]]*)\] \{([^}]*)\})", line.attributes)
    if groups is None:
        return 2
    listed, _, size, axes, along = groups.groups()
    if axes is not None:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", axes))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", along))
    return len(listed.split(",")) if listed is not None else int(size)


def _copy(lines, line, fused) -> tuple[float, bool]:
    """(bytes, from a smaller dtype) of an instruction that only stores an array again, in the same memory."""
    if line.opcode in ("copy", "transpose", "convert", "copy-start") and line.operands[0] in lines:
        source = lines[line.operands[0]].shapes[0]
    elif fused is not None and len(_results(fused)) == 1 and len(fused.parameters) == 1 and _only_views(fused):
        source = fused.parameters[0].shapes[0]
    else:
        return 0.0, False
    target = line.shapes[0]
    return (target.stored if source.stored else 0.0), target.bytes > source.bytes


def _only_views(fused) -> bool:
    work = [x for x in fused.values() if x.opcode not in ("parameter", "constant")]
    return bool(work) and all(x.opcode in _VIEWS for x in work)
