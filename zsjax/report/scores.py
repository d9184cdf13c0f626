"""The report's tables of scores: the evaluation of the config, and the other evaluations in the folder."""

from zsjax.errors import InputError
from zsjax.evaluation import tables
from zsjax.evaluation.kept_evaluations import TRAINED

_SCORES = {"em": "Exact match", "f1": "F1", "contains": "Contains"}
_OTHERS = {"reach": "Gold shown", "searches": "Searches", "on_path": "On path", "answered": "Answered", "tokens": "Tokens",
           "n": "Questions"}


def evaluation_tables(rows, folder) -> dict | None:
    """The evaluation of the config, a warning where it is of another policy, and other evaluations; None without any."""
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
    """A warning before the table; "" where the table holds the policy that the run has trained."""
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
    """Columns {name: title} of scores with errors and of other figures; rows, each with whether it continues the last."""
    others = _present(_OTHERS, rows)
    if any(row.get("failed_searches") for row in rows):
        others["failed_searches"] = "Failed searches"
    names = [(row.get("name"), row.get("evaluation")) for row in rows]
    return {"scores": _present(_SCORES, rows), "others": others,
            "rows": [(row, index > 0 and names[index] == names[index - 1]) for index, row in enumerate(rows)]}


def _present(columns, rows) -> dict:
    return {name: title for name, title in columns.items() if any(name in row for row in rows)}
