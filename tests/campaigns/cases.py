"""What all campaigns share: seeded cases, results as JSON lines, finished cases skipped, one line of summary.

    ZSJAX_CAMPAIGN_CASES=100 ZSJAX_CAMPAIGN_FOLDER=/big/disk python -m pytest -m slow tests/campaigns/test_kills.py

ZSJAX_CAMPAIGN_CASES is the number of cases, ZSJAX_CAMPAIGN_SEED (0) what they are drawn with. Case i depends on the seed and
i alone, so a larger number only adds cases. ZSJAX_CAMPAIGN_FOLDER keeps runs and results: the same command goes on there,
and failed cases run again. Without it a campaign runs in a temporary folder.
"""

import dataclasses
import json
import os
import pathlib
import random
import subprocess
import time
import traceback
from collections.abc import Callable, Mapping, Sequence

import pytest

from zsjax.monitor.writer import read_jsonl
from zsjax.parallel.files import write_json

ROOT = pathlib.Path(__file__).parents[2]
SEED = int(os.environ.get("ZSJAX_CAMPAIGN_SEED", "0"))


def number_of_cases(default: int) -> int:
    return int(os.environ.get("ZSJAX_CAMPAIGN_CASES", default))


def folder_of(tmp_path_factory, name: str) -> pathlib.Path:
    """Where a campaign keeps its runs and results."""
    given = os.environ.get("ZSJAX_CAMPAIGN_FOLDER")
    folder = pathlib.Path(given).absolute() / name if given else tmp_path_factory.mktemp(name)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def draw(*names) -> random.Random:
    """The random numbers of one case."""
    return random.Random("/".join(map(str, (SEED, *names))))


@dataclasses.dataclass(frozen=True)
class Case:
    """name: of the case, the same in every campaign that has it. what: JSON values that `check` reads."""

    name: str
    what: Mapping


def commit() -> str:
    found = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip() or "unknown"


def run(name: str, folder: pathlib.Path, cases: Sequence[Case], check: Callable[[Case], Mapping]) -> None:
    """Runs the cases that have not passed yet, prints a line of summary and writes NAME.json; fails if a case failed.

    Args:
      name: of the campaign, and of its files in `folder`.
      folder: see `folder_of`.
      cases: in order.
      check: case -> further values of its result. It fails by an exception, whose text is the result's "failure".
    """
    lines, began = folder / f"{name}.jsonl", time.monotonic()
    results = {row["case"]: row for row in read_jsonl(lines)}
    version = commit()
    for case in cases:
        if results.get(case.name, {}).get("ok"):
            continue
        start = time.monotonic()
        row = {"case": case.name, **case.what, "commit": version}
        try:
            row |= {"ok": True, **check(case)}
        except Exception as error:  # whatever a case finds is its result
            row |= {"ok": False, "failure": f"{error}"[:2000] or traceback.format_exc()[-2000:]}
        row["seconds"] = round(time.monotonic() - start, 2)
        results[case.name] = row
        with open(lines, "a") as file:
            file.write(json.dumps(row) + "\n")
    of_cases = [results[case.name] for case in cases]
    failed = [row for row in of_cases if not row["ok"]]
    summary = {"campaign": name, "cases": len(cases), "failed": len(failed), "seed": SEED, "commit": version,
               "seconds": round(sum(row["seconds"] for row in of_cases), 1),
               "this_call_seconds": round(time.monotonic() - began, 1)}
    write_json(folder / f"{name}.json", summary | {"results": of_cases}, indent=1)
    print(f"\n{name}: {len(cases)} cases, {len(failed)} failed, {summary['seconds']:.0f} s, commit {version}, {folder}")
    if failed:
        pytest.fail("\n".join(f"{row['case']}: {row['failure']}" for row in failed[:10]), pytrace=False)
