"""Counts of a compiled program on a device, from its text: kernels, bytes, products, exchanges, copies, predicted time.

    program = read_program(compiled.as_text())
    step = program.loops[0]                 # the body of a decoding loop
    step.kernels, step.bytes, step.flops    # of one turn of it
    step.seconds(chip)                      # predicted
    step.floor, step.floor_seconds(chip)    # what a turn must at least read, write and multiply

Bytes are those that kernels read and write, see `zsjax.plan.kernel`. The device's caches are not modelled: an array between
two kernels is written and read. The body of a loop is a phase of its own, counted once.
"""

import collections
import dataclasses
import functools
import re

from zsjax.plan import hlo
from zsjax.plan.kernel import Kernel, count, product_seconds
from zsjax.plan.targets import Chip

_FREE = {"parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "opt-barrier", "partition-id",
         "replica-id", "send", "recv", "domain", "add-dependency"}
COPY = 2**20  # bytes from which on an array that is stored again counts: a layer's weights or cache, not a norm
_VIEWS = {"bitcast", "get-tuple-element", "opt-barrier", "copy-done", "slice-done"}


@dataclasses.dataclass(frozen=True)
class Floor:
    """What no arrangement of a phase's kernels can save.

    Attributes:
      bytes: of each array from outside of the phase the parts that it reads, once, and the arrays that it leaves, once.
        What another device sends is from outside.
      flops: (dtype, FLOPs) pairs of products, without those that remat computes again.
    """

    bytes: float
    flops: tuple[tuple[str, float], ...]


@dataclasses.dataclass(frozen=True)
class Phase:
    """Kernels that run one after the other: the program outside its loops, or one turn of a loop.

    Attributes:
      name: of the loop's computation; "program" outside.
      kernels: in the order of the schedule.
      turns: of the loop, if the compiler knows them, else None; 1 outside.
      times: turns in the whole program, with those of the loops around it; None where one is unknown.
      floor: of one turn.
      scope: the `jax.named_scope` of most of the loop's instructions.
    """

    name: str
    kernels: tuple[Kernel, ...]
    turns: int | None
    times: int | None
    floor: Floor
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
                total[kernel.exchange] += kernel.exchanged
        return dict(total)

    def copies(self, at_least: float = COPY) -> list[Kernel]:
        """Kernels that only store an array again, of `at_least` bytes."""
        return [kernel for kernel in self.kernels if kernel.copied and kernel.copied >= at_least]

    def seconds(self, chip: Chip) -> float:
        """One turn: kernels one after the other, each as `Kernel.seconds`."""
        return sum(kernel.seconds(chip) for kernel in self.kernels)

    def floor_seconds(self, chip: Chip) -> float:
        """The floor at the chip's published bandwidth and peak, without launches."""
        return max(self.floor.bytes / chip.bandwidth, product_seconds(self.floor.flops, chip))


@dataclasses.dataclass(frozen=True)
class Program:
    """The phases of a program: outside of loops first, then every loop, inner loops behind their outer loops."""

    phases: tuple[Phase, ...]

    @property
    def loops(self) -> list[Phase]:
        """The loops, by falling bytes a turn."""
        return sorted(self.phases[1:], key=lambda phase: -phase.bytes)

    @property
    def flops(self) -> float | None:
        """FLOPs of all turns of all loops; None where the turns of a loop with products are unknown."""
        parts = [(phase.times, sum(phase.flops.values())) for phase in self.phases if phase.flops]
        return None if any(times is None for times, _ in parts) else sum(times * flops for times, flops in parts)


def read_program(text: str) -> Program:
    """Counts the `as_text()` of a compiled program.

    Raises:
      ValueError: the text is not an HLO module's.
    """
    module = hlo.read(text)
    phases = []
    _walk(module, module.entry, (1, 1), phases)
    return Program(tuple(phases))


