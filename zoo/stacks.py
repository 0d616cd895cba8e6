"""Two ways to run the equal layers of a stack: one after the other by a scan, or in stages.

Parameters are the same either way, stacked over the repeats L.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from zoo import pipeline, zigzag


def scanned(
    pattern: nn.Module, repeats: int, unroll: int, carried: Any, cache: Any, context: Any
) -> tuple[Any, Any, dict]:
    """The same repeats by a scan; `pattern` is one of them, and gets parameters that lead with L.

    The cache travels with `carried`, and each repeat reads and writes its own part of it in place:
    as an input and an output of the scan, it would be held twice.

    Args:
        pattern: one repeat.
        repeats: L.
        unroll: repeats compiled side by side.
        carried: [B, ...], what goes from layer to layer.
        cache: [L, B, ...], or None.
        context: what all see.

    Returns:
        `carried` after the last repeat, the cache, and the statistics of all, [L, ...].
    """

    def step(pattern: nn.Module, state: tuple, at: jax.Array, context: Any):
        carried, cache = state
        one = jax.tree.map(lambda all: lax.dynamic_index_in_dim(all, at, keepdims=False), cache)
        carried, (one, aux) = pattern(carried, one, context)
        put = functools.partial(lax.dynamic_update_index_in_dim, index=at, axis=0)
        return (carried, jax.tree.map(put, cache, one)), aux

    scan = nn.scan(
        step,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        out_axes=0,
        length=repeats,
        unroll=min(unroll, repeats),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    (carried, cache), aux = scan(pattern, (carried, cache), jnp.arange(repeats), context)
    return carried, cache, aux


def staged(
    pattern: nn.Module,
    params: dict,
    carried: Any,
    context: Any,
    remat: Callable[..., bool] | None,
    microbatches: int | None,
    rounds: int,
) -> tuple[Any, dict]:
    """The same repeats, lying on the stages of a mesh, without caches.

    Args:
        pattern: one repeat, unbound.
        params: of all, [L, ...] each.
        carried: [B, ...], what goes from layer to layer.
        context: [B, ...], what all see.
        remat: a policy to recompute by in the backward pass, as `zoo.pipeline.run` takes it.
        microbatches: likewise.
        rounds: likewise.

    Returns:
        `carried` after the last repeat, and the statistics of all, [L, ...].

    Raises:
        ValueError: devices share rows too, or `microbatches` or `rounds` do not divide.
    """
    zigzag.require_whole(context.slots, f"stage={pipeline.stages()}")

    def layer(params: dict, carried: Any, context: Any) -> tuple[Any, dict]:
        # Activations lie as the batch that comes in does: JAX 0.7 cannot be told so in a stage.
        with nn.logical_axis_rules(()):
            carried, (_, aux) = pattern.apply({"params": params}, carried, None, context)
        return carried, aux

    return pipeline.run(layer, params, carried, context, microbatches, rounds, remat)
