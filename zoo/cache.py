"""What a decoder remembers between calls: a pytree that goes in and comes out of `Decoder.apply`.

Axes: L repeats of a stack, B batch, S slots, K kv heads, H head dimension, R latent rank; of
recurrences K key heads, G value heads per key head, H key channels, P value channels, W tokens of
the convolution.

Row b of a buffer with slots holds `lengths[b]` tokens in its first; what lies behind them is not
read and will be overwritten, so prompts of different lengths are padded on the right. A recurrence
keeps the state after each row's last token instead, whatever the length, and so does a ring
(`zoo.window`) with the last tokens of a window or a chunk.

In a cache of int8 a buffer is not one array but two, codes and scales (`zoo.buffer`).

A pooled cache has no slots by row, but pages that rows share: see `zoo.pooled`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from zoo.axes import as_tuple
from zoo.buffer import Buffer, Paged, Pending, Pool, stored, write_paged, zeros
from zoo.config import MLA, Attention, Config, GatedDelta, Stack

PAGE = 32
"""Tokens of a page."""

FEW = 8
"""New tokens of a row that may wait: attention looks for each of them in every slot."""


class KV(NamedTuple):
    """Keys and values of grouped-query attention, [B, K, S, H] each.

    Heads lead slots, so that a decoding step reads each head's slots in one piece.
    """

    k: Buffer
    v: Buffer


class Ring(NamedTuple):
    """`KV` of the newest tokens only, [B, K, R, H] each: position p is in slot p mod R."""

    k: Buffer
    v: Buffer


class Latent(NamedTuple):
    """The compressed keys and values of latent attention: kv_rank elements, then the rotated key.

    [B, S, R + rope_dim] (DeepSeek-V2, arXiv:2405.04434 section 2.1.2): values are the first R.
    """

    c: Buffer


class IndexedLatent(NamedTuple):
    """`Latent`, and the keys of the indexer that chooses among its slots, [B, S, indexer.dim]."""

    c: Buffer
    keys: Buffer


class Recurrent(NamedTuple):
    """What the gated delta rule keeps of all tokens before: no slots, the same size at any length.

    `conv` [B, W - 1, channels] are the last inputs of the convolution, the newest last; `state`
    f32[B, K, G, H, P], float32 whatever the cache's type. A cache of int8 keeps `conv` in bfloat16.
    """

    conv: jax.Array
    state: jax.Array


Held = KV | Ring | Latent | IndexedLatent | Recurrent


class Cache(NamedTuple):
    """`lengths` i32[B] in tokens, and by stack and layer one of the above, repeats leading.

    Layers that share the keys and values of another have none.
    """

    lengths: jax.Array
    stacks: dict[str, dict[str, Held]]


def init(
    cfg: Config,
    batch: int,
    length: int,
    dtype: jnp.dtype = jnp.bfloat16,
    room: int | None = None,
    spare: int = 0,
    pages: int | None = None,
) -> Cache:
    """An empty cache of `length` slots for each of `batch` rows.

    Within `zoo.sharding.use` its buffers are made where their rows and heads belong.

    Args:
        cfg: of the model.
        batch: rows.
        length: slots of each.
        dtype: of all but recurrent states; int8 has scales beside it.
        room: tokens that a row will hold in the end, after `grow` or `zoo.pooled.insert`. Layers
            that see fewer than that keep a `Ring` of what they see; None gives every layer all
            slots.
        spare: newest tokens that can be taken back from a ring.
        pages: makes it a pooled cache of so many; `length` means nothing then.
    """
    slotted = (batch, length) if pages is None else (pages, PAGE)

    def empty() -> Cache:
        stacks = {
            f"stack_{i}": {
                f"layer_{j}": _buffers(
                    layer.mixer, stack.repeats, batch, slotted, dtype, _ring(stack, j, room, spare)
                )
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


def logical_axes_of(cache: Cache, rows: str = "batch") -> Cache:
    """The logical axis names of every buffer of a cache, as tuples; slots and widths have none.

    `rows` is what its rows are called. Where a stack is a tuple, its buffers have no layers.
    """

    def named(held: Held, lead: tuple[str, ...]) -> Held:
        heads = "heads" if isinstance(held, Recurrent) else "kv_heads"
        by_head = {"k", "v", "state"}

        def of_field(field: str, buffer: Buffer) -> Any:
            first = (*lead, rows, *((heads,) if field in by_head else ()))
            return jax.tree.map(lambda leaf: (*first, *(None,) * (leaf.ndim - len(first))), buffer)

        return type(held)(*map(of_field, held._fields, held))

    def of_stack(stack: Any) -> Any:
        lead = () if isinstance(stack, tuple) else ("layers",)
        return jax.tree.map(lambda held: named(held, lead), stack, is_leaf=is_held)

    return Cache((rows,), {name: of_stack(stack) for name, stack in cache.stacks.items()})


def init_draft(
    cfg: Config,
    batch: int,
    length: int,
    room: int | None = None,
    spare: int = 0,
    depth: int = 0,
    dtype: jnp.dtype = jnp.bfloat16,
    pages: int | None = None,
) -> Cache:
    """An empty cache for `Decoder.draft` at a depth; as of `init`, with no repeats."""
    stack = Stack(1, (cfg.mtp[depth],))
    mixer, ring = stack.layers[0].mixer, _ring(stack, 0, room, spare)
    slotted = (batch, length) if pages is None else (pages, PAGE)
    held = _buffers(mixer, 1, batch, slotted, dtype, ring)
    layer = jax.tree.map(lambda leaf: leaf[0], held)
    return Cache(jnp.zeros((batch,), jnp.int32), {f"mtp_{depth}": {"layer_0": layer}})


def row_bytes(cfg: Config, length: int, dtype: jnp.dtype = jnp.bfloat16) -> int:
    """Bytes of a row that has room for `length` tokens and no more, over all layers."""
    shapes = jax.eval_shape(lambda: init(cfg, 1, length, dtype, room=length).stacks)
    return _bytes(shapes)


def bytes_per_token(cfg: Config, dtype: jnp.dtype = jnp.bfloat16) -> int:
    """Bytes that one token of one row occupies in a cache without rings, over all layers."""
    return _bytes_per_row(cfg, 1, dtype) - _bytes_per_row(cfg, 0, dtype)


def state_bytes(cfg: Config, dtype: jnp.dtype = jnp.bfloat16) -> int:
    """Bytes that one row occupies whatever its length: the recurrent layers' states."""
    return _bytes_per_row(cfg, 0, dtype)


