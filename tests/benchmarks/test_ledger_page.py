"""The ledger's page: its verdicts, tables, defaults and signs, from stored lines."""

import dataclasses
import json

import pytest

from benchmarks.hypotheses import defaults, entries, measures, signs, tables
from benchmarks.hypotheses.defaults import Default
from tests.small_ledger import lines_of, small_ledger
from zsjax.monitor import catalog
from zsjax.report import page


@pytest.fixture
def book(tmp_path):
    return small_ledger(tmp_path / "entries")


def test_the_page_counts_replaced_lines_and_the_time_that_is_known(book, tmp_path):
    lines = lines_of(book, {("a", 0): 0.9, ("a", 1): 0.8})
    last = lines["a", book.arms["a"].digest, 1]
    last |= {"seconds": 7200.0, "cpu_seconds": 1800.0}
    tables.write(tables.Results(book, lines, [*lines.values(), last | {"seconds": 3600.0}]), tmp_path)
    text = (tmp_path / "ledger.md").read_text()
    assert "2 runs: 2.0 hours of wall time, 0.5 hours of CPU time in the 1 that have it." in text
    assert "With runs that were replaced since, 3:\n3.0 hours of wall time, 1.0 hours of CPU time in the 2" in text
    tables.write(tables.Results(book, lines_of(book, {("a", 0): 0.9})), tmp_path)  # lines of before
    assert "1 runs: 0.0 hours of wall time, CPU time not known." in (tmp_path / "ledger.md").read_text()


def test_a_curve_is_read_at_a_step(book):
    results = tables.Results(book, lines_of(book, {("a", 0): 0.9, ("a", 1): 0.8}, {"eval/em": [None, 0.2, 0.4]}))
    assert results.values("a", "eval/em@2") == {0: 0.2, 1: 0.2} and results.values("a", "eval/em@3") == {0: 0.4, 1: 0.4}
    assert results.values("a", "eval/em@1") == results.values("a", "eval/em@9") == {}


def test_the_page_is_written_from_the_lines_alone(book, tmp_path):
    lines = lines_of(book, {("a", 0): 0.9, ("a", 1): 0.8, ("a", 2): 0.7, ("b", 0): 0.5, ("b", 1): 0.41})
    lines["b", "of another definition", 1] = {"arm": "b", "seed": 1, "commit": "", "seconds": 1.0, "measures": {"em": 9.0}}
    lines["a", book.arms["a"].digest, 7] = {"arm": "a", "seed": 7, "commit": "", "seconds": 1.0,
                                            "error": "x\nlost its way\n"}
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "curves_c9.svg").write_text("of an arm that was removed")
    tables.write(tables.Results(book, lines), tmp_path)
    text = (tmp_path / "ledger.md").read_text()
    assert "| C1 | t | supported | 2 |  |" in text
    assert "| a - b, em | greater | 0.1 | +0.395 ± 0.005 | +0.331 to +0.459 | 2 | supported |" in text
    assert "| C2 | t | undecided | 2 | more than a thousand |" in text  # two pairs have no correlation with an error
    assert "| a | 3 |" in text and "0.80 ± 0.06" in text and "a, seed 7: `lost its way`" in text
    plots = {path.name for path in (tmp_path / "ledger").glob("*.svg")}
    assert plots == {"effects.svg", "curves_c1.svg", "curves_c2.svg"} and all(f"ledger/{name}" in text for name in plots)


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
    told = lines_of(book, {} if low is None else {("a", 0): 0.9, ("a", 1): 0.8, ("b", 0): low, ("b", 1): low - 0.09})
    rows = [Default("Noise is none", {"curriculum.end": 0.1}, "C1", follows_if),
            Default("Masks", {}, "C1", reads="not said"), Default("RLOO", {"algorithm.advantage": "rloo"})]
    table = tables.defaults_table(tables.Results(dataclasses.replace(book, defaults=rows), told))[2:]
    assert table[0] == f"| Noise is none |  | C1: t {row}"
    assert table[1].startswith("| Masks | all | C1: t |") and table[1].endswith("| not said |")
    assert table[2] == "| RLOO | gemma_search |  |  | no claim is about it |"


def test_every_default_that_is_listed_is_one_and_every_choice_of_an_experiment_is_listed():
    shipped, listed = defaults.experiments(), entries.load().defaults
    assert len(shipped) == 5 and len(listed) > 10
    for default in listed:
        assert any(default.holds_in(config) for config in shipped.values()), default.says
    for name, config in shipped.items():
        named = {setting for default in listed if default.holds_in(config) for setting in default.settings}
        asked = {"search.engine", "curriculum.end", "reward.terms", "algorithm.advantage", "algorithm.drop_equal_groups",
                 "search.noise_per", "search.reveal_gold"}
        asked |= {"algorithm.kl_coef"} if config.algorithm.kl_coef else set()
        assert asked <= named, f"{name}: {asked - named} is in no row of defaults.toml"


@pytest.mark.parametrize("line, message", [
    ('follows_if = "run"', "follows_if = 'run'; use supported or refuted"), ('claim = "C9"', "claim = 'C9' is in no file"),
    ("more = 1", "more"), ("more", "Expected")])
