"""Log messages and errors on the terminal. They quote files and servers, which cannot drive it."""

import contextlib
import logging
import os
import select
import sys
from collections.abc import Iterator

from zsjax.errors import printable


class _Printable(logging.Formatter):
    def format(self, record):
        return printable(super().format(record))


def show(text: str) -> None:
    """Prints a text to stderr."""
    print(printable(text), file=sys.stderr)


def show_logs(stream) -> None:
    """Shows messages of level INFO in `stream`, and of other packages only warnings."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for noisy in ("jax", "absl", "orbax", "httpx", "bm25s", "etils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    if not getattr(sys.unraisablehook, "leaves_out_closed_loops", False):
        sys.unraisablehook = _leaving_out_closed_loops(sys.unraisablehook)


@contextlib.contextmanager
def until_nobody_reads() -> Iterator[None]:
    """Ends the process silently where the reader of stdout has gone, as `| head` does; code 141, as after SIGPIPE."""
    try:
        yield
        print(end="", flush=True)
    except BrokenPipeError:
        if not _is_closed(sys.stdout):  # a server's connection
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes what Python still writes at its end
        raise SystemExit(141) from None


def _is_closed(stream) -> bool:
    """Whether a pipe has no reader any more; False where this cannot be known."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


def _leaving_out_closed_loops(shown):
    """The hook `shown`, but for one report: an array that orbax failed to save tells the event loop of that save, which
    is closed. The failure itself is raised, and a full disk would bring hundreds of these reports."""
    def hook(lost):
        if lost.object is not None or lost.exc_type is not RuntimeError or str(lost.exc_value) != "Event loop is closed":
            shown(lost)

    hook.leaves_out_closed_loops = True
    return hook
