"""The product of one row with a matrix on CPU, as in decoding a single text.

Memory bounds it. XLA on CPU gives a product of one row to one thread, and those of a batch to
several: in float32 there are two, one for each half of D.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from zoo.precision import precision


def product(x: jax.Array, w: jax.Array) -> jax.Array:
    """x dtype[D] @ w dtype[D, F] -> dtype[F]."""
    if x.size % 2 or x.dtype != jnp.float32:
        return jnp.dot(x, w, precision=precision(x.dtype))
    x, w = x.reshape(2, -1), w.reshape(2, -1, w.shape[-1])
    axes = (((1,), (1,)), ((0,), (0,)))
    return lax.dot_general(x, w, axes, precision=precision(x.dtype)).sum(0)
