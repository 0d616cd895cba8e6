"""Grouped matrix products on TPU: JAX's megablox kernels, padded to their tiles.

Axes: M rows sorted by expert, D and F the two sides of an expert's matrix, E experts.

Megablox wants M to be a multiple of its row tile and leaves rows of no group uninitialised.
"""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
from jax import lax

from zoo.layered import Layered

# The package exports a function of the same name as this module, which hides the module.
_megablox = importlib.import_module("jax.experimental.pallas.ops.tpu.megablox.gmm")

LANES = 128
ROWS = 512
WIDTH = 1024
"""Sides of the largest tiles in 16 bits; half of the last for the output in 32: its tiles, two of
them and the sum, are to leave room for the others in the 16 MiB that a v5 core gives a kernel."""


def gmm(lhs, rhs, group_sizes, *, interpret: bool = False) -> jax.Array:
    """Rows of each group times the group's matrix: dtype[M, D], dtype[E, D, F] -> dtype[M, F].

    Matrices may be `Layered`.
    """
    return _gmm(lhs, rhs, group_sizes, False, interpret)


def gmm_transposed(lhs, rhs, group_sizes, *, interpret: bool = False) -> jax.Array:
    """Rows times the group's transposed matrix: dtype[M, F], dtype[E, D, F] -> dtype[M, D]."""
    return _gmm(lhs, rhs, group_sizes, True, interpret)


def tgmm(lhs, grad, group_sizes, *, interpret: bool = False) -> jax.Array:
    """Outer products summed over each group: dtype[M, D], dtype[M, F] -> f32[E, D, F]."""
    tiles = _tiles(lhs.shape[0], group_sizes.shape[0], lhs.shape[1], grad.shape[1], jnp.float32)
    lhs, grad = _pad(lhs, tiles[0]), _pad(grad, tiles[0])
    return _megablox.tgmm(
        lhs.swapaxes(0, 1),
        grad,
        group_sizes,
        preferred_element_type=jnp.float32,
        tiling=tiles,
        interpret=interpret,
    )


def _gmm(lhs, rhs, group_sizes, transposed: bool, interpret: bool):
    first = None
    if isinstance(rhs, Layered):
        # The kernel takes the first group's number from each: what is negative lies further on.
        first = -rhs.layer.astype(jnp.int32) * rhs.shape[0]
        rhs = rhs.whole.reshape(-1, *rhs.shape[1:])
    rows, width = lhs.shape
    out_width = rhs.shape[1 if transposed else 2]
    tiles = _tiles(rows, group_sizes.shape[0], width, out_width, lhs.dtype)
    out = _megablox.gmm(
        _pad(lhs, tiles[0]),
        rhs,
        group_sizes,
        preferred_element_type=lhs.dtype,
        tiling=tiles,
        group_offset=first,
        transpose_rhs=transposed,
        interpret=interpret,
    )[:rows]
    used = lax.broadcasted_iota(jnp.int32, (rows, 1), 0) < jnp.sum(group_sizes)
    return jnp.where(used, out, 0)


def _tiles(
    rows: int, experts: int, width: int, out_width: int, out_dtype: jnp.dtype
) -> tuple[int, int, int]:
    """Tile sizes (rows, contracted, output): few rows where groups are small, whole lanes."""
    tile_rows = LANES
    while tile_rows < ROWS and tile_rows * experts < rows:
        tile_rows *= 2
    most = WIDTH * 2 // max(jnp.dtype(out_dtype).itemsize, 2)
    return tile_rows, _lanes(width, WIDTH), _lanes(out_width, most)


def _lanes(width: int, most: int) -> int:
    return min(most, -(-width // LANES) * LANES)


def _pad(x, multiple: int):
    return jnp.pad(x, ((0, -x.shape[0] % multiple), (0, 0)))
