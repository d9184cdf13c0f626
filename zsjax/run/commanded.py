"""The config that a command line asks for."""

import dataclasses

from zsjax.config import Config, from_json, load_experiment, resolve
from zsjax.config.experiments import known_experiments
from zsjax.errors import ConfigError, UserError, reading

DEFAULT_EXPERIMENT = "experiments/tiny_world.py"
# Commands that read no file which the config names, and files that others do not read: a run's folder may have moved since.
_WITHOUT_FILES = ("plan", "conversations", "export")
_UNREAD = {"ask": ("data.train", "data.eval", "data.benchmarks", "warm_start"), "play": ("data.train", "warm_start")}


def find_config(options, overrides, stages=None) -> Config:
    """The resolved config of --config, or of the run in WORKDIR; also checked for `stages`, if given.

    options, overrides: of `zsjax.launch.parse_flags`.

    Raises:
      UserError: there is none, or it cannot be read; ConfigError: with every problem.
    """
    from zsjax.config.checks import find_problems

    carried = options.workdir / "config.json" if options.workdir is not None else None
    if options.config is not None:
        config = load_experiment(options.config)
    elif carried is not None and carried.is_file():
        try:
            with reading(carried):
                config = from_json(carried.read_text())
        except ValueError as error:
            raise UserError(f"{carried} cannot be read: {error}") from error
    elif options.command in ("ask", "play"):
        config = load_experiment(DEFAULT_EXPERIMENT)
    else:
        raise UserError(f"give --config F.py, an experiment file{known_experiments()}")
    if options.command in ("ask", "play"):  # they evaluate nothing
        overrides = overrides | {"evaluate.drop_best": "0", "evaluate.misinformation": "0"}
    config = resolve(config, overrides, files=options.command not in _WITHOUT_FILES,
                     unread=_UNREAD.get(options.command, ()))
    if stages:  # config.stages stays the run's own; the command's stages have needs of their own
        problems = find_problems(dataclasses.replace(config, stages=stages))
        if problems:
            raise ConfigError(problems)
    return config
