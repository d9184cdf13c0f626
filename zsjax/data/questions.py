"""Questions and corpora: JSONL, parquet, TensorFlow Datasets and the tiny world; and the order of training.

A row of a question file is {"id": str, "question": str, "golden_answers": [str, ...], "metadata": {...}}, of a corpus
file {"id": str, "title": str, "text": str}.
"""

import gzip
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from zsjax.errors import InputError, InputNotFound
from zsjax.search.engine import Document
from zsjax.types import Question

TINY_WORLD = "tiny_world:"
TFDS = "tfds:"


def load_questions(source: str | pathlib.Path, *, split: str | None = None, limit: int | None = None,
                   seed: int | None = None, world: Mapping | None = None) -> list[Question]:
    """Questions of a file or a data set.

    Args:
      source: a path ending in .jsonl, .jsonl.gz or .parquet; "tiny_world:train" or "tiny_world:eval"; or "tfds:NAME"
        (natural_questions_open, trivia_qa, or any with the features question and answer).
      split: of a file, only rows whose metadata has this "split"; of a TFDS data set, its split ("validation" if None).
      limit: at most so many, after the shuffle.
      seed: None keeps the order of the source; a number shuffles it.
      world: options of the tiny world, when it is the source.

    Raises:
      FileNotFoundError: no such file.
      ValueError: an unknown kind of source, or a bad row: one line with file, line and field.
    """
    name = str(source)
    if name.startswith(TINY_WORLD):
        from zsjax.tiny_world import world as tiny_world

        questions = list(tiny_world.questions(tiny_world.resolve(name, **(world or {}))))
    elif name.startswith(TFDS):
        questions = _tfds_questions(name[len(TFDS):], split or "validation")
    else:
        questions = [_question(row, where) for row, where in _rows(name, (".jsonl", ".jsonl.gz", ".parquet"))]
        if split is not None:
            held = sorted({str(question.metadata.get("split")) for question in questions})
            questions = [question for question in questions if question.metadata.get("split") == split]
            if not questions:
                raise InputError(f"{name}: no row has metadata.split == {split!r}; there are {', '.join(held)}")
    if seed is not None:
        questions = [questions[i] for i in np.random.default_rng(seed).permutation(len(questions))]
    return questions if limit is None else questions[:limit]


def load_corpus(source: str | pathlib.Path, *, world: Mapping | None = None) -> list[Document]:
    """Documents of a .jsonl[.gz] or .parquet path of {id, title, text}, or of "tiny_world:train" / "tiny_world:eval".

    world: options of the tiny world, when it is the source.

    Raises:
      FileNotFoundError, ValueError: as `load_questions`.
    """
    name = str(source)
    if name.startswith(TINY_WORLD):
        from zsjax.tiny_world import world as tiny_world

        return list(tiny_world.documents(tiny_world.resolve(name, **(world or {}))))
    return [Document(_text(row, "title", where), _text(row, "text", where, blank=False))
            for row, where in _rows(name, (".jsonl", ".jsonl.gz", ".parquet"))]


