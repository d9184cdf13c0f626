"""A run goes on with other devices: one, eight, two processes of four, and back; within 1e-5 of a run on one device."""

import shutil
import socket

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.campaigns.campaign import Case, check_all, folder_of, num_cases
from tests.campaigns.children import Children, Hook
from tests.campaigns.runs import EXPERIMENT, write_inputs
from tests.environment import quick_codegen
from zsjax.models import load_hf
from zsjax.monitor.writer import read_jsonl, without_wall_time
from zsjax.parallel.checkpoint import Checkpointer

STEPS = 6
# Devices of the parts of a run; a part ends by a kill when the checkpoint of the next even step is there.
PLANS = {"1-8-1": (1, 8, 1), "1-2x4-1": (1, (2, 4), 1), "8-2x4-1": (8, (2, 4), 1), "2x4-8-1": ((2, 4), 8, 1)}
# Metrics of the devices: rounding itself, caches, shapes of programs, and equal requests of one group of devices.
OF_DEVICES = ("sampler_gap", "cache", "used/", "prefill/", "requests_saved")


def play(children, folder, workdir, devices, until):
    """Runs `workdir` on these devices until the checkpoint of step `until` is there, or to its end."""
    processes, each = devices if isinstance(devices, tuple) else (1, devices)
    command = ["train", "--config", f"{EXPERIMENT}:taught@{folder / 'files'}", "--workdir", str(workdir),
               "--config.train.questions_per_step=4", f"--config.train.steps={STEPS}",
               "--config.stages=train"]  # tests/test_hosts.py has the other stages
    env = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={each} {quick_codegen()}"}
    hook = Hook(str(workdir), after=f"checkpoints/train/{until}") if until < STEPS else None
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    hosts = [[f"--hosts={address},{processes},{index}"] if processes > 1 else [] for index in range(processes)]
    pids = [children.start(command + flags, workdir.with_suffix(f".{index}.log"), hook=None if index else hook, env=env)
            for index, flags in enumerate(hosts)]
    code = children.wait(pids[0], 1800)
    assert code == (-9 if hook else 0), f"ended with {code}: {workdir.with_suffix('.0.log').read_text()[-2000:]}"
    for pid in pids[1:]:
        if children.wait(pid, 0 if hook else 60) is None:
            children.kill(pid)


def compare(found, wanted) -> float:
    """The largest difference of the metrics; fails where one is too large, or a position or key differs."""
    a, b = ([without_wall_time(line) for line in read_jsonl(place / "metrics.jsonl")] for place in (found, wanted))
    assert [line["step"] for line in a] == [line["step"] for line in b] == list(range(1, STEPS + 1))
    most = 0.0
    for one, other in zip(a, b, strict=True):
        for name, value in other.items():
            if not isinstance(value, float) or name.startswith(OF_DEVICES):
                continue
            assert one[name] == pytest.approx(value, rel=1e-5, abs=2e-6), f"step {other['step']}, {name}"
            most = max(most, abs(one[name] - value))
    states = [ocp.PyTreeCheckpointer().restore(place / "checkpoints" / "train" / str(STEPS) / "state")
              for place in (found, wanted)]
    np.testing.assert_array_equal(states[0]["key"], states[1]["key"])
    assert states[0]["reranker"] is not None
    assert apart(states[0]["params"], states[1]["params"]) < 1e-5
    assert apart(*states) < 1e-4  # Adam's moments are of gradients, whose own rounding is larger
    extras = [Checkpointer(place / "checkpoints" / "train").extra() for place in (found, wanted)]
    assert extras[0] == extras[1] == {"data_position": STEPS}
    weights = [load_hf(place / "models" / "policy")[1] for place in (found, wanted)]
    assert apart(*weights) < 1e-5
    return most


def apart(found, wanted) -> float:
    """The largest distance of two arrays of the trees, over the length of the wanted one.

    It is taken by array, since Adam moves a parameter whose gradient is all rounding by a share of the learning rate.
    """
    def of_array(x, y):
        x, y = (np.asarray(array, np.float64) for array in (x, y))
        length = np.linalg.norm(y)
        return np.linalg.norm(x - y) / (length if length else 1.0)

    return max(map(of_array, *(jax.tree.leaves(tree) for tree in (found, wanted))))


@pytest.mark.slow
def test_hardware(tmp_path_factory):
    folder = folder_of(tmp_path_factory, "hardware")
    if not (folder / "files").exists():
        write_inputs(folder / "files")

    with Children() as children:
        def check(case):
            if not (folder / "one" / "models" / "policy").exists():
                play(children, folder, folder / "one", 1, STEPS)
            workdir = folder / "moved"
            shutil.rmtree(workdir, ignore_errors=True)
            plan = PLANS[case.kind]
            for part, devices in enumerate(plan, 1):
                play(children, folder, workdir, devices, STEPS if part == len(plan) else 2 * part)
            return {"largest_difference": compare(workdir, folder / "one")}

        check_all("hardware", [Case(name, 0) for name in list(PLANS)[:num_cases(len(PLANS))]], check)
