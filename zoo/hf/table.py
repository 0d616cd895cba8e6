"""Weight tables: which tensor on disk is which parameter, and how, in both directions.

A family's table is a tuple of rows, each *disk name pattern, parameter paths, op*:

    Row("model.layers.{l}.self_attn.q_proj.weight", "attn/q/w", Linear())
    Row("...kv_b_proj.weight", ("attn/k_up/w", "attn/v_up/w"), Split(-1, Linear()))

An op describes a tensor on disk as **views**: given an array with the disk's shape, it returns
views of the same memory shaped like the parameters. Reading copies from the views, writing copies
into them, so a table is invertible by construction and there is no second table that could
disagree. A further layout (fused, interleaved, already [in, out]) is one more op.

`{l}` is the layer and `{e}` the expert. They are stacked: a parameter leads with the repeats of its
stack and, where the pattern has `{e}`, with the experts. A row applies where the model has its
parameters.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
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
class Linear:
    """A matrix [*ins, *outs] here, [outs, ins] on disk; the first `ins` axes are inputs."""

    ins: int = 1

    def disk(self, shapes):
        return (math.prod(shapes[0][self.ins :]), math.prod(shapes[0][: self.ins]))

    def views(self, disk, shapes):
        ins, outs = shapes[0][: self.ins], shapes[0][self.ins :]
        back = (*range(len(outs), len(outs) + len(ins)), *range(len(outs)))
        return (disk.reshape(outs + ins).transpose(back),)


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


def expand(cfg: Config, table: tuple[Row, ...]) -> dict[str, Tensor]:
    """Every tensor that a checkpoint of `cfg` has, by name, in the order of the model.

    Raises:
        ValueError: if the table leaves a parameter of `cfg` without a place on disk.
    """
    params = layout_shapes(cfg)
    tensors = {t.name: t for t in _expand(cfg, table, params)}
    covered = {p.path for t in tensors.values() for p in t.parts}
    if missing := sorted(params.keys() - covered):
        raise ValueError(
            f"a {cfg.family} checkpoint has no place for {', '.join(missing)}; write this model as "
            "a family that has it"
        )
    return tensors


def _expand(cfg: Config, table: tuple[Row, ...], params: dict[str, Shape]) -> Iterator[Tensor]:
    once = [row for row in table if "{l}" not in row.disk]
    each = [row for row in table if "{l}" in row.disk]
    for row in once:
        if all(path in params for path in row.paths):
            parts = tuple(Part(path, (), params[path]) for path in row.paths)
            yield Tensor(row.disk, row.op, parts)
    for layer, (prefix, repeat) in enumerate(places(cfg)):
        for row in each:
            paths = [f"{prefix}/{path}" for path in row.paths]
            if not all(path in params for path in paths):
                continue
            experts = range(params[paths[0]][1]) if "{e}" in row.disk else [None]
            for e in experts:
                at = (repeat,) if e is None else (repeat, e)
                parts = tuple(Part(path, at, params[path][len(at) :]) for path in paths)
                yield Tensor(row.disk.format(l=layer, e=e), row.op, parts)


def places(cfg: Config) -> Iterator[tuple[str, int]]:
    """For every layer in order: its parameters' prefix and its index in their leading axis."""
    for i, stack in enumerate(cfg.stacks):
        for repeat in range(stack.repeats):
            for j in range(len(stack.layers)):
                yield f"stack_{i}/layer_{j}", repeat
