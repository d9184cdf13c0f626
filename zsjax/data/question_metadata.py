"""What a question's metadata say of it: its right queries, and the data set or number of hops that tables group it by."""

import json
import math
from collections.abc import Mapping

import numpy as np

from zsjax.types import Question


def right_queries(question: Question) -> list[str]:
    """The texts of metadata "queries", [] where there are none; parquet fills absent ones with null."""
    queries = question.metadata.get("queries")
    queries = [queries] if isinstance(queries, str) else [] if queries is None else queries
    return [query for query in queries if isinstance(query, str)]


def group_of(question: Question) -> tuple[str, object]:
    """("data_set", name), ("hops", number), or ("hops", "all"): the question's row of a table."""
    for name in ("data_set", "hops"):
        if (label := label_of(question.metadata.get(name))) is not None:
            return name, label
    return "hops", "all"


def data_set_of(question: Question) -> dict:
    """{"data_set": name} for a record of a question that has one, else {}."""
    kind, label = group_of(question)
    return {"data_set": label} if kind == "data_set" else {}


def label_of(value) -> str | int | float | None:
    """A metadata value as a table shows it, a JSON value that can be hashed; None for null, NaN, "" and [].

    Parquet gives whole numbers of a column with nulls as floats, and lists as numpy arrays. A list of one gives its item.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return json.dumps(value, default=str, sort_keys=True, ensure_ascii=False) if value else None
    if isinstance(value, list | tuple | set):
        labels = [label for label in map(label_of, value) if label is not None]
        return labels[0] if len(labels) == 1 else ", ".join(map(str, labels)) or None
    if isinstance(value, float):
        return None if math.isnan(value) else int(value) if value.is_integer() else value
    return value or None if isinstance(value, str) else value if isinstance(value, int | None) else str(value)
