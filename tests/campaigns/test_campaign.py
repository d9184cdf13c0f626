"""The plumbing of the campaigns: seeded cases, what is skipped, and what a summary says."""

import json
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.campaigns import campaign
from tests.campaigns.campaign import Case, cases_of, run_campaign
from tests.campaigns.children import Children, class_of
from tests.campaigns.ends import (
    LOOPS,
    MOMENTS,
    SIGNALLED,
    Stop,
    beyond,
    flushes,
    folder_of_loop,
    kills_of,
    lacks_damage,
    lacks_failures,
    lacks_kills,
    lacks_signals,
    moments,
    moments_of,
    signals,
)
from tests.campaigns.runs import MIX, Reference, UnreadableCheckpoint, differences
from tests.campaigns.stopwatch import Stopwatch
from tests.environment import ROOT
from zsjax.parallel.checkpoint import Checkpointer


def test_cases_are_seeded_and_a_longer_list_begins_with_the_shorter(monkeypatch):
    monkeypatch.delenv("ZSJAX_CAMPAIGN_CASES", raising=False)
    short = cases_of(["a", "b"], default=4)
    monkeypatch.setenv("ZSJAX_CAMPAIGN_CASES", "7")
    longer = cases_of(["a", "b"], default=4)
    assert longer[:4] == short and len(longer) == 7 and {case.kind for case in short} == {"a", "b"}
    assert short[1].draw.random() == Case("b", 1).draw.random() != short[3].draw.random()
    monkeypatch.setenv("ZSJAX_CAMPAIGN_SEED", "1")
    assert not set(cases_of(["a", "b"], default=4)) & set(longer)


def test_what_passed_is_skipped_and_what_failed_runs_again(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ZSJAX_CAMPAIGN_FOLDER", str(tmp_path))
    cases, seen, broken = [Case("a", i) for i in range(4)], [], {2}

    def check(case):
        seen.append(case.seed)
        assert case.seed not in broken, "two\nlines"
        return {"value": 1}

    first = run_campaign("some", cases, check, bound=3)
    assert list(first["failures"]) == ["a:2"] and first["counts"] == {"value": 3} and first["bound"] == 3
    assert first["found"]["a:0"] == {"value": 1} and first["found"]["a:2"] == {}
    assert capsys.readouterr().out.count("\n") == 1
    # A kill in the middle of a line loses that case and no other.
    path = tmp_path / "some.jsonl"
    path.write_text(path.read_text()[:-20])
    broken.clear()
    again = run_campaign("some", cases, check)
    assert seen == [0, 1, 2, 3, 2, 3] and not again["failures"] and again["counts"] == {"value": 4}
    assert json.loads((tmp_path / "some.json").read_text())["cases"] == 4
    assert len(path.read_text().splitlines()) == 6


def test_what_passed_with_other_code_runs_again_unless_it_is_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("ZSJAX_CAMPAIGN_FOLDER", str(tmp_path))
    monkeypatch.setattr(campaign, "code", lambda: "one")
    cases, seen = [Case("a", i) for i in range(2)], []
    run_campaign("some", cases[:1], lambda case: seen.append(case.seed))
    monkeypatch.setattr(campaign, "code", lambda: "two")
    monkeypatch.setenv("ZSJAX_CAMPAIGN_OLD", "1")
    kept = run_campaign("some", cases, lambda case: seen.append(case.seed))
    assert seen == [0, 1] and kept["codes"] == {"one": 1, "two": 1} and "1 cases of other code" in kept["line"]
    monkeypatch.delenv("ZSJAX_CAMPAIGN_OLD")
    again = run_campaign("some", cases, lambda case: seen.append(case.seed))
    assert seen == [0, 1, 0] and again["codes"] == {"two": 2} and sum(again["commits"].values()) == 2
    assert "other code" not in again["line"]


def test_old_records_are_read_or_their_cases_run_again_and_all_cases_together_must_prove_enough(monkeypatch, tmp_path):
    monkeypatch.setenv("ZSJAX_CAMPAIGN_FOLDER", str(tmp_path))
    cases, seen = [Case("a", i) for i in range(3)], []
    run_campaign("some", cases, lambda case: {"where": ["x"] * case.seed})

    def check(case):
        seen.append(case.seed)
        return {"killed": 5}

    def stored(record):
        found = len(record["counts"].get("where", ()))
        return record | {"counts": {"killed": found}} if found else None

    def lacks(records):
        killed = [record["counts"]["killed"] for record in records]
        return "" if min(killed) > 1 else f"too few kills: {killed}"

    summary = run_campaign("some", cases, check, stored=stored, lacks=lacks)
    assert seen == [0] and summary["counts"] == {"killed": 8}
    assert summary["failures"] == {"all cases": "too few kills: [5, 1, 2]"} and "1 failed" in summary["line"]


def stopped_folder(folder, step, *lines):
    """A run's folder in which a training process has stopped, with a checkpoint and metrics up to some steps."""
    (folder / "checkpoints" / "train" / str(step) / "about").mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps({"stage": "train", "step": line}) + "\n" for line in lines))
    return folder


