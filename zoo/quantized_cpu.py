"""Products with quantised matrices on CPU, which never write all of a matrix as floats.

A step reads them from memory, whose speed bounds it, so codes should leave it as they are.

int8. A product with two rows or more runs in integers, on the processor's dot-product instructions.
So activations are written in digits,

    x = m * sum_i d_i / (127 * 254^i),    |d_i| <= 127,    m the row's largest magnitude,

and the product of the digits with the codes is exact. Three digits are float32's precision,
relative to m; two are more than bfloat16's. A decoding step of one row has its digits for rows.

Others of a byte whose outputs have scales of their own, one row. A product of vectors is one loop
with what computes its factors: in it codes become floats in registers.

All else. A few outputs at a time, whose floats stay in the processor's cache.

Axes: M rows, I digits, C inputs, R outputs, or N heads of H.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from zoo.precision import precision
from zoo.quantized import Form, Ints, Nibbles, Whole, multipliers

INTEGER_PRODUCTS = jax.__version_info__ >= (0, 10)
"""Whether XLA on CPU has kernels for products of int8; before, they were loops."""

MOST = 128
"""Rows up to which their digits are faster than a copy of the matrix."""

MOST_OUTPUTS, LEAST_OUTPUTS = 256, 16
"""How many of a matrix become floats at a time."""

MANY = 1024
"""Numbers that fill whole words of any packing."""


def matmul(
    x: jax.Array, codes: jax.Array, scales: jax.Array, zeros: jax.Array | None, form: Form
) -> jax.Array:
    """x dtype[M, C] by a tensor [R, C] of `form` -> dtype[M, R]."""
    if INTEGER_PRODUCTS and serves(form, codes, len(x)):
        return _integers(x, codes, scales)
    own = form.plain and form.block[0] == 1 and not isinstance(form.encoding, Ints)
    if own and len(x) == 1 and x.dtype == jnp.float32:
        return _row(x[0], codes, scales, form)[None]
    return _by_outputs(x, (codes, scales, zeros), form)


def serves(form: Form, codes: jax.Array, rows: int) -> bool:
    """Whether a matrix is int8 with one scale per output, and digits faster for so many rows."""
    per_output = form.plain and form.block[0] == 1 and form.block[1] >= form.shape[-1]
    whole = form.encoding == Whole() and codes.dtype == jnp.int8
    return per_output and whole and rows <= MOST


def _integers(x, codes, scales):
    digits, largest = to_digits(x, 3 if x.dtype == jnp.float32 else 2)
    axes = (((1,), (1,)), ((), ()))
    rows = digits.reshape(-1, digits.shape[-1])
    y = jax.lax.dot_general(rows, codes, axes, preferred_element_type=jnp.int32)
    weights = jnp.asarray(254.0 ** -np.arange(len(digits)) / 127, jnp.float32)
    y = jnp.tensordot(weights, y.reshape(*digits.shape[:-1], -1).astype(jnp.float32), 1)
    return (y * largest * scales[:, 0].astype(jnp.float32)).astype(x.dtype)


def _row(x, codes, scales, form):
    """f32[C] -> f32[R]. With x to the left and a transpose XLA makes one loop of it."""
    width, group = codes.shape[-1], form.block[1]
    if form.encoding != Nibbles() or width % group or 2 * width != x.size:
        return jnp.dot(x, form.dequantize(codes, scales, None, x.dtype).T)
    # To join the halves of rows would write them to memory, and so would a sum of two products.
    y, half = jnp.zeros((2, len(codes)), x.dtype), replace(form, shape=(len(codes), width))
    grids = jnp.split(multipliers(scales, jnp), 2, axis=-1)
    for i, numbers in enumerate(form.encoding.halves(codes)):
        w = half.product(numbers.astype(x.dtype), (grids[i],), jnp)
        own = jnp.dot(x[i * width : (i + 1) * width], w.T)
        y = jax.lax.dynamic_update_slice(y, own[None], (i, 0))
    return y.sum(0)


def _by_outputs(x, held, form):
    count = parts(form)
    size = form.shape[0] // count

    def own(w, i, y):
        part = jax.lax.dot_general(x, w, (((1,), (1,)), ((), ())), precision=precision(x.dtype))
        return jax.lax.dynamic_update_slice_in_dim(y, part, i * size, axis=1)

    y = jnp.zeros((len(x), form.shape[0]), x.dtype)
    return _in_parts(own, held, form, count, x, y)


def by_head(
    x: jax.Array,
    codes: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    form: Form,
    axis: int,
) -> jax.Array:
    """x dtype[M, N, K] by the matrix [H, C] of each of N heads, of a tensor [N * H, C].

    K is C, and is contracted, with `axis` 1, and H with 0. The heads must divide `form`.
    """
    heads, size = x.shape[1], (form.shape[0] // x.shape[1], form.shape[1])[1 - axis]

    def own(w, i, y):
        row = jax.lax.dynamic_index_in_dim(x, i, axis=1, keepdims=False)
        dims = (((1,), (axis,)), ((), ()))
        part = jax.lax.dot_general(row, w, dims, precision=precision(x.dtype))
        return jax.lax.dynamic_update_index_in_dim(y, part, i, axis=1)

    y = jnp.zeros((len(x), heads, size), x.dtype)
    return _in_parts(own, (codes, scales, zeros), form, heads, x, y)


def _in_parts(step, held, form, count, x, y):
    """Calls y = step(w, i, y) for each of `count` parts of the outputs, w being its floats."""
    part = replace(form, shape=(form.shape[0] // count, form.shape[1]))
    axis = -1 if form.transposed else -2

    def cut(array, i):
        size = array.shape[axis] // count
        return jax.lax.dynamic_slice_in_dim(array, i * size, size, axis)

    def one(i, y):
        codes, scales, zeros = (None if array is None else cut(array, i) for array in held)
        return step(part.dequantize(codes, scales, zeros, x.dtype), i, y)

    # XLA unrolls a loop whose end it knows, and makes the floats of all steps at once, and early.
    end = jnp.minimum(count, count + jnp.isnan(x.reshape(-1)[0]))
    return jax.lax.fori_loop(0, end, one, y)


def parts(form: Form) -> int:
    """In how many parts outputs become floats: at least two, or XLA would not leave a loop."""
    outputs = form.shape[0]
    counts = range(max(2, -(-outputs // MOST_OUTPUTS)), outputs // LEAST_OUTPUTS + 1)
    return next((n for n in counts if divides(n, form)), 1)


def divides(count: int, form: Form) -> bool:
    """Whether the outputs of a form are so many equal parts, which share no block and no word."""
    outputs, axis = form.shape[0], -1 if form.transposed else -2
    packed = [form.encoding] if form.transposed else []
    packed += [form.zeros] if form.zeros is not None and form.zeros_axis == axis else []
    units = (form.block[axis], *(MANY // kind.width(MANY) for kind in packed))
    return count == 1 or not any(outputs % (count * unit) for unit in units)


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
