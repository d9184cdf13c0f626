"""One process at a time works in a run's folder."""

import contextlib
import json
import os
import pathlib
import socket
import sys
import time
from collections.abc import Iterator

from zsjax.errors import UserError, writing
from zsjax.parallel import files

LOCK = ".lock"


class Occupied(UserError):
    """Another process works in the run's folder. The message says which."""


@contextlib.contextmanager
def occupy(workdir: pathlib.Path) -> Iterator[None]:
    """Makes the folder and holds it; the lock ends with the process. Removes what killed processes left unfinished.

    Raises:
      Occupied: another process holds it.
      OutputError: the folder cannot be written.
    """
    path = workdir / LOCK
    with contextlib.ExitStack() as stack:
        with writing(workdir):
            workdir.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context(open(path, "a+"))
            if not files.lock(file, wait=False):
                raise Occupied(f"{workdir} is in use by {_holder(file)}; wait for its end, stop it, or give another "
                               "--workdir")
            _write(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv[1:]),
                                     "since": time.strftime("%Y-%m-%d %H:%M:%S")}))
            files.remove_unfinished(workdir, but_below=LOCK)  # other runs
        yield
        _write(file, "")


def _write(file, text):
    with contextlib.suppress(OSError):  # the lock holds without its note
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), text.encode())


def _holder(file) -> str:
    file.seek(0)
    try:
        found = json.loads(file.read())
        command = f" ({found['command']})" if found["command"] else ""  # none in a library's call
        return "process {pid} on {host} since {since}".format(**found) + command
    except (ValueError, KeyError, TypeError):  # it has the lock and has not written yet
        return "another process"
