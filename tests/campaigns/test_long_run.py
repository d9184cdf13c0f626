"""A long run of the tiny world: flat memory, nothing compiled after the first step, files that grow only where they must.

ZSJAX_CAMPAIGN_CASES is the number of steps here, 2000 where it is not given.
"""

import json
import shutil

import pytest

from tests.campaigns.campaign import Case, check_all, folder_of, num_cases
from tests.campaigns.children import Children
from tests.campaigns.runs import EXPERIMENT, write_inputs
from zsjax.monitor.writer import read_jsonl

KEPT = 20  # files of trajectories


@pytest.mark.slow
def test_long_run(tmp_path_factory):
    folder, steps = folder_of(tmp_path_factory, "long_run"), num_cases(2000)
    every = max(steps // 20, 1)

    def check(case):
        workdir, counts = folder / "run", folder / "counts.jsonl"
        write_inputs(folder / "files")
        shutil.rmtree(workdir, ignore_errors=True)
        counts.unlink(missing_ok=True)
        settings = dict(steps=steps, checkpoint_every=every, eval_every=every, trajectories_every=2, trajectories_kept=KEPT)
        with Children() as children:
            code = children.run(["tests.campaigns.runs:train_and_count", str(counts), "train", "--config",
                                 f"{EXPERIMENT}:taught@{folder / 'files'}", "--workdir", str(workdir),
                                 *(f"--config.train.{name}={value}" for name, value in settings.items())],
                                folder / "log.txt", timeout=6 * 3600)
        assert code == 0, (folder / "log.txt").read_text()[-2000:]
        lines = [line for line in read_jsonl(workdir / "metrics.jsonl") if line["stage"] == "train"]
        assert [line["step"] for line in lines] == list(range(1, steps + 1))
        evaluated = next(line["step"] for line in lines if "eval/em" in line)
        late = [line["step"] for line in lines[1:] if line["compile/step"] and line["step"] != evaluated]
        assert not late, f"programs were compiled in the steps {late[:20]}"
        files = [path for path in (workdir / "trajectories").iterdir()]
        assert len(files) <= KEPT and (workdir / "trajectories" / "train_000001.jsonl").exists()
        assert len([path for path in (workdir / "checkpoints" / "train").iterdir() if path.name.isdigit()]) == 2
        assert all(path.name.isdigit() for path in (workdir / "checkpoints" / "train").iterdir())
        rest = [path for path in workdir.rglob("*") if path.is_file()
                and path.relative_to(workdir).parts[0] not in ("trajectories", "checkpoints")]
        assert len(rest) < 60, f"files that are neither trajectories nor checkpoints: {sorted(map(str, rest))}"
        told = f"the {KEPT - 1} newest are kept" in (folder / "log.txt").read_text()
        assert told == (steps // 2 + 1 > KEPT)
        return {"steps": steps} | memory(read_jsonl(counts))

    check_all("long_run", [Case(f"steps_{steps}", 0)], check)


def memory(rows) -> dict:
    """The counts in the second and in the last quarter of a run; fails where they grow."""
    quarter = len(rows) // 4
    parts = {"second": rows[quarter:2 * quarter], "last": rows[3 * quarter:]}
    most = {name: [max(column) for column in zip(*part, strict=True)] for name, part in parts.items()}
    kinds = ("resident", "arrays", "array_bytes")
    found = {f"{kind}_{name}": most[name][i] for name in parts for i, kind in enumerate(kinds)}
    assert most["last"][0] < 1.05 * most["second"][0], f"the process grows: {json.dumps(found)}"
    assert most["last"][1] <= 1.02 * most["second"][1] and most["last"][2] <= 1.02 * most["second"][2], f"arrays: {found}"
    return found
