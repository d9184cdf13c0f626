"""Micro-batches by token budget: rows sorted by length into a few shapes. numpy on the host.

A batch of [B, T] costs B * T however short its rows are. Here the longest rows come first, and each part takes as many
rows as the budget holds at the part's own length, so that a step computes little more than its tokens:

    parts = pack(lengths, budget=16384, max_length=4096)
    for part in parts:
        micro = take(batch, part)          # a TokenBatch of [part.rows, part.length]

Lengths are those of fixed buckets (64, 96, 128, 192, 256, ...), and the number of rows follows from the length. So there is at
most one shape a bucket. `empty_parts` has one part of each, for compiling all programs before they are needed.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Part:
    """One micro-batch: which rows of the batch, int64[n], and its shape [num_rows, length]; num_rows >= n."""

    rows: np.ndarray
    num_rows: int
    length: int


def length_buckets(max_length: int, shortest: int = 64) -> list[int]:
    """Lengths that parts may have: powers of two and their halves between, from `shortest` to `max_length`."""
    buckets, size = [], shortest
    while size < max_length:
        buckets += [size, size + size // 2]
        size *= 2
    return [length for length in buckets if length < max_length] + [max_length]


def widths(max_length: int, multiple: int = 64) -> list[int]:
    """Lengths that a batch in one array is cut to: a half, three quarters and all of max_length, the first two rounded up
    to `multiple`. Few, for each is a program of its own."""
    rounded = {-(-max_length * quarters // (4 * multiple)) * multiple for quarters in (2, 3)}
    return sorted({size for size in rounded if size < max_length} | {max_length})


def empty_parts(lengths: Sequence[int], *, num_rows: int = 0, budget: int = 0, multiple: int = 1) -> list[Part]:
    """A part without rows for each length; of num_rows if given, else as `pack` makes them of budget and multiple."""
    return [Part(np.arange(0), num_rows or rows_within(budget, length, multiple), length) for length in lengths]


def rows_within(budget: int, length: int, multiple: int = 1) -> int:
    """Rows of `length` tokens that a part has, at least `multiple`."""
    return max(budget // length // multiple, 1) * multiple


def pack(lengths: Sequence[int], *, budget: int, max_length: int, multiple: int = 1, shortest: int = 64) -> list[Part]:
    """Cuts rows into parts of at most about `budget` tokens.

    Args:
      lengths: int[B], tokens of each row.
      budget: tokens of a part, padding included; a part has at least `multiple` rows whatever their length.
      max_length: of any row of the run, and the longest bucket.
      multiple: the rows of a part are a multiple of this (devices that rows are spread over).
      shortest: the shortest bucket.

    Returns:
      Parts in order of falling length; each row is in exactly one.

    Raises:
      ValueError: a row is longer than max_length.
    """
    lengths = np.asarray(lengths)
    if lengths.max(initial=0) > max_length:
        raise ValueError(f"a row of {lengths.max()} tokens is longer than max_length={max_length}")
    order, buckets = np.argsort(-lengths, kind="stable"), length_buckets(max_length, shortest)
    parts, at = [], 0
    while at < len(order):
        length = next(length for length in buckets if length >= lengths[order[at]])
        num_rows = rows_within(budget, length, multiple)
        parts.append(Part(order[at:at + num_rows], num_rows, length))
        at += num_rows
    return parts


def take(batch, part: Part):
    """The part's rows of a tree of [B, ...] or [B, T, ...] numpy arrays, cut to its length.

    Rows that only fill up the shape are all zero, so `row_valid` is False there; T shorter than the part is padded.
    """

    def cut(x):
        x = np.asarray(x)[part.rows]
        if x.ndim > 1:
            x = x[:, :part.length]
        shape = (part.num_rows, part.length, *x.shape[2:]) if x.ndim > 1 else (part.num_rows,)
        out = np.zeros(shape, x.dtype)
        out[tuple(slice(0, n) for n in x.shape)] = x
        return out

    return jax.tree.map(cut, batch)


def put_back(parts: Sequence[Part], values: Sequence, shape) -> np.ndarray:
    """float32[B, T] of per-token values of the parts: the inverse of `take`."""
    out = np.zeros(shape, np.float32)
    for part, value in zip(parts, values, strict=True):
        length = min(part.length, shape[1])
        out[part.rows, :length] = np.asarray(value)[:len(part.rows), :length]
    return out
