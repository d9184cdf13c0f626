"""The command line: what it refuses, how, and what it hands on. The stages themselves have their own tests."""

import asyncio
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import pytest
import tensorstore

import zsjax
from zsjax import config as configuration
from zsjax import launch
from zsjax.config import UserError
from zsjax.run import logs
from zsjax.run.commanded import find_config

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = ("run", "train", "tune-simulator", "warm-start", "collect", "evaluate", "ask", "play", "plan", "serve-corpus",
            "compare", "view", "report", "export", "import", "conversations")
SHAPE = dict(embed_dim=32, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64)
EXPERIMENT = f"""
import ml_collections
from zsjax.config import parse_arg

def get_config(arg=None):
    arg = parse_arg(arg, steps=3, smoke=False)
    return ml_collections.ConfigDict(dict(
        policy=dict(init="random", shape={SHAPE!r}), search=dict(engine="bm25"), stages=("train", "evaluate"),
        train=dict(steps=arg.steps)))
"""


@pytest.fixture
def experiment(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture
def calls():
    """A pipeline that lists the runs it gets."""
    class Calls(list):
        def run(self, config, workdir, *, stages=None):
            self.append((config, workdir, stages))

    return Calls()


def refused(capsys, *arguments, run=None) -> str:
    """The message with which a command line is refused."""
    try:
        code = launch.main(list(map(str, arguments)), run=run)
    except SystemExit as stop:  # argparse
        code = stop.code
    assert code == 2
    error = capsys.readouterr().err
    assert "error: " in error and "Traceback" not in error
    return error


def test_run_and_stage_commands(calls, experiment, tmp_path):
    for command, stages in (((), None), (("run",), None), (("train",), ("train",)), (("evaluate",), ("evaluate",)),
                            (("collect",), ("collect",))):
        assert launch.main([*command, "--config", f"{experiment}:steps=5", "--workdir", str(tmp_path / "run"),
                            "--config.seed=7"], run=calls.run) == 0
        config, workdir, given = calls.pop()
        assert (config.train.steps, config.seed, config.stages) == (5, 7, ("train", "evaluate"))
        assert given == stages and workdir == tmp_path / "run"


def test_a_stage_command_is_checked_for_its_stage(calls, experiment, tmp_path, capsys):
    error = refused(capsys, "tune-simulator", "--config", experiment, "--workdir", tmp_path, run=calls.run)
    assert "tune_simulator.steps = 0" in error and not calls


def test_config_of_the_run_is_found_again(calls, experiment, tmp_path):
    configuration.write_config(tmp_path / "run", configuration.resolve(configuration.load_experiment(f"{experiment}:9")))
    assert launch.main(["evaluate", "--workdir", str(tmp_path / "run")], run=calls.run) == 0
    assert calls[0][0].train.steps == 9


def test_an_empty_workdir_is_not_the_working_folder(calls, experiment, capsys):
    assert "--workdir: is empty" in refused(capsys, "--config", experiment, "--workdir", "", run=calls.run) and not calls


@pytest.mark.parametrize("command, gone, needed", [
    ("export", ("train", "eval", "eval_corpus"), True), ("ask", ("train", "eval"), True), ("ask", ("eval_corpus",), False),
    ("play", ("train",), True), ("play", ("eval",), False), ("evaluate", ("train",), False)])
def test_a_command_needs_the_files_that_it_reads(experiment, tmp_path, command, gone, needed):
    fields = {f"data.{name}": f"gone_{name}.jsonl" for name in gone}
    config = configuration.resolve(configuration.load_experiment(str(experiment)), fields, files=False)
    configuration.write_config(tmp_path / "run", config)
    given = {"export": ["out"], "ask": ["Who?"]}.get(command, [])
    options, overrides = launch.parse_flags([command, *given, "--workdir", str(tmp_path / "run")])
    if needed:
        assert find_config(options, overrides) == config
    else:
        with pytest.raises(configuration.ConfigError, match=f"data.{gone[0]}.*no such file"):
            find_config(options, overrides)


def test_all_config_problems_in_one_message(calls, experiment, tmp_path, capsys):
    error = refused(capsys, "--config", experiment, "--workdir", tmp_path / "run", "--config.train.stepz=3",
                    "--config.search.engine=google", "--config.train.group_size=2.5", run=calls.run)
    assert "3 problems" in error and "did you mean train.steps?" in error and "google" in error
    assert not (tmp_path / "run").exists() and not calls


@pytest.mark.parametrize("line, expected", [
    ("", dict(command="run", stages=None)), ("train", dict(command="train", stages=("train",), distributed=False)),
    ("--distributed train", dict(command="train", distributed=True)), ("evaluate --hosts h:1,2,0", dict(hosts="h:1,2,0")),
    ("ask --json", dict(question=None, json=True)), ("play --against real", dict(against="real", noise=0.5, seed=None)),
    ("ask Who? --json", dict(question="Who?", json=True)), ("--json ask Who?", dict(question="Who?", json=True)),
    ("plan --target h100:8", dict(target="h100:8", estimate=False)), ("--target h100 plan --estimate", dict(estimate=True)),
    ("serve-corpus c.jsonl --port 0", dict(corpus="c.jsonl", port=0, host="127.0.0.1")),
    ("view --port 0", dict(port=0, workdirs=[pathlib.Path("train")])),
    ("import x.gguf out", dict(file="x.gguf", out="out")), ("compare run", dict(other_workdir="run")),
    ("conversations o.jsonl --low 0.5", dict(out="o.jsonl", form="trl", low=0.5, file="trajectories/")),
    ("export train", dict(command="export", out="train"))])
def test_a_command_stands_anywhere_and_has_its_own_arguments(line, expected):
    flags = "--workdir train --config.seed=3 --config x.py"
    for words in (f"{flags} {line}", f"{line} {flags}"):
        options, overrides = launch.parse_flags(words.split())
        assert (str(options.workdir), options.config, overrides) == ("train", "x.py", {"seed": "3"})
        assert {name: getattr(options, name) for name in expected} == expected


def test_the_version(capsys):
    with pytest.raises(SystemExit) as stop:
        launch.main(["--version"])
    assert (stop.value.code, capsys.readouterr().out) == (0, f"zsjax {zsjax.__version__}\n")


def test_each_command_has_a_help_of_its_own(capsys):
    for name in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            launch.main([name, "--help"])
        shown = capsys.readouterr().out
        assert stop.value.code == 0 and f"zsjax.launch {name}" in shown and "--workdir" in shown
        assert ("--target" in shown) == (name == "plan") and ("--port" in shown) == (name in ("serve-corpus", "view"))


@pytest.mark.parametrize("arguments, message", [
    (["--workdir", "w"], "give --config"),
    (["--config", "nowhere.py", "--workdir", "w"], "no experiment file nowhere.py"),
    (["--config", "mine.py"], "give --workdir"),
    (["fly", "--workdir", "w"], "unknown command 'fly'"),
    (["run", "more", "--workdir", "w"], "takes no argument"),
    (["train", "--json", "--workdir", "w"], "unknown argument '--json' of train"),
    (["plan", "--config", "mine.py"], "--target"),
    (["view"], "give --workdir"),
    (["view", "--workdir", "nowhere"], "there is no run in nowhere"),
    (["view", "--workdir", ".", "--port", "70000"], "cannot listen at 127.0.0.1:70000"),
    (["view", "--workdir", "a", "--workdir", "b", "--workdir", "c"], "view takes 2 --workdir, but was given 3"),
    (["train", "--config", "mine.py", "--workdir", "a", "--workdir", "b"], "train takes 1 --workdir, but was given 2"),
    (["play", "--against", "google"], "invalid choice: 'google'"),
    (["play", "--noise", "2"], "--noise 2.0 is not a probability"),
    (["play", "--seed", "-1"], "--seed -1 is negative; use 0 or more"),
    (["export", "--workdir", "w"], "export needs a folder"),
    (["serve-corpus"], "serve-corpus needs a corpus"),
    (["serve-corpus", "nowhere.jsonl"], "cannot serve nowhere.jsonl: no file"),
    (["--workdir", "w", "--confg=3"], "unknown argument '--confg=3'"),
    (["--workdir", "w", "--config.train.steps"], "write --config.train.steps=VALUE"),
    (["report", "--workdir", "w"], "w holds no run: no such folder; give the folder of a run"),
    (["report", "--workdir", "."], ". holds no run: neither config.json nor metrics.jsonl is there"),
    (["--config", "mine.py:stepz=4", "--workdir", "w"], "did you mean steps?"),
    (["--config", "mine.py:smoke=maybe", "--workdir", "w"], "not true or false"),
    (["--config", "syntax.py", "--workdir", "w"], "syntax.py, line 2: SyntaxError"),
    (["--config", "raises.py", "--workdir", "w"], "raises.py, line 3: KeyError: 'x'"),
    (["--config", "empty.py", "--workdir", "w"], "no function get_config"),
    (["--config", "mine.txt", "--workdir", "w"], "mine.txt: the name of an experiment file must end in .py; rename it"),
    (["--config", "bare.py:7", "--workdir", "w"], "takes no argument"),
    (["--config", "mine.py", "--workdir", "file/run"], "cannot write file/run"),
    (["ask", " ", "--config", "mine.py"], "the question is empty"),
    (["ask", "Who?", "--config", "mine.py", "--workdir", "nowhere"], "there is no run in nowhere"),
])
def test_mistakes(arguments, message, experiment, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "syntax.py").write_text("x = 1\ndef get_config(:\n")
    (tmp_path / "raises.py").write_text("def get_config(arg=None):\n    d = {}\n    return d['x']\n")
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "bare.py").write_text("def get_config():\n    return {}\n")
    for name in ("file", "mine.txt"):
        (tmp_path / name).write_text("")
    assert message in refused(capsys, *arguments)


