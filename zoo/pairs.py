"""Interleaved pairs taken apart, two ways: dtype[..., 2 P] to what stands first and second in each,
dtype[..., P]."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from zoo.precision import precision


def apart(x: jax.Array) -> list[jax.Array]:
    """As they lie."""
    split = x.reshape(*x.shape[:-1], -1, 2)
    return [split[..., 0], split[..., 1]]


def by_product(x: jax.Array) -> list[jax.Array]:
    """By a matrix of zeros and ones, which is exact: TPUs move single elements of a row slowly."""
    size = x.shape[-1]
    order = jnp.arange(size).reshape(-1, 2).T.reshape(-1)
    sorts = jax.nn.one_hot(order, size, dtype=x.dtype, axis=0)
    return jnp.split(jnp.dot(x, sorts, precision=precision(x.dtype)), 2, axis=-1)
