"""The evaluations of a run's folder, side by side: what was evaluated, how, and the result.

    evaluation/NAME.json    an `Evaluation`, written last
    evaluation/NAME.jsonl   its records, one an episode

NAME ends in the first digits of the evaluation's key, a hash of what was evaluated and how. The same evaluation is thus
found again, and one of another policy or with other options never replaces it.
"""

import dataclasses
import functools
import hashlib
import json
import math
import pathlib
import zlib
from collections.abc import Mapping, Sequence

from zsjax.errors import InputError, json_value, reading
from zsjax.evaluate import failed_searches
from zsjax.monitor.writer import read_jsonl
from zsjax.parallel.files import write_json, write_jsonl

BASE, TRAINED, NO_POLICY = "base", "trained", "none"
WEIGHTS = (".safetensors", ".gguf")
MAX_NUMBER = 1e300  # beyond it charts cannot be computed in float64
_COUNTS = ("failed_searches", "searches", "tokens")  # of a row
_SCORES = ("n", "em", "em_se", "contains", "contains_se")


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
      role: "base": the policy before training; "trained": what the run trained; "none": no policy plays.
      source: of its parameters: a folder, "asset:NAME" or "random".
      fingerprint: of the parameters, see `fingerprint`.
    """

    role: str
    source: str
    fingerprint: str

    def __str__(self):
        words = {BASE: "untrained base", TRAINED: "trained policy", NO_POLICY: "no policy"}[self.role]
        return f"{words} {self.source}".strip()


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One evaluation.

    Attributes:
      part: its place in the run's evaluation: "before", "after", "before_lossy", "baseline_rag", ...
      title: its name in tables.
      number: counts the evaluations of a folder; the newest has the highest.
      subject: what was evaluated.
      how: the options that the figures depend on: questions, engine, prompts, budgets, temperature, ...
      searches, failed_searches: of all its episodes.
      rows: of `evaluate.summarize`.
    """

    part: str
    title: str
    number: int
    subject: Subject
    how: Mapping
    searches: int = 0
    failed_searches: int = 0
    rows: Sequence[Mapping] = ()

    @property
    def name(self) -> str:
        return f"{self.part}-{key(self.part, self.subject, self.how)[:8]}"

    @property
    def finished(self) -> bool:
        """False where more than half of the searches failed, so that the figures say nothing about the policy."""
        return 2 * self.failed_searches <= self.searches

    def with_records(self, records: Sequence[Mapping], rows: Sequence[Mapping]) -> "Evaluation":
        """This evaluation with its result; each row names the evaluation and the policy."""
        filled = dataclasses.replace(self, searches=sum(record["num_searches"] for record in records),
                                     failed_searches=sum(map(failed_searches, records)))
        marks = {"evaluation": self.name, "policy": str(self.subject), "role": self.subject.role,
                 "fingerprint": self.subject.fingerprint}
        return dataclasses.replace(filled, rows=[{**row, **marks} for row in rows])