def said_of(step, folder, name="SIGTERM"):
    return f"\nstopped by {name}; the state of step {step} is in {folder}/checkpoints/train; the same command goes on\n"


def test_a_signal_that_saves_nothing_fails_its_case(tmp_path):
    whole = stopped_folder(tmp_path / "whole", 6, 1, 2, 3, 4, 5, 6)
    run = stopped_folder(tmp_path / "run", 3, 1, 2, 3)
    plain = "\nstopped by SIGTERM; the same command goes on\n"
    assert Stop(15, 143, True, said_of(3, run)).saved("train", run, whole) == "checkpoints/train/3"
    assert Stop(15, 143, True, plain).saved("evaluate", run, whole) == ""
    assert Stop(15, 143, True, plain).saved("train", whole, whole) == ""  # after the last step
    assert Stop(15, -15, False, "").saved("train", run, whole) == ""  # before the run began
    for code, said in ((-15, ""), (0, ""), (143, ""), (143, plain), (143, said_of(2, run)), (143, said_of(4, run)),
                       (143, said_of(3, run, "SIGINT")), (143, plain.replace("; the", "; no state was saved in /x; the", 1)),
                       (143, said_of(3, run) + "Traceback (most recent call last):")):
        with pytest.raises(AssertionError):
            Stop(15, code, True, said).saved("train", run, whole)


def test_a_saved_state_explains_itself_and_one_older_one(tmp_path):
    whole = stopped_folder(tmp_path, 6)
    found = ["checkpoints/train/5 is left over", "checkpoints/train/4 is missing"]
    assert beyond(found, "checkpoints/train/5", whole) == []
    assert beyond(found, "", whole) == found
    assert beyond(found, "checkpoints/train/3", whole) == found
    last = ["checkpoints/train/6 is missing", "metrics.jsonl differs"]
    assert beyond([*found, *last], "checkpoints/train/5", whole) == last
    assert beyond([*found, "checkpoints/train/2 is missing"], "checkpoints/train/5", whole) == [
        "checkpoints/train/2 is missing"]


def test_campaigns_in_which_nothing_was_killed_or_stopped_fail():
    def kills(*hows, rounds=7):
        """Each stage killed at these classes in turn, as far as it has them."""
        return [{"kind": stage, "counts": kills_of([f"{hows[number % len(hows)]}: rename before /x"])}
                for number in range(rounds) for stage in MIX if hows[number % len(hows)] in moments_of(stage)]

    missed = kills_of(["time: ended before", "complete before"])
    assert missed["killed"] == 0
    assert "0 kills" in lacks_kills([{"kind": stage, "counts": missed} for stage in MIX])
    assert not lacks_kills(kills(*MOMENTS, rounds=9))
    assert not lacks_kills(kills("time", rounds=1))  # few cases show that kills hit, and no more
    for name in MOMENTS:
        assert f"0 at {name}, less than 5" in lacks_kills(kills(*(other for other in MOMENTS if other != name), rounds=9))
    never = [record | {"counts": kills_of([])} if record["kind"] == "report" else record
             for record in kills(*MOMENTS, rounds=9)]
    assert lacks_kills(never).endswith("none in report")
    without = [record for record in kills(*MOMENTS, rounds=9)
               if record["kind"] != "pretrain" or not record["counts"].get("at checkpoint")]
    assert lacks_kills(without).endswith("no checkpoint's rename in pretrain")


