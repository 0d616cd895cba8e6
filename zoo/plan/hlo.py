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

COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip

_BITS = {"pred": 8, "token": 0, "opaque": 0}
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) .*->.*\{$")
_CALLS = re.compile(
    r"\b(calls|to_apply|body|condition|branch_computations|true_computation|false_computation)="
    r"(?:\{([^}]*)\}|(%?[\w.\-]+))"
)
_NAMED = re.compile(r"\s+(ROOT )?%?[\w.\-]+ = ")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_STATED = re.compile(r'"cost_estimate":\{"flops":"(\d+)"')
_SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\]")


@dataclass(frozen=True)
class Collective:
    """One kind over one set of mesh axes: `calls`, and `bytes` that a device puts in or gets out.

    `bytes` is the larger of what goes in and what comes out, over all calls of the program.
    `size` is the number of devices that take part together.
    """

    kind: str
    axes: tuple[str, ...]
    size: int
    calls: int
    bytes: int

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
    """

    flops: float = 0.0
    collectives: list[Collective] = field(default_factory=list)
    kernels: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: str
    attributes: str
    root: bool = False


def count(text: str, mesh: Sequence[tuple[str, int]] = ()) -> Counted:
    """Counts a compiled program's text (`compiled.as_text()`).

    Args:
        text: optimised HLO, of one device of a partitioned program.
        mesh: names and sizes of the mesh's axes, in its order of devices; names collectives' axes.
    """
    computations, entry = _parse(text)
    runs = _runs(computations, entry)
    found, totals, known = Counted(), {}, {}
    for name, instructions in computations.items():
        times = runs.get(name, 0)
        if not times:
            continue
        shapes = {i.name: i.shape for i in instructions}
        for one in instructions:
            found.flops += times * _flops(one, shapes)
            if (kernel := _kernel(one)) is not None:
                found.kernels[kernel] = found.kernels.get(kernel, 0) + times
            if (kind := _kind(one, name)) is not None and _is_new(one, name, known):
                axes, size = _axes(one.attributes, mesh)
                if mesh and size == 1:  # what each device sends to itself
                    continue
                calls, moved = totals.get((kind, axes, size), (0, 0))
                moved += times * _moved(one, shapes)
                totals[kind, axes, size] = calls + times, moved
    found.collectives = [Collective(*key, *value) for key, value in sorted(totals.items())]
    return found


def _parse(text: str) -> tuple[dict[str, list[_Instruction]], str]:
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if current is None:
            if (header := _HEADER.match(line)) is not None:
                current = computations.setdefault(header[2], [])
                entry = header[2] if header[1] else entry
        elif line.rstrip() == "}":
            current = None
        elif _NAMED.match(line):  # what kernels say of themselves may take further lines
            current.append(_instruction(line))
    return computations, entry


def _instruction(line: str) -> _Instruction:
    name, _, rest = line.strip().removeprefix("ROOT ").partition(" = ")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    stop = _closing(rest, start)
    operands, attributes = rest[start + 1 : stop], rest[stop + 1 :]
    root = line.lstrip().startswith("ROOT ")
    return _Instruction(name.lstrip("%"), shape, rest[:start], operands, attributes, root)


def _closing(text: str, start: int) -> int:
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if not depth:
            return i
    return len(text)


def _runs(computations: dict[str, list[_Instruction]], entry: str) -> dict[str, int]:
    """How often each computation runs. Callers stand behind what they call, so last comes first."""
    runs = {entry: 1}
    for name in reversed(list(computations)):
        for one in computations[name]:
            for group in _CALLS.finditer(one.attributes):
                times = _trips(one, computations) if group[1] == "body" else 1
                for callee in re.findall(r"[\w.\-]+", group[2] or group[3]):
                    runs[callee] = runs.get(callee, 0) + times * runs.get(name, 0)
    return runs


def _trips(loop: _Instruction, computations: dict[str, list[_Instruction]]) -> int:
    """Of a while loop: what XLA knows, else its bound over the step of its counter, else 1."""
    if (known := _TRIPS.search(loop.attributes)) is not None:
        return int(known[1])
    condition = computations.get(_called(loop, "condition"), [])
    bounds = [int(i.operands) for i in condition if i.opcode == "constant" and i.operands.isdigit()]
    if len(bounds) != 1:
        return 1
    counter = next((i for i in condition if i.opcode == "get-tuple-element"), None)
    body = _called(loop, "body")
    step = None if counter is None else _added(_index(counter), body, computations, {})
    return -(-bounds[0] // (step or 1))


def _called(one: _Instruction, role: str) -> str:
    found = re.search(rf"\b{role}=%?([\w.\-]+)", one.attributes)
    return "" if found is None else found[1]


def _index(one: _Instruction) -> int:
    found = re.search(r"\bindex=(\d+)", one.attributes)
    return int(found[1]) if found is not None else 0


def _added(index: int, computation: str, computations: dict, given: dict[int, int]) -> int | None:
    """The constant in the sum that a computation returns as its element `index`, if it is one.

    `given` has the constants among its parameters. Loops that XLA unrolled count by more than one.
    """
    inside = {one.name: one for one in computations.get(computation, [])}
    root = next((one for one in inside.values() if one.root), None)
    if root is None:
        return None
    names = [name.split()[-1].lstrip("%") for name in _split(root.operands)]
    one = inside.get(names[index]) if root.opcode == "tuple" and index < len(names) else root
    if one is not None and one.opcode == "get-tuple-element":
        index, one = _index(one), inside.get(one.operands.strip().lstrip("%"))
    if one is None:
        return None

    def constant(name: str) -> int | None:
        found = inside.get(name.split()[-1].lstrip("%"))
        if found is not None and found.opcode == "parameter":
            return given.get(int(found.operands))
        number = found is not None and found.opcode == "constant" and found.operands.isdigit()
        return int(found.operands) if number else None

    values = [constant(name) for name in _split(one.operands) if name.strip()]
    if one.opcode == "fusion":
        known = {i: value for i, value in enumerate(values) if value is not None}
        return _added(index, _called(one, "calls"), computations, known)
    return next((value for value in values if value), None) if one.opcode == "add" else None


def _flops(one: _Instruction, shapes: dict[str, str]) -> float:
    """Of a product, or what a kernel says that it costs, if it does."""
    if (stated := _STATED.search(one.attributes)) is not None:
        return float(stated[1])
    if one.opcode not in ("dot", "convolution"):
        return 0.0
    left, right = (_sizes(_operand(o, shapes)) for o in _split(one.operands)[:2])
    out = _sizes(one.shape)
    if one.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", one.attributes)
        depth = math.prod(left[int(d)] for d in contracted[1].split(",") if d) if contracted else 1
        return 2.0 * math.prod(out) * depth
    return _convolution(one.attributes, left, right, out)


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


def _kernel(one: _Instruction) -> str | None:
    """The name of a Pallas kernel, which XLA names its call by."""
    kernel = one.opcode == "custom-call" and "tpu_custom_call" in one.attributes
    return re.sub(r"[.\d]+$", "", one.name) if kernel else None


def _kind(one: _Instruction, computation: str) -> str | None:
    opcode = one.opcode.removesuffix("-start")
    if opcode not in COLLECTIVES:
        return None
    if opcode == "all-reduce" and "all-reduce-scatter" in computation:
        return "reduce-scatter"  # a TPU fusion: of the sum, each device keeps its part
    return opcode


def _is_new(one: _Instruction, computation: str, known: dict[tuple, str]) -> bool:
    """TPUs run one collective beside several fusions, each of which names it: by its channel, by
    what it was in the program, and by its shape. Keys and values that go around a ring share all
    three too, but stand in one computation. Those that XLA joins have the first channel, and were
    nothing in the program."""
    channel = re.search(r"channel_id=(\d+)", one.attributes)
    named = re.search(r'op_name="[^"]*"', one.attributes)
    if channel is None or (channel[1] == "1" and named is None):
        return True
    key = channel[0], named and named[0], tuple(_SHAPE.findall(one.shape))
    return known.setdefault(key, computation) == computation


def _moved(one: _Instruction, shapes: dict[str, str]) -> int:
    """Bytes of a collective: of its largest side."""
    inputs = sum(_bytes(_operand(o, shapes)) for o in _split(one.operands))
    output = _bytes(one.shape)
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


def _operand(text: str, shapes: dict[str, str]) -> str:
    """The shape of an operand, which the text names, or spells out before the name."""
    found = _SHAPE.search(text)
    return text if found is not None else shapes.get(text.strip().lstrip("%"), "")


def _split(operands: str) -> list[str]:
    """At the commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(operands):
        depth += (c in "([{") - (c in ")]}")
        if c == "," and not depth:
            parts.append(operands[start:i])
            start = i + 1
    return [*parts, operands[start:]]


def _sizes(shape: str) -> list[int]:
    found = _SHAPE.search(shape)
    return [int(n) for n in found[2].split(",") if n] if found is not None else []


def _bytes(shape: str) -> int:
    total = 0
    for kind, sizes in _SHAPE.findall(shape):
        bits = _BITS.get(kind)
        if bits is None:
            digits = re.search(r"\d+", kind)
            bits = int(digits[0]) if digits else 8
        total += math.prod(int(n) for n in sizes.split(",") if n) * bits // 8
    return total
