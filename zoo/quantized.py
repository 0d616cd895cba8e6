"""Quantised parameters: a checkpoint's stored tensors, standing where a float array would.

A matrix is stored as small numbers, its codes, and a grid of scales and perhaps of zero points:

    W[r, c] = (number(codes)[r, c] - zeros[i, j]) * scales[i, j]
    with i = r // block[0], j = c // block[1]

Formats differ in the packing of codes and the size of blocks, and in nothing else:

    FP8 of DeepSeek-V3 (arXiv:2412.19437 section 3.3)    Whole()   blocks of (128, 128)
    INT8 per output channel                              Whole()   (1, C)
    INT4 of Kimi K2 Thinking                             Ints(4)   (1, 32)
    MXFP4 of gpt-oss (OCP Microscaling Formats 1.0)      FP4()     (1, 32), scales powers of two
    INT4 of `zoo.rounding`                               Nibbles() (1, 128)
    FP8 by its bits, in decoding on CPU                  E4M3()    as Whole()
    GPTQ (arXiv:2210.17323), zero points                 Ints(4)   (1, 128)
    AWQ (arXiv:2306.00978), zero points                  Ints(4)   (128, 1), of the transpose

Axes: R rows and C columns of the matrix as stored; layers L and experts E may lead. The arithmetic
is float32 and rounded once, to the type asked for. Functions that take `xp` run on arrays of that
namespace, numpy while a checkpoint is loaded or jax.numpy in a model.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

Shape = tuple[int, ...]


class Encoding(Protocol):
    """How the codes of a row are packed."""

    def width(self, columns: int) -> int:
        """Codes per row that hold so many columns."""

    def numbers(self, codes: Any, xp: ModuleType) -> Any:
        """codes[..., width] -> f32[..., at least columns]."""


@dataclass(frozen=True)
class Whole:
    """One FP8 or INT8 code per element, itself a number."""

    def width(self, columns):
        return columns

    def numbers(self, codes, xp):
        return codes.astype(np.float32)

    def pack(self, numbers: np.ndarray) -> np.ndarray:
        """The codes of numbers of this type: themselves."""
        return numbers


@dataclass(frozen=True)
class Nibbles:
    """Two integers from -8 to 7 per signed byte: 16 * second + first + 8.

    The first is of the first half of a row and the second of the second, so that unpacking takes
    neighbours to neighbours.
    """

    def width(self, columns):
        return -(-columns // 2)

    def numbers(self, codes, xp):
        return xp.concatenate(self.halves(codes), axis=-1).astype(np.float32)

    def halves(self, codes: Any) -> tuple[Any, Any]:
        """The integers of the first half of each row, and of the second."""
        return (codes & 15) - 8, codes >> 4

    def pack(self, numbers: np.ndarray) -> np.ndarray:
        """i8[rows, C] from -8 to 7 -> i8[rows, width]."""
        width = self.width(numbers.shape[-1])
        first, second = numbers[:, :width], numbers[:, width:]
        second = np.pad(second, ((0, 0), (0, width - second.shape[-1])))
        return (second << 4) | (first + 8)


@dataclass(frozen=True)
class E4M3:
    """FP8 numbers (arXiv:2209.05433 section 3) by their bits, as int8.

    XLA on CPU converts the type itself by one element at a time.
    """

    def width(self, columns):
        return columns

    def numbers(self, codes, xp):
        magnitude = codes.astype(np.int32) & 127
        normal = ((magnitude << 20) + (120 << 23)).view(np.float32)
        value = xp.where(magnitude < 8, magnitude * np.float32(2.0**-9), normal)
        value = xp.where(magnitude == 127, np.float32(np.nan), value)
        return xp.where(codes < 0, -value, value)


@dataclass(frozen=True)
class Ints:
    """Integers of `bits`, less half their range, in words of 32 bits; the lowest bits come first.

    `pack_to_int32` of compressed-tensors. `plus` is added to every field before, around its range:
    GPTQ's first format has zero points less one. `interleaved` words of eight have the even columns
    in their low half (AWQ's GEMM format).
    """

    bits: int
    plus: int = 0
    interleaved: bool = False

    def width(self, columns):
        return -(-columns * self.bits // 32)

    def numbers(self, codes, xp):
        shifts = xp.arange(0, 32, self.bits, dtype=np.int32)
        fields = ((codes[..., None] >> shifts) + self.plus) & ((1 << self.bits) - 1)
        if self.interleaved:
            fields = _joined(fields.reshape(*codes.shape, 2, 4).swapaxes(-1, -2))
        return _joined(fields - (1 << (self.bits - 1))).astype(np.float32)


@dataclass(frozen=True)
class FP4:
    """Two E2M1 numbers per byte, the low half first, in whole groups of 32.

    Magnitudes are 0, 0.5, 1, 1.5, 2, 3, 4, 6. They are computed and not looked up: a gather per
    element is slow on accelerators.
    """

    def width(self, columns):
        return -(-columns // 32) * 16

    def numbers(self, codes, xp):
        halves = _joined(xp.stack((codes & 15, codes >> 4), axis=-1))
        magnitude = halves & 7
        exponent = xp.maximum(magnitude >> 1, 1) - 1
        mantissa = xp.where(magnitude < 4, magnitude, 2 + (magnitude & 1))
        doubled = xp.where(magnitude < 4, magnitude, mantissa << exponent)
        value = doubled.astype(np.float32) * np.float32(0.5)
        return xp.where(halves > 7, -value, value)


@dataclass(frozen=True)
class Form:
    """How codes, scales and zero points make a tensor of a checkpoint.

    Attributes:
        shape: the tensor's, [..., R, C], or [..., C, R] if `transposed`.
        encoding: the packing of codes along C.
        block: the rows and columns that share a scale.
        transposed: whether it is stored as the transpose of its last two axes.
        zeros: the packing of zero points, along `zeros_axis` of the grid; None if there are none.
    """

    shape: Shape
    encoding: Encoding
    block: tuple[int, int]
    transposed: bool = False
    zeros: Encoding | None = None
    zeros_axis: int = -1

    @property
    def matrix(self) -> Shape:
        """[..., R, C]."""
        *lead, first, last = self.shape
        return (*lead, last, first) if self.transposed else self.shape

    @property
    def plain(self) -> bool:
        """Whether it has neither zero points nor the transpose."""
        return self.zeros is None and not self.transposed

    @property
    def codes_shape(self) -> Shape:
        return (*self.matrix[:-1], self.encoding.width(self.matrix[-1]))

    @property
    def grid(self) -> Shape:
        """The shape of the scales: blocks at the ends may be cut short."""
        *lead, rows, columns = self.matrix
        return (*lead, -(-rows // self.block[0]), -(-columns // self.block[1]))

    @property
    def zeros_shape(self) -> Shape:
        """The shape of the zero points, which must be there."""
        shape = list(self.grid)
        shape[self.zeros_axis] = self.zeros.width(shape[self.zeros_axis])
        return tuple(shape)

    def zero_points(self, zeros: Any, xp: ModuleType) -> Any:
        """zeros[..., *zeros_shape] -> f32[..., *grid]."""
        numbers = self.zeros.numbers(zeros.swapaxes(-1, self.zeros_axis), xp)
        return numbers.swapaxes(-1, self.zeros_axis)[..., : self.grid[-2], : self.grid[-1]]

    def product(self, numbers: Any, grids: Sequence[Any], xp: ModuleType) -> Any:
        """f32[..., rows, C] of numbers in whole blocks of rows, up to the last.

        Args:
            numbers: f32[..., rows, at least C].
            grids: f32[..., rows of blocks, columns of blocks], scales and perhaps zero points.
            xp: their namespace.
        """
        count, columns = numbers.shape[-2], self.matrix[-1]

        def spread(grid: Any) -> Any:
            for axis, size, most in ((-2, self.block[0], count), (-1, self.block[1], columns)):
                grid = xp.repeat(grid, min(size, most), axis=axis)
            return grid[..., :count, :columns]

        scales, *zeros = map(spread, grids)
        numbers = numbers[..., :columns]
        return (numbers - zeros[0] if zeros else numbers) * scales

    def dequantize(
        self, codes: jax.Array, scales: jax.Array, zeros: jax.Array | None, dtype: jnp.dtype
    ) -> jax.Array:
        """dtype[..., *shape]."""
        grids = (multipliers(scales, jnp),)
        grids += () if zeros is None else (self.zero_points(zeros, jnp),)
        rows = self.product(self.encoding.numbers(codes, jnp), grids, jnp).astype(dtype)
        return rows.swapaxes(-1, -2) if self.transposed else rows


class View(Protocol):
    """Which part of a tensor of a checkpoint is the parameter: a transpose, or one of several."""

    @property
    def shape(self) -> Shape:
        """The parameter's, without leading axes."""

    def __call__(self, tensor: jax.Array) -> jax.Array:
        """The parameter, out of the whole tensor."""

    def rows(self, form: Form) -> tuple[np.ndarray, Matrix] | None:
        """The rows of a tensor [R, C] that the parameter is, and how it is seen in these alone.

        None where it is no rows, or all of them.
        """


@dataclass(frozen=True)
class Matrix:
    """A tensor [R, C] as the parameter [*ins, *outs] whose first `inputs` axes make up C."""

    shape: Shape
    inputs: int

    def __call__(self, tensor):
        return tensor.T.reshape(self.shape)

    def rows(self, form):
        return None


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("codes", "scales", "zeros"),
    meta_fields=("form", "view"),
)
@dataclass(frozen=True)
class Quantized:
    """A parameter in the bytes that its checkpoint has.

    Attributes:
        codes: [..., *form.codes_shape]; all that leads is layers and experts. Parameters that a
            checkpoint joins in one tensor, such as keys and values, hold the same array.
        scales: [..., *form.grid].
        zeros: [..., *form.zeros_shape], or None.
        form: how they make the tensor.
        view: how the tensor makes the parameter.
    """

    codes: jax.Array
    scales: jax.Array
    zeros: jax.Array | None
    form: Form
    view: View

    @property
    def lead(self) -> Shape:
        return tuple(self.codes.shape[: self.codes.ndim - len(self.form.shape)])

    @property
    def shape(self) -> Shape:
        """The parameter's, as if it were an array."""
        return (*self.lead, *self.view.shape)

    def dequantize(self, dtype: jnp.dtype) -> jax.Array:
        """dtype[*shape]."""

        def parameter(codes, scales, zeros):
            return self.view(self.form.dequantize(codes, scales, zeros, dtype))

        for _ in self.lead:
            parameter = jax.vmap(parameter)
        return parameter(self.codes, self.scales, self.zeros)

    def alone(self) -> Quantized:
        """Itself without the rows of parameters beside it, if its blocks have one scale each.

        On the host; arrays are views of the same memory where its rows follow each other.
        """
        found = self.view.rows(self.form) if self.form.plain and not self.lead else None
        if found is None:
            return self
        (rows, view), high = found, self.form.block[0]
        blocks = (rows // high)[::high]
        if not np.array_equal(np.repeat(blocks, high)[: len(rows)], rows // high):
            return self
        codes, scales = _rows(self.codes, rows), _rows(self.scales, blocks)
        form = replace(self.form, shape=(len(rows), self.form.shape[1]))
        return replace(self, codes=codes, scales=scales, form=form, view=view)

    def by_bits(self) -> Quantized:
        """Itself, with FP8 numbers by their bits; the memory is the same."""
        if self.codes.dtype != jnp.float8_e4m3fn:
            return self
        codes = jax.device_put(np.asarray(self.codes).view(np.int8), self.codes.sharding)
        return replace(self, codes=codes, form=replace(self.form, encoding=E4M3()))


def _rows(array: jax.Array, rows: np.ndarray) -> jax.Array:
    """Rows in their order, a view of the memory where they follow each other."""
    start, stop = int(rows[0]), int(rows[-1]) + 1
    index = slice(start, stop) if stop - start == len(rows) else rows
    return jax.device_put(np.asarray(array)[index], array.sharding)


def each_quantized(function: Callable[[Quantized], Any], params: Any) -> Any:
    """Parameters with function(leaf) where a leaf is quantised."""
    return jax.tree.map(
        lambda leaf: function(leaf) if isinstance(leaf, Quantized) else leaf,
        params,
        is_leaf=lambda leaf: isinstance(leaf, Quantized),
    )


def floats(held: jax.Array | Quantized, dtype: jnp.dtype) -> jax.Array:
    """A parameter as an array: one that is an array as it is, one that is quantised in `dtype`."""
    return held.dequantize(dtype) if isinstance(held, Quantized) else held


def waiting(held: Any, x: jax.Array) -> Any:
    """A parameter, floats of which XLA does not make ahead of a loop that makes x: those of all
    layers, in the memory that codes spare.
    """
    x = jax.lax.stop_gradient(x)
    return each_quantized(lambda leaf: jax.lax.optimization_barrier((leaf, x))[0], held)


def is_quantized(params: Any) -> bool:
    """Whether any parameter of a tree is a `Quantized`."""
    leaves = jax.tree.leaves(params, is_leaf=lambda value: isinstance(value, Quantized))
    return any(isinstance(leaf, Quantized) for leaf in leaves)


def multipliers(scales: Any, xp: ModuleType) -> Any:
    """Scales as float32; of one byte they are E8M0, an exponent biased by 127."""
    if scales.dtype.itemsize > 1:
        return scales.astype(np.float32)
    exponent = scales.view(np.uint8).astype(np.int32)
    # The exponent field of a float32 has the same bias; 2**-127 alone is below its range.
    return xp.where(exponent == 0, 1 << 22, exponent << 23).astype(np.int32).view(np.float32)


def _joined(fields: Any) -> Any:
    """[..., n, k] -> [..., n * k]."""
    return fields.reshape(*fields.shape[:-2], -1)
