"""A run that is killed, stopped or started twice at any moment of any stage ends as an undisturbed one, bit for bit."""

import os
import re
import shutil
import signal
import time

import pytest

from tests.campaigns.campaign import Case, cases_of, check_all, folder_of
from tests.campaigns.children import CLASSES, FLUSHED, KILL, Children, Hook, class_of
from tests.campaigns.ends import (
    SIGNALLED,
    Stop,
    beyond,
    flushes,
    kills_of,
    lacks_kills,
    lacks_signals,
    moments,
    signals,
)
from tests.campaigns.runs import COMMANDS, MIX, Reference, differences, is_held
from tests.campaigns.stopwatch import Stopwatch

GONE_WITHIN = 30.0  # seconds after a signal, which a cluster waits before it kills
UNFINISHED = re.compile(r"\.(writing|replaced)$|\.orbax-checkpoint-tmp")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of(tmp_path_factory, "kills")


@pytest.fixture(scope="module")
def reference(folder):
    with Children() as children:
        yield Reference(folder / "reference", children)


def kill(reference, stage, workdir, log, how, at) -> str:
    """Runs a stage until it is killed; how it ended, of the record of this process."""
    if complete(stage, workdir):
        return "complete before"
    about, command, record = reference.about(stage), reference.command(stage, workdir), log.with_suffix(".moments")
    before = record.read_text().splitlines() if record.exists() else []
    if how == "time":
        pid = reference.children.start(command, log, hook=Hook(str(workdir), str(record)))
        if (code := reference.children.wait(pid, at * about["seconds"])) is None:
            os.kill(pid, signal.SIGKILL)
            code = reference.children.wait(pid)
    else:  # a resumed process has about those moments left that an undisturbed one has after the last kill
        left = [sum(class_of(moment) == how for moment in moments) for moments in (about["moments"], before)]
        hook = Hook(str(workdir), str(record), at=int(at * max(left[0] - left[1], 1)), of=CLASSES[how],
                    do=KILL)
        code = reference.children.run(command, log, hook=hook)
    assert code in (0, -signal.SIGKILL), f"ended with {code}: {log.read_text()[-1500:]}"
    if code == 0:
        return f"{how}: ended before"
    passed = record.read_text().splitlines()[len(before):] if record.exists() else []
    last = passed[-1].replace(str(workdir), "") if passed else "nothing"
    if how == "time":
        return f"time: after {at * about['seconds']:.2f} s, the last was {last}"
    assert class_of(passed[-1]) == how, f"killed at {last}, which is not of the class {how}"
    return f"{how}: {last}"


@pytest.mark.slow
def test_kills(folder, reference):
    @reference.children.surviving
    def check(case):
        stage, workdir, log = case.kind, folder / "killed", folder / "killed.log"
        for path in (log, log.with_suffix(".moments")):
            path.unlink(missing_ok=True)
        reference.start_folder(stage, workdir)
        where = [kill(reference, stage, workdir, log, **moment) for moment in case.what["kills"]]
        again(reference, stage, workdir, log)
        found = differences(workdir, reference.after(stage))
        if found:
            shutil.copytree(workdir, folder / f"failed-{stage}-{case.seed}", dirs_exist_ok=True)
            raise AssertionError(f"{'; '.join(found)} after {where}")
        return kills_of(where)

    check_all("kills", cases_of(MIX, default=len(MIX), what=moments), check, lacks=lacks_kills)


def complete(stage, workdir) -> bool:
    """Whether a command has its result, which it never replaces: the same command would be refused."""
    return stage in COMMANDS and (workdir / COMMANDS[stage]).exists()


def again(reference, stage, workdir, log):
    """The same command, to its end."""
    if complete(stage, workdir):
        return
    code = reference.children.run(reference.command(stage, workdir), log)
    assert code == 0, f"does not go on: {log.read_text()[-1500:]}"


