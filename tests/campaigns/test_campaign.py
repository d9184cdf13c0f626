"""The plumbing of the campaigns: seeded cases, what is skipped, and what a summary says."""

import json
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest

from tests.campaigns import campaign, table
from tests.campaigns.campaign import Case, cases_of, cpu_seconds, run_campaign
from tests.campaigns.counted import file_sizes, held, late_compilations, memory_and_files, real_work
from tests.campaigns.ends import Stop, beyond, kills_of, lacks_kills, lacks_signals
from tests.campaigns.runs import MIX, Reference, differences


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


def test_the_code_is_that_of_the_package(monkeypatch, tmp_path):
    (tmp_path / "zsjax" / "__pycache__").mkdir(parents=True)
    monkeypatch.setattr(campaign, "HERE", tmp_path / "tests" / "campaigns")
    found = []
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.json", "1"), ("__pycache__/a.pyc", "1")):
        (tmp_path / "zsjax" / name).write_text(text)
        found.append(campaign.code.__wrapped__())
    assert len(set(found)) == 3 and found[2] == found[3]


def test_the_cpu_time_of_descendants_counts(tmp_path):
    done = tmp_path / "done"
    child = ("import subprocess, sys, time\nwork = 't = time.process_time()\\nwhile time.process_time() < t + 0.3: pass'\n"
             f"subprocess.run([sys.executable, '-c', 'import time\\n' + work])\nexec(work)\nopen({str(done)!r}, 'w')\n"
             "sys.stdin.read()")
    before = cpu_seconds()
    with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE) as process:
        while not done.exists() and process.poll() is None:
            time.sleep(0.02)
        alive = cpu_seconds()
        process.stdin.close()
    assert 0.6 <= alive - before < 30 and cpu_seconds() >= alive


def test_the_table_has_the_totals_and_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSJAX_CAMPAIGN_FOLDER", str(tmp_path))
    (tmp_path / "other.json").write_text("[]")

    def check(case):
        assert case.seed, "two\nlines"

    summaries = [table.short(run_campaign(name, [Case("a", i) for i in range(2)], check)) for name in ("load", "kills")]
    summaries = [of | {"seconds": 5400.0, "cpu_seconds": 1800.0, "codes": {name: 2}}
                 for of, name in zip(summaries, ("x", "y"), strict=True)]
    assert summaries[0]["failures"] == {"a:0": "AssertionError: two"}
    made = table.table(summaries)
    assert "| `load` | 2 | 1 | 1.50 | 0.50 |" in made and "4 cases, 2 failed; 3.00 hours, 1.00 of CPU" in made
    assert "within the 4 hours. Not all are of one code" in made and "Not run: `damage`, `disk`," in made
    assert "beyond the 4 hours. All are of one code" in table.table([summaries[0]] * 3)
    page = f"a\n{table.BEGIN}old\n{table.END}\nz\n"
    assert table.with_table(page, made) == f"a\n{table.BEGIN}\n{made}\n{table.END}\nz\n"
    with pytest.raises(ValueError, match="lacks the lines"):
        table.with_table("a", made)


def test_the_table_in_the_results_is_that_of_the_summaries_in_the_repository():
    page = (table.HERE / "RESULTS.md").read_text()
    assert table.with_table(page, table.table(table.summaries(table.HERE / "results"))) == page


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
    def kills(*where):
        return [{"kind": stage, "counts": kills_of(where)} for stage in MIX] * 7

    assert "0 kills" in lacks_kills(kills("after 1.00 s: ended before", "complete before"))
    assert not lacks_kills(kills("rename before /x"))
    assert not lacks_kills(kills("rename before /x")[:10])
    never = [record | {"counts": kills_of([])} if record["kind"] == "report" else record for record in kills("rename /x")]
    assert lacks_kills(never).endswith("none in report")

    def signals(came, saved):
        return [{"signal": name, "counts": {"came": came, "saved": saved}} for name in ("SIGTERM", "SIGINT")] * 10

    assert not lacks_signals(signals(1, 1))
    assert lacks_signals(signals(0, 0)) and lacks_signals(signals(1, 0))


