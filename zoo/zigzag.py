"""Rows that several devices share: which slots of a row lie where, on the mesh axis `context`.

A causal row cut into n equal parts would leave the first device with little to see and the last
with all of it. So it is cut into 2n, and device d holds parts d and 2n - 1 - d (Llama 3,
arXiv:2407.21783 section 3.3.2), so that the queries of every device see equally many keys.

`Decoder` moves tokens into that order on their way in, and hidden states back into the order of the
row on their way out, so that nobody else has to know. What depends on order gets the `slots`.

Axes: B batch, T positions of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

AXIS = "context"


def ways() -> int:
    """How many devices share a row on the mesh in force (`jax.set_mesh`); 1 without a mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(AXIS, 1)


def slots(length: int) -> jax.Array | None:
    """i32[T], which slot of a row stands where once it is in zigzag order; None if rows are whole.

    Raises:
        ValueError: the row cannot be cut into two equal parts per device.
    """
    n = ways()
    if n == 1:
        return None
    check(length, n)
    parts = np.arange(length, dtype=np.int32).reshape(2 * n, -1)
    return jnp.asarray(np.stack((parts[:n], parts[n:][::-1]), axis=1).reshape(-1))


def check(length: int, devices: int) -> None:
    """Refuses rows that so many devices cannot share.

    Raises:
        ValueError: they cannot be cut into two equal parts for each.
    """
    parts = 2 * devices
    if devices > 1 and length % parts:
        raise ValueError(
            f"a row of {length} tokens does not divide by {parts}, two parts for each of context="
            f"{devices} devices: pad it to {-(-length // parts) * parts}, or share it by fewer"
        )


def arrange(tree: Any, slots: jax.Array | None) -> Any:
    """Arrays [B, T, ...] moved from the order of rows into zigzag order, if there are `slots`."""
    if slots is None:
        return tree
    n = ways()
    even = [(d, _owner(2 * d, n)) for d in range(n)]
    odd = [(d, _owner(2 * d + 1, n)) for d in range(n)]

    def move(device: jax.Array, x: jax.Array) -> jax.Array:
        first, second = jnp.split(x, 2, axis=1)
        first, second = jax.lax.ppermute(first, AXIS, even), jax.lax.ppermute(second, AXIS, odd)
        return _concatenated(device % 2 == 0, first, second)

    return _moved(move, tree)


def restore(tree: Any, slots: jax.Array | None) -> Any:
    """Arrays [B, T, ...] moved back into the order of rows, if there are `slots`."""
    if slots is None:
        return tree
    n = ways()
    even = [(_owner(2 * d, n), d) for d in range(n)]
    odd = [(_owner(2 * d + 1, n), d) for d in range(n)]

    def move(device: jax.Array, x: jax.Array) -> jax.Array:
        x = _concatenated(device % 2 == 0, *jnp.split(x, 2, axis=1))
        first, second = jnp.split(x, 2, axis=1)
        first, second = jax.lax.ppermute(first, AXIS, even), jax.lax.ppermute(second, AXIS, odd)
        return jnp.concatenate((first, second), axis=1)

    return _moved(move, tree)


def whole(tree: Any, slots: jax.Array | None) -> Any:
    """Arrays [B, T, ...] for what reads a row in order: restored, and whole on every device."""
    if slots is None:
        return tree

    def gathered(x: jax.Array) -> jax.Array:
        names = ("batch", None, *("act_embed" for _ in x.shape[2:]))
        return nn.with_logical_constraint(x, names)

    return jax.tree.map(gathered, restore(tree, slots))


def shared(function: Callable, inputs: Any, outputs: Any) -> Callable:
    """`function` run by each device on its part of the rows, all other axes as they are.

    Args:
        function: of local arrays; it may send to other devices of the axis `context`.
        inputs: per argument the axis that is cut, or None for an array that all hold.
        outputs: the same of what is returned.
    """

    def spec(axis: int | None) -> PartitionSpec:
        return PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, AXIS)

    inputs, outputs = jax.tree.map(spec, (inputs, outputs), is_leaf=lambda axis: axis is None)
    return jax.jit(
        jax.shard_map(
            function, in_specs=inputs, out_specs=outputs, axis_names={AXIS}, check_vma=False
        )
    )


def _owner(part: int, n: int) -> int:
    """The device that holds a part in zigzag order: one even and one odd part each."""
    return min(part, 2 * n - 1 - part)


def _concatenated(ordered: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.where(ordered, jnp.concatenate((a, b), axis=1), jnp.concatenate((b, a), axis=1))


def _moved(move: Callable[[jax.Array, jax.Array], jax.Array], tree: Any) -> Any:
    each = shared(move, (0, 1), 1)
    return jax.tree.map(lambda x: each(jnp.arange(ways()), x), tree)
