"""Commands in child processes that share one import: a server forks a child for each, before any device is used.

A child is what `python -m zsjax.launch` is, without the seconds that its imports take. It may be given a hook at the moments
at which it changes files: the n-th call of open (to write), mkdir, fsync, rename, replace, unlink or rmdir on a path in a
folder, before or after the call. The hook notes the moment, sends the process a signal, or raises an OSError there.
"""

import builtins
import contextlib
import dataclasses
import errno
import faulthandler
import importlib
import io
import json
import logging
import os
import pathlib
import re
import select
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence

from tests.environment import ROOT, one_device

KILL = "SIGKILL"
# Classes of moments "call before|after path": renames that complete a checkpoint, and those that complete a model or make
# room for it; all other renames; what is flushed; other calls.
CLASSES = {"checkpoint": r"^re(name|place) .*/checkpoints/(\w+/)+\d+$", "model": r"^re(name|place) .*/models/[^/]+$",
           "rename": r"^re(name|place) (?!.*(/checkpoints/(\w+/)+\d+|/models/[^/]+)$)", "fsync": r"^fsync ",
           "other": r"^(open|mkdir|unlink|remove|rmdir) "}
# The flush that comes before a loop saves a checkpoint, while the loop waits.
FLUSHED = r"^fsync after .*/metrics\.jsonl$"


def class_of(moment: str) -> str:
    """The class of a moment."""
    return next(name for name, form in CLASSES.items() if re.search(form, moment))


@dataclasses.dataclass(frozen=True)
class Hook:
    """What happens when files of a folder change.

    Attributes:
      folder: only paths in it count.
      record: a file that gets a line "call before|after path" for each moment; "" for none. The last line is the moment
        of a kill.
      at: the moment at which `do` happens, from 0; -1 for never. Each call has two, before and after it.
      of: a regular expression of the moments that `at` counts; "" for all.
      after: the end of a path; `do` happens when a call has changed it.
      do: the name of a signal, which the process gets (another one than SIGKILL is noted as "SIGTERM is sent"); or of an
        errno, such as "ENOSPC", which this and all later calls raise.
    """

    folder: str
    record: str = ""
    at: int = -1
    of: str = ""
    do: str = KILL
    after: str = ""

    def install(self):
        count, lock, sends = [0], threading.Lock(), self.do.startswith("SIG")
        out = os.open(self.record, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if self.record else None

        def moment(name, path, before):
            said = f"{name} {'before' if before else 'after'} {path}"
            with lock:  # no other thread's moment comes between the record and the kill
                counts = bool(re.search(self.of, said))
                number, count[0] = count[0], count[0] + counts
                _note(out, said)
                if sends and ((counts and number == self.at) or (self.after and not before and path.endswith(self.after))):
                    _note(out, f"{self.do} is sent" if self.do != KILL else "")
                    os.kill(os.getpid(), getattr(signal, self.do))
            if not sends and 0 <= self.at <= number and before and name not in ("unlink", "rmdir"):
                code = getattr(errno, self.do)
                raise OSError(code, os.strerror(code), path)

        def wrapped(name, function, path_of):
            def call(*args, **kwargs):
                path = path_of(*args, **kwargs)
                if path is None or not path.startswith(self.folder):
                    return function(*args, **kwargs)
                moment(name, path, True)
                done = function(*args, **kwargs)
                moment(name, path, False)
                return done

            return call

        for name, path_of in (("replace", _second), ("rename", _second), ("fsync", _full), ("mkdir", _first),
                              ("unlink", _first), ("remove", _first), ("rmdir", _first)):
            setattr(os, name, wrapped(name, getattr(os, name), path_of))
        builtins.open = io.open = wrapped("open", io.open, _written)


def _note(out: int | None, line: str) -> None:
    if out is not None and line:
        os.write(out, f"{line}\n".encode())


def _second(source, target, **_):
    return _full(target)


def _first(path, *_, dir_fd=None, **__):
    return _full(path, dir_fd)


def _written(path, mode="r", *_, **__):
    return _full(path) if isinstance(mode, str) and set(mode) & set("wax+") else None


def _full(path, dir_fd=None) -> str | None:
    """The absolute path of a path or a file descriptor."""
    try:
        if isinstance(path, int):
            return os.readlink(f"/proc/self/fd/{path}")
        path = os.fspath(path)
        path = path.decode() if isinstance(path, bytes) else path
        return os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), path) if dir_fd is not None else os.path.abspath(path)
    except (OSError, TypeError):
        return None


class ServerLost(Exception):
    """The server ended or does not answer. A new one has been started."""