def test_bad_data_is_told_with_its_line(experiment, tmp_path, capsys):
    from zsjax.data import load_questions

    path = tmp_path / "q.jsonl"
    path.write_text('{"id": "1", "question": "q?", "golden_answers": ["a"]}\n{"id": "2"\n')
    assert "q.jsonl, line 2" in refused(capsys, "--config", experiment, "--workdir", tmp_path / "run",
                                        f"--config.data.train={path}", run=lambda *_, **__: list(load_questions(str(path))))


def test_our_own_mistakes_keep_their_traceback(experiment, tmp_path):
    def broken(*_, **__):
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        launch.main(["--config", str(experiment), "--workdir", str(tmp_path / "run")], run=broken)


def test_interrupt_and_gates(experiment, tmp_path, capsys):
    def stop(error):
        def run(*_, **__):
            raise error

        code = launch.main(["--config", str(experiment), "--workdir", str(tmp_path / "run")], run=run)
        return code, capsys.readouterr().err

    assert stop(KeyboardInterrupt()) == (130, "\ninterrupted; the same command resumes from the last checkpoint\n")
    assert stop(UserError("a gate failed"))[1] == "error: a gate failed\n"


def test_an_interrupted_server_does_not_speak_of_checkpoints(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(launch, "_serve_corpus", interrupted)
    assert launch.main(["serve-corpus", str(tmp_path / "corpus.jsonl")]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"


@pytest.mark.parametrize("text", ["x\n", "x\n" * 100_000])
def test_a_reader_that_has_seen_enough_ends_a_command_silently(text, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    monkeypatch.setattr(launch, "_plan", lambda *_: print(text))
    with os.fdopen(writer, "w") as pipe, pytest.raises(SystemExit) as end:
        monkeypatch.setattr("sys.stdout", pipe)
        launch.main(["plan"])
    assert end.value.code == 141 and not capsys.readouterr().err


def test_a_server_that_hangs_up_keeps_its_traceback(monkeypatch, tmp_path):
    def hang_up(*_):
        raise BrokenPipeError

    monkeypatch.setattr(launch, "_plan", hang_up)
    with open(tmp_path / "out", "w") as out, pytest.raises(BrokenPipeError):
        monkeypatch.setattr("sys.stdout", out)
        launch.main(["plan"])


def test_ask_report_export(experiment, tmp_path, monkeypatch, capsys):
    record = {"segments": [{"role": "policy", "text": "<answer> Dran Tosk </answer>"}], "answer": "Dran Tosk",
              "status": "answered", "num_searches": 0}

    class Asker:
        def __init__(self, config, workdir, show=None):
            self.show = show

        def __call__(self, question):
            for segment in record["segments"] if self.show else ():
                self.show(segment["role"], segment["text"])
            return record

    monkeypatch.setattr("zsjax.run.ask.Asker", Asker)
    monkeypatch.setattr("zsjax.run.export.export", lambda config, workdir, out: out)

    def ask(*arguments):
        return launch.main(["ask", *arguments, "--config", str(experiment)])

    assert ask("Who?") == 0
    assert "<answer> Dran Tosk </answer>" in capsys.readouterr().out
    assert ask("Who?", "--json") == 0
    assert json.loads(capsys.readouterr().out) == record
    monkeypatch.setattr("sys.stdin", io.StringIO("Who?\nAnd who?\n"))
    assert ask("--json") == 0
    assert list(map(json.loads, capsys.readouterr().out.splitlines())) == [record, record]
    assert launch.main(["export", "out", "--config", str(experiment), "--workdir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "out\n"
    configuration.write_config(tmp_path, configuration.resolve(check=False))
    assert launch.main(["report", "--workdir", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"


def test_ask_needs_nothing_of_an_evaluation(experiment, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("zsjax.run.ask.Asker", lambda config, *_, **__: asked.append(config) or (lambda question: {}))
    lossy = ["--config", str(experiment), "--config.search.eval_engine=simulator", "--config.evaluate.drop_best=0.3",
             "--config.simulator.init=asset:tiny_world/simulator_base"]
    assert launch.main(["ask", "Who?", "--json", *lossy]) == 0 and asked[0].search.eval_engine == "simulator"
    assert "a simulator does not lose documents" in refused(capsys, "evaluate", "--workdir", "w", *lossy)


def test_play_reads_a_pipe(experiment, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("rival of Kora\n= nobody\n\nq\n"))
    assert launch.main(["play", "--against", "real", "--seed", "3", "--config", str(experiment)]) == 0
    shown = capsys.readouterr().out
    assert "3 of 4 searches left" in shown and "rival of" in shown and "1 answered: em 0.00" in shown


def test_as_a_process_without_touching_a_device(experiment, tmp_path):
    """The real thing: help and a refused config in a process where any device would be an error."""
    code = textwrap.dedent("""
        import sys
        from zsjax import launch
        try:
            code = launch.main(sys.argv[1:])
        finally:
            if "jax" in sys.modules:
                from jax._src import xla_bridge
                assert not xla_bridge.backends_are_initialized(), "a device was touched"
        sys.exit(code)
    """)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}

    def run(*arguments):
        return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], env=env, capture_output=True, text=True,
                              timeout=120)

    helped = run("--help")
    assert helped.returncode == 0 and all(f"\n    {name} " in helped.stdout for name in COMMANDS)
    wrong = run("--config", experiment, "--workdir", tmp_path / "run", "--config.train.minibatches=7")
    assert wrong.returncode == 2 and "divisor of 320" in wrong.stderr and "Traceback" not in wrong.stderr


def test_compiled_programs_are_kept(tmp_path, monkeypatch):
    code = "from zsjax import launch; launch.main(['report', '--workdir', 'none']); import jax; " \
           "print(jax.config.jax_compilation_cache_dir)"
    env = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")} | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == str(tmp_path / ".jax_cache"), run.stderr
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    for given in ("/elsewhere", ""):  # "": nowhere
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", given)
        launch.keep_compiled_programs()
        assert os.environ["JAX_COMPILATION_CACHE_DIR"] == given


def test_scripts_are_valid_bash():
    for script in (*(ROOT / "launch").glob("*.sh"), ROOT / ".ci" / "run"):
        subprocess.run(["bash", "-n", str(script)], check=True)


def test_the_console_command_finds_modules_of_the_working_folder(experiment, calls, tmp_path, monkeypatch):
    (tmp_path / "rewards_of_mine.py").write_text("def kind(outcome):\n    return 1.0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(launch, "leave", int)  # it is the end of a process
    monkeypatch.setattr(sys, "argv", ["zsjax", "--config", str(experiment), "--workdir", "run",
                                      "--config.reward.terms={'rewards_of_mine:kind': 1.0}"])
    assert launch.console(run=calls.run) == 0
    assert calls[0][0].reward.terms == {"rewards_of_mine:kind": 1.0}


def test_an_interrupt_at_the_end_of_python_prints_no_traceback():
    code = "import atexit, os, signal, sys; from zsjax.launch import leave; " \
           "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT)); sys.exit(leave(0))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (run.returncode, run.stderr) == (-signal.SIGINT, "")


def test_reports_of_a_closed_event_loop_are_left_out_and_no_others(monkeypatch):
    shown = []
    monkeypatch.setattr(sys, "unraisablehook", shown.append)
    for _ in range(2):
        logs.show_logs(sys.stdout)
    promise, future = tensorstore.Promise.new()
    loop = asyncio.new_event_loop()

    async def wait():
        await future

    task = loop.create_task(wait())
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    monkeypatch.setattr(task, "_log_destroy_pending", False)
    promise.set_result(1)  # tells the closed loop, as orbax's arrays do
    assert not shown

    class Odd:
        def __del__(self):
            raise ValueError("another")

    Odd()
    assert [str(lost.exc_value) for lost in shown] == ["another"]
