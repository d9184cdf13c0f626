"""Files are written whole: what is there before or after, never a part."""

import json
import os
import subprocess
import sys
import threading

import pytest

from zsjax.errors import InputError, OutputError, read_json
from zsjax.parallel import files


def test_what_is_written(tmp_path):
    path = tmp_path / "new" / "folder" / "x"
    files.write_bytes(path, b"a")
    assert path.read_bytes() == b"a"
    files.write_text(path, ["é", "b\n"])
    assert path.read_bytes() == "éb\n".encode()
    files.write_json(path, {"a": ["é"]}, indent=1)
    assert path.read_text(encoding="utf-8") == '{\n "a": [\n  "é"\n ]\n}\n'
    files.write_jsonl(path, iter([{"a": 1}, [2]]))
    files.write_json(path, {"a": 1})
    assert read_json(path, "remove it") == {"a": 1}
    path.write_text('{"a": 1')
    with pytest.raises(InputError, match="x is not JSON .*; remove it"):
        read_json(path, "remove it")
    files.write_jsonl(path, iter([{"a": 1}, [2]]))
    assert path.read_text() == '{"a": 1}\n[2]\n' and os.listdir(path.parent) == ["x"]


@pytest.fixture
def calls(monkeypatch):
    """What reaches the disk, in order: ("fsync", path), and ("rename" or "replace", new path)."""
    made = []

    def noting(name, path_of):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given: (made.append((name, path_of(*given))), real(*given))[1])

    noting("fsync", lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    noting("rename", lambda old, new: str(new))
    noting("replace", lambda old, new: str(new))
    return made


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs Linux's /proc to name open files")
def test_names_are_on_the_disk_too(tmp_path, calls):
    """A folder is flushed after a name in it has changed: a power loss takes nothing back."""
    path = tmp_path / "new" / "deep" / "x"
    files.write_text(path, "x")
    *made, (kind, written), replaced, flushed = calls
    assert made == [("fsync", str(tmp_path / "new")), ("fsync", str(tmp_path))] and (kind, written[-8:]) == (
        "fsync", ".writing")
    assert (replaced, flushed) == (("replace", str(path)), ("fsync", str(path.parent)))
    for _ in range(2):
        calls.clear()
        with files.new_folder(tmp_path / "x") as unfinished:
            (unfinished / "in").mkdir()
            (unfinished / "in" / "file").write_text("x")
        renamed = calls.index(("rename", str(tmp_path / "x")))
        assert {("fsync", str(unfinished / name)) for name in ("in/file", "in", "")} <= set(calls[:renamed])
        assert calls[renamed + 1:] == [("fsync", str(tmp_path))]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError])
def test_an_interrupted_write_changes_nothing(tmp_path, kind):
    def rows():
        yield {"row": "x" * 100_000}
        raise kind

    path = tmp_path / "x"
    path.write_text("before")
    with pytest.raises(kind):
        files.write_jsonl(path, rows())
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["x"]


def test_folders_are_written_whole(tmp_path):
    path = tmp_path / "x"
    for value in ("old", "new"):
        with files.new_folder(path) as unfinished:
            (unfinished / "file").write_text(value)
        assert (path / "file").read_text() == value and os.listdir(tmp_path) == ["x"]
    with pytest.raises(KeyboardInterrupt), files.new_folder(path) as unfinished:
        (unfinished / "file").write_text("half")
        raise KeyboardInterrupt
    assert (path / "file").read_text() == "new" and os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_replacement_that_fails_twice_keeps_the_old_folder(tmp_path, monkeypatch, failure):
    """The new folder's rename fails, and so does the old one's way back. The next writer finds the old one."""
    path, rename, calls = tmp_path / "best", os.rename, []
    other = tmp_path / "best.2.12-34.replaced"  # of another folder, best.2
    other.mkdir()
    with files.new_folder(path) as unfinished:
        (unfinished / "file").write_text("old")

    def failing(*names, **options):
        calls.append(names)
        if len(calls) > 1:
            raise failure
        rename(*names, **options)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises((OutputError, KeyboardInterrupt)), files.new_folder(path) as unfinished:
        (unfinished / "file").write_text("new")
    monkeypatch.undo()
    (left,) = tmp_path.glob("best.*-*.replaced/file")
    assert left.read_text() == "old" and len(calls) == 3
    with pytest.raises(ZeroDivisionError), files.new_folder(path):
        raise ZeroDivisionError
    assert (path / "file").read_text() == "old" and sorted(os.listdir(tmp_path)) == ["best", other.name]


def test_a_replacement_under_way_is_left_alone(tmp_path, monkeypatch):
    """A second writer that comes between the two renames takes nothing away."""
    path, rename, values = tmp_path / "best", os.rename, []

    def interrupted(old, new):
        rename(old, new)
        if os.fspath(new).endswith(".replaced") and not values:
            values.append("second")
            writer = threading.Thread(target=write, args=["second"])
            writer.start()
            writer.join()

    def write(value):
        with files.new_folder(path) as unfinished:
            (unfinished / "file").write_text(value)
            if value == "second":
                values.append(path.exists())

    write("old")
    monkeypatch.setattr(os, "rename", interrupted)
    with pytest.raises(OutputError):  # its place is taken
        write("first")
    assert values == ["second", False] and (path / "file").read_text() == "second" and os.listdir(tmp_path) == ["best"]


