"""What a cache keeps vectors in: arrays of a type, or int8 codes beside their scales; and rows that
are lists of pages of either (PagedAttention, arXiv:2309.06180).

    x = codes * scales                                  a scale for every `GROUP` elements

Slots are the last axis but one of codes and of scales alike, so whatever moves the slots of an
array moves those of a `Rounded` by mapping over its leaves. A buffer of zeros is empty.

Pages lie in banks, and the pages of a row in one: devices that share rows have a bank each. Page 0
of a bank is empty for ever, and stands where a row has no page: what is written there is lost.

Where layers share an array, a few new tokens stand beside it until every layer has its own:
`Pending`.

Axes: ... rows, heads and slots, H elements of a vector; of pages L layers, U banks of M pages of P
slots, B rows, n pages of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

GROUP = 128
"""Elements that share a scale at most; fewer where H does not divide, 64 of a latent's 576."""

LARGEST = 127
"""Of the codes, either sign."""


class Rounded(NamedTuple):
    """`codes` i8[..., H] and `scales` bf16[..., H / group]: off by half a scale at most, which is
    1/253 of the largest of its group."""

    codes: jax.Array
    scales: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape


Pool = jax.Array | Rounded


class Paged(NamedTuple):
    """Rows [B, ..., n * P, H] of one layer, as pages of a pool that all layers share.

    Attributes:
        pool: [L, U * M, ..., P, H].
        table: i32[U, B / U, n], the pages of each row, by their numbers within its bank.
        layer: i32[] of the pool.
    """

    pool: Pool
    table: jax.Array
    layer: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        *heads, page, width = self.pool.shape[2:]
        banks, rows, pages = self.table.shape
        return (banks * rows, *heads, pages * page, width)


class Pending(NamedTuple):
    """One layer of a buffer that all share, read where it lies, and tokens that wait to be written.

    Attributes:
        whole: [L, B, ..., S, H].
        layer: i32[] of it.
        new: [B, ..., T, H] as `whole` keeps them, few; None before there are any.
        offset: i32[B], the first slot of each row's.
    """

    whole: Pool
    layer: jax.Array
    new: Pool | None = None
    offset: jax.Array | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole.shape[1:]


Buffer = Pool | Paged | Pending


def zeros(shape: tuple[int, ...], dtype: jnp.dtype) -> Pool:
    """An empty buffer; int8 makes it `Rounded`.

    Raises:
        ValueError: numbers of this type cannot stand for keys and values.
    """
    kept = type_of(dtype)
    if kept != jnp.int8:
        return jnp.zeros(shape, kept)
    *lead, width = shape
    groups = width // math.gcd(width, GROUP)
    return Rounded(jnp.zeros(shape, jnp.int8), jnp.zeros((*lead, groups), jnp.bfloat16))


def type_of(cache_dtype: Any) -> jnp.dtype:
    """A type that a cache can keep, of itself or of its name.

    Raises:
        ValueError: there is no such type, or its numbers cannot stand for keys and values.
    """
    try:
        kept = jnp.dtype(cache_dtype)
        shown, is_float = kept.name, jnp.issubdtype(kept, jnp.floating)
    except (TypeError, ValueError):
        kept, shown, is_float = None, repr(cache_dtype), False
    if kept != jnp.int8 and not (is_float and jnp.finfo(kept).bits >= 8):
        raise ValueError(
            f"cache_dtype={shown} must be int8 or a float type of at least 8 bits: float32, "
            "float16, bfloat16, float8_e4m3fn, ..."
        )
    return kept


def stored(x: jax.Array, like: Pool) -> Pool:
    """x[..., H] as `like` keeps it. What exceeds a float8 becomes its largest, not infinite."""
    if isinstance(like, Rounded):
        return _rounded(x, like.scales.shape[-1])
    if jnp.finfo(like.dtype).bits == 8:
        largest = jnp.finfo(like.dtype).max.astype(jnp.float32)
        x = jnp.clip(x.astype(jnp.float32), -largest, largest)
    return x.astype(like.dtype)


def loaded(buffer: Buffer, dtype: jnp.dtype) -> jax.Array:
    """What a buffer keeps, dtype[..., H]."""
    if isinstance(buffer, Paged):
        return _joined(loaded(pages_of(buffer), dtype), 1)
    if isinstance(buffer, Pending):
        return loaded(_layer_of(buffer), dtype)
    if not isinstance(buffer, Rounded):
        return buffer.astype(dtype)
    codes = _grouped(buffer.codes, buffer.scales.shape[-1]).astype(jnp.float32)
    x = codes * buffer.scales.astype(jnp.float32)[..., None]
    return x.reshape(buffer.shape).astype(dtype)


def _layer_of(pending: Pending) -> Pool:
    """The layer as if its new tokens had been written: chosen slot by slot, which XLA does within
    the product that reads them, where writing first would copy the layer."""

    def cut(whole: jax.Array, new: jax.Array) -> jax.Array:
        layer = jax.lax.dynamic_index_in_dim(whole, pending.layer, keepdims=False)
        slots = jnp.arange(layer.shape[-2])[:, None]
        offset = pending.offset.reshape(-1, *(1,) * (layer.ndim - 1))
        for t in range(new.shape[-2]):
            layer = jnp.where(slots == offset + t, new[..., t : t + 1, :], layer)
        return layer

    return jax.tree.map(cut, pending.whole, pending.new)


def pages_of(paged: Paged) -> Pool:
    """The pages of the rows, [B, n, ..., P, H]."""

    def gather(leaf: jax.Array) -> jax.Array:
        found = _read(leaf, paged.layer, paged.table)
        return found.reshape(-1, *found.shape[2:])

    return jax.tree.map(gather, paged.pool)


