"""Pipeline parallelism: the layers of a stack lie in groups on the axis `stage`.

A batch is cut into M microbatches that follow each other through the S stages (GPipe,
arXiv:1811.06965). With R rounds a stage holds R groups of layers, those that a ring through all
stages comes by at it, and every microbatch goes around R times (the interleaved schedule of
arXiv:2104.04473, section 2.2). At tick i stage s works on item i - s of the M R that there are:
microbatch (i - s) mod M in round (i - s) // M; then it passes on what it made. After M R + S - 1
ticks all are through. A stage is idle for S - 1 of them: the bubble is (S - 1) / (M R + S - 1) of
the time, forward and backward alike.

Parameters, stacked over L, are cut along L: a stage keeps L / S layers that follow each other. For
one round these are the ones that it runs. For more, stages first exchange groups, once per call and
never more than a stage's worth, and their gradients go the way back.

Data, fsdp, tensor and expert axes are left to the compiler, within a stage as without one.

Axes: M microbatches, B rows of a batch, L layers of a stack, R rounds, S stages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from zoo import zigzag
from zoo.axes import as_tuple

AXIS = "stage"

MICROBATCHES_PER_STAGE = 4
"""How many microbatches a batch is cut into where nobody says: a bubble of a fifth at most."""


def stages() -> int:
    """How many stages the mesh in force (`jax.set_mesh`) has; 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)


def divides(layers: int) -> bool:
    """Whether a stack of so many layers is run in stages; others run whole, on all of them."""
    return stages() > 1 and layers % stages() == 0


def bubble(stages: int, microbatches: int, rounds: int = 1) -> float:
    """The part of the time that a stage is idle."""
    return (stages - 1) / (microbatches * rounds + stages - 1)


def check_mesh(mesh: Mapping[str, int]) -> None:
    """Refuses stages whose rows are shared by devices.

    Raises:
        ValueError: it names both axes.
    """
    if mesh.get(AXIS, 1) > 1 and mesh.get(zigzag.AXIS, 1) > 1:
        raise ValueError(
            f"stage={mesh[AXIS]}, context={mesh[zigzag.AXIS]}: layers in stages cannot share rows "
            "between devices; use a mesh with context=1, or with stage=1"
        )


def check_all(
    stacks: Iterable[int],
    mesh: Mapping[str, int],
    batch: int,
    length: int,
    microbatches: int | None,
    rounds: int,
    parts: int = 1,
) -> int | None:
    """The number of microbatches of a batch on a mesh, or None where no stack runs in stages.

    Args:
        stacks: the layers of each.
        mesh: sizes of its axes.
        batch: rows.
        length: tokens of a row.
        microbatches: as for `check`, and so are the others.
        rounds: how often each goes around.
        parts: how many devices share the rows of a batch.

    Raises:
        ValueError: as `check`, or rows that the mesh cannot cut.
    """
    zigzag.check(length, mesh.get(zigzag.AXIS, 1))
    stages, count = mesh.get(AXIS, 1), None
    for layers in stacks:
        if stages > 1 and layers % stages == 0:
            check_mesh(mesh)
            count = check(layers, batch, stages, microbatches, rounds, parts)
    return count


