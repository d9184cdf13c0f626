"""Ragged rows made rectangular on the host, so that few shapes and few programs are compiled."""

from collections.abc import Sequence

import numpy as np


def pad(rows: Sequence[Sequence[int]], size: int) -> tuple[np.ndarray, np.ndarray]:
    """(int32[B, size], int32[B]) of rows of token ids: right-padded with 0; longer rows are cut at the end."""
    tokens, lengths = np.zeros((len(rows), size), np.int32), np.zeros(len(rows), np.int32)
    for i, row in enumerate(rows):
        lengths[i] = min(len(row), size)
        tokens[i, :lengths[i]] = row[:size]
    return tokens, lengths


def fill(rows: Sequence, size: int) -> list:
    """The rows, with copies of the last one up to `size` rows; the caller drops the results of the copies."""
    return [*rows, *[rows[-1]] * (size - len(rows))]


def batch_size(count: int, smallest: int = 8) -> int:
    """The smallest power of two of at least `count` and `smallest`, so that few programs are compiled."""
    return max(smallest, 1 << (count - 1).bit_length())
