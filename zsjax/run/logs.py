"""Log messages on the terminal."""

import logging

from zsjax.types import printable


class _Printable(logging.Formatter):
    """Messages quote files and servers, which cannot drive the terminal."""

    def format(self, record):
        return printable(super().format(record))


def show_logs(stream) -> None:
    """Shows messages of level INFO in `stream`, and of other packages only warnings."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Printable("%(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for noisy in ("jax", "absl", "orbax", "httpx", "bm25s", "etils"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
