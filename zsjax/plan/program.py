"""What a compiled program does on a device, counted in its text: kernels, bytes, products, exchanges, copies, least time.

    program = read_program(compiled.as_text())
    step = program.loops[0]                 # the body of a decoding loop
    step.kernels, step.bytes, step.flops    # of one turn of it
    step.seconds(chip)                      # predicted

Bytes are those that kernels read and write: a gather or a slice reads what it takes, an update in place writes what it
puts, what stands inside a fusion is never stored. Caches of the device are not modelled: what one kernel writes and the
next one reads is counted twice, as if it went to memory and back. A Pallas kernel is counted by its operands, whole, and its
products are not. Loops count one turn; what they do is a phase of its own.
"""

import collections
import dataclasses
import functools
import json
import math
import re

from zsjax.plan import hlo
from zsjax.plan.targets import Chip

_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "opt-barrier", "partition-id",
         "replica-id", "all-gather-done", "all-reduce-done", "collective-permute-done", "async-done", "async-update",
         "copy-done", "send-done", "recv-done", "domain", "add-dependency"}
_TAKES, _PUTS = {"gather": 1, "dynamic-slice": 1, "slice": 1}, {"scatter": 2, "dynamic-update-slice": 1}
_EXCHANGES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast",
              "ragged-all-to-all")
_VIEWS = {"bitcast", "reshape", "copy", "transpose", "convert"}


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One launch.

    Attributes:
      name, opcode: as in the text; of a fusion "fusion".
      reads, writes: bytes.
      flops: (dtype of the operands, FLOPs of products) pairs.
      exchanged: bytes that an exchange between devices brings or sends, 0 of other kernels.
      devices: that take part in an exchange.
      copied: bytes, if all it does is to store an array again (moved, turned, or in another dtype), 0 of other kernels.
      widened: whether what is copied was of a smaller dtype.
    """

    name: str
    opcode: str
    reads: float
    writes: float
    flops: tuple[tuple[str, float], ...] = ()
    exchanged: float = 0.0
    devices: int = 1
    copied: float = 0.0
    widened: bool = False

    @property
    def bytes(self) -> float:
        return self.reads + self.writes

    def seconds(self, chip: Chip) -> float:
        """Bytes at the bandwidth that kernels reach or FLOPs at the peak, whichever takes longer, and the launch."""
        products = sum(count / (chip.flops if dtype in ("bf16", "f16", "s8", "f8e4m3fn", "f8e5m2") else chip.flops / 2)
                       for dtype, count in self.flops)
        if self.exchanged:
            passes = 2 if self.opcode.startswith("all-reduce") else 1
            return chip.launch + passes * self.exchanged * (1 - 1 / self.devices) / chip.link
        return chip.launch + max(self.bytes / (chip.reached * chip.bandwidth), products)


@dataclasses.dataclass(frozen=True)
class Phase:
    """What runs one after the other: the program outside its loops, or one turn of a loop.

    Attributes:
      name: of the loop's computation; "program" outside.
      kernels: in the order of the schedule.
      turns: of the loop, where the compiler knows it; 1 outside, None where it is not known.
      scope: what the `jax.named_scope`s around the loop's instructions have in common.
    """

    name: str
    kernels: tuple[Kernel, ...]
    turns: int | None
    scope: str = ""

    @functools.cached_property
    def bytes(self) -> float:
        return sum(kernel.bytes for kernel in self.kernels)

    @functools.cached_property
    def flops(self) -> dict[str, float]:
        """FLOPs of products by the dtype of their operands."""
        total = collections.Counter()
        for kernel in self.kernels:
            total.update(dict(kernel.flops))
        return dict(total)

    @property
    def exchanged(self) -> dict[str, float]:
        """Bytes of exchanges between devices by kind."""
        total = collections.Counter()
        for kernel in self.kernels:
            if kernel.exchanged:
                total[kernel.opcode.removesuffix("-start")] += kernel.exchanged
        return dict(total)

    def copies(self, at_least: float) -> list[Kernel]:
        """Kernels that only store an array again, of `at_least` bytes."""
        return [kernel for kernel in self.kernels if kernel.copied and kernel.copied >= at_least]

    def seconds(self, chip: Chip) -> float:
        """One turn: kernels one after the other, each as `Kernel.seconds`."""
        return sum(kernel.seconds(chip) for kernel in self.kernels)


@dataclasses.dataclass(frozen=True)
class Program:
    """The phases of a program: outside of loops first, then every loop, inner ones behind those they stand in."""

    phases: tuple[Phase, ...]

    @property
    def loops(self) -> list[Phase]:
        """The loops, those that move most bytes a turn first."""
        return sorted(self.phases[1:], key=lambda phase: -phase.bytes)


def read_program(text: str) -> Program:
    """Counts the `as_text()` of a compiled program.

    Raises:
      ValueError: the text is not an HLO module's.
    """
    module = hlo.read(text)
    phases = []
    _walk(module, module.entry, 1, phases)
    return Program(tuple(phases))


def _walk(module, name, turns, phases):
    """Appends the phase of a computation, then those of the loops in it."""
    kernels, loops, names = [], [], []
    _collect(module, name, kernels, loops, names)
    phases.append(Phase("program" if not phases else name, tuple(kernels), turns, _common(names)))
    for line in loops:
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line.attributes)
        body = re.search(r"body=%?([\w.\-]+)", line.attributes).group(1)
        _walk(module, body, int(known.group(1)) if known else None, phases)


def _collect(module, name, kernels, loops, names):
    """The kernels and the loops of a computation and of those that it calls."""
    lines = module.computations[name]
    for line in lines.values():
        if line.opcode in _FREE:
            continue
        if line.opcode == "while":
            loops.append(line)
            continue
        if line.opcode in ("call", "conditional", "async-start"):  # of the branches of a conditional: all
            for called in line.called:
                _collect(module, called, kernels, loops, names)
            continue
        kernels.append(_kernel(module, lines, line))
        if scope := re.search(r'op_name="([^"]*)"', line.attributes):
            names.append(scope.group(1))


def _common(names) -> str:
    """What the scopes of most instructions begin with, without jax's own words for a loop."""
    if not names:
        return ""
    scopes = collections.Counter(
        "/".join(part for part in name.split("/")[1:-1] if part not in ("while", "body", "cond", "closed_call")
                 and not re.search(r"[(\[]", part)) for name in names)
    return scopes.most_common(1)[0][0]


