"""The stored corpus of an index: JSON lines of {title, text}, hashed, and read from disk one by one."""

import hashlib
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from zsjax.errors import InputError, InputExists, InputNotFound, read_json, reading
from zsjax.parallel.files import new_folder
from zsjax.search.engine import Document
from zsjax.types import whole_text

CORPUS, MANIFEST = "corpus.jsonl", "manifest.json"


def row_of(document: Document | Mapping, where: int | str) -> tuple[str, str]:
    """(title, text) of a document. Titles may be missing or null.

    Args:
      document: a `Document`, or a mapping with "text" and "title", or with wiki-18's "contents" ('"Title"\\nText'), or
        with one of these as its "document".
      where: its number, or file and line, for error messages.

    Raises:
      InputError: a text or title that is not a string; the message names `where`, field and value.
    """
    where = f"document {where}" if isinstance(where, int) else where
    if isinstance(document, Mapping):
        row: Mapping = document["document"] if isinstance(document.get("document"), Mapping) else document
        title, text, field = title_of(row), row.get("text"), "text"
        if text in (None, "") and row.get("contents") is not None:
            text, field = row["contents"], "contents"
            if isinstance(text, str):
                first, text = split_contents(text)
                title = first if title is None else title
        missing = field not in row
    elif isinstance(document, Document):
        title, text, field, missing = document.title, document.text, "text", False
    else:
        raise InputError(f"{where} is a {type(document).__name__}; use a Document or a mapping")
    if not isinstance(text, str):
        what = "is missing" if missing else f"is {text!r:.200}"
        raise InputError(f"{where}: field {field!r} {what}; use a string")
    if not isinstance(title, str | None):
        raise InputError(f"{where}: field 'title' is {title!r:.200}; use a string or null")
    return whole_text(title or ""), whole_text(text)


def title_of(document: Mapping):
    """A document's "title", with a number as text; None for a missing title."""
    title = document.get("title")
    if isinstance(title, int | float) and not isinstance(title, bool):
        title = None if title != title else str(title)  # NaN is how pandas writes null
    return title


def split_contents(contents: str) -> tuple[str, str]:
    """(title, text) of wiki-18's field: the title in quotation marks, a newline, the text. A single line is text."""
    title, newline, text = contents.partition("\n")
    if not newline:
        return "", contents
    return unquoted(title), text


def unquoted(title: str) -> str:
    """A title without white space and one pair of quotation marks at its ends."""
    title = title.strip()
    return title[1:-1] if len(title) > 1 and title[0] == title[-1] == '"' else title


def line_of(row: tuple[str, str]) -> bytes:
    return json.dumps({"title": row[0], "text": row[1]}, ensure_ascii=False).encode() + b"\n"


def hash_of(rows: Sequence[tuple[str, str]]) -> str:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(line_of(row))
    return digest.hexdigest()


class StoredDocuments:
    """The documents of a stored index: a sequence that reads a document from disk at each access."""

    def __init__(self, path: pathlib.Path):
        self._file = open(path, "rb")
        digest, starts, offset = hashlib.sha256(), [], 0
        for line in self._file:
            digest.update(line)
            starts.append(offset)
            offset += len(line)
        self._starts, self.sha256 = np.array(starts, np.int64), digest.hexdigest()

    def __len__(self):
        return len(self._starts)

    def __getitem__(self, row):
        # A positioned read: several threads may search one engine.
        start = int(self._starts[row])
        stop = int(self._starts[row + 1]) if row + 1 < len(self) else None
        data = os.pread(self._file.fileno(), (stop or os.fstat(self._file.fileno()).st_size) - start, start)
        document = json.loads(data)
        return document["title"], document["text"]


def file_hash(path: pathlib.Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save_index(path: str | os.PathLike, documents: Sequence, manifest: dict, write_arrays: Callable) -> None:
    """Writes an index folder, whole or not at all. An index that is already there is replaced.

    Args:
      path: the folder.
      documents: (title, text) rows, in the order of the index.
      manifest: settings, written last.
      write_arrays: folder -> None; writes the other files.

    Raises:
      InputExists: the path holds something else.
      OutputError: the folder cannot be written.
    """
    path = pathlib.Path(path)
    if path.exists() and not (path / MANIFEST).exists():
        raise InputExists(f"{path} is not an index folder (it has no {MANIFEST}); choose another path")
    with new_folder(path) as unfinished:
        write_arrays(unfinished)
        with open(unfinished / CORPUS, "wb") as file:
            file.writelines(line_of(documents[row]) for row in range(len(documents)))
        manifest = manifest | {"files": {
            file.name: file_hash(file) for file in sorted(unfinished.iterdir()) if file.name != CORPUS}}
        manifest["check"] = _check_sum(manifest)
        (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def load_index(path: str | os.PathLike, *, kind: str, form: int, corpus_hash: str | None) -> tuple[StoredDocuments, dict]:
    """(documents, settings) of an index folder, checked: all its files are read once, as fast as the disk gives them.

    Raises:
      InputNotFound: no such index.
      InputError: an index of another kind, format or corpus, or a file that has changed since it was written.
    """
    path = pathlib.Path(path)
    if not (path / MANIFEST).exists():
        raise InputNotFound(f"{path} has no {kind} index ({MANIFEST} is missing); build one with "
                            f"{kind}.from_documents(...).save(path)")
    anew = f"remove {path} to build the index anew"
    settings = _settings(path / MANIFEST, anew)
    intact = settings.pop("check", None) in (None, _check_sum(settings))  # an older version wrote none
    if (settings.pop("kind", kind), settings.pop("format", None)) != (kind, form):
        raise InputError(f"{path} is an index of another kind or another format; {anew}")
    if not intact:
        raise InputError(f"{path / MANIFEST} has changed since it was written; {anew}")
    for name, value in settings.pop("files", {}).items():  # an older version wrote none
        with reading(path / name):
            if file_hash(path / name) != value:
                raise InputError(f"{path / name} has changed since it was written; {anew}")
    with reading(path / CORPUS):
        documents = StoredDocuments(path / CORPUS)
    if documents.sha256 != settings["corpus_sha256"] or len(documents) != settings["num_documents"]:
        raise InputError(f"{path / CORPUS} has changed since it was indexed; {anew}")
    if corpus_hash is not None and corpus_hash != settings["corpus_sha256"]:
        raise InputError(f"{path} is the index of another corpus (hash {settings['corpus_sha256'][:12]}..., not "
                         f"{corpus_hash[:12]}...); build the index anew")
    return documents, settings


def _settings(path: pathlib.Path, anew: str) -> dict:
    """The settings in a manifest. Raises InputError, ending in `anew`, for something else."""
    settings = read_json(path, anew, dict)
    files = settings.get("files", {})
    if not isinstance(files, dict) or any(pathlib.PurePath(name).name != name for name in files) or not (
            isinstance(settings.get("corpus_sha256"), str) and isinstance(settings.get("num_documents"), int)):
        raise InputError(f"{path} is not the manifest of an index; {anew}")
    return settings


def _check_sum(manifest: Mapping) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())
