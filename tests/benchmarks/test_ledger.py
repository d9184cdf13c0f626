"""The ledger: its entries, measures and page, and that a kill loses one run at most."""

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
from zsjax.config import load_experiment, resolve, to_json
from zsjax.evaluation.kept_evaluations import Evaluation, Kept, Subject
from zsjax.monitor import catalog
from zsjax.report import page
from zsjax.search import Document
from zsjax.tiny_world import world as tiny_world


def test_every_claim_and_every_arm_is_used():
    book = entries.load()
    assert {h.id for h in book.hypotheses} == {f"C{i}" for i in range(1, 16)} | {"C10b", "C13b", "C13c", "D1"}
    assert {name for h in book.hypotheses for name in h.arms()} == set(book.arms)


SMALL = {
    "arms.toml": '[models.m]\narg=""\nstages="pretrain"\noutput="made"\n[models.n]\narg=""\nstages="collect"\n'
                 'output="made"\noverrides={ "policy.init" = "@m/made" }\n'
                 '[arms.a]\narg="x"\n[arms.b]\narg="y"\noverrides={ "policy.init" = "@n/made" }\n',
    "c01.toml": 'id="C1"\ntitle="t"\nclaim="c"\nsource="s"\nseeds=[0, 1]\norder=2\n[[comparisons]]\nsays="greater"\n'
                'smallest=0.1\ntreatment="a:em"\ncontrol="b:em"\n',
    "c02.toml": 'id="C2"\ntitle="t"\nclaim="c"\nsource="s"\nseeds=[1, 2]\norder=1\n[[correlations]]\nsays="greater"\n'
                'smallest=0.1\nx="em"\ny="f1"\narms=["a"]\n'}


@pytest.fixture
def book(tmp_path):
    folder = tmp_path / "entries"
    folder.mkdir()
    for name, text in SMALL.items():
        (folder / name).write_text(text)
    return entries.load(folder)


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


def test_a_changed_arm_is_run_again(book, tmp_path):
    Fake().run(book, tmp_path, only=["C2"])
    (tmp_path / "entries" / "arms.toml").write_text(SMALL["arms.toml"].replace('arg="x"', 'arg="z"'))
    assert Fake().run(entries.load(tmp_path / "entries"), tmp_path, only=["C2"]) == 2


@pytest.mark.parametrize("name, old, new, message", [
    ("c01.toml", "a:em", "q:em", "C1: no arm 'q'"), ("c01.toml", '"greater"', '"more"', "c01.toml: says = 'more'"),
    ("c01.toml", "smallest=0.1", "smallest=0", "c01.toml: smallest = 0"),
    ("c02.toml", "order=1", 'order=1\nfollows_if="run"', "c02.toml: follows_if = 'run'"),
    ("c02.toml", "seeds=[1, 2]", "", "c02.toml"),
    ("arms.toml", "@n/made", "@q/made", "b names the model '@q/made'"), ("arms.toml", '[arms.b]', "[arms.b", "arms.toml")])
def test_an_entry_that_cannot_be_read_is_named(book, tmp_path, name, old, new, message):
    path = tmp_path / "entries" / name
    path.write_text(SMALL[name].replace(old, new))
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
    for arm, seed in (("a", 1), ("a", 2), ("b", 1), ("b", 2)):
        folder = tmp_path / "runs" / f"{arm}{seed}"
        assert launcher.play(ledger.Job(book.arms[arm], seed), folder)["measures"]["em_before"] == 0.1 * seed
        assert not (folder / "evaluation").exists()
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


def test_the_page_counts_replaced_lines_and_the_time_that_is_known(book, tmp_path):
    lines = lines_of(book, {("a", 0): 0.9, ("a", 1): 0.8})
    last = lines["a", book.arms["a"].digest, 1]
    last |= {"seconds": 7200.0, "cpu_seconds": 1800.0}
    tables.write(book, lines, tmp_path, stored=[*lines.values(), last | {"seconds": 3600.0}])
    text = (tmp_path / "ledger.md").read_text()
    assert "2 runs: 2.0 hours of wall time, 0.5 hours of CPU time in the 1 that have it." in text
    assert "With runs that were replaced since, 3:\n3.0 hours of wall time, 1.0 hours of CPU time in the 2" in text
    tables.write(book, lines_of(book, {("a", 0): 0.9}), tmp_path)  # lines of before
    assert "1 runs: 0.0 hours of wall time, CPU time not known." in (tmp_path / "ledger.md").read_text()


def test_a_curve_is_read_at_a_step(book):
    results = tables.Results(book, lines_of(book, {("a", 0): 0.9, ("a", 1): 0.8}, {"eval/em": [None, 0.2, 0.4]}))
    assert results.values("a", "eval/em@2") == {0: 0.2, 1: 0.2} and results.values("a", "eval/em@3") == {0: 0.4, 1: 0.4}
    assert results.values("a", "eval/em@1") == results.values("a", "eval/em@9") == {}


def test_a_line_is_json_of_one_line(tmp_path):
    ledger.add_result(tmp_path, {"arm": "a", "digest": "0", "seed": 1, "error": "two\nlines"})
    assert json.loads((tmp_path / "results.jsonl").read_text())["error"] == "two\nlines"


