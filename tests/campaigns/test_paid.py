"""Paid searches under kills: what was paid is kept and not asked again, and the account holds every request.

An evaluation searches with SerpApi's engine at a server of this machine, is killed or stopped while it writes charges and
replies, and goes on. A kill may leave charges whose request was not sent, and requests whose reply was not kept: at most as
many as are sent at once.
"""

import collections
import json
import shutil
import signal

import pytest

from tests.campaigns.campaign import cases_of, check_all, commit, folder_of
from tests.campaigns.children import Children, Hook
from tests.campaigns.experiment import WORLD
from tests.campaigns.paid_engine import FOLDER, PRICE, URL_NAME, PaidServer
from tests.campaigns.runs import EXPERIMENT, differences, write_inputs
from zsjax.monitor.writer import read_jsonl, without_wall_time
from zsjax.search import Limits
from zsjax.tiny_world import world

KINDS = ("SIGKILL", "SIGKILL", "SIGTERM")
AT_ONCE = Limits().concurrency
OPTIONS = {"search.eval_engine": "tests.campaigns.paid_engine:engine", "data.eval_limit": 24, "evaluate.drop_best": 0,
           "evaluate.batch_rows": 8}


def moments(case) -> dict:
    """One to three ends of the process at writes of charges and replies, as shares of an undisturbed run's."""
    rng = case.draw
    return {"at": [rng.random() for _ in range(rng.randint(1, 3))]}


class Evaluation:
    """The command, in one folder."""

    def __init__(self, folder, children, server):
        self.folder, self.children, self.server = folder, children, server
        self.env = {URL_NAME: f"{server.url}/search.json", "SERPAPI_API_KEY": "k"}

    def run(self, workdir, hook=None) -> int:
        command = ["evaluate", "--config", f"{EXPERIMENT}:taught@{self.folder / 'files'}", "--workdir", str(workdir),
                   *(f"--config.{name}={value}" for name, value in OPTIONS.items())]
        return self.children.run(command, workdir.with_suffix(".log"), hook=hook, env=self.env)

    def undisturbed(self):
        """(the folder after an undisturbed run, its writes in the account's folder)."""
        whole, moments = self.folder / f"whole-{commit()}", self.folder / "moments.txt"
        shutil.rmtree(whole, ignore_errors=True)
        moments.unlink(missing_ok=True)
        assert self.run(whole, Hook(str(whole), str(moments))) == 0, whole.with_suffix(".log").read_text()[-2000:]
        return whole, sum(f"/{FOLDER}/" in line for line in moments.read_text().splitlines())


def spent_in(workdir) -> dict:
    path = workdir / FOLDER / "spent.json"
    return json.loads(path.read_text()) if path.exists() else {"searches": 0, "dollars": 0.0}


def kept_in(workdir) -> set[str]:
    return {json.loads(path.read_text())["query"] for path in (workdir / FOLDER).glob("??/*.json")}


def metrics_of(workdir) -> list[dict]:
    """The lines of metrics, without wall-clock time. A search whose reply a killed process has kept is read and not asked
    for: both count as one."""
    lines = []
    for line in map(without_wall_time, read_jsonl(workdir / "metrics.jsonl")):
        asked = [line.pop(f"engine/{name}", 0) for name in ("requests", "paid_searches", "attempts")]
        lines.append(line | {"engine/cached": line.get("engine/cached", 0) + asked[0], "asked alike": len(set(asked))})
    return lines


@pytest.mark.slow
def test_paid(tmp_path_factory):
    folder = folder_of(tmp_path_factory, "paid")
    write_inputs(folder / "files")
    with Children() as children, PaidServer(world.worlds_of("tiny_world:eval", **WORLD)) as server:
        evaluation = Evaluation(folder, children, server)
        whole, writes = evaluation.undisturbed()
        once = collections.Counter(server.asked)
        assert len(once) > AT_ONCE and set(once.values()) == {1} and once.keys() == kept_in(whole)
        assert spent_in(whole) == {"searches": len(once), "dollars": PRICE * len(once)}

        @children.surviving
        def check(case):
            workdir, ends, number = folder / "disturbed", 0, getattr(signal, case.kind)
            shutil.rmtree(workdir, ignore_errors=True)
            server.asked.clear()
            for at in case.what["at"]:
                kept, before = kept_in(workdir), len(server.asked)
                left = max(int(writes * (1 - len(kept) / len(once))), 1)
                code = evaluation.run(workdir, Hook(str(workdir), at=int(at * left), of=f"/{FOLDER}/", do=case.kind))
                again = kept & set(server.asked[before:])
                assert not again, f"paid twice: {sorted(again)[:3]}"
                said = workdir.with_suffix(".log").read_text()[-1500:]
                assert code in (0, -number if number == signal.SIGKILL else 128 + number), f"ended with {code}: {said}"
                ends += code != 0
                charged, requests = spent_in(workdir)["searches"], len(server.asked)
                most = ends * AT_ONCE if number == signal.SIGKILL else 0
                assert requests <= charged <= requests + most, (charged, requests)
            kept, before = kept_in(workdir), len(server.asked)
            assert evaluation.run(workdir) == 0, workdir.with_suffix(".log").read_text()[-2000:]
            assert not kept & set(server.asked[before:]), "paid twice"
            requests, spent = len(server.asked), spent_in(workdir)
            assert requests <= spent["searches"] <= requests + most and spent["dollars"] == PRICE * spent["searches"]
            assert kept_in(workdir) == once.keys() == set(server.asked), "a reply was lost"
            assert requests - len(once) <= most, f"{requests} requests of {len(once)} searches"
            found = [line for line in differences(workdir, whole)
                     if not line.startswith((f"{FOLDER}/spent.json ", "metrics.jsonl differs"))]
            assert not found, "; ".join(found)
            assert metrics_of(workdir) == metrics_of(whole)
            return {"ends": ends, "requests": requests, "charged": spent["searches"], "searches": len(once)}

        def lacks(records):
            ends = sum(record["counts"].get("ends", 0) for record in records)
            return f"{ends} ends in {len(records)} cases" if ends < len(records) else ""

        check_all("paid", cases_of(KINDS, default=10, what=moments), check, lacks=lacks)
