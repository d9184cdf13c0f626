"""A published data set of simulator replies as the searches.jsonl of a run, which the stage tune_simulator reads."""

import hashlib
import pathlib

from zsjax.data.row_files import read_rows
from zsjax.data.simulator_rows import simulator_row
from zsjax.errors import InputError, InputExists
from zsjax.parallel.files import remove_abandoned
from zsjax.search.engine import Document
from zsjax.tuning.collect import Search, write_searches
from zsjax.types import Question


def import_searches(source, out: pathlib.Path) -> pathlib.Path:
    """Writes the replies of a .jsonl[.gz] or .parquet file (`zsjax.data.simulator_rows`) as searches.

    A useful reply counts as found by an episode that was right, a noisy one by one that was wrong. Tune with
    collect.label = "answer", which makes examples of just these.

    Args:
      source: the file.
      out: the file to write, searches.jsonl in the folder of a run.

    Returns:
      `out`.

    Raises:
      InputError: a row that cannot be read, or no rows; the message names file and line.
      InputExists: `out` exists.
    """
    if out.exists():
        raise InputExists(f"{out} exists already; choose another file or remove it")
    searches = []
    for fields, where in read_rows(str(source)):
        row = simulator_row(fields, where)
        text = row.question or row.query
        name = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()  # one question, however many rows ask it
        searches.append(Search(Question(name, text, row.golds), row.query, tuple(Document("", d) for d in row.documents),
                               correct=not row.noisy, source="published"))
    if not searches:
        raise InputError(f"{source}: there are no rows in it")
    remove_abandoned(out)
    write_searches(out, searches, provenance={"engine": "published", "file": pathlib.Path(source).name})
    return out
