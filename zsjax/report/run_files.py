"""The files of a run that report and viewer show. A file in another form than zsjax writes is one line that names it."""

import math
import pathlib
from collections.abc import Callable, Sequence

from zsjax.errors import InputError, json_value
from zsjax.monitor.writer import read_jsonl

MAX_NUMBER = 1e300  # beyond it charts cannot be computed in float64
_LISTS = ("segments", "noisy", "search_status", "golden_answers")
_NUMBERS = ("reward", "em", "f1", "num_searches")
_COUNTS = ("failed_searches", "searches", "tokens")
_TEXTS = ("stage", "baseline")  # of a line of metrics; a baseline writes its name beside its counts
_SCORES = ("n", "em", "em_se", "contains", "contains_se")  # of an evaluation's row


def read_metrics(workdir: pathlib.Path) -> list[dict]:
    """The lines of metrics.jsonl. Raises InputError as `read_jsonl`, or for a line without stage, step and numbers."""
    return _checked(read_jsonl(workdir / "metrics.jsonl"), workdir / "metrics.jsonl", _metrics_problem)


def read_scores(path: pathlib.Path) -> list[dict]:
    """The rows of evaluation.json or gates.json; [] for an absent file or one that a kill cut.

    Raises InputError for something else than rows of texts and numbers.
    """
    rows = json_or_none(path)
    if not isinstance(rows, list | None):
        raise InputError(f"{path}: a {type(rows).__name__} is not a list of rows; remove the file and evaluate again")
    return _checked(rows or [], path, _scores_problem)


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
    if not isinstance(row.get("stage"), str) or type(row.get("step")) is not int:
        return "the field stage or step is missing"
    return next((f"{name} = {value!r:.100} is not a number" for name, value in row.items()
                 if name not in _TEXTS and not _is_number(value) and value not in ("inf", "-inf", "nan")), "")


def _scores_problem(row) -> str:
    for name, value in row.items():
        if not _is_number(value) and (name in _COUNTS or not isinstance(value, str)):
            return f"{name} = {value!r:.100} is not a {'number' if name in _COUNTS else 'text or a number'}"
    if "data_set" in row and not isinstance(row.get("name"), str):
        return "the field name is missing"
    needed = _SCORES if row.get("data_set") not in (None, "all") else ()  # the paper's table has them
    odd = [name for name in needed if not isinstance(row.get(name), int | float)]
    return f"{odd[0]} = {row.get(odd[0])!r:.100} is not a number" if odd else ""


def trajectory_problem(row: dict) -> str:
    """What is wrong with a record: a field of another kind, or a segment without role and text; "" for nothing."""
    for names, fits, what in ((_LISTS, lambda value: isinstance(value, list), "list"), (_NUMBERS, _is_number, "number")):
        for name in names:
            if name in row and not fits(row[name]):
                return f"{name} = {row[name]!r:.100} is not a {what}"
    odd = [segment for segment in row.get("segments", ()) if not (
        isinstance(segment, dict) and isinstance(segment.get("role"), str) and isinstance(segment.get("text"), str))]
    return f"segment {odd[0]!r:.100} has no role and text" if odd else ""


def _is_number(value) -> bool:
    """Also null. A float may be infinite or NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return True
    return value is None or isinstance(value, int | float) and abs(value) < MAX_NUMBER
