"""What the loops of an optimised HLO module do to arrays of one size."""

import jax

from zsjax.plan import hlo

FREE = {"parameter", "get-tuple-element", "tuple", "bitcast", "while"}  # no data moves
UPDATES = {"scatter", "dynamic-update-slice"}


def optimised(lowered):
    """The compiled program that users get: tests compile others with less effort (`tests.environment.quick_codegen`)."""
    on_cpu = jax.default_backend() == "cpu"
    return lowered.compile({"xla_cpu_use_fusion_emitters": True} if on_cpu else None)


def _in_loops(module, fused):
    """Names of the computations that the bodies of loops run; with or without fused ones."""
    inside, queue = set(), [name for lines in module.computations.values() for line in lines.values()
                            if line.opcode == "while" for name in line.called]
    while queue:
        name = queue.pop()
        if name not in inside:
            inside.add(name)
            queue += [called for line in module.computations[name].values() if fused or line.opcode != "fusion"
                      for called in line.called]
    return inside


def operations_in_loops(text):
    """The opcodes that loops run."""
    module = hlo.read(text)
    return {line.opcode for name in _in_loops(module, fused=True) for line in module.computations[name].values()}


def cache_sized_results(text, size):
    """Instructions inside loops that write a whole array of `size` elements and are not an in-place update."""
    module = hlo.read(text)
    inside = _in_loops(module, fused=False)  # values inside a fusion are not stored
    found = []
    for name in inside:
        for line in module.computations[name].values():
            if line.opcode in FREE or all(shape.size != size for shape in line.shapes):
                continue
            fused = module.computations[line.called[0]].root if line.opcode == "fusion" else line
            if fused.opcode not in UPDATES:
                found.append(f"{name}: {fused.opcode} -> {line.shapes}")
    return inside, found
