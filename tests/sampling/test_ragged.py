"""Ragged rows made rectangular."""

import numpy as np

from zsjax.sampling import ragged


def test_rows_are_padded_and_cut():
    tokens, lengths = ragged.pad([[3, 1], [], (4, 1, 5, 9)], 3)
    assert tokens.tolist() == [[3, 1, 0], [0, 0, 0], [4, 1, 5]] and lengths.tolist() == [2, 0, 3]
    assert tokens.dtype == lengths.dtype == np.int32


def test_batches_are_filled_to_a_known_shape():
    assert ragged.fill(["a", "b"], 4) == ["a", "b", "b", "b"] and ragged.fill(range(3), 3) == [0, 1, 2]
    assert [ragged.batch_size(n) for n in (1, 8, 9, 16, 17)] == [8, 8, 16, 16, 32]
    assert ragged.batch_size(3, smallest=2) == 4
