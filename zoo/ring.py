"""Ring attention: the softmax attention of `zoo.attention` for rows that several devices share.

Every device keeps its queries, and keys and values travel around the ring of the mesh axis
`context` (arXiv:2310.01889). What a query has seen is kept as a weighted sum, its total weight and
the largest score, to which the next keys are added. The backward pass keeps q, k, v, the output and
the logarithm of the total (FlashAttention, arXiv:2205.14135); keys and values travel once more, and
their gradients with them until they are home.

A device works by tiles, of which those that no query can see are skipped; so the largest array is a
tile of scores, and the zigzag order of `zoo.zigzag` gives every device as many tiles.

Axes: B batch, T query positions, N query heads, K kv heads, G = N/K, H head dimension, C tiles of a
device, t queries and s keys of a tile.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zoo import zigzag
from zoo.attention import chunks
from zoo.precision import precision

TILE = 512
"""Queries and keys of a tile at most; a tile is a divisor of half of what a device holds."""

LOWEST = float(jnp.finfo(jnp.float32).min)


class Limits(NamedTuple):
    """How far a query sees, how scores are bounded, and the size of a tile."""

    window: int | None
    softcap: float | None
    tile: int


class Keys(NamedTuple):
    """What travels, by tiles: k[C, B, K, s, H], v[C, B, K, s, Hv], and where they stand.

    `number` i32[C] of the tile in the row, `slots` i32[C, s], `ids` i32[C, B, s].
    """

    k: jax.Array
    v: jax.Array
    number: jax.Array
    slots: jax.Array
    ids: jax.Array


class Queries(NamedTuple):
    """What stays, by tiles: q[C, B, K, G, t, H], `slots` i32[C, t], `ids` i32[C, B, t].

    `meets` bool[C, tiles of the row]: which tiles of keys hold anything that the queries see.
    `allowed` bool[C, B, tiles of the row, t, s], by key in the order of the row, or None.
    """

    q: jax.Array
    slots: jax.Array
    ids: jax.Array
    meets: jax.Array
    allowed: jax.Array | None


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    slots: jax.Array,
    segment_ids: jax.Array | None = None,
    allowed: jax.Array | None = None,
    sinks: jax.Array | None = None,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """`zoo.attention.attend` within rows that the devices of the mesh axis `context` share.

    Args:
        q: dtype[B, T, N, H], like k, v and the ids in zigzag order along T.
        k: dtype[B, T, K, H].
        v: dtype[B, T, K, Hv].
        scale: factor on the products.
        slots: i32[T], the slot of the row that stands where, as `zoo.zigzag.slots` says.
        segment_ids: i32[B, T]: a query sees keys of its own segment.
        allowed: bool[B, T, S], keys that a query may see besides all that, T in zigzag order and S
            in the order of the row; None is all.
        sinks: f32[N], a score per head that takes its share of the softmax and has no value.
        window: how many slots a query sees, its own included; None is all.
        chunk: a query sees its own chunk of so many slots, counted from the start of its segment.
        softcap: bounds scores to softcap * tanh(scores / softcap).

    Returns:
        dtype[B, T, N, Hv], in zigzag order.

    Raises:
        ValueError: a window or chunk is below 1.
    """
    for name, value in (("window", window), ("chunk", chunk)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1: a query sees its own slot")
    (B, T, N, H), K = q.shape, k.shape[2]
    if chunk is not None:
        ids = None if segment_ids is None else zigzag.restore(segment_ids, slots)
        segment_ids, window = zigzag.arrange(chunks(ids, (B, T), chunk), slots), chunk
    ids = jnp.zeros((B, T), jnp.int32) if segment_ids is None else segment_ids
    limits = Limits(window, softcap, _tile(T))
    q = (q * scale).reshape(B, T, K, N // K, H)
    sinks = None if sinks is None else sinks.astype(jnp.float32).reshape(K, N // K)
    return _attend(q, k, v, slots, ids, allowed, sinks, limits).reshape(B, T, N, -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def _attend(q, k, v, slots, ids, allowed, sinks, limits):
    """Scaled q[B, T, K, G, H], k[B, T, K, H], v[B, T, K, Hv] -> [B, T, K, G, Hv]."""
    return _forward(q, k, v, slots, ids, allowed, sinks, limits)[0]


def _forward(q, k, v, slots, ids, allowed, sinks, limits):
    tile, meets = limits.tile, _meeting(slots, ids, limits)

    def local(q, k, v, slots, ids, allowed, meets, numbers):
        places = slots, ids, allowed, meets, numbers
        slots, ids, allowed, meets, numbers = _known_with(q, places)
        mine = _queries(q, slots, ids, meets, allowed, tile)
        keys = Keys(*_tiled((k, v), tile), numbers, *_tiled_places(slots, ids, tile))
        shape = mine.q.shape[:-1]
        weighted = jnp.zeros((*shape, v.shape[-1]), jnp.float32)
        seen = (weighted, jnp.zeros(shape, jnp.float32), jnp.full(shape, LOWEST))

        def hop(carried, _):
            seen, keys = carried
            arriving = _passed_on(keys)
            seen = jax.lax.map(lambda rows: _see(*rows, keys, limits), (mine, seen))
            return (seen, arriving), None

        (weighted, total, top), _ = jax.lax.scan(hop, (seen, keys), length=zigzag.ways())[0]
        total, top = total[..., None], top[..., None]
        return _untiled(weighted / total), _untiled(top + jnp.log(total))

    out, total = zigzag.shared(local, (1, 1, 1, 0, 1, 1, 0, 0), (1, 1))(
        q, k, v, slots, ids, allowed, meets, jnp.arange(len(meets))
    )
    if sinks is not None:
        out, total = _with_sinks(out, total, sinks[..., None])
    out = out.astype(v.dtype)
    return out, (q, k, v, slots, ids, allowed, sinks, out, total)


def _with_sinks(out: jax.Array, total: jax.Array, sinks: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The output and the logarithm of its total weight, once the sinks have taken their share."""
    return out * jax.nn.sigmoid(total - sinks), jnp.logaddexp(total, sinks)


