"""The ledger: its entries and measures, and that a kill loses one run at most."""

import copy
import dataclasses
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import ledger
from benchmarks.hypotheses import entries, measures, outdated, tables
from tests.small_ledger import SMALL_LEDGER, small_ledger
from zsjax.config import load_experiment, resolve, to_json
from zsjax.evaluation.kept_evaluations import Evaluation, Kept, Subject
from zsjax.search import Document
from zsjax.tiny_world import world as tiny_world
from zsjax.tuning.simulator_gates import RIGHT


def test_every_claim_and_every_arm_is_used():
    book = entries.load()
    assert {h.id for h in book.hypotheses} == {f"C{i}" for i in range(1, 16)} | {"C10b", "C13b", "C13c", "D1"}
    assert {name for h in book.hypotheses for name in h.arms()} == set(book.arms)


@pytest.fixture
def book(tmp_path):
    return small_ledger(tmp_path / "entries")


class Fake:
    """Plays nothing; stops like a killed process at the job `dies`, fails at `fails`."""

    def __init__(self, dies=None, fails=None):
        self.dies, self.fails, self.played, self.made = dies, fails, [], []

    def play(self, job, folder):
        if (job.arm.name, job.seed) == self.dies:
            raise KeyboardInterrupt
        if (job.arm.name, job.seed) == self.fails:
            raise ledger.RunFailed("out of luck")
        self.played.append((job.arm.name, job.seed))
        return {"measures": {"em": 1.0}}

    def make(self, model, folder):
        folder.mkdir(parents=True)
        (folder / model.output).mkdir()
        self.made.append(model.name)

    def run(self, book, workdir, **options):
        return ledger.run_all(book, workdir, play=self.play, make=self.make, **options)


ALL = [("a", 1), ("a", 2), ("a", 0), ("b", 0), ("b", 1)]  # C2 first, and no run twice


def test_a_kill_loses_at_most_the_run_in_progress(book, tmp_path):
    first = Fake(dies=("b", 0))
    with pytest.raises(KeyboardInterrupt):
        first.run(book, tmp_path)
    assert first.played == ALL[:3] and first.made == ["m", "n"]
    with open(tmp_path / "results.jsonl", "a") as file:
        file.write('{"arm": "b", "digest": "cut o')  # of a kill in the middle of a line
    second = Fake()
    assert second.run(book, tmp_path) == 2 and second.played == ALL[3:] and second.made == []
    results = ledger.read_results(tmp_path)
    assert sorted((name, seed) for name, _, seed in results) == sorted(ALL)
    assert all(line["commit"] and line["measures"] and line["finished"] for line in results.values())
    assert all(line["cpu_seconds"] >= 0 for line in results.values())
    assert Fake().run(book, tmp_path) == 0


def test_a_run_that_failed_is_kept_as_such(book, tmp_path):
    fake = Fake(fails=("a", 2))
    assert fake.run(book, tmp_path, only=["C2"]) == 2 and fake.played == [("a", 1)]
    line = ledger.read_results(tmp_path)["a", book.arms["a"].digest, 2]
    assert line["error"] == "out of luck" and "measures" not in line
    assert Fake().run(book, tmp_path, only=["C2"]) == 0 and Fake().run(book, tmp_path, only=["C2"], again=True) == 1
    assert "measures" in ledger.read_results(tmp_path)["a", book.arms["a"].digest, 2]


def test_a_line_without_a_measure_that_a_claim_reads_is_run_again_once(book, tmp_path, capsys):
    first = Fake()
    first.run(book, tmp_path, only=["C1"])  # reads em alone
    folder = tmp_path / "runs" / f"a-{book.arms['a'].digest}-1"
    folder.mkdir(parents=True)
    second = Fake()
    assert second.run(book, tmp_path, only=["C2"]) == 2 and second.played == [("a", 1), ("a", 2)]
    assert not folder.exists() and "a, seed 1, is run again: its line has no f1" in capsys.readouterr().out
    assert Fake().run(book, tmp_path) == 0  # it was asked for f1 and had none


def test_a_line_of_other_settings_is_run_again(book, tmp_path):
    Fake().run(book, tmp_path, only=["C1"])
    again = Fake()
    again.run(book, tmp_path, only=["C1"], outdated=lambda arm, line: ["train.steps"] * (line["seed"] == 1))
    assert again.played == [("a", 1), ("b", 1)]