def test_defaults_that_cannot_be_read_are_named(book, tmp_path, line, message):
    (tmp_path / "entries" / "defaults.toml").write_text(f'[[defaults]]\nsays = "x"\nsettings = {{}}\n{line}\n')
    with pytest.raises(ValueError, match=f"defaults.toml.*{message}"):
        entries.load(tmp_path / "entries")


def test_claims_that_are_decided_by_less_than_it_seems_are_named(book):
    one, (part,) = book.hypotheses[1], book.hypotheses[1].comparisons
    other = dataclasses.replace(part, treatment=("b", "em"), control=("a", "em"))
    lines = lines_of(book, {("a", 0): 0.9, ("a", 1): 0.8, ("b", 0): 0.5, ("b", 1): 0.41})

    def said(hypothesis):
        return tables.decided(tables.Results(dataclasses.replace(book, hypotheses=[hypothesis]), lines))

    assert said(one) == ["1 of 1 claims are decided."]
    assert said(dataclasses.replace(one, comparisons=(part, other), caveat="by luck")) == [
        "1 of 1 claims are decided, 1 of them by less than it seems:", "",
        "- C1: refuted by 1 of 2 comparisons (1 supported)", "- C1: by luck"]
    assert said(dataclasses.replace(one, seeds=(0, 1, 2), caveat="by luck")) == ["0 of 1 claims are decided."]


def test_the_gates_of_each_simulator_are_shown(book, tmp_path):
    (tmp_path / "m").mkdir()
    rows = [{"gate": "reading", "hops": 1}]
    for hops in (2, 1):
        rows += [{"gate": "simulator", "kind": "right last query", "hops": hops, "n": 9, "useful": 1 / hops, "noisy": 0.1,
                  "engine": 1.0}, {"gate": "simulator", "kind": "first hop", "hops": hops, "n": 9, "useful": 0.4,
                                   "noisy": 0.0, "engine": 0.1 * hops}]
    (tmp_path / "m" / "gates.json").write_text(json.dumps(rows))
    shown = dataclasses.replace(book.hypotheses[1], models=("m", "n"))
    assert tables.section(tables.Results(book, {}, models=tmp_path), shown)[-2:] == [
        "| m | 9 | 1.00 / 0.50 | 0.10 / 0.10 | +0.30 |", "| n |  | not made |  |  |"]


def test_a_note_stands_under_its_claim(book):
    noted = dataclasses.replace(book.hypotheses[1], note="Not said.")
    assert tables.section(tables.Results(book, {}), noted)[3:5] == ["Source: s.", "Not said."]


def test_no_verdict_is_given_before_all_seeds_have_run(book, tmp_path):
    lines = lines_of(book, {("a", 0): 0.9, ("a", 1): 0.8, ("a", 2): 0.7, ("b", 0): 0.5})
    tables.write(tables.Results(book, lines), tmp_path)
    text = (tmp_path / "ledger.md").read_text()
    assert "| C1 | t | not finished | 1 |  |" in text and "| 1 | not finished |" in text


def test_a_second_look_is_said(book, tmp_path):
    def text(first_seeds):
        claim = dataclasses.replace(book.hypotheses[1], first_seeds=first_seeds)
        tables.write(tables.Results(dataclasses.replace(book, hypotheses=[claim]), {}), tmp_path)
        return (tmp_path / "ledger.md").read_text()

    assert "given more seeds: C1 (with 5)." in text(5) and "more seeds" not in text(0)


def test_nothing_run_is_said(book, tmp_path):
    tables.write(tables.Results(book, {}), tmp_path)
    text = (tmp_path / "ledger.md").read_text()
    assert "| C1 | t | not run | 0 |" in text and "0 runs" in text


def test_a_sign_is_a_metric_that_leaves_its_range_before_em_falls(book):
    em = [None] * 40
    em[9], em[19], em[29], em[39] = 0.4, 0.8, 0.78, 0.3
    steady = [0.5 + 0.01 * (step % 3) for step in range(40)]
    early = steady[:24] + [0.1] * 16
    late = steady[:39] + [0.1]
    outside = [signs.first_outside(values) for values in (early, steady, late)]
    assert outside == [24, None, None]
    lines = lines_of(book, {("a", 0): 0.3}, {"eval/em": em, "entropy": early, "reward": steady, "kl": late})
    lines |= lines_of(book, {("b", 0): 0.3}, {"eval/em": em[:9] + em[9::10], "reward": steady[:12]})
    for line in lines.values():
        line["measures"]["fall"] = 0.5
    table = signs.signs(lines.values())
    assert "| metric | 1 runs of 13 steps | 1 runs of 40 steps |" in table and "| entropy | 0 of 1 | 1 of 1, 15 |" in table
    assert all(f"| {name} | 0 of 1 | 0 of 1 |" in table for name in signs.HEALTH if name != "entropy")
    assert not any("reward" in row or "kl" in row for row in table)


def test_the_metrics_of_health_are_kept_of_every_run():
    assert set(signs.HEALTH) <= set(measures.CURVES) and len(signs.HEALTH) == 7
