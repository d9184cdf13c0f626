"""`resolve`: the config that an experiment returned, read and checked. Every problem is reported at once."""

from collections.abc import Mapping

from zsjax.config.fields import Config
from zsjax.config.read import read_tree
from zsjax.errors import ConfigError


def resolve(config=None, overrides: Mapping[str, str] | None = None, *, check: bool = True, files: bool = True,
            unread: tuple[str, ...] = ()) -> Config:
    """The frozen `Config` of what an experiment returned. No device is touched.

    Args:
      config: ml_collections.ConfigDict, a mapping, or a `Config`; None is all defaults.
      overrides: dotted field -> text, from `--config.train.steps=5`; they win. A text is read by the field's type: a
        Python literal, a text without quotes, or a list of texts without brackets.
      check: also check values and their combinations (`zsjax.config.checks`), not only names and types.
      files: also check that the files and folders named are there.
      unread: fields and sections whose files need not be there.

    Raises:
      ConfigError: with every problem.
    """
    resolved, problems = read_tree(config, overrides)
    if check:
        from zsjax.config import checks  # which stand on the rooms that they check

        # A field that could not be read holds its default here: its own problem is enough.
        wrong = {problem.field for problem in problems}
        found = checks.find_problems(resolved, files=files, unread=unread)
        problems += [problem for problem in found if problem.field not in wrong]
    if problems:
        raise ConfigError(problems)
    return resolved
