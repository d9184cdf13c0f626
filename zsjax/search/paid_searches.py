"""The account of paid searches, in a file that all engines and processes with one folder share.

A charge is written before its request is sent. After a crash, a charge that was not taken back counts as spent.
"""

import collections
import contextlib
import dataclasses
import numbers
import pathlib
import threading

import jax

from zsjax.errors import InputError, json_value
from zsjax.parallel.files import lock, write_json

_LOCKS: collections.defaultdict = collections.defaultdict(threading.Lock)  # by the account's path


@dataclasses.dataclass(frozen=True)
class Spent:
    """searches: that were charged. dollars: that they cost."""

    searches: int = 0
    dollars: float = 0.0


class Account:
    """The account in `folder`/spent.json, or in memory without a folder."""

    def __init__(self, folder: pathlib.Path | None):
        """Raises InputError when the file does not hold an account."""
        self._path, self._in_memory = folder and folder.resolve() / "spent.json", Spent()
        self._lock = _LOCKS[self._path] if folder else threading.Lock()
        self.spent()

    @contextlib.contextmanager
    def held(self):
        """Locks the account: all others with the same folder wait, so each search is paid and counted once.

        Raises OutputError where there are several hosts, and the folder's file system has no locks.
        """
        with self._lock, contextlib.ExitStack() as stack:
            if self._path:
                file = stack.enter_context(open(self._path.with_suffix(".lock"), "a"))
                lock(file, required=jax.distributed.is_initialized())
            yield

    def spent(self) -> Spent:
        if not self._path or not self._path.exists():
            return self._in_memory
        try:
            row = json_value(self._path.read_bytes())
            spent = Spent(int(amount("searches", row["searches"])), amount("dollars", row["dollars"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self._path} does not hold an account ({error}); write the searches and dollars spent "
                             'into it as {"searches": N, "dollars": X}') from None
        return spent

    def charge(self, searches: int, price: float) -> None:
        """Adds searches at `price` dollars each; below 0 takes them back. Call it inside `held`."""
        spent = self.spent()
        spent = Spent(max(0, spent.searches + searches), max(0.0, round(spent.dollars + searches * price, 9)))
        if self._path:
            write_json(self._path, dataclasses.asdict(spent))
        else:
            self._in_memory = spent


def amount(name: str, dollars: float) -> float:
    """The dollars as a float. Raises InputError unless they are a finite number of 0 or more."""
    if not isinstance(dollars, numbers.Real) or isinstance(dollars, bool) or not 0 <= dollars <= 1e300:
        raise InputError(f"{name} = {dollars!r} is not an amount of dollars; use a finite number, 0 or more")
    return float(dollars)
