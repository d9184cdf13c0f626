"""The config of a run: how it is read and written as text.

An experiment file has `get_config(arg)` and returns an `ml_collections.ConfigDict` whose fields override the defaults
of `zsjax.config.fields`; `resolve` turns it into those frozen dataclasses and reports every problem at once, before any
device is touched. What a field may hold beyond its type is checked by `zsjax.config.checks`. Values on the command
line are Python literals; texts need no quotes, and lists of texts no brackets.
"""

import ast
import dataclasses
import difflib
import json
import math
import numbers
import pathlib
import types
import typing
from collections.abc import Mapping
from typing import Any

from zsjax.config.declare import leaves, renamed
from zsjax.config.fields import Config
from zsjax.errors import ConfigError, Problem


def parse_arg(arg: str | None, lazy: bool = False, **defaults):
    """Parses what follows the colon of `--config F.py:arg`, in big_vision's manner.

    "lr=0.1,smoke" sets two keys: a key alone is True. The first item may be a value alone, for the first key. Each
    value is read as the type of its default; booleans are "true", "false", "1" or "0". A default may be given as
    (default, function of the text), which also serves for defaults of None.

    Args:
      arg: the text, None or "" for the defaults.
      lazy: keep unknown keys, as text, instead of refusing them.
      **defaults: key -> default.

    Returns:
      ml_collections.ConfigDict of all keys.

    Raises:
      ConfigError: an unknown key or a value that does not read as its type; all of them at once.
    """
    import ml_collections

    result, problems = ml_collections.ConfigDict(type_safe=False), []
    readers = {}
    for key, default in defaults.items():
        if isinstance(default, tuple) and len(default) == 2 and callable(default[1]):
            result[key], readers[key] = default
        else:
            result[key], readers[key] = default, _ARG_READERS.get(type(default), str)
    for index, item in enumerate(arg.split(",") if arg else ()):
        key, equals, text = item.strip().partition("=")
        if not equals:
            if index == 0 and key not in defaults and defaults and readers[next(iter(defaults))] is not _read_bool:
                key, text = next(iter(defaults)), key
            else:
                text = "true"
        if key not in defaults:
            if lazy:
                result[key] = text
            else:
                problems.append(Problem(f"config argument {key!r}", text, "unknown", _mend_name(key, defaults)))
            continue
        try:
            result[key] = readers[key](text)
        except ValueError as error:
            problems.append(Problem(f"config argument {key!r}", text, str(error) or "cannot be read",
                                    f"the default is {result[key]!r}"))
    if problems:
        raise ConfigError(problems)
    return result


def resolve(config=None, overrides: Mapping[str, str] | None = None, *, check: bool = True,
            files: bool = True) -> Config:
    """The frozen `Config` of what an experiment returned.

    Args:
      config: ml_collections.ConfigDict, a mapping, or a `Config`; None is all defaults.
      overrides: dotted field -> text, from `--config.train.steps=5`; they win. Text is read by the field's type.
      check: also check values and their combinations (`zsjax.config.checks`), not only names and types.
      files: also check that the files and folders named are there.

    Raises:
      ConfigError: with every problem.
    """
    if isinstance(config, Config):
        config = dataclasses.asdict(config)
    tree = {} if config is None else _native(config)
    if not isinstance(tree, Mapping):
        raise ConfigError([Problem("config", tree, f"a {type(tree).__name__}", "give a ConfigDict or a dict of fields")])
    problems: list[Problem] = []
    tree = _with_overrides(tree, overrides or {}, problems)
    resolved = read_fields(Config(), tree, "", problems)
    if check:
        from zsjax.config import checks

        # Fields that did not read hold their defaults here, so what follows speaks of other fields only.
        wrong = {problem.field for problem in problems}
        problems += [problem for problem in checks.find_problems(resolved, files=files) if problem.field not in wrong]
    if problems:
        raise ConfigError(problems)
    return resolved


def to_json(config: Config) -> str:
    """The config as JSON, every field, indented, ending in a newline."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def flatten(tree, prefix="") -> dict[str, Any]:
    """{dotted name: value} of nested dicts."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


@dataclasses.dataclass(frozen=True)
class _Text:
    """A value that came as text from the command line."""

    text: str

    def __repr__(self):
        return repr(self.text)


