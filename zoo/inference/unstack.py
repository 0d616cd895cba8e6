"""Parameters and caches per layer, for decoding without the copies that a scan makes.

Stacked parameters are the one public layout. On CPU a repeat's slice is a view of the same memory,
so unstacking costs none; elsewhere parameters stay stacked, since a slice there would be a copy.

What latent attention multiplies by head is held with its heads first too: XLA on CPU multiplies by
head in no other order, and would copy these matrices of all layers in every step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zoo import cache as caches
from zoo.config import Config
from zoo.decoder import Decoder
from zoo.layers import HEADS_FIRST
from zoo.quantized import each_quantized


def prepare(model: Decoder, params: dict) -> tuple[Decoder, dict]:
    """The model and parameters to decode with: unstacked where that is free, else as they are."""
    leaves = jax.tree.leaves(params)
    if model.unstacked or not all(_on_one_cpu(leaf) for leaf in leaves):
        return model, params
    layers = each_quantized(lambda held: held.by_bits().alone(), unstack(model.cfg, params))
    return model.clone(unstacked=True), _with_heads_first(layers)


def unstack(cfg: Config, params: dict) -> dict:
    """{"stack_0": [L, ...]} -> {"stack_0_0": [...], "stack_0_1": ...}; arrays on CPU are views."""
    flat = {name: part for name, part in params["params"].items() if not name.startswith("stack_")}
    for i, stack in enumerate(cfg.stacks):
        whole = params["params"][f"stack_{i}"]
        for r in range(stack.repeats):
            flat[f"stack_{i}_{r}"] = jax.tree.map(lambda leaf, r=r: _slice(leaf, r), whole)
    return {"params": flat}


def lean(cache: caches.Cache) -> caches.Cache:
    """An unstacked cache of one row without the axis of rows, as a loop should carry it; others as
    they are.

    XLA multiplies without that axis. Where the loop has it, XLA on CPU writes a token once for the
    loop and once for the product, and copies every buffer four times a step for it.
    """
    return _each_buffer(lambda b: b[0], cache)


def full(cache: caches.Cache) -> caches.Cache:
    """What `lean` was given."""
    return _each_buffer(lambda b: b[None], cache)


def init_cache(
    model: Decoder,
    batch: int,
    length: int,
    room: int | None = None,
    spare: int = 0,
    dtype: jnp.dtype | None = None,
    pages: int | None = None,
) -> caches.Cache:
    """An empty cache as of `zoo.cache.init`, in the layout that `model` reads, and in its type."""
    dtype = model.dtype if dtype is None else dtype
    empty = caches.init(model.cfg, batch, length, dtype, room, spare, pages)
    if not model.unstacked:
        return empty
    stacks = {
        f"stack_{i}": tuple(
            jax.tree.map(lambda leaf, r=r: leaf[r], empty.stacks[f"stack_{i}"])
            for r in range(stack.repeats)
        )
        for i, stack in enumerate(model.cfg.stacks)
    }
    return caches.Cache(empty.lengths, stacks)


def _with_heads_first(params: dict) -> dict:
    """Parameters, with the arrays `k_up` and `v_up` of latent attention in both orders."""

    def one(name: str, part: Any) -> Any:
        if not isinstance(part, dict):
            return part
        if name in ("k_up", "v_up") and isinstance(part["w"], jax.Array):
            return part | {HEADS_FIRST: part["w"].swapaxes(0, 1)}
        return _with_heads_first(part)

    return {name: one(name, part) for name, part in params.items()}


def _on_one_cpu(leaf: object) -> bool:
    if isinstance(leaf, jax.core.Tracer) or not isinstance(leaf, jax.Array):
        return False
    return len(leaf.devices()) == 1 and next(iter(leaf.devices())).platform == "cpu"


def _slice(leaf: jax.Array, r: int) -> jax.Array:
    if not _on_one_cpu(leaf):
        return leaf[r]
    return jax.device_put(np.asarray(leaf)[r], next(iter(leaf.devices())))


def _each_buffer(change: Callable[[jax.Array], jax.Array], cache: caches.Cache) -> caches.Cache:
    """The change of each buffer of an unstacked cache that has one row."""
    unstacked = all(isinstance(stack, tuple) for stack in cache.stacks.values())
    if not unstacked or cache.lengths.shape != (1,):
        return cache
    return cache._replace(stacks=jax.tree.map(change, cache.stacks))
