"""Softmax attention over slots: causal, windowed, chunked and segmented, for grouped heads.

A query sits in a slot of its row, a key sits in the slot of its index. A query sees the keys in its
own and in earlier slots, no further back than the window, of its own chunk and of its own segment.
Softmax is in float32.

Within a sequence, queries are taken block by block, each against the keys that its block can see at
all: about half of the products of a causal square, and no [T, T] array. The backward pass keeps q,
k, v and the output and recomputes probabilities, like FlashAttention (arXiv:2205.14135), but keys
are not tiled, so that XLA fuses the products and the softmax of a block.

Axes: B batch, T query positions, S key positions, N query heads, K kv heads, G = N/K, H head
dimension.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from zoo.buffer import Paged, loaded, pages_of

BLOCKS = 8
"""Query blocks of a long sequence: more of them skip more masked products and compile longer."""

SMALLEST_BLOCK = 64
"""Queries that a block has at least, so that its matrix products stay efficient."""


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    scale: float,
    offset: jax.Array | None = None,
    segment_ids: jax.Array | None = None,
    allowed: jax.Array | None = None,
    sinks: jax.Array | None = None,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    causal: Callable[..., jax.Array] | None = None,
) -> jax.Array:
    """Weighs values by the softmax of scaled query-key products.

    Args:
        q: dtype[B, T, N, H].
        k: dtype[B, S, K, H], where K divides N: kv head i serves query heads i*G to i*G + G - 1.
        v: dtype[B, S, K, Hv].
        scale: factor on the products.
        offset: i32[B], the slot of each row's first query; None is 0, and S is then T.
        segment_ids: i32[B, T], only without `offset`: a query sees keys of its own segment.
        allowed: bool[B, T, S], keys that a query may see besides all that; None is all.
        sinks: f32[N], a score per head that takes its share of the softmax and has no value
            (arXiv:2309.17453; `eager_attention_forward` of modeling_gpt_oss.py).
        window: how many slots a query sees, its own included; None is all.
        chunk: a query sees its own chunk of so many slots, counted from the start of its segment.
        softcap: bounds scores to softcap * tanh(scores / softcap).
        causal: what attends within a sequence; None is plain XLA.

    Returns:
        dtype[B, T, N, Hv].

    Raises:
        ValueError: `segment_ids` together with `offset`, or a window or chunk below 1.
    """
    B, T, N, H = q.shape
    S, K, Hv = *k.shape[1:3], v.shape[-1]
    chex.assert_shape(k, (B, T if offset is None else S, K, H))
    chex.assert_shape(v, (B, S, K, Hv))
    chex.assert_is_divisible(N, K)
    for name, value in (("window", window), ("chunk", chunk)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1: a query sees its own slot")
    if offset is not None and segment_ids is not None:
        raise ValueError("segment_ids need offset=None: a cache holds one document per row")
    q = (q * scale).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    sinks = None if sinks is None else sinks.astype(jnp.float32).reshape(K, N // K)
    if offset is None:
        if chunk is not None:
            segment_ids, window = chunks(segment_ids, (B, T), chunk), chunk
        within = causal or _causal
        out = within(q, k, v, Sight(segment_ids, allowed), sinks, window, softcap)
    else:
        out = _cached(q, k, v, offset, allowed, sinks, window, chunk, softcap)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, Hv)


def attend_paged(
    q: jax.Array,
    k: Paged,
    v: Paged,
    offset: jax.Array,
    allowed: jax.Array | None = None,
    sinks: jax.Array | None = None,
    *,
    scale: float,
    at_a_time: int,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
) -> jax.Array:
    """`attend` with `offset`, to rows that are lists of pages.

    A few pages of every row are brought together at a time, as far as the longest row with pages
    reaches, and their softmax is added to that of those before (arXiv:1805.02867). What is masked
    adds zero: the length of one row changes no bit of another's result.

    Args:
        q: dtype[B, T, N, H].
        k: rows [B, K, S, H], or [B, S, H] for a single head.
        v: likewise; may be k.
        offset: i32[B], as `attend` has it.
        allowed: bool[B, T, S], likewise.
        sinks: likewise, and so all others but one.
        at_a_time: pages of a row.

    Returns:
        dtype[B, T, N, Hv].
    """
    B, T, N, H = q.shape
    K, Hv = k.shape[1] if len(k.shape) == 4 else 1, v.shape[-1]
    count, page = k.table.shape[-1], k.pool.shape[-2]
    at_a_time = min(at_a_time, count)
    size = at_a_time * page
    # Two turns at least: XLA on CPU gathers the only one a third slower, within what uses it.
    padding = max(-count % at_a_time, 2 * at_a_time - count)
    table = jnp.pad(k.table, ((0, 0), (0, 0), (0, padding)))
    if allowed is not None:
        allowed = jnp.pad(allowed, ((0, 0), (0, 0), (0, padding * page)))
    q = (q * scale).reshape(B, T, K, N // K, H).transpose(0, 2, 3, 1, 4)
    at = offset[:, None] + jnp.arange(T)
    lowest = jnp.finfo(jnp.float32).min

    def add(i: jax.Array, state: tuple) -> tuple:
        numbers = jax.lax.dynamic_slice_in_dim(table, i * at_a_time, at_a_time, axis=2)
        keys, values = (
            loaded(pages_of(part._replace(table=numbers)), q.dtype).reshape(*pages, page, -1)
            for part in (k, v)
        )
        distance = at[..., None] - i * size - jnp.arange(size)
        seen = distance >= 0
        if window is not None:
            seen &= distance < window
        if chunk is not None:
            seen &= distance <= (at % chunk)[..., None]
        if allowed is not None:
            seen &= jax.lax.dynamic_slice_in_dim(allowed, i * size, size, axis=2)
        seen = jnp.broadcast_to(seen, (B, T, size)).reshape(B, 1, T, at_a_time, page)
        scores = _cap(_dot(queries, keys, (4, 4)), softcap).reshape(*pages, N // K, T, page)
        scores = jnp.where(seen.transpose(0, 3, 1, 2, 4)[:, :, None], scores, lowest)
        top, total, out = state
        higher = jnp.maximum(top, scores.max((1, -1)))
        weights, less = jnp.exp(scores - higher[:, None, ..., None]), jnp.exp(top - higher)
        more = _dot(weights.astype(q.dtype).reshape(*pages, -1, page), values, (4, 3)).sum(1)
        total = total * less + weights.sum((1, -1))
        return higher, total, out * less[..., None] + more.reshape(out.shape)

    # Pages lie as they are, and each has its own product: to bring heads together would copy again.
    pages, shape = (B, at_a_time, K), q.shape[:-1]
    queries = jnp.broadcast_to(_merge(q)[:, None], (*pages, N // K * T, H))
    start = jnp.full(shape, lowest), jnp.zeros(shape), jnp.zeros((*shape, Hv))
    if sinks is not None:
        sink = sinks.astype(jnp.float32).reshape(K, N // K, 1)
        start = jnp.broadcast_to(sink, shape), jnp.ones(shape), start[2]
    longest = jnp.where(table[..., 0].reshape(B) > 0, offset + T, 1).max()
    _, total, out = jax.lax.fori_loop(0, -(-longest // size), add, start)
    out = (out / total[..., None]).astype(q.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, T, N, Hv)


class Sight(NamedTuple):
    """What restricts sight besides order: `segment_ids` i32[B, T], `allowed` bool[B, T, S]."""

    segment_ids: jax.Array | None
    allowed: jax.Array | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _causal(q, k, v, sight, sinks, window, softcap):
    """Scaled q[B, K, G, T, H], k[B, K, T, H], v[B, K, T, Hv] -> [B, K, G, T, Hv]."""
    return causal_forward(q, k, v, sight, sinks, window, softcap)[0]


def causal_forward(q, k, v, sight, sinks, window, softcap):
    """The result, and what `causal_backward` needs."""
    outs = []
    for rows, seen in _blocks(q.shape[3], window):
        bias = _bias(_distance(rows, seen), window, _visible(sight, rows, seen))
        q_rows = _after(outs, q[:, :, :, rows])
        outs.append(_weigh(q_rows, k[:, :, seen], v[:, :, seen], bias, sinks, softcap))
    out = jnp.concatenate(outs, axis=3)
    return out, (q, k, v, out, sight, sinks)


def causal_backward(window, softcap, saved, grad):
    """Gradients of q, k, v, sight (None) and sinks from what `causal_forward` kept.

    Scores lie transposed here, [S, T]: all products but one then contract adjacent axes.
    """
    q, k, v, out, sight, sinks = saved
    B, K, G, T, H = q.shape
    through = (grad.astype(jnp.float32) * out.astype(jnp.float32)).sum(-1)
    q_grads, k_grads, v_grads, sink_grads = [], [], [], []
    for rows, seen in _blocks(T, window):
        q_rows = _merge(_after(q_grads, q[:, :, :, rows]))
        grad_rows = _merge(_after(q_grads, grad[:, :, :, rows]))
        keys, values = k[:, :, seen], v[:, :, seen]
        bias = _bias(_distance(rows, seen), window, _visible(sight, rows, seen))
        bias = bias.swapaxes(1, 2)[:, None, :, None]
        scores = _cap(_dot(keys, q_rows, (3, 3)), softcap)
        held = None if sinks is None else sinks[:, None, :, None]
        probs, lost = _softmax(scores.reshape(B, K, -1, G, bias.shape[-1]) + bias, held, axis=2)
        if sinks is not None:
            sink_grads.append(-(lost[:, :, 0] * through[:, :, :, rows]).sum((0, 3)))
        probs = probs.reshape(B, K, keys.shape[2], -1)
        probs_grad = _dot(values, grad_rows, (3, 3))
        scores_grad = probs * (probs_grad - through[:, :, :, rows].reshape(B, K, 1, -1))
        if softcap is not None:
            scores_grad = scores_grad * (1 - jnp.square(scores / softcap))
        scores_grad = scores_grad.astype(q.dtype)
        edges = ((0, 0), (0, 0), (seen.start, T - seen.stop), (0, 0))
        v_grads.append(jnp.pad(_dot(probs.astype(v.dtype), grad_rows, (3, 2)), edges))
        k_grads.append(jnp.pad(_dot(scores_grad, q_rows, (3, 2)), edges))
        q_grad = _dot(keys, scores_grad, (2, 2)).swapaxes(2, 3)
        q_grads.append(q_grad.reshape(B, K, G, -1, H))
    q_grad = jnp.concatenate(q_grads, axis=3).astype(q.dtype)
    k_grad, v_grad = sum(k_grads).astype(k.dtype), sum(v_grads).astype(v.dtype)
    return q_grad, k_grad, v_grad, None, sum(sink_grads) if sink_grads else None


_causal.defvjp(causal_forward, causal_backward)


def _cached(q, k, v, offset, allowed, sinks, window, chunk, softcap):
    """Scaled q[B, K, G, T, H] against a cache k[B, K, S, H], v[B, K, S, Hv] -> [B, K, G, T, Hv]."""
    outs, slots = [], slice(0, k.shape[2])
    for rows, _ in _blocks(q.shape[3], window):
        distance = offset[:, None, None] + _distance(rows, slots)
        seen = _visible(Sight(None, allowed), rows, slots)
        if chunk is not None:
            at = (offset[:, None] + jnp.arange(rows.start, rows.stop))[..., None]
            seen = seen & (distance <= at % chunk)
        q_rows = _after(outs, q[:, :, :, rows])
        outs.append(_weigh(q_rows, k, v, _bias(distance, window, seen), sinks, softcap))
    return jnp.concatenate(outs, axis=3)


def _weigh(q, k, v, bias, sinks, softcap) -> jax.Array:
    """softmax(q k + bias) v of scaled q[B, K, G, T, H], k[B, K, S, H], v[B, K, S, Hv]."""
    B, K, G, T, H = q.shape
    scores = _cap(_dot(q.reshape(B, K, G * T, H), k, (3, 3)), softcap).reshape(B, K, G, T, -1)
    held = None if sinks is None else sinks[..., None, None]
    probs = _softmax(scores + bias[:, None, None], held, axis=-1)[0].astype(v.dtype)
    out = _dot(probs.reshape(B, K, G * T, -1), v, (3, 2))
    return out.reshape(B, K, G, T, -1).astype(v.dtype)


def _softmax(scores, sink, axis: int) -> tuple[jax.Array, jax.Array | None]:
    """Probabilities of the scores, and that of the sink, which broadcasts against them."""
    if sink is None:
        return jax.nn.softmax(scores, axis=axis), None
    top = jax.lax.stop_gradient(jnp.maximum(scores.max(axis, keepdims=True), sink))
    weights, lost = jnp.exp(scores - top), jnp.exp(sink - top)
    total = weights.sum(axis, keepdims=True) + lost
    return weights / total, lost / total


def _cap(scores: jax.Array, softcap: float | None) -> jax.Array:
    return scores if softcap is None else softcap * jnp.tanh(scores / softcap)


def chunks(segment_ids: jax.Array | None, shape: tuple[int, int], chunk: int) -> jax.Array:
    """Segments cut into chunks, i32[B, T]: each is named by the slot that it starts at."""
    slots = jnp.broadcast_to(jnp.arange(shape[1], dtype=jnp.int32), shape)
    if segment_ids is None:
        return slots - slots % chunk
    changed = segment_ids != jnp.roll(segment_ids, 1, axis=1)
    start = jax.lax.cummax(jnp.where(changed & (slots > 0), slots, 0), axis=1)
    return slots - (slots - start) % chunk


def _blocks(length: int, window: int | None) -> list[tuple[slice, slice]]:
    """Slices of queries, each with the slice of keys that any of its queries sees."""
    size = max(-(-length // BLOCKS), SMALLEST_BLOCK)
    size = -(-size // SMALLEST_BLOCK) * SMALLEST_BLOCK
    blocks = []
    for start in range(0, length, size):
        stop = min(start + size, length)
        first = 0 if window is None else max(0, start - window + 1)
        blocks.append((slice(start, stop), slice(first, stop)))
    return blocks


def _distance(rows: slice, seen: slice) -> jax.Array:
    """How many slots each query is behind each key, i32[T, S]."""
    return jnp.arange(rows.start, rows.stop)[:, None] - jnp.arange(seen.start, seen.stop)


def _visible(sight: Sight, rows: slice, seen: slice) -> jax.Array | bool:
    """Which keys share a query's segment and are allowed, bool[B, T, S]."""
    ids, mask = sight.segment_ids, True
    if ids is not None:
        mask = ids[:, rows, None] == ids[:, None, seen]
    return mask if sight.allowed is None else mask & sight.allowed[:, rows, seen]


