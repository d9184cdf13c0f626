"""Errors that the user must fix: one message that names what is wrong and what to do."""

import contextlib
import dataclasses
import json
import zlib
from collections.abc import Sequence
from typing import Any


def printable(text: str, *, keep: str = "\n\t") -> str:
    """The text with visible signs for control characters but `keep`, which could drive a terminal or hide text."""
    return "".join(c if c in keep or c.isprintable() else chr(0x2400 + ord(c)) if ord(c) < 32 else "\ufffd"
                   for c in text)


class UserError(Exception):
    """A mistake of the user; the message says how to fix it. Printed without traceback, exit code 2."""


class InputError(UserError, ValueError):
    """A file, checkpoint, template or value of the user's cannot be used.

    Raised where it is read. The message is one line: field or file, value, what is wrong, what to do. Control characters
    in what it quotes show as signs, and the middle of a message beyond `MOST` characters is left out. Every other
    ValueError is a bug of the program and keeps its traceback.
    """

    MOST = 1200

    def __str__(self):
        text = printable(super().__str__(), keep="")
        return text if len(text) <= self.MOST else f"{text[:self.MOST - 305]} ... {text[-300:]}"


class InputNotFound(InputError, FileNotFoundError):
    """A file, folder or package that the user named does not exist."""


class InputExists(InputError, FileExistsError):
    """A file or folder that would be written exists already."""


class OutputError(UserError, OSError):
    """A file or folder cannot be written: a full disk, a read-only one, missing rights."""


class NonFiniteUpdate(UserError, FloatingPointError):
    """The loss or its gradient is NaN or infinite."""

    exit_code = 1


class BudgetSpent(Exception):
    """The next search would exceed the budget. Paid results are kept, and the run can be resumed."""


@contextlib.contextmanager
def reading(path):
    """Turns Python's own errors while the file `path` is read into an `InputError` with its name."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise InputNotFound(f"{path}: no such file; check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:  # a folder, missing rights, an archive that ends too soon
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}); check the file") from error


def json_value(text: str | bytes):
    """json.loads, but with a ValueError for too many brackets as well. Bytes are UTF-8."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("too many brackets") from None


def read_json(path, fix: str, kind: type = object):
    """The JSON value of a file, a dict or list if `kind` says so. Raises InputError, ending in `fix`, for something else."""
    try:
        with reading(path), open(path, "rb") as file:
            value = json_value(file.read())
    except UserError:
        raise
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({reason_of(error)}); {fix}") from error
    if not isinstance(value, kind):
        raise InputError(f"{path} holds a {type(value).__name__}, not a {kind.__name__}; {fix}")
    return value


def reason_of(error: Exception, most: int = 300) -> str:
    """The first line of an error's text, at most `most` characters of it; its class where it has no text."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return first if len(first) <= most else f"{first[:most]}..."


@contextlib.contextmanager
def writing(path):
    """Turns Python's own errors while the file or folder `path` is written into an `OutputError` with its name."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write {path} ({error.strerror or error}); make room or give write permission, and start "
                          "the same command again") from error


def pointer(path) -> str:
    """The fix where a file is only Git LFS's pointer to it; "" for any other file."""
    with open(path, "rb") as file:
        is_pointer = file.read(23) == b"version https://git-lfs"
    return "but a Git LFS pointer; fetch the file itself with git lfs pull" if is_pointer else ""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One problem of a config: the field's dotted name, its value, what is wrong, what to do."""

    field: str
    value: Any
    reason: str
    fix: str

    def __str__(self):
        return f"{self.field} = {self.value!r:.200}: {self.reason}; {self.fix}"


class ConfigError(UserError, ValueError):
    """All problems of a config, in `.problems`."""

    def __init__(self, problems: Sequence[Problem]):
        self.problems = list(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(f"{count} in the config:\n" + "\n".join(f"  {problem}" for problem in self.problems))
