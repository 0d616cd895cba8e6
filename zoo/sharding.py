"""Named meshes and the rules that lay logical axes onto them.

Parameters and activations carry logical axis names (`embed`, `heads`, `experts`, `batch`, ...). A
rule table maps each to a mesh axis, to several, or to None, and `shardings` turns that into one
`NamedSharding` per parameter. Mesh axes: data fsdp expert tensor context stage.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from zoo.config import Config
from zoo.decoder import Decoder

AXES = ("data", "fsdp", "expert", "tensor", "context", "stage")

Rules = Mapping[str, str | tuple[str, ...] | None]

LOGICAL_AXES = (
    "vocab", "embed", "heads", "kv_heads", "head_dim", "mlp", "experts", "rank", "layers", "norm",
    "batch", "length", "act_embed", "act_heads", "act_mlp", "act_experts",
)  # fmt: skip

FSDP: Rules = {"batch": ("data", "fsdp"), "embed": "fsdp"}
"""Batches over data and fsdp, parameters over fsdp by their embedding axis."""


def make_mesh(spec: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh from "data=2,fsdp=-1": sizes multiply to the devices, -1 fills, absent axes are 1.

    Raises:
        ValueError: an unknown or repeated axis, a size that is no number, or sizes that do not fit.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes: dict[str, int] = {}
    for part in filter(None, (p.strip() for p in spec.split(","))):
        name, _, size = part.partition("=")
        if name not in AXES:
            raise ValueError(f"mesh {spec!r}: unknown axis {name!r}; axes are {', '.join(AXES)}")
        if name in sizes:
            raise ValueError(f"mesh {spec!r}: axis {name!r} is named twice")
        if not size.lstrip("-").isdigit() or (int(size) < 1 and int(size) != -1):
            raise ValueError(f"mesh {spec!r}: {part!r} needs a positive size, or -1 to fill")
        sizes[name] = int(size)
    filling = [name for name, size in sizes.items() if size == -1]
    if len(filling) > 1:
        raise ValueError(f"mesh {spec!r}: only one axis can be -1, not {' and '.join(filling)}")
    fixed = math.prod(size for size in sizes.values() if size != -1)
    if filling:
        sizes[filling[0]] = len(devices) // fixed
    if math.prod(sizes.values()) != len(devices):
        raise ValueError(
            f"mesh {spec!r} holds {fixed} device(s){' times -1' if filling else ''}, but there are "
            f"{len(devices)}: make the sizes multiply to {len(devices)}"
        )
    shape = tuple(sizes.get(name, 1) for name in AXES)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def logical_axes(cfg: Config) -> dict:
    """A `PartitionSpec` of logical names per parameter, in the shape of `Decoder(cfg).init`."""
    return nn.get_partition_spec(_boxed_shapes(cfg))


def shardings(cfg: Config, mesh: Mesh, rules: Rules | None = None) -> dict:
    """A `NamedSharding` per parameter, in the shape of `Decoder(cfg).init`.

    Raises:
        ValueError: a rule for an unknown axis, or a dimension that its mesh axes do not divide.
    """
    rules = FSDP if rules is None else rules
    _check_rules(rules, mesh)
    shapes = nn.meta.unbox(_boxed_shapes(cfg))

    def place(path, logical: PartitionSpec, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        spec = PartitionSpec(*(rules.get(name) for name in logical))
        for size, name, axes in zip(leaf.shape, logical, spec, strict=False):
            parts = math.prod(mesh.shape[a] for a in _as_tuple(axes))
            if size % parts:
                raise ValueError(
                    f"{jax.tree_util.keystr(path)}: {name}={size} does not divide by {parts}, the "
                    f"size of mesh axes {axes}: choose a divisor, or map {name!r} to None"
                )
        return NamedSharding(mesh, spec)

    is_spec = lambda x: isinstance(x, PartitionSpec)  # noqa: E731
    return jax.tree_util.tree_map_with_path(place, logical_axes(cfg), shapes, is_leaf=is_spec)


def activation_rules(rules: Rules | None = None) -> list[tuple[str, str | tuple[str, ...] | None]]:
    """The same rules for `flax.linen.logical_axis_rules`, every logical axis named."""
    rules = FSDP if rules is None else rules
    return [(name, rules.get(name)) for name in LOGICAL_AXES]


def _boxed_shapes(cfg: Config) -> dict:
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return jax.eval_shape(Decoder(cfg).boxed_init, jax.random.key(0), tokens)


def _check_rules(rules: Rules, mesh: Mesh) -> None:
    for name, axes in rules.items():
        if name not in LOGICAL_AXES:
            raise ValueError(
                f"rules: unknown logical axis {name!r}; axes are {', '.join(LOGICAL_AXES)}"
            )
        for axis in _as_tuple(axes):
            if axis not in mesh.shape:
                raise ValueError(
                    f"rules: {name!r} maps to {axis!r}, which the mesh lacks: it has "
                    f"{', '.join(mesh.shape)}"
                )


def _as_tuple(axes: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
