"""Quantised tensors of a folder: found, checked, kept as parameters, or dequantised.

To keep one, its place in the table is taken by the pieces that it is stored in. `attn/q/w` then has
two arrays, found at `attn/q/w/codes` and `attn/q/w/scales` while they are read or written, and one
`Quantized` of them in the tree. A tensor that holds several parameters has its pieces at the first,
and all of them view those.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zoo.hf import strided
from zoo.hf.quantization import FLOATS, KEY, Piece, Stored, read
from zoo.hf.safetensors import NAMES
from zoo.hf.source import Source, json_bytes
from zoo.hf.table import Linear, Op, Part, Shape, Shaped, Tensor
from zoo.quantized import Encoding, Form, Matrix, Quantized, View, multipliers

CHUNK = 1 << 18  # elements that are dequantised at a time; a few float32 copies of them are made

FIELDS = ("codes", "scales", "zeros")  # of a Quantized, and of a Stored

Plan = Mapping[str, Stored]  # by the names that the table has


@dataclass(frozen=True)
class PartView:
    """The part `index` of the parameters, of these shapes, that an op finds in a tensor.

    Of experts `each` is seen alone: an op that takes [E, ...] to [E, ...] takes one so too.
    """

    op: Op
    shapes: tuple[Shape, ...]
    index: int
    each: bool = False

    @property
    def shape(self) -> Shape:
        return self.shapes[self.index]

    def __call__(self, tensor: Any) -> Any:
        if self.each:
            one = tuple((1, *shape) for shape in self.shapes)
            return self.op.views(tensor[None], one)[self.index][0]
        return self.op.views(tensor, self.shapes)[self.index]

    def rows(self, form: Form) -> tuple[np.ndarray, Matrix] | None:
        """As `zoo.quantized.View` has it."""
        if len(form.shape) != 2:
            return None
        row, column = (
            self(np.broadcast_to(i, form.shape)) for i in np.ogrid[*map(slice, form.shape)]
        )
        fits = (n for n in range(row.ndim) if math.prod(self.shape[:n]) == form.shape[1])
        inputs = next(fits, None)
        if inputs is None or any(row.strides[:inputs]):
            return None
        along = column[(..., *[0] * (row.ndim - inputs))].reshape(-1)
        if not np.array_equal(along, np.arange(form.shape[1])):
            return None
        return row[(0,) * inputs].reshape(-1), Matrix(self.shape, inputs)


def names(source: Source) -> set[str]:
    """The names of a folder's tensors, and those that a table has for what is stored in pieces."""
    found = set(source.specs)
    for ending, whole in ((".weight_packed", ".weight"), (".qweight", ".weight"), ("_blocks", "")):
        found |= {n.removesuffix(ending) + whole for n in source.specs if n.endswith(ending)}
    return found


def shapes(source: Source) -> dict[str, tuple[int, ...]]:
    """The shapes of a folder's tensors."""
    return {name: spec.shape for name, spec in source.specs.items()}


def plan(source: Source, tensors: Mapping[str, Tensor]) -> Plan:
    """Those of a table's tensors that a folder holds quantised, checked.

    Raises:
        ValueError: naming the key of the config that is not understood, or the piece that is
            missing, or has another type or shape than it needs.
    """
    method = read(source.config)
    if method is None:
        return {}
    found = {}
    for name, tensor in tensors.items():
        stored = method(tensor)
        if stored is not None and _is_quantised(stored, source):
            checked = {field: _checked(piece, stored, source) for field, piece in fields(stored)}
            found[name] = replace(stored, **checked)
    return found


def keep(
    source: Source, tensors: Mapping[str, Tensor], found: Plan, shapes: Mapping[str, Shape]
) -> tuple[dict[str, Tensor], dict[str, Shape]]:
    """The tensors and arrays to read, if what is quantised is to stay as it is.

    Raises:
        ValueError: naming a parameter whose layers or experts are not all stored in one way.
    """
    _check_uniform(source, tensors, found)
    kept, wanted = {}, dict(shapes)
    for name, tensor in tensors.items():
        if name not in found:
            kept[name] = tensor
            continue
        for part in tensor.parts:
            wanted.pop(part.path, None)
        for piece in pieces(found[name]):
            (part,) = piece.parts
            kept[piece.name] = piece
            lead = shapes[tensor.parts[0].path][: len(part.at)]
            wanted[part.path] = (*lead, *part.shape)
    return kept, wanted


