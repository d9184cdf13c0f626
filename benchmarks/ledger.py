r"""The ledger: claims about learning to search with a simulated engine, tested on experiments/hard_world.py.

    python benchmarks/ledger.py run --workdir runs/ledger [--only C1 C5] [--hours 2]
    python benchmarks/ledger.py report --workdir runs/ledger            # experiments/ledger.md and its plots
    python benchmarks/ledger.py report                                  # the same, of the lines that the repository carries
    python benchmarks/ledger.py list

`run` makes the models that the arms start from, then the runs, one process after the other. Each finished run is a line
of WORKDIR/results.jsonl with its commit and config. The same command goes on where it was stopped, and a kill loses at
most the run in progress. A run that fails is a line with its error and is not tried again (`--again` does). A run whose
line lacks a measure that a claim reads, or whose settings changed since, is made again, and its last line counts.
`report --workdir` also copies the lines and the gates of the models to experiments/ledger/, for the repository to carry.
The models are not carried. A new workdir begins anew, as its models need not be the same to the last digit.
benchmarks/hypotheses/ has the claims, the arms, and the rule by which a claim is decided.
"""

import argparse
import dataclasses
import gzip
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.hypotheses import entries  # noqa: E402 - found only from the checkout
from benchmarks.hypotheses.entries import Arm, Ledger, Model  # noqa: E402