def _backward(limits, saved, grad):
    q, k, v, slots, ids, allowed, sinks, out, total = saved
    tile, meets = limits.tile, _meeting(slots, ids, limits)
    through = (grad.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1, keepdims=True)

    def local(q, k, v, slots, ids, allowed, meets, numbers, grad, total, through):
        places = slots, ids, allowed, meets, numbers
        slots, ids, allowed, meets, numbers = _known_with(q, places)
        mine = _queries(q, slots, ids, meets, allowed, tile)
        keys = Keys(*_tiled((k, v), tile), numbers, *_tiled_places(slots, ids, tile))
        found = _tiled((grad, total, through), tile)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), (mine.q, (keys.k, keys.v)))

        def hop(carried, _):
            q_grad, key_grads, keys = carried
            arriving = _passed_on(keys)
            q_grad, key_grads = jax.lax.scan(
                lambda q_grad, column: _return(mine, found, q_grad, *column, limits),
                q_grad, (keys, key_grads),
            )  # fmt: skip
            return (q_grad, _passed_on(key_grads), arriving), None

        q_grad, (k_grad, v_grad), _ = jax.lax.scan(hop, (*zeros, keys), length=zigzag.ways())[0]
        grads = map(_untiled, (q_grad, k_grad, v_grad))
        return tuple(g.astype(x.dtype) for g, x in zip(grads, (q, k, v), strict=True))

    grads = zigzag.shared(local, (1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1), (1, 1, 1))(
        q, k, v, slots, ids, allowed, meets, jnp.arange(len(meets)), grad, total, through
    )
    if sinks is None:
        return *grads, None, None, None, None
    lost = jnp.exp(sinks[..., None] - total)
    return *grads, None, None, None, -(lost * through).sum((0, 1, -1))


_attend.defvjp(_forward, _backward)


def _see(mine: Queries, seen: tuple, keys: Keys, limits: Limits) -> tuple:
    """What one tile of queries has seen, after all tiles of keys that are here."""

    def add(seen, tile: Keys):
        weighted, total, top = seen
        scores, mask = _scores(mine, tile, limits)
        scores = jnp.where(mask, scores, LOWEST)
        higher = jnp.maximum(top, scores.max(-1))
        weights = jnp.where(mask, jnp.exp(scores - higher[..., None]), 0.0)
        shrunk = jnp.exp(top - higher)
        new = _product("bkgts,bksv->bkgtv", weights.astype(tile.v.dtype), tile.v)
        weighted = weighted * shrunk[..., None] + new
        return weighted, total * shrunk + weights.sum(-1), higher

    def column(seen, tile: Keys):
        return jax.lax.cond(mine.meets[tile.number], add, lambda seen, _: seen, seen, tile), None

    return jax.lax.scan(column, seen, keys)[0]