def test_a_model_of_other_settings_begins_no_run(book, tmp_path):
    fake = Fake()
    fake.run(book, tmp_path, only=["C1"])
    (tmp_path / "models" / "m" / "config.json").write_text('{"seed": 0}')
    again = Fake()
    with pytest.raises(SystemExit, match="m was made with another tune_simulator.steps; begin a new --workdir"):
        again.run(book, tmp_path, outdated=lambda owner, line: ["tune_simulator.steps"] * (owner.name in "mb"))
    assert again.played == [("a", 1), ("a", 2)]  # which start from no model


def test_a_command_keeps_the_trajectories_of_every_step(book, tmp_path):
    words = ledger.Launcher(book, tmp_path).command("x,seed=1", "train", {"policy.init": "@n/made"}, tmp_path / "run")
    assert "--config.train.trajectories_every=1" in words and f"--config.policy.init={tmp_path}/models/n/made" in words


def test_no_run_begins_after_the_hours(book, tmp_path):
    times = iter(range(0, 100_000, 500))
    assert Fake().run(book, tmp_path, hours=1, clock=lambda: next(times)) == 3


def test_arms_that_are_only_shown_have_no_second_set_of_seeds(book):
    claim = dataclasses.replace(book.hypotheses[0], seeds=(3, 1, 2), show=("b",), first_seeds=1)
    made = [(job.arm.name, job.seed) for job in ledger.jobs(dataclasses.replace(book, hypotheses=[claim]))]
    assert made == [("a", 3), ("b", 3), ("a", 1), ("a", 2)]


def test_a_changed_arm_is_run_again(book, tmp_path):
    Fake().run(book, tmp_path, only=["C2"])
    (tmp_path / "entries" / "arms.toml").write_text(SMALL_LEDGER["arms.toml"].replace('arg="x"', 'arg="z"'))
    assert Fake().run(entries.load(tmp_path / "entries"), tmp_path, only=["C2"]) == 2


@pytest.mark.parametrize("name, old, new, message", [
    ("c01.toml", "a:em", "q:em", "C1: no arm 'q'"), ("c01.toml", '"greater"', '"more"', "c01.toml: says = 'more'"),
    ("c01.toml", "smallest=0.1", "smallest=0", "c01.toml: smallest = 0"),
    ("c02.toml", "seeds=[1, 2]", "", "c02.toml"),
    ("arms.toml", "@n/made", "@q/made", "b names the model '@q/made'"), ("arms.toml", '[arms.b]', "[arms.b", "arms.toml")])
def test_an_entry_that_cannot_be_read_is_named(book, tmp_path, name, old, new, message):
    path = tmp_path / "entries" / name
    path.write_text(SMALL_LEDGER[name].replace(old, new))
    with pytest.raises(ValueError, match=message):
        entries.load(tmp_path / "entries")


def record(*replies):
    return {"segments": [{"role": "document", "text": "\n".join(f"* {fact}." for fact in reply)} for reply in replies]}


def test_contradictions_are_counted_over_the_episodes_of_a_run():
    right, wrong, other = "rival of Ka Bo is Mi Zol", "rival of Ka Bo is Mi Dru", "voice of Ka Bo is Mi Zol"
    world = [Document("", f"{right}."), Document("", f"{other}.")]
    assert measures.consistency([record([right, other])], world) == {"false_facts": 0}
    assert measures.consistency([record()], world) == {}
    assert measures.consistency([record([right]), record([right])], world) == {"contradicted": 0, "false_facts": 0}
    assert measures.consistency([record([right], [right]), record([wrong])], world) == {
        "contradicted": 1, "false_facts": 0.5}  # a reply that an episode sees twice counts once
    found = measures.consistency([record([right]), record([right, other]), record([wrong], [other])], world)
    assert found == {"contradicted": pytest.approx((2 / 3 + 0) / 2), "false_facts": 0.2}


def test_contradictions_do_not_rise_with_the_number_of_replies():
    right, wrong = record(["rival of Ka Bo is Mi Zol"]), record(["rival of Ka Bo is Mi Dru"])
    rng = np.random.default_rng(0)

    def mean(replies):
        return np.mean([measures.consistency([right if told else wrong for told in rng.random(replies) < 0.8], [])
                        ["contradicted"] for _ in range(2000)])

    assert mean(2) == pytest.approx(0.32, abs=0.03) and mean(12) == pytest.approx(0.32, abs=0.03)


