"""Weight tables: which tensor on disk is which parameter, and how, in both directions.

A family's table is a tuple of rows, each *disk name pattern, parameter paths, op*:

    Row("model.layers.{l}.self_attn.q_proj.weight", "attn/q/w", Linear())
    Row("...kv_b_proj.weight", ("attn/k_up/w", "attn/v_up/w"), Split(-1, Linear()))

An op describes a tensor on disk as **views**: given an array with the disk's shape, it returns
views of the same memory shaped like the parameters. Reading copies from the views, writing copies
into them, so a table is invertible by construction and there is no second table that could
disagree. A further layout (fused, interleaved, already [in, out]) is one more op.

`{l}` is the layer and `{e}` the expert; `{m}` is the depth of a layer of multi-token prediction and
`{n}` its number when layers are counted on. Layers and experts are stacked: a parameter leads with
the repeats of its stack and, where the pattern has `{e}`, with the experts. A row applies where the
model has its parameters. Rows that share a parameter are alternatives: files are written by the
first, and read by the first whose names they have.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from zoo.config import Config
from zoo.hf.layout import shapes as layout_shapes

Shape = tuple[int, ...]


class Op(Protocol):
    """How one tensor on disk holds one or more parameters."""

    def disk(self, shapes: tuple[Shape, ...]) -> Shape:
        """The shape on disk of a tensor that holds parameters of these shapes."""

    def views(self, disk: np.ndarray, shapes: tuple[Shape, ...]) -> tuple[np.ndarray, ...]:
        """The parameters as views of `disk`, a contiguous array; every element in exactly one."""


@dataclass(frozen=True)
class Same:
    """The parameter's own shape: norms and embeddings."""

    def disk(self, shapes):
        return shapes[0]

    def views(self, disk, shapes):
        return (disk,)


@dataclass(frozen=True)
class Flat:
    """All axes joined into one: biases of heads, [N, H] here and [N*H] on disk."""

    def disk(self, shapes):
        return (math.prod(shapes[0]),)

    def views(self, disk, shapes):
        return (disk.reshape(shapes[0]),)


@dataclass(frozen=True)
class Shaped:
    """One axis more or less on disk, of size 1: [E] here and [1, E] there."""

    shape: tuple[int | None, ...]

    def disk(self, shapes):
        """`shape`, with None standing for the parameter's axes in turn."""
        sizes = iter(shapes[0])
        return tuple(next(sizes) if n is None else n for n in self.shape)

    def views(self, disk, shapes):
        return (disk.reshape(shapes[0]),)


@dataclass(frozen=True)
class Linear:
    """A matrix [*ins, *outs] here, [outs, ins] on disk; the first `ins` axes are inputs.

    `lead` axes before them, of experts for one, are the same in both.
    """

    ins: int = 1
    lead: int = 0

    def disk(self, shapes):
        lead, ins, outs = self._parts(shapes)
        return (*lead, math.prod(outs), math.prod(ins))

    def views(self, disk, shapes):
        lead, ins, outs = self._parts(shapes)
        first = len(lead)
        middle = first + len(outs)
        back = (*range(first), *range(middle, middle + len(ins)), *range(first, middle))
        return (disk.reshape(lead + outs + ins).transpose(back),)

    def _parts(self, shapes):
        shape, start = shapes[0], self.lead
        return shape[:start], shape[start : start + self.ins], shape[start + self.ins :]


@dataclass(frozen=True)
class Split:
    """Parameters side by side along `axis` (of a parameter), held as one by `inner`."""

    axis: int
    inner: Op

    def disk(self, shapes):
        return self.inner.disk((self._joined(shapes),))

    def views(self, disk, shapes):
        (whole,) = self.inner.views(disk, (self._joined(shapes),))
        axis = self.axis % whole.ndim
        ends = list(itertools.accumulate(s[axis] for s in shapes))
        return tuple(
            whole[(slice(None),) * axis + (slice(end - s[axis], end),)]
            for s, end in zip(shapes, ends, strict=True)
        )

    def _joined(self, shapes):
        axis = self.axis % len(shapes[0])
        return (*shapes[0][:axis], sum(s[axis] for s in shapes), *shapes[0][axis + 1 :])


@dataclass(frozen=True)
class Rows:
    """Parameters one below the other on disk, each as `inner` has it alone."""

    inner: Op

    def disk(self, shapes):
        disks = self._disks(shapes)
        return (sum(d[0] for d in disks), *disks[0][1:])

    def views(self, disk, shapes):
        ends = itertools.accumulate(d[0] for d in self._disks(shapes))
        parts = np.split(disk, list(ends)[:-1])
        pairs = zip(parts, shapes, strict=True)
        return tuple(self.inner.views(part, (shape,))[0] for part, shape in pairs)

    def _disks(self, shapes):
        return [self.inner.disk((shape,)) for shape in shapes]


@dataclass(frozen=True)
class PerHead:
    """Matrices [in, heads, ...] of one number of heads, of which each head has all on disk."""

    def disk(self, shapes):
        return (shapes[0][1] * sum(self._widths(shapes)), shapes[0][0])

    def views(self, disk, shapes):
        whole = disk.reshape(shapes[0][1], -1, shapes[0][0]).transpose(2, 0, 1)
        ends = itertools.accumulate(self._widths(shapes))
        parts = np.split(whole, list(ends)[:-1], axis=-1)
        return tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))

    def _widths(self, shapes):
        return [math.prod(shape[2:]) for shape in shapes]


