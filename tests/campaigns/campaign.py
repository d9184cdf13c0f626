"""A campaign: many seeded cases, each judged alone. Finished cases lie in a folder and are not run again.

    from tests.campaigns.campaign import cases_of, run_campaign

    def check(case):              # an exception is the case's failure
        number = case.draw.random()
        assert number < 1
        return {"value": 1}       # what was found; whole numbers are added up over all cases

    def test_input():
        summary = run_campaign("input", cases_of(["config", "row"], default=60), check)
        assert not summary["failures"], summary["line"]

Environment:
- ZSJAX_CAMPAIGN_CASES: how many cases, instead of the small number of the default tests.
- ZSJAX_CAMPAIGN_FOLDER: where NAME.jsonl (a line per case), NAME.json (the summary) and a campaign's runs lie; without it
  nothing is kept. A case that passed is skipped when the campaign is started again with the same code of zsjax/; one that
  failed, or that passed with other code, runs again.
- ZSJAX_CAMPAIGN_OLD=1: cases that passed with other code of zsjax/ are skipped as well; the summary's `codes` tell.
- ZSJAX_CAMPAIGN_SEED: another seed is another list of cases (default 0).

`python -m tests.campaigns.table` makes a table of the summaries.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import random
import resource
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence

import pytest

HERE = pathlib.Path(__file__).parent
FEW = 10  # cases, whose counts a summary shows one by one


@dataclasses.dataclass(frozen=True)
class Case:
    """One case: its kind, the seed of everything that it draws, and JSON values of what is done, which are recorded."""

    kind: str
    seed: int
    what: Mapping = dataclasses.field(default_factory=dict, compare=False)

    @property
    def id(self) -> str:
        return f"{self.kind}:{self.seed}"

    @property
    def draw(self) -> random.Random:
        """A fresh generator, the same at every call."""
        return random.Random(self.id)


def num_cases(default: int) -> int:
    return int(os.environ.get("ZSJAX_CAMPAIGN_CASES", default))


def cases_of(kinds: Sequence[str], *, default: int, what: Callable[[Case], Mapping] = lambda case: {}) -> list[Case]:
    """`num_cases(default)` cases, the kinds in turn. A longer list begins with the shorter one. what: draws `Case.what`."""
    first = int(os.environ.get("ZSJAX_CAMPAIGN_SEED", 0)) * 1_000_000
    cases = [Case(kinds[i % len(kinds)], first + i) for i in range(num_cases(default))]
    return [dataclasses.replace(case, what=what(case)) for case in cases]


def folder_of(tmp_path_factory, name: str) -> pathlib.Path:
    """Where a campaign keeps its runs."""
    given = os.environ.get("ZSJAX_CAMPAIGN_FOLDER")
    folder = pathlib.Path(given).absolute() / name if given else tmp_path_factory.mktemp(name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def commit() -> str:
    """The checkout's commit, with `+` where files differ from it; "" outside a checkout."""
    done = subprocess.run(["git", "describe", "--always", "--dirty=+", "--exclude=*"], cwd=HERE, capture_output=True,
                          text=True, check=False)
    return done.stdout.strip()


