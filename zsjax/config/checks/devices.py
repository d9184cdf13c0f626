"""Checks of the mesh: its sizes, and once the devices are counted, whether these and the rows fit."""

import math
import pathlib

from zsjax.config.checks.findings import Findings
from zsjax.config.checks.search import used_engines, uses_simulator
from zsjax.config.checks.training import updated_rows
from zsjax.config.fields import Config
from zsjax.errors import Problem
from zsjax.search.registry import specs


def check_mesh(found, config):
    for axis in ("data", "fsdp", "tensor"):
        if getattr(config.mesh, axis) == 0:
            found.add(f"mesh.{axis}", "not a size", "give a number of devices, or -1 for what is left")
    apart, copy = config.mesh.simulator_devices, config.mesh.simulator_tensor
    if apart > 0 and used_engines(config) and "simulator" not in used_engines(config):
        found.add("mesh.simulator_devices", "nothing would run there: no engine is the simulator", "set it to 0")
    if apart > 0 and copy > 0 and apart % copy:
        found.add("mesh.simulator_tensor", f"does not divide mesh.simulator_devices = {apart}", "give a divisor of that")
    if [config.mesh.data, config.mesh.fsdp, config.mesh.tensor].count(-1) > 1:
        found.add("mesh.data", "more than one axis is -1", "only one axis can take what is left")


def find_device_problems(config: Config, num_devices: int, num_hosts: int = 1) -> list[Problem]:
    """What is wrong once the number of devices is known: the mesh, and rows that do not divide over it.

    Questions need not divide: a rollout fills up its shape and drops the surplus rows.
    """
    found = Findings(config)
    apart, a_host, copy = config.mesh.simulator_devices, num_devices // num_hosts, config.mesh.simulator_tensor
    if apart >= a_host:
        found.add("mesh.simulator_devices", f"leaves none of a host's {a_host} devices for the policy",
                  f"give fewer than {a_host}, or 0 to share them")
        return found.problems
    if apart and (heads := _num_heads(config, config.simulator)) % copy:
        found.add("mesh.simulator_tensor", f"does not divide the {heads} heads of simulator.init", "give a divisor of that")
    num_devices -= apart * num_hosts
    axes = {name: getattr(config.mesh, name) for name in ("data", "fsdp", "tensor")}
    fixed = math.prod(size for size in axes.values() if size > 0)
    free = [name for name, size in axes.items() if size == -1]
    if num_devices % fixed or (not free and fixed != num_devices):
        name = free[0] if free else "data"
        found.add(f"mesh.{name}", f"{axes} does not fit {num_devices} devices" + " without the simulator's" * (apart > 0),
                  f"the sizes must multiply to {num_devices}; one may be -1 for what is left")
        return found.problems
    left = num_devices // fixed
    shards = math.prod(left if axes[name] == -1 else axes[name] for name in ("data", "fsdp"))
    every = config.train.questions_per_step * config.train.group_size
    rows = updated_rows(config.train) // config.train.minibatches
    for number, what in ((rows, "a minibatch (questions_per_step x group_size x keep_fraction / minibatches)"),
                         (every, "a step (questions_per_step x group_size)")):
        if "train" in config.stages and number % shards:
            found.add("train.questions_per_step", f"{number} rows {what} do not divide over {shards} devices",
                      f"make the rows a multiple of {shards}, or set mesh")
    if "train" in config.stages and 0 < config.train.microbatch_rows < rows and config.train.microbatch_rows % shards:
        found.add("train.microbatch_rows", f"does not divide over {shards} devices", f"give a multiple of {shards}")
    tensor = num_devices // shards
    if num_devices // num_hosts % tensor:
        found.add("mesh.tensor", f"does not divide a host's {num_devices // num_hosts} devices", "give a divisor of that")
    for name in ("policy", "simulator")[:1 if apart else 2] if tensor > 1 else ():
        heads = _num_heads(config, getattr(config, name))
        if heads % tensor:
            found.add("mesh.tensor", f"does not divide the {heads} heads of {name}.init", "give a divisor of that")
    engines = {*used_engines(config), config.search.eval_engine}  # the latter collects and makes episodes, too
    keeps_account = any(spec.keeps_account for name in engines for spec in specs(name, config.search))
    if num_hosts > 1 and keeps_account and pathlib.PurePath(config.search.remote.cache_dir).is_absolute():
        found.add("search.remote.cache_dir", "may be another folder on each host, each with an account of its own",
                  "give a path relative to the run's folder, which all hosts share")
    return found.problems


def _num_heads(config, model):
    """Query heads of a model that the run uses, 0 where they cannot be known before it is loaded or made."""
    from zsjax.data.assets import asset_path
    from zsjax.models.checkpoints.hub import PREFIX
    from zsjax.models.families import read_config

    if model is config.simulator and not uses_simulator(config):
        return 0
    if model.init == "random":
        return model.shape["num_heads"]
    if model.init.startswith(PREFIX):  # not downloaded only to look
        return 0
    try:
        return read_config(asset_path(model.init)).num_heads
    except (OSError, ValueError):
        return 0
