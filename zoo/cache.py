"""What a decoder remembers between calls: a pytree that goes in and comes out of `Decoder.apply`.

Axes: L repeats of a stack, B batch, S slots, K kv heads, H head dimension, R latent rank.

Row b of every buffer holds `lengths[b]` tokens in its first slots; what lies behind them is not read
and will be overwritten, so prompts of different lengths are padded on the right.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo.config import MLA, Attention, Config


class KV(NamedTuple):
    """Keys and values of grouped-query attention, [B, S, K, H] each."""

    k: jax.Array
    v: jax.Array


class Latent(NamedTuple):
    """The compressed keys and values of latent attention: kv_rank elements, then the rotated key.

    [B, S, R + rope_dim] (DeepSeek-V2, arXiv:2405.04434 section 2.1.2): values are the first R.
    """

    c: jax.Array


class Cache(NamedTuple):
    """`lengths` i32[B] in tokens, and per stack and layer a `KV` or `Latent`, stacked over repeats."""

    lengths: jax.Array
    stacks: dict[str, dict[str, KV | Latent]]


def init(cfg: Config, batch: int, length: int, dtype: jnp.dtype = jnp.bfloat16) -> Cache:
    """An empty cache of `length` slots for each of `batch` rows."""
    stacks = {
        f"stack_{i}": {
            f"layer_{j}": _buffers(layer.mixer, (stack.repeats, batch, length), dtype)
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
    """Puts new[B, T, ...] into buffer[B, S, ...] at slots offset[b] .. offset[b] + T of each row."""
    if buffer.shape[1] == new.shape[1]:
        return new.astype(buffer.dtype)

    def row(buffer: jax.Array, new: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(buffer, new, start, axis=0)

    return jax.vmap(row)(buffer, new.astype(buffer.dtype), offset)


def grow(cache: Cache, slots: int) -> Cache:
    """The cache with room for `slots` more tokens in each row."""

    def pad(buffer: KV | Latent) -> KV | Latent:
        axis = -3 if isinstance(buffer, KV) else -2

        def widen(leaf: jax.Array) -> jax.Array:
            widths = [(0, 0)] * leaf.ndim
            widths[axis] = (0, slots)
            return jnp.pad(leaf, widths)

        return jax.tree.map(widen, buffer)

    is_buffer = lambda node: isinstance(node, KV | Latent)  # noqa: E731
    return Cache(cache.lengths, jax.tree.map(pad, cache.stacks, is_leaf=is_buffer))


def _buffers(mixer: Attention | MLA, lead: tuple[int, ...], dtype: jnp.dtype) -> KV | Latent:
    match mixer:
        case Attention():
            shape = (*lead, mixer.kv_heads, mixer.head_dim)
            return KV(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
        case MLA():
            return Latent(jnp.zeros((*lead, mixer.kv_rank + mixer.rope_dim), dtype))
