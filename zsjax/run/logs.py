"""Log messages and errors on the terminal. They quote files and servers, which cannot drive it."""

import logging
import sys

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


def _leaving_out_closed_loops(shown):
    """The hook `shown`, but for one report: an array that orbax failed to save tells the event loop of that save, which
    is closed. The failure itself is raised, and a full disk would bring hundreds of these reports."""
    def hook(lost):
        if lost.object is not None or lost.exc_type is not RuntimeError or str(lost.exc_value) != "Event loop is closed":
            shown(lost)

    hook.leaves_out_closed_loops = True
    return hook