def check(
    layers: int, batch: int, stages: int, microbatches: int | None, rounds: int, parts: int = 1
) -> int:
    """The number of microbatches that a batch is cut into, if everything divides.

    Args:
        layers: of a stack that is run in stages.
        batch: rows.
        stages: of the mesh.
        microbatches: what was asked for; None is the largest up to four per stage.
        rounds: what was asked for.
        parts: how many devices share the rows of a batch.

    Raises:
        ValueError: it names what does not divide, and what would.
    """
    groups = layers // stages
    if groups % rounds:
        fit = ", ".join(str(n) for n in _divisors(groups))
        raise ValueError(
            f"rounds={rounds} do not divide the {groups} layer(s) that each of stage={stages} has "
            f"of a stack of {layers}: rounds could be {fit}"
        )
    if microbatches is None:
        fit = [m for m in _divisors(batch) if m <= MICROBATCHES_PER_STAGE * stages]
        microbatches = max([m for m in fit if batch // m % parts == 0] or fit)
    elif batch % microbatches:
        near = " or ".join(str(m) for m in _nearest(_divisors(batch), microbatches))
        raise ValueError(
            f"microbatches={microbatches} do not divide a batch of {batch} rows: {near} would"
        )
    if rounds > 1 and microbatches < stages:
        raise ValueError(
            f"microbatches={microbatches} are fewer than stage={stages}, so that rounds={rounds} "
            f"would wait for each other: take at least {stages} of a batch of {batch} rows, or "
            "rounds=1"
        )
    return microbatches


def run(
    layer: Callable[[Any, Any, Any], tuple[Any, Any]],
    params: Any,
    carried: Any,
    context: Any,
    microbatches: int | None = None,
    rounds: int = 1,
    remat: Callable[..., bool] | None = None,
) -> tuple[Any, Any]:
    """Runs a batch through all stages.

    Args:
        layer: (params, carried, context) -> (carried, aux), one layer on one microbatch; `aux` is
            a sum over tokens.
        params: arrays [L, ...], of which a stage gets L / S.
        carried: arrays [B, ...] that go from layer to layer.
        context: arrays [B, ...] that all layers see; no gradient goes to them.
        microbatches: how many, a divisor of B; None is the largest up to four per stage.
        rounds: how often a microbatch goes around; R S divides L.
        remat: a policy to recompute by in the backward pass: a layer with one round, a stage's
            group of layers with more.

    Returns:
        `carried` [B, ...] after the last layer, and `aux` [L, ...].

    Raises:
        ValueError: as `check`.
    """
    layers, batch = (jax.tree.leaves(tree)[0].shape[0] for tree in (params, carried))
    n = stages()
    count = check(layers, batch, n, microbatches, rounds, _row_parts())
    items = count * rounds
    types = jax.tree.map(lambda x: x.dtype, carried)
    begun = jax.tree.map(_widened, carried), jax.lax.stop_gradient(context)
    parts = jax.tree.map(lambda x: _cut(x, count), begun)
    if rounds == 1 and remat is not None:
        layer = jax.checkpoint(layer, policy=remat, prevent_cse=False)

    def stage(number: jax.Array, params: Any, parts: Any) -> tuple[Any, Any]:
        first, number = number[0] == 0, number[0]
        waiting, context = parts
        waiting = jax.tree.map(lambda x, dtype: x.astype(dtype), waiting, types)
        groups, order = (params, None) if rounds == 1 else _dealt(params, number, rounds)

        def work(groups: Any, carried: Any, item: jax.Array) -> tuple[Any, Any]:
            seen = _at(context, item % count)
            group = groups if rounds == 1 else _at(groups, order[item // count])
            return jax.lax.scan(lambda x, p: layer(p, x, seen), carried, group)

        if rounds > 1:  # or a copy of the group would be kept for every tick
            work = jax.checkpoint(work, policy=remat or _all_but_copies, prevent_cse=False)

        def step(state: tuple[Any, Any, Any], tick: jax.Array) -> tuple[Any, Any]:
            waiting, arrived, total = state
            if rounds > 1:  # what went around waits until its next round begins
                behind = jnp.clip(tick - n, 0) % count
                new = jax.tree.map(
                    lambda a, b: jnp.where(tick < n, a, b), _at(waiting, behind), arrived
                )
                waiting = jax.tree.map(lambda x, y: x.at[behind].set(y), waiting, new)
            item = jnp.clip(tick - number, 0, items - 1)
            begun = _at(waiting, item % count)
            carried = jax.tree.map(lambda a, b: jnp.where(first, a, b), begun, arrived)
            made, aux = work(groups, carried, item)
            busy = (tick >= number) & (tick < number + items)
            add = lambda x, new: x.at[item // count].add(jnp.where(busy, new, 0))  # noqa: E731
            total = jax.tree.map(add, total, aux)
            return (waiting, _passed_on(made, rounds), total), made

        nothing = jax.tree.map(jnp.zeros_like, _at(waiting, 0))
        aux = jax.eval_shape(lambda: work(groups, nothing, jnp.int32(0))[1])
        zeros = jax.tree.map(lambda x: jnp.zeros((rounds, *x.shape), x.dtype), aux)
        ticks = jnp.arange(items + n - 1)
        (_, _, aux), made = jax.lax.scan(step, (waiting, nothing, zeros), ticks)
        return jax.tree.map(lambda x: x[None, -count:], made), aux

    whole, cut, dealt = PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(None, AXIS)
    made, aux = jax.jit(
        jax.shard_map(
            stage, in_specs=(cut, cut, whole), out_specs=(cut, dealt),
            axis_names={AXIS}, check_vma=False,
        )
    )(jnp.arange(n), params, parts)  # fmt: skip
    aux = jax.tree.map(lambda x: x.reshape(layers, *x.shape[2:]), aux)
    return jax.tree.map(lambda x: _joined(x[-1]), made), aux


def _dealt(params: Any, number: jax.Array, rounds: int) -> tuple[Any, jax.Array]:
    """The layers that stage `number` runs, [R, L / (R S), ...], and i32[R] where group r S + number
    of round r is among them: putting them in order would be another copy.

    It gets [L / S, ...], groups number R to (number + 1) R - 1. Each of R moves sends one group of
    every stage, all to different ones.
    """
    groups = jax.tree.map(lambda x: x.reshape(rounds, -1, *x.shape[1:]), params)
    n, got = stages(), []
    came = [[0] * rounds for _ in range(n)]
    for move in range(rounds):
        sent = [(move + s * math.gcd(rounds, n) // n) % rounds for s in range(n)]
        whole = [s * rounds + k for s, k in enumerate(sent)]
        for group in whole:
            came[group % n][group // n] = move
        way = [(s, group % n) for s, group in enumerate(whole)]
        mine = _at(groups, jnp.array(sent)[number])
        got.append(jax.tree.map(lambda x, way=way: jax.lax.ppermute(x, AXIS, way), mine))
    return jax.tree.map(lambda *moves: jnp.stack(moves), *got), jnp.array(came)[number]


def _at(tree: Any, i: jax.Array | int) -> Any:
    return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, i, keepdims=False), tree)


def _all_but_copies(primitive: Any, *_, **__) -> bool:
    """A policy that keeps everything but what copies a group, or casts it."""
    return primitive.name not in ("dynamic_slice", "squeeze", "reshape", "convert_element_type")


def _row_parts() -> int:
    """How many devices share the rows of a batch, by the rules in force."""
    mesh, rules = jax.sharding.get_abstract_mesh(), dict(nn.get_logical_axis_rules())
    return math.prod(mesh.shape.get(axis, 1) for axis in as_tuple(rules.get("batch")))


def _divisors(n: int) -> list[int]:
    return [d for d in range(1, n + 1) if n % d == 0]


def _nearest(numbers: list[int], to: int) -> list[int]:
    """The nearest below and above."""
    below, above = [n for n in numbers if n < to], [n for n in numbers if n > to]
    return below[-1:] + above[:1]


def _widened(x: jax.Array) -> jax.Array:
    """Numbers of at least 32 bits: stages add up their gradients, and XLA on CPU dies of a sum over
    some axes of a mesh in bfloat16."""
    floating = jnp.issubdtype(x.dtype, jnp.floating)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if floating else x


def _cut(x: jax.Array, count: int) -> jax.Array:
    """[B, ...] -> [M, B / M, ...]: rows from all over the batch, spread over devices as it is."""
    return x.reshape(-1, count, *x.shape[1:]).swapaxes(0, 1)


def _joined(x: jax.Array) -> jax.Array:
    """[M, B / M, ...] -> [B, ...], as they were before `_cut`."""
    return x.swapaxes(0, 1).reshape(-1, *x.shape[2:])


def _passed_on(tree: Any, rounds: int) -> Any:
    """What the stage before made; the first gets nothing, or after a round what the last made."""
    n = stages()
    line = [(s, s + 1) for s in range(n - 1)]
    line += [(n - 1, 0)] if rounds > 1 else []
    return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, line), tree)
