"""A run goes on with other devices: one, eight, two processes of four, and back; within 1e-5 of a run on one device.

Metrics, parameters and the reranker are held to 1e-5, by array; Adam's moments of the policy to 1e-4, since they are of
gradients, whose own rounding is larger. Counts, alarms, data position, keys and the texts of episodes are equal.
"""

import shutil
import socket
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.campaigns.campaign import Case, check_all, commit, folder_of, num_cases
from tests.campaigns.children import Children, Hook
from tests.campaigns.runs import EXPERIMENT, write_inputs
from tests.environment import quick_codegen
from zsjax.models import load_hf
from zsjax.monitor.writer import read_jsonl, without_wall_time
from zsjax.parallel.checkpoint import Checkpointer

STEPS = 6
# Adam as by default, but for eps. A bias of keys hardly changes attention, so its gradient is nearly all rounding. With an
# eps of 1e-8 Adam makes a step of that, and one such bias of 32 numbers was 1.2e-5 away.
ADAM = [{"name": "clip_by_global_norm", "max_norm": 1.0},
        {"name": "adamw", "learning_rate": "schedule", "eps": 1e-6, "weight_decay": 0.0}]
# Devices of the parts of a run; a part ends by a kill when the checkpoint of the next even step is there.
PLANS = {"1-8-1": (1, 8, 1), "1-2x4-1": (1, (2, 4), 1), "8-2x4-1": (8, (2, 4), 1), "2x4-8-1": ((2, 4), 8, 1)}
# Metrics of the devices: rounding itself, caches, shapes of programs, and equal requests of one group of devices.
OF_DEVICES = ("sampler_gap", "cache", "used/", "prefill/", "requests_saved")


def play(children, folder, workdir, devices, until):
    """Runs `workdir` on these devices until the checkpoint of step `until` is there, or to its end."""
    processes, each = devices if isinstance(devices, tuple) else (1, devices)
    command = ["train", "--config", f"{EXPERIMENT}:taught@{folder / 'files'}", "--workdir", str(workdir),
               "--config.train.questions_per_step=4", f"--config.train.steps={STEPS}",
               f"--config.optimizer.chain={ADAM}", "--config.stages=train"]  # tests/test_hosts.py has the other stages
    env = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={each} {quick_codegen()}"}
    hook = Hook(str(workdir), after=f"checkpoints/train/{until}") if until < STEPS else None
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    hosts = [[f"--hosts={address},{processes},{index}"] if processes > 1 else [] for index in range(processes)]
    pids = [children.start(command + flags, workdir.with_suffix(f".{index}.log"), hook=None if index else hook, env=env)
            for index, flags in enumerate(hosts)]
    ends = until_end(children, pids, grace=0 if hook else 60)
    said = "".join(workdir.with_suffix(f".{index}.log").read_text()[-2000:] for index in range(processes))
    assert ends[pids[0]] == (-9 if hook else 0), f"ended with {list(ends.values())}: {said}"


def until_end(children, pids, *, grace: float) -> dict[int, int | None]:
    """Process -> exit code. Ends when the first process does, or soon after another one fails; the others have `grace`
    seconds more, and are killed then (None)."""
    ends, until = dict.fromkeys(pids), time.monotonic() + 1800
    while ends[pids[0]] is None and time.monotonic() < until:
        ends |= {pid: children.wait(pid, 0.2) for pid in pids if ends[pid] is None}
        if any(ends[pid] for pid in pids[1:]):
            until = min(until, time.monotonic() + 30)
    for pid in [pid for pid in pids if ends[pid] is None]:
        ends[pid] = children.wait(pid, grace)
        if ends[pid] is None:
            children.kill(pid)
    return ends


def compare(found, wanted) -> float:
    """The largest difference of the metrics; fails where one is too large, or a count, position, key or episode differs."""
    a, b = ([without_wall_time(line) for line in read_jsonl(place / "metrics.jsonl")] for place in (found, wanted))
    assert [line["step"] for line in a] == [line["step"] for line in b] == list(range(1, STEPS + 1))
    most = 0.0
    for one, other in zip(a, b, strict=True):
        for name in sorted(name for name in one.keys() | other.keys() if not name.startswith(OF_DEVICES)):
            value, where = other.get(name), f"step {other['step']}, {name}"
            if isinstance(value, float):
                assert one[name] == pytest.approx(value, rel=1e-5, abs=2e-6), where
                most = max(most, abs(one[name] - value))
            else:
                assert one.get(name) == value, where
    states = [ocp.PyTreeCheckpointer().restore(place / "checkpoints" / "train" / str(STEPS) / "state")
              for place in (found, wanted)]
    np.testing.assert_array_equal(states[0]["key"], states[1]["key"])
    assert min(np.abs(array).max() for array in jax.tree.leaves(states[1]["reranker"])) > 0, "the reranker learned nothing"
    for part in ("params", "reranker", "control"):
        assert apart(states[0][part], states[1][part]) < 1e-5, part
    assert apart(*states) < 1e-4
    extras = [Checkpointer(place / "checkpoints" / "train").extra() for place in (found, wanted)]
    assert extras[0] == extras[1] == {"data_position": STEPS}
    weights = [load_hf(place / "models" / "policy")[1] for place in (found, wanted)]
    assert apart(*weights) < 1e-5
    episodes = [{path.name: list(map(text_of, read_jsonl(path))) for path in (place / "trajectories").iterdir()}
                for place in (found, wanted)]
    assert episodes[0] == episodes[1] and episodes[1], "episodes differ"
    return most


def text_of(record) -> dict:
    """A record of an episode without the numbers that rounding changes."""
    return {name: value for name, value in record.items() if not isinstance(value, float)}


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

    one = folder / f"one-{commit()}"  # of the code that is tested
    if commit().endswith("+"):
        shutil.rmtree(one, ignore_errors=True)

    with Children() as children:
        @children.surviving
        def check(case):
            if not (one / "models" / "policy").exists():
                shutil.rmtree(one, ignore_errors=True)
                play(children, folder, one, 1, STEPS)
            workdir = folder / "moved"
            shutil.rmtree(workdir, ignore_errors=True)
            plan = PLANS[case.kind]
            for part, devices in enumerate(plan, 1):
                play(children, folder, workdir, devices, STEPS if part == len(plan) else 2 * part)
            return {"largest_difference": compare(workdir, one)}

        check_all("hardware", [Case(name, 0) for name in list(PLANS)[:num_cases(len(PLANS))]], check)
