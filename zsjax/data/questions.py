"""Questions and corpora of JSONL, parquet and TensorFlow Datasets, and the order of training.

A row of a question file is {"id": str, "question": str, "golden_answers": [str, ...], "metadata": {...}} or another form
of `zsjax.data.question_rows`; of a corpus file {"id": str, "title": str, "text": str} or {"id": str, "contents": str}.
"""

import pathlib
from collections.abc import Sequence

import numpy as np

from zsjax.data.question_rows import plain, question_of, with_unique_keys
from zsjax.data.row_files import read_rows
from zsjax.errors import InputError, reason_of
from zsjax.search.corpus_store import row_of
from zsjax.search.engine import Document
from zsjax.types import Question

TFDS = "tfds:"


def load_questions(source: str | pathlib.Path, *, split: str | None = None, limit: int | None = None,
                   seed: int | None = None) -> list[Question]:
    """Questions of a file or a data set, with unique keys.

    Args:
      source: a path ending in .jsonl, .jsonl.gz or .parquet, or "tfds:NAME" (natural_questions_open, trivia_qa, or any
        with the features question and answer).
      split: of a file, only rows whose metadata has this "split"; of a TFDS data set, its split ("validation" if None).
      limit: of the number of questions, after the shuffle; `draw_questions` takes a random part in order instead.
      seed: of a shuffle; None keeps the order of the source.

    Raises:
      FileNotFoundError: no such file.
      InputError: an unknown kind of source, no questions, or a bad row: one line with file, line and field.
    """
    name = str(source)
    if name.startswith(TFDS):
        questions = with_unique_keys(_tfds_questions(name[len(TFDS):], split or "validation"))
    else:
        questions = with_unique_keys([question_of(row, where) for row, where in read_rows(name)])
        if split is not None:
            held = sorted({str(question.metadata.get("split")) for question in questions})
            questions = [question for question in questions if question.metadata.get("split") == split]
            if not questions:
                raise InputError(f"{name}: no row has metadata.split == {split!r}; there are {', '.join(held)}")
    if not questions:
        raise InputError(f"{name}: no questions in it; give a file with one object a line")
    if seed is not None:
        questions = [questions[i] for i in np.random.default_rng(seed).permutation(len(questions))]
    return questions if limit is None else questions[:limit]


def draw_questions(questions: Sequence[Question], limit: int | None, *, seed: int = 0) -> list[Question]:
    """At most `limit` questions, drawn without replacement and kept in order, as files are often sorted.

    The questions of a smaller limit are among those of a larger one. The draw depends on seed and the number of questions.
    """
    if limit is None or limit >= len(questions):
        return list(questions)
    return [questions[i] for i in np.sort(np.random.default_rng(seed).permutation(len(questions))[:limit])]


def load_corpus(source: str | pathlib.Path) -> list[Document]:
    """Documents of a .jsonl[.gz] or .parquet path, in any form of `zsjax.search.corpus_store.row_of`, which
    `BM25.from_documents` reads too.

    Raises:
      FileNotFoundError, InputError: as `load_questions`.
    """
    name = str(source)
    documents = [Document(*row_of(row, where)) for row, where in read_rows(name)]
    if not documents:
        raise InputError(f"{name}: no documents in it; give a file with one object a line")
    return documents


class QuestionStream:
    """The questions of each training step, epoch after epoch, each epoch in its own order.

    The questions of a step are a function of (seed, step), so a resumed run needs no state of this object.
    """

    def __init__(self, questions: Sequence[Question], seed: int):
        """Raises ValueError when there are no questions."""
        if not questions:
            raise InputError("no questions to train on")
        self.questions, self.seed = list(questions), seed
        self._epoch, self._order = -1, np.zeros(0, int)

    def batch(self, step: int, n: int) -> list[Question]:
        """Questions step * n to (step + 1) * n of the stream; n is the same in every step of a run."""
        size = len(self.questions)
        return [self.questions[self._order_of(at // size)[at % size]] for at in range(step * n, (step + 1) * n)]

    def _order_of(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.questions))
        return self._order


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
        fix = "prepare it where there is a network (tfds build NAME --file_format=array_record) and set TFDS_DATA_DIR"
        raise InputError(f"cannot load tfds:{name}, split {split!r}: {reason_of(error)}; {fix}, or give a .jsonl") from error
    questions = []
    for number, row in enumerate(rows):
        where, row = f"tfds:{name}, {split} row {number}", plain(row)
        if "question" not in row or not any(field in row for field in ("answer", "answers", "golden_answers")):
            raise InputError(f"{where}: no features 'question' and 'answer' (there are {', '.join(sorted(row))})")
        row.setdefault("id", row.get("question_id", f"{name}-{split}-{number}"))
        questions.append(question_of(row | {"metadata": {"split": split}}, where))
    return questions
