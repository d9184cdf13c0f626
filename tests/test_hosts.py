"""Two hosts of four devices compute what one host of eight does: rollouts, updates, metrics, evaluations, checkpoints."""

import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

from zsjax.config import UserError
from zsjax.models import load_hf
from zsjax.monitor.writer import read_jsonl, without_wall_time
from zsjax.parallel import hosts

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENT = """
import ml_collections

def get_config():
    return ml_collections.ConfigDict(dict(
        policy=dict(init="asset:tiny_world/base"), simulator=dict(init="asset:tiny_world/simulator_base"),
        stages=("train",), prompts=dict(policy="tiny_world", simulator="tiny_world"),
        search=dict(num_documents=1, max_document_tokens=12, max_query_tokens=12, document_format="* {text}"),
        rollout=dict(max_turns=1, max_turn_tokens=32, max_tokens=96, max_prompt_tokens=24),
        curriculum=dict(start=0.5), algorithm=dict(kl_coef=0.01), optimizer=dict(learning_rate=1e-4),
        train=dict(steps=2, questions_per_step=4, group_size=4, minibatches=2, logprob_chunk=32, eval_questions=5),
        mesh=dict(data=-1, fsdp=2)))
"""


def start(workdir, devices, *flags):
    # Unoptimised programs: what is compared is equal all the same, and they compile in a third of the time.
    flags_of_xla = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags_of_xla}
    command = [sys.executable, "-m", "zsjax.launch", "--config", str(workdir.parent / "small.py"), "--workdir", str(workdir)]
    return subprocess.Popen([*command, *flags], cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)


def finish(processes):
    try:
        outputs = [process.communicate(timeout=400)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    return outputs


def test_two_hosts_equal_one(tmp_path):
    (tmp_path / "small.py").write_text(EXPERIMENT)
    finish([start(tmp_path / "one", 8)])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    flags = [f"--hosts={address},2,{index}" for index in range(2)]
    outputs = finish([start(tmp_path / "two", 4, flag) for flag in flags])
    assert "train 2/2" in outputs[0] and "train" not in outputs[1]  # only the first speaks

    one, two = ([without_wall_time(line) for line in read_jsonl(tmp_path / name / "metrics.jsonl")]
                for name in ("one", "two"))
    assert [line["step"] for line in two] == [1, 2]
    for a, b in zip(one, two, strict=True):
        for name in a:
            if name != "stage" and not name.startswith("sampler_gap"):  # rounding itself, about 1e-6
                assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1e-6), name
    assert two[0]["searches"] > 0 and two[-1]["grad_norm"] > 0
    weights = [np.asarray(load_hf(tmp_path / name / "models" / "policy")[1]["embed_tokens"]) for name in ("one", "two")]
    np.testing.assert_allclose(*weights, atol=1e-6)
    files = [sorted(str(f.relative_to(tmp_path / n)) for f in (tmp_path / n).rglob("*.json*")) for n in ("one", "two")]
    assert files[0] == files[1]


def test_mistakes_are_told():
    for where in ("localhost", "localhost:1,2", "localhost:1,two,0"):
        with pytest.raises(UserError, match="COUNT,INDEX"):
            hosts.initialize(where)
