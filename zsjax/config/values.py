"""Values of fields, read by the type that the field declares: from Python objects or from the text of a command line."""

import ast
import dataclasses
import math
import numbers
import pathlib
import types
import typing
from collections.abc import Callable, Mapping


@dataclasses.dataclass(frozen=True)
class Text:
    """A value that came as text from the command line."""

    text: str

    def __repr__(self):
        return repr(self.text)


def read_value(value, kind):
    """`value` as the annotation `kind`: bool, int, float, str, dict, tuple[KIND, ...] or KIND | None.

    Raises:
      ValueError: the value is of another type; the message says what to give.
    """
    value = native(value)
    if typing.get_origin(kind) is types.UnionType:
        return _read_optional(value, kind)
    if typing.get_origin(kind) is tuple:
        value = _items(value.text) if isinstance(value, Text) else value
        if not isinstance(value, list | tuple):
            raise ValueError("give a list")
        return tuple(read_value(item, typing.get_args(kind)[0]) for item in value)
    if kind is dict:
        value = _literal(value.text) if isinstance(value, Text) else value
        if not isinstance(value, Mapping):
            raise ValueError("give a dict")
        return _plain(value)
    return _read_text(value) if kind is str else _read_scalar(value, kind)


def native(value):
    """A ConfigDict, numpy or jax value as Python's own type; other values unchanged."""
    method = next((name for name in ("to_dict", "tolist") if hasattr(value, name)), None)
    return value if method is None else getattr(value, method)()


def text_reader(kind: type) -> Callable:
    """text -> a value of this type, which raises ValueError; types other than bool, int and float stay text."""
    return _TEXT_READERS.get(kind, str)


def read_bool(text: str) -> bool:
    """true, false, 1 or 0, in any case."""
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError("not true or false")
    return text.lower() in ("true", "1")


_TEXT_READERS: dict[type, Callable] = {bool: read_bool, int: int, float: float}


def _read_optional(value, kind):
    if value is None or (isinstance(value, Text) and value.text.lower() in ("none", "null")):
        return None
    (kind,) = [inner for inner in typing.get_args(kind) if inner is not type(None)]
    try:
        return read_value(value, kind)
    except ValueError as error:
        raise ValueError(f"{error}, or None") from error


def _read_text(value):
    if isinstance(value, Text):
        quoted = len(value.text) > 1 and value.text[0] == value.text[-1] and value.text[0] in "'\""
        return value.text[1:-1] if quoted else value.text
    if isinstance(value, str | pathlib.PurePath):
        return str(value)
    raise ValueError("give text")


def _read_scalar(value, kind):
    if isinstance(value, Text):
        try:
            return _TEXT_READERS[kind](value.text)
        except ValueError:
            value = _literal(value.text)  # such as 0x10
    if isinstance(value, bool) != (kind is bool):  # True is an int, too
        value = None
    if kind is bool and value is not None:
        return value
    if kind is int and isinstance(value, numbers.Integral):
        return int(value)
    if kind is float and isinstance(value, numbers.Real) and _fits_float(value):
        return float(value)
    raise ValueError({bool: "give true or false", int: "give a whole number", float: "give a number"}[kind])


def _fits_float(value):
    try:
        float(value)
    except OverflowError:
        return False
    return True


def _items(text):
    """The items of a list on the command line: a Python literal, or texts with commas between them."""
    value = _literal(text.strip())
    if isinstance(value, list | tuple):
        return value
    return [Text(part.strip()) for part in text.strip("()[] ").split(",") if part.strip()]


def _literal(text):
    """The Python literal of a text, or the text itself; true, false and null are read as well."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False, "none": None, "null": None}.get(text.lower(), text)


def _plain(value, depth=0):
    """Options of dict fields as JSON would give them back, so that a resumed run compares equal."""
    value = _literal(value.text) if isinstance(value, Text) else native(value)
    if depth > 20:
        raise ValueError("give fewer levels of lists and dicts")
    if isinstance(value, Mapping):
        return {str(name): _plain(item, depth + 1) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("give finite numbers in it")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"give numbers, texts, lists and dicts in it, not a {type(value).__name__}")
