"""What a decoder remembers between calls: a pytree that goes in and comes out of `Decoder.apply`.

Axes: L repeats of a stack, B batch, S slots, K kv heads, H head dimension, R latent rank; of
recurrences K key heads, G value heads per key head, H key channels, P value channels, W tokens of
the convolution.

Row b of a buffer with slots holds `lengths[b]` tokens in its first; what lies behind them is not
read and will be overwritten, so prompts of different lengths are padded on the right. A recurrence
keeps the state after each row's last token instead, whatever the length.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo.config import MLA, Attention, Config, GatedDelta


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


class IndexedLatent(NamedTuple):
    """`Latent`, and the keys of the indexer that chooses among its slots, [B, S, indexer.dim]."""

    c: jax.Array
    keys: jax.Array


class Recurrent(NamedTuple):
    """What the gated delta rule keeps of all tokens before: no slots, the same size at any length.

    `conv` [B, W - 1, channels] are the last inputs of the convolution, the newest last; `state`
    f32[B, K, G, H, P], float32 whatever the cache's type.
    """

    conv: jax.Array
    state: jax.Array


Held = KV | Latent | IndexedLatent | Recurrent


class Cache(NamedTuple):
    """`lengths` i32[B] in tokens, and by stack and layer one of the above, repeats leading.

    Layers that share the keys and values of another have none.
    """

    lengths: jax.Array
    stacks: dict[str, dict[str, Held]]


def init(cfg: Config, batch: int, length: int, dtype: jnp.dtype = jnp.bfloat16) -> Cache:
    """An empty cache of `length` slots for each of `batch` rows.

    Within `zoo.sharding.use` its buffers are made where their rows and heads belong.
    """

    def empty() -> Cache:
        stacks = {
            f"stack_{i}": {
                f"layer_{j}": _buffers(layer.mixer, stack.repeats, batch, length, dtype)
                for j, layer in enumerate(stack.layers)
                if not layer.shares
            }
            for i, stack in enumerate(cfg.stacks)
        }
        return Cache(jnp.zeros((batch,), jnp.int32), stacks)

    if not nn.get_logical_axis_rules():
        return empty()
    names = logical_axes_of(jax.eval_shape(empty))
    return jax.jit(lambda: nn.with_logical_constraint(empty(), names))()


def logical_axes_of(cache: Cache) -> Cache:
    """The logical axis names of every buffer of a cache, as tuples; slots and widths have none."""

    def named(held: Held) -> Held:
        heads = "heads" if isinstance(held, Recurrent) else "kv_heads"
        by_head = {"k", "v", "state"}
        names = (
            ("layers", "batch", *((heads,) if field in by_head else ())) for field in held._fields
        )
        return type(held)(*(
            (*name, *(None,) * (leaf.ndim - len(name)))
            for name, leaf in zip(names, held, strict=True)
        ))  # fmt: skip

    return Cache(("batch",), jax.tree.map(named, cache.stacks, is_leaf=_is_held))


def bytes_per_token(cfg: Config, dtype: jnp.dtype = jnp.bfloat16) -> int:
    """Bytes that one token of one row occupies, over all layers."""
    return _bytes_per_row(cfg, 1, dtype) - _bytes_per_row(cfg, 0, dtype)


def state_bytes(cfg: Config, dtype: jnp.dtype = jnp.bfloat16) -> int:
    """Bytes that one row occupies whatever its length: the recurrent layers' states."""
    return _bytes_per_row(cfg, 0, dtype)


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

    def widen(held: Held) -> Held:
        if isinstance(held, Recurrent):
            return held
        ends = [(0, slots), (0, 0)]
        return jax.tree.map(lambda b: jnp.pad(b, [(0, 0)] * (b.ndim - 2) + ends), held)

    return Cache(cache.lengths, jax.tree.map(widen, cache.stacks, is_leaf=_is_held))


def insert(cache: Cache, row: jax.Array, one: Cache) -> Cache:
    """The cache with `one`'s only row as its row i32[]; `one` may have fewer slots."""

    def place(whole: jax.Array, part: jax.Array) -> jax.Array:
        axis = _batch_axis(cache)
        at = [row if i == axis else 0 for i in range(whole.ndim)]
        return jax.lax.dynamic_update_slice(whole, part.astype(whole.dtype), at)

    stacks = jax.tree.map(place, cache.stacks, one.stacks)
    return Cache(cache.lengths.at[row].set(one.lengths[0]), stacks)


def take(cache: Cache, row: jax.Array, length: jax.Array) -> Cache:
    """Row i32[] alone, as the cache of one row that holds `length` i32[] tokens."""
    cut = functools.partial(
        jax.lax.dynamic_slice_in_dim, start_index=row, slice_size=1, axis=_batch_axis(cache)
    )
    return Cache(length[None], jax.tree.map(cut, cache.stacks))


def slots(cache: Cache) -> int | None:
    """Tokens that a row has room for; None where that is any number, all layers being recurrent."""
    held = jax.tree.leaves(cache.stacks, is_leaf=_is_held)
    return next((h[0].shape[-2] for h in held if not isinstance(h, Recurrent)), None)


def rewinds(cfg: Config) -> bool:
    """Whether a cache can go back to fewer tokens: recurrences keep no earlier state."""
    return not any(isinstance(la.mixer, GatedDelta) for stack in cfg.stacks for la in stack.layers)


def _batch_axis(cache: Cache) -> int:
    """Of its buffers: a stack is a dictionary of buffers that lead with L, or a tuple of L."""
    return 0 if any(isinstance(stack, tuple) for stack in cache.stacks.values()) else 1


def _is_held(x: object) -> bool:
    return isinstance(x, Held)


def _bytes_per_row(cfg: Config, length: int, dtype: jnp.dtype) -> int:
    shapes = jax.eval_shape(lambda: init(cfg, 1, length, dtype).stacks)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def _buffers(
    mixer: Attention | MLA | GatedDelta, repeats: int, batch: int, length: int, dtype: jnp.dtype
) -> Held:
    match mixer:
        case Attention():
            shape = (repeats, batch, mixer.kv_heads, length, mixer.head_dim)
            return KV(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))
        case MLA():
            width = mixer.kv_rank + mixer.rope_dim
            c = jnp.zeros((repeats, batch, length, width), dtype)
            if mixer.indexer is None:
                return Latent(c)
            return IndexedLatent(c, jnp.zeros((*c.shape[:-1], mixer.indexer.dim), dtype))
        case GatedDelta():
            groups = mixer.v_heads // mixer.k_heads
            state = (repeats, batch, mixer.k_heads, groups, mixer.k_dim, mixer.v_dim)
            conv = (repeats, batch, mixer.conv - 1, mixer.channels)
            return Recurrent(jnp.zeros(conv, dtype), jnp.zeros(state, jnp.float32))
