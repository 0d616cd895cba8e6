"""Caches whose rows share pages: `PAGE` tokens in each of many, [L, pages, K, PAGE, H].

`zoo.cache.init(..., pages=)` makes one. `paged` makes of it, and of a table of who has which pages,
a cache with slots that a model reads. What keeps a state after all tokens has it by row. See
`zoo.buffer` for pages and banks.

Axes: L repeats of a stack, U banks of pages, B rows, n pages of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.buffer import Buffer, Paged, read_row, write_row
from zoo.cache import Cache, Held, is_held, is_state


def paged(cache: Cache, table: jax.Array) -> Cache:
    """A pooled cache as a model reads it: row b has the slots of its pages, table i32[U, B / U, n]
    as `zoo.buffer.Paged` has it."""
    stacked = _batch_axis(cache) == 1

    def see(pool: Buffer) -> Paged:
        pool = pool if stacked else jax.tree.map(lambda leaf: leaf[None], pool)
        return Paged(pool, table, jnp.int32(0))

    return cache._replace(stacks=_by_slots(see, cache.stacks))


def unpaged(cache: Cache) -> Cache:
    """The pooled cache that `paged` took."""
    stacked = _batch_axis(cache) == 1

    def pool_of(held: Paged) -> Buffer:
        return held.pool if stacked else jax.tree.map(lambda leaf: leaf[0], held.pool)

    return cache._replace(stacks=_by_slots(pool_of, cache.stacks))


def take(cache: Cache, row: jax.Array, pages: jax.Array, length: jax.Array) -> Cache:
    """Row i32[] of a pooled cache as the cache of one row that holds `length` i32[] tokens.

    `pages` i32[U, n] are the row's in its bank, and 0 in others.
    """
    axis = _batch_axis(cache)

    def slots_of(pool: Buffer) -> Buffer:
        return _without_layers(lambda pool: read_row(pool, pages), axis, pool)

    def cut(held: Held) -> Held:
        if is_state(held):
            return jax.tree.map(lambda leaf: _row(leaf, row, axis), held)
        return type(held)(*map(slots_of, held))

    return Cache(length[None], _by_kind(cut, cache.stacks))


def insert(cache: Cache, row: jax.Array, pages: jax.Array, one: Cache) -> Cache:
    """The pooled cache with `one`'s only row as its row i32[].

    It is written to pages i32[U, n] that are not 0, as far as `one` has slots.
    """
    axis = _batch_axis(cache)

    def place(whole: jax.Array, part: jax.Array) -> jax.Array:
        part = part.astype(whole.dtype)
        return jax.lax.dynamic_update_slice_in_dim(whole, part, row, axis)

    def put(held: Held, new: Held) -> Held:
        if is_state(held):
            return jax.tree.map(place, held, new)
        write = lambda pool, new: write_row(pool, pages, new)  # noqa: E731
        return type(held)(*(_without_layers(write, axis, *b) for b in zip(held, new, strict=True)))

    stacks = _by_kind(put, cache.stacks, one.stacks)
    return Cache(cache.lengths.at[row].set(one.lengths[0]), stacks)


def page_bytes(cache: Cache) -> int:
    """Bytes of a page of a pooled cache, or of the shapes of one, over all layers."""
    axis = _batch_axis(cache)
    held = jax.tree.leaves(cache.stacks, is_leaf=is_held)
    leaves = jax.tree.leaves([h for h in held if not is_state(h)])
    return sum(leaf.size // leaf.shape[axis] * leaf.dtype.itemsize for leaf in leaves)


def take_state(cache: Cache, row: jax.Array) -> dict:
    """What row i32[] keeps of all tokens, of the layers that do."""
    axis = _batch_axis(cache)

    def cut(held: Held) -> Held | None:
        return jax.tree.map(lambda leaf: _row(leaf, row, axis), held) if is_state(held) else None

    return _by_kind(cut, cache.stacks)


def insert_state(cache: Cache, row: jax.Array, state: dict) -> Cache:
    """The cache with the state of `take_state` in row i32[]."""

    def place(whole: jax.Array, part: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(whole, part, row, _batch_axis(cache))

    def put(held: Held, part: Held | None) -> Held:
        return held if part is None else jax.tree.map(place, held, part)

    return cache._replace(stacks=_by_kind(put, cache.stacks, state))


def _batch_axis(cache: Cache) -> int:
    """Of its buffers: a stack is a dictionary of buffers that lead with L, or a tuple of L."""
    return 0 if any(isinstance(stack, tuple) for stack in cache.stacks.values()) else 1


def _row(buffer: jax.Array, row: jax.Array, axis: int) -> jax.Array:
    """Row i32[] alone. Where devices share rows, a slice would bring all of them to each."""
    if not nn.get_logical_axis_rules():
        return jax.lax.dynamic_slice_in_dim(buffer, row, 1, axis)
    mine = jax.lax.broadcasted_iota(jnp.int32, buffer.shape, axis) == row
    nothing = jnp.zeros((), buffer.dtype)
    return jnp.where(mine, buffer, nothing).sum(axis, keepdims=True, dtype=buffer.dtype)


def _by_slots(function: Callable[[Any], Any], stacks: dict) -> dict:
    """`function` of each buffer of the layers that have slots."""
    return _by_kind(
        lambda held: held if is_state(held) else type(held)(*map(function, held)), stacks
    )


def _without_layers(function: Callable[..., Buffer], axis: int, *buffers: Buffer) -> Buffer:
    """`function`, which takes buffers that lead with L, of some whose rows are on this axis."""
    if axis:
        return function(*buffers)
    found = function(*jax.tree.map(lambda leaf: leaf[None], buffers))
    return jax.tree.map(lambda leaf: leaf[0], found)


def _by_kind(function: Callable[..., Any], stacks: dict, *others: dict) -> dict:
    """`function` of what each layer holds; where it returns None, the layer is left out."""
    is_leaf = lambda x: x is None or is_held(x)  # noqa: E731
    return jax.tree.map(function, stacks, *others, is_leaf=is_leaf)
