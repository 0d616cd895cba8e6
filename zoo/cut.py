"""How a mesh cuts a batch of tokens and a matrix of the vocabulary, and work by every device on its
own part of both.

Axes: B batch, T positions, D embedding, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import PartitionSpec

from zoo.axes import as_tuple, mesh_in_force, partition_spec

Axes = tuple[str, ...]


class Cut(NamedTuple):
    """Mesh axes that cut B, T, D and V, and the sizes of all of a mesh; nothing without one."""

    batch: Axes = ()
    length: Axes = ()
    embed: Axes = ()
    vocab: Axes = ()
    sizes: tuple[tuple[str, int], ...] = ()

    def devices(self, axes: Axes) -> int:
        return math.prod(size for axis, size in self.sizes if axis in axes)

    @property
    def others(self) -> Axes:
        """Axes that cut tokens, but not D."""
        return tuple(axis for axis in self.batch + self.length if axis not in self.embed)

    def first(self, vocab: int) -> jax.Array | int:
        """The first token of this device's part of V, which has so many."""
        return jax.lax.axis_index(self.vocab) * vocab if self.vocab else 0

    def by_device(self, function: Callable, given: tuple, out: tuple | list) -> Callable:
        """The function by every device for its part, if there is a mesh.

        `given` has for each array the mesh axes that cut its own; `out` of one, or of several in a
        list.
        """
        if not self.sizes:
            return function
        names = frozenset(axis for axis, _ in self.sizes)
        comes = tuple(map(_spec, given))
        goes = tuple(map(_spec, out)) if isinstance(out, list) else _spec(out)
        return jax.shard_map(
            function, in_specs=comes, out_specs=goes, axis_names=names, check_vma=False
        )


def in_force(tokens: tuple[int, ...], embed: int, vocab: int) -> Cut:
    """Of tokens [B, T] and a matrix of D and V, by `zoo.sharding.use`.

    Nothing, so that all is left to XLA, where they are not cut evenly, or so that devices with the
    same tokens share D, or those with others V.
    """
    rules, sizes = mesh_in_force()
    if not sizes or len(tokens) != 2:
        return Cut()
    names = ("batch", "length"), ("embed", "vocab")
    axes = [as_tuple(a) for pair in names for a in partition_spec(pair, rules)]
    cut = Cut(*axes, tuple(sizes.items()))
    whole = zip((*tokens, embed, vocab), axes, strict=True)
    even = all(n % cut.devices(a) == 0 for n, a in whole)
    apart = {*cut.batch, *cut.length}
    return cut if even and apart >= set(cut.embed) and not apart & set(cut.vocab) else Cut()


def _spec(array: tuple[Axes, ...]) -> PartitionSpec:
    return PartitionSpec(*(axes or None for axes in array))


def over(reduce: Callable, x: jax.Array, axes: Axes) -> jax.Array:
    return reduce(x, axes) if axes else x
