"""Grouped matrix products on CPU: a loop over the experts that have rows, in blocks of few sizes.

Axes: M rows sorted by expert, D and F the two sides of an expert's matrix, E experts.

XLA's own `ragged_dot` is dense over experts on CPU. Here a `while` loop visits only the experts
that own rows, copies an expert's matrix once, and takes that expert's rows in blocks: as many of
each whole size as fit, then one block of the smallest size that holds the rest. Sizes below `STEP`
are powers of two and those up to `WHOLE` its multiples, so at most `STEP - 1` rows per expert and
at most half of any product are padding, however the rows are spread. An expert with a single row
is a product of vectors. Where there are but few rows in all, blocks of eight and two do: that
compiles in a fraction of the time. Where it is known that every expert has one row at most, as in
decoding a single text, there are no choices to make but whose matrix it is.

Choices of a size are loops that run at most once: XLA updates the state of a loop in place, while
it would copy the whole output through a `cond` or `switch`.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from zoo import row_cpu
from zoo.quantized import Quantized, floats

STEP = 16
WHOLE = 128
LARGEST = 1024
FEW = 160
"""Rows in all below which there are only two sizes of blocks."""


def gmm(lhs: jax.Array, rhs: jax.Array | Quantized, group_sizes: jax.Array) -> jax.Array:
    """Rows of each group times the group's matrix: dtype[M, D], dtype[E, D, F] -> dtype[M, F].

    Of quantised matrices, those that are visited become floats, one at a time.
    """
    return _gmm(lhs, rhs, group_sizes, contract=0)


def gmm_alone(lhs: jax.Array, rhs: jax.Array | Quantized, group_sizes: jax.Array) -> jax.Array:
    """`gmm` where no two rows share a group."""
    rows = jnp.arange(lhs.shape[0])
    ends = jnp.cumsum(group_sizes.astype(jnp.int32))
    groups = jnp.sum(ends <= rows[:, None], axis=1, dtype=jnp.int32)

    def step(row, out):
        matrix = _matrix(rhs, groups[row], lhs.dtype)
        product = row_cpu.product(_float(_read(lhs, row, 1))[0], matrix)
        return _write(out, row, product.astype(out.dtype)[None])

    return lax.fori_loop(0, ends[-1], step, jnp.zeros((lhs.shape[0], rhs.shape[2]), lhs.dtype))


def gmm_transposed(lhs: jax.Array, rhs: jax.Array | Quantized, group_sizes: jax.Array) -> jax.Array:
    """Rows times the group's transposed matrix: dtype[M, F], dtype[E, D, F] -> dtype[M, D]."""
    return _gmm(lhs, rhs, group_sizes, contract=1)


def tgmm(lhs: jax.Array, grad: jax.Array, group_sizes: jax.Array) -> jax.Array:
    """Outer products summed over each group: dtype[M, D], dtype[M, F] -> f32[E, D, F]."""
    sizes = block_sizes(lhs.shape[0], group_sizes.shape[0])

    def visit(group, row, end, out):
        def block(start, size, mask, out):
            rows, grads = (mask(_float(_read(x, start, size))) for x in (lhs, grad))
            product = lax.dot_general(rows, grads, (((0,), (0,)), ((), ())))
            return _write(out, group, _read(out, group, 1) + product[None])

        return _in_blocks(lhs.shape[0], sizes, row, end, block, out)

    shape = (group_sizes.shape[0], lhs.shape[1], grad.shape[1])
    return _each_group(group_sizes, visit, jnp.zeros(shape, jnp.float32))


def _gmm(lhs, rhs, group_sizes, contract: int):
    sizes = block_sizes(lhs.shape[0], group_sizes.shape[0])

    def visit(group, row, end, out):
        def single(out):
            vector = jnp.expand_dims(_float(_read(lhs, row, 1))[0], 1 - contract)
            product = jnp.sum(vector * _matrix(rhs, group, lhs.dtype), axis=contract)
            return _write(out, row, product.astype(out.dtype)[None])

        def several(out):
            matrix = _matrix(rhs, group, lhs.dtype)

            def block(start, size, mask, out):
                rows = _float(_read(lhs, start, size))
                product = lax.dot_general(rows, matrix, (((1,), (contract,)), ((), ())))
                return _write(out, start, mask(product.astype(out.dtype), _read(out, start, size)))

            return _in_blocks(lhs.shape[0], sizes, row, end, block, out)

        out = _when(end - row == 1, single, out)
        return _when(end - row > 1, several, out)

    out = jnp.zeros((lhs.shape[0], rhs.shape[2 - contract]), lhs.dtype)
    return _each_group(group_sizes, visit, out)


def _matrix(stacked, group, dtype):
    """f32[D, F], one of several; quantised ones are rounded to `dtype` before."""
    return _float(floats(jax.tree.map(lambda x: _read(x, group, 1)[0], stacked), dtype))


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
    rest = [size for size in (2, 4, 8, *range(STEP, WHOLE, STEP)) if size < rows]
    return tuple(whole), (*rest, min(WHOLE, rows))


def _in_blocks(rows: int, sizes, row, end, block: Callable, state):
    """Covers rows [row, end) by calls of block(start, size, mask, state) of static sizes.

    A block that would reach beyond the last row of all starts earlier, as `_read` and `_write` do.
    """
    if rows < FEW:
        return _in_small_blocks(rows, row, end, block, state)
    whole, rest = sizes
    for size in whole:
        count = lax.div(end - row, size)

        def step(index, state, size=size, row=row):
            return block(row + index * size, size, _keep, state)

        state = lax.fori_loop(0, count, step, state)
        row = row + count * size
    for smaller, size in zip((0, *rest), rest, strict=False):

        def last(state, size=size, row=row):
            return block(row, size, _mask(jnp.minimum(row, rows - size), size, row, end), state)

        state = _when((end - row > smaller) & (end - row <= size), last, state)
    return state


def _in_small_blocks(rows: int, row, end, block: Callable, state):
    """The same in blocks of eight rows, five to seven of which may be the last, and then of two."""
    for size, missing in ((8, 3), (2, 1)):
        count = lax.div(jnp.maximum(end - row, 0) + missing, size)

        def step(index, state, size=size, row=row):
            start, held = row + index * size, min(size, rows)
            return block(
                start, held, _mask(jnp.minimum(start, rows - held), held, start, end), state
            )

        state = lax.fori_loop(0, count, step, state)
        row = row + count * size
    return state


def _when(condition, update: Callable, state):
    """update(state) if the condition holds, else state, in place."""
    return lax.while_loop(
        lambda carry: carry[0],
        lambda carry: (jnp.zeros_like(condition), update(carry[1])),
        (condition, state),
    )[1]


def _read(x, start, size: int):
    """x[start : start + size], moved back where it would end beyond x."""
    starts, sizes = (start, *(0,) * (x.ndim - 1)), (size, *x.shape[1:])
    return lax.dynamic_slice(x, starts, sizes, allow_negative_indices=False)


def _write(x, start, rows):
    """x with `rows` at `start`, moved back where they would end beyond x."""
    starts = (start, *(0,) * (x.ndim - 1))
    return lax.dynamic_update_slice(x, rows, starts, allow_negative_indices=False)


def _float(x):
    return x.astype(jnp.float32)


def _keep(x, other=0):
    return x


def _mask(start, size: int, row, end):
    """A function that replaces the rows of a block that lie outside [row, end)."""
    index = start + lax.broadcasted_iota(jnp.int32, (size, 1), 0)
    inside = (index >= row) & (index < end)
    return lambda x, other=0: jnp.where(inside, x, other)
