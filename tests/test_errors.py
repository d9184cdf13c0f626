"""Whose mistake an error is: decided by its class, raised where files and configs are read."""

import ast
import json
import logging
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zsjax import launch
from zsjax.config import Config, to_json
from zsjax.errors import ConfigError, InputError, InputNotFound, UserError, reading
from zsjax.monitor.writer import Writer
from zsjax.types import Question

PACKAGE = pathlib.Path(__file__).parents[1] / "zsjax"
# Modules that read what the user names: none of their errors is a bare ValueError or OSError.
READERS = [PACKAGE / name for name in (
    "data", "models/checkpoints/hub.py", "models/checkpoints/tensor_files.py", "models/families", "models/attention.py",
    "search/simulator/prompt.py", "rollout/policy_prompt.py", "rollout/__init__.py", "tuning/collect.py",
    "tuning/demonstrations.py", "parallel/mesh.py", "plan/targets.py", "run", "rl/algorithms.py", "rl/optimizer.py")]
CONFIG = {"policy": {"init": "random", "shape": dict(embed_dim=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=16,
                                                     mlp_dim=32)}, "stages": ("train",), "search": {"engine": "bm25"}}


def raised(path):
    """Names of what a file raises by calling a class."""
    return {node.exc.func.id for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name)}


@pytest.mark.parametrize("file", [file for path in READERS for file in ([path] if path.is_file() else path.rglob("*.py"))],
                         ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_what_reads_the_users_files_raises_the_users_errors(file):
    assert not raised(file) & {"ValueError", "OSError", "FileNotFoundError", "FileExistsError", "RuntimeError"}


def test_classes_keep_what_callers_catch():
    assert issubclass(InputError, UserError) and issubclass(InputError, ValueError)
    assert issubclass(InputNotFound, InputError) and issubclass(InputNotFound, FileNotFoundError)
    assert issubclass(ConfigError, UserError) and str(InputNotFound("no file 'x'")) == "no file 'x'"


def test_a_long_value_leaves_the_beginning_and_the_end_of_a_message():
    text = str(InputError(f"config.json: kind={'x' * 100_000!r} is unknown; use a or b"))
    assert len(text) == InputError.MOST and text.startswith("config.json: kind='x") and text.endswith("unknown; use a or b")
    assert str(InputError("y" * InputError.MOST)) == "y" * InputError.MOST


@pytest.mark.parametrize("error, text", [
    (FileNotFoundError(2, "No such file"), "a.txt: no such file; check the path"),
    (PermissionError(13, "Permission denied"), "a.txt: cannot be read (Permission denied); check the file"),
    (IsADirectoryError(21, "Is a directory"), "a.txt: cannot be read (Is a directory); check the file"),
    (EOFError("ended early"), "a.txt: cannot be read (ended early); check the file"),
    (zlib.error("Error -3"), "a.txt: cannot be read (Error -3); check the file"),
    (UnicodeDecodeError("utf-8", b"x\xe9", 1, 2, "bad"), "a.txt: byte 1 is not UTF-8; convert the file to UTF-8"),
    (InputError("told already"), "told already")])
def test_reading_names_the_file(error, text):
    with pytest.raises(InputError) as caught, reading("a.txt"):
        raise error
    assert str(caught.value) == text
    with pytest.raises(ValueError, match="a bug"), reading("a.txt"):
        raise ValueError("a bug")


def command(tmp_path, capsys, act) -> tuple[int, str]:
    """(exit code, message) of a run whose stages do `act`."""
    experiment = tmp_path / "experiment.py"
    experiment.write_text(f"def get_config():\n    return {CONFIG!r}\n")
    code = launch.main(["--config", str(experiment), "--workdir", str(tmp_path / "run")], run=lambda *_, **__: act())
    return code, capsys.readouterr().err


def unreadable(tmp_path):
    """Name -> what reads something bad of the user's."""
    from zsjax.data import load_corpus, load_questions, load_tokenizer
    from zsjax.models import attention
    from zsjax.models.checkpoints.hf import load_hf
    from zsjax.models.decoder import DecoderConfig
    from zsjax.monitor.writer import read_jsonl
    from zsjax.parallel.mesh import make_mesh
    from zsjax.plan.targets import read_target
    from zsjax.rl import algorithms, credit, optimizer
    from zsjax.rollout.policy_prompt import PolicyTemplate
    from zsjax.search import BM25, HttpRetriever, SerpApi
    from zsjax.search.simulator.prompt import JudgeTemplate, SimulatorTemplate
    from zsjax.tuning.collect import read_searches
    from zsjax.tuning.demonstrations import read_demonstrations

    latin = tmp_path / "latin.txt"
    latin.write_bytes("Frag é {question}".encode("latin-1"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"id"\n{}\n')
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("[1")
    (model / "model.safetensors").write_bytes(b"nothing")
    index = tmp_path / "index"
    index.mkdir()
    (index / "manifest.json").write_text("{")
    shape = DecoderConfig(vocab_size=8, embed_dim=8, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=8, mlp_dim=8,
                          attention="splash")
    return {
        "questions": lambda: load_questions(str(bad)), "corpus": lambda: load_corpus("nowhere.jsonl"),
        "tokenizer": lambda: load_tokenizer(tmp_path / "nowhere"), "checkpoint": lambda: load_hf(model),
        "attention": lambda: attention.choose(shape), "metrics": lambda: read_jsonl(bad),
        "mesh": lambda: make_mesh({"data": 77}), "target": lambda: read_target("abacus:1"),
        "algorithm": lambda: algorithms.preset("luck"), "advantage": lambda: credit.load_advantage("no.module:f"),
        "chain": lambda: optimizer.transformation({"name": "no_such"}, 0.1), "searches": lambda: read_searches(bad),
        "demonstrations": lambda: read_demonstrations(bad),
        "policy prompt": lambda: PolicyTemplate.load(latin), "simulator prompt": lambda: SimulatorTemplate.load(latin),
        "judge prompt": lambda: JudgeTemplate.load("nowhere.txt"), "folder": lambda: PolicyTemplate.load(tmp_path),
        "server": lambda: HttpRetriever("nowhere"), "key": lambda: SerpApi(key_env="NO_SUCH_KEY", cache_dir=tmp_path),
        "index": lambda: BM25.load(index), "no index": lambda: BM25.load(tmp_path / "nowhere"),
    }


@pytest.mark.parametrize("what", ["questions", "corpus", "tokenizer", "checkpoint", "attention", "metrics", "mesh", "target",
                                  "algorithm", "advantage", "chain", "searches", "demonstrations", "policy prompt",
                                  "simulator prompt", "judge prompt", "folder", "server", "key", "index", "no index"])
def test_a_mistake_of_the_users_is_one_line_and_exit_code_2(what, tmp_path, capsys):
    code, text = command(tmp_path, capsys, unreadable(tmp_path)[what])
    assert code == 2 and text.startswith("error: ") and text.count("\n") == 1 and "Traceback" not in text


@pytest.mark.parametrize("bug", [
    lambda: jnp.zeros((2, 3)) @ jnp.zeros((2, 3)), lambda: jax.numpy.reshape(jnp.zeros(4), (3,)), lambda: json.loads("{"),
    lambda: open("/nowhere/of/ours")])
def test_a_bug_keeps_its_traceback_wherever_it_is_raised(bug, tmp_path, monkeypatch, capsys):
    """Also in a module that reads the user's files: its name in a traceback says nothing about whose mistake it is."""
    from zsjax.data import questions

    monkeypatch.setattr(questions, "question_of", lambda *_: bug())
    source = tmp_path / "q.jsonl"
    source.write_text('{"id": "1", "question": "q", "golden_answers": ["a"]}\n')
    with pytest.raises((ValueError, TypeError, OSError)) as error:
        command(tmp_path, capsys, lambda: questions.load_questions(str(source)))
    assert not isinstance(error.value, UserError)


def test_what_the_user_must_fix_does_not_pass_for_a_failed_search():
    from zsjax.rollout.searching import Asked, TextSearch

    class Tokenizer:
        newline_id = 1
        decode = staticmethod(lambda ids: "author")

    class Engine:
        def search(self, queries, contexts, *, k):
            raise self.error

    one = np.zeros(1, int)
    asked = Asked(row=one, turn=one, place=one, action=one, episode_id=one, question=one,
                  query=(np.zeros((1, 1), int), one + 1), noisy=one == 1)
    engine = Engine()
    search = TextSearch(engine, Tokenizer(), "{text}", num_documents=1, max_document_tokens=4)
    find, _ = search.begin([Question("0", "Who?", ())], jax.random.key(0), 1)
    engine.error = InputNotFound("no index at x")
    with pytest.raises(InputNotFound):
        find(asked)
    engine.error = OSError("connection reset")
    assert find(asked).replies.count.tolist() == [-1]  # a failed search


def test_what_a_file_says_does_not_drive_the_terminal(tmp_path, monkeypatch, capsys):
    hostile = "a\x1b]0;owned\x07\nb"
    for kind in (InputError, InputNotFound):
        assert str(kind(hostile)) == "a\u241b]0;owned\u2407\u240ab"
    with Writer(None) as writer:
        writer.note(hostile)
        writer.write(1, {"loss": hostile}, hostile)
    monkeypatch.setattr(logging.root, "handlers", [])  # as a process of its own has them
    fields = {**json.loads(to_json(Config())), hostile: hostile}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert launch.main(["export", str(tmp_path / "out"), "--workdir", str(tmp_path)]) == 2
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"stage": "train", "step": 1, hostile: {}}) + "\n")
    assert launch.main(["report", "--workdir", str(tmp_path)]) == 2
    logging.getLogger().warning("the server said %s", hostile)
    said = "".join(capsys.readouterr())
    assert not {c for c in said if not c.isprintable()} - {"\n"}, repr(said)
    assert "is ignored: a field of another version" in said and said.count("\u241b") >= 6 and "is not a number" in said
