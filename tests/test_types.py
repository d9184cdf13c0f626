"""The package says that it is typed (py.typed): mypy.ini's check finds nothing."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def check(tmp_path):
    pytest.importorskip("mypy", reason="types are not checked: pip install -e '.[release]'")

    def check(*arguments):
        command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "mypy.ini", "--cache-dir", tmp_path, *arguments]
        done = subprocess.run([str(word) for word in command], cwd=ROOT, env=os.environ, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    return check


def test_the_package_has_no_type_errors(check):
    code, said = check()
    assert code == 0, said[-3000:]
    assert (ROOT / "zsjax" / "py.typed").exists()


def test_the_check_sees_what_is_wrong(check, tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from zsjax.search import Engine\n\n\ndef lost() -> int:\n    print(missing)\n\n\nEngine()\n")
    code, said = check(wrong)
    assert code == 1 and all(f"[{kind}]" in said for kind in ("name-defined", "return", "abstract")), said
