"""Log messages and errors on the terminal. They quote files and servers, which cannot drive it.

`zsjax.types` is imported late: jax reads its environment when it is imported, and `zsjax.launch` sets it before.
"""

import logging
import sys


class _Printable(logging.Formatter):
    def format(self, record):
        from zsjax.errors import printable

        return printable(super().format(record))


def show(text: str) -> None:
    """Prints a text to stderr."""
    from zsjax.errors import printable

    print(printable(text), file=sys.stderr)


def show_logs(stream) -> None:
    """Shows messages of level INFO in `stream`, and of other packages only warnings."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for noisy in ("jax", "absl", "orbax", "httpx", "bm25s", "etils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