def test_words_are_those_of_the_given_answers_and_trajectories_are_measured(tmp_path):
    world = dict(train_worlds=1, eval_worlds=1, entities=20)
    (tmp_path / "config.json").write_text(json.dumps({"world": world, "data": {"corpus": "tiny_world:train"}}))
    (tmp_path / "metrics.jsonl").write_text('{"stage": "train", "step": 1, "reward": 0.5, "time/step": 1.0}\n')
    kept = Kept(tmp_path)
    kept.folder.mkdir()
    after = Evaluation("after", "", 1, Subject("policy", "", ""), {}, rows=[{"hops": 1, "em": 0.5}])
    kept.add(after, [{"answer": answer, "num_searches": 1} for answer in ("Ka Bo", "one two three four", None, None)])
    (tmp_path / "evaluation.json").write_text(json.dumps([{"evaluation": after.name}]))
    assert measures.of_run(tmp_path)["measures"]["words_per_answer"] == 3
    told = tiny_world.worlds_of("tiny_world:train", **world)[0].documents[0].text.removesuffix(".")
    (tmp_path / "trajectories").mkdir()
    for step, fact in enumerate([told, told, f"{told.rpartition(' is ')[0]} is Mi Zol"]):
        (tmp_path / "trajectories" / f"train_{step:06}.jsonl").write_text(json.dumps(record([fact])) + "\n")
    found = measures.of_run(tmp_path)["measures"]
    assert found["contradicted"] == pytest.approx(2 / 3) and found["false_facts"] == pytest.approx(1 / 3)


def test_runs_share_the_evaluations_of_the_base(book, tmp_path, monkeypatch):
    launcher, made = ledger.Launcher(book, tmp_path), []

    def launch(arg, stages, overrides, folder):
        """Evaluates the base, unless that evaluation is there: another one for each seed."""
        seed, kept = arg[-1], Kept(folder)
        assert not list(kept.folder.glob(".*"))
        wanted = Evaluation("before", "", 1, Subject("base", "", ""), {"seed": seed},
                            rows=[{"hops": 1, "em": 0.1 * int(seed)}])
        if kept.find(wanted) is None:
            made.append(seed)
            kept.folder.mkdir(parents=True, exist_ok=True)
            kept.add(wanted, [])
        (folder / "evaluation.json").write_text(json.dumps([{"evaluation": wanted.name}]))
        (folder / "metrics.jsonl").write_text('{"stage": "train", "step": 1, "reward": 0.5, "time/step": 1.0}\n')
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(launcher, "_launch", launch)
    half = tmp_path / "before" / ".9-before.json"  # another process is writing it
    half.parent.mkdir()
    half.write_text("{")
    for arm, seed in (("a", 1), ("a", 2), ("b", 1), ("b", 2)):
        inodes = {path: path.stat().st_ino for path in half.parent.iterdir()}
        folder = tmp_path / "runs" / f"{arm}{seed}"
        assert launcher.play(ledger.Job(book.arms[arm], seed), folder)["measures"]["em_before"] == 0.1 * seed
        assert not (folder / "evaluation").exists()
        assert {path: path.stat().st_ino for path in inodes} == inodes, "what others may be reading is not written again"
    assert made == ["1", "2"]


def test_the_command_line_names_an_unknown_hypothesis(capsys):
    with pytest.raises(SystemExit):
        ledger.main(["list", "--only", "C99"])
    assert "unknown hypothesis C99" in capsys.readouterr().err
    ledger.main(["list"])
    assert "C15" in capsys.readouterr().out


def test_a_line_has_the_processor_time_of_its_processes(book, tmp_path):
    def play(job, folder):
        subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
        return {"measures": {"em": 1.0}}

    ledger.run_all(book, tmp_path, only=["C2"], play=play, make=Fake().make)
    for line in ledger.read_lines(tmp_path):
        assert 0.3 <= line["cpu_seconds"] < 3


def test_a_line_is_json_of_one_line(tmp_path):
    ledger.add_result(tmp_path, {"arm": "a", "digest": "0", "seed": 1, "error": "two\nlines"})
    assert json.loads((tmp_path / "results.jsonl").read_text())["error"] == "two\nlines"


