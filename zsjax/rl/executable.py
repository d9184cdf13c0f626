"""Compiled programs that are kept, so that every shape of a run is compiled before its first step is made."""

import jax
import numpy as np


class Executable:
    """A jitted function and its compiled programs, one for each kind of arguments.

    `jitted.lower(...).compile()` does not fill the jitted function's own cache, so the compiled programs are kept and
    called here. Arguments of a kind that was not compiled go to the jitted function.
    """

    def __init__(self, jitted):
        self.jitted, self.programs = jitted, {}

    def __call__(self, *arguments):
        return self.programs.get(kind_of(arguments), self.jitted)(*arguments)

    def lower(self, *arguments):
        return self.jitted.lower(*arguments)

    def compile(self, *arguments):
        """Compiles for arguments of this kind, arrays or `jax.ShapeDtypeStruct`s with shardings; nothing is run."""
        kind = kind_of(arguments)
        if kind not in self.programs:
            self.programs[kind] = self.jitted.lower(*arguments).compile()


def kind_of(arguments):
    """What a program is compiled for: the tree's structure, and of each leaf shape, dtype and sharding."""
    leaves, structure = jax.tree.flatten(arguments)
    return structure, tuple((np.shape(x), x.dtype, getattr(x, "sharding", None)) for x in leaves)
