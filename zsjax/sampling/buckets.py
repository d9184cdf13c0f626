"""Few shapes for many sizes: every new shape is a new compilation, every slot beyond the need is wasted work."""

from collections.abc import Sequence

import numpy as np


def bucket(size: int, *, smallest: int = 16) -> int:
    """The least of smallest, 1.5 smallest, 2 smallest, 3 smallest, 4 smallest, ... that is at least `size`.

    Beyond `smallest`, less than half of the size is added, with two shapes per doubling.
    """
    if size < 0 or smallest < 2 or smallest % 2:
        raise ValueError(f"size must be >= 0 and smallest even and positive, got size={size}, smallest={smallest}")
    while smallest < size:
        if smallest * 3 // 2 >= size:
            return smallest * 3 // 2
        smallest *= 2
    return smallest


def pad_rows(rows: Sequence[Sequence[int]], *, size: int | None = None, batch: int | None = None):
    """Right-pads ragged token rows to one shape.

    Args:
      rows: ids of each row.
      size: T; None is `bucket` of the longest row.
      batch: B; None is the number of rows. Rows that only fill up hold one token 0, so that they can be run.

    Returns:
      (tokens int32[B, T], lengths int32[B], row_valid bool[B]), numpy.

    Raises:
      ValueError: a row is longer than `size`, or there are more than `batch`: nothing is cut silently.
    """
    longest = max(map(len, rows), default=0)
    size = bucket(longest) if size is None else size
    batch = len(rows) if batch is None else batch
    if longest > size or len(rows) > batch:
        raise ValueError(f"{len(rows)} rows of up to {longest} tokens do not fit {batch} rows of {size}")
    tokens, lengths = np.zeros((batch, size), np.int32), np.ones(batch, np.int32)
    for i, row in enumerate(rows):
        tokens[i, :len(row)], lengths[i] = row, len(row)
    return tokens, lengths, np.arange(batch) < len(rows)
