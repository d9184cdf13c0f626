"""The text of an optimised XLA program, read into computations and instructions; no jax is needed."""

import dataclasses
import functools
import math
import re

_BITS = {"pred": 8, "token": 0, "opaque": 0, "bf16": 16, "c64": 64, "c128": 128}
_NAME = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_HEAD = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*)?\{\s*$")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^{}]*)\})?")
# Layouts with tiles are a TPU's. There a memory space other than 0 is on the chip. (A GPU's space 1 is ordinary memory.)
_ON_CHIP = re.compile(r"T\(.*S\([1-9]|^:?S\([1-9]")
_CALLED = re.compile(r"(?:calls|body|condition|to_apply|true_computation|false_computation)=%?([\w.\-]+)|"
                     r"(?:branch_computations|called_computations)=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Shape:
    """An array's: dtype as XLA writes it ("bf16", "s32"), its dimensions, and whether a TPU keeps it on the chip."""

    dtype: str
    dims: tuple[int, ...]
    on_chip: bool = False

    @property
    def size(self) -> int:
        return math.prod(self.dims)

    @property
    def bytes(self) -> float:
        bits = _BITS.get(self.dtype) or int((re.findall(r"\d+", self.dtype) or ["0"])[0])
        return self.size * bits / 8

    @property
    def stored(self) -> float:
        """Bytes in the device's memory: none of an array that is kept on the chip."""
        return 0.0 if self.on_chip else self.bytes


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line: its result's arrays, what it reads by name, and the rest of the line as text.

    `operands` of a parameter or a constant are what stands in its parentheses: a number.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @property
    def bytes(self) -> float:
        return sum(shape.bytes for shape in self.shapes)

    @property
    def stored(self) -> float:
        """Bytes in the device's memory."""
        return sum(shape.stored for shape in self.shapes)

    @property
    def called(self) -> list[str]:
        """Names of the computations that it runs."""
        found = [one or many for one, many in _CALLED.findall(self.attributes)]
        return [name.strip().lstrip("%") for names in found for name in names.split(",")]

    def attribute(self, name: str) -> str:
        """The text behind `name=`, up to the next comma or, in braces, what they hold; "" where there is none."""
        found = re.search(rf"\b{name}=(?:\{{([^}}]*)\}}|([^,\s]+))", self.attributes)
        return "" if found is None else found.group(1) if found.group(1) is not None else found.group(2)

    def numbers(self, name: str) -> tuple[int, ...]:
        """The numbers in `attribute(name)`."""
        return tuple(map(int, re.findall(r"\d+", self.attribute(name))))


class Computation(dict):
    """Instructions by name, in the order of the text (which is the schedule's, for the computations that are run)."""

    @functools.cached_property
    def root(self) -> Instruction:
        return next((line for line in self.values() if line.is_root), None) or list(self.values())[-1]

    @functools.cached_property
    def readers(self) -> dict[str, list[Instruction]]:
        """Name -> the instructions that read it."""
        found = {name: [] for name in self}
        for line in self.values():
            for operand in dict.fromkeys(line.operands):
                if operand in found:
                    found[operand].append(line)
        return found

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        found = [line for line in self.values() if line.opcode == "parameter"]
        return sorted(found, key=lambda line: int(line.operands[0]))


@dataclasses.dataclass(frozen=True)
class Module:
    """Computations by name, and the name of the one that the program begins with."""

    computations: dict[str, Computation]
    entry: str


def read(text: str) -> Module:
    """The module of `compiled.as_text()`.

    Raises:
      ValueError: the text has no entry computation: it is not an HLO module.
    """
    computations, current, entry = {}, None, None
    for line in text.splitlines():
        if (head := _HEAD.match(line)) and not line.startswith("HloModule"):
            current = computations.setdefault(head.group(2), Computation())
            entry = head.group(2) if head.group(1) else entry
        elif current is not None and (found := _NAME.match(line)):
            instruction = _instruction(*found.groups())
            current[instruction.name] = instruction
    if entry is None:
        raise ValueError("the text has no ENTRY computation: give the as_text() of a compiled program")
    return Module(computations, entry)


def _instruction(root, name, rest) -> Instruction:
    end = _closing(rest) if rest.startswith("(") else rest.index(" ")
    result, rest = rest[:end], rest[end:].lstrip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest) - 2
    inside, attributes = rest[:end], rest[end + 1:]
    result = re.sub(r"/\*.*?\*/", "", result)
    shapes = tuple(Shape(dtype, tuple(int(n) for n in dims.split(",") if n), bool(_ON_CHIP.search(layout)))
                   for dtype, dims, layout in _SHAPE.findall(result))
    operands = tuple(part.split()[-1].lstrip("%") for part in _parts(inside) if part.strip())
    return Instruction(name, opcode, shapes, operands, attributes, bool(root))


def _closing(text: str) -> int:
    """The index behind the parenthesis that closes the one at the beginning."""
    depth = 0
    for found in re.finditer(r"[()]", text):
        depth += 1 if found.group() == "(" else -1
        if depth == 0:
            return found.end()
    return len(text)


def _parts(text: str) -> list[str]:
    """Operands, which commas separate, but not those within brackets of a shape or a layout."""
    text = re.sub(r"/\*.*?\*/", "", text)
    parts, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
    return [*parts, text[start:]]