def _walk(module, name, turns, phases):
    """Appends the phase of a computation, then those of the loops in it. turns: of the loop, and in the whole program."""
    found = _Collected(module)
    found.add(name)
    own_name = name if phases else "program"
    phases.append(Phase(own_name, tuple(found.kernels), *turns, found.floor(), _common(found.names)))
    for line in found.loops:
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', line.attributes)
        body = re.search(r"body=%?([\w.\-]+)", line.attributes).group(1)
        own = int(known.group(1)) if known else None
        _walk(module, body, (own, None if own is None or turns[1] is None else own * turns[1]), phases)


class _Collected:
    """The kernels and the loops of a computation and of those that it calls; an object lives for one phase."""

    def __init__(self, module):
        self.module, self.kernels, self.loops, self.names = module, [], [], []
        self._channels, self._read, self._size, self._left = set(), collections.Counter(), {}, collections.Counter()
        self._writes = {}

    def add(self, name):
        lines = self.module.computations[name]
        made = {}  # the kernels of this computation
        for line in lines.values():
            if line.opcode in _FREE or line.opcode.endswith(("-done", "-update")):
                continue
            if line.opcode == "while":
                self.loops.append(line)
            elif line.opcode in ("call", "conditional", "async-start"):  # of the branches of a conditional: all
                for called in line.called:
                    self.add(called)
            else:
                counted = count(self.module, lines, line, self._channels)
                made[line.name] = counted
                self.kernels.append(counted.kernel)
                if scope := re.search(r'op_name="([^"]*)"', line.attributes):
                    self.names.append(scope.group(1))
        self._add_floor(lines, made)

    def _add_floor(self, lines, made):
        """Arrays that kernels read from outside, and those that stay: results, and what loops are given."""
        inside = {name for name, counted in made.items() if not counted.kernel.exchange}
        for counted in made.values():
            for operand, size in counted.read.items():
                origin = _origin(lines, made, operand)
                if origin is not None and origin.line not in inside:
                    self._read[id(lines), origin.line, origin.number] += size
                    self._size[id(lines), origin.line, origin.number] = lines[operand].stored
        given = [lines.root, *(lines[name] for line in lines.values() if line.opcode == "while" for name in line.operands)]
        for array in [name for line in given for name in (line.operands if line.opcode == "tuple" else (line.name,))]:
            origin = _origin(lines, made, array)
            for name in (*origin.updated_by, origin.line) if origin is not None else ():
                if name in inside:
                    self._left[id(lines), name] += lines[array].stored
                    self._writes[id(lines), name] = made[name].kernel.writes

    def floor(self) -> Floor:
        flops = collections.Counter()
        for kernel in self.kernels:
            flops.update(dict(kernel.flops))
            flops.subtract(dict(kernel.repeated))
        read = sum(min(size, self._size[key]) for key, size in self._read.items())
        left = sum(min(size, self._writes[key]) for key, size in self._left.items())
        return Floor(read + left, tuple(sorted(flops.items())))


@dataclasses.dataclass(frozen=True)
class _Origin:
    """The instruction that an array comes from, which of its results, and the kernels that updated it in place since."""

    line: str
    number: int
    updated_by: tuple[str, ...]


def _origin(lines, made, name) -> _Origin | None:
    """Of an array behind views and updates in place; None for what has no line in this computation."""
    number, updated_by = 0, []
    while name in lines:
        line = lines[name]
        if line.opcode in _VIEWS and line.operands:
            number = int(line.attribute("index")) if line.opcode == "get-tuple-element" else number
            name = line.operands[0]
        elif name in made and number in made[name].updates:
            updated_by.append(name)
            name, number = made[name].updates[number], 0
        else:
            return _Origin(name, number, tuple(updated_by))
    return None


def _common(names) -> str:
    """The most frequent scope of the instructions, without jax's own words for a loop."""
    if not names:
        return ""
    scopes = collections.Counter(
        "/".join(part for part in name.split("/")[1:-1] if part not in ("while", "body", "cond", "closed_call", "shard_map")
                 and not re.search(r"[(\[<]", part)) for name in names)
    return scopes.most_common(1)[0][0]
