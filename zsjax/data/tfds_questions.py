"""TensorFlow Datasets of questions in the common form, written and read without TensorFlow (array_record).

    python -c 'from zsjax.data.tfds_questions import prepare; print(prepare("musique", {"test": "musique.jsonl"}, "tfds"))'

writes `tfds/musique/1.0.0`, which "tfds:musique" reads with TFDS_DATA_DIR=tfds.
"""

import os
import pathlib
from collections.abc import Mapping

from zsjax.errors import InputError


def prepare(name: str, files: Mapping[str, str | os.PathLike], data_dir: str | os.PathLike, *,
            version: str = "1.0.0") -> pathlib.Path:
    """Writes a data set of questions as TFDS does.

    Args:
      name: of the data set: lower case, digits and underscores, beginning with a letter.
      files: split -> a .jsonl[.gz] or .parquet of {id, question, golden_answers}; metadata is not kept.
      data_dir: TFDS's folder; the data set goes to data_dir/name/version.

    Returns:
      That folder.

    Raises:
      FileNotFoundError, ValueError: as `load_questions`; a bad name; a data set that is there already.
    """
    import re

    import tensorflow_datasets as tfds

    from zsjax.data.questions import load_questions

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(f"{name!r} is not a name of a TFDS data set; use lower case, digits and _, a letter first")
    folder = pathlib.Path(data_dir) / name / version
    if folder.exists():
        raise InputError(f"{folder} exists already; remove it or give another version")
    questions = {split: load_questions(path) for split, path in files.items()}
    text = tfds.features.Text

    class Questions(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version(version)
        # TFDS looks for citations and tags beside a builder's source; this one has none.
        code_path, pkg_dir_path = None, pathlib.Path(__file__).parent

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, description="Questions with every answer that counts as right.",
                features=tfds.features.FeaturesDict({"id": text(), "question": text(),
                                                     "golden_answers": tfds.features.Sequence(text())}))

        def _split_generators(self, download_manager):
            return {split: self._generate_examples(rows) for split, rows in questions.items()}

        def _generate_examples(self, rows):
            for number, question in enumerate(rows):
                yield number, {"id": question.id, "question": question.question,
                               "golden_answers": list(question.golden_answers)}

    Questions.name = name
    Questions(data_dir=data_dir, version=version, file_format="array_record").download_and_prepare()
    return folder
