"""What evaluations say beside each other: tables of a run in the paper's layout, and paired comparisons of runs."""

import pathlib
from collections.abc import Sequence

from zsjax.errors import UserError
from zsjax.evaluate import SCORES, paired_bootstrap
from zsjax.evaluation import tables
from zsjax.monitor.writer import read_jsonl


def write_tables(workdir: pathlib.Path, evaluation: Sequence[dict]) -> list[pathlib.Path]:
    """Writes evaluation/table.{md,csv,html} of rows of `evaluate.summarize`; nothing where no row names a data set."""
    if not any("data_set" in row for row in evaluation):
        return []
    header, rows = tables.paper_table(evaluation)
    texts = {"md": tables.to_markdown(header, rows) + f"\n{tables.NOTE}\n", "csv": tables.to_csv(header, rows),
             "html": tables.to_html(header, rows) + f"<p>{tables.NOTE}</p>\n"}
    paths = []
    for ending, text in texts.items():
        path = workdir / "evaluation" / f"table.{ending}"
        path.write_text(text, encoding="utf-8")
        paths.append(path)
    return paths


def compare_records(first: Sequence[dict], second: Sequence[dict], *, seed: int = 0) -> list[dict]:
    """`evaluate.paired_bootstrap` of every score over all questions, and of every data set's own where there are any."""
    rows = [{"data_set": "all", **paired_bootstrap(first, second, score=score, seed=seed)} for score in SCORES]
    for name in dict.fromkeys(record["data_set"] for record in first if "data_set" in record):
        parts = [[record for record in records if record.get("data_set") == name] for records in (first, second)]
        rows += [{"data_set": name, **paired_bootstrap(*parts, score=score, seed=seed)} for score in SCORES]
    return rows


def compare_runs(first: pathlib.Path, second: pathlib.Path) -> list[dict]:
    """`compare_records` of two runs' evaluations: of the trained policy where a run has one, else of the untrained.

    Raises UserError when a run was not evaluated, or on other questions.
    """
    records = []
    for workdir in (first, second):
        files = [workdir / "evaluation" / f"{name}.jsonl" for name in ("after", "before")]
        path = next((path for path in files if path.exists()), None)
        if path is None:
            raise UserError(f"{workdir} has no evaluation: run `evaluate --workdir {workdir}` first")
        records.append(read_jsonl(path))
    try:
        return compare_records(*records)
    except ValueError as error:
        raise UserError(f"{first} and {second} cannot be compared: {error}") from error


def comparison_table(rows: Sequence[dict]) -> str:
    """The comparison as Markdown."""
    cells = [[row["data_set"], row["score"], str(row["n"]), f"{row['first']:.3f}", f"{row['second']:.3f}",
              f"{row['difference']:+.3f}", f"{row['low']:+.3f} to {row['high']:+.3f}", f"{row['p']:.3g}"] for row in rows]
    header = ["data set", "score", "n", "first", "second", "second - first", "95 % interval", "p"]
    return tables.to_markdown(header, cells)