def _kernel(module, lines, line) -> Kernel:
    fused = module.computations[line.called[0]] if line.opcode == "fusion" and line.called else None
    reads, writes = _traffic(lines, line) if fused is None else _fused_traffic(fused)
    flops = collections.Counter()
    for inner, owner in [(line, lines)] if fused is None else _inner(module, fused):
        flops.update(_products(owner, inner))
    exchanged, devices = _exchange(lines, line)
    copied, widened = _copy(lines, line, fused)
    return Kernel(line.name, line.opcode, reads, writes, tuple(sorted(flops.items())), exchanged, devices, copied, widened)


def _inner(module, computation):
    """(instruction, its computation) of a fused computation and of what is called in it."""
    for line in computation.values():
        yield line, computation
        if line.opcode in ("fusion", "call"):
            for called in line.called:
                yield from _inner(module, module.computations[called])


def _traffic(lines, line):
    """Bytes that an instruction by itself reads and writes."""
    arrays = [lines[name] for name in dict.fromkeys(line.operands) if name in lines]
    if line.opcode in _TAKES:
        return line.bytes + sum(x.bytes for x in arrays[1:]), line.bytes
    if line.opcode in _PUTS:
        put = lines[line.operands[_PUTS[line.opcode]]].bytes
        return put + sum(x.bytes for x in arrays[1:] if x.name != line.operands[_PUTS[line.opcode]]), put
    if line.opcode == "copy-start":  # its result names source and target
        return arrays[0].bytes, arrays[0].bytes
    written = line.bytes
    if aliased := re.search(r"output_to_operand_aliasing=", line.attributes):
        written -= min(written, arrays[0].bytes if aliased else 0)
    return sum(x.bytes for x in arrays), written


def _fused_traffic(fused):
    """Bytes that a fusion reads of its parameters and writes of its results."""
    written, kept = 0.0, set()
    for result in _results(fused):
        source = _through_views(fused, result)
        if source.opcode in _PUTS:
            kept.add(_through_views(fused, fused[source.operands[0]]).name)
            written += fused[source.operands[_PUTS[source.opcode]]].bytes
        elif source.opcode != "parameter" or result.opcode != "parameter":
            written += result.bytes
    return sum(0.0 if x.name in kept and _only_put(fused, x) else _taken(fused, x) for x in fused.parameters), written


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
    """Bytes of an array that the readers of it take: those of their slices, or the whole of it."""
    whole, taken = line.bytes, 0.0
    for reader in fused.readers[line.name]:
        if reader.opcode in _TAKES and reader.operands[0] == line.name:
            taken += reader.shapes[0].size * whole / max(line.shapes[0].size, 1)
        elif reader.opcode == "bitcast":
            taken += _taken(fused, reader)
        else:
            return whole
    return min(taken, whole)


def _products(lines, line) -> dict[str, float]:
    """{dtype of the operands: FLOPs} of a product or of a library's call that is one."""
    if line.opcode == "dot":
        left = lines[line.operands[0]].shapes[0]
        depth = math.prod(left.dims[i] for i in line.numbers("lhs_contracting_dims"))
        return {left.dtype: 2.0 * line.shapes[0].size * depth}
    if line.opcode != "custom-call":
        return {}
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


def _backend(line) -> dict:
    at = line.attributes.find("backend_config=")
    if at < 0:
        return {}
    try:
        return json.JSONDecoder().raw_decode(line.attributes[at + len("backend_config="):])[0]
    except ValueError:
        return {}


def _exchange(lines, line) -> tuple[float, int]:
    """(bytes, devices) of an exchange: of the gathered array, or of what each device gives."""
    kind = line.opcode.removesuffix("-start")
    if kind not in _EXCHANGES:
        return 0.0, 1
    given = sum(lines[name].bytes for name in line.operands if name in lines)
    groups = re.search(r"replica_groups=(?:\{\{([\d,]*)\}|\[(\d+),(\d+)\])", line.attributes)
    devices = 2
    if groups:
        devices = len(groups.group(1).split(",")) if groups.group(1) is not None else int(groups.group(3))
    return (given * devices if kind == "all-gather" else given), devices


def _copy(lines, line, fused) -> tuple[float, bool]:
    """(bytes, from a smaller dtype) of an instruction that does nothing but store an array again."""
    if line.opcode in ("copy", "transpose", "convert", "copy-start") and line.operands[0] in lines:
        source = lines[line.operands[0]]
        return line.shapes[0].bytes, line.shapes[0].bytes > source.shapes[0].bytes
    if fused is None or len(_results(fused)) != 1:
        return 0.0, False
    work = [x for x in fused.values() if x.opcode not in ("parameter", "constant")]
    if not work or any(x.opcode not in _VIEWS for x in work) or len(fused.parameters) != 1:
        return 0.0, False
    return line.bytes, line.bytes > fused.parameters[0].bytes