def send(reference, stage, workdir, log, what) -> tuple[int, bool]:
    """Runs a stage until its signal is sent; (pid, whether it still ran)."""
    about, record, children = reference.about(stage), log.with_suffix(".moments"), reference.children
    if what["when"] == "time":
        pid = children.start(reference.command(stage, workdir), log)
        code = None
        while about["locked"] and not is_held(workdir) and (code := children.wait(pid, 0.02)) is None:
            pass
        if code is None and children.wait(pid, what["at"] * (about["seconds"] - about["locked"])) is None:
            os.kill(pid, getattr(signal, what["signal"]))
            return pid, True
        return pid, False
    of = "" if what["when"] == "write" else FLUSHED
    numbers = flushes(what["when"], about["moments"]) if of else range(len(about["moments"]))
    hook = Hook(str(workdir), str(record), at=numbers[int(what["at"] * len(numbers))], of=of, do=what["signal"])
    pid = children.start(reference.command(stage, workdir), log, hook=hook)

    def sent():
        return record.exists() and f"{what['signal']} is sent" in record.read_text()

    while not sent():  # a process that handles no signal may have ended by it since
        assert children.wait(pid, 0.02) is None or sent(), f"ended before its signal: {log.read_text()[-1500:]}"
    return pid, True


def end(children, pid, log, number) -> tuple[int, dict]:
    """Waits for the end of a process that got a signal; (its exit code, how long it took)."""
    watch = Stopwatch(pid)
    while (code := children.wait(pid, 0.05)) is None:
        watch.look()
        if watch.own > GONE_WITHIN or watch.wall > 10 * GONE_WITHIN:
            children.show_stacks(pid)
            time.sleep(1)
            children.kill(pid)
            raise AssertionError(f"is not gone {watch.wall:.0f} s after {number.name}: it waited {watch.waited:.0f} s for a "
                                 f"core and ran {watch.cpu:.0f} s on all cores: {log.read_text()[-4000:]}")
    return code, {"gone_after": round(watch.wall, 2), "waited_seconds": round(watch.waited, 2),
                  "cpu_seconds": round(watch.cpu, 2)}


@pytest.mark.slow
def test_signals(folder, reference):
    @reference.children.surviving
    def check(case):
        stage, workdir, log = case.kind, folder / "stopped", folder / "stopped.log"
        for path in (log, log.with_suffix(".moments")):
            path.unlink(missing_ok=True)
        reference.start_folder(stage, workdir)
        saved, number = "", getattr(signal, case.what["signal"])
        pid, runs = send(reference, stage, workdir, log, case.what)
        counts = {"came": 0, "ended": "before"}
        if runs:
            held = is_held(workdir)
            code, seconds = end(reference.children, pid, log, number)
            saved = Stop(number, code, held, log.read_text()).saved(stage, workdir, reference.after(stage))
            if code == 128 + number:
                left = [str(path.relative_to(workdir)) for path in workdir.rglob("*") if UNFINISHED.search(path.name)]
                assert not left, f"left unfinished: {left[:5]}"
            counts = {"came": int(code != 0), "saved": int(bool(saved)), "ended": f"with {code}", "state": saved, **seconds}
        again(reference, stage, workdir, log)
        found = beyond(differences(workdir, reference.after(stage)), saved, reference.after(stage))
        assert not found, "; ".join(found)
        return counts

    check_all("signals", cases_of(SIGNALLED, default=len(SIGNALLED), what=signals), check, lacks=lacks_signals)


@pytest.mark.slow
def test_two_processes(folder, reference):
    @reference.children.surviving
    def check(case):
        stage, workdir, log = case.kind, folder / "shared", folder / "shared.log"
        log.unlink(missing_ok=True)
        reference.start_folder(stage, workdir)
        command = reference.command(stage, workdir)
        first = reference.children.start(command, log)
        while not is_held(workdir):  # or the second process might be the first to get the lock
            assert reference.children.wait(first, 0.02) is None, f"the first process ended: {log.read_text()[-1500:]}"
        second, attempts = None, 0
        while second is None and attempts < 20:
            attempts += 1
            second_log = folder / f"second-{attempts}.log"
            second_log.unlink(missing_ok=True)
            if reference.children.wait(first, 0.05) is not None:
                raise AssertionError("the first process ended before the second was refused")
            code = reference.children.run(command, second_log)
            second = second_log.read_text() if code == 2 else None
        assert second is not None and str(first) in second and second.count("error:") == 1, second
        assert reference.children.wait(first) == 0, log.read_text()[-1500:]
        found = differences(workdir, reference.after(stage))
        assert not found, "; ".join(found)
        return {"said": second.strip().splitlines()[-1]}

    check_all("two_processes", [Case("pretrain", 0), Case("train", 0)], check)
