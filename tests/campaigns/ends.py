"""How killed and stopped processes ended, and what a campaign of them must show."""

import collections
import dataclasses
import os
import pathlib
import re
import signal
from collections.abc import Mapping, Sequence

from tests.campaigns.children import FLUSHED
from tests.campaigns.runs import MIX
from zsjax.monitor.writer import read_jsonl

MOMENTS = ("time", "checkpoint", "model", "rename", "fsync", "other")  # at a time, or a class of `children.class_of`
WITH_CHECKPOINTS = ("pretrain", "pretrain_simulator", "warm_start", "tune_simulator", "train")
LEAST_KILLS = 5  # of each class of moments, in a hundred cases


def moments_of(stage: str) -> list[str]:
    """The classes of moments that a stage has."""
    return [name for name in MOMENTS if stage in WITH_CHECKPOINTS or name not in ("checkpoint", "model")]


def moments(case) -> dict:
    """One or two kills, each at a time or at a call that changes files. The class of the first call goes round, so that
    every stage is killed at each that it has; the others are drawn."""
    rng, classes = case.draw, moments_of(case.kind)
    first = classes[(case.seed // len(MIX) + case.seed) % len(classes)]
    drawn = [first, rng.choice(classes)][:rng.choice((1, 1, 2))]
    return {"kills": [{"how": how, "at": rng.random()} for how in drawn]}


def kills_of(where: Sequence[str]) -> dict:
    """The counts of a case from how its processes ended: "CLASS: MOMENT", "CLASS: ended before" or "complete before"."""
    killed = [text.partition(": ")[0] for text in where if text != "complete before" and not text.endswith(": ended before")]
    return {"killed": len(killed), "where": where, **{f"at {name}": killed.count(name) for name in sorted(set(killed))}}


def lacks_kills(records: Sequence[Mapping]) -> str:
    """Where processes ended before they could be killed, or no write of some kind was hit: what the cases do not show."""
    killed, at, committing = collections.Counter(), collections.Counter(), set()
    for record in records:
        counts = record["counts"]
        killed[record["kind"]] += counts.get("killed", 0)
        at.update({name: counts.get(f"at {name}", 0) for name in MOMENTS})
        committing |= {record["kind"]} if counts.get("at checkpoint") else set()
    if killed.total() < len(records) // 2:
        return f"{killed.total()} kills in {len(records)} cases"
    lacking = []
    if len(records) >= 100:
        lacking += [f"none in {stage}" for stage in sorted(set(MIX)) if not killed[stage]]
        lacking += [f"{at[name]} at {name}, less than {LEAST_KILLS}" for name in MOMENTS if at[name] < LEAST_KILLS]
        lacking += [f"no checkpoint's rename in {stage}" for stage in WITH_CHECKPOINTS if stage not in committing]
    return f"{killed.total()} kills in {len(records)} cases: {', '.join(lacking)}" if lacking else ""


# The stages of `signals`, in turn. Those with loops come oftener; pretrain has two loops.
SIGNALLED = ("train", "warm_start", "tune_simulator", "pretrain_simulator", "pretrain", "collect", "evaluate", "report",
             "export", "index", "import_searches", "train", "warm_start", "pretrain")
LOOPS = {"pretrain": ("pretrain_reading", "pretrain_episodes"), **{stage: (stage,) for stage in WITH_CHECKPOINTS[1:]}}


def signals(case) -> dict:
    """A signal and its moment. Every other case of a stage with loops gets it in one of them, where a state is to be saved;
    of another stage, at a call that changes files. The others get it at a time."""
    rng, (round_, place) = case.draw, divmod(case.seed, len(SIGNALLED))
    number = round_ * SIGNALLED.count(case.kind) + SIGNALLED[:place].count(case.kind)  # of this stage
    loops = LOOPS.get(case.kind, ("write",))
    when = "time" if number % 2 else loops[number // 2 % len(loops)]
    return {"signal": rng.choice(("SIGTERM", "SIGINT")), "when": when, "at": rng.random()}


def flushes(loop: str, moments: Sequence[str]) -> list[int]:
    """The moments of `children.FLUSHED` before checkpoints of a loop, the last one left out: their numbers, from 0."""
    found, number, steps = [], -1, []
    for moment in moments:
        number += bool(re.search(FLUSHED, moment))
        if step := re.search(rf"^mkdir before .*/{folder_of_loop(loop)}/(\d+)\.orbax-checkpoint-tmp$", moment):
            found.append(number)
            steps.append(int(step[1]))
    return [number for number, step in zip(found, steps, strict=True) if step < max(steps)]


@dataclasses.dataclass(frozen=True)
class Stop:
    """How a process ended after a signal.

    Attributes:
      number: the signal.
      code: the exit code, as of subprocess.
      held: whether the process held its folder, with handlers in place, after the signal was sent.
      said: its output.
    """

    number: int
    code: int
    held: bool
    said: str

    def saved(self, stage: str, workdir: pathlib.Path, undisturbed: pathlib.Path) -> str:
        """The checkpoint that the process said it left, as a path in `workdir`; "" where it had nothing to save.

        undisturbed: the folder after the whole stage.
        """
        name = signal.Signals(self.number).name
        assert "Traceback" not in self.said, f"ended with {self.code}: {self.said[-1500:]}"
        if not self.held:  # before the run begins Python's own handlers end it, and so after its end
            assert self.code in (0, 128 + self.number, -self.number), f"ended with {self.code}: {self.said[-1500:]}"
            return ""
        stopped = re.search(rf"(?m)^stopped by {name}(?:; (.+) in (.+))?; the same command goes on$", self.said)
        assert self.code == 128 + self.number and stopped, f"ended with {self.code}: {self.said[-1500:]}"
        steps, wanted = last_steps(stage, workdir), last_steps(stage, undisturbed)
        if stopped[1] is None:  # outside of a loop: before its first step, or after its last, whose state is saved anyway
            lost = {loop: step for loop, step in steps.items()
                    if step < wanted[loop] or not (workdir / folder_of_loop(loop) / str(step)).is_dir()}
            assert not lost, f"no state was saved of {lost}: {self.said[-500:]}"
            return ""
        step = re.fullmatch(r"the state of step (\d+) is", stopped[1])
        folder = os.path.relpath(stopped[2], workdir)
        assert step, f"no state was saved: {self.said[-500:]}"
        loops = [loop for loop in steps if folder_of_loop(loop) == folder]
        assert all(int(step[1]) >= steps[loop] for loop in loops), f"the state of step {step[1]} is older than {steps}"
        assert (workdir / folder / step[1] / "about").is_dir(), f"{folder}/{step[1]} is not there: {self.said[-500:]}"
        return f"{folder}/{step[1]}"


def last_steps(stage: str, workdir: pathlib.Path) -> dict[str, int]:
    """Loop -> the last step of its metrics, of the loops of a stage; empty for a stage without checkpoints."""
    loops = LOOPS.get(stage, ())
    return {line["stage"]: line["step"] for line in read_jsonl(workdir / "metrics.jsonl") if line["stage"] in loops}


def folder_of_loop(loop: str) -> str:
    return "checkpoints/" + loop.replace("pretrain_reading", "pretrain/reading").replace(
        "pretrain_episodes", "pretrain/episodes")


def beyond(found: Sequence[str], saved: str, undisturbed: pathlib.Path) -> list[str]:
    """The differences without what a saved state explains: itself, in place of one older checkpoint."""
    if not saved or f"{saved} is left over" not in found:
        return found
    folder = os.path.dirname(saved)
    last = max(int(path.name) for path in (undisturbed / folder).iterdir() if path.name.isdigit())
    missing = [line for line in found if re.fullmatch(rf"{re.escape(folder)}/\d+ is missing", line)
               and line != f"{folder}/{last} is missing"]
    return [line for line in found if line not in (f"{saved} is left over", *missing[:1])]


def lacks_signals(records: Sequence[Mapping]) -> str:
    """Where most processes ended before their signal, or a loop never left a state of its own."""
    came = [record for record in records if record["counts"].get("came")]
    states = [record["counts"]["state"] for record in came if record["counts"].get("state")]
    names = {record["signal"] for record in came if record["counts"].get("state")}
    lacking = []
    if len(came) < 2 * len(records) // 3:
        lacking.append("less than two thirds")
    if len(records) >= 2 * len(SIGNALLED):
        lacking += [f"no state of {loop}" for loops in LOOPS.values() for loop in loops
                    if not any(state.startswith(folder_of_loop(loop) + "/") for state in states)]
        lacking += [f"no signal came to {stage}" for stage in sorted(set(SIGNALLED) - {record["kind"] for record in came})]
        lacking += [f"no state after {name}" for name in ("SIGTERM", "SIGINT") if name not in names]
    return f"{len(came)} signals in {len(records)} cases: {', '.join(lacking)}" if lacking else ""


def lacks_failures(records: Sequence[Mapping]) -> str:
    """Where too few writes failed, or none in some way."""
    failed, ways = [record["how"] for record in records if record["counts"].get("failed")], {r["how"] for r in records}
    lacking = ["less than three quarters"] if 4 * len(failed) < 3 * len(records) else []
    lacking += [f"none by {way}" for way in sorted(ways - set(failed))] if len(records) >= 32 else []
    return f"{len(failed)} failed writes in {len(records)} cases: {', '.join(lacking)}" if lacking else ""


# Kinds of damage that may not be noticed: files for people, files that are written anew, small ones of orbax, a name in a
# table of check sums, and a place in config.json that says the same.
MAY_PASS = ("metrics", "metrics_resumed", "trajectories", "gates", "evaluation_table", "older_checkpoint", "checkpoint",
            "supervised_checkpoint", "pretrain_checkpoint", "config", "checksums")


def lacks_damage(records: Sequence[Mapping]) -> str:
    """Where damage was not noticed: of a kind whose every file has a check sum, or in most cases."""
    noticed = [record for record in records if record["counts"].get("noticed")]
    missed = sorted({record["kind"] for record in records if record not in noticed and record["kind"] not in MAY_PASS})
    lacking = ["less than half"] if 2 * len(noticed) < len(records) else []
    lacking += [f"unnoticed in {kind}" for kind in missed]
    return f"{len(noticed)} times noticed in {len(records)} cases: {', '.join(lacking)}" if lacking else ""
