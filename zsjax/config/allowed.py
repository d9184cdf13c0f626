"""Checks of each field alone, by its `zsjax.config.declare.Spec`: ranges, choices, names."""

import dataclasses
import numbers
import re
import urllib.parse

from zsjax.config.declare import leaves
from zsjax.config.fields import Config
from zsjax.config.named import load_object
from zsjax.errors import reason_of
from zsjax.search.addresses import secret_fields, secret_in

_SCHEME = re.compile(r"[A-Za-z][\w+.-]*://")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWN_FUNCTION = "package.module:function of a module that imports"


def check_values(found):
    """Adds the first problem of every field, or of the items of a tuple."""
    for leaf in leaves(Config).values():
        if wrong := wrong_value(leaf.spec, found.value(leaf.name)):
            found.add(leaf.name, *wrong)


def wrong_value(spec, value) -> tuple[str, str] | None:
    """(what is wrong with a field's value or the first wrong item of a tuple, the fix), or None."""
    for item in value if isinstance(value, tuple) else (value,):
        if item is not None and (wrong := _wrong(spec, item, several=isinstance(value, tuple))):
            return wrong
    return None


def with_default_numbers(config: Config, names) -> Config:
    """The config with defaults in those of the named fields that are numbers."""
    for name in (name for name in names if leaves(Config)[name].spec.range):
        node, parents = config, []
        *path, last = name.split(".")
        for part in path:
            parents.append((node, part))
            node = getattr(node, part)
        node = dataclasses.replace(node, **{last: leaves(Config)[name].default})
        for parent, part in reversed(parents):
            node = dataclasses.replace(parent, **{part: node})
        config = node
    return config


def _wrong(spec, item, several) -> tuple[str, str] | None:
    """(what is wrong with a value, the fix), or None."""
    if isinstance(item, dict) and (secrets := secret_fields(item)):
        return (f"the value of {secrets[0]!r} would be written to config.json",
                "leave it out; a server's key is read from the environment variable that key_env names")
    if spec.range and isinstance(item, numbers.Number) and item not in spec.range:
        reason = "not a number" if item != item else "too small" if item <= spec.range.low else "too large"
        return reason, f"give {spec.range}" + f" ({spec.unit})" * bool(spec.unit)
    if spec.choices and item not in (known := spec.known()):
        if spec.names == "function" and ":" in item:
            reason = function_problem(item)
            return (reason, f"give one of {', '.join(known)}, or {_OWN_FUNCTION}") if reason else None
        own = f", or {_OWN_FUNCTION}" * (spec.names == "function")
        return f"{item!r} is unknown", f"{'name some' if several else 'give one'} of {', '.join(known)}{own}"
    if spec.names in ("path", "folder"):
        return path_problem(item)
    if spec.names == "url" and item:
        return _url_problem(item)
    if spec.names == "variable" and item and not _VARIABLE.fullmatch(item):
        return "not the name of an environment variable", "give the variable's name, and put the key into the variable"
    return None


def path_problem(text: str) -> tuple[str, str] | None:
    """(what is wrong with a path or a checkpoint's name, the fix), or None. Whether the file exists is not looked at."""
    if _SCHEME.match(text):
        return "a URL is not a local path", "copy it here and give the local path"
    if "\0" in text:
        return "a zero byte is in it", "check the path"
    return None


def function_problem(name: str) -> str:
    """Why "package.module:function" cannot be loaded, or "". Imports the module."""
    try:
        load_object(name, "function")
    except (Exception, SystemExit) as error:  # importing a user's module may raise anything
        return reason_of(error)
    return ""


def _url_problem(text):
    try:
        parts = urllib.parse.urlsplit(text)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
    except ValueError:
        good = False
    if good and (secret := secret_in(text)):
        return (f"the {secret} in it would be written to config.json",
                "leave it out; a chat server's key is read from the environment variable that key_env names")
    return None if good else ("not the URL of a server", "give http://HOST:PORT")


def is_sensible(value) -> bool:
    """Whether a value of a dict field is a finite number of at most 1e9 in size."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e9
