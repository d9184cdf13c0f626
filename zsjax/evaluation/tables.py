"""Tables of the seven benchmarks in the layout of ZeroSearch's main table, its published rows beside ours.

The published figures are exact match in percent from the authors' second version (arXiv 2505.04588v2), with Google at
test time. Read them with care. The authors' code counts an answer as exact when it contains a gold answer: compare them
with our rows by containment. They are of 500 questions a set and 125 of Bamboogle, in rows marked * 72 of Bamboogle (the
last batch was dropped). The standard error of an average is about 1.
"""

import csv
import html
import io
import math
import re
from collections.abc import Mapping, Sequence

from zsjax.errors import printable

DATA_SETS = {"nq": "NQ", "triviaqa": "TriviaQA", "popqa": "PopQA", "hotpotqa": "HotpotQA", "2wiki": "2Wiki",
             "musique": "MuSiQue", "bamboogle": "Bamboogle"}
ALIASES = {"natural_questions_open": "nq", "natural_questions": "nq", "trivia_qa": "triviaqa", "hotpot_qa": "hotpotqa",
           "2wikimultihopqa": "2wiki", "2wikimultihop": "2wiki"}
PUBLISHED = {
    "Qwen2.5-7B": """
        Direct 11.60 35.60 1.20 16.40 22.20 4.80 14.40
        CoT 12.80 35.60 3.80 16.20 22.60 6.60 24.00
        RAG 27.40 58.20 17.80 25.80 23.20 9.40 16.80
        RA-Agent 21.20 40.20 8.80 19.60 19.60 7.60 28.00
        Search-o1 19.40 40.60 11.40 17.00 27.00 8.60 30.40
        R1-base* 27.60 47.40 27.40 21.00 29.20 9.80 27.78
        R1-instruct* 27.00 45.80 24.20 21.60 27.80 8.40 25.00
        Search-R1-base* 43.40 61.40 54.60 31.20 37.20 18.20 30.56
        Search-R1-instruct* 42.40 63.40 51.60 32.80 33.20 17.40 26.39
        ZeroSearch-base* 42.40 66.40 60.40 32.00 34.00 18.00 33.33
        ZeroSearch-instruct* 43.60 65.20 48.80 34.60 35.20 18.40 27.78""",
    "Qwen2.5-3B": """
        Direct 12.40 30.60 5.60 16.00 19.20 4.40 16.80
        CoT 15.00 33.60 3.60 16.20 18.00 3.60 12.80
        RAG 31.60 58.00 15.20 24.20 23.20 8.20 15.20
        RA-Agent 15.20 28.40 6.60 12.60 16.60 2.60 13.60
        Search-o1 16.60 31.00 8.20 14.80 22.40 5.20 22.40
        R1-base* 14.20 34.80 20.80 19.60 28.40 6.40 5.56
        R1-instruct* 19.80 33.00 19.40 19.40 26.40 4.40 11.11
        Search-R1-base* 40.60 60.00 44.20 29.20 32.00 11.20 12.50
        Search-R1-instruct* 35.80 55.80 26.00 33.20 26.00 7.60 12.50
        ZeroSearch-base* 43.00 61.60 41.40 33.80 34.60 13.00 13.89
        ZeroSearch-instruct* 41.40 57.40 44.80 27.40 30.00 9.80 11.11""",
    "Llama-3.2-3B": """
        Direct 16.20 29.60 7.40 12.60 9.20 2.00 8.00
        CoT 26.20 44.40 2.80 16.00 10.20 5.80 21.60
        RAG 30.00 57.60 26.40 23.40 17.60 9.60 11.20
        RA-Agent 22.40 36.20 11.40 16.60 21.00 5.60 26.40
        Search-o1 24.20 48.40 8.80 19.40 17.40 6.00 32.00
        R1-base* 28.40 44.20 30.00 22.80 28.40 7.00 11.11
        R1-instruct* 35.00 52.20 27.60 21.60 17.80 11.40 20.83
        Search-R1-base* 41.20 60.00 44.00 29.60 31.60 13.60 19.44
        Search-R1-instruct* 37.60 53.60 44.20 21.00 20.40 8.80 27.78
        ZeroSearch-base* 43.40 63.80 48.40 32.20 35.60 13.80 15.28
        ZeroSearch-instruct* 40.20 58.00 46.00 22.80 21.40 10.40 18.06""",
}
NOTE = ("Exact match in percent. Published rows: arXiv 2505.04588v2, Google at test time, an answer counts as exact when "
        "it contains a gold answer; * 72 of Bamboogle's 125 questions. n: questions of a set.")
PUBLISHED_N = 500  # of each set but Bamboogle


