"""Rows of question and corpus files: JSON lines, plain or gzipped, and parquet.

An error is one line: file, line or row, what is wrong, what to do.
"""

import codecs
import gzip
import json
import pathlib
import zlib
from collections.abc import Iterator

from zsjax.errors import InputError, InputNotFound, reason_of
from zsjax.types import whole_text

ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")
_GZIP, _PARQUET = b"\x1f\x8b", b"PAR1"
_FOREIGN = {_GZIP: "is compressed with gzip; name it .jsonl.gz", _PARQUET: "is parquet; name it .parquet",
            b"PK": "is a zip archive; unpack it", b"BZh": "is compressed with bzip2; unpack it",
            b"\xfd7zXZ": "is compressed with xz; unpack it", b"\x28\xb5\x2f\xfd": "is compressed with zstd; unpack it",
            b"version https://git-lfs": "is a Git LFS pointer; fetch the file itself with git lfs pull"}
MAX_LINE = 64 << 20  # bytes; a small archive may unpack to a line that fills the memory
BATCH_ROWS, MAX_BATCH = 64, 256 << 20  # of parquet that are unpacked at once, and their bytes
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def read_rows(name: str) -> Iterator[tuple[dict, str]]:
    """(row, file and line) of each row of a .jsonl, .jsonl.gz or .parquet file.

    Byte order marks and blank lines are skipped; lone surrogates become U+FFFD.

    Raises:
      FileNotFoundError: no such file.
      InputError: an unknown ending, or a file or line that cannot be read.
    """
    if not name.endswith(ENDINGS):
        raise InputError(f"{name!r}: unknown kind of source; use a path ending in {', '.join(ENDINGS)}, "
                         "'tiny_world:train', 'tiny_world:eval' or 'tfds:NAME'")
    if not pathlib.Path(name).is_file():
        raise InputNotFound(f"no file {name!r}; check the path")
    yield from (_parquet_rows if name.endswith(".parquet") else _json_rows)(name)


def _parquet_rows(name):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{name}: reading parquet needs pyarrow: pip install pyarrow, or give a .jsonl") from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(name) as file:
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                if batch.nbytes > MAX_BATCH:
                    raise InputError(f"{name}, behind row {number}: {BATCH_ROWS} rows take {batch.nbytes >> 20} MB, more "
                                     f"than {MAX_BATCH >> 20}; write shorter texts")
                names = batch.schema.names
                columns = [_values(column, f"{name}, column {field!r}") for field, column in zip(names, batch, strict=True)]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield dict(zip(names, values, strict=True)), f"{name}, row {number}"
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        where = f"{name}, behind row {number}" if number else name
        raise InputError(f"{where}: not readable as parquet ({reason_of(error)}); copy or download the file again"
                         ) from error


def _values(column, where) -> list:
    """The values of an arrow column; with times as text where Python's classes cannot hold one of them."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError):  # nanoseconds, a year beyond 9999, an unknown time zone
        try:
            return column.cast(_with_text(column.type)).to_pylist()
        except (ValueError, OverflowError, NotImplementedError) as error:  # arrow's own are among these
            raise InputError(f"{where}: cannot be read ({reason_of(error)}); write it as text, or leave it out") from error


def _with_text(kind):
    """An arrow type with text in the place of times, also inside of lists and structs."""
    import pyarrow
    from pyarrow import types

    if types.is_temporal(kind):
        return pyarrow.string()
    if types.is_struct(kind):
        return pyarrow.struct([field.with_type(_with_text(field.type)) for field in kind])
    if types.is_map(kind):
        return pyarrow.map_(_with_text(kind.key_type), _with_text(kind.item_type))
    if types.is_list(kind) or types.is_large_list(kind):
        make = pyarrow.list_ if types.is_list(kind) else pyarrow.large_list
        return make(kind.value_field.with_type(_with_text(kind.value_type)))
    return kind


def _json_rows(name):
    for number, line in enumerate(_lines(name), start=1):
        where, line = f"{name}, line {number}", line.removeprefix(codecs.BOM_UTF8)  # also amid files put together
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode())
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: not UTF-8 (byte 0x{line[error.start]:02x}, column {error.start + 1}); convert "
                             "the file, as iconv -f latin1 -t utf-8") from error
        except (ValueError, RecursionError) as error:  # ValueError also for numbers of thousands of digits
            what = f"not a JSON object ({reason_of(error)})"
            if b"\0" in line:
                what = "UTF-16 or binary data; save the file as UTF-8"
            raise InputError(f"{where}: {what}; write one object a line") from error
        if not isinstance(row, dict):
            raise InputError(f"{where}: a {type(row).__name__} is not an object; write one object a line")
        # UTF-8 holds no surrogates, so a lone one can only come from an escape.
        yield whole_text(row) if b"\\ud" in line.lower() else row, where


def _lines(name):
    """Lines as bytes."""
    number = 0
    with open(name, "rb") as file:
        head = file.read(24)
        packed = name.endswith(".gz")
        if packed and head and not head.startswith(_GZIP):
            raise InputError(f"{name}, line 1: is not compressed with gzip; name it without .gz")
        for mark, what in _FOREIGN.items():
            if head.startswith(mark) and not (packed and mark == _GZIP):
                raise InputError(f"{name}, line 1: {what}")
        if head.startswith(_UTF_16):
            raise InputError(f"{name}, line 1: UTF-16; save the file as UTF-8, as iconv -f utf-16 -t utf-8")
        file.seek(0)
        lines = gzip.GzipFile(fileobj=file) if packed else file
        try:
            while line := lines.readline(MAX_LINE + 1):
                if len(line) > MAX_LINE:
                    raise InputError(f"{name}, line {number + 1}: longer than {MAX_LINE >> 20} MB; write one object a line")
                yield line
                number += 1
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"{name}, line {number + 1}: the file is cut off or damaged ({reason_of(error)}); copy or "
                             "download it again") from error
