"""Two hosts of four devices compute what one host of eight does, in every stage, and one host's error ends both."""

import json
import pathlib
import re
import socket
import subprocess
import sys
from urllib.parse import parse_qs, urlsplit

import jax
import numpy as np
import pytest

from tests import host_process
from tests.environment import one_device, quick_codegen
from tests.search.faulty_server import serve
from zsjax.config import UserError
from zsjax.models import load_hf
from zsjax.monitor.writer import read_jsonl, without_wall_time
from zsjax.parallel import hosts

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENT = """
import ml_collections

SHAPE = dict(num_layers=3, num_heads=8, num_kv_heads=2, head_dim=16, rope_theta=10000.0, embed_dim=64, mlp_dim=128)
ADAM = [dict(name="adamw", learning_rate="schedule", eps=1e-2)]  # a small eps makes whole steps of rounding
SHORT = dict(steps=2, batch_rows=8, max_tokens=96, logprob_chunk=32, optimizer=dict(learning_rate=1e-5, chain=ADAM))


def get_config(arg=None):
    c = ml_collections.ConfigDict(dict(
        policy=dict(init="asset:tiny_world/base"), simulator=dict(init="asset:tiny_world/simulator_base"),
        stages=("train",), prompts=dict(policy="tiny_world", simulator="tiny_world"),
        search=dict(num_documents=1, max_document_tokens=12, max_query_tokens=12, document_format="* {text}"),
        rollout=dict(max_turns=1, max_turn_tokens=32, max_tokens=96, max_prompt_tokens=24),
        curriculum=dict(start=0.5), algorithm=dict(kl_coef=0.01),
        optimizer=dict(learning_rate=1e-4, chain=ADAM),
        train=dict(steps=2, questions_per_step=4, group_size=4, minibatches=2, logprob_chunk=32, eval_questions=5),
        mesh=dict(data=-1, fsdp=2)))
    if arg == "paid":
        c.search.update(engine="paid_engine:make")
    if arg == "every_stage":  # the bases go on from those of the package, or the policy would not search
        c.stages = ("pretrain", "pretrain_simulator", "warm_start", "collect", "tune_simulator", "train", "evaluate",
                    "report")
        c.policy = dict(init="random", shape=SHAPE)
        c.pretrain = dict(SHORT, options=dict(start="asset:tiny_world", reading_steps=1, short_steps=0, max_facts=3,
                                              episode_rate=1e-5, episodes=5, reading=3))
        c.pretrain_simulator = dict(SHORT, options=dict(examples_per_query=1))
        c.warm_start = c.tune_simulator = c.trajectory_sft = SHORT
        c.collect, c.gates = dict(episodes=16, probes=4, hold_out=0.2), dict(questions=4)
        c.data, c.reward = dict(eval_limit=6), dict(terms=dict(f1=1.0, format=0.5))  # some rows earn something
        c.evaluate = dict(batch_rows=8, baselines=("trajectory_sft", "rag", "interleaved"))
    return c
"""
# Each host searches its own questions; the second one has less money than both need.
PAID_ENGINE = """
import jax

from zsjax.search import SerpApi

def make(setting):
    return SerpApi(cache_dir=setting.workdir / "web_search", url={url!r}, price=1.0,
                   budget={budget} if jax.process_index() else None)
"""


def start(workdir, devices, *flags, arg=""):
    experiment = f"{workdir.parent / 'small.py'}{arg and ':'}{arg}"
    return python(devices, "-m", "zsjax.launch", "--config", experiment, "--workdir", str(workdir), *flags,
                  path=workdir.parent)


def python(devices, *arguments, path=ROOT):
    """A process of this many devices that imports from `path`, too."""
    env = one_device(XLA_FLAGS=f"--xla_force_host_platform_device_count={devices} {quick_codegen()}")
    env["PYTHONPATH"] += f":{path}"
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=env, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def two_hosts() -> list[str]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [f"{address},2,{index}" for index in range(2)]