def key(part: str, subject: Subject, how: Mapping) -> str:
    """Hex digits of the hash of (part, what is evaluated, how)."""
    what = [part, subject.role, subject.fingerprint, how]
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def fingerprint(path) -> str:
    """Hex digits of a checkpoint's parameters: the SHA-256 of its weight files and config.json; reads them whole."""
    path = pathlib.Path(path)
    files = [path] if path.is_file() else sorted(
        file for file in path.glob("*") if file.suffix in WEIGHTS or file.name == "config.json")
    return _hash_of(tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@functools.lru_cache  # several tables of a process read the same files
def _hash_of(files):
    digest = hashlib.sha256()
    for name, size, _ in files:
        digest.update(f"{pathlib.Path(name).name} {size} ".encode())
        with reading(name), open(name, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


class Kept:
    """The evaluations in a run's folder. A file that is not an evaluation raises `InputError`."""

    def __init__(self, workdir):
        self.workdir = pathlib.Path(workdir)
        self.folder = self.workdir / "evaluation"

    def all(self) -> list[Evaluation]:
        """Oldest first."""
        found = [_read(path) for path in self.folder.glob("*-????????.json")]
        return sorted(found, key=lambda evaluation: evaluation.number)

    def find(self, wanted: Evaluation) -> Evaluation | None:
        """The evaluation of the same part, subject and options."""
        path = self.folder / f"{wanted.name}.json"
        return _read(path) if path.exists() else None

    def records(self, name: str) -> list[dict]:
        path = self.folder / f"{name}.jsonl"
        records, about = read_jsonl(path), self.folder / f"{name}.json"
        if about.exists() and _fields(about)[1] not in (None, _check_sum(records)):
            raise InputError(f"{path} is not what the evaluation left; remove {about} to evaluate again")
        return records

    def add(self, evaluation: Evaluation, records: Sequence[Mapping]) -> None:
        """Writes an evaluation; one of the same name is replaced."""
        write_jsonl(self.folder / f"{evaluation.name}.jsonl", records)
        fields = json.loads(json.dumps(dataclasses.asdict(evaluation), default=str))
        sums = {"check": _check_sum(fields), "check_records": _check_sum(list(records))}
        write_json(self.folder / f"{evaluation.name}.json", fields | sums, indent=1)

    def trained_fingerprint(self) -> str | None:
        """The fingerprint of the trained policy; None where there is none."""
        policy = self.workdir / "models" / "policy"
        return fingerprint(policy) if (policy / "config.json").exists() else None


def _read(path):
    try:
        fields, _ = _fields(path)
        found = Evaluation(**fields | {"subject": Subject(**fields["subject"])})
    except (TypeError, KeyError) as error:
        raise InputError(f"{path}: not an evaluation ({error}); remove it to evaluate again") from error
    if what := _problem(found):
        raise InputError(f"{path}: {what}; remove it to evaluate again")
    return found


def _problem(evaluation) -> str:
    """What is wrong with an evaluation that was read from a file; "" for nothing."""
    for value, kinds in ((evaluation, {"part": str, "title": str, "number": int, "searches": int, "failed_searches": int,
                                       "how": dict, "rows": list}),
                         (evaluation.subject, {"role": str, "source": str, "fingerprint": str})):
        for name, kind in kinds.items():
            if type(getattr(value, name)) is not kind:
                return f"{name} = {getattr(value, name)!r:.100} is not a {kind.__name__}"
    return next(filter(None, map(row_problem, evaluation.rows)), "")


def row_problem(row) -> str:
    """What is wrong with a row of `evaluate.summarize` that was read from a file; "" for nothing."""
    if not isinstance(row, dict):
        return f"a {type(row).__name__} is not an object"
    for name, value in row.items():
        if not is_number(value) and (name in _COUNTS or not isinstance(value, str)):
            return f"{name} = {value!r:.100} is not a {'number' if name in _COUNTS else 'text or a number'}"
    if "data_set" in row and not isinstance(row.get("name"), str):
        return "the field name is missing"
    needed = _SCORES if row.get("data_set") not in (None, "all") else ()  # the paper's table has them
    odd = [name for name in needed if not isinstance(row.get(name), int | float)]
    return f"{odd[0]} = {row.get(odd[0])!r:.100} is not a number" if odd else ""


def is_number(value) -> bool:
    """Also null. A float may be infinite or NaN."""
    if isinstance(value, float) and not math.isfinite(value):
        return True
    return value is None or isinstance(value, int | float) and abs(value) < MAX_NUMBER


def _fields(path) -> tuple[dict, int | None]:
    """(the fields of a kept evaluation, checked; the check sum of its records). Version 0.2 wrote no check sums."""
    try:
        with reading(path):
            fields = dict(json_value(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not an evaluation ({error}); remove it to evaluate again") from error
    check, of_records = (fields.pop(name, None) for name in ("check", "check_records"))
    if check not in (None, _check_sum(fields)):
        raise InputError(f"{path} is not what the evaluation left; remove it to evaluate again")
    return fields, of_records


def _check_sum(value) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True, default=str).encode())