def write(buffer: Buffer, new: jax.Array, offset: jax.Array) -> Buffer:
    """Puts new[B, ..., T, H] into buffer[B, ..., S, H] at slots offset[b] .. offset[b] + T.

    A chunk as long as the buffer starts at slot 0. Of several rows, every row and head is written
    by itself: XLA updates the buffer in place then, where one slice across heads would copy it on
    CPU. A single row is written without its axis (`zoo.inference.unstack.lean`).
    """
    if isinstance(buffer, Paged):
        return write_paged(buffer, new, offset)
    if isinstance(buffer, Pending):
        return buffer._replace(new=stored(new, buffer.whole), offset=offset)
    new = stored(new, buffer)
    if buffer.shape == new.shape:
        return new

    def place(buffer: jax.Array, new: jax.Array, start: jax.Array, axis: int = 0) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(buffer, new, start, axis)

    if buffer.shape[0] == 1:
        return jax.tree.map(
            lambda b, n: place(b[0], n[0], offset[0], b.ndim - 3)[None], buffer, new
        )
    for _ in range(len(buffer.shape) - 3):
        place = jax.vmap(place, in_axes=(0, 0, None))
    return jax.tree.map(lambda b, n: jax.vmap(place)(b, n, offset), buffer, new)


def waits(held: Held, tokens: int) -> bool:
    """Whether so many new tokens of a row may be `Pending` while a repeat of a stack reads them.

    Many become a part of their layer at once, as do those that fill a buffer, and more than one of
    a ring.
    """
    first = held[0]
    if isinstance(held, Recurrent) or isinstance(first, Paged) or tokens == first.shape[-2]:
        return False
    return tokens <= (1 if isinstance(held, Ring) else FEW)


def write_layers(whole: Pool, new: Pool, offset: jax.Array) -> Pool:
    """Puts new[L, B, ..., T, H], as a buffer keeps them, into whole[L, B, ..., S, H] as `write`.

    Each row by itself, and on a mesh each device its own: XLA writes a slice in place, but on TPU
    gives what a loop or a scatter writes another layout, and copies the whole for it.
    """

    def place(whole: Pool, new: Pool, offset: jax.Array) -> Pool:
        def one(whole: jax.Array, new: jax.Array) -> jax.Array:
            for b in range(whole.shape[1]):
                start = (0, b, *(0,) * (whole.ndim - 4), offset[b], 0)
                whole = jax.lax.dynamic_update_slice(whole, new[:, b : b + 1], start)
            return whole

        return jax.tree.map(one, whole, new)

    mesh, names = jax.sharding.get_abstract_mesh(), ("layers", "batch", "kv_heads")
    if not mesh.empty and nn.get_logical_axis_rules():
        spec = nn.logical_to_mesh_axes(names[: len(whole.shape) - 2])
        parts = [math.prod(mesh.shape[axis] for axis in as_tuple(axes)) for axes in spec]
        if not any(n % p for n, p in zip(whole.shape, parts, strict=False)):
            specs = (spec, spec, PartitionSpec(spec[1]))
            place = jax.shard_map(place, in_specs=specs, out_specs=spec, check_vma=False)
    return place(whole, new, offset)


