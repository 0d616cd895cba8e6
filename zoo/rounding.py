"""Full-precision parameters to quantised ones: int8, int4 in groups, FP8, rounded to nearest.

    params = quantize(params, "int8")
    params = zoo.load("path/to/hf-folder", quantize="int4").params

What becomes small are the matrices of linear maps, per output and group of inputs. What stays as it
is: embeddings and head, norms and biases; routers, whose choices are worth more than their bytes;
the kernels of convolutions; the indexer; and the up-projections that latent attention folds into
its queries and outputs.

Axes: R outputs and C inputs of a matrix, in rows of C as Hugging Face files have them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from zoo.quantized import Encoding, Form, Matrix, Nibbles, Quantized, Shape, Whole, is_quantized

CHUNK = 1 << 20
"""Elements that are rounded at a time; a few float32 copies of them are made."""

FLOAT = ("router", "shared_gate", "k_up", "v_up")
"""Linear maps that stay as they are, beside those of an indexer and the kernels `*_conv`."""

EXPERTS = ("gate", "up", "down")
"""Linear maps of a mixture that every expert has its own of."""

FP8_MAX = float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max)

Read = Callable[[tuple[int, ...]], np.ndarray]
"""One matrix [*ins, *outs] of a stacked parameter, by its index in the leading axes."""


@dataclass(frozen=True)
class Method:
    """A way to round.

    Attributes:
        encoding: how codes are packed.
        codes: f32[R, groups, C/groups] and f32[R, groups, 1] of scales -> numbers of the encoding.
        scale: f32[R, groups, C/groups] -> f32[R, groups, 1].
        group: inputs that share a scale; None is all of them.
        scale_type: of the scales.
    """

    encoding: Encoding
    codes: Callable[[np.ndarray, np.ndarray], np.ndarray]
    scale: Callable[[np.ndarray], np.ndarray]
    group: int | None = None
    scale_type: Any = np.float32


def _largest(x: np.ndarray) -> np.ndarray:
    return np.abs(x).max(-1, keepdims=True)


def _signed(x: np.ndarray) -> np.ndarray:
    """The element that is largest in magnitude, with its sign."""
    return np.take_along_axis(x, np.abs(x).argmax(-1, keepdims=True), axis=-1)


METHODS = {
    "int8": Method(
        Whole(), lambda x, s: np.rint(x / s).astype(np.int8), lambda x: _largest(x) / 127
    ),
    # The largest element is -8 exactly, so that all sixteen numbers are in use (Q4_0 of GGML).
    "int4": Method(
        Nibbles(), lambda x, s: np.clip(np.rint(x / s), -8, 7).astype(np.int8),
        lambda x: _signed(x) / -8, group=128, scale_type=ml_dtypes.bfloat16,
    ),
    "fp8": Method(
        Whole(), lambda x, s: np.clip(x / s, -FP8_MAX, FP8_MAX).astype(ml_dtypes.float8_e4m3fn),
        lambda x: _largest(x) / FP8_MAX,
    ),
}  # fmt: skip


def method(name: str | Method, group: int | None = None) -> Method:
    """The method of this name, with groups of another size if one is given.

    Raises:
        ValueError: there is none.
    """
    if isinstance(name, Method):
        return name
    if name not in METHODS:
        raise ValueError(f"quantize={name!r} is not one of {', '.join(METHODS)}")
    return METHODS[name] if group is None else replace(METHODS[name], group=group)


def quantize(params: dict, name: str | Method = "int8") -> dict:
    """The parameters of `Decoder.init` or `zoo.load` with `Quantized` where a matrix was.

    Raises:
        ValueError: the method is not known, or some parameters are quantised already.
    """
    how = method(name)
    if is_quantized(params):
        raise ValueError("params are quantised already: load them with a dtype first")

    def one(keys: tuple, leaf: jax.Array) -> jax.Array | Quantized:
        path = "/".join(key.key for key in keys[1:])  # below "params"
        found = place(path, leaf.shape)
        if found is None:
            return leaf
        return encode(lambda index: np.asarray(leaf[index]), found, how)

    return jax.tree_util.tree_map_with_path(one, params)


@dataclass(frozen=True)
class Place:
    """Where matrices are in a parameter: its leading axes, and the axes [*ins, *outs] of each."""

    lead: Shape
    shape: Shape
    inputs: int

    @property
    def matrix(self) -> Shape:
        """[R, C]."""
        return math.prod(self.shape[self.inputs :]), math.prod(self.shape[: self.inputs])


def place(path: str, shape: Shape) -> Place | None:
    """The matrices of a parameter "stack_0/layer_0/attn/q/w", or None if it is to stay as it is."""
    *owners, name, _ = path.split("/")
    stays = name in FLOAT or owners[-1:] == ["indexer"]
    return None if stays else matrices(path, shape)


def matrices(path: str, shape: Shape) -> Place | None:
    """The matrices of a linear map, or None if a parameter is none, or the head.

    Output projections are the only ones of several input axes, and have one output axis.
    """
    *parents, leaf = path.split("/")
    if leaf != "w" or parents[0] == "head" or parents[-1].endswith("_conv"):
        return None
    owner, name = parents[-2:]
    lead = parents[0].startswith("stack_") + (owner == "moe" and name in EXPERTS)
    rest = shape[lead:]
    return Place(shape[:lead], rest, len(rest) - 1 if name == "o" else 1)


def encode(
    read: Read,
    where: Place,
    how: Method,
    put: Callable = jnp.asarray,
    empty: Callable = np.empty,
) -> Quantized:
    """The matrices that `read` gives, one at a time.

    Args:
        read: called with every index of `where.lead`.
        where: of `place`.
        how: to round.
        put: a numpy array to a device.
        empty: a numpy array of a shape and type to fill; what `put` can take without a copy.
    """
    (rows, columns), form = where.matrix, _form(where, how)
    codes, scales = None, empty((*where.lead, *form.grid), np.dtype(how.scale_type))
    step = max(1, CHUNK // columns)
    for index in np.ndindex(*where.lead):
        whole = read(index).reshape(columns, rows)
        for start in range(0, rows, step):
            part = slice(start, start + step)
            made, scales[index][part] = _rounded(whole[:, part].T.astype(np.float32), form, how)
            if codes is None:
                codes = empty((*where.lead, *form.codes_shape), made.dtype)
            codes[index][part] = made
    view = Matrix(where.shape, where.inputs)
    return Quantized(put(codes), put(scales), None, form, view)


def shapes(where: Place, how: Method) -> Quantized:
    """What `encode` makes, as `jax.ShapeDtypeStruct`s."""
    form = _form(where, how)
    codes, _ = _rounded(np.zeros((1, form.shape[-1]), np.float32), form, how)
    return Quantized(
        jax.ShapeDtypeStruct((*where.lead, *form.codes_shape), codes.dtype),
        jax.ShapeDtypeStruct((*where.lead, *form.grid), how.scale_type),
        None, form, Matrix(where.shape, where.inputs),
    )  # fmt: skip


def _form(where: Place, how: Method) -> Form:
    columns = where.matrix[1]
    return Form(where.matrix, how.encoding, (1, min(how.group or columns, columns)))


def _rounded(x: np.ndarray, form: Form, how: Method) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of some rows, f32[rows, C]."""
    (rows, columns), size = x.shape, form.block[1]
    groups = form.grid[1]
    padded = np.pad(x, ((0, 0), (0, groups * size - columns))).reshape(rows, groups, size)
    scales = how.scale(padded).astype(how.scale_type)
    scales = np.where(scales == 0, np.ones_like(scales), scales)
    numbers = how.codes(padded, scales.astype(np.float32)).reshape(rows, -1)[:, :columns]
    return form.encoding.pack(numbers), scales[..., 0]
