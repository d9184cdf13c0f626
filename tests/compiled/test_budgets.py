"""Compiled programs cost what their budgets say, or less.

    python -m pytest -m compiled tests/compiled        # minutes; an environment with zsjax[plan-gpu]
"""

import json
import pathlib

import jax
import pytest

from tests.compiled import programs
from zsjax.plan.topology import has_compiler

BUDGETS = {path.stem: json.loads(path.read_text()) for path in pathlib.Path(__file__).parent.glob("*.json")}


@pytest.mark.compiled
@pytest.mark.parametrize("name", sorted(programs.PROGRAMS))
def test_no_figure_grew_by_five_percent(name):
    if not has_compiler("gpu"):
        pytest.skip("needs jax's CUDA plug-in: pip install 'zsjax[plan-gpu]'")
    budget, found = BUDGETS[name], programs.compiled(name)
    grown = programs.grown(found["figures"], budget["figures"])
    assert not grown, f"{name}, jax {jax.__version__}, budget of jax {budget['jax']} at {budget['commit']}: {grown}"


def test_a_figure_that_grew_or_is_new_is_found():
    budget = {"kernels": 100, "bytes": 1e9, "copied_bytes": 0}
    assert not programs.grown({"kernels": 105, "bytes": 5e8, "copied_bytes": 0}, budget)
    found = programs.grown({"kernels": 106, "bytes": 1e9, "copied_bytes": 1, "exchanged/all-gather": 8}, budget)
    assert found == {"kernels": (100, 106), "copied_bytes": (0, 1), "exchanged/all-gather": (0, 8)}


def test_every_program_has_a_budget():
    assert set(BUDGETS) == set(programs.PROGRAMS)
    assert all({"jax", "commit", "target", "figures"} <= set(budget) for budget in BUDGETS.values())