def finish(processes, code=0, minutes=7):
    try:
        outputs = [process.communicate(timeout=60 * minutes)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == code, output[-3000:]
    return outputs


def test_what_hosts_tell_each_other(tmp_path):
    outputs = finish([python(4, "-m", "tests.host_process", where, str(tmp_path / "two")) for where in two_hosts()])
    seen = [json.loads(output.strip().splitlines()[-1]) for output in outputs]
    assert [of_host.pop("kept") for of_host in seen] == [0, 1]
    assert [of_host.pop("user") for of_host in seen] == [["NonFiniteUpdate", "of host 0", 1], ["UserError", "of host 0", 1]]
    assert [of_host.pop("bug")[0] for of_host in seen] == ["RuntimeError", "KeyError"]
    assert [of_host.pop("lead fails")[0] for of_host in seen] == ["ValueError", "RuntimeError"]
    assert [of_host.pop("no JSON")[0] for of_host in seen] == ["TypeError", "RuntimeError"]
    mine = [of_host.pop("found") for of_host in seen]
    assert [found[0][2] for found in mine] == ["both: host 0 0.1", "both: host 1 0.1"]  # each trusts its own
    assert mine[0][2:] == mine[1][2:] == [["q", "of 0", "of 0: host 0 0.1"], ["q", "of 1", "of 1: host 1 0.1"]]
    weights = [of_host.pop("weights") for of_host in seen]
    assert seen[0] == seen[1] == {
        "share": [{"me": 0, "long": ""}, {"me": 1, "long": "x" * 100}], "agree": False, "lead": ["made by", 0],
        "added": {"both": 2, "only 0": 0, "only 1": 0}, "budget": ["BudgetSpent", "of host 1", None],
        "rollout": ["BudgetSpent", "the money of host 1", None],
        "asked": [["x: host 0 0.1"], [], "timeout"]}
    assert weights[0] == weights[1]
    np.testing.assert_allclose(weights[0], host_process.trained(tmp_path / "one"), atol=1e-6)


def compare(tmp_path, exact=()):
    """The two hosts' lines of metrics, once their files are found to be like those of one host."""
    one, two = ([without_wall_time(line) for line in read_jsonl(tmp_path / name / "metrics.jsonl")]
                for name in ("one", "two"))
    assert [(line["stage"], line["step"]) for line in one] == [(line["stage"], line["step"]) for line in two]
    for a, b in zip(one, two, strict=True):
        for name in a:
            if name not in ("stage", "baseline") and not name.startswith("sampler_gap"):  # rounding itself, about 1e-6
                assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-6), (a["stage"], name)
    folders = [tmp_path / name for name in ("one", "two")]
    # The name of an evaluation ends in a hash of the policy, last bits included.
    files = [sorted(re.sub("-[0-9a-f]{8}", "", str(file.relative_to(folder))) for file in folder.rglob("*.json*"))
             for folder in folders]
    assert files[0] == files[1]
    models = sorted(folder.name for folder in (tmp_path / "one" / "models").iterdir())
    for model in models:
        weights = [load_hf(folder / "models" / model)[1] for folder in folders]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *weights)
    for name in exact:
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text(), name
    return two


def test_two_hosts_equal_one(tmp_path):
    (tmp_path / "small.py").write_text(EXPERIMENT)
    finish([start(tmp_path / "one", 8)])
    outputs = finish([start(tmp_path / "two", 4, f"--hosts={where}") for where in two_hosts()])
    assert "train 2/2" in outputs[0] and "train" not in outputs[1]  # only the first speaks
    lines = compare(tmp_path)
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0]["searches"] > 0 and lines[-1]["grad_norm"] > 0


@pytest.mark.slow
def test_every_stage_on_two_hosts_equals_one(tmp_path):
    (tmp_path / "small.py").write_text(EXPERIMENT)
    finish([start(tmp_path / "one", 8, arg="every_stage")], minutes=30)
    finish([start(tmp_path / "two", 4, f"--hosts={where}", arg="every_stage") for where in two_hosts()], minutes=30)
    lines = compare(tmp_path, ["episodes.jsonl", "searches.jsonl", "gates.json"])
    assert {line["stage"] for line in lines} == {
        "pretrain_reading", "pretrain_episodes", "pretrain_simulator", "warm_start", "collect", "tune_simulator", "train",
        "evaluate", "trajectory_sft"}
    searches = [line for line in read_jsonl(tmp_path / "two" / "searches.jsonl") if line.get("source") == "policy"]
    assert len(searches) > 3  # of both hosts' rows


@pytest.mark.slow
def test_a_budget_that_ends_on_one_host_ends_both_and_nothing_is_paid_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("SERPAPI_API_KEY", "none")

    def reply(body):
        return 200, {"search_metadata": {"status": "Success"}, "organic_results": [{"title": "T", "snippet": "s"}]}

    (tmp_path / "small.py").write_text(EXPERIMENT)
    with serve({"search.json": reply}) as server:
        def play(budget, code):
            (tmp_path / "paid_engine.py").write_text(PAID_ENGINE.format(url=f"{server.url}/search.json", budget=budget))
            return finish([start(tmp_path / "two", 4, f"--hosts={where}", arg="paid") for where in two_hosts()], code,
                          minutes=30)

        outputs = play(0, 1)
        assert all("train stopped: web search: " in output and "the state of step 0 is in" in output for output in outputs)
        play(1000, 0)
        assert [line["step"] for line in read_jsonl(tmp_path / "two" / "metrics.jsonl")] == [1, 2]
        queries = [parse_qs(urlsplit(path).query)["q"][0] for path, _ in server.requests]
    assert len(queries) == len(set(queries)) > 1
    assert json.loads((tmp_path / "two" / "web_search" / "spent.json").read_text())["searches"] == len(queries)


def test_mistakes_are_told():
    for where in ("localhost", "localhost:1,2", "localhost:1,two,0"):
        with pytest.raises(UserError, match="COUNT,INDEX"):
            hosts.initialize(where)
