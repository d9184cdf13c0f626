"""Shapes for ragged rows."""

import numpy as np
import pytest

from zsjax.sampling.buckets import bucket, pad_rows


def test_buckets_hold_their_size_and_are_few():
    found = [bucket(n) for n in range(1, 2000)]
    assert all(b >= n and (b == 16 or b < 1.5 * n) for n, b in enumerate(found, 1))
    assert sorted(set(found)) == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048]
    assert [bucket(bucket(n)) for n in range(1, 2000)] == found


def test_rows_are_padded_on_the_right():
    tokens, lengths, valid = pad_rows([[5, 6, 7], [8]], size=4, batch=3)
    np.testing.assert_array_equal(tokens, [[5, 6, 7, 0], [8, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(lengths, [3, 1, 1])
    np.testing.assert_array_equal(valid, [True, True, False])
    assert pad_rows([[1] * 20])[0].shape == (1, 24)
    for options in (dict(size=2), dict(batch=1)):
        with pytest.raises(ValueError, match="do not fit"):
            pad_rows([[5, 6, 7], [8]], **options)
