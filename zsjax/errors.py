"""The errors that are the user's to fix: one message that names what is wrong and what to do."""

import dataclasses
from collections.abc import Sequence
from typing import Any


class UserError(Exception):
    """A mistake of the user's, told in words that say how to mend it: printed without traceback, exit code 2."""


class InputError(UserError, ValueError):
    """Something that the user named holds what cannot be used: a file, a checkpoint, a template, a value of a config.

    Raised where it is read, in one line: field or file, value, what is wrong, what to do. Every other ValueError is a
    bug of the program and keeps its traceback.
    """


class InputNotFound(InputError, FileNotFoundError):
    """A file, folder or package that the user named is not there."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a config: the field's dotted name, its value, what is wrong, what would work."""

    field: str
    value: Any
    reason: str
    mend: str

    def __str__(self):
        return f"{self.field} = {self.value!r}: {self.reason}; {self.mend}"


class ConfigError(UserError, ValueError):
    """Everything that is wrong with a config. `.problems` lists them."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = list(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(f"{count} in the config:\n" + "\n".join(f"  {problem}" for problem in self.problems))