def advanced(
    cache: Cache | None, stacks: dict, tokens: jax.Array, segment_ids: jax.Array | None
) -> Cache | None:
    """The cache after tokens [B, T] that `stacks` holds too: longer by those that are not padding.

    None if there is none.
    """
    if cache is None:
        return None
    real = tokens.shape[1] if segment_ids is None else (segment_ids > 0).sum(-1)
    return Cache(cache.lengths + real, stacks)


def grow(cache: Cache, slots: int) -> Cache:
    """The cache with room for `slots` more tokens in each row."""

    def widen(held: Held) -> Held:
        if is_state(held):
            return held
        ends = [(0, slots), (0, 0)]
        return jax.tree.map(lambda b: jnp.pad(b, [(0, 0)] * (b.ndim - 2) + ends), held)

    return Cache(cache.lengths, jax.tree.map(widen, cache.stacks, is_leaf=is_held))


def is_held(x: object) -> bool:
    """Whether this is what a layer holds, and not a part of it."""
    return isinstance(x, Held)


def is_state(held: Held) -> bool:
    """Whether this is a state after all tokens, which cannot be cut into those of fewer."""
    return isinstance(held, Recurrent | Ring)


def stateful(cache: Cache) -> bool:
    """Whether any layer keeps such a state."""
    return any(map(is_state, jax.tree.leaves(cache.stacks, is_leaf=is_held)))


def slots(cache: Cache) -> int | None:
    """Tokens that a row has room for; None where all layers keep a state of one size."""
    held = jax.tree.leaves(cache.stacks, is_leaf=is_held)
    return next((h[0].shape[-2] for h in held if not is_state(h)), None)


def rewinds(cfg: Config) -> bool:
    """Whether a cache without rings can go back to fewer tokens, as no recurrence can."""
    return not any(isinstance(la.mixer, GatedDelta) for stack in cfg.stacks for la in stack.layers)


def _bytes_per_row(cfg: Config, length: int, dtype: jnp.dtype) -> int:
    shapes = jax.eval_shape(lambda: init(cfg, 1, length, dtype).stacks)
    return _bytes(shapes)


def _bytes(shapes: dict) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def _ring(stack: Stack, j: int, room: int | None, spare: int) -> int | None:
    """Slots of a ring for layer j of a pattern, or None where it needs one for every token.

    A layer whose keys and values others share keeps all of them: the others may see further.
    """
    mixer = stack.layers[j].mixer
    span = (mixer.window or mixer.chunk) if isinstance(mixer, Attention) else None
    lent = any(i - layer.shares == j for i, layer in enumerate(stack.layers) if layer.shares)
    if span is None or room is None or lent or span + spare >= room:
        return None
    return span + spare


def _buffers(
    mixer: Attention | MLA | GatedDelta,
    repeats: int,
    batch: int,
    slotted: tuple[int, int],
    dtype: jnp.dtype,
    ring: int | None,
) -> Held:
    """Slots lie in [B, S] or in [pages, PAGE]; a ring or a state has `batch` rows."""
    match mixer:
        case Attention():
            first, length = slotted if ring is None else (batch, ring)
            shape = (repeats, first, mixer.kv_heads, length)
            kind = KV if ring is None else Ring
            return kind(*(zeros((*shape, h), dtype) for h in (mixer.head_dim, mixer.value_dim)))
        case MLA():
            width = mixer.kv_rank + mixer.rope_dim
            c = zeros((repeats, *slotted, width), dtype)
            if mixer.indexer is None:
                return Latent(c)
            return IndexedLatent(c, zeros((*c.shape[:-1], mixer.indexer.dim), dtype))
        case GatedDelta():
            groups = mixer.v_heads // mixer.k_heads
            state = (repeats, batch, mixer.k_heads, groups, mixer.k_dim, mixer.v_dim)
            conv = (repeats, batch, mixer.conv - 1, mixer.channels)
            kept = jnp.bfloat16 if jnp.dtype(dtype) == jnp.int8 else dtype
            return Recurrent(jnp.zeros(conv, kept), jnp.zeros(state, jnp.float32))