def _return(mine: Queries, found: tuple, q_grads, tile: Keys, key_grads: tuple, limits: Limits):
    """The gradients after one tile of keys: of all tiles of queries, and of these keys."""

    def add(key_grads, rows: Queries, found, q_grad):
        (k_grad, v_grad), (grad, total, through) = key_grads, found
        scores, mask = _scores(rows, tile, limits)
        probs = jnp.where(mask, jnp.exp(scores - total), 0.0)
        scores_grad = probs * (_product("bkgtv,bksv->bkgts", grad, tile.v) - through)
        if limits.softcap is not None:
            scores_grad = scores_grad * (1 - jnp.square(scores / limits.softcap))
        scores_grad = scores_grad.astype(tile.k.dtype)
        v_grad = v_grad + _product("bkgts,bkgtv->bksv", probs.astype(grad.dtype), grad)
        k_grad = k_grad + _product("bkgts,bkgth->bksh", scores_grad, rows.q)
        return (k_grad, v_grad), q_grad + _product("bkgts,bksh->bkgth", scores_grad, tile.k)

    def row(key_grads, rows):
        mine, found, q_grad = rows
        skip = lambda key_grads, mine, found, q_grad: (key_grads, q_grad)  # noqa: E731
        return jax.lax.cond(mine.meets[tile.number], add, skip, key_grads, mine, found, q_grad)

    key_grads, q_grads = jax.lax.scan(row, key_grads, (mine, found, q_grads))
    return q_grads, key_grads


def _scores(mine: Queries, tile: Keys, limits: Limits) -> tuple[jax.Array, jax.Array]:
    """Bounded scores f32[B, K, G, t, s] of a tile, and which of them count, bool[B, 1, 1, t, s]."""
    scores = _product("bkgth,bksh->bkgts", mine.q, tile.k)
    if limits.softcap is not None:
        scores = limits.softcap * jnp.tanh(scores / limits.softcap)
    distance = mine.slots[:, None] - tile.slots
    mask = (distance >= 0) & (mine.ids[:, :, None] == tile.ids[:, None])
    if limits.window is not None:
        mask &= distance < limits.window
    if mine.allowed is not None:  # a tile's slots follow each other in the row
        mask &= mine.allowed[:, tile.slots[0] // limits.tile]
    return scores, mask[:, None, None]


def _meeting(slots: jax.Array, ids: jax.Array, limits: Limits) -> jax.Array:
    """bool[tiles, tiles] of a row: whether any query of the one may see any key of the other.

    By the ranges of slots and of segment ids, so that it costs nothing and never misses a pair. It
    is decided for all rows of the batch together, before the loops, which then need no agreement.
    """
    slots = slots.reshape(-1, limits.tile)
    first, last = slots.min(1), slots.max(1)
    meets = first <= last[:, None]
    if limits.window is not None:
        meets &= first[:, None] - last < limits.window
    ids = ids.reshape(len(ids), -1, limits.tile)
    low, high = ids.min(2), ids.max(2)
    overlap = (low[:, None] <= high[:, :, None]) & (low[:, :, None] <= high[:, None])
    return meets & overlap.any(0)


def _known_with(x: jax.Array, places: Any) -> Any:
    """What depends on places alone, as if it depended on x too.

    Differentiating a scan over layers makes all that is the same in each of them once, before, and
    keeps it: here that would be the masks of every pair of tiles.
    """
    return jax.lax.optimization_barrier((places, x))[0]


def _passed_on(tree):
    """What the device before sends, while this one's goes to the next."""
    n = zigzag.ways()
    ring = [(d, (d + 1) % n) for d in range(n)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, zigzag.AXIS, ring), tree)


def _tile(length: int) -> int:
    half = length // (2 * zigzag.ways())
    return next(size for size in range(min(half, TILE), 0, -1) if half % size == 0)


def _queries(q, slots, ids, meets, allowed, tile: int) -> Queries:
    """A device's part of the queries by tiles."""
    if allowed is not None:
        (allowed,) = _tiled((allowed.reshape(*allowed.shape[:2], -1, tile),), tile)
    return Queries(*_tiled((q,), tile), *_tiled_places(slots, ids, tile), meets, allowed)


def _tiled(arrays: tuple, tile: int) -> tuple:
    """Each [B, T, ..., H] -> [C, B, ..., t, H]."""
    parts = (x.reshape(len(x), -1, tile, *x.shape[2:]) for x in arrays)
    return tuple(jnp.moveaxis(x, (1, 2), (0, -2)) for x in parts)


def _tiled_places(slots: jax.Array, ids: jax.Array, tile: int) -> tuple[jax.Array, jax.Array]:
    return slots.reshape(-1, tile), ids.reshape(len(ids), -1, tile).swapaxes(0, 1)


def _untiled(x: jax.Array) -> jax.Array:
    """[C, B, ..., t, H] -> [B, T, ..., H]."""
    x = jnp.moveaxis(x, (0, -2), (1, 2))
    return x.reshape(len(x), -1, *x.shape[3:])


def _product(axes: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Contracts two arrays of one type, accumulating in float32."""
    return jnp.einsum(axes, a, b, precision=precision(a.dtype), preferred_element_type=jnp.float32)
