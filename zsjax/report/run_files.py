"""The files of a run that report and viewer show. A file in another form than zsjax writes is one line that names it."""

import pathlib
from collections.abc import Callable, Sequence

from zsjax.errors import InputError, json_value
from zsjax.evaluation.kept_evaluations import is_number, row_problem
from zsjax.monitor.writer import read_jsonl, read_lines

_LISTS = ("segments", "noisy", "search_status", "golden_answers")
_NUMBERS = ("reward", "em", "f1", "num_searches")
_TEXTS = ("stage", "baseline")  # of a line of metrics; a baseline writes its name beside its counts


def read_metrics(workdir: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl. Raises InputError as `read_jsonl`, or for a line without stage, step and numbers."""
    return _checked(read_lines(workdir / "metrics.jsonl"), workdir / "metrics.jsonl", _metrics_problem)


def read_scores(path: pathlib.Path) -> list[dict]:
    """The rows of evaluation.json or gates.json; [] for an absent file or one that a kill cut.

    Raises InputError for something else than rows of texts and numbers.
    """
    rows = json_or_none(path)
    if not isinstance(rows, list | None):
        raise InputError(f"{path}: a {type(rows).__name__} is not a list of rows; remove the file and evaluate again")
    return _checked(rows or [], path, row_problem)


def read_trajectories(path: pathlib.Path) -> list[dict]:
    """The records of a .jsonl file. Raises InputError as `read_jsonl`, or for one that `trajectory_problem` names."""
    return _checked(read_jsonl(path), path, trajectory_problem)


def json_or_none(path: pathlib.Path):
    """The JSON value of a file; None for an absent file or one that is not JSON."""
    try:
        return json_value(path.read_bytes()) if path.exists() else None
    except ValueError:  # written by hand or cut: the report shows the rest
        return None


def _checked(rows: Sequence, where, problem: Callable[[dict], str]) -> list[dict]:
    for number, row in enumerate(rows, 1):
        if what := problem(row) if isinstance(row, dict) else f"a {type(row).__name__} is not an object":
            raise InputError(f"{where}, row {number}: {what}; correct or remove the row")
    return list(rows)


def _metrics_problem(row) -> str:
    return next((f"{name} = {value!r:.100} is not a number" for name, value in row.items()
                 if name not in _TEXTS and not is_number(value) and value not in ("inf", "-inf", "nan")), "")


def trajectory_problem(row: dict) -> str:
    """What is wrong with a record: a field of another kind, or a segment without role and text; "" for nothing."""
    for names, fits, what in ((_LISTS, lambda value: isinstance(value, list), "list"), (_NUMBERS, is_number, "number")):
        for name in names:
            if name in row and not fits(row[name]):
                return f"{name} = {row[name]!r:.100} is not a {what}"
    odd = [segment for segment in row.get("segments", ()) if not (
        isinstance(segment, dict) and isinstance(segment.get("role"), str) and isinstance(segment.get("text"), str))]
    return f"segment {odd[0]!r:.100} has no role and text" if odd else ""
