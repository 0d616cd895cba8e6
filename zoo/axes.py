"""Logical axes to mesh axes: what `zoo.sharding` and the core share.

A table of rules is read in order: where two of its names meet in one array and share a mesh axis,
the earlier one has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec

Axes = str | tuple[str, ...] | None
Rules = Mapping[str, Axes]


def partition_spec(logical: Sequence[str | None], rules: Rules) -> PartitionSpec:
    """Mesh axes of an array from its logical ones, by the first rule that asks for each."""
    found: dict[str, Axes] = {}
    taken: set[str] = set()
    for name, axes in rules.items():
        if name in logical and not taken & set(as_tuple(axes)):
            found[name] = axes
            taken.update(as_tuple(axes))
    return PartitionSpec(*(found.get(name) for name in logical))


def rules_in_force() -> tuple[tuple[str, Axes], ...]:
    """Those of `zoo.sharding.use`, to be a static argument of a program: others are another one."""
    return tuple(nn.get_logical_axis_rules())


def as_tuple(axes: Axes) -> tuple[str, ...]:
    """What a rule maps to, as names: of none, one or several mesh axes."""
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def unboxed(tree: Any) -> Any:
    """Parameters, or their shapes, without names; flax's own `unbox` would move them to a mesh."""
    is_box = lambda x: isinstance(x, nn.Partitioned)  # noqa: E731
    return jax.tree.map(lambda x: x.value if is_box(x) else x, tree, is_leaf=is_box)
