"""Grouped matrix products on CPU: a loop over the experts that have rows, in blocks of few sizes.

Axes: M rows sorted by expert, D and F the two sides of an expert's matrix, E experts.

XLA's own `ragged_dot` is dense over experts on CPU. Here a `while` loop visits only the experts
that own rows, copies an expert's matrix once, and takes that expert's rows in blocks: as many of
each whole size as fit, then one block of the smallest size that holds the rest. Sizes below `STEP`
are powers of two and those up to `WHOLE` its multiples, so at most `STEP - 1` rows per expert and
less than half of any product are padding, however the rows are spread. An expert with a single row,
as in decoding, is a product of vectors that reads the matrix where it lies.

Choices of a size are loops that run at most once: XLA updates the state of a loop in place, while
it would copy the whole output through a `cond` or `switch`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

STEP = 16
WHOLE = 128
LARGEST = 1024


def gmm(lhs: jax.Array, rhs: jax.Array, group_sizes: jax.Array) -> jax.Array:
    """Rows of each group times the group's matrix: dtype[M, D], dtype[E, D, F] -> dtype[M, F]."""
    return _gmm(lhs, rhs, group_sizes, contract=0)


def gmm_transposed(lhs: jax.Array, rhs: jax.Array, group_sizes: jax.Array) -> jax.Array:
    """Rows times the group's transposed matrix: dtype[M, F], dtype[E, D, F] -> dtype[M, D]."""
    return _gmm(lhs, rhs, group_sizes, contract=1)


def tgmm(lhs: jax.Array, grad: jax.Array, group_sizes: jax.Array) -> jax.Array:
    """Outer products summed over each group: dtype[M, D], dtype[M, F] -> f32[E, D, F]."""
    sizes = block_sizes(lhs.shape[0], group_sizes.shape[0])

    def visit(group, row, end, out):
        def block(start, size, mask, out):
            left, right = mask(_rows(lhs, start, size)), mask(_rows(grad, start, size))
            product = lax.dot_general(left, right, (((0,), (0,)), ((), ())))
            total = lax.dynamic_index_in_dim(out, group) + product[None]
            return lax.dynamic_update_slice_in_dim(out, total, group, 0)

        return _in_blocks(lhs.shape[0], sizes, row, end, block, out)

    shape = (group_sizes.shape[0], lhs.shape[1], grad.shape[1])
    return _each_group(group_sizes, visit, jnp.zeros(shape, jnp.float32))


def _gmm(lhs, rhs, group_sizes, contract: int):
    sizes = block_sizes(lhs.shape[0], group_sizes.shape[0])

    def visit(group, row, end, out):
        def matrix():
            return lax.dynamic_index_in_dim(rhs, group, keepdims=False).astype(jnp.float32)

        def single(out):
            vector = jnp.expand_dims(_rows(lhs, row, 1)[0], 1 - contract)
            product = jnp.sum(vector * matrix(), axis=contract)[None]
            return lax.dynamic_update_slice_in_dim(out, product.astype(out.dtype), row, 0)

        def several(out):
            copied = matrix()

            def block(start, size, mask, out):
                product = lax.dot_general(
                    _rows(lhs, start, size), copied, (((1,), (contract,)), ((), ()))
                )
                old = lax.dynamic_slice_in_dim(out, start, size)
                product = mask(product.astype(out.dtype), old)
                return lax.dynamic_update_slice_in_dim(out, product, start, 0)

            return _in_blocks(lhs.shape[0], sizes, row, end, block, out)

        out = _when(end - row == 1, single, out)
        return _when(end - row > 1, several, out)

    out = jnp.zeros((lhs.shape[0], rhs.shape[2 - contract]), lhs.dtype)
    return _each_group(group_sizes, visit, out)


def _each_group(group_sizes, visit: Callable, state):
    """Calls visit(group, first row, end row, state) for every group that has rows, in order."""
    ends = jnp.cumsum(group_sizes.astype(jnp.int32))

    def step(carry):
        row, state = carry
        group = jnp.sum(ends <= row, dtype=jnp.int32)
        return ends[group], visit(group, row, ends[group], state)

    return lax.while_loop(lambda carry: carry[0] < ends[-1], step, (jnp.int32(0), state))[1]


def block_sizes(rows: int, experts: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Sizes of whole blocks (decreasing) and of the block that holds what is left (increasing)."""
    largest = WHOLE
    while largest < LARGEST and largest * experts < rows:
        largest *= 2
    whole = [size for size in (1024, 512, 256, 128) if WHOLE <= size <= min(largest, rows)]
    rest = [size for size in (1, 2, 4, 8, *range(STEP, WHOLE, STEP)) if size < rows]
    return tuple(whole), (*rest, min(WHOLE, rows))


def _in_blocks(rows: int, sizes, row, end, block: Callable, state):
    """Covers rows [row, end) by calls of block(start, size, mask, state) of static sizes."""
    whole, rest = sizes
    for size in whole:
        count = (end - row) // size

        def step(index, state, size=size, row=row):
            return block(row + index * size, size, _keep, state)

        state = lax.fori_loop(0, count, step, state)
        row = row + count * size
    for smaller, size in zip((0, *rest), rest, strict=False):
        start = jnp.minimum(row, rows - size)

        def last(state, size=size, start=start, row=row):
            return block(start, size, _mask(start, size, row, end), state)

        state = _when((end - row > smaller) & (end - row <= size), last, state)
    return state


def _when(condition, update: Callable, state):
    """update(state) if the condition holds, else state, in place."""
    return lax.while_loop(
        lambda carry: carry[0],
        lambda carry: (jnp.zeros_like(condition), update(carry[1])),
        (condition, state),
    )[1]


def _rows(x, start, size: int):
    return lax.dynamic_slice_in_dim(x, start, size).astype(jnp.float32)


def _keep(x, other=0):
    return x


def _mask(start, size: int, row, end):
    """A function that replaces the rows of a block that lie outside [row, end)."""
    index = start + lax.broadcasted_iota(jnp.int32, (size, 1), 0)
    inside = (index >= row) & (index < end)
    return lambda x, other=0: jnp.where(inside, x, other)
