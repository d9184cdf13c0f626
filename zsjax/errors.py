"""The errors that are the user's to fix: one message that names what is wrong and what to do."""

import contextlib
import dataclasses
import zlib
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


class InputExists(InputError, FileExistsError):
    """A file or folder that would be written is there already."""


class NonFiniteUpdate(UserError, FloatingPointError):
    """The loss or its gradient is NaN or infinite."""

    exit_code = 1


@contextlib.contextmanager
def reading(path):
    """Turns what Python itself raises while the file `path` is read into an `InputError` with its name."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise InputNotFound(f"{path}: no such file; check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:  # a folder, no right to read, an archive that ends too soon
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}); check the file") from error


def pointer(path) -> str:
    """What to do where only Git LFS's pointer to a file was copied; "" for any other file."""
    with open(path, "rb") as file:
        is_pointer = file.read(23) == b"version https://git-lfs"
    return "but a Git LFS pointer; fetch the file itself with git lfs pull" if is_pointer else ""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a config: the field's dotted name, its value, what is wrong, what would work."""

    field: str
    value: Any
    reason: str
    fix: str

    def __str__(self):
        return f"{self.field} = {self.value!r}: {self.reason}; {self.fix}"


class ConfigError(UserError, ValueError):
    """Everything that is wrong with a config. `.problems` lists them."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = list(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(f"{count} in the config:\n" + "\n".join(f"  {problem}" for problem in self.problems))