@functools.cache
def code() -> str:
    """What zsjax/ holds: a hash of its files."""
    package, found = HERE.parents[1] / "zsjax", hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        found.update(f"{path.relative_to(package)} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()[:16]


def cpu_seconds() -> float:
    """CPU time of this process and its descendants: those that live, and those that one of these has waited for."""
    ticks, parents, used = os.sysconf("SC_CLK_TCK"), {}, {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        pid = int(path.parent.name)
        parents[pid], used[pid] = int(fields[1]), sum(map(int, fields[11:15])) / ticks

    def is_mine(pid):
        while pid and pid != os.getpid():
            pid = parents.get(pid, 0)
        return bool(pid)

    return sum(seconds for pid, seconds in used.items() if is_mine(pid))


def records_of(path: pathlib.Path) -> dict[str, dict]:
    """The last record of each case; a line that a kill cut is skipped."""
    records = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        records[record["case"]] = record
    return records


def judged(case: Case, check: Callable[[Case], dict | None]) -> dict:
    """The record of a case that has just run."""
    begun, worked, counts, failure = time.perf_counter(), cpu_seconds(), None, None
    try:
        counts = check(case)
    except Exception as error:  # noqa: BLE001  (whatever it is, it is this case's failure)
        at = traceback.extract_tb(error.__traceback__)[-1]
        failure = f"{type(error).__name__}: {error} ({pathlib.Path(at.filename).name}:{at.lineno})"[:2000]
    return {"case": case.id, "kind": case.kind, **case.what, "failure": failure, "counts": counts or {},
            "seconds": round(time.perf_counter() - begun, 4), "cpu_seconds": round(max(cpu_seconds() - worked, 0.0), 2)}


def run_campaign(name: str, cases: Iterable[Case], check: Callable[[Case], dict | None], *,
                 stored: Callable[[dict], dict | None] = dict, lacks: Callable[[Sequence[dict]], str] = lambda records: "",
                 **facts) -> dict:
    """Runs every case that has not passed yet, prints one line, and returns the summary that it writes.

    stored: the record of a case that passed at an earlier start -> what `check` would record today, or None where the
    record cannot show it, and the case runs again. lacks: all records -> what they do not prove together, or ""; it counts
    as the failure of "all cases".

    The summary: `cases`, `failures` (case -> what failed), `kinds` (kind -> cases), `counts` (the checks' counts, added
    up), `seconds` and `cpu_seconds` (of all cases, of earlier starts too), `slowest` (seconds), `cores` (that this process
    may use), `memory_mb` (this process at most), `commits` (commit -> cases), `codes` (`code` -> cases), `found` (case ->
    counts, where the cases are few), `line` (the printed one) and `facts`.
    """
    folder = os.environ.get("ZSJAX_CAMPAIGN_FOLDER")
    path = pathlib.Path(folder) / f"{name}.jsonl" if folder else None
    records = records_of(path) if path else {}
    now, cases, keeps = commit(), list(cases), bool(os.environ.get("ZSJAX_CAMPAIGN_OLD"))
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b") as file:  # a kill may have left half a line
            if file.tell() and not path.read_bytes().endswith(b"\n"):
                file.write(b"\n")
    for case in cases:
        known = records.get(case.id)
        if known and not known["failure"] and (keeps or known.get("code") == code()) and (known := stored(known)):
            records[case.id] = known
            continue
        records[case.id] = {**judged(case, check), "commit": now, "code": code()}
        if path:
            with open(path, "a") as file:
                file.write(json.dumps(records[case.id]) + "\n")
    records = [records[case.id] for case in cases]
    summary = summary_of(name, records, lacks(records)) | facts
    print(summary["line"])
    if path:
        path.with_suffix(".json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def check_all(name: str, cases: Iterable[Case], check: Callable[[Case], dict | None], **options) -> None:
    """`run_campaign`, and the test fails where a case failed."""
    summary = run_campaign(name, cases, check, **options)
    if summary["failures"]:
        pytest.fail(summary["line"], pytrace=False)


def summary_of(name: str, records: Sequence[dict], lacking: str = "") -> dict:
    """What `run_campaign` returns, of the cases' records. lacking: what they do not prove together."""
    counts = collections.Counter()
    for record in records:
        counts.update({name: value for name, value in record["counts"].items() if isinstance(value, int)})
    failures = {record["case"]: record["failure"] for record in records if record["failure"]}
    failures |= {"all cases": lacking} if lacking else {}
    seconds = [record["seconds"] for record in records]
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # kilobytes on Linux
    commits = collections.Counter(sorted(record["commit"] for record in records))
    codes = collections.Counter(record.get("code", "") for record in records)
    old = len(records) - codes[code()]
    first = next(iter(failures.items()), None)
    line = (f"campaign {name}: {len(records)} cases, {len(failures)} failed, {sum(seconds):.1f} s, slowest "
            f"{max(seconds, default=0):.2f} s, {memory:.0f} MB, commit {' '.join(commits)}"
            + (f", {old} cases of other code" if old else "")
            + (f"; first failure {first[0]}: {first[1]}" if first else ""))
    return {"campaign": name, "cases": len(records), "failures": failures,
            "kinds": dict(collections.Counter(record["kind"] for record in records)), "counts": dict(counts),
            "seconds": round(sum(seconds), 2),
            "cpu_seconds": round(sum(record.get("cpu_seconds", 0.0) for record in records), 2),
            "slowest": max(seconds, default=0.0), "cores": len(os.sched_getaffinity(0)), "memory_mb": round(memory),
            "commits": dict(commits), "codes": {of: number for of, number in codes.items() if number},
            "found": {record["case"]: record["counts"] for record in records} if len(records) <= FEW else {},
            "line": line.splitlines()[0] if line else line}
