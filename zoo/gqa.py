"""Grouped-query attention (arXiv:2305.13245): the module that owns q, k, v and o.

Axes: B batch, T query positions, S slots, D embedding, N query heads, K kv heads, H head dimension.
"""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo import cache as caches
from zoo import kernels
from zoo.config import Attention
from zoo.layers import Linear, Normalize
from zoo.rope import Turn, rotate, temperature


class GroupedQueryAttention(nn.Module):
    """x[B, T, D] -> [B, T, D], with an optional cache of keys and values."""

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
        cache: caches.KV | None = None,
        offset: jax.Array | None = None,
        segment_ids: jax.Array | None = None,
    ) -> tuple[jax.Array, caches.KV | None]:
        """Attends within x, or from x to a cache that x is first written into.

        Args:
            x: dtype[B, T, D].
            turn: cos and sin of `zoo.rope.tables`, or None without positions.
            positions: i32[B, T], needed by a spec with `temperature`.
            cache: `KV` of [B, K, S, H]; with S == T it is being filled from empty.
            offset: i32[B], the tokens already in each row of the cache.
            segment_ids: i32[B, T], documents packed in a row; tokens see their own only.

        Returns:
            dtype[B, T, D] and the cache with x's keys and values in it.
        """
        spec = self.spec
        types = dict(dtype=self.dtype, param_dtype=self.param_dtype)
        q, k, v = (
            Linear(
                (self.dim,), (heads, spec.head_dim), ("embed", axis, "head_dim"),
                bias=spec.qkv_bias, name=name, **types,
            )(x)
            for name, heads, axis in (
                ("q", spec.heads, "heads"),
                ("k", spec.kv_heads, "kv_heads"),
                ("v", spec.kv_heads, "kv_heads"),
            )
        )  # fmt: skip
        if not spec.norm_after_rope:
            q, k = self._normalized(q, k)
        if spec.clip is not None:
            q, k, v = (jnp.clip(t, -spec.clip, spec.clip) for t in (q, k, v))
        if spec.rope is not None:
            q, k = (rotate(t, *turn, spec.rope.interleaved) for t in (q, k))
        if spec.norm_after_rope:
            q, k = self._normalized(q, k)
        if spec.temperature is not None:
            q = (q * temperature(spec.temperature, positions)).astype(q.dtype)
        if cache is not None:
            held = caches.KV(*(
                caches.write(buffer, new.swapaxes(1, 2), offset)
                for buffer, new in zip(cache, (k, v), strict=True)
            ))  # fmt: skip
            if held.k.shape[2] == x.shape[1]:
                offset = None
            else:
                k, v = (buffer.swapaxes(1, 2).astype(self.dtype) for buffer in held)
            cache = held
        out = kernels.attend(
            q, k, v,
            scale=spec.head_dim**-0.5 if spec.scale is None else spec.scale,
            offset=offset,
            segment_ids=segment_ids if offset is None else None,
            sinks=self._sinks() if spec.sinks else None,
            window=spec.window, chunk=spec.chunk, softcap=spec.softcap,
        )  # fmt: skip
        if spec.gated:
            axes = ("embed", "heads", "head_dim")
            gate = Linear((self.dim,), (spec.heads, spec.head_dim), axes, name="gate", **types)(x)
            out = out * jax.nn.sigmoid(gate)
        shape = ((spec.heads, spec.head_dim), (self.dim,), ("heads", "head_dim", "embed"))
        return Linear(*shape, bias=spec.o_bias, name="o", **types)(out), cache

    def _normalized(self, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Each head by itself, or all heads of a token as one vector."""
        spec = self.spec
        if spec.qk_norm is None:
            return q, k

        def normalize(name: str, heads: int, axis: str) -> Normalize:
            sizes, axes = (spec.head_dim,), ("head_dim",)
            if spec.norm_heads:
                sizes, axes = (heads, *sizes), (axis, *axes)
            return Normalize(sizes, spec.qk_norm, axes, self.param_dtype, name=name)

        return (
            normalize("q_norm", spec.heads, "heads")(q),
            normalize("k_norm", spec.kv_heads, "kv_heads")(k),
        )

    def _sinks(self) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("heads",))
        return self.param("sinks", init, (self.spec.heads,), self.param_dtype)
