"""Experts on a mesh: every device works for its own tokens' devices with its own experts.

Axes: B batch, T positions, D embedding, F hidden of an expert, E experts, C chosen experts of a
token; n tokens on one device.

Within `zoo.sharding.use` the whole of it runs per device (`shard_map`), so that the loops of a
grouped product stay local. Where a rule cuts `experts`, rows travel to the devices that own their
experts and back by all-to-all (GShard, arXiv:2006.16668; `zoo.owners`), and none is dropped.
Weights that are also cut by another name (`fsdp`) are gathered over that axis alone, and hidden
units that are cut (`tensor`) end with a sum.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from zoo import grouped, owners
from zoo.axes import as_tuple, mesh_in_force, partition_spec
from zoo.layered import Layered, cut_out
from zoo.layers import Gate
from zoo.lora import whole
from zoo.owners import Owners
from zoo.quantized import Quantized, waiting

INNER, OUTER = ("experts", "embed", "mlp"), ("experts", "mlp", "embed")
WEIGHTS = (INNER, INNER, OUTER)
BIASES = (("experts", "mlp"), ("experts", "mlp"), ("experts", "embed"))

Arrays = tuple[jax.Array, ...]


class Placement(NamedTuple):
    """How a mesh is used.

    Attributes:
        batch: mesh axes that cut B, those of `owners` among them or in `length`.
        length: mesh axes that cut T.
        owners: mesh axes that cut E.
        hidden: mesh axes that cut F, over devices that have the same tokens.
        sizes: devices of every mesh axis.
        weights: where each of gate, up and down lies.
        biases: where each of theirs lies.
    """

    batch: tuple[str, ...]
    length: tuple[str, ...]
    owners: tuple[str, ...]
    hidden: tuple[str, ...]
    sizes: dict[str, int]
    weights: tuple[PartitionSpec, ...]
    biases: tuple[PartitionSpec, ...]

    def devices(self, axes: tuple[str, ...]) -> int:
        return math.prod(self.sizes[axis] for axis in axes)


def expert_mlp(
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    gate: jax.Array | Quantized | Layered,
    up: jax.Array | Quantized | Layered,
    down: jax.Array | Quantized | Layered,
    act: Gate = "silu",
    biases: tuple[jax.Array, jax.Array, jax.Array] | None = None,
    weigh_input: bool = False,
) -> jax.Array:
    """`zoo.grouped.expert_mlp` of x[..., D], experts and weights [..., C], on the mesh if any."""
    how = dict(act=act, weigh_input=weigh_input)
    placed = placement()
    if placed is None:
        rows = (a.reshape(-1, a.shape[-1]) for a in (x, experts, weights))
        return grouped.expert_mlp(*rows, gate, up, down, biases=biases, **how).reshape(x.shape)
    held = ((x, 0), (experts, gate.shape[0]), (weights, 0))
    matrices = tuple(whole(waiting(w, x), x.dtype) for w in (gate, up, down))
    if placed.sizes.get("stage", 1) > 1:  # cut along L, of which one is cheaper to fetch than all
        matrices = tuple(map(cut_out, matrices))
    return _per_device(
        functools.partial(_local, placed, how), placed, held,
        (matrices, tuple(map(_where, matrices, placed.weights))),
        (biases, None if biases is None else placed.biases),
    )  # fmt: skip


def _where(w: jax.Array | Layered, spec: PartitionSpec) -> PartitionSpec | Layered:
    """Where a matrix lies that is cut as `spec`, or where those of all layers do."""
    return Layered(PartitionSpec(None, *spec), PartitionSpec()) if isinstance(w, Layered) else spec


def by_token(function: Callable, x: jax.Array, *shared: jax.Array | None) -> Any:
    """function(x[n, K], *shared), a tree of arrays by token, by every device for its own tokens.

    XLA would have every device choose the experts of all tokens: it cuts no `top_k`.

    Args:
        function: of rows that do not depend on each other.
        x: dtype[..., K], which becomes rows.
        shared: what every row needs; small, since every device gets the whole of it.

    Returns:
        The tree, in the leading axes of x.
    """
    placed = placement()
    if placed is None:
        found = function(x.reshape(-1, x.shape[-1]), *shared)
        return jax.tree.map(lambda a: a.reshape(*x.shape[:-1], -1), found)

    def local(tokens: Arrays, *shared: jax.Array | None) -> Any:
        (x,) = tokens
        found = function(x.reshape(-1, x.shape[-1]), *shared)
        return jax.tree.map(lambda a: a.reshape(*x.shape[:-1], -1), found)

    return _per_device(local, placed, ((x, 0),), *((s, PartitionSpec()) for s in shared))


def _per_device(function: Callable, placed: Placement, tokens, *others) -> Any:
    """function(tokens, *others) on every device's own tokens, [B, T, ...] there and [...] here.

    `tokens` are arrays with what fills the rows that a mesh needs more of; `others` are arrays with
    where they lie.
    """
    spec = PartitionSpec(placed.batch or None, placed.length or None, None)
    arrays, specs = zip(*others, strict=True) if others else ((), ())
    mapped = jax.shard_map(
        function,
        in_specs=((spec,) * len(tokens), *specs),
        out_specs=spec,
        axis_names=frozenset(placed.sizes),
        check_vma=False,
    )
    found = mapped(tuple(_divisible(_rows(a), placed, fill) for a, fill in tokens), *arrays)
    lead = tokens[0][0].shape[:-1]
    B, T, _ = _rows(tokens[0][0]).shape
    return jax.tree.map(lambda a: a[:B, :T].reshape(*lead, -1), found)


def placement() -> Placement | None:
    """How the mesh and the rules of `zoo.sharding.use` place experts; None outside of it."""
    rules, sizes = mesh_in_force()
    if not sizes:
        return None
    batch, length = map(as_tuple, partition_spec(("batch", "length"), rules))
    cut = tuple(partition_spec(names, rules) for names in WEIGHTS)
    owners = as_tuple(cut[0][0])
    batch += tuple(a for a in owners if a not in batch + length)
    hidden = tuple(a for a in as_tuple(cut[0][2]) if a not in batch + length)
    biases = tuple(partition_spec(names, rules) for names in BIASES)
    return Placement(batch, length, owners, hidden, sizes, cut, biases)


def _rows(x: jax.Array) -> jax.Array:
    """[..., D] -> [B, T, D]."""
    return x.reshape(x.shape[0] if x.ndim > 1 else 1, -1, x.shape[-1])


def _divisible(x: jax.Array, placed: Placement, fill: int) -> jax.Array:
    """x[B, T, D] with rows and columns of `fill` up to what the mesh divides."""
    missing = [
        -n % placed.devices(axes)
        for n, axes in zip(x.shape, (placed.batch, placed.length), strict=False)
    ]
    if not any(missing):
        return x
    return jnp.pad(x, [*((0, n) for n in missing), (0, 0)], constant_values=fill)


def _local(placed: Placement, how: dict, tokens: Arrays, weights: Arrays, biases: Arrays | None):
    """What one device does: its own part of everything comes in and goes out."""
    shape = tokens[0].shape
    flat = tuple(a.reshape(-1, a.shape[-1]) for a in tokens)
    weights = _gathered(weights, placed.weights, WEIGHTS, placed)
    if biases is not None:
        biases = _gathered(biases, placed.biases, BIASES, placed)
        if placed.hidden:  # the sum at the end must count the last of them once
            first = lax.axis_index(placed.hidden) == 0
            biases = (*biases[:2], jnp.where(first, biases[2], 0))
    size = placed.devices(placed.owners)
    if size == 1:
        y = grouped.expert_mlp(*flat, *weights, biases=biases, **how)
    else:
        others = tuple(axis for axis in placed.sizes if axis not in placed.owners)
        y = owners.expert_mlp(Owners(placed.owners, others, size, **how), *flat, weights, biases)
    if placed.hidden:
        y = lax.psum(y, placed.hidden)
    return y.reshape(shape)


def _gathered(arrays: Arrays, specs, names, placed: Placement) -> Arrays:
    """Weights with all of D, and all of F but for what `placed.hidden` cuts."""

    def whole(w: jax.Array, spec: PartitionSpec, logical: tuple[str, ...]) -> jax.Array:
        for i, (axes, name) in enumerate(zip(spec, logical, strict=True)):
            kept = {"experts": placed.owners, "mlp": placed.hidden}.get(name, ())
            axes = tuple(a for a in as_tuple(axes) if a not in kept)
            w = lax.all_gather(cut_out(w), axes, axis=i, tiled=True) if axes else w
        return w

    return tuple(map(whole, arrays, specs, names))
