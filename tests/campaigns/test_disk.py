"""A full disk, a read-only folder, a damaged file: one line names it, nothing computes with it, and the run goes on."""

import contextlib
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from tests.campaigns.campaign import cases_of, check_all, folder_of
from tests.campaigns.children import Children, Hook
from tests.campaigns.ends import lacks_damage, lacks_failures
from tests.campaigns.runs import COMMANDS, MIX, STAGES, Reference, differences
from zsjax.errors import InputError
from zsjax.run import checksums
from zsjax.search import BM25

# What a run wrote: kind -> (files, the stage whose folder has them, the stage that is run then, what is removed first).
KINDS = {
    "config": ("config.json", "warm_start", "collect", ()),
    "episodes": ("episodes.jsonl", "warm_start", "warm_start", ("models/warm_start", "checkpoints/warm_start")),
    "weights": ("models/warm_start/model.safetensors", "warm_start", "collect", ()),
    "model_config": ("models/simulator/*.json", "tune_simulator", "train", ()),
    "searches": ("searches.jsonl", "collect", "tune_simulator", ()),
    "gates": ("gates.json", "collect", "tune_simulator", ()),
    "index": ("indexes/*/*", "index", "index", ()),  # of both kinds
    "run_index": ("indexes/*/*", "train", "evaluate", ()),
    "base": ("models/base/*", "pretrain", "pretrain", ()),
    "pretrain_checkpoint": ("checkpoints/pretrain/episodes/2/**/*", "pretrain", "pretrain", ("models/base",)),
    "supervised_checkpoint": ("checkpoints/tune_simulator/4/**/*", "tune_simulator", "tune_simulator",
                              ("models/simulator",)),
    "checkpoint": ("checkpoints/train/6/**/*", "train", "train", ("models/policy",)),
    "checkpoint_arrays": ("checkpoints/train/6/state/**/d/*", "train", "train", ("models/policy",)),
    "checkpoint_about": ("checkpoints/train/6/about/metadata", "train", "train", ("models/policy",)),
    "older_checkpoint": ("checkpoints/train/4/**/*", "train", "train", ("models/policy",)),
    "policy": ("models/policy/*", "train", "evaluate", ()),
    "metrics": ("metrics.jsonl", "evaluate", "report", ()),
    "metrics_resumed": ("metrics.jsonl", "train", "train", ("models/policy",)),
    "trajectories": ("trajectories/*", "evaluate", "report", ()),
    "evaluation": ("evaluation/*-????????.json*", "evaluate", "evaluate", ()),
    "evaluation_table": ("evaluation.json", "evaluate", "evaluate", ()),
    "checksums": ("checksums.json", "train", "evaluate", ()),
}
# For people: damage in them may show in the report, and nothing else. docs/reliability.md names them.
LOGS = ("metrics", "metrics_resumed", "trajectories", "gates")
# The stage does not read all files of these kinds. Where it left a damaged one, what reads the file must name it.
READERS = {"run_index": lambda path, workdir: BM25.load(path.parent),
           "base": lambda path, workdir: checksums.check(workdir, inside="models/base"),
           "checksums": lambda path, workdir: [checksums.check(workdir, inside=f"models/{model.name}")
                                               for model in (workdir / "models").iterdir()]}
# What an error may name besides the damaged file or its folder.
NAMES = {"config": ["began with"], "checksums": ["remove checksums.json"]}
# The newest of two checkpoints is damaged: the run goes on from the older one, of this step, and says so where the damaged
# file is read.
# orbax leaves small files beside the arrays that nothing reads: those of less than LEAST bytes.
OLDER_STATE = {"checkpoint": 4, "checkpoint_arrays": 4, "checkpoint_about": 4, "supervised_checkpoint": 2,
               "pretrain_checkpoint": 1}
