"""Rows of an embedding that is cut over devices: tokens go to it, and not it to the tokens.

XLA would gather the whole table for every lookup, and add up a gradient of the whole on every
device. Here every device looks up its part of D for the tokens of those that share D, and they
exchange what they found.

Axes: B batch, T positions, D embedding, V vocabulary, n devices that share D.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zoo import cut as cuts
from zoo.cut import Cut, over


class _How(NamedTuple):
    """What a program is specialised on: how the mesh cuts, the type of the result, and the shape
    and type of the table."""

    cut: Cut
    dtype: jnp.dtype
    table: tuple[int, int]
    table_dtype: jnp.dtype


def lookup(table: jax.Array, tokens: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The rows of table[V, D] for i32[B, T]: dtype[B, T, D]."""
    cut = cuts.in_force(tokens.shape, *table.shape[::-1])
    if not cut.embed:
        return jnp.take(table, tokens, axis=0).astype(dtype)
    return _lookup(_How(cut, jnp.dtype(dtype), table.shape, table.dtype), table, tokens)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lookup(how: _How, table: jax.Array, tokens: jax.Array) -> jax.Array:
    cut = how.cut

    def local(table: jax.Array, tokens: jax.Array) -> jax.Array:
        place = _places(cut, tokens, len(table))
        rows = table.at[place].get(mode="fill", fill_value=0).astype(how.dtype)  # [n, b, t, D / n]
        rows = lax.all_to_all(rows, cut.embed, 0, 3, tiled=True)[0]
        return over(lax.psum, rows, cut.vocab)

    rows = cut.batch, cut.length
    return cut.by_device(local, ((cut.vocab, cut.embed), rows), rows)(table, tokens)


def _forward(how: _How, table, tokens):
    return _lookup(how, table, tokens), tokens


def _backward(how: _How, tokens, grad):
    cut, (V, D) = how.cut, how.table

    def local(tokens: jax.Array, grad: jax.Array) -> jax.Array:
        part = V // cut.devices(cut.vocab), D // cut.devices(cut.embed)
        grad = lax.all_to_all(grad[None], cut.embed, 3, 0, tiled=True).astype(jnp.float32)
        total = jnp.zeros(part, jnp.float32)
        total = total.at[_places(cut, tokens, part[0])].add(grad, mode="drop")
        return over(lax.psum, total, cut.others).astype(how.table_dtype)

    rows = cut.batch, cut.length
    return cut.by_device(local, (rows, rows), (cut.vocab, cut.embed))(tokens, grad), None


_lookup.defvjp(_forward, _backward)


def _places(cut: Cut, tokens: jax.Array, vocab: int) -> jax.Array:
    """Which of a device's rows i32[b, t] of all that share D are, [n, b, t]; `vocab` if none."""
    place = lax.all_gather(tokens, cut.embed) - cut.first(vocab)
    return jnp.where((place >= 0) & (place < vocab), place, vocab)
