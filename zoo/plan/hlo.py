"""What a compiled program does, read from its text: products, collectives and kernels.

XLA's own cost analysis counts the body of a loop once. Here every computation counts as often as it
runs, loops by their trip counts, so that a scanned stack costs what it costs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from zoo.plan import cycles
from zoo.plan.instructions import (
    SHAPE,
    Instruction,
    bytes_of,
    dims_of,
    fused_in,
    operand_shape,
    parse,
    runs_of,
    split,
)

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip

GROUPED = ("gmm", "tgmm")
"""Kernels of products of rows by expert, which say what they cost."""

_SCATTERS = "all-reduce-scatter"
"""Names a TPU's fusion of a sum of which each device keeps its part, and of nothing else."""

_STATED = re.compile(r'"cost_estimate":\{"flops":"(\d+)"')


@dataclass(frozen=True)
class Collective:
    """One kind over one set of mesh axes: `calls`, and `bytes` that a device puts in or gets out.

    `bytes` is the larger of what goes in and what comes out, over all calls of the program; of
    ragged rows the smaller, of which there cannot be more.
    `size` is the number of devices that take part together. Of the bytes, `alone` are those of
    calls that a compiled program waits for; the others move beside its work.
    """

    kind: str
    axes: tuple[str, ...]
    size: int
    calls: int
    bytes: int
    alone: int = 0

    @property
    def sent(self) -> float:
        """Bytes that a device sends in a ring: a gather passes all but one part on, a reduction
        does that twice (scatter, then gather)."""
        if self.kind in ("collective-permute", "collective-broadcast"):
            return float(self.bytes)
        rounds = 2 if self.kind == "all-reduce" else 1
        return rounds * self.bytes * (self.size - 1) / max(self.size, 1)


@dataclass
class Counted:
    """A program: operations in products (per device), collectives, calls of kernels by name.

    Kernels that state their operations (grouped products) are among the products, others not.
    `stated` are those of grouped products, `attended` what attention kernels would do if they
    skipped nothing, `given` the bytes that go into other kernels, by parts of the model, and
    `cycles` what the compiler expects of all else that keeps cores busy.
    """

    flops: float = 0.0
    collectives: list[Collective] = field(default_factory=list)
    kernels: dict[str, int] = field(default_factory=dict)
    stated: float = 0.0
    attended: float = 0.0
    given: cycles.Parts = field(default_factory=dict)
    cycles: cycles.Parts = field(default_factory=dict)


def count(text: str, mesh: Sequence[tuple[str, int]] = ()) -> Counted:
    """Counts a compiled program's text (`compiled.as_text()`).

    Args:
        text: optimised HLO, of one device of a partitioned program.
        mesh: names and sizes of the mesh's axes, in its order of devices; names collectives' axes.
    """
    computations, entry = parse(text)
    runs, fused = runs_of(computations, entry), fused_in(computations)
    found, totals, known = Counted(cycles=cycles.by_part(computations, runs)), {}, {}
    for name, instructions in computations.items():
        times = runs.get(name, 0)
        if not times:
            continue
        shapes = {i.name: i.shape for i in instructions}
        for one in instructions:
            found.flops += times * _flops(one, shapes)
            if (kernel := _kernel(one)) is not None:
                found.kernels[kernel] = found.kernels.get(kernel, 0) + times
                _add_kernel(found, kernel, one, times, shapes)
            if (kind := _kind(one, name)) is not None and _is_new(one, name, known):
                axes, size = _axes(one.attributes, mesh)
                if mesh and size == 1:  # what each device sends to itself
                    continue
                calls, total, alone = totals.get((kind, axes, size), (0, 0, 0))
                moved = times * _moved(one, shapes)
                alone += moved if _waits(one, name, fused) else 0
                totals[kind, axes, size] = calls + times, total + moved, alone
    found.collectives = [Collective(*key, *value) for key, value in sorted(totals.items())]
    return found


def _add_kernel(found: Counted, kernel: str, one: Instruction, times: int, shapes: dict) -> None:
    if kernel in GROUPED:
        found.stated += times * _stated(one)
    elif kernel.startswith("splash"):
        found.attended += times * cycles.attended(kernel, one, shapes)
    else:
        part = cycles.part(one, True)
        inputs = sum(bytes_of(operand_shape(o, shapes)) for o in split(one.operands))
        found.given[part] = found.given.get(part, 0) + times * inputs


def _flops(one: Instruction, shapes: dict[str, str]) -> float:
    """Of a product, or what a kernel says that it costs, if it does."""
    if stated := _stated(one):
        return stated
    if one.opcode not in ("dot", "convolution"):
        return 0.0
    left, right = (dims_of(operand_shape(o, shapes)) for o in split(one.operands)[:2])
    out = dims_of(one.shape)
    if one.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
        depth = math.prod(left[int(d)] for d in contracted[1].split(",") if d) if contracted else 1
        return 2.0 * math.prod(out) * depth
    return _convolution(one.attributes, left, right, out)


def _stated(one: Instruction) -> float:
    found = _STATED.search(one.attributes)
    return float(found[1]) if found is not None else 0.0