KILLED = """
import os, sys, time
from zsjax.parallel import files
with files.new_folder(sys.argv[1]) as unfinished:
    (unfinished / "file").write_text("half")
    print("begun", flush=True)
    time.sleep(100)
"""


def test_an_unfinished_folder_is_removed_only_when_its_writer_has_ended(tmp_path):
    path = tmp_path / "index [1]"
    writer = subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        assert writer.stdout.readline() == "begun\n"
        (unfinished,) = tmp_path.glob("*.writing")
        for value in ("beside a living writer", "after its end"):
            with files.new_folder(path) as mine:
                (mine / "file").write_text(value)
                assert unfinished.exists() == (writer.poll() is None)
            assert (path / "file").read_text() == value
            writer.kill()
            writer.wait()
    finally:
        writer.kill()
        writer.communicate()
    assert os.listdir(tmp_path) == ["index [1]"]


WRITES = """
import sys
from zsjax.parallel import files

def pieces():
    yield b"half"
    print("begun", flush=True)
    sys.stdin.read()

files.write_bytes(sys.argv[1], pieces())
"""


def test_an_unfinished_file_is_removed_only_when_its_writer_has_ended(tmp_path):
    path = tmp_path / "report [1].html"
    writer = subprocess.Popen([sys.executable, "-c", WRITES, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True)
    try:
        assert writer.stdout.readline() == "begun\n"
        (unfinished,) = tmp_path.glob("*.writing")
        (tmp_path / "other.1-2.writing").write_text("of another name")
        files.remove_abandoned(path)
        assert unfinished.exists()
        writer.kill()
        writer.wait()
        files.remove_abandoned(path)
    finally:
        writer.kill()
        writer.communicate()
    assert os.listdir(tmp_path) == ["other.1-2.writing"]


def test_a_write_that_fails_names_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (lambda path: files.write_text(path, "x"), lambda path: files.new_folder(path).__enter__()):
        with pytest.raises(OutputError, match=r"cannot write .*file/x \(.*\); make room") as error:
            write(tmp_path / "file" / "x")
        assert isinstance(error.value, OSError)


def test_what_killed_processes_left(tmp_path):
    for name in ("run/models/policy", "run/models/best.12-34.replaced", "run/models/policy.12-34.replaced",
                 "run/models/policy.12-34.writing/deep", "run/models/.policy.writing-12",
                 "run/checkpoints/train/4.orbax-checkpoint-tmp-12", "run/checkpoints/train/2"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "run/metrics.jsonl.12-34.writing").write_text("half")
    (tmp_path / "run/metrics.jsonl").write_text("{}")
    files.remove_unfinished(tmp_path / "run")
    left = sorted(str(path.relative_to(tmp_path / "run")) for path in (tmp_path / "run").rglob("*") if path.is_file())
    assert left == ["checkpoints/train/2/file", "metrics.jsonl", "models/best/file", "models/policy/file"]
    assert (tmp_path / "run/models/best/file").read_text() == "run/models/best.12-34.replaced"  # the only copy
    assert (tmp_path / "run/models/policy/file").read_text() == "run/models/policy"


def test_what_others_write_and_other_runs_below_are_left_alone(tmp_path):
    for name in (".lock", "other/.lock", "other/models.12-34.writing", "chapter.writing", "held.12-34.writing"):
        files.write_text(tmp_path / "run" / name, "")
    with open(tmp_path / "run/held.12-34.writing") as held:
        assert files.lock(held)
        files.remove_unfinished(tmp_path / "run", but_below=".lock")
    left = {path.name for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert left == {".lock", "models.12-34.writing", "chapter.writing", "held.12-34.writing"}
    files.remove_unfinished(tmp_path / "run", but_below=".lock")
    assert not (tmp_path / "run/held.12-34.writing").exists()


def test_what_killed_processes_left_goes_where_nothing_can_be_locked(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    for name in ("models/best.12-34.replaced/file", "metrics.jsonl.12-34.writing"):
        files.write_text(tmp_path / name, "")
    files.remove_unfinished(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()] == ["models/best/file"]


def test_a_lock_is_one_processs(tmp_path):
    with open(tmp_path / "lock", "a") as first, open(tmp_path / "lock", "a") as second:
        assert files.lock(first) and not files.lock(second, wait=False)
        first.close()
        assert files.lock(second, wait=False)


def test_a_required_lock_on_a_file_system_without_locks_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    with open(tmp_path / "lock", "a") as file:
        assert files.lock(file)
        with pytest.raises(OutputError, match="lock cannot be locked .* use a folder on a file system with locks"):
            files.lock(file, required=True)


def test_a_reader_never_sees_a_part(tmp_path):
    path, done = tmp_path / "x", threading.Event()
    values = [[number] * 5000 for number in range(4)]
    files.write_json(path, values[0])

    def write(value):
        while not done.is_set():
            files.write_json(path, value)

    writers = [threading.Thread(target=write, args=[value]) for value in values]
    for writer in writers:
        writer.start()
    try:
        assert all(json.loads(path.read_text()) in values for _ in range(100))
    finally:
        done.set()
        for writer in writers:
            writer.join()