@dataclass(frozen=True)
class Depthwise:
    """A kernel [taps, *channels] here, [channels, 1, taps] on disk, as torch's Conv1d has it."""

    def disk(self, shapes):
        taps, *channels = shapes[0]
        return (math.prod(channels), 1, taps)

    def views(self, disk, shapes):
        return Linear().views(disk[:, 0], shapes)


@dataclass(frozen=True)
class Interleave:
    """Parameters of one shape, whose elements take turns along the last axis of `inner`'s."""

    inner: Op

    def disk(self, shapes):
        return self.inner.disk((self._joined(shapes),))

    def views(self, disk, shapes):
        (whole,) = self.inner.views(disk, (self._joined(shapes),))
        return tuple(whole[..., i :: len(shapes)] for i in range(len(shapes)))

    def _joined(self, shapes):
        return (*shapes[0][:-1], shapes[0][-1] * len(shapes))


@dataclass(frozen=True)
class Row:
    """One line of a table: a name pattern, the parameters it holds, and how."""

    disk: str
    params: str | tuple[str, ...]
    op: Op

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.params,) if isinstance(self.params, str) else self.params


@dataclass(frozen=True)
class Part:
    """A parameter, or one layer or expert of it: `param[at]` has `shape`."""

    path: str
    at: tuple[int, ...]
    shape: Shape


@dataclass(frozen=True)
class Tensor:
    """One tensor on disk and the parts of parameters that it holds."""

    name: str
    op: Op
    parts: tuple[Part, ...]

    @property
    def shape(self) -> Shape:
        return self.op.disk(tuple(p.shape for p in self.parts))

    def views(self, disk: np.ndarray) -> tuple[np.ndarray, ...]:
        """One view of `disk` per part, shaped like it."""
        return self.op.views(disk, tuple(p.shape for p in self.parts))


def expand(
    cfg: Config,
    table: tuple[Row, ...],
    names: Collection[str] | None = None,
    shapes: Mapping[str, Shape] | None = None,
) -> dict[str, Tensor]:
    """Every tensor that a checkpoint of `cfg` has, by name, in the order of the model.

    Args:
        cfg: the model.
        table: of its family.
        names: the tensors that a folder has, to choose among alternative rows; by default, and
            where the folder has none of them, the first is taken.
        shapes: of these tensors, to choose among alternative rows of one name.

    Raises:
        ValueError: if the table leaves a parameter of `cfg` without a place on disk.
    """
    params = layout_shapes(cfg)
    tensors = _chosen(list(_expand(cfg, table, params)), names, shapes or {})
    covered = {p.path for t in tensors.values() for p in t.parts}
    if missing := sorted(params.keys() - covered):
        raise ValueError(
            f"a {cfg.family} checkpoint has no place for {', '.join(missing)}; write this model as "
            "a family that has it"
        )
    return tensors


def _chosen(
    found: list[tuple[Row, Tensor]], names: Collection[str] | None, shapes: Mapping[str, Shape]
) -> dict[str, Tensor]:
    """Tensors of one row for every layer of a parameter: of several, the first that is there."""

    def distance(pair: tuple[Row, Tensor]) -> int:
        name = pair[1].name
        if name not in names:
            return 2
        return int(shapes.get(name, pair[1].shape) != pair[1].shape)

    if names is not None:
        found = sorted(found, key=distance)  # stable
    owners: dict[tuple[str, tuple[int, ...]], Row] = {}
    chosen: dict[str, Tensor] = {}
    for row, tensor in found:
        layers = {(part.path, _layer_of(part)) for part in tensor.parts}
        if all(owners.get(layer, row) == row for layer in layers):
            owners |= dict.fromkeys(layers, row)
            chosen[tensor.name] = tensor
    return chosen


def _layer_of(part: Part) -> tuple[int, ...]:
    return part.at[:1] if part.path.startswith("stack_") else ()


def _expand(
    cfg: Config, table: tuple[Row, ...], params: dict[str, Shape]
) -> Iterator[tuple[Row, Tensor]]:
    each = [row for row in table if "{l}" in row.disk]
    further = [row for row in table if "{m}" in row.disk or "{n}" in row.disk]
    once = [row for row in table if row not in each and row not in further]
    for row in once:
        if all(path in params for path in row.paths):
            parts = tuple(Part(path, (), params[path]) for path in row.paths)
            yield row, Tensor(row.disk, row.op, parts)
    for layer, (prefix, repeat) in enumerate(places(cfg)):
        yield from _layer(each, params, prefix, (repeat,), l=layer)
    for depth in range(len(cfg.mtp)):
        number = len(cfg.layers) + depth
        yield from _layer(further, params, f"mtp_{depth}", (), m=depth, n=number)


def _layer(
    rows: list[Row], params: dict[str, Shape], prefix: str, at: tuple[int, ...], **numbers: int
) -> Iterator[tuple[Row, Tensor]]:
    """The tensors of one layer, whose parameters are `at` this index of those below `prefix`."""
    for row in rows:
        paths = [f"{prefix}/{path}" for path in row.paths]
        if not all(path in params for path in paths):
            continue
        experts = range(params[paths[0]][len(at)]) if "{e}" in row.disk else [None]
        for e in experts:
            whole = at if e is None else (*at, e)
            parts = tuple(Part(path, whole, params[path][len(whole) :]) for path in paths)
            yield row, Tensor(row.disk.format(e=e, **numbers), row.op, parts)


def places(cfg: Config) -> Iterator[tuple[str, int]]:
    """For every layer in order: its parameters' prefix and its index in their leading axis."""
    for i, stack in enumerate(cfg.stacks):
        for repeat in range(stack.repeats):
            for j in range(len(stack.layers)):
                yield f"stack_{i}/layer_{j}", repeat
