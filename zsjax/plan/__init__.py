"""Whether a run fits a target, how long a step must at least take, and what to change: without the target or weights.

    python -m zsjax.launch plan --config experiments/zerosearch_qwen25.py:policy=7b,simulator=14b,target=a100-80gb:8

Each figure says whether it is exact (it follows from shapes and shardings, or a compiler counted it) or estimated. The
three programs of a step are really compiled by the target's compiler: for TPUs with pip install 'zsjax[plan]', for NVIDIA
GPUs with '.[plan-gpu]' in an environment of its own. Without the latter a plan for GPUs is an estimate.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile

from zsjax import config as configuration
from zsjax.config import Config
from zsjax.config.checks import find_device_problems, find_problems
from zsjax.errors import ConfigError, UserError
from zsjax.plan.advice import find_advice
from zsjax.plan.document import document
from zsjax.plan.estimate import USABLE, Plan, estimate_plan
from zsjax.plan.targets import PlanTarget, read_target
from zsjax.plan.text import describe
from zsjax.plan.topology import FLAGS, has_compiler

__all__ = ["USABLE", "Plan", "describe", "document", "make_plan"]


def make_plan(config: Config, target: str = "", *, compiles: bool = True, advise: bool = True) -> Plan:
    """The plan of `config` on "CHIP:NUMBER".

    Args:
      target: "" is config.mesh.target, the machine that the settings are chosen for.
      compiles: compile the programs (minutes for models of billions of parameters); for GPUs only if jax's CUDA plug-in is
        installed.
      advise: look for settings that fit, if the config's do not.

    Raises:
      UserError: an unknown target, a config that cannot run on its devices, an unknown shape, or no libtpu.
    """
    if not (target := target or config.mesh.target):
        raise UserError("plan needs a machine: give --target CHIP:NUMBER, such as a100-80gb:8, or set mesh.target")
    try:
        target = read_target(target)
    except ValueError as error:
        raise UserError(f"--target: {error}") from error
    problems = find_problems(config, files=False) or find_device_problems(config, target.devices)
    if problems:
        raise ConfigError(problems)
    plan = estimate_plan(config, target)
    if compiles and (target.chip.kind == "tpu" or has_compiler("gpu")):
        plan = dataclasses.replace(plan, compiled=compile_programs(config, target))
    if advise and not plan.fits:
        plan = dataclasses.replace(plan, advice=find_advice(config, target))
    return plan


def compile_programs(config: Config, target: PlanTarget) -> list[dict]:
    """The lines of `zsjax.plan.aot`, from a process of its own: libtpu reads its environment when it is loaded.

    Raises UserError where no compiler for the target is installed, or where it fails.
    """
    if not has_compiler(target.chip.kind):
        raise UserError("a plan for TPUs needs the TPU's compiler: pip install 'zsjax[plan]'; or --estimate does without")
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "config.json"
        path.write_text(configuration.to_json(config))
        variable, flags = FLAGS[target.chip.kind]
        environment = os.environ | {"JAX_PLATFORMS": "cpu", variable: " ".join([os.environ.get(variable, ""), *flags])}
        if target.chip.kind == "tpu":  # else its compiler looks for a TPU, asks the cloud for its place, and locks it
            environment |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost",
                            "TPU_ACCELERATOR_TYPE": f"{target.name}-{target.devices}", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        done = subprocess.run([sys.executable, "-m", "zsjax.plan.aot", str(path), f"{target.name}:{target.devices}"],
                              env=environment, capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        raise UserError(f"the compiler for {target} failed: {done.stderr.strip()[-800:]}")
    return lines
