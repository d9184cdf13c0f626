"""One process at a time works in a run's folder, and what killed ones left there is removed."""

import json
import os
import subprocess
import sys

import pytest

from tests.environment import one_device
from zsjax.errors import OutputError
from zsjax.run.occupied import Occupied, occupy

HOLD = """
import pathlib, sys
from zsjax.run.occupied import occupy
with occupy(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_second_process_is_told_who_holds_the_folder(tmp_path):
    run = tmp_path / "run"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              text=True, env=one_device())
    assert holder.stdout.readline() == "held\n"
    (run / "config.json.12-34.writing").write_text("the holder's")
    with pytest.raises(Occupied, match=f"run is in use by process {holder.pid} on .*; wait for its") as error, occupy(run):
        pass
    assert "\n" not in str(error.value) and (run / "config.json.12-34.writing").exists()
    holder.kill()  # its lock ends with it
    holder.wait()
    with occupy(run):
        assert not (run / "config.json.12-34.writing").exists()
        assert json.loads((run / ".lock").read_text())["pid"] == os.getpid()
    assert (run / ".lock").read_text() == ""


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write .*file/run"), occupy(tmp_path / "file" / "run"):
        pass
