"""Caches that keep a span of tokens and no more: a ring, in which the newest overwrites the oldest.

A window of W tokens needs a ring of W slots, and so does a chunk of W. The token at position p is
in slot p mod R of R slots. Slots beyond the span, if a ring has any, let that many tokens be taken
back: what they overwrote was out of sight.

Axes: B batch, T new tokens, K kv heads, R slots of the ring, H head dimension.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from zoo import kernels
from zoo.buffer import Buffer, loaded, stored
from zoo.cache import KV, Ring, write


def advance(ring: Ring, new: KV, offset: jax.Array, count: jax.Array) -> Ring:
    """The ring with the first `count` of new tokens in it.

    Args:
        ring: [B, K, R, H] each, of `offset` tokens.
        new: [B, K, T, H] each.
        offset: i32[B], tokens before.
        count: i32[B], new tokens that are not padding.
    """
    slots, length = ring.k.shape[2], new.k.shape[2]
    if length == 1:
        # Padding too may take its slot: what was there is out of the next token's sight.
        return Ring(*(write(b, n, offset % slots) for b, n in zip(ring, new, strict=True)))
    at = positions(slots, offset + count) - offset[:, None]
    index = jnp.clip(at, 0, length - 1)[:, None, :, None]

    def place(buffer: Buffer, new: jax.Array) -> Buffer:
        taken = stored(jnp.take_along_axis(new, index, axis=2), buffer)
        is_new = (at >= 0)[:, None, :, None]
        return jax.tree.map(lambda t, b: jnp.where(is_new, t, b), taken, buffer)

    return Ring(*map(place, ring, new))


def attend(
    q: jax.Array,
    ring: Ring,
    after: Ring,
    new: KV,
    offset: jax.Array,
    *,
    window: int | None,
    chunk: int | None,
    **options,
) -> jax.Array:
    """From new tokens to those before them in the ring, and to themselves.

    Args:
        q: dtype[B, T, N, H].
        ring: [B, K, R, H] each, without the new tokens.
        after: the ring with them, as `advance` makes it.
        new: [B, K, T, H] each.
        offset: i32[B], tokens before the new ones.
        window: as in `zoo.attention.attend`, like `chunk`.
        chunk: one of the two is given.
        **options: scale, sinks and softcap, likewise.

    Returns:
        dtype[B, T, N, H].
    """
    (batch, length), slots = q.shape[:2], ring.k.shape[2]
    queries = offset[:, None] + jnp.arange(length)
    if length == 1:
        whole = after
        keys = positions(slots, offset + 1)
    else:
        parts = zip(ring, new, strict=True)
        whole = Ring(*(jnp.concatenate((loaded(b, n.dtype), n), axis=2) for b, n in parts))
        keys = jnp.concatenate((positions(slots, offset), queries), axis=1)
    reach = window - 1 if chunk is None else queries[..., None] % chunk
    distance = queries[..., None] - keys[:, None]
    allowed = (keys >= 0)[:, None] & (distance >= 0) & (distance <= reach)
    k, v = (loaded(part, q.dtype).swapaxes(1, 2) for part in whole)
    # As if the queries stood behind all keys; `allowed` says which they see.
    behind = jnp.full((batch,), k.shape[1] - length)
    return kernels.attend(q, k, v, offset=behind, allowed=allowed, **options)


def positions(slots: int, length: jax.Array) -> jax.Array:
    """Of the tokens in a ring that has seen `length` i32[B], i32[B, R]; below 0 for none."""
    last = length[:, None] - 1
    return last - (last - jnp.arange(slots)) % slots
