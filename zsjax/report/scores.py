"""The report's tables of scores: the evaluation that the config asks for, and what else was evaluated in the folder."""

from zsjax.errors import InputError
from zsjax.evaluation import tables
from zsjax.evaluation.kept import TRAINED

_SCORES = {"em": "Exact match", "f1": "F1", "contains": "Contains"}
_OTHERS = {"reach": "Gold shown", "searches": "Searches", "on_path": "On path", "answered": "Answered", "tokens": "Tokens",
           "n": "Questions"}


def is_number(value) -> bool:
    return isinstance(value, int | float)


def evaluation_tables(rows, folder) -> dict | None:
    """The evaluation that the config asks for, whose it is, and what else was evaluated in this folder; None: nothing."""
    shown = {row.get("evaluation") for row in rows}
    try:
        others = [evaluation for evaluation in folder.all() if evaluation.name not in shown]
        warning = _whose(rows, folder.trained_fingerprint())
    except InputError as error:
        others, warning = [], str(error)
    if not rows and not others and not warning:
        return None
    more = [row for evaluation in reversed(others) for row in evaluation.rows]
    return {"warning": warning, "table": rows and _table(rows), "others": others and _table(more)}


def _whose(rows, trained: str | None) -> str:
    """What a reader must be told before the table; "" where it holds the policy that the run has trained."""
    failed = tables.failed_in(rows)
    failures = f"{failed} searches of this evaluation FAILED. Evaluate again." if failed else ""
    marked = [row for row in rows if "fingerprint" in row]
    if trained is not None and not any(row["fingerprint"] == trained for row in marked):
        what = "Its rows are of other policies." if rows else ""
        return f"The policy that this run has trained (models/policy) was not evaluated. {what} {failures}".strip()
    if marked and trained is None and all(row.get("role") != TRAINED for row in marked):
        return f"This run has no trained policy: every row is of the untrained base or of no policy. {failures}".strip()
    return failures


def _table(rows) -> dict:
    """Columns {name: title} of scores with errors and of other figures, and rows, of which some go on with the one above."""
    there = lambda columns: {name: title for name, title in columns.items() if any(name in row for row in rows)}
    others = there(_OTHERS)
    if any(row.get("failed_searches") for row in rows):
        others["failed_searches"] = "Failed searches"
    same = lambda row, above: all(row.get(name) == above.get(name) for name in ("name", "evaluation"))
    return {"scores": there(_SCORES), "others": others,
            "rows": [(row, index > 0 and same(row, rows[index - 1])) for index, row in enumerate(rows)]}
