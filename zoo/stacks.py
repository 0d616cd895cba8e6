"""Two ways to run the equal layers of a stack: one after the other by a scan, or in stages.

Parameters are the same either way, stacked over the repeats L.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from zoo import expert_parallel, pipeline
from zoo.axes import as_tuple
from zoo.buffer import Paged
from zoo.config import MoE

LAYS_OUT = jax.__version_info__ >= (0, 10)
"""Whether activations within a stage can be told where to lie: JAX 0.7 cannot do that."""


def scanned(
    pattern: nn.Module, repeats: int, unroll: int, carried: Any, cache: Any, context: Any
) -> tuple[Any, Any, dict]:
    """The same repeats by a scan; `pattern` is one of them, and gets parameters that lead with L.

    The cache travels with `carried`, and each repeat reads and writes its own part of it in place:
    as an input and an output of the scan, it would be held twice. Of pages a repeat reads those it
    needs, and no part is cut out.

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
        def cut(whole: Any) -> Any:
            if _is_paged(whole):
                return whole._replace(layer=at)
            return lax.dynamic_index_in_dim(whole, at, keepdims=False)

        def put(whole: Any, one: Any) -> Any:
            return one if _is_paged(one) else lax.dynamic_update_index_in_dim(whole, one, at, 0)

        carried, cache = state
        one = jax.tree.map(cut, cache, is_leaf=_is_paged)
        carried, (one, aux) = pattern(carried, one, context)
        return (carried, jax.tree.map(put, cache, one, is_leaf=_is_paged)), aux

    scan = nn.scan(
        step,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        out_axes=0,
        length=repeats,
        unroll=min(unroll, repeats),
        metadata_params={nn.PARTITION_NAME: "layers"},
        check_constancy_invariants=False,  # would trace twice, and no output is broadcast
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


def _is_paged(x: object) -> bool:
    return isinstance(x, Paged)
