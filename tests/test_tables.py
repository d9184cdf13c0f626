"""Tables in the paper's layout: the published rows are complete, ours stand beside them, and text cannot break them."""

import csv
import io

import pytest

from zsjax.evaluation import tables

# The averages that the paper's table prints.
AVERAGES = {
    "Qwen2.5-7B": [15.17, 17.37, 25.51, 20.71, 22.06, 27.17, 25.69, 39.51, 38.17, 40.93, 39.08],
    "Qwen2.5-3B": [15.00, 14.69, 25.09, 13.66, 17.23, 18.54, 19.07, 32.81, 28.13, 34.47, 31.70],
    "Llama-3.2-3B": [12.14, 18.14, 25.11, 19.94, 22.31, 24.56, 26.63, 34.21, 30.48, 36.07, 30.98],
}


def test_published_rows_reproduce_the_printed_averages():
    rows = tables.published_rows()
    for model, averages in AVERAGES.items():
        of_model = [row for row in rows if row["method"].startswith(model + " ")]
        for row, average in zip(of_model, averages, strict=True):
            assert sum(row[name] for name in tables.DATA_SETS) / 7 == pytest.approx(average, abs=0.011), row


def evaluation(names=tuple(tables.DATA_SETS)):
    return [{"name": "after | training", "data_set": name, "hops": "all", "n": 10, "em": 0.25, "em_se": 0.01,
             "contains": 0.5, "contains_se": 0.02} for name in names]


def test_our_rows_stand_first_with_their_errors():
    header, rows = tables.paper_table(evaluation())
    assert header == ["Method", *tables.DATA_SETS.values(), "Avg", "n"] and len(rows) == 2 + 33
    assert rows[0][0] == "ours, after | training (containment)" and rows[0][1] == "50.00 ± 2.00"
    assert rows[0][-2:] == ["50.00 ± 0.76", "10"]  # 2 / sqrt(7)
    assert rows[1][-2] == "25.00 ± 0.38" and rows[2][1] == "11.60"
    header, rows = tables.paper_table(evaluation(["tfds:trivia_qa", "mine"]))
    assert header[-3:] == ["mine", "Avg", "n"] and rows[0][2] == "50.00 ± 2.00" and rows[0][1] == rows[0][-2] == "–"
    assert [rows[i][-1] for i in (2, -1)] == ["500 (Bamboogle 125)", "500 (Bamboogle 72)"]
    uneven = evaluation(["nq", "bamboogle"])
    uneven[1]["n"] = 7
    assert tables.paper_table(uneven)[1][0][-1] == "10 (Bamboogle 7)"
    assert tables.our_rows([{"name": "x", "hops": 2, "em": 1, "em_se": 0}]) == []


def test_formats():
    header, rows = ["a", "b"], [["x | y\nz", "<b>"]]
    assert tables.to_markdown(header, rows) == "| a | b |\n| --- | --- |\n| x \\| y z | <b> |\n"
    assert list(csv.reader(io.StringIO(tables.to_csv(header, rows)))) == [header, *rows]
    assert "&lt;b&gt;" in tables.to_html(header, rows) and "<b>" not in tables.to_html(header, rows)


@pytest.mark.parametrize(("cell", "written"), [
    ('+1 +hyperlink("http:x","y")', True), ("-1 +cmd", True), ("+1.2.3", True), ("=1", True), ("-", True), ("+.5 ± x", True),
    ("-0.12", False), ("+3", False), ("-0.12 ± 0.03", False), ("1 +1", False)])
def test_what_a_spreadsheet_takes_for_a_formula_is_marked(cell, written):
    (_,), (found,) = csv.reader(io.StringIO(tables.to_csv(["x"], [[cell]])))
    assert found == ("'" * written + cell)
