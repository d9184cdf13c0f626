"""XLA's flags in tests, and the environment of processes that tests start."""

import importlib.metadata
import os
import pathlib

ROOT = pathlib.Path(__file__).parents[1]


def quick_codegen() -> str:
    """XLA flags for programs that compile in a fifth of the time (measured: 22.0 s -> 4.0 s for tests/rl/test_update.py).

    Fusions and machine code are less optimised. ZSJAX_TEST_CODEGEN=full leaves both to XLA; `tests.hlo.optimised` does so
    for one program.
    """
    if os.environ.get("ZSJAX_TEST_CODEGEN") == "full":
        return ""
    flags = "--xla_backend_optimization_level=0"
    # XLA stops at flags that it does not know, and these may go. A program's code in one piece: a tenth less work.
    known = importlib.metadata.version("jaxlib").startswith("0.10.")
    return flags + " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1" if known else flags


def one_device(**more: str) -> dict[str, str]:
    """The environment of a process on the CPU that sees one device, as a user's does, and imports this checkout."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"XLA_FLAGS": quick_codegen(), "JAX_PLATFORMS": "cpu", "PYTHONPATH": path} | more
