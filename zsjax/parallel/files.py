"""Files and folders that are written whole: after a crash, a reader finds the old one or the new one, never a part.

What is being written has another name, NAME.PROCESS-THREAD.writing, until it is complete, and its writer holds a lock on it.
What a killed process left is removed: a folder by the next `new_folder` of its name, a file by `remove_abandoned`, and
all in a run's folder by `remove_unfinished`. A folder that is being replaced is NAME.PROCESS-THREAD.replaced for a moment.
Where it is the only one left, these give it its name back.
"""

import contextlib
import errno
import itertools
import json
import logging
import os
import pathlib
import re
import shutil
import threading
from collections.abc import Iterable, Iterator

from zsjax.errors import OutputError, writing

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Of this module, of version 0.2 (NAME.writing-PROCESS), and of orbax.
_UNFINISHED = re.compile(r"\.\d+-\d+\.writing$|\.writing-\d+$|\.orbax-checkpoint-tmp")
_REPLACED = re.compile(r"\.\d+-\d+\.replaced$")


def write_bytes(path: str | os.PathLike, data: bytes | Iterable[bytes]) -> None:
    """Writes a file, given at once or piece by piece; makes its folder.

    The bytes go to a temporary file beside it, which is flushed to disk and then renamed; then the folder is flushed, so
    that a power loss takes nothing back. Several processes and threads
    may write one file: the last one wins.

    Raises:
      OutputError: the file cannot be written; it is left as it was.
    """
    path = pathlib.Path(path)
    unfinished = _beside(path, "writing")
    with writing(path):
        _make_folder(path.parent)
        try:
            with _opened_and_held(unfinished) as file:
                file.writelines([data] if isinstance(data, bytes) else data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(unfinished, path)
            flush(path.parent)
        except BaseException:  # an interrupt as well, or an error of the iterable
            with contextlib.suppress(OSError):
                unfinished.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A folder to be filled. It takes the name `path` when the block ends; an older folder there is replaced.

    Its writer holds locks on it and on the one it replaces. So unfinished folders of the same name without one are known
    to be abandoned. They are removed, and an old folder that lost its name gets it back.

    Raises:
      OutputError: the folder cannot be written; what was at `path` is left as it was.
    """
    path = pathlib.Path(path)
    unfinished, replaced = _beside(path, "writing"), _beside(path, "replaced")
    with writing(path):
        _make_folder(path.parent)
        _settle_abandoned(path)
        shutil.rmtree(unfinished, ignore_errors=True)  # where nothing can be locked: of an earlier process of this number
        held, held_old = _made_and_held(unfinished), _hold(path)
        try:
            yield unfinished
            for written in (*unfinished.rglob("*"), unfinished):
                flush(written)
            if path.is_dir():  # a folder cannot be renamed over a full one: the old one steps aside for a moment
                path.rename(replaced)
            unfinished.rename(path)
            flush(path.parent)
        except BaseException:
            if replaced.is_dir() and not path.exists():
                with contextlib.suppress(OSError):  # a full disk: the old folder waits under its other name
                    replaced.rename(path)
            raise
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
            if path.exists():
                shutil.rmtree(replaced, ignore_errors=True)
            for descriptor in (held, held_old):
                if descriptor is not None:
                    os.close(descriptor)


def remove_abandoned(path: str | os.PathLike) -> None:
    """Removes what killed writers of a file or folder of this name left beside it, before it is written anew.

    It lists the file's folder, which may hold a hundred thousand others, and so is left to the caller of `write_bytes`.
    """
    path = pathlib.Path(path)
    if path.parent.is_dir():
        with writing(path):
            _settle_abandoned(path)


def _settle_abandoned(path):
    """`remove_abandoned`; an old folder that lost its name gets it back."""
    own = re.compile(re.escape(path.name) + r"\.\d+-\d+\.(writing|replaced)")
    for left in [left for left in path.parent.iterdir() if own.fullmatch(left.name)]:
        if (held := _hold(left)) is None:
            continue
        try:
            if _REPLACED.search(left.name) and not path.exists():
                logging.warning("%s is taken back as %s: its replacement did not end", left, path)
                left.rename(path)
            else:
                logging.info("%s is removed: a process that was killed left it unfinished", left)
                if left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)
                else:
                    left.unlink(missing_ok=True)
        finally:
            os.close(held)


def remove_unfinished(folder: str | os.PathLike, *, but_below: str = "") -> None:
    """Removes what killed processes left in `folder`: files that are not complete, and old ones that were replaced.

    What another process is writing is locked and left alone, and so is each folder below that holds a file `but_below`.
    """
    for parent, folders, names in os.walk(str(folder)):
        if but_below in names and parent != str(folder):
            folders.clear()
            continue
        for name in [*folders, *names]:
            path, ended = pathlib.Path(parent, name), _REPLACED.search(name)
            if not (ended or _UNFINISHED.search(name)) or _is_held(path):
                continue
            if ended and not (kept := path.with_name(name[:ended.start()])).exists():
                path.rename(kept)  # ended between two renames: the old folder is the only one
                continue
            logging.info("%s is removed: a process that was killed left it unfinished", path)
            if name in folders:
                shutil.rmtree(path)
            else:
                path.unlink()
        folders[:] = [name for name in folders if pathlib.Path(parent, name).is_dir()]


def lock(file, *, wait: bool = True, required: bool = False) -> bool:
    """Locks an open file until it is closed or its process ends; whether it has the lock.

    Args:
      file: an open file. Where its file system has no locks, a warning says so, and the answer is True.
      wait: waits for the process that has it.
      required: raises OutputError instead of the warning.
    """
    try:
        if fcntl is None:
            raise OSError("this platform has no fcntl")
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if required:
            raise OutputError(f"{file.name} cannot be locked ({error}); use a folder on a file system with locks") from error
        logging.warning("%s cannot be locked (%s): let only one process at a time use this folder", file.name, error)
    return True


def _hold(path) -> int | None:
    """A descriptor that locks a file or folder; None where somebody else has it, or the file system cannot lock."""
    if fcntl is None:
        return None
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return descriptor
    except OSError:
        if descriptor is not None:
            os.close(descriptor)
        return None


def _is_held(path) -> bool:
    """Whether another process holds a file or folder; False where the file system cannot lock."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _made_and_held(folder) -> int | None:
    """Makes the folder and locks it, anew where another process took it for abandoned between the two."""
    while True:
        folder.mkdir()
        held = _hold(folder)
        if folder.is_dir():
            return held
        if held is not None:
            os.close(held)


@contextlib.contextmanager
def _opened_and_held(path):
    """The file, open for writing and locked; anew where another process took it for abandoned between the two."""
    while True:
        with open(path, "wb") as file:
            with contextlib.suppress(OSError):  # where nothing can be locked, nothing is taken for abandoned
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists():
                yield file
                return


def _beside(path, state):
    return path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.{state}")


def _make_folder(folder):
    """Makes a folder with its parents, on the disk too."""
    new = list(itertools.takewhile(lambda parent: not parent.exists(), (folder, *folder.parents)))
    folder.mkdir(parents=True, exist_ok=True)
    for made in new:
        flush(made.parent)


def flush(path: str | os.PathLike) -> None:
    """Returns when a file's bytes, or the names in a folder, are on the disk.

    Raises:
      OSError: the disk refuses. Some systems cannot flush a folder; there it does nothing.
    """
    is_folder = os.path.isdir(path)
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if not (is_folder and error.errno in (errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOTSUP)):
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