def test_the_repository_carries_what_a_report_is_made_of(tmp_path, capsys):
    workdir, out = tmp_path / "work", tmp_path / "out"
    gates = workdir / "models" / "simulator_small" / "gates.json"
    gates.parent.mkdir(parents=True)
    gates.write_text(json.dumps([{"gate": "simulator", "kind": RIGHT, "hops": 1, "n": 7, "useful": 0.5, "noisy": 0.1},
                                 {"gate": "simulator", "kind": "other", "useful": 0.3, "engine": 0.2}]))
    with pytest.raises(SystemExit):
        ledger.main(["report", "--workdir", str(workdir), "--out", str(out)])
    assert "no run is in" in capsys.readouterr().err
    arm = entries.load().arms["real"]
    line = {"arm": "real", "digest": arm.digest, "seconds": 1.0}
    config = resolve(load_experiment(f"{ledger.ROOT}/experiments/hard_world.py:{arm.arg},seed=2"),
                     entries.settings(arm.overrides, workdir / "models") | {"stages": "train,evaluate"}, files=False)
    played = {"seed": 2, "commit": "c" * 40, "config": json.loads(to_json(config)), "measures": {"em": 0.5}, "curves": {}}
    ledger.add_result(workdir, line | {"seed": 1, "error": f"{workdir}/a: lost"})
    ledger.add_result(workdir, line | played)
    ledger.main(["report", "--workdir", str(workdir), "--out", str(out)])
    page = (out / "ledger.md").read_text()
    assert "real, seed 1: `/WORKDIR/a: lost`" in page and "| simulator_small | 7 | 0.50 | 0.10 | +0.10 |" in page
    (out / "ledger.md").unlink()
    ledger.main(["report", "--out", str(out)])
    assert (out / "ledger.md").read_text() == page
    assert not any(str(tmp_path) in path.read_text() for path in out.rglob("*.json"))
    carried = tables.Results(entries.load(), ledger.read_results(out / "ledger"))
    assert carried.outdated == {} and carried.values("real", "em") == {2: 0.5}
    gates.write_text(json.dumps([{"gate": "reading", "hops": 1}]))  # of a simulator that is being made
    ledger.main(["report", "--workdir", str(workdir), "--out", str(out)])
    assert "| simulator_small |  | not made |" in (out / "ledger.md").read_text()


def test_a_line_of_other_settings_does_not_count(tmp_path):
    book = entries.load()
    arm, here = book.arms["real"], pathlib.Path(ledger.ROOT)
    config = resolve(load_experiment(f"{here}/experiments/hard_world.py:{arm.arg},seed=3"),
                     entries.settings(arm.overrides, here / "elsewhere") | {"stages": "train,evaluate"}, files=False)
    config = json.loads(to_json(config))
    line = {"arm": "real", "seed": 3, "commit": "c" * 40, "seconds": 1.0, "measures": {"em": 0.5}, "curves": {}}

    def results(change=lambda config: None):
        changed = copy.deepcopy(config)
        change(changed)
        return tables.Results(book, {("real", arm.digest, 3): line | {"config": changed}})

    assert results().values("real", "em") == {3: 0.5}
    assert results(lambda c: c["train"].update(trajectories_every=1)).outdated == {}
    assert results(lambda c: c["policy"].update(init="/moved/models/base")).outdated == {}
    assert results(lambda c: c["policy"].pop("lora")).outdated == {}  # of a version without that field
    for change, name in ((lambda c: c["optimizer"].update(learning_rate=1e-3), "optimizer.learning_rate"),
                         (lambda c: c["reward"].update(terms={"contains": 1.0}), "reward.terms.contains"),
                         (lambda c: c.update(seed=4), "seed"), (lambda c: c["evaluate"].update(drop_best=0.2), "drop_best")):
        other = results(change)
        assert other.of("real") == {} and name in str(other.outdated)
        assert any(row.startswith("- real, seed 3: ") and name in row for row in tables.page(other, tmp_path).splitlines())


def test_a_model_is_compared_by_the_settings_of_its_stages():
    model, here = entries.load().models["base"], pathlib.Path(ledger.ROOT)
    config = json.loads(to_json(resolve(load_experiment(f"{here}/experiments/hard_world.py:{model.arg}"),
                                        {"stages": model.stages}, files=False)))
    config["optimizer"]["learning_rate"] = config["tune_simulator"]["steps"] = 7
    assert outdated.differences(model, {"config": config, "seed": 0}) == []
    config["pretrain"]["steps"] = 7
    assert outdated.differences(model, {"config": config, "seed": 0}) == ["pretrain.steps"]
