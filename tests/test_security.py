"""What comes from outside runs no code, secrets are written nowhere, and servers listen on this machine alone."""

import ast
import base64
import collections
import hashlib
import json
import logging
import os
import pathlib
import socketserver
import subprocess
import sys
import textwrap
import threading
import traceback
from urllib.parse import quote, unquote

import pytest

from tests.environment import ROOT, one_device
from zsjax import launch
from zsjax.config import ConfigError, resolve
from zsjax.parallel.checkpoint import Checkpointer
from zsjax.report.view_server import TrajectoryServer
from zsjax.search import ChatSimulator, Empty, Failed, HttpRetriever, Limits, SearchContext, SerpApi
from zsjax.search.addresses import secret_in, shown_address
from zsjax.search.server import RetrievalServer
from zsjax.search.simulator.prompt import SimulatorTemplate
from zsjax.types import Question

FILES = sorted(path for folder in ("zsjax", "experiments", "launch", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
# Calls that run what they are given, or read a form that can hold code.
FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads",
             "pickle.Unpickler", "marshal.loads", "shelve.open", "dill.load", "joblib.load", "cloudpickle.load",
             "torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "runpy.run_path", "runpy.run_module",
             "numpy.fromregex", "subprocess.getoutput", "subprocess.getstatusoutput", "pty.spawn"}
FAMILIES = ("os.exec", "os.spawn", "os.posix_spawn", "code.interact")
MODULES = {"pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "yaml"}


def imported(tree) -> dict[str, str]:
    """What a module calls by a name of its own: name -> the whole one, such as np -> numpy, run -> subprocess.run."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.asname: alias.name for alias in node.names if alias.asname}
        if isinstance(node, ast.ImportFrom) and not node.level:
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


def whole_name(node, names) -> str:
    """The name that an expression has, however it was imported."""
    first, dot, rest = ast.unparse(node).partition(".")
    return f"{names.get(first, first)}{dot}{rest}".removeprefix("builtins.")


def dangerous(tree) -> list[str]:
    """Calls and imports in a module that run data as code."""
    found, names = [], imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [name for name in modules if name.split(".")[0] in MODULES]
        loaded = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
        if loaded and whole_name(node, names) in ("eval", "exec", "__import__"):
            found.append(ast.unparse(node))  # called, or given to something that calls it
        if isinstance(node, ast.Call) and is_dangerous(whole_name(node.func, names), node):
            found.append(ast.unparse(node))
    return sorted(set(found))


def is_dangerous(name: str, call) -> bool:
    given = {option.arg: ast.unparse(option.value) for option in call.keywords if option.arg}
    return (name in FORBIDDEN or name.startswith(FAMILIES)
            or given.get("shell", "False") != "False" or given.get("allow_pickle", "False") != "False"
            or name == "numpy.load" and given.get("allow_pickle") != "False"
            or name.endswith("from_pretrained") and given.get("trust_remote_code", "False") != "False"
            or name in ("jinja2.Environment", "jinja2.Template") and given.get("autoescape", "False") != "True")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_data_is_run_as_code(path):
    assert not dangerous(ast.parse(path.read_text()))


@pytest.mark.parametrize("line", [
    "import pickle", "import yaml.x", "from marshal import loads", 'eval("1")', "exec(x)", "builtins.eval(x)",
    "map(eval, x)", "import yaml\nyaml.load(f)", "import numpy as np\nnp.load(f)",
    "import numpy\nnumpy.load(f, allow_pickle=True)", "from os import spawnl\nspawnl(x)",
    "from numpy import load\nload(f)", 'subprocess.run("ls", shell=True)', "from os import system\nsystem(x)",
    "from os import system as call\ncall(x)", "import os as o\no.popen(x)", "os.execvp(x, y)",
    "subprocess.getoutput(x)", "from builtins import exec as run\nrun(x)", "from torch import load\nload(f)",
    'AutoModel.from_pretrained("x", trust_remote_code=True)', "jinja2.Environment(loader=x)",
    "from jinja2 import Environment\nEnvironment()"])
def test_the_walk_sees_what_runs_code(line):
    assert dangerous(ast.parse(line))


@pytest.mark.parametrize("line", [
    'ast.literal_eval("1")', "import numpy as np\nnp.load(f, allow_pickle=False)", 'subprocess.run(["ls"])',
    "jinja2.Environment(autoescape=True)", "re.compile(x)", "self.eval(x)",
    "from zsjax.plan import compile_all\ncompile_all(x)", "class C:\n    eval: str = later(1)"])
def test_the_walk_lets_the_rest_pass(line):
    assert not dangerous(ast.parse(line))


def test_servers_listen_on_this_machine_alone(tmp_path):
    for server in (RetrievalServer(Empty(), port=0), TrajectoryServer([tmp_path])):
        with server:
            assert server.server_address[0] == "127.0.0.1"
    options, _ = launch.parse_flags(["serve-corpus", "corpus.jsonl"])
    assert options.host == "127.0.0.1"


# ---------------------------------------------------------------------------------------------------------- secrets

def secret_of(name: str) -> str:
    """No eight characters of it are in anything else."""
    return "/+=".join(textwrap.wrap(hashlib.sha256(name.encode()).hexdigest(), 13))


SECRETS = {name: secret_of(name) for name in (
    "SERPAPI_API_KEY", "CHAT_KEY", "HF_TOKEN", "WANDB_API_KEY", "NEPTUNE_API_TOKEN", "MLFLOW_TRACKING_PASSWORD")}
PROXY = secret_of("proxy")


class Echo(socketserver.StreamRequestHandler):
    """Repeats the whole request, keys included, in replies of every kind."""

    STATUS = ("200", "200", "401", "429", "500", "302", "200")
    count = 0
    heads: collections.deque = collections.deque(maxlen=1000)

    def handle(self):
        head = b""
        while (line := self.rfile.readline()).strip():
            head += line
        text = head.decode("latin-1")
        size = next((int(line.split(":")[1]) for line in text.splitlines() if line.lower().startswith("content-length")), 0)
        self.rfile.read(size)
        Echo.count += 1
        Echo.heads.append(text)
        status = self.STATUS[Echo.count % len(self.STATUS)]
        body = [text, json.dumps({"error": text}), json.dumps({text: 1}), json.dumps([text]), ""][Echo.count % 5].encode()
        head = f"HTTP/1.1 {status} {text.splitlines()[0][:20]}\r\nContent-Length: {len(body)}\r\nLocation: /x?{size}\r\n"
        self.wfile.write(f"{head}Connection: close\r\n\r\n".encode() + body)


@pytest.fixture
def echo():
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def planted(echo) -> dict[str, str]:
    proxy = f"http://user:{quote(PROXY, safe='')}@{echo}"
    return SECRETS | {"HTTP_PROXY": proxy, "http_proxy": proxy, "NO_PROXY": "", "no_proxy": ""}


def found_in(text: str) -> list[str]:
    """Parts of secrets, of at least eight characters, as they are, in an address, or as HTTP sends a password."""
    sent = base64.b64encode(f"user:{PROXY}".encode()).decode()
    text = f"{text} {unquote(text)}"
    return [part for secret in (*SECRETS.values(), PROXY, sent) for i in range(len(secret) - 7)
            if (part := secret[i:i + 8]) in text]


def test_no_failure_tells_a_key_that_the_server_repeats(echo, tmp_path, monkeypatch, caplog):
    for name, value in planted(echo).items():
        monkeypatch.setenv(name, value)
    caplog.set_level(logging.DEBUG)
    limits = Limits(timeout=5, retries=0, breaker_failures=0)
    engines = [ChatSimulator("http://chat.example/v1", model="m", template=SimulatorTemplate.load("default"),
                             key_env="CHAT_KEY", limits=limits),
               SerpApi(url="http://serpapi.example/search", price=1.0, cache_dir=tmp_path / "paid", limits=limits),
               HttpRetriever("http://retrieval.example", limits=limits)]
    failed = 0
    for engine in engines:
        for number in range(40):
            found = engine.search(["q" * number + "."], [SearchContext(Question("1", "who?", ("x",)))], k=3)[0]
            failed += isinstance(found, Failed)
        assert not found_in(f"{engine.counters} {engine!r}")
    assert failed > 80 and len(caplog.records) > 20
    assert not found_in(caplog.text)
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or not found_in(path.read_text())


def test_no_exception_holds_a_key(echo, monkeypatch):
    for name, value in planted(echo).items():
        monkeypatch.setenv(name, value)
    limits = Limits(timeout=5, retries=0, breaker_failures=0)
    engine = ChatSimulator("http://chat.example/v1", model="m", template=SimulatorTemplate.load("default"),
                           key_env="CHAT_KEY", limits=limits)
    context = SearchContext(Question("1", "who?", ("x",)))
    request = engine._request("q", context)
    assert SECRETS["CHAT_KEY"] in str(request.headers) and not found_in(repr(request))
    kinds = set()
    for _ in range(30):
        (error,) = engine.transport.send([request], engine._documents)
        kinds.add(error.kind)
        assert not found_in("".join(traceback.format_exception(error))) and not found_in(repr(error))
    assert len(kinds) > 3


@pytest.mark.parametrize("url", ["http://user:planted@h:1/v1", "https://planted@h/retrieve", "http://h:1/x?api_key=planted",
                                 "http://h/x?a=1&access_token=planted", "ftp://user:planted@h"])
def test_a_key_in_an_address_is_refused_and_not_shown(url):
    for field in ("search.remote.url", "collect.judge.url"):
        with pytest.raises(ConfigError, match=field) as caught:
            resolve({"search": {"engine": "empty"}}, {field: url}, files=False)
        assert "planted" not in str(caught.value)
    with pytest.raises(ValueError, match="not the URL") as caught:
        HttpRetriever("ftp://user:planted@h")
    assert "planted" not in str(caught.value)
    assert "planted" not in shown_address(url) and (url.startswith("ftp") or secret_in(url))


@pytest.mark.parametrize("fields", [
    {"api_key": "planted"}, {"a": [{"Authorization": "Bearer planted"}]}, {"X-API-Key": "planted"},
    {"db_password": "planted"}, {"hf_token": "planted"}, {"a": {"b": {"key": "planted"}}}])
def test_a_key_in_the_fields_of_a_request_is_refused_and_not_shown(fields):
    for field in ("search.remote.extra_body", "collect.judge.extra_body", "search.options"):
        with pytest.raises(ConfigError, match=f"{field} .*would be written to config.json") as caught:
            resolve({"search": {"engine": "empty"}}, {field: repr(fields)}, files=False)
        assert "planted" not in str(caught.value)


def test_fields_of_a_request_without_secrets_stay():
    fields = {"max_tokens": 9, "stop_token_ids": [1], "skip_special_tokens": "yes", "api_key_env": "NAME", "keywords": "a",
              "key": "", "monkey": "x"}
    config = resolve({"policy": {"init": "asset:tiny_world/base"}, "search": {"engine": "empty"}},
                     {"search.remote.extra_body": repr(fields)}, files=False)
    assert config.search.remote.extra_body == fields


def test_an_address_without_secrets_stays():
    for url in ("http://127.0.0.1:8000", "https://h/v1?api-version=2024"):
        config = resolve({"policy": {"init": "asset:tiny_world/base"}, "search": {"engine": "empty"}},
                         {"search.remote.url": url}, files=False)
        assert config.search.remote.url == url


def test_a_hub_call_that_fails_shows_no_token(echo, tmp_path):
    """The hub repeats the request, with its token, in every reply."""
    pytest.importorskip("huggingface_hub")
    Echo.heads.clear()
    env = one_device(**planted(echo) | {"HF_ENDPOINT": "http://hub.example", "HF_HOME": str(tmp_path / "hub")})
    done = subprocess.run(
        [sys.executable, "-m", "zsjax.launch", "--config", "experiments/tiny_world.py:smoke", "--workdir",
         str(tmp_path / "run"), "--config.policy.init=hf:owner/name"],
        cwd=ROOT, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert any(SECRETS["HF_TOKEN"] in head for head in Echo.heads), "the hub got no token"
    assert done.returncode == 2 and "owner/name" in done.stderr + done.stdout, done.stderr[-2000:]
    assert not found_in(done.stdout + done.stderr)


# Stand-ins for trackers: each notes what it is given in a file of the run, and its last call quotes the key.
TRACKER = """
import os, pathlib
NOTES = pathlib.Path(os.environ["TRACKED"])
class Run:
    id = "1"
    info = type("Info", (), {"run_id": "1"})
    def __getattr__(self, name):
        def call(*args, **kwargs):
            with open(NOTES, "a") as file:
                print(name, args, kwargs, file=file)
            if name in ("finish", "end_run"):
                raise RuntimeError("401 for " + os.environ["WANDB_API_KEY"] + os.environ["MLFLOW_TRACKING_PASSWORD"])
            return self
        return call
run = Run()
def __getattr__(name):
    return getattr(run, name)
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["chat", "serpapi"])
def test_a_run_writes_no_secret(engine, echo, tmp_path):
    """A whole run with each secret in the environment: nothing that it wrote or printed has one. Checkpoints are read."""
    options = {"stages": "collect,train,evaluate", "search.engine": engine, "train.steps": 2,
               "search.eval_engine": "serpapi" if engine == "serpapi" else "http", "trackers": "wandb,mlflow",
               "search.remote.url": "http://chat.example/v1", "search.remote.model": "m", "search.remote.retries": 0,
               "search.remote.timeout": 5, "search.remote.key_env": "CHAT_KEY" if engine == "chat" else "",
               "collect.judge.url": "http://judge.example/v1", "collect.judge.model": "m",
               "collect.judge.key_env": "CHAT_KEY", "cost.search": 0.01}
    for name in ("wandb", "mlflow"):
        (tmp_path / "modules").mkdir(exist_ok=True)
        (tmp_path / "modules" / f"{name}.py").write_text(TRACKER)
    env = one_device(**planted(echo), TRACKED=str(tmp_path / "tracked.txt"))
    env["PYTHONPATH"] += f"{os.pathsep}{tmp_path / 'modules'}"
    place = ["--workdir", str(tmp_path / "run")]
    first = ["--config", "experiments/tiny_world.py:smoke", *place,
             *(f"--config.{name}={value}" for name, value in options.items())]
    run, page = (subprocess.run([sys.executable, "-m", "zsjax.launch", *command], cwd=ROOT, env=env, capture_output=True,
                                text=True, timeout=1800, check=False) for command in (first, ["report", *place]))
    said = "".join(done.stdout + done.stderr for done in (run, page))
    assert not found_in(said)
    # No search of the evaluation can be answered.
    assert run.returncode == 1 and "the evaluation is not finished" in said and page.returncode == 0, said[-2000:]
    assert said.count("failed and is left out from now on: 401 for ******") == 2, said[-2000:]
    tracked = (tmp_path / "tracked.txt").read_text()
    assert "init (" in tracked and "log_dict (" in tracked and not found_in(tracked)
    written = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    assert {"config.json", "metrics.jsonl", "searches.jsonl", "report.html"} <= {p.name for p in written}
    for path in written:
        assert not found_in(path.read_bytes().decode("latin-1")), path
    state = Checkpointer(tmp_path / "run/checkpoints/train")  # its arrays are compressed, its texts are not
    assert not found_in(json.dumps([state.extra(), state.config()]))
    failures = [name for line in pathlib.Path(tmp_path / "run/metrics.jsonl").read_text().splitlines()
                for name in json.loads(line) if name.startswith("engine/failed_")]
    assert failures and os.environ.get("CHAT_KEY") is None