def _bias(distance: jax.Array, window: int | None, visible: jax.Array | bool) -> jax.Array:
    """What to add to the scores, 0 or the lowest float, f32[1 or B, T, S]."""
    mask = (distance >= 0) & visible
    if window is not None:
        mask &= distance < window
    mask = mask.reshape(-1, *distance.shape[-2:])
    return jnp.where(mask, 0.0, jnp.finfo(jnp.float32).min)


def _merge(x: jax.Array) -> jax.Array:
    """x[B, K, G, T, H] -> [B, K, G * T, H]: the queries that share keys, as one matrix."""
    B, K, _, _, H = x.shape
    return x.reshape(B, K, -1, H)


def _after(done: list[jax.Array], x: jax.Array) -> jax.Array:
    """x, tied to the last of `done`, so that the scores of only one large block are held at a time.

    Nothing else orders the blocks, and XLA on CPU drops `optimization_barrier` before it schedules.
    What is added is zero, in a way that the compiler cannot know.
    """
    if not done or x.shape[3] <= SMALLEST_BLOCK:
        return x
    last = done[-1]
    infinite = last[(0,) * last.ndim] > jnp.finfo(last.dtype).max
    return x + jnp.where(infinite, jnp.finfo(x.dtype).tiny, 0).astype(x.dtype)


def _dot(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Contracts one axis of each of a[..., 2 axes] and b[..., 2 axes], accumulating in float32."""
    exact, batch = a.dtype == jnp.float32, tuple(range(a.ndim - 2))
    return jax.lax.dot_general(
        a, b, (((axes[0],), (axes[1],)), (batch, batch)),
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )  # fmt: skip