def _with_overrides(tree, overrides, problems):
    tree, known = {str(name): value for name, value in tree.items()}, leaves(Config)
    for field, text in overrides.items():
        *path, last = field.split(".")
        node = tree
        for depth, name in enumerate(path):
            # A key of a dict field is set beside those that the field has by default.
            default = known.get(".".join(path[:depth + 1]))
            child = node.get(name, {} if default is None else default.default)
            if not isinstance(child, Mapping):
                problems.append(Problem(field, text, f"{name!r} has no fields", "give a field's own name"))
                break
            node[name] = dict(child)
            node = node[name]
        else:
            node[last] = _Text(text)
    return tree


def _native(value):
    """Python's own kind of a ConfigDict, or of what numpy or jax holds; other values as they are."""
    method = next((name for name in ("to_dict", "tolist") if hasattr(value, name)), None)
    return value if method is None else getattr(value, method)()


def read_fields(defaults, tree, prefix, problems):
    """The dataclass `defaults` with the fields of a mapping; what cannot be read keeps its default and is a problem."""
    hints, values = typing.get_type_hints(type(defaults)), {}
    for name, value in tree.items():
        field, value = f"{prefix}{name}", _native(value)
        if name not in hints:
            now = renamed(Config).get(field)
            fix = f"its name is {now} now" if now else _mend_name(str(name), hints, prefix)
            problems.append(Problem(field, value, "unknown field", fix))
        elif dataclasses.is_dataclass(hints[name]):
            if isinstance(value, Mapping):
                values[name] = read_fields(getattr(defaults, name), value, f"{field}.", problems)
            else:
                fields = ", ".join(typing.get_type_hints(hints[name]))
                problems.append(Problem(field, value, "has fields and takes no value",
                                        f"set one of {field}.{{{fields}}}"))
        else:
            try:
                values[name] = _read(value, hints[name])
            except ValueError as error:
                problems.append(Problem(field, value, "wrong type", str(error)))
    return dataclasses.replace(defaults, **values)


def _read(value, kind):
    """`value` as the annotation `kind`; ValueError says what is needed."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    value = _native(value)
    if origin is types.UnionType:
        if value is None or (isinstance(value, _Text) and value.text.lower() in ("none", "null")):
            return None
        (kind,) = [k for k in inner if k is not type(None)]
        try:
            return _read(value, kind)
        except ValueError as error:
            raise ValueError(f"{error}, or None") from error
    if origin is tuple:
        value = _items(value.text) if isinstance(value, _Text) else value
        if not isinstance(value, list | tuple):
            raise ValueError("give a list")
        return tuple(_read(item, inner[0]) for item in value)
    if kind is dict:
        value = _literal(value.text) if isinstance(value, _Text) else value
        if not isinstance(value, Mapping):
            raise ValueError("give a dict")
        return _plain(value)
    if kind is str:
        if isinstance(value, _Text):
            quoted = len(value.text) > 1 and value.text[0] == value.text[-1] and value.text[0] in "'\""
            return value.text[1:-1] if quoted else value.text
        if isinstance(value, str | pathlib.PurePath):
            return str(value)
    elif isinstance(value, _Text):
        try:
            return _ARG_READERS[kind](value.text)
        except ValueError:
            value = _literal(value.text)  # such as 0x10
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if kind is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            pass
    raise ValueError(f"give {_KINDS[kind]}")


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _read_bool(text):
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError("not true or false")
    return text.lower() in ("true", "1")


_ARG_READERS = {bool: _read_bool, int: int, float: float, str: str}


def _items(text):
    """The items of a list on the command line: a Python literal, or texts with commas between them."""
    value = _literal(text.strip())
    if isinstance(value, list | tuple):
        return value
    return [_Text(part.strip()) for part in text.strip("()[] ").split(",") if part.strip()]


def _literal(text):
    """The Python literal that a text is, or the text itself; true, false and null are read as well."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return {"true": True, "false": False, "none": None, "null": None}.get(text.lower(), text)


def _plain(value, depth=0):
    """Options of dict fields as JSON would give them back, so that a resumed run compares equal."""
    value = _literal(value.text) if isinstance(value, _Text) else _native(value)
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


def _mend_name(name, known, prefix=""):
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    return f"known here: {', '.join(known)}"
