"""What a decoder remembers between calls: a pytree that goes in and comes out of `Decoder.apply`.

Axes: L repeats of a stack, B batch, S slots, K kv heads, H head dimension, R latent rank.

Row b of every buffer holds `lengths[b]` tokens in its first slots; what lies behind them is not
read and will be overwritten, so prompts of different lengths are padded on the right.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo.config import MLA, Attention, Config


class KV(NamedTuple):
    """Keys and values of grouped-query attention, [B, K, S, H] each.

    Heads lead slots, so that a decoding step reads each head's slots in one piece.
    """

    k: jax.Array
    v: jax.Array


class Latent(NamedTuple):
    """The compressed keys and values of latent attention: kv_rank elements, then the rotated key.

    [B, S, R + rope_dim] (DeepSeek-V2, arXiv:2405.04434 section 2.1.2): values are the first R.
    """

    c: jax.Array


class Cache(NamedTuple):
    """`lengths` i32[B] in tokens, and by stack and layer a `KV` or `Latent`, repeats leading."""

    lengths: jax.Array
    stacks: dict[str, dict[str, KV | Latent]]


def init(cfg: Config, batch: int, length: int, dtype: jnp.dtype = jnp.bfloat16) -> Cache:
    """An empty cache of `length` slots for each of `batch` rows."""
    stacks = {
        f"stack_{i}": {
            f"layer_{j}": _buffers(layer.mixer, stack.repeats, batch, length, dtype)
            for j, layer in enumerate(stack.layers)
        }
        for i, stack in enumerate(cfg.stacks)
    }
    return Cache(jnp.zeros((batch,), jnp.int32), stacks)


def bytes_per_token(cfg: Config, dtype: jnp.dtype = jnp.bfloat16) -> int:
    """Bytes that one token of one row occupies, over all layers."""
    shapes = jax.eval_shape(lambda: init(cfg, 1, 1, dtype).stacks)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def write(buffer: jax.Array, new: jax.Array, offset: jax.Array) -> jax.Array:
    """Puts new[B, ..., T, H] into buffer[B, ..., S, H] at slots offset[b] .. offset[b] + T.

    A chunk as long as the buffer starts at slot 0. Every row and head is written by itself: XLA
    updates the buffer in place then, where one slice across heads would copy it on CPU.
    """
    new = new.astype(buffer.dtype)
    if buffer.shape == new.shape:
        return new

    def place(buffer: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(buffer, new, start, axis=0)

    for _ in range(buffer.ndim - 3):
        place = jax.vmap(place, in_axes=(0, 0, None))
    return jax.vmap(place)(buffer, new, offset)


def grow(cache: Cache, slots: int) -> Cache:
    """The cache with room for `slots` more tokens in each row."""

    def widen(buffer: jax.Array) -> jax.Array:
        return jnp.pad(buffer, [(0, 0)] * (buffer.ndim - 2) + [(0, slots), (0, 0)])

    return Cache(cache.lengths, jax.tree.map(widen, cache.stacks))


def _buffers(mixer: Attention | MLA, repeats: int, batch: int, length: int, dtype) -> KV | Latent:
    match mixer:
        case Attention():
            shape = (repeats, batch, mixer.kv_heads, length, mixer.head_dim)
            return KV(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
        case MLA():
            width = mixer.kv_rank + mixer.rope_dim
            return Latent(jnp.zeros((repeats, batch, length, width), dtype))
