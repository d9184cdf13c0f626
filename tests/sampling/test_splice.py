import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zsjax.sampling.splice import append, concatenate, take_span

# Shapes come from short lists, so that few programs are compiled; what is inside them is arbitrary.
SIZES = st.sampled_from([3, 8, 16])


def ragged(draw, rows, width):
    tokens = np.array(draw(st.lists(st.integers(1, 99), min_size=rows * width, max_size=rows * width)), np.int32)
    lengths = draw(st.lists(st.integers(0, width), min_size=rows, max_size=rows))
    return tokens.reshape(rows, width), np.array(lengths, np.int32)


@functools.cache
def jitted(function, *static):
    return jax.jit(functools.partial(function, **dict(static)))


FIXED = np.array([7, 8, 9], np.int32)


def with_fixed(pieces, size):
    return concatenate([FIXED, *pieces, []], size=size)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_concatenate(data):
    rows, size = 3, data.draw(SIZES)
    pieces = [ragged(data.draw, rows, width) for width in data.draw(st.sampled_from([(2,), (4, 1), (4, 2, 4)]))]
    tokens, lengths = jitted(with_fixed, ("size", size))(pieces)

    for b in range(rows):
        wanted = sum((list(t[b, :n[b]]) for t, n in pieces), list(FIXED))[:size]
        assert tokens[b].tolist() == wanted + [0] * (size - len(wanted))
        assert lengths[b] == len(wanted)


@settings(max_examples=100, deadline=None)
@given(st.data(), st.sampled_from(["int32", "int8", "float32"]))
def test_append(data, dtype):
    rows, size = 3, data.draw(SIZES)
    row, lengths = ragged(data.draw, rows, size)
    piece, piece_lengths = ragged(data.draw, rows, data.draw(st.sampled_from([1, 5])))
    row, piece = row.astype(dtype), piece.astype(dtype)

    result = jitted(append)(row, lengths, piece, piece_lengths)

    assert result.dtype == dtype
    for b in range(rows):
        wanted = row[b].tolist()
        for n in range(piece_lengths[b]):
            if lengths[b] + n < size:
                wanted[lengths[b] + n] = piece[b, n]
        assert result[b].tolist() == wanted


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_take_span(data):
    rows, size = 3, data.draw(SIZES)
    row, start = ragged(data.draw, rows, 8)
    stop = np.array(data.draw(st.lists(st.integers(0, 8), min_size=rows, max_size=rows)), np.int32)

    tokens, lengths = jitted(take_span, ("size", size))(row, start, stop)

    for b in range(rows):
        wanted = row[b, start[b]:stop[b]].tolist()[:size]
        assert tokens[b].tolist() == wanted + [0] * (size - len(wanted))
        assert lengths[b] == len(wanted)


def test_a_piece_for_all_rows():
    row = append(jnp.zeros((2, 4), jnp.int8), jnp.array([1, 3]), jnp.array([5, 6]), 2)
    assert row.tolist() == [[0, 5, 6, 0], [0, 0, 0, 5]]
    with pytest.raises(ValueError, match="at least one piece"):
        concatenate([np.arange(3)], size=4)
