"""The ledger: its statistics against an independent oracle, its rule, its entries, and that a kill loses one run at most."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from benchmarks import ledger
from benchmarks.hypotheses import entries, measures, tables, verdict
from benchmarks.hypotheses.verdict import REFUTED, SUPPORTED, UNDECIDED, Effect
from zsjax.evaluation.kept_evaluations import Evaluation, Kept, Subject


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_the_paired_interval_is_that_of_a_paired_t_test(n):
    rng = np.random.default_rng(n)
    a, b = rng.normal(0.7, 0.1, n), rng.normal(0.6, 0.1, n)
    shuffled = rng.permutation(n).tolist()
    effect = verdict.paired({i: a[i] for i in shuffled} | {99: 5.0}, dict(enumerate(b)))
    oracle = stats.ttest_rel(a, b)
    assert effect.n == n and effect.mean == pytest.approx((a - b).mean())
    assert effect.mean / effect.error == pytest.approx(oracle.statistic)
    assert effect.interval() == pytest.approx(tuple(oracle.confidence_interval(0.95)))
    with pytest.raises(ValueError, match="no seed in common"):
        verdict.paired({0: 1.0}, {1: 1.0})


def test_the_interval_covers_the_truth_19_times_of_20():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(2000):
        draws = rng.normal(0.1, 0.05, 5)
        low, high = verdict.paired(dict(enumerate(draws)), dict.fromkeys(range(5), 0.0)).interval()
        hits += low < 0.1 < high
    assert abs(hits / 2000 - 0.95) < 0.015


# says, interval, verdict; the smallest effect that matters is 0.1
RULE = [
    ("greater", (0.02, 0.3), SUPPORTED), ("greater", (-0.02, 0.3), UNDECIDED), ("greater", (-0.2, 0.05), REFUTED),
    ("greater", (0.02, 0.05), REFUTED), ("greater", (-0.5, -0.2), REFUTED), ("greater", (-0.3, 0.2), UNDECIDED),
    ("smaller", (-0.3, -0.02), SUPPORTED), ("smaller", (-0.05, 0.2), REFUTED), ("smaller", (-0.3, 0.02), UNDECIDED),
    ("not_worse", (-0.05, 0.3), SUPPORTED), ("not_worse", (-0.05, -0.01), SUPPORTED), ("not_worse", (-0.3, -0.02), REFUTED),
    ("not_worse", (-0.2, 0.1), UNDECIDED), ("alike", (-0.05, 0.08), SUPPORTED), ("alike", (0.02, 0.3), REFUTED),
    ("alike", (-0.3, -0.02), REFUTED), ("alike", (-0.05, 0.2), UNDECIDED)]


@pytest.mark.parametrize("says, interval, expected", RULE)
def test_the_rule(says, interval, expected):
    low, high = interval
    n, width = 5, (high - low) / 2
    effect = Effect((low + high) / 2, width / stats.t.ppf(0.975, n - 1), n)
    assert effect.interval() == pytest.approx(interval)
    assert verdict.decide(says, effect, 0.1) == expected
    needed = verdict.seeds_to_decide(says, effect, 0.1)
    if needed is not None and needed > 2:
        assert verdict.decide(says, effect, 0.1, needed) != UNDECIDED == verdict.decide(says, effect, 0.1, needed - 1)
    assert needed is not None  # none of these sits on a border


def test_one_seed_decides_nothing():
    effect = verdict.paired({0: 1.0}, {0: 0.0})
    assert math.isnan(effect.error) and verdict.decide("greater", effect, 0.1) == UNDECIDED
    assert verdict.seeds_to_decide("greater", effect, 0.1) is None
    assert verdict.together([SUPPORTED, SUPPORTED]) == SUPPORTED and verdict.together([]) == UNDECIDED
    assert verdict.together([SUPPORTED, REFUTED]) == REFUTED and verdict.together([SUPPORTED, UNDECIDED]) == UNDECIDED
    with pytest.raises(ValueError, match="says = 'better'"):
        verdict.decide("better", effect, 0.1)
    with pytest.raises(ValueError, match="must be above 0"):
        verdict.decide("greater", effect, 0.0)


def test_correlation():
    rng = np.random.default_rng(0)
    xs = rng.normal(size=20)
    ys = -xs + rng.normal(size=20)
    effect = verdict.correlation(xs, ys)
    assert effect.mean == pytest.approx(stats.pearsonr(xs, ys).statistic) and effect.n == 20
    assert effect.interval() == pytest.approx(tuple(stats.pearsonr(xs, ys).confidence_interval(0.95)))
    assert verdict.decide("smaller", effect, 0.5) == SUPPORTED and verdict.decide("greater", effect, 0.5) == REFUTED
    flat = verdict.correlation([1, 1, 1, 1], [1, 2, 3, 4])
    assert verdict.decide("smaller", flat, 0.5) == UNDECIDED and verdict.seeds_to_decide("smaller", flat, 0.5) is None


def test_every_claim_and_every_arm_is_used():
    book = entries.load()
    assert {h.id for h in book.hypotheses} == {f"C{i}" for i in range(1, 16)} | {"C10b", "D1"}
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
    assert Fake().run(book, tmp_path) == 0


def test_a_run_that_failed_is_kept_as_such(book, tmp_path):
    fake = Fake(fails=("a", 2))
    assert fake.run(book, tmp_path, only=["C2"]) == 2 and fake.played == [("a", 1)]
    line = ledger.read_results(tmp_path)["a", book.arms["a"].digest, 2]
    assert line["error"] == "out of luck" and "measures" not in line
    assert Fake().run(book, tmp_path, only=["C2"]) == 0 and Fake().run(book, tmp_path, only=["C2"], again=True) == 1
    assert "measures" in ledger.read_results(tmp_path)["a", book.arms["a"].digest, 2]


def test_no_run_begins_after_the_hours(book, tmp_path):
    times = iter(range(0, 100_000, 500))
    assert Fake().run(book, tmp_path, hours=1, clock=lambda: next(times)) == 3


def test_a_changed_arm_is_run_again(book, tmp_path):
    Fake().run(book, tmp_path, only=["C2"])
    (tmp_path / "entries" / "arms.toml").write_text(SMALL["arms.toml"].replace('arg="x"', 'arg="z"'))
    assert Fake().run(entries.load(tmp_path / "entries"), tmp_path, only=["C2"]) == 2


@pytest.mark.parametrize("name, old, new, message", [
    ("c01.toml", "a:em", "q:em", "C1: no arm 'q'"), ("c01.toml", '"greater"', '"more"', "c01.toml: says = 'more'"),
    ("c01.toml", "smallest=0.1", "smallest=0", "c01.toml: smallest = 0"), ("c02.toml", "seeds=[1, 2]", "", "c02.toml"),
    ("arms.toml", "@n/made", "@q/made", "b names the model '@q/made'"), ("arms.toml", '[arms.b]', "[arms.b", "arms.toml")])
def test_an_entry_that_cannot_be_read_is_named(book, tmp_path, name, old, new, message):
    path = tmp_path / "entries" / name
    path.write_text(SMALL[name].replace(old, new))
    with pytest.raises(ValueError, match=message):
        entries.load(tmp_path / "entries")


def test_contradictions_are_facts_told_twice_with_two_objects():
    def record(*replies):
        return {"segments": [{"role": "document", "text": "\n".join(f"* {fact}." for fact in reply)} for reply in replies]}

    a, b, c = "rival of Ka Bo is Mi Zol", "rival of Ka Bo is Mi Dru", "voice of Ka Bo is Mi Zol"
    assert measures.contradictions(record([a, c])) is None
    assert measures.contradictions(record([a, c], [a])) == 0
    assert measures.contradictions(record([a, c], [b, c])) == 0.5


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
    tables.write(book, lines, tmp_path)
    page = (tmp_path / "ledger.md").read_text()
    assert "| C1 | t | supported | 2 |  |" in page
    assert "| a - b, em | greater | 0.1 | +0.395 ± 0.005 | +0.331 to +0.459 | 2 | supported |" in page
    assert "| C2 | t | undecided | 2 | more than a thousand |" in page  # two pairs have no correlation with an error
    assert "| a | 3 |" in page and "0.80 ± 0.06" in page and "a, seed 7: `lost its way`" in page
    plots = {path.name for path in (tmp_path / "ledger").glob("*.svg")}
    assert plots == {"effects.svg", "curves_c1.svg", "curves_c2.svg"} and all(f"ledger/{name}" in page for name in plots)


def test_no_verdict_is_given_before_all_seeds_have_run(book, tmp_path):
    lines = lines_of(book, {("a", 0): 0.9, ("a", 1): 0.8, ("a", 2): 0.7, ("b", 0): 0.5})
    tables.write(book, lines, tmp_path)
    page = (tmp_path / "ledger.md").read_text()
    assert "| C1 | t | not finished | 1 |  |" in page and "| 1 | not finished |" in page


def test_nothing_run_is_said(book, tmp_path):
    tables.write(book, {}, tmp_path)
    page = (tmp_path / "ledger.md").read_text()
    assert "| C1 | t | not run | 0 |" in page and "0 runs" in page


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
