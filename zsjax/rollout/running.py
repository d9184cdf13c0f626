"""The searches of a rollout that the host drives: requests that wait for their turn, and searches that run."""

import concurrent.futures
import threading
from collections.abc import Callable
from concurrent.futures import Future

import jax
import numpy as np

from zsjax.parallel import stops
from zsjax.rollout.searching import Asked, SearchResults


class RunningSearches:
    """At most `limit` searches at a time, each in a thread of its own. As a context it ends them when an error leaves it.

    Attributes:
      simulator_steps: decode steps of the simulator in all finished searches.
    """

    def __init__(self, find: Callable[[Asked], SearchResults], batch: int, *, limit: int, in_threads: bool):
        """Starts nothing yet.

        Args:
          find: the search.
          batch: requests of a search at most.
          limit: searches that run at a time.
          in_threads: False runs each search within `start`: a thread gains nothing for work on the policy's devices.
        """
        self._find, self._batch, self._limit = find, batch, limit
        self._begin = in_thread if in_threads else at_once
        self._waiting: list[Asked] = []
        self._running: dict[Future, Asked] = {}
        self.simulator_steps = 0

    def has_room(self) -> bool:
        """Whether another search can be started."""
        return len(self._running) < self._limit

    def add(self, asked: Asked):
        """Requests for `start`, behind those that wait."""
        self._waiting.append(asked)

    def start(self):
        """Starts searches for the requests that wait, in their order, while there is room."""
        while any(map(len, self._waiting)) and self.has_room():
            asked = jax.tree.map(lambda *x: np.concatenate(x), *self._waiting)
            self._running[search := Future()] = asked[:self._batch]
            self._begin(search, self._find, asked[:self._batch])
            self._waiting = [asked[self._batch:]]

    def finished(self, seconds: float | None) -> list[tuple[Asked, SearchResults]]:
        """The requests and results of searches that ended since the last call. Waits `seconds` for one at most; None: until
        one ends."""
        if self._running and seconds != 0:
            concurrent.futures.wait(self._running, seconds, concurrent.futures.FIRST_COMPLETED)
        done = [(self._running.pop(search), search.result()) for search in list(self._running) if search.done()]
        self.simulator_steps += sum(found.steps for _, found in done)
        return done

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if error is None:
            return
        with stops.ending():  # what was sent may have been paid for, and engines keep it
            concurrent.futures.wait([search for search in self._running if not search.cancel()],
                                    None if isinstance(error, Exception) else stops.PATIENCE)


def in_thread(future: Future, function, argument):
    """Begins function(argument) in a thread of its own. The thread is a daemon: it holds up no process that ends."""
    threading.Thread(target=at_once, args=(future, function, argument), daemon=True, name="search").start()


def at_once(future: Future, function, argument):
    """Calls function(argument) unless the future is cancelled. A thread gains nothing for work on the policy's devices."""
    if future.set_running_or_notify_cancel():
        try:
            future.set_result(function(argument))
        except BaseException as error:
            future.set_exception(error)
