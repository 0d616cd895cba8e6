"""Products with int8 and int4 matrices on CPU, in integers.

XLA makes a float32 copy of a matrix of codes before it multiplies floats by it, which takes several
times as long as the product of float32. But an int8 product of two rows or more runs as it is, on
the processor's dot-product instructions. So activations are written in digits,

    x = m * sum_i d_i / (127 * 254^i),    |d_i| <= 127,    m the row's largest magnitude,

and the product of the digits with the codes is exact. Three digits are float32's precision,
relative to m; two are more than bfloat16's. A decoding step of one row has its digits for rows.

Axes: M rows, I digits, C inputs, R outputs, W codes per output, K groups of inputs in half a row.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from zoo.quantized import Form, Nibbles, Whole

FEW = 8
"""Rows up to which groups are worth their zeros: each group of inputs is a row of its own."""


def serves(form: Form, codes: jax.Array, rows: int) -> bool:
    """Whether `matmul` has a product of integers for a matrix and so many rows."""
    columns, size = form.matrix[-1], form.block[1]
    if form.transposed or form.zeros is not None or len(form.shape) != 2 or form.block[0] != 1:
        return False
    if form.encoding == Whole():
        return codes.dtype == jnp.int8 and size >= columns
    halves = columns % 2 == 0 and (size >= columns or columns // 2 % size == 0)
    return form.encoding == Nibbles() and halves and rows <= FEW


def matmul(x: jax.Array, codes: jax.Array, scales: jax.Array, form: Form) -> jax.Array:
    """x dtype[M, C] by the matrix [R, C] of codes and scales -> dtype[M, R]."""
    digits, largest = to_digits(x, 3 if x.dtype == jnp.float32 else 2)
    product = _whole if form.encoding == Whole() else _halves
    y = product(digits, codes, scales.astype(jnp.float32), form)
    weights = 254.0 ** -np.arange(len(digits)) / 127
    return (jnp.tensordot(jnp.asarray(weights, jnp.float32), y, 1) * largest).astype(x.dtype)


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


def _whole(digits: jax.Array, codes: jax.Array, scales: jax.Array, form: Form) -> jax.Array:
    """f32[I, M, R] of int8 with one scale per output."""
    return _dot(digits, codes).astype(jnp.float32) * scales[:, 0]


def _halves(digits: jax.Array, codes: jax.Array, scales: jax.Array, form: Form) -> jax.Array:
    """f32[I, M, R] of two numbers per byte, 16 * second + first + 8.

    One mask finds the first; the second follows from the product with whole bytes.
    """
    half = form.matrix[-1] // 2
    groups = max(1, half // form.block[1])
    first, second = (_apart(digits[..., part], groups) for part in (np.s_[:half], np.s_[half:]))
    low = _dot(jnp.concatenate((first, second)), codes & 15)
    whole = _dot(second, codes)
    by_first, of_second = jnp.split(low, 2)
    ones = first.astype(jnp.int32).sum(-1, keepdims=True)
    sums = (by_first - 8 * ones, (whole - of_second) >> 4)
    grids = jnp.broadcast_to(scales, (len(codes), max(2, scales.shape[1]))).T
    parts = zip(sums, jnp.split(grids, 2), strict=True)
    return sum((part.astype(jnp.float32) * scale).sum(-2) for part, scale in parts)


def _apart(digits: jax.Array, groups: int) -> jax.Array:
    """i8[I, M, C] -> i8[I, M, K, C]: the digits of one group each, and zeros."""
    split = digits.reshape(*digits.shape[:-1], 1, groups, -1)
    return (split * jnp.eye(groups, dtype=jnp.int8)[..., None]).reshape(
        *digits.shape[:-1], groups, digits.shape[-1]
    )


def _dot(rows: jax.Array, codes: jax.Array) -> jax.Array:
    """i8[..., W] by i8[R, W] -> i32[..., R]; at least two rows, so that it is a matrix product."""
    flat = rows.reshape(-1, rows.shape[-1])
    axes = (((1,), (1,)), ((), ()))
    y = jax.lax.dot_general(flat, codes, axes, preferred_element_type=jnp.int32)
    return y.reshape(*rows.shape[:-1], len(codes))