def _convolution(attributes: str, left: list[int], right: list[int], out: list[int]) -> float:
    """Products of a convolution, without those that padding or dilation fills with zeros.

    TPUs express products of matrices as convolutions, and batches of them as spatial axes.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    window = dict(re.findall(r"(size|stride|pad|lhs_dilate|rhs_dilate)=([\dx_\-]+)", attributes))
    spatial = sorted(c for c in labels[1] if c.isdigit())

    def entry(key: str, axis: int, default: str) -> str:
        return window[key].split("x")[axis] if key in window else default

    total = 2.0 * right[labels[2].index("i")] * right[labels[2].index("o")]
    total *= out[labels[3].index("b")]
    for axis, name in enumerate(spatial):
        low = int(entry("pad", axis, "0_0").split("_")[0])
        total *= _valid(
            left[labels[1].index(name)], right[labels[2].index(name)], out[labels[3].index(name)],
            int(entry("stride", axis, "1")), low,
            int(entry("lhs_dilate", axis, "1")), int(entry("rhs_dilate", axis, "1")),
        )  # fmt: skip
    return total


def _valid(size, kernel, out, stride, low, dilate, kernel_dilate) -> int:
    """Pairs of a position of the kernel and one of the output that meet an element of the input."""
    at = np.arange(out)[:, None] * stride + np.arange(kernel) * kernel_dilate - low
    return int(((at >= 0) & (at <= (size - 1) * dilate) & (at % dilate == 0)).sum())


def _kernel(one: Instruction) -> str | None:
    """The name of a Pallas kernel, which XLA names its call by."""
    kernel = one.opcode == "custom-call" and "tpu_custom_call" in one.attributes
    return re.sub(r"[.\d]+$", "", one.name) if kernel else None


def _kind(one: Instruction, computation: str) -> str | None:
    opcode = one.opcode.removesuffix("-start")
    if opcode not in COLLECTIVES:
        return None
    if opcode == "all-reduce" and _SCATTERS in computation:
        return "reduce-scatter"
    return opcode


def _waits(one: Instruction, computation: str, fused: set[str]) -> bool:
    """Whether nothing runs meanwhile, neither what follows a start nor what shares a fusion."""
    alone = computation not in fused or _SCATTERS in computation
    return alone and not one.opcode.endswith("-start")


def _is_new(one: Instruction, computation: str, known: dict[tuple, str]) -> bool:
    """TPUs run one collective beside several fusions, each of which names it: by its channel, by
    what it was in the program, and by its shape. Keys and values that go around a ring share all
    three too, but stand in one computation. Those that XLA joins have the first channel, and were
    nothing in the program."""
    channel = re.search(r"channel_id=(\d+)", one.attributes)
    named = re.search(r'op_name="[^"]*"', one.attributes)
    if channel is None or (channel[1] == "1" and named is None):
        return True
    key = channel[0], named and named[0], tuple(SHAPE.findall(one.shape))
    return known.setdefault(key, computation) == computation


def _moved(one: Instruction, shapes: dict[str, str]) -> int:
    """Bytes of a collective: of its largest side. What ragged rows come from and go to may be
    buffers for more than there can be; the smaller one is the most that moves."""
    sides = [bytes_of(operand_shape(o, shapes)) for o in split(one.operands)]
    if one.opcode.startswith("ragged-all-to-all"):
        return min(sides[:2])
    inputs = sum(sides)
    output = bytes_of(one.shape)
    if one.opcode.endswith("-start") and one.shape.startswith("("):
        output -= inputs  # a start returns what went in, too
    return max(inputs, output)


def _axes(attributes: str, mesh: Sequence[tuple[str, int]]) -> tuple[tuple[str, ...], int]:
    """Mesh axes along which the devices of a group differ, and how many devices a group has."""
    group = _group(attributes)
    sizes = [size for _, size in mesh]
    if group is None:
        return tuple(n for n, size in mesh if size > 1), math.prod(sizes)
    if not mesh or max(group) >= math.prod(sizes):
        return (), len(group)
    places = np.array(np.unravel_index(group, sizes))
    axes = tuple(n for (n, _), row in zip(mesh, places, strict=True) if len(set(row)) > 1)
    return axes, len(group)


def _group(attributes: str) -> list[int] | None:
    """The first group of devices; None is all of them together. Of pairs, the first of two.

    Groups are lists; or an iota of devices, reshaped and transposed; or axes of a mesh, which has
    such an iota of its own.
    """
    meshed = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\((\[[\d,]+\](?:T\([\d,]+\))?)\))? "
        r"?\{([^}]*)\}",
        attributes,
    )
    if meshed is not None:
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", meshed[1])}
        devices = np.arange(math.prod(sizes.values()))
        devices = (_iota(meshed[2]) if meshed[2] else devices).reshape(tuple(sizes.values()))
        inside = [name in re.findall(r"'(\w+)'", meshed[3]) for name in sizes]
        return devices[tuple(slice(None) if yes else 0 for yes in inside)].reshape(-1).tolist()
    listed = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
    if listed is not None:
        return [int(d) for d in listed[1].split(",")]
    iota = re.search(r"replica_groups=\[(\d+),(\d+)\]<=(\[[\d,]+\](?:T\([\d,]+\))?)", attributes)
    if iota is not None:
        return _iota(iota[3]).reshape(int(iota[1]), int(iota[2]))[0].tolist()
    pairs = re.search(r"source_target_pairs=\{([\d,{}]+)\}", attributes)
    if pairs is None:
        return None
    ways = [[int(a), int(b)] for a, b in re.findall(r"(\d+),(\d+)", pairs[1])]
    return next((way for way in ways if way[0] != way[1]), ways[0][:1])


def _iota(text: str) -> np.ndarray:
    """[4,2]T(1,0): so many numbers in order, in this shape, with these axes swapped."""
    sizes, axes = (re.findall(r"\d+", part) for part in text.partition("T")[::2])
    dims = [int(n) for n in sizes]
    found = np.arange(math.prod(dims)).reshape(dims)
    return found.transpose([int(n) for n in axes]) if axes else found