def test_campaigns_in_which_no_signal_came_or_a_loop_saved_no_state_fail(monkeypatch):
    monkeypatch.setenv("ZSJAX_CAMPAIGN_CASES", "28")
    cases = cases_of(SIGNALLED, default=1, what=signals)

    def records(came=1, without=""):
        loops = {loop for loops in LOOPS.values() for loop in loops} - {without}
        states = [f"{folder_of_loop(case.what['when'])}/2" if case.what["when"] in loops else "" for case in cases]
        return [{"kind": case.kind, **case.what, "counts": {"came": came, "state": state}}
                for case, state in zip(cases, states, strict=True)]

    assert not lacks_signals(records())
    assert "0 signals" in lacks_signals(records(came=0))
    for loops in LOOPS.values():
        for loop in loops:
            assert f"no state of {loop}" in lacks_signals(records(without=loop))
    others = [record for record in records() if record["kind"] != "export"]
    assert lacks_signals(others * 2).endswith("no signal came to export")


def test_campaigns_in_which_no_write_failed_or_no_damage_was_noticed_fail():
    def writes(failed, ways=("EIO", "full")):
        return [{"how": way, "counts": {"failed": int(way in failed)}} for way in ways] * 16

    assert not lacks_failures(writes(("EIO", "full")))
    assert lacks_failures(writes(("EIO",))) == "16 failed writes in 32 cases: less than three quarters, none by full"

    def damage(noticed, *kinds):
        return [{"kind": kind, "counts": {"noticed": noticed}} for kind in kinds]

    assert not lacks_damage([*damage(1, "weights", "index"), *damage(0, "metrics")])
    assert lacks_damage([*damage(1, "weights", "index"), *damage(0, "policy")]).endswith("unnoticed in policy")
    assert "less than half" in lacks_damage([*damage(1, "weights"), *damage(0, "metrics", "gates")])


def test_a_signal_in_a_loop_comes_before_its_last_checkpoint():
    def saves(loop, *steps):
        return [line for step in steps for line in ("fsync before /r/metrics.jsonl", "fsync after /r/metrics.jsonl",
                                                    f"mkdir before /r/checkpoints/{loop}/{step}.orbax-checkpoint-tmp")]

    moments = ["open after /r/metrics.jsonl", *saves("pretrain/reading", 1, 2), *saves("pretrain/episodes", 1, 2)]
    assert flushes("pretrain_reading", moments) == [0] and flushes("pretrain_episodes", moments) == [2]
    assert flushes("train", saves("train", 2, 4, 6)) == [0, 1]


def test_the_time_without_a_core_is_not_a_process_own():
    busy = "import time; end = time.monotonic() + 0.6\nwhile time.monotonic() < end: pass"
    with subprocess.Popen([sys.executable, "-c", busy]) as process:
        watch = Stopwatch(process.pid)
        while process.poll() is None:
            watch.look()
            time.sleep(0.02)
    assert 0 < watch.cpu <= watch.wall and 0 <= watch.waited < watch.wall
    # All the time, but for what the process took to begin and end, it ran or waited for a core.
    assert watch.own == pytest.approx(watch.wall - watch.waited) and watch.cpu + watch.waited > 0.5 * watch.wall


def test_a_hundred_cases_draw_each_class_of_moments_in_each_stage(monkeypatch):
    monkeypatch.setenv("ZSJAX_CAMPAIGN_CASES", "100")
    drawn = {(case.kind, kill["how"]) for case in cases_of(MIX, default=1, what=moments) for kill in case.what["kills"][:1]}
    assert drawn == {(stage, name) for stage in MIX for name in moments_of(stage)}


