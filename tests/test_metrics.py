import contextlib
import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from zsjax.config.fields import HealthConfig
from zsjax.errors import OutputError
from zsjax.monitor import catalog
from zsjax.monitor.episodes import search_metrics, token_metrics
from zsjax.monitor.phases import Timer, host_peak
from zsjax.monitor.tensorboard import TensorBoardEvents
from zsjax.monitor.writer import SHOWN, SHOWN_TOGETHER, Writer, read_jsonl, without_wall_time
from zsjax.report import page
from zsjax.rewards.terms import Outcome
from zsjax.rollout.experience import Experience
from zsjax.types import DOCUMENT, POLICY, PROMPT, TokenBatch


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


@pytest.fixture
def full_disk():
    """A context in which no file may be longer than 100 bytes."""
    resource = pytest.importorskip("resource")

    @contextlib.contextmanager
    def context():
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return context


def test_a_line_that_cannot_be_written_names_the_file(tmp_path, full_disk):
    with pytest.raises(OutputError, match="cannot write .*metrics.jsonl .*; make room"), full_disk(), quiet(tmp_path) as w:
        for step in range(9):
            w.write(step, {"reward": 0.123456789})
    with quiet(tmp_path) as w:  # the half line is gone
        w.write(9, {})
    assert [line["step"] for line in read_jsonl(tmp_path / "metrics.jsonl")] == [0, 9]


def test_events_that_cannot_be_written_hold_nothing_up(tmp_path, full_disk, caplog):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "events"):
        caplog.clear()
        with full_disk():
            events = TensorBoardEvents(folder, 3)
            for step in range(50):
                events.add_scalars_of({"step": step, "reward": 0.5})
            events.close()
        assert caplog.text.count("left out from now on") == 1


def test_wall_time_is_named():
    timer = Timer()
    for _ in range(2):
        with timer("rollout"):
            pass
    assert set(timer.take()) - {"memory/rollout"} == {"time/rollout"} and timer.take() == {}
    assert without_wall_time({"step": 1, "time/step": 2.0, "memory/rollout": 5, "speed/tokens_per_second": 3.0,
                              "kl": 4.0}) == {"step": 1, "kl": 4.0}


@pytest.mark.skipif(host_peak() is None, reason="the platform cannot set a process's peak memory back")
def test_memory_is_of_the_phase_that_needed_it():
    timer = Timer()

    def use():
        np.ones(200_000_000 // 8)

    with timer("before"):
        pass
    with timer("uses"):
        use()
    with timer("after"), timer("within"):
        pass
    with timer("around"):
        with timer("inner"):
            use()
        with timer("next"):
            pass
    with timer("early"):
        use()
        with timer("late"):
            pass
    with timer("twice"):
        use()
    with timer("twice"):
        pass
    peaks = {name.partition("/")[2]: value for name, value in timer.take().items() if name.startswith("memory/")}
    large = {part for part, peak in peaks.items() if peak > peaks["before"] + 150_000_000}
    assert large == {"uses", "around", "inner", "early", "twice"}
    assert max(peaks.values()) < peaks["before"] + 260_000_000 and len(peaks) == 10
    with timer("before"):
        pass
    assert timer.take()["memory/before"] < peaks["before"] + 50_000_000  # what was taken does not count again


def test_every_metric_is_described_once_and_its_readers_know_it():
    names = [metric.name for metric in catalog.METRICS]
    assert len(names) == len(set(names)) and all(metric.help for metric in catalog.METRICS)
    assert {metric.name for metric in catalog.METRICS if metric.alarm} == set(HealthConfig().alarms)
    assert {metric.chart for metric in catalog.METRICS} == {*page.CHARTS, ""}
    shown = {*SHOWN, *(name for _, *several in SHOWN_TOGETHER for name in several)}
    assert not {name for name in shown - {"f1"} if catalog.find_metric(name) is None}
    assert catalog.find_metric("entropy").readers == ("report", "alarm")


def test_families_and_evaluations_in_training():
    found = {name: catalog.find_metric(name) for name in (
        "time/rollout", "time/new_part", "eval/em_3_hop", "eval/used/searches", "eval/entropy", "lenght")}
    names = {name: metric and metric.name for name, metric in found.items()}
    assert names == {"time/rollout": "time/rollout", "time/new_part": "time/*", "eval/em_3_hop": "eval/em_*_hop",
                     "eval/used/searches": "used/*", "eval/entropy": None, "lenght": None}
    assert catalog.is_evaluation_metric("eval/f1") and not catalog.is_evaluation_metric("eval/used/searches")
    assert catalog.is_step_metric("reward/f1", ["f1"]) and not catalog.is_step_metric("reward/em", ["f1"])
    assert not catalog.is_step_metric("alarm/entropy") and not catalog.is_step_metric("time/elapsed")


def outcome(answer, queries=(), documents=()):
    return Outcome(answer, ("Oslo",), "answered", queries, documents, 0, (), 0)


def test_news_of_searches():
    first, again = "Doc : A. of Rome\nDoc : B. of 1950", "Doc : B. of 1950\nDoc : A. of Rome"
    told = [outcome("x", ("who", "Who?", "where"), (first, again, first + "\nDoc : C. of Oslo")), outcome("y")]
    assert search_metrics(told) == {"reach": 1 / 3, "repeated_queries": 1 / 3, "results_without_news": 1 / 3}
    assert search_metrics([outcome("x", ("who", "who"), (first, ""))])["results_without_news"] == 0  # nothing was shown
    assert set(search_metrics([outcome("y")]).values()) == {0.0}


def test_token_metrics_read_policy_tokens_only():
    roles = np.array([[PROMPT, POLICY, DOCUMENT, POLICY], [PROMPT, POLICY, POLICY, POLICY]])
    old = np.array([[0, -1.0, np.nan, -3.0], [0, -5.0, -5.0, -6.0]], np.float32)
    sampled = old + np.array([[0, 0.5, 0, 0], [0, 0, -0.25, 0]], np.float32)
    advantages = np.array([[9, 1, 9, 1], [9, -1, -1, -1]], np.float32)
    fields = {name: None for name in TokenBatch.__dataclass_fields__}
    batch = TokenBatch(**fields | dict(roles=roles, old_logprobs=old, behavior_logprobs=sampled, advantages=advantages))

    def metrics(*answers):
        outcomes = np.array([None, None], object)
        outcomes[:] = [outcome(answer) for answer in answers]
        return token_metrics(batch, Experience(*[None] * 2, outcomes, *[None] * 5), np.array(scored))

    scored = [False, False]
    assert metrics("Oslo", "Rome") == {}
    scored = [False, True]
    assert metrics("Oslo", "Rome")["sampler_gap_max"] == 0.25  # the other row has no log-probs
    scored = [True, True]

    found = metrics("Oslo", "Rome")
    assert found["right_logprob"] == -2.0 and found["positive_ratio_min"] == pytest.approx(np.exp(-0.5))
    assert found["sampler_gap_mean"] == pytest.approx(0.15) and found["sampler_gap_max"] == 0.5
    assert "right_logprob" not in metrics("Rome", None)
