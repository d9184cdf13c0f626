"""Experiment files: a Python file with `get_config(arg)`, which returns an `ml_collections.ConfigDict`."""

import importlib.util
import inspect
import os
import pathlib
import traceback
import types

from zsjax.config.read import known_name
from zsjax.config.values import read_bool, text_reader
from zsjax.errors import ConfigError, Problem, UserError


def load_experiment(path_and_arg: str):
    """The ConfigDict that get_config(arg) of `F.py[:arg]` returns.

    A path that begins with experiments/ and is not there names the experiment that the package carries.

    Raises:
      UserError: no such file, a name without .py, no get_config in it, or an error in it, with file and line.
    """
    path, _, arg = path_and_arg.partition(":")
    path = _found(path)
    if not path.endswith(".py"):
        raise UserError(f"{path}: the name of an experiment file must end in .py; rename it")
    try:
        spec = importlib.util.spec_from_file_location(f"zsjax_experiment_{pathlib.Path(path).stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if not isinstance(get_config, types.FunctionType):
            raise UserError(f"{path} has no function get_config(arg=None)")
        takes = inspect.signature(get_config).parameters
        if arg and not takes:
            raise UserError(f"get_config() of {path} takes no argument, but was given {arg!r}")
        config = get_config(arg or None) if takes else get_config()
        if config is None:
            raise UserError(f"get_config of {path} returns nothing; end it with `return c`, the config that it made")
        return config
    except UserError:
        raise
    except Exception as error:  # whatever an experiment file may do wrong
        here = os.path.abspath(path)
        frames = [frame for frame in traceback.extract_tb(error.__traceback__)
                  if os.path.abspath(frame.filename) == here]
        line = error.lineno if isinstance(error, SyntaxError) else frames[-1].lineno if frames else "?"
        raise UserError(f"{path}, line {line}: {type(error).__name__}: {error}") from error


def _found(path: str) -> str:
    """The path, or that of the same file among the carried experiments. Raises UserError if there is neither."""
    if pathlib.Path(path).is_file():
        return path
    for folder in _carriers():
        if pathlib.Path(path).parts[:1] == ("experiments",) and (folder / path).is_file():
            return str(folder / path)
    raise UserError(f"no experiment file {path} (looked in {os.getcwd()}){known_experiments()}")


def _carriers() -> tuple[pathlib.Path, ...]:
    """Where the folder experiments/ may be, beside the working folder: in the checkout, or in the installed package."""
    package = pathlib.Path(__file__).parents[1]
    return package.parent, package


def parse_arg(arg: str | None, lazy: bool = False, **defaults):
    """The keys of `--config F.py:arg`, in big_vision's manner.

    "lr=0.1,smoke" sets two keys; a key alone is True. The first item may be a value alone, for the first key. A value is
    read as the type of its default; booleans are "true", "false", "1" or "0". A default may also be given as
    (default, function of the text), for instance where it is None.

    Args:
      arg: the text; None or "" gives the defaults.
      lazy: keep unknown keys, as text, instead of refusing them.
      **defaults: key -> default.

    Returns:
      ml_collections.ConfigDict of all keys.

    Raises:
      ConfigError: unknown keys, and values that are not of their type; all of them at once.
    """
    import ml_collections

    result, problems = ml_collections.ConfigDict(type_safe=False), []
    readers = {}
    for key, default in defaults.items():
        if isinstance(default, tuple) and len(default) == 2 and callable(default[1]):
            result[key], readers[key] = default
        else:
            result[key], readers[key] = default, text_reader(type(default))
    for index, item in enumerate(arg.split(",") if arg else ()):
        key, equals, text = item.strip().partition("=")
        if not equals:
            if index == 0 and key not in defaults and defaults and readers[next(iter(defaults))] is not read_bool:
                key, text = next(iter(defaults)), key
            else:
                text = "true"
        if key not in defaults:
            if lazy:
                result[key] = text
            else:
                problems.append(Problem(f"config argument {key!r}", text, "unknown", known_name(key, defaults)))
            continue
        try:
            result[key] = readers[key](text)
        except ValueError as error:
            problems.append(Problem(f"config argument {key!r}", text, str(error) or "cannot be read",
                                    f"the default is {result[key]!r}"))
    if problems:
        raise ConfigError(problems)
    return result


def known_experiments() -> str:
    """"; there are FILES", those of the package included."""
    known = sorted({f"experiments/{file.name}" for folder in (pathlib.Path(), *_carriers())
                    for file in (folder / "experiments").glob("*.py")})
    return f"; there are {', '.join(known)}" if known else ""
