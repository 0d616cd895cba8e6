"""Pipeline parallelism: the layers of a stack lie one group after the other on the axis `stage`.

A batch is cut into M microbatches that follow each other through the S stages (GPipe,
arXiv:1811.06965). At tick i stage s works on microbatch i - s and passes what it made to the next
stage; after M + S - 1 ticks all are through. A stage is idle for S - 1 of them: the bubble is
(S - 1) / (M + S - 1) of the time, forward and backward alike.

Each stage holds only its own layers: their parameters, stacked over L, are cut along L. Data, fsdp,
tensor and expert axes are left to the compiler, within a stage as without one.

Axes: M microbatches, B rows of a batch, L layers of a stack.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

AXIS = "stage"

MICROBATCHES_PER_STAGE = 4
"""How many microbatches a batch is cut into where nobody says: a bubble of a fifth at most."""


def stages() -> int:
    """How many stages the mesh in force (`jax.set_mesh`) has; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)


def divides(layers: int) -> bool:
    """Whether a stack of so many layers is run in stages; others run whole, on all of them."""
    return stages() > 1 and layers % stages() == 0


def bubble(stages: int, microbatches: int) -> float:
    """The part of the time that a stage is idle."""
    return (stages - 1) / (microbatches + stages - 1)


def run(
    layer: Callable[[Any, Any, Any], tuple[Any, Any]],
    params: Any,
    carried: Any,
    context: Any,
    microbatches: int | None = None,
) -> tuple[Any, Any]:
    """Runs a batch through all stages.

    Args:
        layer: (params, carried, context) -> (carried, aux), one layer on one microbatch; `aux` is
            a sum over tokens.
        params: arrays [L, ...], of which a stage gets its L / S.
        carried: arrays [B, ...] that go from layer to layer.
        context: arrays [B, ...] that all layers see; no gradient goes to them.
        microbatches: how many, a divisor of B; None is the largest up to four per stage.

    Returns:
        `carried` [B, ...] after the last layer, and `aux` [L, ...].

    Raises:
        ValueError: `microbatches` does not divide the batch.
    """
    count, n = _count(carried, microbatches), stages()
    parts = jax.tree.map(lambda x: _cut(x, count), (carried, jax.lax.stop_gradient(context)))

    def stage(number: jax.Array, params: Any, parts: Any) -> tuple[Any, Any]:
        first, number = number[0] == 0, number[0]
        one = lambda tree, m: jax.tree.map(lambda x: x[m], tree)  # noqa: E731

        def work(arrived: Any, tick: jax.Array) -> tuple[Any, Any]:
            carried, context = one(parts, jnp.clip(tick - number, 0, count - 1))
            carried = jax.tree.map(lambda a, b: jnp.where(first, a, b), carried, arrived)
            made, aux = jax.lax.scan(lambda x, p: layer(p, x, context), carried, params)
            busy = (tick >= number) & (tick < number + count)
            return made, jax.tree.map(lambda x: jnp.where(busy, x, 0), aux)

        def step(state: tuple[Any, Any], tick: jax.Array) -> tuple[tuple[Any, Any], Any]:
            arrived, total = state
            made, aux = work(arrived, tick)
            return (_passed_on(made), jax.tree.map(jnp.add, total, aux)), made

        nothing = jax.tree.map(jnp.zeros_like, one(parts[0], 0))
        aux = jax.eval_shape(lambda: work(nothing, jnp.int32(0))[1])
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), aux)
        ticks = jnp.arange(count + n - 1)
        (_, aux), made = jax.lax.scan(step, (nothing, zeros), ticks)
        return jax.tree.map(lambda x: x[None, n - 1 :], made), aux

    whole, cut = PartitionSpec(), PartitionSpec(AXIS)
    made, aux = jax.jit(
        jax.shard_map(
            stage, in_specs=(cut, cut, whole), out_specs=(cut, cut),
            axis_names={AXIS}, check_vma=False,
        )
    )(jnp.arange(n), params, parts)  # fmt: skip
    return jax.tree.map(lambda x: _joined(x[-1]), made), aux


def _count(carried: Any, microbatches: int | None) -> int:
    batch = jax.tree.leaves(carried)[0].shape[0]
    if microbatches is None:
        most = min(batch, MICROBATCHES_PER_STAGE * stages())
        return next(m for m in range(most, 0, -1) if batch % m == 0)
    if batch % microbatches:
        raise ValueError(
            f"microbatches={microbatches} do not divide a batch of {batch} rows: choose a divisor"
        )
    return microbatches


def _cut(x: jax.Array, count: int) -> jax.Array:
    """[B, ...] -> [M, B / M, ...]: rows from all over the batch, spread over devices as it is."""
    return x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)


def _joined(x: jax.Array) -> jax.Array:
    """[M, B / M, ...] -> [B, ...], as they were before `_cut`."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def _passed_on(tree: Any) -> Any:
    """What the stage before made; the first gets nothing."""
    n = stages()
    line = [(s, s + 1) for s in range(n - 1)]
    return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, line), tree)
