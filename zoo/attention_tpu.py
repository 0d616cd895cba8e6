"""Attention within a sequence on TPU: JAX's splash kernels, for what they can do.

Axes: B batch, K kv heads, G query heads per kv head, T positions, H head dimension.

Splash attention (flash attention that skips masked blocks) knows causal masks, windows, segments
and caps, in bfloat16. Sinks, a given mask of keys and float32 stay with `zoo.attention`, as do
sequences that its blocks do not divide.

A kernel is opaque to the partitioner, so on a mesh each device runs it on its own rows and heads.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

LANES = 128
BLOCK = 512
SHORTEST = 256
"""Tokens from which on the kernel is worth it: below, one block of scores is all there is."""


def suits(q: jax.Array, allowed: jax.Array | None, sinks: jax.Array | None) -> bool:
    """Whether the kernel can do this; q[B, K, G, T, H]."""
    length = q.shape[3]
    plain = allowed is None and sinks is None
    return plain and q.dtype == jnp.bfloat16 and length >= SHORTEST and length % LANES == 0


def causal(q, k, v, segment_ids, window, softcap, *, interpret: bool = False) -> jax.Array:
    """Scaled q[B, K, G, T, H], k[B, K, T, H], v[B, K, T, Hv] -> [B, K, G, T, Hv].

    `segment_ids` i32[B, T] or None.
    """

    def function(q, k, v, segment_ids):
        def forward(q, k, v):
            return _causal(q, k, v, segment_ids, window, softcap, interpret)

        # The very call that `causal_gradients` makes, so that XLA keeps one where both are needed.
        return jax.vjp(forward, q, k, v)[0]

    return _on_mesh(function, (q, k, v, segment_ids), 1)


def causal_gradients(q, k, v, segment_ids, grad, window, softcap, *, interpret: bool = False):
    """Gradients of q, k and v. The forward kernel runs again, for the sums of its softmax."""

    def function(q, k, v, segment_ids, grad):
        def forward(q, k, v):
            return _causal(q, k, v, segment_ids, window, softcap, interpret)

        return jax.vjp(forward, q, k, v)[1](grad)

    return _on_mesh(function, (q, k, v, segment_ids, grad), 3)


def _causal(q, k, v, segment_ids, window, softcap, interpret):
    # Importing Pallas for TPU takes a third of a second, which other platforms need not spend.
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    (batch, kv_heads, groups, length, _), size = q.shape, math.gcd(q.shape[3], BLOCK)
    square = (length, length)
    mask = splash.CausalMask(square)
    if window is not None and window < length:
        mask = splash.LocalMask(square, (window - 1, 0), 0)
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    kernel = splash.make_splash_mha(
        splash.MultiHeadMask([mask] * (kv_heads * groups)),
        block_sizes=splash.BlockSizes(**{f"block_{name}": size for name in names}),
        attn_logits_soft_cap=softcap,
        head_shards=1,
        q_seq_shards=1,
        interpret=interpret,
    )
    heads = q.reshape(batch, kv_heads * groups, length, -1)
    if segment_ids is None:
        out = jax.vmap(kernel)(heads, k, v)
    else:
        ids = splash.SegmentIds(segment_ids, segment_ids)
        out = jax.vmap(kernel)(heads, k, v, ids)
    return out.reshape(*q.shape[:4], -1)


def _on_mesh(function, arguments: tuple, outputs: int):
    """function(*arguments), on every device for its own rows [B, ...] and heads [B, K, ...]."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1:
        return function(*arguments)
    batch, heads = nn.logical_to_mesh_axes(("batch", "kv_heads"))
    wide, narrow = PartitionSpec(batch, heads), PartitionSpec(batch)
    specs = tuple(None if x is None else wide if x.ndim > 2 else narrow for x in arguments)
    out = wide if outputs == 1 else (wide,) * outputs
    return jax.shard_map(function, in_specs=specs, out_specs=out, check_vma=False)(*arguments)
