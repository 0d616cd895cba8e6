"""Grouped-query attention (arXiv:2305.13245): the module that owns q, k, v and o.

Axes: B batch, T query positions, S slots, D embedding, N query heads, K kv heads, H head dimension
(of values, where they have another, `spec.value_dim`).
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo import cache as caches
from zoo import kernels, window
from zoo.buffer import Buffer, Paged, loaded
from zoo.config import Attention
from zoo.layers import GATES, Linear, Normalize
from zoo.rope import Turn, rotate, temperature


class GroupedQueryAttention(nn.Module):
    """x[B, T, D] -> [B, T, D], with its own keys and values, a cache of them, or another's."""

    spec: Attention
    dim: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        turn: Turn | None,
        *,
        positions: jax.Array | None = None,
        cache: caches.KV | caches.Ring | None = None,
        offset: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
        slots: jax.Array | None = None,
    ) -> tuple[jax.Array, caches.KV | caches.Ring]:
        """Attends within x, or from x to a cache that x is first written into.

        Args:
            x: dtype[B, T, D].
            turn: cos and sin of `zoo.rope.tables`, or None without positions.
            positions: i32[B, T], needed by a spec with `temperature`.
            cache: of [B, K, S, H]. For a spec with `share_kv` it is what the layer that it shares
                with returned, also without a cache.
            offset: i32[B], the tokens already in each row of the cache; None fills it from empty.
            segment_ids: i32[B, T], documents packed in a row; tokens see their own only.
            slots: i32[T] of `zoo.zigzag`, without a cache: where the tokens of shared rows stand.

        Returns:
            dtype[B, T, D] and the cache with x's keys and values in it; without a cache, these
            alone, dtype[B, K, T, H].
        """
        spec = self.spec
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        q = self._placed("q", spec.heads, "heads", x, turn)
        if spec.temperature is not None:
            q = (q * temperature(spec.temperature, positions)).astype(q.dtype)
        new, held = None, cache
        if spec.share_kv is None:
            k = self._placed("k", spec.kv_heads, "kv_heads", x, turn)
            v = self._clipped(self._projected("v", spec.kv_heads, "kv_heads", x, spec.value_dim))
            v = v if spec.v_scale == 1.0 else v * spec.v_scale
            new = caches.KV(k.swapaxes(1, 2), v.swapaxes(1, 2))
            cache = _written(held, new, offset, segment_ids)
        options = dict(
            scale=spec.head_dim**-0.5 if spec.scale is None else spec.scale,
            sinks=self._sinks() if spec.sinks else None,
            window=spec.window, chunk=spec.chunk, softcap=spec.softcap,
        )  # fmt: skip
        if isinstance(held, caches.Ring) and offset is not None:
            out = window.attend(q, held, cache, new, offset, **options)
        else:
            if offset is not None or spec.share_kv is not None:
                k, v = (_slots(buffer, self.dtype) for buffer in cache)
            ids = segment_ids if offset is None else None
            sight = dict(offset=offset, segment_ids=ids, slots=slots)
            out = kernels.attend(q, k, v, **sight, **options)
        if spec.gated:
            out = out * self._gate(x)
        shape = ((spec.heads, spec.value_dim), (self.dim,), ("heads", "head_dim", "embed"))
        return Linear(*shape, bias=spec.o_bias, name="o", **types)(out), cache

    def _placed(self, name: str, heads: int, axis: str, x: jax.Array, turn: Turn | None):
        """Queries or keys [B, T, heads, H]: projected, normalised, clipped and rotated."""
        spec, y = self.spec, self._projected(name, heads, axis, x)
        if not spec.norm_after_rope:
            y = self._normalized(name, heads, axis, y)
        y = self._clipped(y)
        if spec.rope is not None:
            y = rotate(y, *turn, spec.rope.interleaved)
        if spec.norm_after_rope:
            y = self._normalized(name, heads, axis, y)
        return y

    def _gate(self, x: jax.Array) -> jax.Array:
        """What multiplies the output, [B, T, N, H] or one number for a head, [B, T, N, 1]."""
        spec = self.spec
        sizes = (spec.heads,) if spec.gate_heads else (spec.heads, spec.value_dim)
        axes = ("embed", "heads", "head_dim")[: len(sizes) + 1]
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        gate = GATES[spec.gate_act](Linear((self.dim,), sizes, axes, name="gate", **types)(x))
        return gate[..., None] if spec.gate_heads else gate

    def _projected(
        self, name: str, heads: int, axis: str, x: jax.Array, size: int | None = None
    ) -> jax.Array:
        return Linear(
            (self.dim,), (heads, size or self.spec.head_dim), ("embed", axis, "head_dim"),
            bias=self.spec.qkv_bias, name=name, dtype=self.dtype, param_dtype=self.param_dtype,
        )(x)  # fmt: skip

    def _clipped(self, y: jax.Array) -> jax.Array:
        bound = self.spec.clip
        return y if bound is None else jnp.clip(y, -bound, bound)

    def _normalized(self, name: str, heads: int, axis: str, y: jax.Array) -> jax.Array:
        """Each head by itself, or all heads of a token as one vector."""
        spec = self.spec
        if spec.qk_norm is None:
            return y
        sizes, axes = (spec.head_dim,), ("head_dim",)
        if spec.norm_heads:
            sizes, axes = (heads, *sizes), (axis, *axes)
        return Normalize(sizes, spec.qk_norm, axes, self.param_dtype, name=f"{name}_norm")(y)

    def _sinks(self) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("heads",))
        return self.param("sinks", init, (self.spec.heads,), self.param_dtype)


def _slots(buffer: Buffer, dtype: jnp.dtype) -> jax.Array | Paged:
    """What attention takes of a cache, dtype[B, S, K, H]; or pages, which it reads itself."""
    return buffer if isinstance(buffer, Paged) else loaded(buffer, dtype).swapaxes(1, 2)


def _written(
    cache: caches.KV | caches.Ring | None,
    new: caches.KV,
    offset: jax.Array | None,
    segment_ids: jax.Array | None,
) -> caches.KV | caches.Ring:
    """The cache with new keys and values in it, or without one, these."""
    if cache is None:
        return new
    if isinstance(cache, caches.KV):
        return caches.KV(*map(lambda buffer, n: caches.write(buffer, n, offset), cache, new))
    batch, _, length, _ = new.k.shape
    ids = jnp.ones((batch, length), jnp.int32) if segment_ids is None else segment_ids
    offset = jnp.zeros((batch,), jnp.int32) if offset is None else offset
    return window.advance(cache, new, offset, (ids > 0).sum(-1))
