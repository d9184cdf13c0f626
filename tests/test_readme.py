"""The commands that the README and two pages show run as they stand there, with less of everything.

`tests/docs/test_blocks.py` runs their Python.
"""

import importlib
import json
import pathlib
import re
import shlex
import shutil

import pytest

from zsjax import launch
from zsjax.data.assets import asset_path

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SHELL = README + "".join((ROOT / "docs" / "how_to" / name).read_text() for name in ("export_and_serve.md", "benchmarks.md"))


def commands() -> list[str]:
    """What follows `python -m zsjax.launch` in the shell blocks, a line each."""
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", SHELL, re.DOTALL)).replace("\\\n", " ")
    lines = [line.partition("  #")[0].strip() for line in shell.splitlines()]
    return [line.partition("zsjax.launch ")[2] for line in lines if line.startswith("python -m zsjax.launch ")]


# Words of a command -> what makes it small. The commands run in their order, in one folder.
SMALL = {
    "--help": None,
    "tiny_world.py:noise=0.0": lambda text: text + " --config.stages=report",  # test_experiments.py runs all stages
    "ask": None,
    "export": None,
    "real_questions.py:smoke": lambda text: text + " --config.stages=evaluate,report --config.data.eval_limit=2",
    "plan": lambda text: text + " --estimate",
    "serve-corpus": lambda text: text.replace("8000", "0"),
    "evaluate": lambda text: text.replace(
        "policy=models/policy",
        f"policy={asset_path('asset:real/policy')},tokenizer={asset_path('asset:real/tokenizer')},smoke")
    .replace("tfds:trivia_qa/rc.nocontext", "nq.jsonl"),
    "compare": None,
    "conversations": lambda text: "conversations --help",  # tests/test_conversations.py runs it
}


def small(command) -> list[str]:
    change = next(change for words, change in SMALL.items() if words in command)
    return shlex.split(change(command) if change else command)


def test_the_readme_is_short_and_begins_with_what_it_is():
    lines = README.splitlines()
    assert len(lines) <= 130
    first = "\n".join(lines[:20])
    assert "train" in first.split("\n\n")[1] and "trajectory.svg" in first and first.count("bash launch/") == 2


def test_every_command_is_run_here():
    assert all(any(words in command for words in SMALL) for command in commands())
    assert all(any(words in command for command in commands()) for words in SMALL)


def test_the_commands_of_the_readme(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zsjax.search.server.RetrievalServer.serve_forever", lambda self: None)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    shutil.copy(asset_path("asset:real/paragraphs.jsonl.gz"), "paragraphs.jsonl.gz")
    row = {"id": "0", "question": "Who wrote Emma?", "golden_answers": ["Austen"]}
    pathlib.Path("nq.jsonl").write_text(json.dumps(row) + "\n" + json.dumps(row | {"question": "Who wrote Dune?"}) + "\n")
    pyarrow = pytest.importorskip("pyarrow")
    importlib.import_module("pyarrow.parquet")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), "musique.parquet")
    for command in commands():
        if command.startswith("export") and not (tmp_path / "runs" / "tiny_world").exists():
            shutil.copytree("runs/clean", "runs/tiny_world")
            shutil.copytree(asset_path("asset:tiny_world/policy"), "runs/tiny_world/models/policy")
        if command.startswith("compare"):
            shutil.copytree("runs/mine", "runs/other")
        try:
            code = launch.main(small(command))
        except SystemExit as stop:  # --help
            code = stop.code
        said = capsys.readouterr()
        assert code == 0, f"{command}\n{said.out}\n{said.err}"
    assert (tmp_path / "runs" / "policy" / "model.safetensors").exists()
    rows = json.loads(pathlib.Path("runs/mine/evaluation.json").read_text())
    assert [(row["data_set"], row["n"], row["role"]) for row in rows] == [
        ("musique", 1, "base"), ("nq", 2, "base"), ("triviaqa", 2, "base"), ("all", 5, "base")]
    assert "first: untrained base" in said.out and "second: untrained base" in said.out
    assert "no trained policy" in pathlib.Path("runs/real/report.html").read_text()
    assert json.loads(pathlib.Path("runs/clean/config.json").read_text())["train"]["steps"] == 90
