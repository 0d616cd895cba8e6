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

from zoo import expert_parallel, pipeline
from zoo.axes import as_tuple
from zoo.buffer import Buffer, Paged, Pending, Pool, Rounded
from zoo.cache import Held, is_held, waits, write_layers
from zoo.config import MoE
from zoo.layered import of_layer

LAYS_OUT = jax.__version_info__ >= (0, 10)
"""Whether activations within a stage can be told where to lie: JAX 0.7 cannot do that."""


def scanned(
    pattern: nn.Module, repeats: int, unroll: int, carried: Any, cache: Any, context: Any
) -> tuple[Any, Any, dict]:
    """The same repeats by a scan; `pattern` is one of them, and gets parameters that lead with L.

    The cache travels with `carried`: as an input and an output of the scan, it would be held twice.
    A repeat reads its part of it where it lies, and what it adds is written after the scan, a row's
    tokens of all repeats at once. Only where a repeat adds many tokens, or to a state, its part is
    cut out and put back. Of pages a repeat reads and writes those it needs. With a cache, experts'
    matrices stay among those of all repeats too (`zoo.layered`).

    Args:
        pattern: one repeat.
        repeats: L.
        unroll: repeats compiled side by side.
        carried: what goes from layer to layer, `x` [B, T, D] and more.
        cache: [L, B, ...], or None.
        context: what all see.

    Returns:
        `carried` after the last repeat, the cache, and the statistics of all, [L, ...].
    """

    def step(pattern: Callable, state: tuple, at: jax.Array, context: Any):
        carried, cache = state
        cut = functools.partial(_cut, at=at, tokens=carried.x.shape[1])
        one = jax.tree.map(cut, cache, is_leaf=is_held)
        carried, (one, aux) = pattern(carried, one, context)
        cache = jax.tree.map(functools.partial(_put, at=at), cache, one, is_leaf=_is_buffer)
        return (carried, cache), (aux, jax.tree.map(_waiting, one, is_leaf=_is_buffer))

    at, how = jnp.arange(repeats), dict(length=repeats, unroll=min(unroll, repeats))
    if cache is None or pattern.is_initializing():
        scan = nn.scan(
            step,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            out_axes=0,
            **how,
            metadata_params={nn.PARTITION_NAME: "layers"},
            check_constancy_invariants=False,  # would trace twice, and no output is broadcast
        )
        state, (aux, new) = scan(pattern, (carried, cache), at, context)
    else:
        params, free = pattern.variables["params"], pattern.clone(parent=None)

        def step_at(state: tuple, at: jax.Array):
            one = functools.partial(free.apply, {"params": of_layer(params, at)})
            return step(one, state, at, context)

        state, (aux, new) = lax.scan(step_at, (carried, cache), at, **how)
    carried, cache = state
    return carried, jax.tree.map(_written, cache, new, is_leaf=_is_buffer), aux


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
        ValueError: devices share rows too, or `microbatches` or `rounds` do not divide, or this JAX
            cannot partition the experts.
    """
    pipeline.check_mesh(jax.sharding.get_abstract_mesh().shape)
    if not LAYS_OUT and any(isinstance(layer.ffn, MoE) for layer in pattern.stack.layers):
        _require_partitionable_experts()
    rules = nn.get_logical_axis_rules() if LAYS_OUT else ()

    def layer(params: dict, carried: Any, context: Any) -> tuple[Any, dict]:
        with nn.logical_axis_rules(rules):
            carried, (_, aux) = pattern.apply({"params": params}, carried, None, context)
        return carried, aux

    return pipeline.run(layer, params, carried, context, microbatches, rounds, remat)


def _require_partitionable_experts() -> None:
    """Refuses what ends the process: XLA fails a check where it guesses how activations lie.

    Raises:
        ValueError: `embed` and another axis of the experts' weights are cut.
    """
    placed = expert_parallel.placement()
    if placed is None:
        return
    owners, gathered, hidden = map(as_tuple, placed.weights[0])
    if gathered and (owners or hidden):
        cut = (*gathered, *owners, *hidden)
        axes = ", ".join(f"{axis}={placed.sizes[axis]}" for axis in cut)
        raise ValueError(
            f"stage={pipeline.stages()}: JAX {jax.__version__} cannot cut experts over {axes} in "
            f"stages: update JAX to 0.10, or use data instead of {', '.join(gathered)}"
        )


def _cut(held: Held, at: jax.Array, tokens: int) -> Held:
    """What a repeat reads and adds so many tokens to."""
    if waits(held, tokens):
        return type(held)(*(Pending(whole, at) for whole in held))

    def one(whole: Paged | jax.Array) -> Paged | jax.Array:
        if _is_paged(whole):
            return whole._replace(layer=at)
        return lax.dynamic_index_in_dim(whole, at, keepdims=False)

    return jax.tree.map(one, held, is_leaf=_is_paged)


def _put(whole: Buffer, one: Buffer, at: jax.Array) -> Buffer:
    """A buffer with what a repeat made of its part, but for what waits."""
    if isinstance(one, Paged | Pending):
        return one if _is_paged(one) else whole
    back = functools.partial(lax.dynamic_update_index_in_dim, index=at, axis=0)
    return jax.tree.map(back, whole, one)


def _waiting(buffer: Buffer) -> tuple[Pool, jax.Array] | None:
    """What of a repeat's part of the cache waits to be written, and from which slots on."""
    return (buffer.new, buffer.offset) if isinstance(buffer, Pending) else None


def _written(whole: Buffer, new: tuple[Pool, jax.Array] | None) -> Buffer:
    """With what waited in all repeats; their slots are the same."""
    return whole if new is None else write_layers(whole, new[0], new[1][0])


def _is_paged(x: object) -> bool:
    return isinstance(x, Paged)


def _is_buffer(x: object) -> bool:
    return isinstance(x, Paged | Pending | Rounded)
