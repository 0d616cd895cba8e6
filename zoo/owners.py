"""Experts that lie on several devices: their rows go there, are worked on, and come home.

Axes: D embedding, F hidden of an expert, E experts, C chosen experts of a token; on one device n
tokens, M = n * C choices; P devices that own E / P experts each, with room for R rows.

None is dropped. A device has room for a few times what it gets where tokens are spread evenly, and
one turn takes that. Where more come to some device, all take as many turns as that one needs:
crowded experts cost time, but no memory. How many rows go where is all that devices tell each other
before. Backward, rows travel again, beside gradients, instead of being kept.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zoo import exchange, grouped, kernels
from zoo.exchange import Group
from zoo.layered import Layered, cut_out, gradient
from zoo.layers import Gate

SLACK = 2
"""How many times the rows of evenly spread tokens a device has room for."""

LEAST = 512
"""Rows that a device has room for at least, if so many can come: few spread less evenly."""


class Owners(NamedTuple):
    """Who shares experts, and how they work.

    Attributes:
        axes: mesh axes over which experts are spread.
        others: those over which they are not.
        size: devices of `axes`, P.
        act: as in `zoo.grouped.expert_mlp`, like `weigh_input`.
        weigh_input: likewise.
    """

    axes: tuple[str, ...]
    others: tuple[str, ...]
    size: int
    act: Gate
    weigh_input: bool


Three = tuple[jax.Array, jax.Array, jax.Array]
Matrices = tuple[jax.Array | Layered, jax.Array | Layered, jax.Array | Layered]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def expert_mlp(
    owners: Owners,
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    matrices: Matrices,
    biases: Three | None,
) -> jax.Array:
    """Within `shard_map`: `zoo.grouped.expert_mlp` of a device's tokens, by the experts of all.

    Args:
        owners: who and how.
        x: dtype[n, D].
        experts: i32[n, C], different ones for each token.
        weights: f32[n, C].
        matrices: gate, up and down of the E / P experts that this device owns.
        biases: of gate, up and down, likewise.

    Returns:
        dtype[n, D].
    """
    return _forward(owners, x, experts, weights, matrices, biases)[0]


def _forward(owners, x, experts, weights, matrices, biases):
    parted = _parted(owners, x, experts, weights, matrices[0].shape[0])
    work = functools.partial(_work, owners)

    def turn(at: jax.Array, y: jax.Array) -> jax.Array:
        trip, wanted = parted.at(at)
        there, scale = (kernels.send(part, trip, parted.group) for part in parted.rows)
        there = work(there, scale, wanted, matrices, biases)
        return kernels.bring_back(there, y, trip, parted.group)

    y = parted.in_turns(turn, jnp.zeros_like(parted.rows[0]))
    saved = x, experts, weights, matrices, biases
    return grouped.summed(y, parted.order, len(x)), saved


def _backward(owners, saved, grad):
    x, experts, weights, matrices, biases = saved
    learnt = tuple(map(cut_out, matrices)), biases
    parted = _parted(owners, x, experts, weights, learnt[0][0].shape[0])
    grads = grouped.dispatch(grad, parted.order)

    def turn(at: jax.Array, total: tuple) -> tuple:
        trip, wanted = parted.at(at)
        *given, grad = (kernels.send(part, trip, parted.group) for part in (*parted.rows, grads))

        def work(rows: jax.Array, scale: jax.Array, learnt: tuple) -> jax.Array:
            return _work(owners, rows, scale, wanted, *learnt)

        *found, more = jax.vjp(work, *given, learnt)[1](grad)
        *home, sums = total
        for i, part in enumerate(found):
            home[i] = kernels.bring_back(part, home[i], trip, parted.group)
        return *home, jax.tree.map(jnp.add, sums, more)

    zeros = jax.tree.map(jnp.zeros_like, (*parted.rows, learnt))
    x_grad, weights_grad, (matrices_grad, biases_grad) = parted.in_turns(turn, zeros)
    matrices_grad = tuple(map(gradient, matrices, matrices_grad))
    x_grad = grouped.summed(x_grad, parted.order, len(x))
    weights_grad = weights_grad[parted.order.inverse].reshape(weights.shape)
    return x_grad, None, weights_grad, matrices_grad, biases_grad


expert_mlp.defvjp(_forward, _backward)


class _Parted(NamedTuple):
    """A device's rows, sorted by expert, and what it knows of all devices'.

    `rows` are dtype[M, D] and their weights f32[M]; `counts` i32[P, P, E / P], the rows that each
    device has for each owner's experts; `most` bounds the turns.
    """

    rows: tuple[jax.Array, jax.Array]
    order: grouped.Order
    counts: jax.Array
    group: Group
    others: tuple[str, ...]
    most: int

    def at(self, turn: jax.Array) -> tuple[exchange.Trip, jax.Array]:
        """The trip of a turn, and the expert that each row wants there, i32[R]."""
        trip = exchange.trip(self.counts.sum(2), turn, self.group)
        comes = self.counts[:, lax.axis_index(self.group.axes)].reshape(-1)
        ends = jnp.maximum(jnp.cumsum(comes) - turn * self.group.room, 0)
        passed = jnp.zeros(self.group.room, jnp.int32).at[ends].add(1, mode="drop")
        at, owned = jnp.cumsum(passed), self.counts.shape[2]
        return trip, jnp.where(at < len(comes), at % owned, owned)

    def in_turns(self, turn: Callable, start: Any) -> Any:
        """turn(i, state) for as many as the most crowded device needs."""
        if self.most == 1:
            return turn(jnp.int32(0), start)
        needed = -(-self.counts.sum((0, 2)).max() // self.group.room)
        if self.others:  # groups of owners keep step, whatever travels between them
            needed = lax.pmax(needed, self.others)
        return lax.fori_loop(0, needed, turn, start)


def _parted(owners: Owners, x, experts, weights, owned: int) -> _Parted:
    order = grouped.sort_by_expert(experts, owners.size * owned)
    rows = grouped.dispatch(x, order), weights.reshape(-1)[order.rows]
    counts = lax.all_gather(order.group_sizes.reshape(owners.size, owned), owners.axes)
    slots = len(x) * min(experts.shape[1], owned)
    room = min(owners.size * slots, max(SLACK * experts.size, LEAST))
    group = Group(owners.axes, owners.size, room, min(room, slots))
    return _Parted(rows, order, counts, group, owners.others, math.ceil(owners.size * slots / room))


def _work(
    owners: Owners, rows, scale, wanted, matrices: Matrices, biases: Three | None
) -> jax.Array:
    """What this device's experts make of dtype[R, D]; zeros of what wants none."""
    how = dict(act=owners.act, biases=biases, weigh_input=owners.weigh_input)
    return grouped.expert_mlp(rows, wanted[:, None], scale[:, None], *matrices, **how)
