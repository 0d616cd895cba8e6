"""DeepSeek Sparse Attention: an indexer chooses the tokens that a query sees (DeepSeek-V3.2-Exp).

Axes: B batch, T query positions, S slots, D embedding, N heads of the indexer, H their dimension.

The choice is a mask for `zoo.attention.attend`; no gradient passes through it, so the indexer's
parameters get none. Where devices share rows (`zoo.zigzag`), each chooses for its own queries among
the keys of the whole row, which are gathered.

Follows `DeepseekV32Indexer` of transformers, which leaves out the reference's Hadamard rotation and
float8, as they change no product but by rounding.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo import cache as caches
from zoo import zigzag
from zoo.buffer import Buffer, loaded
from zoo.config import Indexer, LayerNorm
from zoo.layers import Linear, Normalize
from zoo.rope import Turn, rotate

QUERIES = 64
"""Queries scored at a time: scores of all heads are f32[QUERIES, B, N, S]."""


class LightningIndexer(nn.Module):
    """x[B, T, D] and the latent of its queries -> bool[B, T, S], the tokens that each may see."""

    spec: Indexer
    dim: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        q_latent: jax.Array,
        turn: Turn,
        *,
        keys: Buffer | None = None,
        offset: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        slots: jax.Array | None = None,
    ) -> tuple[jax.Array, Buffer | None]:
        """Chooses within x, or from a cache of keys that x's are first written into.

        Args:
            x: dtype[B, T, D].
            q_latent: dtype[B, T, R], the normalised latent of the queries.
            turn: cos and sin of the attention's rotation.
            keys: [B, S, H] of the cache; with S == T it is being filled from empty.
            offset: i32[B], the tokens already in each row of the cache.
            segment_ids: i32[B, T], documents packed in a row.
            slots: i32[T] of `zoo.zigzag`, without a cache: where the tokens of shared rows stand.

        Returns:
            bool[B, T, S] and the keys with x's in them. T is in the order of `slots`, where there
            are any, and S always in that of the row.
        """
        spec, types = self.spec, dict(param_dtype=self.param_dtype)
        x, q_latent = jax.lax.stop_gradient((x, q_latent))
        q_shape = (q_latent.shape[-1:], (spec.heads, spec.dim), ("rank", "heads", "head_dim"))
        q = Linear(*q_shape, dtype=self.dtype, name="q", **types)(q_latent)
        k_shape = ((self.dim,), (spec.dim,), ("embed", "head_dim"))
        k = Linear(*k_shape, dtype=self.dtype, name="k", **types)(x)
        k = Normalize((spec.dim,), LayerNorm(1e-6), ("head_dim",), name="k_norm", **types)(k)
        weigh_shape = ((self.dim,), (spec.heads,), ("embed", "heads"))
        weights = Linear(*weigh_shape, dtype=jnp.float32, name="weigh", **types)(x)
        q, k = (rotate(t, *turn, spec.interleaved) for t in (q, k[:, :, None]))
        k = k[:, :, 0]
        if keys is not None:
            keys = caches.write(keys, k, offset)
            if keys.shape[1] == x.shape[1]:
                offset = None
            else:
                k, segment_ids = loaded(keys, self.dtype), None
        q, k, weights = jax.lax.stop_gradient((q, k, weights))
        if slots is not None:
            return _choose_shared(q, k, weights, slots, segment_ids, spec.top_k), keys
        seen = visible(x.shape[1], k.shape[1], offset, segment_ids)
        seen = jnp.broadcast_to(seen, (x.shape[0], *seen.shape[1:]))
        return choose(q, k, weights, seen, spec.top_k), keys


def visible(
    queries: int, slots: int, offset: jax.Array | None, segment_ids: jax.Array | None
) -> jax.Array:
    """Which slots are no later than a query and of its segment, bool[1 or B, T, S]."""
    at = jnp.arange(queries)[None] if offset is None else offset[:, None] + jnp.arange(queries)
    seen = jnp.arange(slots) <= at[..., None]
    if segment_ids is not None:
        seen = seen & (segment_ids[:, :, None] == segment_ids[:, None])
    return seen


def choose(
    q: jax.Array, k: jax.Array, weights: jax.Array, seen: jax.Array, top_k: int
) -> jax.Array:
    """Of the visible keys, the `top_k` with the largest sum_h w_h relu(q_h k) (arXiv:2512.02556).

    Args:
        q: [B, T, N, H].
        k: [B, S, H].
        weights: [B, T, N].
        seen: bool[B, T, S], the visible keys.
        top_k: how many to choose; where fewer are visible, all of them. Of equal scores the
            earlier wins.

    Returns:
        bool[B, T, S].
    """
    if k.shape[1] <= top_k:
        return seen
    k, scale = k.astype(jnp.float32), q.shape[-1] ** -0.5
    weights = weights.astype(jnp.float32) * q.shape[-2] ** -0.5
    exact = jax.lax.Precision.HIGHEST

    def one(query: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        """q[B, N, H], w[B, N], seen[B, S] -> bool[B, S]."""
        q, weights, seen = query
        scores = jnp.einsum("bnh,bsh->bns", q.astype(jnp.float32), k, precision=exact) * scale
        scores = jnp.einsum("bn,bns->bs", weights, jax.nn.relu(scores), precision=exact)
        _, best = jax.lax.top_k(jnp.where(seen, scores, -jnp.inf), top_k)
        chosen = jnp.zeros(seen.shape, bool).at[jnp.arange(len(seen))[:, None], best].set(True)
        return chosen & seen

    queries = jax.tree.map(lambda t: t.swapaxes(0, 1), (q, weights, seen))
    return jax.lax.map(one, queries, batch_size=QUERIES).swapaxes(0, 1)


def _choose_shared(
    q: jax.Array,
    k: jax.Array,
    weights: jax.Array,
    slots: jax.Array,
    segment_ids: jax.Array | None,
    top_k: int,
) -> jax.Array:
    """`choose` of rows that devices share, all in the order of `slots` but the S of the result."""
    row_k, row_ids = zigzag.whole((k, segment_ids), slots)

    def local(q, weights, slots, ids, row_k, row_ids):
        seen = jnp.arange(row_k.shape[1]) <= slots[:, None]
        if ids is not None:
            seen = seen & (ids[:, :, None] == row_ids[:, None])
        seen = jnp.broadcast_to(seen, (len(q), *seen.shape[-2:]))
        return choose(q, row_k, weights, seen, top_k)

    cut = (1, 1, 0, 1, None, None)
    return zigzag.shared(local, cut, 1)(q, weights, slots, segment_ids, row_k, row_ids)