def lines_of(book, values, curves=None):
    """Stored lines of {(arm, seed): em}."""
    return {(arm, book.arms[arm].digest, seed): {
        "arm": arm, "seed": seed, "commit": "c" * 40, "seconds": 60.0, "measures": {"em": em, "f1": 2 * em, "fall": 0.0},
        "curves": curves or {"eval/em": [None, em]}} for (arm, seed), em in values.items()}


def test_the_page_is_written_from_the_lines_alone(book, tmp_path):
    lines = lines_of(book, {("a", 0): 0.9, ("a", 1): 0.8, ("a", 2): 0.7, ("b", 0): 0.5, ("b", 1): 0.41})
    lines["b", "of another definition", 1] = {"arm": "b", "seed": 1, "commit": "", "seconds": 1.0, "measures": {"em": 9.0}}
    lines["a", book.arms["a"].digest, 7] = {"arm": "a", "seed": 7, "commit": "", "seconds": 1.0,
                                            "error": "x\nlost its way\n"}
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "curves_c9.svg").write_text("of an arm that was removed")
    tables.write(book, lines, tmp_path)
    text = (tmp_path / "ledger.md").read_text()
    assert "| C1 | t | supported | 2 |  |" in text
    assert "| a - b, em | greater | 0.1 | +0.395 ± 0.005 | +0.331 to +0.459 | 2 | supported |" in text
    assert "| C2 | t | undecided | 2 | more than a thousand |" in text  # two pairs have no correlation with an error
    assert "| a | 3 |" in text and "0.80 ± 0.06" in text and "a, seed 7: `lost its way`" in text
    plots = {path.name for path in (tmp_path / "ledger").glob("*.svg")}
    assert plots == {"effects.svg", "curves_c1.svg", "curves_c2.svg"} and all(f"ledger/{name}" in text for name in plots)


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


def test_each_curve_that_the_ledger_keeps_has_a_chart_in_the_report():
    charts = {name: catalog.find_metric(name).chart for name in measures.CURVES}
    assert {name: chart for name, chart in charts.items() if chart not in page.CHARTS} == {}


def test_a_dial_is_shown_in_standard_errors(book, tmp_path):
    dial = dataclasses.replace(book.hypotheses[1], id="D1")
    assert dial.comparisons
    results = tables.Results(book, lines_of(book, {("a", 0): 0.9, ("a", 1): 0.8, ("b", 0): 0.5, ("b", 1): 0.41}))
    assert tables.section(results, dial)[-1].endswith("| +0.331 to +0.459 | 2 | supported | +79.0 |")
    assert tables.section(results, book.hypotheses[1])[-1].endswith("| 2 | supported |")
    empty = tables.section(tables.Results(book, {}), dial)[-3:]
    assert len({row.count("|") for row in empty}) == 1  # rows of as many cells as the head has


@pytest.mark.parametrize("follows_if, low, row", [
    ("supported", 0.5, "| supported | follows |"), ("refuted", 0.5, "| supported | does not follow |"),
    ("refuted", 0.85, "| undecided | is open |"), ("supported", None, "| not run | is open |")])
def test_a_default_follows_from_its_verdict_or_not(book, follows_if, low, row):
    claim = dataclasses.replace(book.hypotheses[1], default="Noise rises", follows_if=follows_if)
    told = lines_of(book, {} if low is None else {("a", 0): 0.9, ("a", 1): 0.8, ("b", 0): low, ("b", 1): low - 0.09})
    table = tables.defaults_table(tables.Results(dataclasses.replace(book, hypotheses=[claim]), told))
    assert table[2:] == [f"| Noise rises | C1: t {row}"]


def test_a_note_stands_under_its_claim(book):
    noted = dataclasses.replace(book.hypotheses[1], note="Not said.")
    assert tables.section(tables.Results(book, {}), noted)[3:5] == ["Source: s.", "Not said."]


def test_no_verdict_is_given_before_all_seeds_have_run(book, tmp_path):
    lines = lines_of(book, {("a", 0): 0.9, ("a", 1): 0.8, ("a", 2): 0.7, ("b", 0): 0.5})
    tables.write(book, lines, tmp_path)
    text = (tmp_path / "ledger.md").read_text()
    assert "| C1 | t | not finished | 1 |  |" in text and "| 1 | not finished |" in text


def test_nothing_run_is_said(book, tmp_path):
    tables.write(book, {}, tmp_path)
    text = (tmp_path / "ledger.md").read_text()
    assert "| C1 | t | not run | 0 |" in text and "0 runs" in text


def test_a_sign_is_a_metric_that_leaves_its_range_before_em_falls(book):
    em = [None] * 40
    em[9], em[19], em[29], em[39] = 0.4, 0.8, 0.78, 0.3
    steady = [0.5 + 0.01 * (step % 3) for step in range(40)]
    early = steady[:24] + [0.1] * 16
    late = steady[:39] + [0.1]
    assert tables.first_outside(early) == 24 and tables.first_outside(steady) is tables.first_outside(late) is None
    lines = lines_of(book, {("a", 0): 0.3}, {"eval/em": em, "entropy": early, "reward": steady, "kl": late})
    next(iter(lines.values()))["measures"]["fall"] = 0.5
    table = tables.signs(tables.Results(book, lines))
    assert "| entropy | 1 of 1 | 15 |" in table and not any("reward" in row or "kl" in row for row in table)