def test_an_empty_folder_that_is_left_over_is_a_difference(tmp_path):
    for name in ("found", "wanted"):
        (tmp_path / name / "models").mkdir(parents=True)
    assert differences(tmp_path / "found", tmp_path / "wanted") == []
    (tmp_path / "found" / "models" / "policy.1-2.writing").mkdir()
    assert differences(tmp_path / "found", tmp_path / "wanted") == [
        "models/ is missing", "models/policy.1-2.writing/ is left over"]


def test_an_undisturbed_run_of_another_commit_is_made_again(tmp_path):
    made = Reference(tmp_path / "reference", None)
    (made.folder / "train").mkdir()
    (made.folder / "commit").write_text("another")
    assert not (Reference(made.folder, None).folder / "train").exists()
    assert (made.files / "replies.jsonl").exists()


def test_counting_arrays_keeps_none():
    def after_a_step(step):
        arrays = [jnp.full(3, step + i) for i in range(5)]  # a step's own arrays, alive while they are counted
        found = held()["arrays"]
        del arrays
        return found

    assert len({after_a_step(step) for step in range(4)}) == 1


def test_the_sizes_of_a_runs_files(tmp_path):
    (tmp_path / "models" / "policy").mkdir(parents=True)
    for name, size in (("metrics.jsonl", 5), ("models/policy/a", 2), ("models/b", 1)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert file_sizes(tmp_path) == {"metrics.jsonl": 5, "models": 3}


def test_programs_that_come_late_are_named():
    lines = [{"step": step, "compile/step": int(step == 1), "compile/cached": int(step in (11, 20, 21, 30))}
             for step in range(1, 41)]
    assert late_compilations(lines, [0], 10) == [20, 21, 30]
    assert late_compilations(lines, [0, 19], 10) == [30]  # a process that went on at step 19


def test_a_run_that_stopped_searching_or_learning_is_no_long_run():
    lines = [{"searches": 1.0, "grad_norm": 0.5, "rerank/loss": 0.1}] * 40
    assert real_work(lines)["steps_with_grad_norm"] == 10
    for name in lines[0]:
        with pytest.raises(AssertionError, match=f'"{name}": 4'):
            real_work([*lines[:34], *[line | {name: 0.0} for line in lines[34:]]])


def test_memory_and_files_that_grow_are_named():
    lines = [{"time/step": 1.0}] * 100

    def rows(seconds=100, process=1, accelerator=False, **growth):
        of = {"resident": 1000, "arrays": 50, "array_bytes": 600, **({"device": 90} if accelerator else {})}
        files = {"checkpoints": 1 << 20, "metrics.jsonl": 100}
        return [{"process": process, **{name: size * (1 + growth.get(name, 0) * i / seconds) for name, size in of.items()},
                 "files": {name: size * (1 + growth.get(name, 0) * i / seconds) for name, size in files.items()}}
                for i in range(seconds)]

    found = memory_and_files(rows(**{"metrics.jsonl": 9}), lines)
    assert found["arrays_second"] == found["arrays_last"] == 50 and found["bytes_checkpoints"] == 1 << 20
    memory_and_files(rows(10, process=2, arrays=99) + rows(), lines)  # a short part of the run before it was cut off
    for grown in ("resident", "arrays", "array_bytes", "device"):
        with pytest.raises(AssertionError, match=f"^{grown} grew"):
            memory_and_files(rows(accelerator=True, **{grown: 1}), lines)
    with pytest.raises(AssertionError, match='^files grew: {"checkpoints"'):
        memory_and_files(rows(checkpoints=1), lines)
    with pytest.raises(AssertionError, match="40 counts in 100 s"):
        memory_and_files(rows(40), lines)
    with pytest.raises(AssertionError, match="no process lasted"):
        memory_and_files(rows() + rows(process=2), lines)
