"""The table of the campaigns' results, and what its rows are made of: the package's hash, CPU time, totals."""

import re
import subprocess
import sys
import time

import pytest

from tests.campaigns import campaign, table
from tests.campaigns.campaign import Case, cpu_seconds, run_campaign


def test_the_code_is_that_of_the_package(monkeypatch, tmp_path):
    (tmp_path / "zsjax" / "__pycache__").mkdir(parents=True)
    monkeypatch.setattr(campaign, "HERE", tmp_path / "tests" / "campaigns")
    found = []
    for name, text in (("a.py", "1"), ("a.py", "2"), ("b.json", "1"), ("__pycache__/a.pyc", "1")):
        (tmp_path / "zsjax" / name).write_text(text)
        found.append(campaign.code.__wrapped__())
    assert len(set(found)) == 3 and found[2] == found[3]


def test_the_cpu_time_of_descendants_counts(tmp_path):
    done = tmp_path / "done"
    child = ("import subprocess, sys, time\nwork = 't = time.process_time()\\nwhile time.process_time() < t + 0.3: pass'\n"
             f"subprocess.run([sys.executable, '-c', 'import time\\n' + work])\nexec(work)\nopen({str(done)!r}, 'w')\n"
             "sys.stdin.read()")
    before = cpu_seconds()
    with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE) as process:
        while not done.exists() and process.poll() is None:
            time.sleep(0.02)
        alive = cpu_seconds()
        process.stdin.close()
    assert 0.6 <= alive - before < 30 and cpu_seconds() >= alive


def test_the_table_has_the_totals_and_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("ZSJAX_CAMPAIGN_FOLDER", str(tmp_path))
    (tmp_path / "other.json").write_text("[]")

    def check(case):
        assert case.seed, "two\nlines"

    summaries = [table.short(run_campaign(name, [Case("a", i) for i in range(2)], check)) for name in ("load", "kills")]
    summaries = [of | {"seconds": 5400.0, "cpu_seconds": 1800.0, "codes": {name: 2}}
                 for of, name in zip(summaries, ("x", "y"), strict=True)]
    assert summaries[0]["failures"] == {"a:0": "AssertionError: two"}
    made = table.table(summaries)
    assert "| `load` | 2 | 1 | 1.50 | 0.50 |" in made and "4 cases, 2 failed; 3.00 hours, 1.00 of CPU" in made
    assert "within the 4 hours. Not all are of one code" in made and "Not run: `damage`, `disk`," in made
    assert "beyond the 4 hours. All are of one code" in table.table([summaries[0]] * 3)
    page = f"a\n{table.BEGIN}old\n{table.END}\nz\n"
    assert table.with_table(page, made) == f"a\n{table.BEGIN}\n{made}\n{table.END}\nz\n"
    with pytest.raises(ValueError, match="lacks the lines"):
        table.with_table("a", made)


def test_summaries_are_kept_without_the_paths_of_a_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "HERE", tmp_path / "here")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "RESULTS.md").write_text(table.BEGIN + table.END)
    monkeypatch.setenv("ZSJAX_CAMPAIGN_FOLDER", str(tmp_path / "made"))
    run_campaign("load", [Case("a", 1)], lambda case: {"said": f"{tmp_path / 'made'}/run is in use"})
    table.main([str(tmp_path / "made")])
    assert "FOLDER/run is in use" in (text := (tmp_path / "here" / "results" / "load.json").read_text())
    assert str(tmp_path) not in text


def test_the_table_in_the_results_is_that_of_the_summaries_in_the_repository():
    page = (table.HERE / "RESULTS.md").read_text()
    assert table.with_table(page, table.table(table.summaries(table.HERE / "results"))) == page


def test_the_table_knows_every_campaign():
    files = [path for path in table.HERE.parent.rglob("test_*.py") if path.name not in ("test_campaign.py", "test_table.py")]
    named = {name for path in files for name in re.findall(r'(?:check_all|run_campaign)\("(\w+)"', path.read_text())}
    assert named == set(table.CAMPAIGNS)
