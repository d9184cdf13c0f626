"""Files that are written whole: after a crash a reader finds the old file or the new one, never a part of one."""

import json
import os
import pathlib
import threading
from collections.abc import Iterable


def write_bytes(path: str | os.PathLike, data: bytes | Iterable[bytes]) -> None:
    """Writes a file, given at once or piece by piece; makes its folder.

    The bytes go to a temporary file beside it, are flushed to disk, and take the file's name only then. Several
    processes and threads may write one file: the last one wins.

    Raises:
      OSError: the file cannot be written. It is then as it was.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.writing")
    try:
        with open(unfinished, "wb") as file:
            file.writelines([data] if isinstance(data, bytes) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except BaseException:  # an interrupt, too, or what the pieces raise while they are made
        unfinished.unlink(missing_ok=True)
        raise


def write_text(path: str | os.PathLike, text: str | Iterable[str]) -> None:
    """As `write_bytes`, in UTF-8."""
    write_bytes(path, (piece.encode() for piece in ([text] if isinstance(text, str) else text)))


def write_json(path: str | os.PathLike, value, **options) -> None:
    """As `write_text`: JSON that ends in a newline. options: of `json.dumps`."""
    write_text(path, json.dumps(value, ensure_ascii=False, **options) + "\n")


def write_jsonl(path: str | os.PathLike, rows: Iterable) -> None:
    """As `write_text`: a line of JSON for each row."""
    write_text(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
