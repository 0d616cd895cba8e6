"""Logical axes to mesh axes: what `zoo.sharding` and the core share.

A table of rules is read in order: where two of its names meet in one array and share a mesh axis,
the earlier one has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import AxisType, PartitionSpec

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


def mesh_in_force() -> tuple[Rules, dict[str, int]]:
    """The rules of `zoo.sharding.use`, of axes that cut, and the sizes of those of its mesh that no
    `shard_map` around has; no sizes outside of it or on one device."""
    mesh, rules = jax.sharding.get_abstract_mesh(), dict(nn.get_logical_axis_rules())
    if mesh.empty or mesh.size == 1 or not rules:
        return {}, {}
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    sizes = {name: mesh.shape[name] for name, kind in kinds if kind != AxisType.Manual}
    used = {name for name, size in sizes.items() if size > 1}
    return {k: tuple(a for a in as_tuple(v) if a in used) for k, v in rules.items()}, sizes


def as_tuple(axes: Axes) -> tuple[str, ...]:
    """What a rule maps to, as names: of none, one or several mesh axes."""
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)


def unboxed(tree: Any) -> Any:
    """Parameters, or their shapes, without names; flax's own `unbox` would move them to a mesh."""
    is_box = lambda x: isinstance(x, nn.Partitioned)  # noqa: E731
    return jax.tree.map(lambda x: x.value if is_box(x) else x, tree, is_leaf=is_box)
