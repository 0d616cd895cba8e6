"""Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434 section 2.1; DeepSeek-V3's attention).

Axes: B batch, T query positions, S slots, D embedding, N heads, R = kv_rank, P = rope_dim.

Keys and values of all heads are projections of one latent per token, beside one rotated key that
all heads share. Within a sequence the heads are expanded; against a cache the projections are
absorbed into the query and the output instead, so that a step reads R + P values per token and no
more.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo import cache as caches
from zoo import kernels
from zoo.buffer import Paged, loaded
from zoo.config import MLA
from zoo.indexer import LightningIndexer
from zoo.layers import Linear, Normalize
from zoo.rope import Turn, rotate, temperature


class LatentAttention(nn.Module):
    """x[B, T, D] -> [B, T, D], with an optional cache of latents."""

    spec: MLA
    dim: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        spec, types = self.spec, dict(dtype=self.dtype, param_dtype=self.param_dtype)
        q_out = (spec.heads, spec.nope_dim + spec.rope_dim)
        q_axes = ("heads", "head_dim")
        norm = dict(norm=spec.norm, axes=("rank",), param_dtype=self.param_dtype)
        down = dict(bias=spec.bias, **types)
        if spec.q_rank is None:
            self.q = Linear((self.dim,), q_out, ("embed", *q_axes), **types)
        else:
            self.q_down = Linear((self.dim,), (spec.q_rank,), ("embed", "rank"), **down)
            self.q_norm = Normalize((spec.q_rank,), **norm)
            self.q_up = Linear((spec.q_rank,), q_out, ("rank", *q_axes), **types)
        self.kv_down = Linear((self.dim,), (spec.kv_rank,), ("embed", "rank"), **down)
        self.kv_norm = Normalize((spec.kv_rank,), **norm)
        self.k_rope = Linear((self.dim,), (spec.rope_dim,), ("embed", "head_dim"), **down)
        up_axes = ("rank", "heads", "head_dim")
        self.k_up = Linear((spec.kv_rank,), (spec.heads, spec.nope_dim), up_axes, **types)
        self.v_up = Linear((spec.kv_rank,), (spec.heads, spec.v_dim), up_axes, **types)
        out_axes = ("heads", "head_dim", "embed")
        if spec.indexer is not None:
            self.indexer = LightningIndexer(spec.indexer, self.dim, **types)
        self.o = Linear((spec.heads, spec.v_dim), (self.dim,), out_axes, bias=spec.bias, **types)

    def __call__(
        self,
        x: jax.Array,
        turn: Turn | None,
        *,
        positions: jax.Array | None = None,
        cache: caches.Latent | caches.IndexedLatent | None = None,
        offset: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        slots: jax.Array | None = None,
        chosen: jax.Array | None = None,
    ) -> tuple[jax.Array, caches.Latent | caches.IndexedLatent | None, jax.Array | None]:
        """Attends within x, or from x to a cache that x is first written into.

        Args:
            x: dtype[B, T, D].
            turn: cos and sin of `zoo.rope.tables`, or None without positions.
            positions: i32[B, T], needed by a spec with `temperature`.
            cache: of [B, S, R + P]; with S == T it is being filled from empty.
            offset: i32[B], the tokens already in each row of the cache.
            segment_ids: i32[B, T], documents packed in a row; tokens see their own only.
            slots: i32[T] of `zoo.zigzag`, without a cache: where the tokens of shared rows stand.
            chosen: bool[B, T, S], what the last indexer before this layer chose.

        Returns:
            dtype[B, T, D], the cache with x's latents in it, and what the last indexer chose.
        """
        q_latent = x if self.spec.q_rank is None else self.q_norm(self.q_down(x))
        q_nope, q_rope = self._queries(q_latent, turn, positions)
        if self.spec.indexer is not None:
            held = None if cache is None else cache.keys
            within = dict(keys=held, offset=offset, segment_ids=segment_ids, slots=slots)
            chosen, held = self.indexer(x, q_latent, turn, **within)
            cache = None if cache is None else cache._replace(keys=held)
        allowed = chosen if self.spec.indexer is not None or self.spec.follows else None
        latent = self.kv_norm(self.kv_down(x))
        k_rope = self._rotated(self.k_rope(x)[:, :, None], turn)
        if cache is not None:
            new = jnp.concatenate((latent, k_rope[:, :, 0]), axis=-1)
            absorbed = cache.c.shape[1] != x.shape[1]
            cache = cache._replace(c=caches.write(cache.c, new, offset))
            if absorbed:
                y = self._absorbed(q_nope, q_rope, cache.c, offset=offset, allowed=allowed)
                return self.o(y), cache, chosen
        sight = dict(segment_ids=segment_ids, slots=slots, allowed=allowed)
        return self.o(self._expanded(q_nope, q_rope, latent, k_rope, **sight)), cache, chosen

    @property
    def _scale(self) -> float:
        spec = self.spec
        return (spec.nope_dim + spec.rope_dim) ** -0.5 if spec.scale is None else spec.scale

    def _queries(self, latent: jax.Array, turn: Turn | None, positions: jax.Array | None):
        q = self.q(latent) if self.spec.q_rank is None else self.q_up(latent)
        if self.spec.temperature is not None:  # a rotation keeps the factor
            q = (q * temperature(self.spec.temperature, positions)).astype(q.dtype)
        q_nope, q_rope = jnp.split(q, (self.spec.nope_dim,), axis=-1)
        return q_nope, self._rotated(q_rope, turn)

    def _rotated(self, x: jax.Array, turn: Turn | None) -> jax.Array:
        rope = self.spec.rope
        return x if rope is None else rotate(x, *turn, rope.interleaved)

    def _expanded(self, q_nope, q_rope, latent, k_rope, **sight) -> jax.Array:
        k_nope, v = self.k_up(latent), self.v_up(latent)
        k_rope = jnp.broadcast_to(k_rope, (*k_nope.shape[:-1], self.spec.rope_dim))
        q = jnp.concatenate((q_nope, q_rope), axis=-1)
        k = jnp.concatenate((k_nope, k_rope), axis=-1)
        return kernels.attend(q, k, v, scale=self._scale, **sight)

    def _absorbed(self, q_nope, q_rope, c, **sight) -> jax.Array:
        """q_nope k_up is a query for latents, and v_up may wait until the latents are averaged.

        The cache serves as keys and as values: averaging its P rotated elements too is cheaper than
        copying the others out.
        """
        q = jnp.concatenate((self.k_up.by_head(q_nope, back=True), q_rope), axis=-1)
        c = c if isinstance(c, Paged) else loaded(c, self.dtype)[:, :, None]
        mean = kernels.attend(q, c, c, scale=self._scale, **sight)[..., : self.spec.kv_rank]
        return self.v_up.by_head(mean)
