"""Weights & Biases and MLflow, with stand-ins for the packages."""

import json
import types

import pytest

from zsjax import launch
from zsjax.errors import InputError
from zsjax.monitor.trackers import TRACKERS, Trackers, imported
from zsjax.monitor.writer import Writer, read_jsonl


class Calls:
    """A package whose functions note how they are called; `broken` names one that fails."""

    def __init__(self, broken=None):
        self.calls, self.broken = [], broken

    def __getattr__(self, name):
        def function(*given, **named):
            self.calls.append((name, given, named))
            if name == self.broken:
                raise ConnectionError("no network")
            if name == "start_run":
                return types.SimpleNamespace(info=types.SimpleNamespace(run_id=named["run_id"] or "m1"))
            return self

        return function

    id = "w1"

    def of(self, name):
        return [(given, named) for called, given, named in self.calls if called == name]


def write(workdir, modules, steps=(1, 2)):
    tracked = Trackers(modules, workdir, name="mine", config={"seed": 3})
    with Writer(workdir, quiet=True, tensorboard=False, trackers=tracked) as writer:
        for step in steps:
            writer.write(step, {"reward": 0.5, "note": "text", "eval/em": None, "term/p.m:f": 2})


def test_wandb(tmp_path):
    wandb = Calls()
    write(tmp_path, {"wandb": wandb})
    (_, started), = wandb.of("init")
    assert started == {"project": "zsjax", "name": "mine", "id": None, "resume": "allow", "dir": str(tmp_path),
                       "config": {"seed": 3}}
    assert wandb.of("define_metric") == [(("train/step",), {}), (("train/*",), {"step_metric": "train/step"})]
    assert wandb.of("log")[1] == (({"train/reward": 0.5, "train/term/p.m:f": 2, "train/step": 2},), {})
    assert len(wandb.of("finish")) == 1
    write(tmp_path, {"wandb": wandb}, steps=[3])
    assert wandb.of("init")[1][1]["id"] == "w1"  # the same run goes on


def test_mlflow(tmp_path):
    mlflow = Calls()
    write(tmp_path, {"mlflow": mlflow})
    assert mlflow.of("start_run") == [((), {"run_id": None, "run_name": "mine"})]
    assert mlflow.of("log_dict") == [(({"seed": 3}, "config.json"), {})]
    assert mlflow.of("log_metrics")[0] == (({"train/reward": 0.5, "train/term/p.m_f": 2.0},), {"step": 1})
    write(tmp_path, {"mlflow": mlflow}, steps=[3])
    assert mlflow.of("start_run")[1] == ((), {"run_id": "m1", "run_name": None}) and len(mlflow.of("log_dict")) == 1
    assert len(mlflow.of("end_run")) == 2


@pytest.mark.parametrize("broken", ["log", "finish"])
def test_a_tracker_that_fails_ends_no_run(tmp_path, caplog, broken):
    wandb, mlflow = Calls(broken), Calls()
    write(tmp_path, {"wandb": wandb, "mlflow": mlflow})
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 2 and len(mlflow.of("log_metrics")) == 2
    assert len(wandb.of("log")) == (1 if broken == "log" else 2)
    assert [record.getMessage() for record in caplog.records] == ["wandb failed and is left out from now on: no network"]
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": "w1", "mlflow": "m1"}


@pytest.mark.parametrize(("broken", "name"), [("init", "wandb"), ("start_run", "mlflow"), ("set_experiment", "mlflow")])
def test_a_tracker_that_cannot_be_opened_ends_no_run(tmp_path, caplog, broken, name):
    (tmp_path / "trackers.json").write_text(json.dumps({name: "old"}))
    wandb, mlflow = Calls(broken), Calls(broken)
    write(tmp_path, {"wandb": wandb, "mlflow": mlflow})
    assert len(read_jsonl(tmp_path / "metrics.jsonl")) == 2
    assert len(wandb.of("log")) + len(mlflow.of("log_metrics")) == 2  # the other one's
    assert [record.getMessage() for record in caplog.records] == [
        f"{name} failed and is left out from now on: no network"]
    assert json.loads((tmp_path / "trackers.json").read_text())[name] == "old"  # a later start goes on there


def test_the_error_of_a_tracker_shows_no_key(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "planted/key+0123")
    module = types.SimpleNamespace(init=lambda **_: (_ for _ in ()).throw(ConnectionError("401 for planted/key+0123")))
    Trackers({"wandb": module}, tmp_path, name="x", config={}).close()
    assert "401 for ***" in caplog.text and "planted" not in caplog.text


def test_an_absent_package_is_one_message_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "mlflow", None)
    with pytest.raises(InputError, match="'mlflow' is not installed; pip install mlflow"):
        imported(("mlflow",))
    run = ["--config", "experiments/tiny_world.py:smoke", "--workdir", str(tmp_path / "run")]
    assert launch.main([*run, "--config.trackers=mlflow"]) == 2
    assert "pip install mlflow" in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert launch.main([*run, "--config.trackers=tensorbored"]) == 2
    assert "wandb" in capsys.readouterr().err
    assert imported(()) == {} and set(TRACKERS) == {"wandb", "mlflow"}
