"""What an optimised HLO module does to arrays of one size: read from its text."""

import re

import numpy as np

INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "while"}  # no data moves
UPDATES = {"scatter", "dynamic-update-slice"}


def _computations(hlo):
    """name -> list of (opcode, result type, rest of the line, is root), of an optimised HLO module's text."""
    computations, current = {}, None
    for line in hlo.splitlines():
        head = re.match(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if head:
            current = computations.setdefault(head.group(1), [])
        elif current is not None and (m := INSTRUCTION.match(line)):
            current.append((m.group(3), m.group(2), m.group(4), "ROOT" in line.split("=")[0]))
    return computations


def _in_loops(computations, fused):
    """Names of what the bodies of loops run; with or without what is fused."""
    inside, queue = set(), [name for lines in computations.values() for op, _, rest, _ in lines if op == "while"
                            for name in re.findall(r"(?:body|condition)=%?([\w.\-]+)", rest)]
    while queue:
        name = queue.pop()
        if name not in inside:
            inside.add(name)
            for op, _, rest, _ in computations[name]:
                if fused or op != "fusion":
                    queue += re.findall(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)", rest)
    return inside


def operations_in_loops(hlo):
    """The opcodes that loops run."""
    computations = _computations(hlo)
    return {op for name in _in_loops(computations, fused=True) for op, *_ in computations[name]}


def cache_sized_results(hlo, size):
    """Instructions inside loops that write a whole array of `size` elements and are not an in-place update."""
    computations = _computations(hlo)
    inside = _in_loops(computations, fused=False)  # what stands inside a fusion is never stored
    found = []
    for name in inside:
        for op, result, rest, _ in computations[name]:
            shapes = [d.split(",") for d in re.findall(r"\w+\[([\d,]*)\]", result)]
            if op in FREE or all(np.prod([int(i) for i in d if i], dtype=int) != size for d in shapes):
                continue
            root = op
            if op == "fusion":
                called = re.search(r"calls=%?([\w.\-]+)", rest).group(1)
                root = next(op for op, _, _, is_root in computations[called] if is_root)
            if root not in UPDATES:
                found.append(f"{name}: {root} -> {result}")
    return inside, found
