"""Grouped matrix products on NVIDIA GPUs: two Pallas kernels for the Triton backend.

Axes: M rows sorted by expert, D and F the two sides of an expert's matrix, E experts.

A stock `ragged_dot` is dense over experts on CUDA. Here the rows of every group are cut into tiles
of their own (a tile never crosses groups), so there are at most M / tile + E tiles: the grid has
that many, and those beyond the last used tile return at once. Which group a tile belongs to is
computed outside the kernel, from the group sizes. The matrices of all experts reach the kernels as
one tall matrix, because one index per load is what every JAX version lowers and interprets.

JAX deprecates this backend since 0.11 and lowers it still in 0.12. Of a version without it,
`triton` is None here, and `zoo.kernels` lets XLA's loops do the work.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

try:
    from jax.experimental.pallas import triton
except ImportError:
    triton = None

COLUMNS = 128
DEPTH = 32


def gmm(lhs, rhs, group_sizes, *, interpret: bool = False) -> jax.Array:
    """Rows of each group times the group's matrix: dtype[M, D], dtype[E, D, F] -> dtype[M, F]."""
    return _gmm(lhs, rhs, group_sizes, False, interpret)


def gmm_transposed(lhs, rhs, group_sizes, *, interpret: bool = False) -> jax.Array:
    """Rows times the group's transposed matrix: dtype[M, F], dtype[E, D, F] -> dtype[M, D]."""
    return _gmm(lhs, rhs, group_sizes, True, interpret)


def tgmm(lhs, grad, group_sizes, *, interpret: bool = False) -> jax.Array:
    """Outer products summed over each group: dtype[M, D], dtype[M, F] -> f32[E, D, F]."""
    width = lhs.shape[1]
    out_width, experts = grad.shape[1], group_sizes.shape[0]
    ends = jnp.cumsum(group_sizes, dtype=jnp.int32)
    starts = ends - group_sizes
    tile_d, tile_f = _tile(width, COLUMNS), _tile(out_width, COLUMNS)
    kernel = functools.partial(
        _tgmm_kernel, width=width, out_width=out_width, tile_d=tile_d, tile_f=tile_f
    )
    return pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((experts * width, out_width), jnp.float32),
        grid=(pl.cdiv(out_width, tile_f), pl.cdiv(width, tile_d), experts),
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=3),
        interpret=interpret,
        name="grouped_outer_product",
    )(lhs, grad, starts, ends).reshape(experts, width, out_width)


def _gmm(lhs, rhs, group_sizes, transposed: bool, interpret: bool):
    rows, width = lhs.shape
    experts, out_width = rhs.shape[0], rhs.shape[1 if transposed else 2]
    tile_rows, tile_out = _row_tile(rows, experts), _tile(out_width, COLUMNS)
    tiles = pl.cdiv(rows, tile_rows) + min(experts, rows)
    group, start, end = _tiles_of_groups(group_sizes, tile_rows, tiles)
    kernel = functools.partial(
        _gmm_kernel,
        width=width,
        out_width=out_width,
        tile_rows=tile_rows,
        tile_out=tile_out,
        transposed=transposed,
    )
    out = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((rows, out_width), lhs.dtype),
        grid=(tiles * pl.cdiv(out_width, tile_out),),
        compiler_params=triton.CompilerParams(num_warps=8, num_stages=3),
        interpret=interpret,
        name="grouped_matmul",
    )(lhs, rhs.reshape(-1, rhs.shape[2]), group, start, end)
    used = lax.broadcasted_iota(jnp.int32, (rows, 1), 0) < jnp.sum(group_sizes)
    return jnp.where(used, out, 0)


def _tiles_of_groups(group_sizes, tile_rows: int, tiles: int):
    """For each of `tiles` tiles its group, first row and last row + 1; i32[tiles] each."""
    ends = jnp.cumsum(group_sizes, dtype=jnp.int32)
    last_tile = jnp.cumsum((group_sizes + tile_rows - 1) // tile_rows, dtype=jnp.int32)
    tile = jnp.arange(tiles, dtype=jnp.int32)
    group = jnp.searchsorted(last_tile, tile, side="right").astype(jnp.int32)
    used = group < group_sizes.shape[0]
    group = jnp.where(used, group, 0)
    first_tile = jnp.where(group > 0, last_tile[group - 1], 0)
    start = ends[group] - group_sizes[group] + (tile - first_tile) * tile_rows
    return group, jnp.where(used, start, 0), jnp.where(used, ends[group], 0)


def _gmm_kernel(
    lhs, rhs, group, start, end, out, *, width, out_width, tile_rows, tile_out, transposed
):
    across = pl.cdiv(out_width, tile_out)
    tile, first = pl.program_id(0) // across, pl.program_id(0) % across * tile_out
    row, row_end = start[tile], end[tile]

    @pl.when(row < row_end)
    def _():
        above = group[tile] * (out_width if transposed else width)
        rows = row + jnp.arange(tile_rows)
        columns = first + jnp.arange(tile_out)
        depth = _tile(width, DEPTH)

        def step(index, total):
            inner = index * depth + jnp.arange(depth)
            a = _load(lhs, rows, inner, rows < row_end, inner < width)
            if transposed:
                b = _load(rhs, above + columns, inner, columns < out_width, inner < width)
                return total + _dot(a, b, ((1,), (1,)))
            b = _load(rhs, above + inner, columns, inner < width, columns < out_width)
            return total + _dot(a, b, ((1,), (0,)))

        total = jnp.zeros((tile_rows, tile_out), jnp.float32)
        total = lax.fori_loop(0, pl.cdiv(width, depth), step, total)
        _store(out, rows, columns, total, rows < row_end, columns < out_width)


def _tgmm_kernel(lhs, grad, starts, ends, out, *, width, out_width, tile_d, tile_f):
    expert = pl.program_id(2)
    left, top = pl.program_id(0) * tile_f, pl.program_id(1) * tile_d
    start, end = starts[expert], ends[expert]
    columns, lines = left + jnp.arange(tile_f), top + jnp.arange(tile_d)

    def step(index, total):
        rows = start + index * DEPTH + jnp.arange(DEPTH)
        a = _load(lhs, rows, lines, rows < end, lines < width)
        b = _load(grad, rows, columns, rows < end, columns < out_width)
        return total + _dot(a, b, ((0,), (0,)))

    blocks = (end - start + DEPTH - 1) // DEPTH
    total = lax.fori_loop(0, blocks, step, jnp.zeros((tile_d, tile_f), jnp.float32))
    _store(out, expert * width + lines, columns, total, lines < width, columns < out_width)


def _load(ref, lines, columns, used_lines, used_columns):
    index = (lines[:, None], columns[None, :])
    return triton.load(ref.at[index], mask=used_lines[:, None] & used_columns[None, :], other=0)


def _store(ref, lines, columns, value, used_lines, used_columns):
    mask = used_lines[:, None] & used_columns[None, :]
    triton.store(ref.at[lines[:, None], columns[None, :]], value.astype(ref.dtype), mask=mask)


def _dot(a, b, contracting):
    return lax.dot_general(a, b, (contracting, ((), ())), preferred_element_type=jnp.float32)


def _row_tile(rows: int, experts: int) -> int:
    """Rows of a tile: near the mean group, between what a tensor core takes and 128."""
    return max(16, min(128, pl.next_power_of_2(pl.cdiv(rows, experts))))


def _tile(width: int, largest: int) -> int:
    """A power of two from 16 to `largest` that covers `width` if it can."""
    return max(16, min(largest, pl.next_power_of_2(width)))
