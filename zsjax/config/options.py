"""Options of a user's own search engine: the fields of its dataclass that config.search.options sets."""

from collections.abc import Mapping
from typing import Any

from zsjax.config.allowed import wrong_value
from zsjax.config.declare import leaves
from zsjax.config.read import read_fields
from zsjax.errors import ConfigError, Problem

FIELD = "search.options"


def read_options(cls: type, given: Mapping[str, Any]):
    """The dataclass `cls` with the given options that it has; those of other engines are left out.

    Raises:
      ConfigError: with every problem.
    """
    options, problems = check_options(cls, given)
    if problems:
        raise ConfigError(problems)
    return options


def check_options(cls: type, given: Mapping[str, Any]) -> tuple[Any, list[Problem]]:
    """(the dataclass, problems of types, ranges and choices); see `zsjax.config.declare.field`."""
    known, problems = leaves(cls), []
    groups = {name.partition(".")[0] for name in known}
    options = read_fields(cls(), {name: value for name, value in given.items() if name in groups}, f"{FIELD}.", problems)
    for leaf in known.values():
        value = options
        for name in leaf.name.split("."):
            value = getattr(value, name)
        if wrong := wrong_value(leaf.spec, value):
            problems.append(Problem(f"{FIELD}.{leaf.name}", value, *wrong))
    return options, problems