def place(
    found: Plan, placed: Mapping[str, NamedSharding], wanted: Mapping[str, Shape]
) -> dict[str, NamedSharding]:
    """`placed`, if it places anything, with the pieces of quantised parameters.

    They are cut where the parameter is, if the mesh axes divide what is stored of its axes.
    """
    again = dict(placed)
    for stored in found.values() if placed else ():
        owner, form = stored.tensor.parts[0], stored.form
        if f"{owner.path}/codes" in again:
            continue
        mesh, spec = placed[owner.path].mesh, placed[owner.path].spec
        spec = (*spec, *(None,) * (len(owner.at) + len(owner.shape) - len(spec)))
        lead, rest = spec[: len(owner.at)], _on_disk(stored.tensor, spec[len(owner.at) :])
        rest = (*rest[:-2], rest[-1], rest[-2]) if form.transposed else rest
        for field, _ in fields(stored):
            path = f"{owner.path}/{field}"
            pairs = zip((*lead, *rest), wanted[path], strict=True)
            cut = [dividing(mesh, axes, n) for axes, n in pairs]
            again[path] = NamedSharding(mesh, PartitionSpec(*cut))
    return again


def _on_disk(tensor: Tensor, spec: tuple) -> tuple:
    """Mesh axes of a tensor's first parameter as mesh axes of the tensor, told by strides."""
    disk = np.empty(tensor.shape, np.bool_)  # never touched
    found = [None] * disk.ndim
    strides = tensor.views(disk)[0].strides
    for stride, axes in sorted(zip(strides, spec, strict=True), key=lambda pair: pair[0]):
        if axes is not None:
            found[next(j for j, outer in enumerate(disk.strides) if outer <= stride)] = axes
    return tuple(found)


def dividing(mesh: Mesh, axes: str | tuple[str, ...] | None, n: int) -> Any:
    """The mesh axes, if they divide an axis of n; else None."""
    return axes if n % _size(mesh, axes) == 0 else None


def _size(mesh: Mesh, axes: str | tuple[str, ...] | None) -> int:
    names = () if axes is None else (axes,) if isinstance(axes, str) else axes
    return math.prod(mesh.shape[name] for name in names)


def fields(stored: Stored) -> list[tuple[str, Piece]]:
    """Where each array of a `Quantized` is."""
    found = ((field, getattr(stored, field)) for field in FIELDS)
    return [(field, piece) for field, piece in found if piece is not None]


def pieces(stored: Stored) -> tuple[Tensor, ...]:
    """What stands on disk for one tensor, as if its codes and all else were parameters."""
    owner, form = stored.tensor.parts[0], stored.form
    found = []
    for field, piece in fields(stored):
        shape = {"codes": form.codes_shape, "scales": form.grid}.get(field) or form.zeros_shape
        op = Linear() if piece.transposed else Shaped(piece.shape)
        found.append(Tensor(piece.name, op, (Part(f"{owner.path}/{field}", owner.at, shape),)))
    return tuple(found)


def assemble(flat: Mapping[str, Any], found: Plan) -> dict[str, Any]:
    """Puts a `Quantized` where a parameter's codes and scales were read for it."""
    nodes = {}
    for stored in found.values():
        tensor, owner = stored.tensor, stored.tensor.parts[0].path
        for k, part in enumerate(tensor.parts):
            if part.path not in nodes:
                held = (flat.get(f"{owner}/{field}") for field in FIELDS)
                nodes[part.path] = Quantized(*held, _held_form(stored), _view(tensor, k))
    rest = {path: array for path, array in flat.items() if path.rsplit("/", 1)[0] not in nodes}
    return rest | nodes


def _view(tensor: Tensor, index: int) -> View:
    """How a part is seen in a tensor: one that is a matrix of its own multiplies by its codes."""
    each, op = _is_of_experts(tensor), tensor.op
    shapes = tuple(part.shape[each:] for part in tensor.parts)
    if isinstance(op, Linear) and op.lead == each:
        return Matrix(shapes[index], op.ins)
    return PartView(op, shapes, index, each)


def _held_form(stored: Stored) -> Form:
    """The form of a tensor as it is held: of experts, that of each."""
    return replace(stored.form, shape=stored.form.shape[_is_of_experts(stored.tensor) :])


def _is_of_experts(tensor: Tensor) -> bool:
    """Whether the first axis of a tensor is that of its parameters, beside matrices."""
    disk = np.empty(tensor.shape, np.bool_)  # never touched
    return disk.ndim == 3 and all(
        part.shape[0] == len(disk) and part.strides[0] == disk.strides[0]
        for part in tensor.views(disk)
    )


def check_kept(tensors: Mapping[str, Tensor], flat: Mapping[str, Any], found: Plan) -> None:
    """Raises ValueError for the first parameter that is not in the form that a folder has it in."""
    for name, tensor in tensors.items():
        for part in tensor.parts:
            value = flat[part.path]
            held = value.form if isinstance(value, Quantized) else None
            wanted = _held_form(found[name]) if name in found else None
            if held != wanted:
                raise ValueError(
                    f"params: {part.path} has the form {held}, but {name} of the source has "
                    f"{wanted}: load them again, or with a dtype"
                )


def dequantised(source: Source, found: Plan, dtype: np.dtype) -> Source:
    """A folder as if its parameters had been stored as floats of this type."""
    carried = {name for stored in found.values() for name in stored.carried}
    config = _without(source.config, KEY)
    config["dtype" if "dtype" in config else "torch_dtype"] = dtype.name
    extras = tuple(name for name in source.extras if name not in carried)
    return replace(source, config=config, config_bytes=json_bytes(config), extras=extras)