class QuestionStream:
    """The questions of each training step: epoch after epoch, each in an order of its own, none twice in an epoch.

    What a step gets is a function of (seed, step) alone, so that a resumed run needs no state of this object.
    """

    def __init__(self, questions: Sequence[Question], seed: int):
        """Raises ValueError when there are no questions."""
        if not questions:
            raise InputError("no questions to train on")
        self.questions, self.seed = list(questions), seed
        self._epoch, self._order = -1, None

    def batch(self, step: int, n: int) -> list[Question]:
        """Questions step * n to (step + 1) * n of the stream; n must be the same in every step of a run."""
        size = len(self.questions)
        return [self.questions[self._order_of(at // size)[at % size]] for at in range(step * n, (step + 1) * n)]

    def _order_of(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.questions))
        return self._order


def _rows(name: str, suffixes: Sequence[str]) -> Iterator[tuple[dict, str]]:
    """(row, where it stands) of a file."""
    path = pathlib.Path(name)
    if not name.endswith(tuple(suffixes)):
        raise InputError(f"{name!r}: unknown kind of source; give a path ending in {', '.join(suffixes)}, "
                         f"'{TINY_WORLD}train', '{TINY_WORLD}eval' or '{TFDS}NAME'")
    if not path.is_file():
        raise InputNotFound(f"no file {name!r}; check the path")
    if name.endswith(".parquet"):
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise InputError(f"{name}: reading parquet needs pyarrow: pip install pyarrow, or give a .jsonl") from error
        for number, row in enumerate(pyarrow.parquet.read_table(path).to_pylist(), start=1):
            yield row, f"{name}, row {number}"
        return
    with (gzip.open if name.endswith(".gz") else open)(path, "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{name}, line {number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{where}: no JSON ({error})") from error
            if not isinstance(row, dict):
                raise InputError(f"{where}: must be an object, not {type(row).__name__}")
            yield row, where


def _text(row: dict, field: str, where: str, *, blank: bool = True) -> str:
    value = row.get(field)
    if isinstance(value, int) and field == "id" and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not (blank or value.strip()):
        what = "is missing" if field not in row else f"is {value!r}"
        raise InputError(f"{where}: field {field!r} {what}; it must be a {'' if blank else 'non-empty '}string")
    return value


def _question(row: dict, where: str) -> Question:
    golds = row.get("golden_answers")
    if not isinstance(golds, list) or not golds or not all(isinstance(gold, str) for gold in golds):
        what = "is missing" if "golden_answers" not in row else f"is {golds!r}"
        raise InputError(f"{where}: field 'golden_answers' {what}; it must be a non-empty list of strings")
    metadata = row.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise InputError(f"{where}: field 'metadata' is {metadata!r}; it must be an object")
    return Question(_text(row, "id", where, blank=False), _text(row, "question", where, blank=False), tuple(golds),
                    metadata or {})


def _tfds_questions(name: str, split: str) -> list[Question]:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise InputError(f"tfds:{name} needs tensorflow-datasets: pip install tensorflow-datasets") from error
    try:
        try:
            rows = tfds.data_source(name, split=split)  # array_record files: no TensorFlow needed
        except NotImplementedError:  # prepared as TFRecord
            rows = tfds.as_numpy(tfds.load(name, split=split))
    except Exception as error:  # a missing data set, no network, no TensorFlow: TFDS has no common class for them
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        mend = "prepare it where there is a network (tfds build NAME --file_format=array_record) and set TFDS_DATA_DIR"
        raise InputError(f"cannot load tfds:{name}, split {split!r}: {reason}; {mend}, or give a .jsonl") from error
    questions = []
    for number, row in enumerate(rows):
        where = f"tfds:{name}, {split} row {number}"
        golds = _tfds_answers(row)
        if "question" not in row or not golds:
            raise InputError(f"{where}: no features 'question' and 'answer' (there are {', '.join(sorted(row))})")
        key = next((key for key in ("id", "question_id") if key in row), None)
        id = _string(row[key]) if key else f"{name}-{split}-{number}"
        questions.append(Question(id, _string(row["question"]), golds, {"split": split}))
    return questions


def _tfds_answers(row: dict) -> tuple[str, ...]:
    """natural_questions_open: a sequence of strings; trivia_qa: {value, aliases, ...}, of which value comes first."""
    answer = row.get("answer", row.get("answers", row.get("golden_answers")))
    if isinstance(answer, dict):
        answer = [answer["value"], *answer.get("aliases", ())] if "value" in answer else answer.get("text")
    if isinstance(answer, (str, bytes)):
        answer = [answer]
    golds = [_string(gold) for gold in (() if answer is None else answer)]
    return tuple(dict.fromkeys(gold for gold in golds if gold.strip()))


def _string(value) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
