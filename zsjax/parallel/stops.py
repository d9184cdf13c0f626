"""SIGTERM and SIGINT end a run when its state is saved.

    with handled():                       # the run
        ...                               # a signal raises Stopped here, at once
        with deferred():                  # a loop that has a state to save
            for step in range(steps):
                if requested():
                    save(state)
                    raise stopped("the state of step 7 is in checkpoints/train")
                with stopping_at_once():    # the loop's longest part: the state of the step's start is whole
                    ...

Of several hosts, any host's signal stops all, at one step. A second SIGINT ends the process at once.

What was sent to a server that charges for it is waited for, at most `PATIENCE` seconds:

    except BaseException:
        with ending():                    # `is_ending` holds: engines send nothing more
            wait(searches, PATIENCE)
        raise
"""

import contextlib
import dataclasses
import os
import signal
import sys
import threading

import jax
import numpy as np

SIGNALS = (signal.SIGTERM, signal.SIGINT)
PATIENCE = 20.0  # seconds; clusters kill 30 s after the signal, and the state is saved afterwards


class Stopped(KeyboardInterrupt):
    """A run was stopped by a signal. The message says which one and what is saved. `exit_code` is the shell's."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.exit_code = 128 + number


@dataclasses.dataclass
class _State:
    received: int = 0  # the signal
    waits: bool = False
    ending: int = 0  # blocks of `ending` that are open


_STATE = _State()


@contextlib.contextmanager
def handled():
    """SIGTERM and SIGINT raise `Stopped`. Without effect outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _STATE.received, _STATE.waits = 0, False
    before = {number: signal.signal(number, _receive) for number in SIGNALS}
    unraisable, sys.unraisablehook = sys.unraisablehook, lambda lost: _send_again(lost, unraisable)
    try:
        yield
    finally:
        sys.unraisablehook = unraisable
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not Python's, of jax.distributed
        _STATE.received = 0


@contextlib.contextmanager
def deferred():
    """A signal waits for `requested`, `stopping_at_once` or the end of the block."""
    with _waiting(True):
        yield
    if _STATE.received and not _STATE.waits:
        raise stopped()


@contextlib.contextmanager
def stopping_at_once():
    """Inside of `deferred`: a signal raises `Stopped` at once; with several hosts it still waits."""
    with _waiting(jax.process_count() > 1):
        if _STATE.received and not _STATE.waits:
            raise stopped()
        yield


@contextlib.contextmanager
def ending():
    """An error or a signal ends the work: `is_ending` holds in all threads. A further SIGTERM waits for the block's end."""
    _STATE.ending += 1
    try:
        with _waiting(True):
            yield
    finally:
        _STATE.ending -= 1


def is_ending() -> bool:
    """Whether the work is being ended, so that nobody reads further results."""
    return _STATE.ending > 0


def requested() -> bool:
    """Whether a signal has come, to any host. All hosts must call it."""
    if jax.process_count() == 1:
        return bool(_STATE.received)
    from jax.experimental import multihost_utils

    _STATE.received = int(multihost_utils.process_allgather(np.int32(_STATE.received)).max())
    return bool(_STATE.received)


def stopped(saved: str = "") -> Stopped:
    """The error that ends the run. saved: a clause that says which state is saved."""
    name = signal.Signals(_STATE.received).name
    return Stopped(f"stopped by {name}{saved and '; '}{saved}; the same command goes on", _STATE.received)


@contextlib.contextmanager
def _waiting(waits):
    before, _STATE.waits = _STATE.waits, waits
    try:
        yield
    finally:
        _STATE.waits = before


def _send_again(lost, unraisable):
    """Python drops what is raised in a callback of its own, such as jax's of the garbage collector or a `__del__`. A
    signal that came there comes again when the callback has ended."""
    if lost.exc_type is not Stopped:
        unraisable(lost)
        return
    number, _STATE.received = _STATE.received, 0

    def send():
        if signal.getsignal(number) is _receive:
            os.kill(os.getpid(), number)

    timer = threading.Timer(0.05, send)
    timer.daemon = True
    timer.start()


def _receive(number, frame):
    second = number == signal.SIGINT and _STATE.received == signal.SIGINT
    _STATE.received = number
    if second or not _STATE.waits:
        raise stopped()