def _without(config: Mapping, key: str) -> dict:
    """A config without a key, which its parts do not have either."""
    return {
        name: _without(value, key) if isinstance(value, Mapping) else value
        for name, value in config.items()
        if name != key
    }


def apart(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The reverse of `assemble`."""
    found = {}
    for path, value in flat.items():
        if isinstance(value, Quantized):
            held = {f"{path}/{field}": getattr(value, field) for field in FIELDS}
            found |= {at: array for at, array in held.items() if array is not None}
        else:
            found[path] = value
    return found


def chunks(stored: Stored, source: Source, out: np.ndarray) -> Iterator[tuple]:
    """Splits the dequantisation of a whole tensor into `out` into arguments of `dequantize`."""
    codes, scales, *zeros = (piece.views(source[piece.name])[0] for piece in pieces(stored))
    grids = [multipliers(scales, np), *(stored.form.zero_points(z, np) for z in zeros)]
    return split(stored.form, codes, grids, out)


def split(
    form: Form, codes: np.ndarray, grids: list[np.ndarray], out: np.ndarray
) -> Iterator[tuple]:
    """`chunks`, of codes and float32 scales and zero points."""
    out = out.swapaxes(-1, -2) if form.transposed else out
    *lead, count, columns = form.matrix
    high = min(form.block[0], count)
    unit = 1 if high == count else high  # rows that share scales with others
    step = max(1, CHUNK // (columns * unit)) * unit
    for index in np.ndindex(*lead):
        for start in range(0, count, step):
            part = slice(start, start + step)
            blocks = slice(start // high, -(-min(start + step, count) // high))
            yield form, codes[index][part], [g[index][blocks] for g in grids], out[index][part]


def dequantize(form: Form, codes: np.ndarray, grids: list[np.ndarray], out: np.ndarray) -> None:
    """Rows of codes, with what their blocks share, into rows of a tensor of any float type."""
    if codes.dtype.itemsize == 1:
        meanings = _meanings(form.encoding, codes.dtype)
        numbers = np.take(meanings, codes.view(np.uint8), mode="clip").view(np.float32)
    else:
        numbers = form.encoding.numbers(codes, np)
    strided.copy(out, form.product(numbers, grids, np))


@functools.cache
def _meanings(encoding: Encoding, kind: np.dtype) -> np.ndarray:
    """For every code of one byte the bits of its one or two numbers: u32[256] or u64[256].

    Looking them up is several times faster in numpy than arithmetic, and needs no lock.
    """
    numbers = encoding.numbers(np.arange(256, dtype=np.uint8).view(kind)[:, None], np)
    return np.ascontiguousarray(numbers).view(f"u{4 * numbers.shape[1]}")[:, 0]


def _is_quantised(stored: Stored, source: Source) -> bool:
    codes, scales = stored.codes.name, stored.scales.name
    if codes not in source.specs or source.specs[codes].dtype not in FLOATS:
        return codes in source.specs or scales in source.specs
    if scales in source.specs:
        raise ValueError(
            f"{source.places[scales].path}: {scales} stands beside {codes}, which is "
            f"{NAMES[source.specs[codes].dtype]}; a float tensor has no scales: remove them"
        )
    return False


def _checked(piece: Piece, stored: Stored, source: Source) -> Piece:
    """The piece with the shape that it has on disk, where a single scale may have any rank."""
    spec, form = source.specs.get(piece.name), stored.form
    if spec is None:
        raise ValueError(f"{source.folder} lacks {piece.name}, a piece of {stored.tensor.name}")
    file = source.places[piece.name].path
    if spec.dtype not in piece.kinds:
        wanted = " or ".join(NAMES[kind] for kind in piece.kinds)
        raise ValueError(f"{file}: {piece.name} is {NAMES[spec.dtype]}; it must be {wanted}")
    single = set(spec.shape) | set(piece.shape) <= {1}
    if spec.shape != piece.shape and not single:
        raise ValueError(
            f"{file}: {piece.name} has shape {list(spec.shape)}; for {list(form.shape)} in blocks "
            f"of {list(form.block)} it must be {list(piece.shape)}"
        )
    return replace(piece, shape=spec.shape)


def _check_uniform(source: Source, tensors: Mapping[str, Tensor], found: Plan) -> None:
    ways: dict[str, dict[Any, str]] = defaultdict(dict)
    for name, tensor in tensors.items():
        stored = found.get(name)
        way = None
        if stored is not None:
            kinds = (source.specs[piece.name].dtype for _, piece in fields(stored))
            way = (stored.form, *kinds)
        for part in tensor.parts:
            ways[part.path].setdefault(way, name)
    for path, examples in ways.items():
        if len(examples) > 1 and examples.keys() != {None}:
            raise ValueError(
                f"{source.folder}: {' and '.join(examples.values())} are stored in different ways, "
                f"but are one parameter, {path}; load with a dtype to dequantise them"
            )
