"""A long run of the tiny world: flat memory, nothing compiled after the first step, files that grow only where they must.

The carried base is trained at a small rate, so that it searches and learns to the end. A run that was cut
off goes on when the command is started again; memory is judged in the process that lasted longest.

ZSJAX_CAMPAIGN_CASES is the number of steps here, 2000 where it is not given.
"""

import json
import re
import shutil

import pytest

from tests.campaigns.campaign import Case, check_all, commit, folder_of, num_cases
from tests.campaigns.children import Children
from tests.campaigns.counted import late_compilations, memory_and_files, real_work
from tests.campaigns.runs import EXPERIMENT, write_inputs
from zsjax.monitor.writer import read_jsonl

KEPT = 20  # files of trajectories
# The carried base: the draws of the carried policy are so alike that few groups teach it anything. With the KL every step
# updates.
LEARNS = ("--config.simulator.init=asset:tiny_world/simulator", "--config.optimizer.learning_rate=1e-5",
          "--config.algorithm.kl_coef=0.001")


@pytest.mark.slow
def test_long_run(tmp_path_factory):
    folder, steps = folder_of(tmp_path_factory, "long_run"), num_cases(2000)
    every = max(steps // 20, 1)

    def check(case):
        workdir, counts, log, of = folder / "run", folder / "counts.jsonl", folder / "log.txt", folder / "of.json"
        made = json.dumps([commit(), steps])
        if not of.exists() or of.read_text() != made:  # a run of other code is not gone on with
            shutil.rmtree(folder)
            write_inputs(folder / "files")
            of.write_text(made)
        settings = dict(steps=steps, checkpoint_every=every, eval_every=every, trajectories_every=2, trajectories_kept=KEPT)
        with Children() as children:
            code = children.run(["tests.campaigns.counted:count_and_launch", str(counts), str(workdir), "train", "--config",
                                 f"{EXPERIMENT}:taught@{folder / 'files'}", "--workdir", str(workdir), *LEARNS,
                                 *(f"--config.train.{name}={value}" for name, value in settings.items())],
                                log, timeout=6 * 3600)
        assert code == 0, log.read_text()[-2000:]
        lines = [line for line in read_jsonl(workdir / "metrics.jsonl") if line["stage"] == "train"]
        assert [line["step"] for line in lines] == list(range(1, steps + 1))
        starts = [0, *map(int, re.findall(r"train: resumed at step (\d+)", log.read_text()))]
        late = late_compilations(lines, starts, every)
        assert not late, f"programs were compiled or read in the steps {late[:20]}"
        files = [path for path in (workdir / "trajectories").iterdir()]
        assert len(files) <= KEPT and (workdir / "trajectories" / "train_000001.jsonl").exists()
        assert len([path for path in (workdir / "checkpoints" / "train").iterdir() if path.name.isdigit()]) == 2
        assert all(path.name.isdigit() for path in (workdir / "checkpoints" / "train").iterdir())
        rest = [path for path in workdir.rglob("*") if path.is_file()
                and path.relative_to(workdir).parts[0] not in ("trajectories", "checkpoints")]
        assert len(rest) < 60, f"files that are neither trajectories nor checkpoints: {sorted(map(str, rest))}"
        noted = f"the {KEPT - 1} newest are kept" in log.read_text()
        assert noted == (steps // 2 + 1 > KEPT)
        return {"steps": steps} | real_work(lines) | memory_and_files(read_jsonl(counts), lines)

    check_all("long_run", [Case(f"steps_{steps}", 0)], check)
