"""A config as a tree of fields: read into the dataclasses of `zsjax.config.fields`, and written as JSON.

Only names and types are looked at here; `zsjax.config.checks` checks what a value may be.
"""

import dataclasses
import difflib
import json
import typing
from collections.abc import Iterable, Mapping
from typing import Any

from zsjax.config.declare import leaves, renamed
from zsjax.config.fields import Config
from zsjax.config.values import Text, native, read_value
from zsjax.errors import Problem


def read_tree(config=None, overrides: Mapping[str, str] | None = None) -> tuple[Config, list[Problem]]:
    """(the config, problems of names and types); a field with a problem holds its default. Arguments: as `resolve`."""
    if isinstance(config, Config):
        config = dataclasses.asdict(config)
    tree = {} if config is None else native(config)
    if not isinstance(tree, Mapping):
        return Config(), [Problem("config", tree, f"a {type(tree).__name__}", "give a ConfigDict or a dict of fields")]
    problems: list[Problem] = []
    tree = _with_overrides(tree, overrides or {}, problems)
    return read_fields(Config(), tree, "", problems), problems


def read_fields(defaults, tree: Mapping, prefix: str, problems: list[Problem]):
    """The dataclass `defaults` with the fields of a mapping. A field that cannot be read keeps its default, and a problem
    is added to `problems`. prefix: of the fields' dotted names."""
    hints, values = typing.get_type_hints(type(defaults)), {}
    for name, value in tree.items():
        field, value = f"{prefix}{name}", native(value)
        if name not in hints:
            now = renamed(Config).get(field)
            fix = f"its name is {now} now" if now else known_name(str(name), hints, prefix)
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
                values[name] = read_value(value, hints[name])
            except ValueError as error:
                problems.append(Problem(field, value, "wrong type", str(error)))
    return dataclasses.replace(defaults, **values)


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


def known_name(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The fix for an unknown name: the closest known one, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f"did you mean {prefix}{close[0]}?" if close else f"known here: {', '.join(known)}"


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
            node[last] = Text(text)
    return tree
