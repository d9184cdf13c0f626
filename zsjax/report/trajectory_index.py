"""Where each trajectory of a run is in its files, and what it can be chosen by.

A record takes `ENTRY.itemsize` bytes of memory, whatever its text takes on disk; texts are read when they are asked for.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import threading
import time
from collections.abc import Iterator

import numpy as np

from zsjax.errors import InputError
from zsjax.report.run_files import trajectory_problem
from zsjax.types import STATUS_NAMES

FOLDERS = ("trajectories", "evaluation")
ENTRY = np.dtype([("offset", np.int64), ("size", np.int64), ("question", np.uint64), ("score", np.float32),
                  ("searches", np.int16), ("data_set", np.int16), ("status", np.int8), ("noisy", np.bool_)])
ORDERS = ("file", "best", "worst")
SCAN_SECONDS = 2.0  # of a text search before the page gets what was found so far
RECORDS_AT_A_TIME = 64
REFRESH_SECONDS = 2.0  # between two looks at the folder


@dataclasses.dataclass(frozen=True)
class Filters:
    """Which trajectories are wanted; None or "" wants all.

    Attributes:
      low, high: bounds of the score (`score_of`), both included.
      fewest, most: bounds of the number of searches, both included.
      status: a name of `types.STATUS_NAMES`.
      noisy: whether a search was noisy.
      data_set: a label of the records.
      file: what the file's name begins with, such as "trajectories/train_000010" or "evaluation/".
      text: stands in the question, a gold answer, the answer or a segment; case is ignored.
      order: of `ORDERS`.
    """

    low: float | None = None
    high: float | None = None
    fewest: int | None = None
    most: int | None = None
    status: str = ""
    noisy: bool | None = None
    data_set: str = ""
    file: str = ""
    text: str = ""
    order: str = "file"


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """A record and where it is: in line `number` of the objects of `file`."""

    file: str
    number: int
    record: dict


@dataclasses.dataclass(frozen=True)
class Page:
    """A part of what was asked for.

    Attributes:
      total: trajectories that pass all filters but the text.
      found: those of this page.
      next: where the next page begins; None at the end.
    """

    total: int
    found: list[Trajectory]
    next: int | None


@dataclasses.dataclass
class _File:
    """What is known of a file. mark: changes with its content. damaged: lines that are not records."""

    mark: tuple
    entries: np.ndarray
    damaged: int


class TrajectoryIndex:
    """The trajectories of one run: WORKDIR/trajectories/*.jsonl and WORKDIR/evaluation/*.jsonl.

    Attributes:
      data_sets: labels that occur. files: {name without .jsonl: `_File`}, in order.
    """

    def __init__(self, workdir):
        """Reads every file once. Raises InputError where there is no such folder."""
        self.workdir = pathlib.Path(workdir)
        if not self.workdir.is_dir():
            raise InputError(f"there is no run in {workdir}: no such folder")
        self.data_sets: list[str] = []
        self.files: dict[str, _File] = {}
        self._lock, self._looked = threading.Lock(), -math.inf
        self.refresh()

    def __len__(self) -> int:
        return sum(len(file.entries) for file in self.files.values())

    @property
    def damaged(self) -> int:
        """Lines that are not records, in all files."""
        return sum(file.damaged for file in self.files.values())

    def refresh(self):
        """Reads what is new: files that appeared or changed since the last look."""
        with self._lock:
            if time.monotonic() - self._looked < REFRESH_SECONDS:
                return
            files = {}
            for path in [path for folder in FOLDERS for path in sorted((self.workdir / folder).glob("*.jsonl"))]:
                name, stat = path.relative_to(self.workdir).with_suffix("").as_posix(), path.stat()
                mark = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
                known = self.files.get(name)
                files[name] = known if known is not None and known.mark == mark else self._read(path, mark)
            self.files, self._looked = files, time.monotonic()

    def select(self, filters: Filters) -> np.ndarray:
        """int64[n, 2], (place in `files`, number in the file) of what passes all filters but the text, in their order."""
        status = STATUS_NAMES.index(filters.status) if filters.status else None
        data_set = self.data_sets.index(filters.data_set) if filters.data_set else None
        bounds = (("score", filters.low, filters.high), ("searches", filters.fewest, filters.most),
                  ("status", status, status), ("data_set", data_set, data_set), ("noisy", filters.noisy, filters.noisy))
        places, scores = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.float32)]
        for place, (name, file) in enumerate(self.files.items()):
            if not name.startswith(filters.file):
                continue
            keep = np.ones(len(file.entries), bool)
            for column, low, high in bounds:
                keep &= True if low is None else file.entries[column] >= low
                keep &= True if high is None else file.entries[column] <= high
            numbers = np.flatnonzero(keep)
            places.append(np.stack([np.full_like(numbers, place), numbers], axis=1))
            scores.append(file.entries["score"][numbers])
        found = np.concatenate(places)
        if filters.order == "file":
            return found
        score = np.nan_to_num(np.concatenate(scores), nan=0.0)
        return found[np.argsort(score if filters.order == "worst" else -score, kind="stable")]

    def page(self, filters: Filters, first: int, count: int) -> Page:
        """The trajectories from place `first` of `select` on that also hold the text, at most `count`.

        A search for a text ends after SCAN_SECONDS, so that its pages may be short.
        """
        chosen, found, deadline = self.select(filters), [], time.monotonic() + SCAN_SECONDS
        names, position = list(self.files), first
        with _Lines(self.workdir) as lines:
            for place, number in chosen[first:].tolist():
                if len(found) == count or (filters.text and position > first and time.monotonic() > deadline):
                    break
                position += 1
                line = lines.read(names[place], self.files[names[place]].entries[number])
                if not filters.text or _may_hold(line, filters.text):
                    record = json.loads(line)
                    if not filters.text or _holds(record, filters.text):
                        found.append(Trajectory(names[place], number, record))
        return Page(len(chosen), found, position if position < len(chosen) else None)

    def records(self, filters: Filters) -> Iterator[Trajectory]:
        """All that pass the filters, in their order, one at a time."""
        first = 0
        while first is not None:
            page = self.page(filters, first, RECORDS_AT_A_TIME)
            yield from page.found
            first = page.next

    def record(self, name: str, number: int) -> dict:
        """A whole record. Raises InputError where there is none."""
        file = self.files.get(name)
        if file is None or not 0 <= number < len(file.entries):
            raise InputError(f"{self.workdir} has no trajectory {name}:{number}")
        with _Lines(self.workdir) as lines:
            return json.loads(lines.read(name, file.entries[number]))

    def same_question(self, question: str, most: int) -> list[dict]:
        """[{"id": "FILE:NUMBER", "score": float or None}] of the trajectories of a question, the first `most`."""
        name, found = _hash(question), []
        for file_name, file in self.files.items():
            for number in np.flatnonzero(file.entries["question"] == name).tolist():
                score = float(file.entries["score"][number])
                found.append({"id": f"{file_name}:{number}", "score": None if math.isnan(score) else score})
        return found[:most]

    def _read(self, path, mark) -> _File:
        entries, damaged, offset = [], 0, 0
        with open(path, "rb") as file:
            for line in file:
                record = _object(line)
                if record is not None:
                    entries.append(self._entry(record, offset, len(line)))
                elif line.endswith(b"\n") and line.strip():  # a last line without its end is still being written
                    damaged += 1
                offset += len(line)
        return _File(mark, np.array(entries, ENTRY), damaged)

    def _entry(self, record, offset, size):
        status, label = record.get("status"), record.get("data_set")
        score, searches = score_of(record), record.get("num_searches")
        if label is not None and str(label) not in self.data_sets:
            self.data_sets.append(str(label))
        noisy = record.get("noisy")
        return (offset, size, _hash(record.get("question")), math.nan if score is None else score,
                searches if isinstance(searches, int) and abs(searches) < 2**15 else 0,
                -1 if label is None else self.data_sets.index(str(label)),
                STATUS_NAMES.index(status) if status in STATUS_NAMES else -1, isinstance(noisy, list) and any(noisy))


class _Lines:
    """Lines of a run's files by their places; a context that keeps files open."""

    def __init__(self, workdir):
        self._workdir, self._open = workdir, {}

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        for file in self._open.values():
            file.close()

    def read(self, name, entry) -> bytes:
        if name not in self._open:
            self._open[name] = open(self._workdir / f"{name}.jsonl", "rb")
        self._open[name].seek(int(entry["offset"]))
        return self._open[name].read(int(entry["size"]))


def score_of(record: dict) -> float | None:
    """The record's reward, else its F1, else its exact match; None where it has none of them."""
    for name in ("reward", "f1", "em"):
        value = record.get(name)
        if isinstance(value, int | float) and math.isfinite(value):
            return float(value)
    return None


def _object(line) -> dict | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and not trajectory_problem(record) else None


def _hash(question) -> int:
    return int.from_bytes(hashlib.blake2b(str(question).encode("utf-8", "replace"), digest_size=8).digest())


def _may_hold(line: bytes, text: str) -> bool:
    """Whether a JSON line may hold a text: quick, and never False where it does."""
    plain = json.dumps(text, ensure_ascii=False)[1:-1]
    return b"\\u" in line or plain.lower() in line.decode("utf-8", "replace").lower()


def _holds(record: dict, text: str) -> bool:
    texts = [record.get("question"), record.get("answer"), *record.get("golden_answers", ()),
             *(segment.get("text") for segment in record.get("segments", ()))]
    return any(isinstance(each, str) and text.lower() in each.lower() for each in texts)
