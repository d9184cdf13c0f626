"""Our TFDS data sets: written and read back by TFDS's own reader, without TensorFlow."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from zsjax.data.tfds_questions import prepare


def test_round_trip_without_tensorflow(tmp_path):
    rows = [{"id": f"m{i}", "question": f"Wer schrieb {i}?", "golden_answers": ["Würm", f"b {i}"]} for i in range(5)]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code = textwrap.dedent("""
        import json, sys
        from zsjax.data import load_questions
        from zsjax.data.tfds_questions import prepare
        prepare("my_bench", {"test": "test.jsonl", "validation": "test.jsonl"}, "tfds")
        found = [load_questions("tfds:my_bench", split=split) for split in ("test", None)]
        print("FOUND", json.dumps([[(q.id, q.question, q.golden_answers) for q in part] for part in found]))
        assert not any(name.split(".")[0] == "tensorflow" for name in sys.modules)
    """)
    env = {**os.environ, "TFDS_DATA_DIR": str(tmp_path / "tfds"), "JAX_PLATFORMS": "cpu",
           "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))
    for part in json.loads(line.removeprefix("FOUND ")):  # TFDS shuffles: all are there, in an order of its own
        assert sorted(part) == sorted([[row["id"], row["question"], row["golden_answers"]] for row in rows])


def test_bad_names_and_folders(tmp_path):
    with pytest.raises(ValueError, match="is not a name of a TFDS"):
        prepare("My-Bench", {}, tmp_path)
    (tmp_path / "bench" / "1.0.0").mkdir(parents=True)
    with pytest.raises(ValueError, match="exists already"):
        prepare("bench", {}, tmp_path)
