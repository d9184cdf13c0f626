"""The notebooks: short, without outputs, and every cell runs, top to bottom, on the carried models."""

import ast
import os
import pathlib

import pytest

from tests.environment import one_device

nbformat = pytest.importorskip("nbformat", reason="the notebooks are not run: pip install nbformat nbclient ipykernel")
nbclient = pytest.importorskip("nbclient", reason="the notebooks are not run: pip install nbclient ipykernel")

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# What the outputs of each must hold, beside there being no error.
SHOWN = {
    "01_sample_and_simulate": ["the right searches:", "answer:", "useful:", "noisy:"],
    "02_custom_loss": ["step 1: reward", "step 2: reward", "'capped'", "'ratio_mean': 1.0"],
    "03_roles_and_curriculum": ["in the loss", "outside: 0.0", "image/png"],
    "04_tune_a_simulator": ["searches, such as", "useful:", "noisy:", "tune_simulator"],
    "05_your_own_data_and_engine": ["Dune is a novel by Frank Herbert.", "'step': 2", "'engine/asked'", "search"],
    "06_a_real_model": ["a decode step takes at least", "exact match: [", "reads back: True"],
}

ids = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    notebook = nbformat.read(path, as_version=4)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_all_are_there():
    assert [path.stem for path in NOTEBOOKS] == list(SHOWN)


@ids
def test_form(path):
    notebook, code = read(path)
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 12
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert notebook.cells[0].cell_type == "code"
    assert '"pip", "install"' in code[0].source and 'find_spec("zsjax")' in code[0].source
    nodes = [node for cell in code for node in ast.walk(ast.parse(cell.source))]
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    assert all(function.end_lineno - function.lineno < 10 for function in functions)


@ids
def test_runs_top_to_bottom(path, request):
    notebook, code = read(path)
    # Programs that two cells or two notebooks share are compiled once.
    compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(request.config.cache.mkdir("notebooks_compiled"))
    client = nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources={
        "metadata": {"path": str(path.parent)}})
    client.execute(env=one_device(JAX_COMPILATION_CACHE_DIR=compiled, JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.2"))
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    text = "".join(str(output.get("text", "")) + str(output.get("data", "")) for output in outputs)
    missing = [words for words in SHOWN[path.stem] if words not in text]
    assert not missing, (missing, text[-2000:])
