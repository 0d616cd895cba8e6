"""Vectors come out of a buffer as they went in, within what its type rounds."""

import jax.numpy as jnp
import numpy as np
import pytest

from zoo import buffer, cache


@pytest.mark.parametrize(("width", "groups"), [(128, 1), (576, 9), (12, 3)])
def test_int8_is_off_by_half_a_scale_of_the_group(rng, width, groups):
    spread = np.exp(3 * rng.normal(size=(2, 7, 1)))
    x = jnp.asarray(spread * rng.normal(size=(2, 7, width)), jnp.float32).at[0, 0].set(0.0)
    empty = buffer.zeros(x.shape, jnp.int8)
    assert empty.scales.shape == (2, 7, groups)
    kept = buffer.stored(x, empty)
    assert [leaf.dtype for leaf in kept] == [leaf.dtype for leaf in empty]
    error = jnp.abs(buffer.loaded(kept, jnp.float32) - x).reshape(2, 7, groups, -1).max(-1)
    largest = jnp.abs(x).reshape(2, 7, groups, -1).max(-1)
    assert (error <= largest / 253).all()
    assert (error > largest / 1000).any()
    assert not buffer.loaded(empty, jnp.float32).any()


def test_a_float8_is_clipped_to_its_largest():
    empty = buffer.zeros((2,), jnp.float8_e4m3fn)
    assert buffer.stored(jnp.array([1e4, -1e4]), empty).tolist() == [448.0, -448.0]


TABLE = np.array([[[3, 1, 6], [2, 7, 4]], [[1, 2, 3], [5, 0, 0]]], np.int32)
"""Of two banks of eight pages: rows of three pages of 4 tokens; the last row has one page."""


@pytest.mark.parametrize("dtype", ["float32", "float8_e4m3fn", "int8"])
@pytest.mark.parametrize("heads", [(2,), ()])
def test_rows_of_pages_are_those_of_slots(rng, dtype, heads):
    """Written and read anywhere, across pages; what has no page is lost, and the rest stays."""
    pool, rows = (
        buffer.zeros((*first, *heads, length, 8), jnp.dtype(dtype))
        for first, length in (((3, 16), 4), ((4,), 12))
    )
    paged = buffer.Paged(pool, jnp.asarray(TABLE), jnp.int32(1))
    assert paged.shape == rows.shape
    for start, count in (((0, 3, 1, 2), 5), ((5, 8, 6, 1), 3)):
        new = jnp.asarray(rng.normal(size=(4, *heads, count, 8)), jnp.float32)
        rows = cache.write(rows, new, jnp.array(start))
        paged = cache.write(paged, new, jnp.array(start))
    want, found = (buffer.loaded(b, jnp.float32) for b in (rows, paged))
    want = want.at[3, ..., 4:, :].set(0)
    np.testing.assert_array_equal(found, want)
    used = np.asarray(buffer.loaded(paged.pool, jnp.float32)).reshape(3, 16, -1).any(-1)
    assert set(np.flatnonzero(used[1])) == {1, 2, 3, 4, 7, 9, 10, 11, 13}
    assert not used[[0, 2]].any()
    one = buffer.read_row(paged.pool, jnp.array([[2, 7, 4], [0, 0, 0]]))
    np.testing.assert_array_equal(buffer.loaded(one, jnp.float32)[1, 0], want[1])
    moved = buffer.write_row(paged.pool, jnp.array([[0, 0, 0], [0, 6, 5]]), one)
    read = buffer.loaded(buffer.read_row(moved, jnp.array([[0, 0, 0], [6, 5, 0]])), jnp.float32)
    np.testing.assert_array_equal(read[1, 0, ..., :8, :], want[1, ..., 4:, :])
    same = buffer.read_row(moved, jnp.array([[3, 1, 6], [0, 0, 0]]))
    np.testing.assert_array_equal(buffer.loaded(same, jnp.float32)[1, 0], want[0])