def test_a_hook_notes_where_it_sent_its_signal(tmp_path):
    """The first rename that completes a checkpoint is the moment, whatever was renamed and flushed before."""
    script = """
import os, pathlib, sys
from tests.campaigns.children import CLASSES, Hook
folder = pathlib.Path(sys.argv[1])
Hook(str(folder), str(folder) + ".moments", at=0, of=CLASSES["checkpoint"]).install()
(folder / "checkpoints/train/2.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp").mkdir(parents=True)
os.rename(folder / "checkpoints/train/2.orbax-checkpoint-tmp/state.orbax-checkpoint-tmp",
          folder / "checkpoints/train/2.orbax-checkpoint-tmp/state")
(folder / "checkpoints/train/2.orbax-checkpoint-tmp").rename(folder / "checkpoints/train/2")
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], cwd=ROOT, check=False)
    said = (tmp_path / "run.moments").read_text().splitlines()
    assert done.returncode == -signal.SIGKILL and (tmp_path / "run/checkpoints/train/2.orbax-checkpoint-tmp").is_dir()
    assert said[-1] == f"rename before {tmp_path}/run/checkpoints/train/2"
    assert [class_of(line) for line in said[-3:]] == ["rename", "rename", "checkpoint"]
    assert class_of("rename after /x/models/policy") == class_of("rename before /x/models/best.1-2.replaced") == "model"
    assert class_of("replace after /x/checksums.json") == "rename" and class_of("open before /x/models/a/b") == "other"


def test_an_empty_folder_that_is_left_over_is_a_difference(tmp_path):
    for name in ("found", "wanted"):
        (tmp_path / name / "models").mkdir(parents=True)
    assert differences(tmp_path / "found", tmp_path / "wanted") == []
    (tmp_path / "found" / "models" / "policy.1-2.writing").mkdir()
    assert differences(tmp_path / "found", tmp_path / "wanted") == [
        "models/ is missing", "models/policy.1-2.writing/ is left over"]


def test_checkpoints_that_cannot_be_read_are_not_equal(tmp_path):
    whole = Checkpointer(tmp_path / "wanted/checkpoints/train")
    with whole:
        whole.save(2, {"x": np.arange(3.0)})
    shutil.copytree(tmp_path / "wanted", tmp_path / "found")
    assert differences(tmp_path / "found", tmp_path / "wanted") == []
    for folder, damaged in (("found", ["checkpoints/train/2 differs"]), ("wanted", None)):
        (tmp_path / folder / "checkpoints/train/2/state/manifest.ocdbt").write_bytes(b"")
        if damaged:
            assert differences(tmp_path / "found", tmp_path / "wanted") == damaged
        else:
            with pytest.raises(UnreadableCheckpoint):
                differences(tmp_path / "found", tmp_path / "wanted")


@pytest.mark.parametrize("first, reason", [("", "ended"), ("import time; time.sleep(60)", "gave no answer within 0 s")])
def test_a_lost_server_of_children_is_replaced_and_the_case_runs_again(first, reason, capsys):
    answers = "import sys\nfor line in sys.stdin: print('{\"code\": 7}', flush=True)"

    class Servers(Children):
        scripts = [first, answers]

        def _start_server(self):
            self._server = subprocess.Popen([sys.executable, "-c", self.scripts.pop(0)], stdin=subprocess.PIPE,
                                            stdout=subprocess.PIPE, text=True)
            self.PATIENCE = 0.3 if self.scripts and first else 30.0

    with Servers() as children:
        assert children.surviving(lambda case: children.wait(1, 0.0))(Case("a", 3)) == 7
    assert capsys.readouterr().out == f"a:3: the server of children {reason}; the case runs again\n"


def test_the_code_of_a_child_that_has_ended_is_told_again(tmp_path):
    with Children() as children:
        pid = children.start(["--help"], tmp_path / "log")
        assert children.wait(pid) == children.wait(pid) == 0
    assert Stopwatch(pid).waited == 0


def test_an_undisturbed_run_of_another_commit_is_made_again(tmp_path):
    made = Reference(tmp_path / "reference", None)
    (made.folder / "train").mkdir()
    (made.folder / "commit").write_text("another")
    assert not (Reference(made.folder, None).folder / "train").exists()
    assert (made.files / "replies.jsonl").exists()
