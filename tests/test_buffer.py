"""Vectors come out of a buffer as they went in, within what its type rounds."""

import jax.numpy as jnp
import numpy as np
import pytest

from zoo import buffer


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