EXPERIMENT = "experiments/hard_world.py"
KEPT = ("metrics.jsonl", "config.json", "evaluation.json", "gates.json", "log.txt")  # of a run's folder
CARRIED = "results.jsonl.gz"


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: an arm with a seed. measures: those of it that hypotheses read."""

    arm: Arm
    seed: int
    measures: frozenset[str] = frozenset()

    @property
    def key(self) -> tuple:
        return self.arm.name, self.arm.digest, self.seed


class RunFailed(Exception):
    """A run ended with an error; the message is the end of its log."""


def jobs(ledger: Ledger, only=()) -> Iterator[Job]:
    """The runs of the hypotheses in order, each once: all arms of a hypothesis with the first seed, then the next."""
    seen, chosen = set(), [h for h in ledger.hypotheses if not only or h.id in only]
    for hypothesis in chosen:
        for seed in hypothesis.seeds:
            for name in hypothesis.arms(seed):
                measures = frozenset().union(*(h.measures(name) for h in chosen if seed in h.seeds))
                job = Job(ledger.arms[name], seed, measures)
                if job.key not in seen:
                    seen.add(job.key)
                    yield job


def read_lines(workdir: pathlib.Path) -> list[dict]:
    """The lines of results.jsonl, or of carried ones. The last one may be cut off by a kill; it is left out."""
    found, path, carried = [], workdir / "results.jsonl", workdir / CARRIED
    if carried.exists():
        texts = gzip.decompress(carried.read_bytes()).decode().splitlines()
    else:
        texts = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    for text in texts:
        try:
            found.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return found


def read_results(workdir: pathlib.Path) -> dict[tuple, dict]:
    """{(arm, digest, seed): the last line of that run}."""
    return {(line["arm"], line["digest"], line["seed"]): line for line in read_lines(workdir)}


def carry(workdir: pathlib.Path, folder: pathlib.Path) -> None:
    """Copies what a report is made of, the lines and the gates of the models, to a folder of the repository.

    Paths of this machine stay out: /WORKDIR stands for the workdir, /CHECKOUT for the checkout. They are absolute, as the
    settings of an arm are that a line is compared with.
    """
    def portable(text):
        return text.replace(str(workdir.resolve()), "/WORKDIR").replace(str(ROOT), "/CHECKOUT")

    lines = "".join(json.dumps(line) + "\n" for line in read_lines(workdir))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARRIED).write_bytes(gzip.compress(portable(lines).encode(), mtime=0))  # the same lines are the same bytes
    for path in sorted((workdir / "models").glob("*/gates.json")):
        (to := folder / "models" / path.parent.name).mkdir(parents=True, exist_ok=True)
        (to / path.name).write_text(portable(path.read_text()))


def add_result(workdir: pathlib.Path, line: dict) -> None:
    """Appends a line, behind a newline where a kill has cut the last one off."""
    path = workdir / "results.jsonl"
    whole = not path.exists() or not path.stat().st_size or path.read_bytes().endswith(b"\n")
    with open(path, "a", encoding="utf-8") as file:
        file.write(("" if whole else "\n") + json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def run_all(ledger: Ledger, workdir: pathlib.Path, *, only=(), hours: float | None = None, again: bool = False,
            play: Callable[[Job, pathlib.Path], dict], make: Callable[[Model, pathlib.Path], None],
            outdated: Callable[[Arm | Model, dict], list[str]] = lambda arm, line: [],
            clock: Callable[[], float] = time.monotonic) -> int:
    """Makes the runs that are not there. A run is made anew if `lacks` says so.

    Args:
      only: ids of hypotheses, () for all.
      hours: no run begins later than this.
      again: runs that failed are tried again.
      play: (job, folder) -> what is kept of the run, beside who and when; raises RunFailed.
      make: (model, folder) -> None; leaves the model at folder/model.output; raises RunFailed.
      outdated: (arm or model, stored line) -> settings in which the line's run is not the arm's any more.
      clock: seconds.

    Returns:
      The number of runs made.
    """
    workdir.mkdir(parents=True, exist_ok=True)
    end = clock() + 3600 * hours if hours is not None else float("inf")
    made = 0
    for job in jobs(ledger, only):
        line = read_results(workdir).get(job.key)
        why = lacks(job, line, outdated) if line else ""
        if line and not why and not (again and "error" in line):
            continue
        if clock() >= end:
            break
        started, cpu, folder = clock(), _cpu_seconds(), workdir / "runs" / f"{job.arm.name}-{job.arm.digest}-{job.seed}"
        if why:
            print(f"{job.arm.name}, seed {job.seed}, is run again: {why}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)  # a finished run's: the new one must not go on from there
        kept = {"arm": job.arm.name, "digest": job.arm.digest, "seed": job.seed, "arg": job.arm.arg,
                "overrides": dict(job.arm.overrides), "commit": commit(), "asked": sorted(job.measures)}
        try:
            for name in models_of(ledger, job.arm):
                model = ledger.models[name]
                if not (workdir / "models" / name / model.output).exists():
                    make(model, workdir / "models" / name)
                _check_model(model, workdir / "models" / name, outdated)
            kept |= play(job, folder)
        except RunFailed as error:
            kept["error"] = str(error)
        add_result(workdir, kept | {"seconds": round(clock() - started, 1), "cpu_seconds": round(_cpu_seconds() - cpu, 1),
                                    "finished": time.strftime("%Y-%m-%d %H:%M")})
        made += 1
    return made


def _cpu_seconds() -> float:
    """CPU time of all processes that this one has waited for: wall time counts what else the machine does, too."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def lacks(job: Job, line: dict, outdated: Callable[[Arm | Model, dict], list[str]]) -> str:
    """Why a stored line does not stand for the job, "" if it does.

    It lacks a measure that a hypothesis reads and that its run was not asked for (a run that was asked and has none would
    have none again), or its settings are not those of the arm any more. A line with an error lacks nothing.
    """
    if "error" in line:
        return ""
    if missing := job.measures - line["measures"].keys() - set(line.get("asked", ())):
        return f"its line has no {', '.join(sorted(missing))}"
    return f"{', '.join(other)} changed" if (other := outdated(job.arm, line)) else ""


def _check_model(model: Model, folder: pathlib.Path, outdated) -> None:
    """Raises SystemExit where the folder's model was made with other settings: results would mix two models."""
    path = folder / "config.json"
    if path.exists() and (other := outdated(model, {"config": json.loads(path.read_text()), "seed": 0})):
        raise SystemExit(f"{folder} was made with another {', '.join(other)}; begin a new --workdir")


def models_of(ledger: Ledger, owner: Arm | Model) -> list[str]:
    """Names of the models that an arm or a model starts from, those first that others start from."""
    names = []
    for value in owner.overrides.values():
        if value.startswith("@"):
            name = value[1:].partition("/")[0]
            names += [*models_of(ledger, ledger.models[name]), name]
    return list(dict.fromkeys(names))


def commit() -> str:
    """The checkout's commit, with "+" where files differ from it; "unknown" without git."""
    def git(*words):
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.strip()

    found = git("rev-parse", "HEAD")
    return found + "+" * bool(found and git("status", "--porcelain", "--untracked-files=no")) or "unknown"


