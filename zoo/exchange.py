"""Rows on their way between devices: to those that own their experts, and home again.

Axes: P devices of a group, R rows that a device has room for, S of them from one other at most, M
rows of a device, sorted by the device they go to, and whatever belongs to a row behind that.

A device that receives keeps the rows of the first sender, then those of the second, and so on.
Where more come than it has room for, they come in turns: of that order the rows 0 to R, then R to
2 R. The ragged functions move the rows that there are; the padded ones, for platforms that have no
`ragged_all_to_all`, move blocks. Both end with the same rows.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Trip(NamedTuple):
    """What a device has to know of a turn; every field i32[P], by the other device.

    Attributes:
        start: the first of the rows here that go there.
        sent: how many go there.
        place: where the first of them lies there.
        first: where the first of those that come from there lies here.
        received: how many come from there.
        home: the first row there of those that come from there.
    """

    start: jax.Array
    sent: jax.Array
    place: jax.Array
    first: jax.Array
    received: jax.Array
    home: jax.Array


class Group(NamedTuple):
    """The devices that exchange rows: mesh axes, their size P, the room R and the slots S."""

    axes: tuple[str, ...]
    size: int
    room: int
    slots: int

    @property
    def name(self) -> str | tuple[str, ...]:
        return self.axes[0] if len(self.axes) == 1 else self.axes


def trip(sent: jax.Array, turn: jax.Array, group: Group) -> Trip:
    """Of i32[P, P], how many rows each device (first) sends to each, the part that a turn takes."""
    me, low = lax.axis_index(group.axes), turn * group.room
    start, place = jnp.cumsum(sent, 1) - sent, jnp.cumsum(sent, 0) - sent
    gone = jnp.clip(low - place, 0, sent)
    moved = jnp.clip(low + group.room - place, 0, sent) - gone
    start, place = start + gone, jnp.clip(place - low, 0, group.room)
    return Trip(start[me], moved[me], place[me], place[:, me], moved[:, me], start[:, me])


def send_ragged(rows: jax.Array, trip: Trip, group: Group) -> jax.Array:
    """dtype[M, ...] -> dtype[R, ...], with anything at all where no row comes to lie.

    By the TPU compiler's estimate, to fill it with zeros first takes longer than all else with it.
    """
    empty = lax.empty((group.room, *rows.shape[1:]), rows.dtype)
    where = trip.start, trip.sent, trip.place, trip.received
    return lax.ragged_all_to_all(rows, empty, *where, axis_name=group.name)


def return_ragged(there: jax.Array, onto: jax.Array, trip: Trip, group: Group) -> jax.Array:
    """dtype[R, ...] over what of dtype[M, ...] went on this trip."""
    where = trip.first, trip.received, trip.home, trip.sent
    return lax.ragged_all_to_all(there, onto, *where, axis_name=group.name)


def send_padded(rows: jax.Array, trip: Trip, group: Group) -> jax.Array:
    """As `send_ragged`."""
    blocks = _blocks(rows, trip.start, trip.sent, group)
    empty = lax.empty((group.room, *rows.shape[1:]), rows.dtype)
    return _laid(blocks, trip.first, trip.received, group, empty)


def return_padded(there: jax.Array, onto: jax.Array, trip: Trip, group: Group) -> jax.Array:
    """As `return_ragged`."""
    blocks = _blocks(there, trip.first, trip.received, group)
    return _laid(blocks, trip.start, trip.sent, group, onto)


def _blocks(rows: jax.Array, start: jax.Array, count: jax.Array, group: Group) -> jax.Array:
    """To each device `count` rows from `start` on, and what comes of it here: [P * S, ...]."""
    slot = jnp.arange(group.slots, dtype=jnp.int32)
    index = jnp.where(slot < count[:, None], start[:, None] + slot, len(rows))
    blocks = rows.at[index.reshape(-1)].get(mode="fill", fill_value=0)
    return lax.all_to_all(blocks, group.name, 0, 0, tiled=True)


def _laid(
    blocks: jax.Array, start: jax.Array, count: jax.Array, group: Group, onto: jax.Array
) -> jax.Array:
    """Each device's block over `count` rows from `start` on; starts and ends are in order."""
    row = jnp.arange(len(onto), dtype=jnp.int32)
    device = jnp.searchsorted(start + count, row, side="right").astype(jnp.int32)
    slot = row - start.at[device].get(mode="clip")
    came = (device < group.size) & (slot >= 0)
    found = blocks.at[device * group.slots + slot].get(mode="clip")
    return jnp.where(came.reshape(-1, *(1,) * (onto.ndim - 1)), found, onto)
