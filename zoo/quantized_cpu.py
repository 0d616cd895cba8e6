"""Products with int8 matrices on CPU, in integers.

XLA makes a float32 copy of a matrix of codes before it multiplies floats by it, which costs more
than a float32 matrix does. But an int8 product of two rows or more runs as it is, on the
processor's dot-product instructions. So activations are written in digits,

    x = m * sum_i d_i / (127 * 254^i),    |d_i| <= 127,    m the row's largest magnitude,

and the product of the digits with the codes is exact. Three digits are float32's precision,
relative to m; two are more than bfloat16's. A decoding step of one row has its digits for rows.

Axes: M rows, I digits, C inputs, R outputs.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from zoo.quantized import Form, Whole

MOST = 128
"""Rows up to which their digits are faster than a copy of the matrix."""


def serves(form: Form, codes: jax.Array, rows: int) -> bool:
    """Whether a matrix is int8 with one scale per output, and `matmul` faster for so many rows."""
    plain = not form.transposed and form.zeros is None and len(form.shape) == 2
    per_output = form.block[0] == 1 and form.block[1] >= form.matrix[-1]
    whole = form.encoding == Whole() and codes.dtype == jnp.int8
    return plain and per_output and whole and rows <= MOST


def matmul(x: jax.Array, codes: jax.Array, scales: jax.Array) -> jax.Array:
    """x dtype[M, C] by i8[R, C] and scales [R, 1] -> dtype[M, R]."""
    digits, largest = to_digits(x, 3 if x.dtype == jnp.float32 else 2)
    axes = (((1,), (1,)), ((), ()))
    rows = digits.reshape(-1, digits.shape[-1])
    y = jax.lax.dot_general(rows, codes, axes, preferred_element_type=jnp.int32)
    weights = jnp.asarray(254.0 ** -np.arange(len(digits)) / 127, jnp.float32)
    y = jnp.tensordot(weights, y.reshape(*digits.shape[:-1], -1).astype(jnp.float32), 1)
    return (y * largest * scales[:, 0].astype(jnp.float32)).astype(x.dtype)


def to_digits(x: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """i8[I, M, C] and f32[M, 1], the largest magnitudes."""
    x = x.astype(jnp.float32)
    largest = jnp.abs(x).max(-1, keepdims=True)
    rest, digits = x * (127 / jnp.where(largest == 0, 1, largest)), []
    for _ in range(count):
        digit = jnp.rint(rest)
        digits.append(digit.astype(jnp.int8))
        rest = (rest - digit) * 254
    return jnp.stack(digits), largest