def write_paged(paged: Paged, new: jax.Array, offset: jax.Array) -> Paged:
    """With new[B, ..., T, H] in slots offset[b] to offset[b] + T of the rows; lost beyond them."""
    (banks, rows, _), page = paged.table.shape, paged.pool.shape[-2]
    slots = (offset[:, None] + jnp.arange(new.shape[-2])).reshape(banks, rows, -1)
    numbers = jnp.take_along_axis(paged.table, slots // page, -1, mode="fill", fill_value=0)

    def place(pages: jax.Array, new: jax.Array, numbers: jax.Array, slots: jax.Array):
        """A bank [L, M, ..., P, H] with new[B / U, ..., T, H]."""
        by_head = pages.reshape(*pages.shape[:2], -1, *pages.shape[-2:])
        new = new.reshape(rows, -1, *new.shape[-2:])
        where = (_or_none(numbers, pages)[:, None], jnp.arange(new.shape[1])[:, None])
        at = (paged.layer, *where, slots[:, None] % page)
        return by_head.at[at].set(new, mode="drop").reshape(pages.shape)

    def by_bank(pool: jax.Array, new: jax.Array) -> jax.Array:
        new = new.reshape(banks, rows, *new.shape[1:])
        return _in_banks(place, pool, new, numbers, slots)

    return paged._replace(pool=jax.tree.map(by_bank, paged.pool, stored(new, paged.pool)))


def read_row(pool: Pool, pages: jax.Array) -> Pool:
    """The row of pages i32[U, n], which are 0 in all banks but one: [L, 1, ..., n * P, H]."""

    def read(leaf: jax.Array) -> jax.Array:
        found = _read(leaf, jnp.arange(leaf.shape[0])[:, None], pages)  # [U, L, n, ..., P, H]
        # Pages 0 are empty, so that the sum is the one bank's.
        row = found[0] if len(found) == 1 else found.sum(0, dtype=leaf.dtype)
        return _joined(row, 1)[:, None]

    return jax.tree.map(read, pool)


def write_row(pool: Pool, pages: jax.Array, row: Pool) -> Pool:
    """The pool with row[L, 1, ..., S, H] in the first of pages i32[U, n], those that are not 0."""

    def write(leaf: jax.Array, row: jax.Array) -> jax.Array:
        new = _split(row[:, 0], 1, leaf.shape[-2])  # [L, S / P, ..., P, H]
        layers = jnp.arange(leaf.shape[0])[:, None]

        def place(bank: jax.Array, numbers: jax.Array) -> jax.Array:
            return bank.at[layers, _or_none(numbers, bank)].set(new, mode="drop")

        return _in_banks(place, leaf, pages[:, : new.shape[1]])

    return jax.tree.map(write, pool, row)


def _read(leaf: jax.Array, layer: jax.Array, numbers: jax.Array) -> jax.Array:
    """Of a pool [L, U * M, ..., P, H] the pages i32[U, ...] of each bank: [U, ..., ..., P, H]."""

    def read(bank: jax.Array, numbers: jax.Array) -> jax.Array:
        return bank.at[layer, numbers].get(mode="promise_in_bounds")

    return jax.vmap(read, in_axes=(1, 0))(_banks(leaf, len(numbers)), numbers)


def _in_banks(place: Callable[..., jax.Array], leaf: jax.Array, *by_bank: jax.Array) -> jax.Array:
    """`place` for each bank [L, M, ..., P, H] of a pool, with its own of the others, [U, ...]."""
    banks = _banks(leaf, len(by_bank[0]))
    placed = jax.vmap(place, in_axes=(1, *(0,) * len(by_bank)), out_axes=1)(banks, *by_bank)
    return placed.reshape(leaf.shape)


def _banks(leaf: jax.Array, count: int) -> jax.Array:
    return leaf.reshape(leaf.shape[0], count, -1, *leaf.shape[2:])


def _or_none(numbers: jax.Array, bank: jax.Array) -> jax.Array:
    """Numbers of pages to write to: page 0 becomes one that there is not."""
    return jnp.where(numbers == 0, bank.shape[1], numbers)


def _joined(pages: jax.Array, axis: int) -> jax.Array:
    """Pages along an axis [n, ..., P, H] -> slots [..., n * P, H]."""
    pages = jnp.moveaxis(pages, axis, -3)
    return pages.reshape(*pages.shape[:-3], -1, pages.shape[-1])


def _split(row: jax.Array, axis: int, page: int) -> jax.Array:
    """Slots [..., n * P, H] -> pages along an axis, [n, ..., P, H]."""
    return jnp.moveaxis(row.reshape(*row.shape[:-2], -1, page, row.shape[-1]), -3, axis)


def _rounded(x: jax.Array, groups: int) -> Rounded:
    split = _grouped(x.astype(jnp.float32), groups)
    scales = (jnp.abs(split).max(-1) / LARGEST).astype(jnp.bfloat16)
    # By the scale as it is kept: its own rounding moves no code by more than a quarter.
    by = jnp.where(scales == 0, 1, scales).astype(jnp.float32)[..., None]
    codes = jnp.clip(jnp.round(split / by), -LARGEST, LARGEST)
    return Rounded(codes.astype(jnp.int8).reshape(x.shape), scales)


def _grouped(x: jax.Array, groups: int) -> jax.Array:
    """[..., H] -> [..., groups, H / groups]."""
    return x.reshape(*x.shape[:-1], groups, -1)