LEAST = {"checkpoint_arrays": 100_000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of(tmp_path_factory, "kills")  # the same undisturbed runs


@pytest.fixture(scope="module")
def reference(folder):
    with Children() as children:
        yield Reference(folder / "reference", children)


def check_error(said: str, code: int, *names: str) -> str:
    """The one line with which a command ended; it names one of `names`."""
    # What Python says when it drops orbax's unfinished coroutines is not the command's.
    said = re.sub(r"(?m)^Exception ignored in: <coroutine.*\n(Traceback.*\n)?(^ .*\n|^\S*Error: .*\n?|\n)*", "", said)
    errors = re.findall(r"(?m)^error: .*(?:\n  .*)*", said)  # the config's problems have a line each
    assert code in (1, 2) and len(errors) == 1 and "Traceback" not in said, f"ended with {code}: {said[-2500:]}"
    assert any(name in errors[0] for name in names), f"does not name {names}: {errors[0]}"
    return errors[0]


def fresh(path: pathlib.Path) -> pathlib.Path:
    path.unlink(missing_ok=True)
    return path


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, size: int):
    """A file system of `size` bytes at `folder`; yields a function that changes its options. Needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True, capture_output=True)
    try:
        yield lambda options: subprocess.run(["mount", "-o", f"remount,{options}", folder], check=True)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def can_mount(folder: pathlib.Path) -> bool:
    try:
        with small_disk(folder, 1 << 20):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def failing_write(case) -> dict:
    rng = case.draw
    return {"how": rng.choice(("ENOSPC", "ENOSPC", "EROFS", "EIO", "full", "full", "read-only")), "at": rng.random()}


@pytest.mark.slow
def test_disk(folder, reference):
    """Writes fail from a moment on, by a hook or on a small file system; with room, the same command goes on."""
    @reference.children.surviving
    def check(case):
        stage, how, at = case.kind, case.what["how"], case.what["at"]
        log, about, mounted = fresh(folder / "disk.log"), reference.about(stage), folder / "small"
        if how.isupper():
            workdir = folder / "disk"
            reference.start_folder(stage, workdir)
            number = int(at * len(about["moments"]))
            where = about["moments"][number].replace(str(reference.folder / stage / "run"), "")
            hook = Hook(str(workdir), at=number, do=how)
            code = reference.children.run(reference.command(stage, workdir), log, hook=hook)
            return finish(case, workdir, log, code, where)
        before = STAGES[stage] and reference.after(STAGES[stage])
        sizes = [sum(-(-path.stat().st_size // 4096) * 4096 + 4096 for path in place.rglob("*")) if place else 0
                 for place in (before, reference.after(stage))]
        room = sizes[0] + int(at * max(sizes[1] - sizes[0], 1)) + 16384
        with small_disk(mounted, 1 << 28) as remount:
            workdir = mounted / "run"
            reference.start_folder(stage, workdir)
            remount("ro" if how == "read-only" else f"size={max(room, 65536)}")
            code = reference.children.run(reference.command(stage, workdir), log)
            remount("rw" if how == "read-only" else f"size={1 << 28}")
            return finish(case, workdir, log, code, f"{room} bytes")

    def finish(case, workdir, log, code, where):
        said = check_error(log.read_text(), code, str(workdir)) if code else "nothing: it needed no more"
        failed = int(code != 0)
        stage = case.kind
        if stage not in COMMANDS or not (workdir / COMMANDS[stage]).exists():
            again = fresh(folder / "again.log")
            code = reference.children.run(reference.command(stage, workdir), again)
            assert code == 0, f"does not go on after {said} ({where}): {again.read_text()[-2000:]}"
        found = differences(workdir, reference.after(stage))
        assert not found, f"{'; '.join(found)} after {said} ({where})"
        return {"failed": failed, "where": where, "said": said.replace(str(workdir), "RUN")}

    cases = cases_of(MIX, default=len(MIX), what=failing_write)
    left_out = [case for case in cases if not case.what["how"].isupper()] if not can_mount(folder / "small") else []
    if left_out:
        print(f"campaign disk: {len(left_out)} cases are left out; mount(8) of a small file system needs root")
    check_all("disk", [case for case in cases if case not in left_out], check, lacks=lacks_failures, left_out=len(left_out))


def how_damaged(case) -> dict:
    rng = case.draw
    return {"how": rng.choice(("flip", "flip", "cut", "empty")), "at": rng.random(), "file": rng.random()}


def damage(path: pathlib.Path, how: str, at: float):
    """Changes a file as a disk does: its time stays."""
    data, about = bytearray(path.read_bytes()), path.stat()
    if how == "flip" and data:
        bit = int(at * 8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data if how == "flip" else data[:int(at * len(data))] if how == "cut" else b"")
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.slow
def test_damage(folder, reference):
    """A file that the run wrote is cut, emptied or has a flipped bit: it is named, or the result is the undisturbed one."""
    @reference.children.surviving
    def check(case):
        kind, how = case.kind, case.what["how"]
        pattern, source, stage, removed = KINDS[kind]
        workdir, log = folder / "damaged", fresh(folder / "damaged.log")
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(reference.after(source), workdir)
        for name in removed:
            shutil.rmtree(workdir / name)
        files = sorted(path for path in workdir.glob(pattern)
                       if path.is_file() and path.stat().st_size >= LEAST.get(kind, 0))
        path = files[int(case.what["file"] * len(files))]
        name = path.relative_to(workdir).as_posix()
        damage(path, how, case.what["at"])
        code = reference.children.run(reference.command(stage, workdir), log)
        said = log.read_text()
        places = [place for place in (path, *path.parents) if place.is_relative_to(workdir) and place != workdir]
        fell_back = f"goes on from step {OLDER_STATE.get(kind)}" in said
        if kind in OLDER_STATE:
            assert code == 0 and (fell_back or "**/*" in pattern), f"{name}, {how}: {code}: {said[-1500:]}"
        if kind == "older_checkpoint":
            assert code == 0 and "resumed at step 6" in said, f"{name}, {how}: {code}: {said[-1500:]}"
        if code:
            line = check_error(said, code, *map(str, places), *NAMES.get(kind, ()))
            return {"noticed": 1, "file": name, "said": line.replace(str(workdir), "RUN")[:300]}
        named = any(str(place) in said for place in places)
        found = [line for line in differences(workdir, reference.after(stage))
                 if "damaged-" not in line and not (kind == "older_checkpoint" and line.startswith("checkpoints/train/4 "))
                 and not (kind in LOGS and line in (f"{name} differs", "report.html differs"))]
        words = "it was named" if named else "nothing was said"
        if kind in READERS and found == [f"{name} differs"]:
            with pytest.raises(InputError) as refused:
                READERS[kind](path, workdir)
            assert any(name in str(refused.value) for name in [*map(str, places), *NAMES.get(kind, ())]), refused.value
            return {"noticed": 1, "file": name, "said": "named by what reads it"}
        assert not found, f"{name}, {how}: {'; '.join(found)}, and {words}: {said[-800:]}"
        return {"noticed": int(named), "fell_back": int(fell_back), "file": name,
                "said": "named in the log, and the result is whole" if named else "the result is whole"}

    check_all("damage", cases_of(list(KINDS), default=len(KINDS), what=how_damaged), check, lacks=lacks_damage)
