"""Two ways to run the equal layers of a stack: one after the other by a scan, or in stages.

Parameters are the same either way, stacked over the repeats L.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn

from zoo import pipeline, zigzag


def scanned(body: type[nn.Module], repeats: int, unroll: int) -> type[nn.Module]:
    """The module of a pattern, repeated: it carries on its first argument and maps the second."""
    return nn.scan(
        body,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=(0, nn.broadcast),
        out_axes=0,
        length=repeats,
        unroll=min(unroll, repeats),
        metadata_params={nn.PARTITION_NAME: "layers"},
    )


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