class Launcher:
    """Makes models and runs by the command line, each in a process of its own."""

    def __init__(self, ledger: Ledger, workdir: pathlib.Path):
        self.ledger, self.models = ledger, workdir.resolve() / "models"

    def make(self, model: Model, folder: pathlib.Path) -> None:
        self._launch(model.arg, model.stages, model.overrides, folder)

    def play(self, job: Job, folder: pathlib.Path) -> dict:
        before = self.models.parent / "before"  # evaluations of the base, which many runs share
        if before.exists():
            shutil.copytree(before, folder / "evaluation", dirs_exist_ok=True, ignore=shutil.ignore_patterns(".*"))
        self._launch(f"{job.arm.arg},seed={job.seed}".lstrip(","), "train,evaluate", job.arm.overrides, folder)
        from benchmarks.hypotheses import measures

        found = measures.of_run(folder)
        before.mkdir(exist_ok=True)
        for path in (folder / "evaluation").glob("before*"):
            if not (before / path.name).exists():
                part = before / f".{os.getpid()}-{path.name}"  # another process may copy from this folder now
                shutil.copy(path, part)
                part.replace(before / path.name)
        for path in folder.iterdir():  # a run takes 10 MB with its checkpoints, and there are hundreds
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in KEPT:
                path.unlink()
        return found

    def command(self, arg: str, stages: str, overrides: Mapping[str, str], folder: pathlib.Path) -> list[str]:
        """The words of a command line. Every step keeps its trajectories, which are measured."""
        settings = {"stages": stages, "train.trajectories_every": "1", **entries.settings(overrides, self.models)}
        return [sys.executable, "-m", "zsjax.launch", "--config", f"{EXPERIMENT}:{arg}", "--workdir", str(folder),
                *(f"--config.{name}={value}" for name, value in settings.items())]

    def _launch(self, arg, stages, overrides, folder):
        folder.mkdir(parents=True, exist_ok=True)
        command = self.command(arg, stages, overrides, folder)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        with open(folder / "log.txt", "a") as log:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        if done.returncode < 0:  # killed from outside: the next start goes on with it
            raise SystemExit(f"{' '.join(command)} was killed by signal {-done.returncode}")
        if done.returncode:
            raise RunFailed((folder / "log.txt").read_text(errors="replace")[-1000:])


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help in (("run", "make the runs that are not there"), ("report", "write experiments/ledger.md"),
                       ("list", "the hypotheses and their number of runs")):
        made = commands.add_parser(name, help=help)
        made.add_argument("--only", nargs="+", default=[], metavar="ID", help="these hypotheses, as C1 C5")
        if name != "list":
            made.add_argument("--workdir", type=pathlib.Path, required=name == "run", metavar="DIR")
    run = commands.choices["run"]
    run.add_argument("--hours", type=float, help="begin no run later than this")
    run.add_argument("--again", action="store_true", help="try again what failed")
    commands.choices["report"].add_argument("--out", type=pathlib.Path, default=ROOT / "experiments", metavar="DIR",
                                            help="where ledger.md, and ledger/ with plots and lines, are written")
    options = parser.parse_args(arguments)
    ledger = entries.load()
    if unknown := set(options.only) - {hypothesis.id for hypothesis in ledger.hypotheses}:
        parser.error(f"unknown hypothesis {', '.join(sorted(unknown))}")
    if options.command == "list":
        for hypothesis in ledger.hypotheses:
            print(f"{hypothesis.id:<4} {hypothesis.title:<48} {sum(1 for _ in jobs(ledger, [hypothesis.id])):>3} runs")
        print(f"{sum(1 for _ in jobs(ledger))} different runs in all")
    elif options.command == "run":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the run in progress, too
        from benchmarks.hypotheses import outdated

        launcher = Launcher(ledger, options.workdir)
        made = run_all(ledger, options.workdir, only=options.only, hours=options.hours, again=options.again,
                       play=launcher.play, make=launcher.make, outdated=outdated.differences)
        print(f"{made} runs made, {len(read_results(options.workdir))} in {options.workdir / 'results.jsonl'}")
    else:
        from benchmarks.hypotheses import tables

        carried = options.out / "ledger"
        if not read_lines(options.workdir or carried):
            parser.error(f"no run is in {options.workdir or carried}")
        if options.workdir is not None:
            carry(options.workdir, carried)
        tables.write(tables.Results(ledger, read_results(carried), read_lines(carried), carried / "models"), options.out)


if __name__ == "__main__":
    main()
