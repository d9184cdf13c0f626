"""The scripts of launch/, run with stand-ins for what they call: the command that each ends in is one that we read."""

import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import pytest

from zsjax import launch
from zsjax.plan.topology import FLAGS

ROOT = pathlib.Path(__file__).parents[1]
ARGUMENTS = ["train", "--config", "experiments/real_questions.py:steps=3", "--workdir", "runs/a folder", "--config.seed=4"]
STAND_IN = """#!{shell}
for argument in "$@"; do printf '%s\\0' "$argument"; done >> "$RECORD"
printf '%s\\0' "XLA=${{XLA_FLAGS:-}}" "TPU=${{LIBTPU_INIT_ARGS:-}}" "IDS=${{JAX_LOCAL_DEVICE_IDS:-}}" >> "$RECORD"
"""


def run(tmp_path, script, command, **environment) -> list[str]:
    """What `command`, which the script ends in, was called with, and then three lines of its environment."""
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    (tmp_path / "launch" / "install.sh").write_text("")
    path = tmp_path / command
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(STAND_IN.format(shell=shutil.which("bash")))
    path.chmod(0o755)
    given = {name: value for name, value in os.environ.items() if name not in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")}
    given |= {"PATH": f"{path.parent}:{os.environ['PATH']}", "RECORD": str(tmp_path / "record"), **environment}
    subprocess.run(["bash", f"launch/{script}", *ARGUMENTS], cwd=tmp_path, env=given, check=True)
    return (tmp_path / "record").read_text().split("\0")[:-1]


@pytest.mark.parametrize("script, command", [
    ("gpu.sh", ".venv/bin/python"), ("gpu_node.sh", ".venv/bin/python"), ("slurm.sh", "bin/srun"),
    ("tpu_vm.sh", ".venv/bin/python"), ("quickstart.sh", ".venv/bin/python")])
def test_ends_in_a_command_that_is_read(tmp_path, script, command):
    *arguments, xla, libtpu, ids = run(tmp_path, script, command)
    arguments = arguments[arguments.index("zsjax.launch") + 1:]
    if script == "quickstart.sh":  # names experiment and folder itself; only fields may be added
        arguments = arguments[:-len(ARGUMENTS)] + ARGUMENTS[-1:]
    options, overrides = launch.parse_flags(arguments)
    assert overrides == {"seed": "4"}
    if script != "quickstart.sh":
        assert options.command == "train" and str(options.workdir) == "runs/a folder"
    assert options.distributed == (script == "slurm.sh")
    assert ("xla_gpu" in xla) == ("gpu" in script or script == "slurm.sh")
    assert ("xla_tpu" in libtpu) == (script == "tpu_vm.sh")
    assert ids == ("IDS=0,1,2,3,4,5,6,7" if script == "slurm.sh" else "IDS=")


def test_a_pod_runs_the_script_of_one_host(tmp_path):
    *arguments, _, _, _ = run(tmp_path, "tpu_pod.sh", "bin/gcloud", TPU="slice", ZONE="z")
    remote = arguments[-1].removeprefix("--command=")
    assert arguments[:4] == ["compute", "tpus", "tpu-vm", "scp"] and "--worker=all" in arguments
    _, _, flags = remote.partition("launch/tpu_vm.sh ")
    options, overrides = launch.parse_flags(shlex.split(flags))
    assert options.distributed and str(options.workdir) == "runs/a folder" and overrides == {"seed": "4"}


@pytest.mark.parametrize("script, kind", [("gpu.sh", "gpu"), ("tpu_vm.sh", "tpu")])
def test_plans_are_compiled_with_the_flags_of_a_run(tmp_path, script, kind):
    *_, xla, libtpu, _ = run(tmp_path, script, ".venv/bin/python")
    variable, flags = FLAGS[kind]
    given = {"XLA_FLAGS": xla.removeprefix("XLA="), "LIBTPU_INIT_ARGS": libtpu.removeprefix("TPU=")}
    assert tuple(given.pop(variable).split()) == flags and set(given.values()) == {""}


def test_xla_knows_the_flags(tmp_path):
    *_, xla, _, _ = run(tmp_path, "gpu.sh", ".venv/bin/python")
    flags = xla.removeprefix("XLA=")
    assert flags.count("--xla") >= 3
    code = "import jax; jax.devices(); print('known')"
    for given, known in ((flags, True), (flags + " --xla_gpu_make_it_fast=true", False)):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                              env=os.environ | {"XLA_FLAGS": given, "JAX_PLATFORMS": "cpu"})
        assert (done.stdout == "known\n") == known, done.stderr[-500:]


def test_the_lowest_versions_need_their_python_and_a_folder_of_their_own(tmp_path):
    """Stand-ins: a python of any version that makes environments, and one that is too new."""
    for name, new in (("old", 0), ("new", 1)):
        (tmp_path / name).write_text(f"""#!/bin/bash
[[ "$1" == -c ]] && exit {new}
[[ "$1" == -m ]] && echo "$@" > {tmp_path}/made && exit 7
exec {sys.executable} "$@"
""")
        (tmp_path / name).chmod(0o755)

    def lowest(python, folder):
        given = os.environ | {"PYTHON": str(tmp_path / python), "LOWEST": str(folder)}
        given |= {"PATH": str(tools)} if python == "new" else {}
        return subprocess.run([shutil.which("bash"), "launch/lowest.sh"], env=given, capture_output=True, text=True,
                              check=False)

    tools, mine = tmp_path / "tools", tmp_path / "mine"
    for folder in (tools, mine):
        folder.mkdir()
    (tools / "dirname").symlink_to(shutil.which("dirname"))
    assert "need Python 3.11 or 3.12" in lowest("new", mine).stderr
    (mine / "notes.txt").write_text("x")
    assert "is not a virtual environment" in lowest("old", mine).stderr and (mine / "notes.txt").exists()
    (mine / "pyvenv.cfg").write_text("")  # made, and interrupted before pip came
    assert lowest("old", mine).returncode == 7 and (tmp_path / "made").read_text() == f"-m venv --clear {mine}\n"
