"""Rows on their way between devices: to those that own their experts, and home again.

Axes: P devices of a group, S slots that each reserves for every other, M rows of a device, sorted
by the device they go to, D embedding.

A device that receives keeps a block of S slots for each sender, filled from its first slot on. The
ragged functions move the rows that there are; the padded ones, for platforms that have no
`ragged_all_to_all`, move whole blocks. Both end with the same arrays: zeros where there is no row.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Trip(NamedTuple):
    """What a device has to know of an exchange; every field i32[P], by the other device.

    Attributes:
        start: the first of the rows that go there.
        sent: how many go there.
        received: how many come from there.
        home: the first row there of those that come from there.
    """

    start: jax.Array
    sent: jax.Array
    received: jax.Array
    home: jax.Array


class Group(NamedTuple):
    """The devices that exchange rows: mesh axes, their size P, and the slots S of a block."""

    axes: tuple[str, ...]
    size: int
    slots: int


def send_ragged(rows: jax.Array, trip: Trip, group: Group) -> jax.Array:
    """dtype[M, D] -> dtype[P * S, D]."""
    empty = jnp.zeros((group.size * group.slots, rows.shape[1]), rows.dtype)
    place = jnp.full((group.size,), lax.axis_index(group.axes) * group.slots, jnp.int32)
    return lax.ragged_all_to_all(
        rows, empty, trip.start, trip.sent, place, trip.received, axis_name=_name(group)
    )


def return_ragged(blocks: jax.Array, trip: Trip, group: Group, count: int) -> jax.Array:
    """dtype[P * S, D] -> dtype[M, D], for M = count."""
    empty = jnp.zeros((count, blocks.shape[1]), blocks.dtype)
    first = jnp.arange(group.size, dtype=jnp.int32) * group.slots
    return lax.ragged_all_to_all(
        blocks, empty, first, trip.received, trip.home, trip.sent, axis_name=_name(group)
    )


def send_padded(rows: jax.Array, trip: Trip, group: Group) -> jax.Array:
    """dtype[M, D] -> dtype[P * S, D]."""
    slot = jnp.arange(group.slots, dtype=jnp.int32)
    index = jnp.where(slot < trip.sent[:, None], trip.start[:, None] + slot, len(rows))
    blocks = rows.at[index.reshape(-1)].get(mode="fill", fill_value=0)
    return lax.all_to_all(blocks, _name(group), 0, 0, tiled=True)


def return_padded(blocks: jax.Array, trip: Trip, group: Group, count: int) -> jax.Array:
    """dtype[P * S, D] -> dtype[M, D], for M = count."""
    blocks = lax.all_to_all(blocks, _name(group), 0, 0, tiled=True)
    row = jnp.arange(count, dtype=jnp.int32)
    device = jnp.searchsorted(jnp.cumsum(trip.sent), row, side="right").astype(jnp.int32)
    slot = device * group.slots + row - trip.start.at[device].get(mode="clip")
    slot = jnp.where(device < group.size, slot, len(blocks))
    return blocks.at[slot].get(mode="fill", fill_value=0)


def _name(group: Group) -> str | tuple[str, ...]:
    return group.axes[0] if len(group.axes) == 1 else group.axes
