"""What a stage left is checked before a later stage computes with it."""

import os
import time

import pytest

from zsjax.errors import InputError
from zsjax.run import checksums


@pytest.fixture
def run(tmp_path):
    (tmp_path / "models" / "policy").mkdir(parents=True)
    for name in ("searches.jsonl", "metrics.jsonl", "models/policy/model.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    checksums.seal(tmp_path, 0.0)
    return tmp_path


@pytest.mark.parametrize("name,inside", [("searches.jsonl", ""), ("models/policy/model.safetensors", "models/policy")])
def test_a_flipped_bit_is_named(run, name, inside):
    checksums.check(run, inside=inside)
    data = bytearray((run / name).read_bytes())
    data[3] ^= 1
    (run / name).write_bytes(data)
    os.utime(run / name, (0, 0))
    checksums.seal(run, time.time())  # of the next stage: the damage is not taken for what the stage left
    checksums.check(run, inside="models/other")
    removed = "models/policy" if inside else name
    with pytest.raises(InputError, match=f"{name} is not as the run left it .* remove {removed} to make it anew"):
        checksums.check(run, inside=inside)
    (run / name).unlink()
    checksums.check(run, inside=inside)


def test_what_is_written_anew_is_sealed_anew(run):
    began = time.time()
    (run / "searches.jsonl").write_text("of another collection")
    (run / "metrics.jsonl").write_text("a log")
    checksums.seal(run, began)
    checksums.check(run)


def test_a_run_without_checksums(tmp_path):
    (tmp_path / "searches.jsonl").write_text("")
    checksums.check(tmp_path)
    (tmp_path / checksums.NAME).write_text("{")
    with pytest.raises(InputError, match="checksums.json is not JSON .* remove it"):
        checksums.check(tmp_path)


def test_checksums_of_another_form_are_named(run):
    (run / checksums.NAME).write_text("[]")
    with pytest.raises(InputError, match="checksums.json holds a list, not a dict; remove it"):
        checksums.check(run)
