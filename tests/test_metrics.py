import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from zsjax.monitor.writer import Timer, Writer, read_jsonl, without_wall_time


def quiet(path):
    return Writer(path, console=Console(file=io.StringIO()), tensorboard=False)


def test_lines_round_trip(tmp_path):
    value = np.float32(0.1)
    with quiet(tmp_path) as writer:
        writer.write(1, {"a": value, "b": jnp.float32(1) / 3, "n": np.int64(7), "bad": float("nan"), "inf": np.inf,
                         "s": "x", "ok": np.bool_(True), "list": np.array([1.5, 2.5])})
        assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 1, "a line is readable as soon as it is written"
    text = (tmp_path / "metrics.jsonl").read_text()
    (line,) = [json.loads(row, parse_constant=lambda name: pytest.fail(name)) for row in text.splitlines()]
    assert line == {"stage": "train", "step": 1, "a": float(value), "b": float(jnp.float32(1) / 3), "n": 7, "bad": None,
                    "inf": "inf", "s": "x", "ok": True, "list": [1.5, 2.5]}
    assert np.float32(line["a"]) == value


def test_truncate_and_half_line(tmp_path):
    with quiet(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.write(step, {"x": step}, "pretrain")
        for step in (1, 2, 3):
            writer.write(step, {"x": step}, "train")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "train", "step": 4, "x"')  # a kill in the middle of a write
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 6
    with quiet(tmp_path) as writer:
        writer.truncate("train", 1)
        writer.write(2, {"x": 20}, "train")
    steps = [(row["stage"], row["step"], row["x"]) for row in read_jsonl(tmp_path / "metrics.jsonl")]
    assert steps == [("pretrain", 1, 1), ("pretrain", 2, 2), ("pretrain", 3, 3), ("train", 1, 1), ("train", 2, 20)]


def test_damage_in_the_middle_is_an_error(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"stage": "a", "step": 1}\n{"stage"\n{"stage": "a", "step": 2}\n')
    with pytest.raises(ValueError, match="metrics.jsonl, line 2"):
        read_jsonl(path)


def test_lines_and_bars():
    out = io.StringIO()
    writer = Writer(None, console=Console(file=out, width=120))
    with writer.progress("train", total=20):
        writer.write(3, {"reward": 0.51234, "loss": 1e-5, "unknown": 1})
    writer.note("[not markup] gate passed")
    assert out.getvalue().splitlines() == ["train 3/20  loss 1.0e-05  reward 0.512", "[not markup] gate passed"]
    out = io.StringIO()
    writer = Writer(None, console=Console(file=out, width=120, force_terminal=True))
    with writer.progress("train", total=20, done=2), writer.track("inner", 3) as advance:
        writer.write(3, {"reward": 0.51234})
        advance(3)
    assert "3/20" in out.getvalue() and "reward 0.512" in out.getvalue()


def test_tensorboard_events(tmp_path):
    with Writer(tmp_path, console=Console(file=io.StringIO())) as writer:
        writer.write(1, {"reward": 0.5, "note": "text"})
    (events,) = (tmp_path / "tensorboard" / "train").iterdir()
    assert b"reward" in events.read_bytes()


def test_wall_time_is_named():
    timer = Timer()
    for _ in range(2):
        with timer("rollout"):
            pass
    assert set(timer.take()) == {"time/rollout"} and timer.take() == {}
    assert without_wall_time({"step": 1, "time/step": 2.0, "speed/tokens_per_second": 3.0, "kl": 4.0}) == {
        "step": 1, "kl": 4.0}
