"""Experiment files: `get_config(arg)` in a Python file of its own."""

import importlib.util
import inspect
import os
import pathlib
import traceback
import types

from zsjax.errors import UserError


def load_experiment(path_and_arg: str):
    """The ConfigDict of `F.py[:arg]`: what get_config(arg) of the file returns.

    Raises:
      UserError: no such file, no get_config in it, or an error in it, with file and line.
    """
    path, _, arg = path_and_arg.partition(":")
    if not pathlib.Path(path).is_file():
        raise UserError(f"no experiment file {path} (looked in {os.getcwd()}){known_experiments()}")
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


def known_experiments() -> str:
    """"; there are FILES", or "" where no folder experiments/ is."""
    known = sorted(map(str, pathlib.Path("experiments").glob("*.py")))
    return f"; there are {', '.join(known)}" if known else ""
