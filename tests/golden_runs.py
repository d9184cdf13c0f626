"""Golden runs: the metrics of each shipped experiment's seeded `:smoke`, kept in tests/golden/NAME.json.

    python -m tests.golden_runs [NAME ...]      # runs the smokes and writes their files; say in the commit what moved them

On the platform of the file (processor, cores, jax version) a run must give the same digits. Elsewhere sums are taken in
another order, and one token that is sampled otherwise changes all that follows: there the same lines must have the same
metrics, and only `FIXED` numbers are compared.
"""

import hashlib
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile

import jax

from tests.environment import one_device
from zsjax.monitor.writer import read_jsonl, without_wall_time

FOLDER = pathlib.Path(__file__).parent / "golden"
ROOT = FOLDER.parents[1]
FIXED = ("step", "noise", "n", "hops")


def platform_name() -> str:
    """The processor, its instructions, its cores and the version of jax, which decide the last digits.

    A virtual machine's model name may hide the generation, so the instructions that it has count as well.
    """
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    said = dict(re.findall(r"^([^\t:]+?)\s*: (.+)$", text, re.MULTILINE))
    processor = said.get("model name", "").strip() or platform.processor() or platform.machine()
    instructions = hashlib.sha256(" ".join(sorted(said.get("flags", "").split())).encode()).hexdigest()[:8]
    family = f"family {said.get('cpu family')}, model {said.get('model')}, instructions {instructions}"
    return f"{processor}, {family}, {os.cpu_count()} cores, jax {jax.__version__}"


def of_run(workdir: pathlib.Path) -> dict:
    """What a golden file holds of a finished run: its metrics without wall time, and its evaluations."""
    lines = [without_wall_time(line) for line in read_jsonl(workdir / "metrics.jsonl")]
    kept = ("name", "hops", "data_set", "n", "em", "f1", "contains", "searches", "answered", "tokens")
    rows = json.loads((workdir / "evaluation.json").read_text())
    return {"platform": platform_name(), "metrics": lines,
            "evaluation": [{name: row[name] for name in kept if name in row} for row in rows]}


def differences(golden: dict, found: dict) -> list[str]:
    """A line for each number of the golden run that is another now, or is missing. New metrics are no difference."""
    exact = golden["platform"] == found["platform"]
    out = []
    for part in ("metrics", "evaluation"):
        if len(golden[part]) != len(found[part]):
            out.append(f"{part}: {len(found[part])} lines, not {len(golden[part])}")
        for number, (old, new) in enumerate(zip(golden[part], found[part], strict=False)):
            out += [f"{part} line {number + 1}, {name}: {new.get(name)!r}, not {old.get(name)!r}"
                    for name in old if not alike(old.get(name), new.get(name), exact or name in FIXED)]
    return out


def alike(old, new, exact: bool) -> bool:
    """Whether two values are the same; unless exact, any two numbers are."""
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (old, new))
    return old == new if exact or not numbers else True


def read(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text())


def write(name: str, found: dict) -> None:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def main(names):
    for name in names or sorted(path.stem for path in (ROOT / "experiments").glob("*.py")):
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, "-m", "zsjax.launch", "--config", f"experiments/{name}.py:smoke", "--workdir",
                            folder], cwd=ROOT, env=one_device(), check=True)
            write(name, of_run(pathlib.Path(folder)))


if __name__ == "__main__":
    main(sys.argv[1:])