class Children:
    """The server. A context: leaving it ends the server and every child."""

    PATIENCE = 120.0  # seconds for an answer; the server's start takes some of them

    def __init__(self):
        self._pids: set[int] = set()
        self._codes: dict[int, int] = {}  # of those that have ended
        self._start_server()

    def _start_server(self):
        env = one_device(JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")  # even what compiles fast is kept
        self._server = subprocess.Popen([sys.executable, "-m", "tests.campaigns.children"], cwd=ROOT, env=env,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._end_server()

    def _end_server(self):
        for pid in self._pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._pids.clear()
        with contextlib.suppress(BrokenPipeError):
            self._server.stdin.close()
        self._server.wait(30)

    def surviving(self, check):
        """`check`, which is called once more where the server was lost in it."""
        def checked(case):
            try:
                return check(case)
            except ServerLost as lost:
                print(f"{case.id}: {lost}; the case runs again")
                return check(case)

        return checked

    def start(self, command: Sequence[str], log: pathlib.Path, *, hook: Hook | None = None, env=None) -> int:
        """Starts a command; its pid.

        Args:
          command: arguments of `zsjax.launch`; or "MODULE:FUNCTION" and its arguments.
          log: a file that gets its output, appended.
          hook: None, or what happens when it changes files.
          env: environment variables that it gets.
        """
        request = {"command": list(command), "log": str(log), "env": dict(env or {}),
                   "hook": None if hook is None else dataclasses.asdict(hook)}
        pid = self._ask(request)["pid"]
        self._pids.add(pid)
        self._codes.pop(pid, None)
        return pid

    def wait(self, pid: int, timeout: float = 900.0) -> int | None:
        """The exit code, negative for a signal as of subprocess; None if it still runs after `timeout` seconds."""
        if pid in self._codes:
            return self._codes[pid]
        code = self._ask({"wait": pid, "timeout": timeout})["code"]
        if code is not None:
            self._pids.discard(pid)
            self._codes[pid] = code
        return code

    def show_stacks(self, pid: int) -> None:
        """Makes a child write the stacks of its threads into its log."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR2)

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        self.wait(pid)

    def run(self, command, log, *, timeout: float = 900.0, **options) -> int:
        code = self.wait(pid := self.start(command, log, **options), timeout)
        assert code is not None, f"process {pid} hangs: {command}; {log}"
        return code

    def _ask(self, request) -> dict:
        reason = "ended"
        try:
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            seconds = self.PATIENCE + request.get("timeout", 0)
            if not select.select([self._server.stdout], [], [], seconds)[0]:  # an answer is a line, read whole
                reason = f"gave no answer within {seconds:.0f} s"
            elif answer := self._server.stdout.readline():
                return json.loads(answer)
        except BrokenPipeError:
            pass
        self._server.kill()
        self._end_server()
        self._start_server()
        raise ServerLost(f"the server of children {reason}")


def _serve():
    """Reads requests until the input ends. In a child: returns the command to run."""
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            answer = {"code": _wait(request["wait"], request["timeout"])}
        elif pid := os.fork():
            answer = {"pid": pid}
        else:
            return request
        print(json.dumps(answer), file=_ANSWERS, flush=True)
    return None


def _wait(pid, timeout):
    until = time.monotonic() + timeout
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            return None
        time.sleep(0.01)


def _run(request) -> int:
    from zsjax import launch

    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    faulthandler.register(signal.SIGUSR2, os.dup(2))
    os.environ.update(request["env"])
    if request["hook"]:
        Hook(**request["hook"]).install()
    logging.getLogger().handlers.clear()  # of what is imported already; a new process has none when it sets its own
    name, *arguments = request["command"]
    if ":" in name:
        module, _, function = name.partition(":")
        return getattr(importlib.import_module(module), function)(*arguments) or 0
    return launch.main(request["command"])


def _import_all():
    """What children need, so that they find it imported. Nothing here may use a device or start threads, as bm25s does."""
    from zsjax import launch

    launch.keep_compiled_programs()
    for name in ("zsjax.run.pipeline", "zsjax.run.export", "zsjax.run.import_searches", "zsjax.report", "zsjax.train",
                 "zsjax.config.checks", "zsjax.tuning.tune", "zsjax.tuning.collect", "orbax.checkpoint",
                 "zsjax.models.checkpoints.hf"):
        importlib.import_module(name)


if __name__ == "__main__":
    _ANSWERS = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would have it ignored
    warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # jax's; no thread is started before the fork
    _import_all()
    if (asked := _serve()) is not None:
        from zsjax import launch

        sys.exit(launch.leave(_run(asked)))
