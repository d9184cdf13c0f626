"""Rows of question files, in the forms of published data sets.

The common form is FlashRAG's: {"id", "question", "golden_answers": [...], "metadata": {...}}. Rows of Search-R1, ZeroSearch
and verl (`reward_model.ground_truth`, `extra_info`, `prompt`, `data_source`), TriviaQA, PopQA, MuSiQue, HotpotQA and
NQ-open are read, too.
"""

import dataclasses
import datetime
import decimal
import json
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from zsjax.errors import InputError
from zsjax.types import Question, whole_text

_ID = ("id", "_id", "question_id", "qid", "QuestionId")
_QUESTION = ("question", "Question", "query")
_ANSWERS = ("answers", "answer", "Answer", "possible_answers")  # in rows without golden_answers
_INSIDE = ("target", "ground_truth", "value", "Value", "text", "answer", "answers")  # of an answer that is an object


def question_of(row: Mapping, where: str) -> Question:
    """The question of a row; values may be numpy's.

    Args:
      row: field -> value. Null and NaN count as absent.
      where: file and line, which begin an error.

    Returns:
      A question whose `key` is its id (see `with_unique_keys`). Blank and null golds are left out, perhaps all of them.
      metadata["data_set"] and ["split"] are the row's data_source and extra_info.split, unless its metadata have them.

    Raises:
      InputError: one line with `where`, field and value.
    """
    given, row = row, {str(name): value for name, value in plain(row).items() if value is not None}
    extra = row["extra_info"] if isinstance(row.get("extra_info"), dict) else {}
    metadata = _metadata(row, where)
    for name, value in (("split", extra.get("split")), ("data_set", row.get("data_source"))):
        if isinstance(value, str):
            metadata.setdefault(name, value)
    return Question(_id(row, extra, given, where), _question(row, extra, given, where), _golds(row, extra, given, where),
                    metadata)


def plain(value):
    """A JSON value: no arrays, bytes or times; null for NaN; U+FFFD for lone surrogates; objects without nulls."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, Mapping):
        inside = {str(name): plain(each) for name, each in value.items()}
        return {name: each for name, each in inside.items() if each is not None}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, decimal.Decimal):
        return plain(float(value))
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return str(value)
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def _refuse(given, field, where, must):
    what = "is missing" if field not in given else f"is {given[field]!r:.200}"
    raise InputError(f"{where}: field {field!r} {what}; it must be {must}")


def _first(row, names):
    return next(((name, row[name]) for name in names if name in row), (names[0], None))


def _id(row, extra, given, where):
    field, value = _first(row, _ID)
    if value is None and "index" in extra:
        value = "_".join(str(extra[name]) for name in ("split", "index") if name in extra)
    if isinstance(value, float) and value.is_integer():  # pandas makes floats of integers beside nulls
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        _refuse(given, field, where, "a non-empty string")
    return value


def _question(row, extra, given, where):
    field, value = _first(row, _QUESTION)
    if value is None:
        value = extra.get("question") or _asked(row.get("prompt"))
    if not isinstance(value, str) or not value.strip():
        _refuse(given, field, where, "a non-empty string")
    return value


def _asked(prompt):
    """The question at the end of a prompt, text or messages, as Search-R1 and verl write them."""
    if isinstance(prompt, list):
        said = [message.get("content") for message in prompt if isinstance(message, dict) and message.get("role") == "user"]
        prompt = said[-1] if said else None
    return prompt.rpartition("Question:")[2].strip() if isinstance(prompt, str) else None


def _golds(row, extra, given, where):
    if "golden_answers" in row:
        field, value = "golden_answers", row["golden_answers"]
        found = _texts(value)
    else:
        reward = row.get("reward_model")
        truth = reward.get("ground_truth") if isinstance(reward, dict) else None
        field, value = ("reward_model", truth) if truth is not None else _first(row, _ANSWERS)
        if value is None:
            field, value = ("extra_info", extra["answer"]) if "answer" in extra else ("golden_answers", None)
        found = _texts(value)
        if found:
            found = list(dict.fromkeys([*found, *(_texts(row.get("answer_aliases")) or ())]))
    if value is None and given.keys() & {"golden_answers", *_ANSWERS}:
        return ()  # null: the file has no answer
    if found is None:
        _refuse(given, field, where, "a text or a list of texts")
    return tuple(gold for gold in found if gold.strip())


def _texts(value) -> list[str] | None:
    """The texts in an answer of any form; None where something in it is neither text nor number."""
    if isinstance(value, dict):
        texts = _texts(_first(value, _INSIDE)[1])
        aliases = _texts(_first(value, ("aliases", "Aliases"))[1] or [])
        return None if texts is None or aliases is None else texts + aliases
    if isinstance(value, list):
        parts = [_texts(each) for each in value if each is not None]
        return None if None in parts else [text for part in parts for text in part]
    if isinstance(value, str) and value.startswith("["):  # PopQA writes its lists as JSON
        try:
            inside = json.loads(value)
        except (ValueError, RecursionError):
            inside = None
        if isinstance(inside, list) and all(isinstance(each, str) for each in inside):
            return inside
        if re.fullmatch(r"\[\s*'.*'\s*\]", value, re.DOTALL):
            return None  # a list in Python's notation, which is not one answer
    if isinstance(value, str):
        return [value]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return [str(int(value) if isinstance(value, float) and value.is_integer() else value)]
    return None


def _metadata(row, where) -> dict:
    value = row.get("metadata", {})
    if isinstance(value, str):
        try:
            value = plain(json.loads(value or "{}"))
        except (ValueError, RecursionError):
            pass
    if isinstance(value, list):  # parquet's maps are lists of pairs
        pairs = all(isinstance(each, list) and len(each) == 2 and isinstance(each[0], str) for each in value)
        value = {name: each for name, each in value if each is not None} if pairs else {"items": value}
    if not isinstance(value, dict):
        raise InputError(f"{where}: field 'metadata' is {value!r:.200}; it must be an object")
    return dict(value)


def with_unique_keys(questions: Sequence[Question]) -> list[Question]:
    """The questions with unique keys: the id, numbered ("test_0#2") where an earlier question has it.

    Ids repeat in joined files, whose rows are still different questions.
    """
    taken, repeats, unique = {question.id for question in questions}, {}, []
    for question in questions:
        number = repeats[question.id] = repeats.get(question.id, 0) + 1
        key = question.id
        if number > 1:
            while (key := f"{question.id}#{number}") in taken:
                number += 1
            taken.add(key)
        unique.append(question if key == question.key else dataclasses.replace(question, key=key))
    return unique