def canonical(name: str) -> str:
    """A data set's name in `DATA_SETS`, if it has one: "tfds:trivia_qa" -> "triviaqa"."""
    name = name.lower().removeprefix("tfds:").removeprefix("searchr1_").partition("#")[0].partition("/")[0]
    return ALIASES.get(name, name)


def published_rows() -> list[dict]:
    """[{"method": "Qwen2.5-7B Direct", "nq": 11.6, "nq_n": 500, ...}] in percent."""
    rows = []
    for model, text in PUBLISHED.items():
        for line in text.split("\n")[1:]:
            method, *numbers = line.split()
            counts = {f"{name}_n": PUBLISHED_N for name in DATA_SETS} | {"bamboogle_n": 72 if "*" in method else 125}
            rows.append({"method": f"{model} {method}", **dict(zip(DATA_SETS, map(float, numbers), strict=True)), **counts})
    return rows


def failed_in(rows: Sequence[Mapping]) -> int:
    """Failed searches of rows of `evaluate.summarize`; a total over data sets repeats those of its sets."""
    return sum(row.get("failed_searches") or 0 for row in rows if row.get("data_set") != "all")


def our_rows(evaluation: Sequence[Mapping]) -> list[dict]:
    """Rows of `evaluate.summarize` (of several names and data sets) as rows of this table, in percent.

    Each name gives a row by containment, as the published rows count, and one by strict exact match. Each score has its
    standard error, NAME_se, and its number of questions, NAME_n. The name of a row counts failed searches.
    """
    rows = {}
    for entry in evaluation:
        if entry.get("data_set", "all") == "all":  # no set, or all of them together
            continue
        for score, label in (("contains", "containment"), ("em", "strict")):
            row = rows.setdefault((entry["name"], label), {"method": f"ours, {entry['name']} ({label})"})
            name = canonical(str(entry["data_set"]))
            row[name], row[f"{name}_se"], row[f"{name}_n"] = 100 * entry[score], 100 * entry[f"{score}_se"], entry["n"]
    for name, label in rows:
        failed = failed_in([entry for entry in evaluation if entry["name"] == name])
        rows[name, label]["method"] += f", {failed} searches FAILED" if failed else ""
    return list(rows.values())


def paper_table(evaluation: Sequence[Mapping]) -> tuple[list[str], list[list[str]]]:
    """(header, rows of cells): our rows first, then the published ones. Avg needs all seven data sets; n is the number of
    questions of the first set, and of those that differ from it."""
    ours = our_rows(evaluation)
    named = {name for row in ours for name in row if name != "method" and not name.endswith(("_se", "_n"))}
    more = sorted(named - DATA_SETS.keys())
    columns = [*DATA_SETS, *more]
    cells = []
    for row in [*ours, *published_rows()]:
        scores = [row.get(name) for name in DATA_SETS]
        average = None if None in scores else sum(scores) / len(scores)
        errors = [row.get(f"{name}_se") for name in DATA_SETS]
        error = None if None in errors or average is None else math.sqrt(sum(e * e for e in errors)) / len(errors)
        cells.append([row["method"], *(_cell(row.get(name), row.get(f"{name}_se")) for name in columns),
                      _cell(average, error), _counts({name: row[f"{name}_n"] for name in columns if f"{name}_n" in row})])
    return ["Method", *(DATA_SETS.get(name, name) for name in columns), "Avg", "n"], cells


def _counts(of_set: Mapping[str, int]) -> str:
    """"500 (Bamboogle 125)": the first set's number of questions, and those that differ from it."""
    first, *_ = of_set.values()
    others = [f"{DATA_SETS.get(name, name)} {n}" for name, n in of_set.items() if n != first]
    return f"{first} ({', '.join(others)})" if others else str(first)


def _cell(value, error):
    if value is None:
        return "–"
    return f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f}"


def to_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; "|" in cells is escaped."""

    def line(cells):
        return "| " + " | ".join(" ".join(printable(cell).split()).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(header), line(["---"] * len(header)), *map(line, rows)]) + "\n"


def to_csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of comma-separated values; a text that a spreadsheet would take for a formula gets an apostrophe."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([[_no_formula(printable(cell)) for cell in row]
                                                    for row in [header, *rows]])
    return out.getvalue()


def _no_formula(cell: str) -> str:
    number = re.fullmatch(r"[+-]?\d+(\.\d+)?( ± \d+(\.\d+)?)?", cell)
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t")) and not number else cell


def to_html(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A <table>; all text is escaped."""

    def cells(tag, row):
        return "".join(f"<{tag}>{html.escape(printable(cell))}</{tag}>" for cell in row)

    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f"<table><thead><tr>{cells('th', header)}</tr></thead><tbody>{body}</tbody></table>\n"
