"""What the README shows runs as it stands there: its Python, and its commands with less of everything."""

import importlib
import json
import pathlib
import re
import shlex
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from zsjax import launch
from zsjax.data.assets import asset_path
from zsjax.rl import losses

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(heading):
    """The python blocks of a section, as text."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


def run_text(text):
    names = {}
    exec(compile(text, "README.md", "exec"), names)
    return names


class Batch:
    """What the blocks read of a TokenBatch."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.old_logprobs = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
        self.advantages = jnp.asarray(rng.normal(size=(3, 1)), jnp.float32)
        self.rewards = jnp.asarray(rng.normal(size=(3, 5)), jnp.float32)
        self.group_id = jnp.array([4, 4, 9])


def test_the_custom_loss_is_gspo_in_fifteen_lines():
    text = blocks("Your own loss")[0]
    assert len(text.strip().splitlines()) <= 15
    batch, mask = Batch(), np.arange(5) < np.array([[3], [5], [1]])
    new = batch.old_logprobs + 0.1
    options = dict(loss_mask=mask, clip_low=0.2, clip_high=0.05, reduction="sequence_mean")
    loss_sum, weight, info = run_text(text)["sequence_ratio"](batch, new, **options)
    want, want_weight, _ = losses.gspo(new, batch.old_logprobs, batch.advantages, **options)
    np.testing.assert_allclose([loss_sum, weight], [want, want_weight], rtol=1e-5)
    assert all(len(pair) == 2 for pair in info.values())


def test_the_custom_advantage():
    found = run_text(blocks("Your own loss")[1])["best_of_group"]
    got = found(Batch(), loss_mask=np.ones((3, 5), bool))
    scores = np.asarray(Batch().rewards).sum(axis=1)
    assert got.shape == (3,) and float(got[0]) == float(scores[0] == scores[:2].max()) and float(got[2]) == 1


def test_from_python(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    names = run_text(blocks("From Python")[0])
    shown = capsys.readouterr().out
    assert len(names["episodes"].length) == 1 and shown.count("'role':") >= 2 and "'role': 'policy'" in shown


def commands() -> list[str]:
    """What follows `python -m zsjax.launch` in the README's shell blocks, a line each."""
    shell = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
    lines = [line.partition("  #")[0].strip() for line in shell.splitlines()]
    return [line.partition("zsjax.launch ")[2] for line in lines if line.startswith("python -m zsjax.launch ")]


# Words of a command -> what makes it small. The commands run in the order of the README, in one folder.
SMALL = {
    "--help": None,
    "tiny_world.py:noise=0.0": lambda text: text + " --config.stages=report",  # test_experiments.py runs all stages
    "ask": None,
    "export": None,
    "real_questions.py:smoke": lambda text: text + " --config.stages=evaluate,report --config.data.eval_limit=2",
    "plan": lambda text: text + " --estimate",
    "serve-corpus": lambda text: text.replace("8000", "0"),
    "evaluate": lambda text: text.replace(
        "policy=...", f"policy={asset_path('asset:real/policy')},tokenizer={asset_path('asset:real/tokenizer')},smoke")
    .replace("tfds:trivia_qa/rc.nocontext", "nq.jsonl"),
    "compare": None,
}


def small(command) -> list[str]:
    change = next(change for words, change in SMALL.items() if words in command)
    return shlex.split(change(command) if change else command)


def test_every_command_of_the_readme_is_run_here():
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
        if command.startswith("export"):
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
