"""Files are written whole: what is there before or after, never a part."""

import json
import os
import threading

import pytest

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
    assert path.read_text() == '{"a": 1}\n[2]\n' and os.listdir(path.parent) == ["x"]


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
