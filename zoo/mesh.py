"""Meshes from strings: which axes there are, how large, and which go from slice to slice."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax.experimental.mesh_utils import create_device_mesh, create_hybrid_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh

AXES = ("data", "fsdp", "expert", "tensor", "context", "stage")

MOST_DEVICES = 2**31 - 1

ACROSS_SLICES = ("data", "stage", "fsdp")
"""Axes that move least per step: gradients, activations between stages, weights; in this order."""


def make_mesh(spec: str, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh from "data=2,fsdp=-1": sizes multiply to the devices, -1 fills, absent axes are 1.

    Over several slices, which only slow links join, one of `ACROSS_SLICES` goes from slice to slice
    and all other axes stay within one; or those go that say so: "data=2,fsdp=2x8" is data within a
    slice and fsdp over two slices with eight devices of each. Together the numbers before an x
    multiply to the slices; on a single slice they are sizes like others.

    Raises:
        ValueError: an unknown or repeated axis, a size that is no number, or sizes that do not fit.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes, across = _sizes_of(spec, len(devices))
    types = (AxisType.Auto,) * len(AXES)
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    # An axis may lie on a part of a torus' axis: 32 x 8 on a slice of 16 x 16.
    split = dict(allow_split_physical_axes=True)
    if slices == 1:
        placed = create_device_mesh(tuple(sizes.values()), devices, **split)
        return Mesh(placed, AXES, axis_types=types)
    outer = _across_slices(spec, sizes, across, slices)
    inner = tuple(size // n for size, n in zip(sizes.values(), outer, strict=True))
    return Mesh(create_hybrid_device_mesh(inner, outer, devices, **split), AXES, axis_types=types)


def _across_slices(
    spec: str, sizes: dict[str, int], across: dict[str, int], slices: int
) -> tuple[int, ...]:
    """How many slices each axis goes over: as `across` says, or else the first that can."""
    if across:
        if math.prod(across.values()) != slices:
            factors = " and ".join(f"{name}={n}x" for name, n in across.items())
            raise ValueError(
                f"mesh {spec!r} is over {slices} slices: the numbers before an x ({factors}) are "
                f"to multiply to {slices}"
            )
        return tuple(across.get(name, 1) for name in AXES)
    axis = next((a for a in ACROSS_SLICES if sizes[a] % slices == 0), None)
    if axis is None:
        raise ValueError(
            f"mesh {spec!r} is over {slices} slices: make one of {', '.join(ACROSS_SLICES)} a "
            f"multiple of {slices}, since the other axes are too much for the links between them; "
            f"or say which axes go across, as in 'fsdp={slices}x...'"
        )
    return tuple(slices if name == axis else 1 for name in AXES)


def across_slices(spec: str, devices: int, slices: int) -> dict[str, int]:
    """Over how many slices `make_mesh` lays each axis that goes from slice to slice.

    Raises:
        ValueError: as `make_mesh`.
    """
    sizes, across = _sizes_of(spec, devices)
    if slices == 1:
        return {}
    outer = zip(AXES, _across_slices(spec, sizes, across, slices), strict=True)
    return {name: count for name, count in outer if count > 1}


def abstract_mesh(spec: str) -> AbstractMesh:
    """A mesh of no devices, for `shardings` of more of them than there are; no size is -1.

    Raises:
        ValueError: as `make_mesh`.
    """
    sizes = mesh_sizes(spec)
    return AbstractMesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_sizes(spec: str, devices: int | None = None) -> dict[str, int]:
    """The size of every axis of "data=2,fsdp=-1", in the order of `AXES`.

    Args:
        spec: as for `make_mesh`.
        devices: what the sizes must multiply to; None is whatever they do.

    Raises:
        ValueError: as `make_mesh`.
    """
    return _sizes_of(spec, devices)[0]


def _sizes_of(spec: str, devices: int | None) -> tuple[dict[str, int], dict[str, int]]:
    """The size of every axis, and how often each goes across slices where the spec says."""
    sizes: dict[str, int] = {}
    across: dict[str, int] = {}
    for part in filter(None, (p.strip() for p in spec.split(","))):
        name, _, size = part.partition("=")
        outer, times, inner = size.rpartition("x")
        if name not in AXES:
            raise ValueError(f"mesh {spec!r}: unknown axis {name!r}; axes are {', '.join(AXES)}")
        if name in sizes:
            raise ValueError(f"mesh {spec!r}: axis {name!r} is named twice")
        if not _is_size(inner) or (times and (not _is_size(outer) or outer == "-1")):
            raise ValueError(
                f"mesh {spec!r}: {part!r} needs a positive size, or -1 to fill; or slices x size"
            )
        sizes[name] = int(inner)
        if times:
            across[name] = int(outer)
    filling = [name for name, size in sizes.items() if size == -1]
    if len(filling) > 1:
        raise ValueError(f"mesh {spec!r}: only one axis can be -1, not {' and '.join(filling)}")
    sizes = {name: size * across.get(name, 1) for name, size in sizes.items()}
    fixed = abs(math.prod(sizes.values()))
    if filling and devices is None:
        raise ValueError(f"mesh {spec!r}: say how many devices {filling[0]} has, instead of -1")
    if filling:
        sizes[filling[0]] = devices // fixed * across.get(filling[0], 1)
    if devices is not None and math.prod(sizes.values()) != devices:
        raise ValueError(
            f"mesh {spec!r} holds {fixed} device(s){' times -1' if filling else ''}, but there are "
            f"{devices}: make the sizes multiply to {devices}"
        )
    if math.prod(sizes.values()) > MOST_DEVICES:
        raise ValueError(
            f"mesh {spec!r} would be over {math.prod(sizes.values())} devices: JAX counts to "
            f"{MOST_DEVICES}, so make it smaller"
        )
    return {name: sizes.get(name, 1) for name in AXES}, across


def _is_size(text: str) -> bool:
    return text == "-1" or (text.isdecimal() and int(text) > 0)
