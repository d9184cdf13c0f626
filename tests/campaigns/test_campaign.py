"""The plumbing of the campaigns: seeded cases, what is skipped, and what a summary says."""

import json

from tests.campaigns.campaign import Case, cases_of, run_campaign


def test_cases_are_seeded_and_a_longer_list_begins_with_the_shorter(monkeypatch):
    monkeypatch.delenv("ZSJAX_CAMPAIGN_CASES", raising=False)
    short = cases_of(["a", "b"], default=4)
    monkeypatch.setenv("ZSJAX_CAMPAIGN_CASES", "7")
    longer = cases_of(["a", "b"], default=4)
    assert longer[:4] == short and len(longer) == 7 and {case.kind for case in short} == {"a", "b"}
    assert short[1].draw.random() == Case("b", 1).draw.random() != short[3].draw.random()
    monkeypatch.setenv("ZSJAX_CAMPAIGN_SEED", "1")
    assert not set(cases_of(["a", "b"], default=4)) & set(longer)


def test_what_passed_is_skipped_and_what_failed_runs_again(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("ZSJAX_CAMPAIGN_FOLDER", str(tmp_path))
    cases, seen, broken = [Case("a", i) for i in range(4)], [], {2}

    def check(case):
        seen.append(case.seed)
        assert case.seed not in broken, "two\nlines"
        return {"value": 1}

    first = run_campaign("some", cases, check, bound=3)
    assert list(first["failures"]) == ["a:2"] and first["counts"] == {"value": 3} and first["bound"] == 3
    assert capsys.readouterr().out.count("\n") == 1
    # A kill in the middle of a line loses that case and no other.
    path = tmp_path / "some.jsonl"
    path.write_text(path.read_text()[:-20])
    broken.clear()
    again = run_campaign("some", cases, check)
    assert seen == [0, 1, 2, 3, 2, 3] and not again["failures"] and again["counts"] == {"value": 4}
    assert json.loads((tmp_path / "some.json").read_text())["cases"] == 4
    assert len(path.read_text().splitlines()) == 6
