"""The config of a run: how it is read, compared and written.

An experiment file has `get_config(arg)` and returns an `ml_collections.ConfigDict` whose fields override the defaults
of `zsjax.config.fields`; `resolve` turns it into those frozen dataclasses and reports every problem at once, before any
device is touched. What a field may hold beyond its type is checked by `zsjax.config.checks`.
"""

import dataclasses
import difflib
import json
import numbers
import os
import pathlib
import types
import typing
from collections.abc import Mapping
from typing import Any

from zsjax.config.fields import MAY_CHANGE, Config
from zsjax.errors import ConfigError, Problem, UserError


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
    tree = {} if config is None else config.to_dict() if hasattr(config, "to_dict") else dict(config)
    problems: list[Problem] = []
    tree = _with_overrides(tree, overrides or {}, problems)
    resolved = _build(Config, tree, "", problems)
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


def from_json(text: str) -> Config:
    """The config that `to_json` wrote. Values are not checked again: files may have moved since."""
    return resolve(json.loads(text), check=False)


def diff(old: Config | str, new: Config) -> dict[str, tuple[Any, Any]]:
    """{dotted field: (old value, new value)} where they differ; `old` may be JSON of an earlier version's fields.

    Tuples count as lists, and a field that one side lacks is "(absent)".
    """
    old = json.loads(old if isinstance(old, str) else to_json(old))
    a, b = _flatten(old), _flatten(json.loads(to_json(new)))
    return {name: (a.get(name, "(absent)"), b.get(name, "(absent)"))
            for name in sorted(a.keys() | b.keys()) if a.get(name, "(absent)") != b.get(name, "(absent)")}


def check_resume(old: Config | str, new: Config, where) -> None:
    """Raises ConfigError if a run that began with `old` cannot go on with `new`; see `MAY_CHANGE`.

    Args:
      where: the run's folder, for the message.
    """
    def may_change(name):
        return any(name == free or (free.endswith(".") and name.startswith(free)) for free in MAY_CHANGE)

    problems = [Problem(name, now, f"the run in {where} began with {was!r}",
                        "set it back, or give the new run another --workdir")
                for name, (was, now) in diff(old, new).items() if not may_change(name)]
    if problems:
        raise ConfigError(problems)


def write_config(workdir, config: Config) -> str:
    """Writes workdir/config.json, or checks that a run which is there already can go on with `config`.

    Returns:
      The JSON that was written, for the checkpoints.

    Raises:
      ConfigError: the run that is there began with another config; differing fields are named.
      UserError: workdir/config.json is not readable, or the folder cannot be written.
    """
    path = pathlib.Path(workdir) / "config.json"
    try:
        if path.exists():
            check_resume(path.read_text(), config, workdir)
        path.parent.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(".json.new")
        half.write_text(to_json(config))
        os.replace(half, path)  # a kill leaves the old file or the new one
    except OSError as error:
        raise UserError(f"cannot write {path}: {error}") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}); remove it to start the run anew") from error
    return to_json(config)


def _flatten(tree, prefix=""):
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


@dataclasses.dataclass(frozen=True)
class _Text:
    """A value that came as text from the command line."""

    text: str


def _with_overrides(tree, overrides, problems):
    tree = {name: value for name, value in tree.items()}
    for field, text in overrides.items():
        *path, last = field.split(".")
        node = tree
        for name in path:
            child = node.get(name, {})
            if not isinstance(child, Mapping):
                problems.append(Problem(field, text, f"{name!r} has no fields", "give a field's own name"))
                break
            node[name] = dict(child)
            node = node[name]
        else:
            node[last] = _Text(text)
    return tree


def _build(cls, tree, prefix, problems):
    """An instance of the dataclass `cls` from a mapping; what cannot be read keeps its default and is a problem."""
    hints, values = typing.get_type_hints(cls), {}
    for name, value in tree.items():
        field = prefix + name
        if name not in hints:
            problems.append(Problem(field, _untext(value), "unknown field", _mend_name(name, hints, prefix)))
        elif dataclasses.is_dataclass(hints[name]):
            if isinstance(value, Mapping):
                values[name] = _build(hints[name], value, f"{field}.", problems)
            else:
                fields = ", ".join(typing.get_type_hints(hints[name]))
                problems.append(Problem(field, _untext(value), "has fields and takes no value",
                                        f"set one of {field}.{{{fields}}}"))
        else:
            try:
                values[name] = _read(value, hints[name])
            except ValueError as error:
                problems.append(Problem(field, _untext(value), "wrong type", str(error)))
    return cls(**values)


def _read(value, kind):
    """`value` as the annotation `kind`; ValueError says what is needed."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        none = value is None or (isinstance(value, _Text) and value.text.lower() in ("none", "null"))
        if none and type(None) in inner:
            return None
        (kind,) = [k for k in inner if k is not type(None)]
        try:
            return _read(value, kind)
        except ValueError as error:
            raise ValueError(f"{error}, or None") from error
    if origin is tuple:
        if isinstance(value, _Text):
            value = [_Text(part.strip()) for part in value.text.strip("()[] ").split(",") if part.strip()]
        if not isinstance(value, list | tuple):
            raise ValueError("give a list")
        return tuple(_read(item, inner[0]) for item in value)
    if kind is dict:
        if isinstance(value, _Text):
            value = _literal(value.text)
        if not isinstance(value, Mapping):
            raise ValueError("give a dict")
        return {str(name): _literal(item.text) if isinstance(item, _Text) else _plain(item)
                for name, item in value.items()}
    if isinstance(value, _Text):
        return _read_text(value.text, kind)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str | pathlib.PurePath):
        return str(value)
    if kind is int and isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    if kind is float and isinstance(value, numbers.Real) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"give {_KINDS[kind]}")


_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


def _read_bool(text):
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError("not true or false")
    return text.lower() in ("true", "1")


_ARG_READERS = {bool: _read_bool, int: int, float: float, str: str}


def _read_text(text, kind):
    if kind is str:
        return text.strip("'\"") if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
    try:
        return _ARG_READERS[kind](text)
    except ValueError:
        raise ValueError(f"give {_KINDS[kind]}") from None


def _literal(text):
    import ast

    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def _plain(value):
    """Options of dict fields as JSON would give them back, so that a resumed run compares equal."""
    if isinstance(value, Mapping):
        return {str(name): _literal(item.text) if isinstance(item, _Text) else _plain(item)
                for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _untext(value):
    return value.text if isinstance(value, _Text) else value


def _mend_name(name, known, prefix=""):
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {prefix}{close[0]}?"
    return f"known here: {', '.join(known)}"
