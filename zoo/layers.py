"""Norms, linear maps and embeddings: the only place that creates parameters.

Axes: B batch, T positions, D embedding, F hidden of the MLP, V vocabulary. Weights are shaped in
einsum order (input axes, then output axes) and carry logical axis names for `zoo.sharding`.
Parameters live in `param_dtype`; products run in `dtype`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from zoo import kernels
from zoo.config import MLP, Activation, ClampedSwiGLU, LayerNorm, Norm
from zoo.layered import Layered, cut_out
from zoo.lookup import lookup
from zoo.lora import Adapted, whole
from zoo.precision import precision
from zoo.quantized import Matrix, Quantized, waiting

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}
GATES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    # in float32, as `LagunaAttention`
    "softplus": lambda x: jax.nn.softplus(x.astype(jnp.float32)).astype(x.dtype),
}

HEADS_FIRST = "w_heads_first"
"""What a `Linear` calls its weight [N, R, H], where it is held beside the one of [R, N, H]."""

Weight = jax.Array | Quantized | Adapted | Layered
"""A matrix as a module holds it."""


def rms_norm(
    x: jax.Array,
    scale: jax.Array | None,
    norm: Norm,
    axes: tuple[int, ...] = (-1,),
) -> jax.Array:
    """x / rms(x) * scale over the last axes; scale has their shape, or is None.

    The statistics are float32. The result is rounded to x's type before the scale multiplies it
    (`LlamaRMSNorm` of transformers), or after it for a `wide` norm (`Gemma2RMSNorm`).
    """
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=axes, keepdims=True)
    unit = wide * jax.lax.rsqrt(mean_square + norm.eps)
    if scale is None:
        return unit.astype(x.dtype)
    if norm.wide:
        return (unit * (norm.offset + scale.astype(jnp.float32))).astype(x.dtype)
    return unit.astype(x.dtype) * (norm.offset + scale.astype(x.dtype))


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """(x - mean) / std * scale + bias over the last axis, in float32; rounded to x's type last."""
    wide = x.astype(jnp.float32)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    unit = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + eps)
    return (unit * scale.astype(jnp.float32) + bias.astype(jnp.float32)).astype(x.dtype)


Gate = Activation | ClampedSwiGLU


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def gated(gate: jax.Array, up: jax.Array, act: Gate) -> jax.Array:
    """act(gate) * up, elementwise; gate and up are all that backward keeps."""
    return _gated(gate, up, act)


def _gated(gate: jax.Array, up: jax.Array, act: Gate) -> jax.Array:
    if not isinstance(act, ClampedSwiGLU):
        return ACTIVATIONS[act](gate) * up
    gate = jnp.minimum(gate, act.limit)
    return gate * jax.nn.sigmoid(act.alpha * gate) * (jnp.clip(up, -act.limit, act.limit) + 1)


def _gated_forward(gate, up, act):
    return gated(gate, up, act), (gate, up)


def _gated_backward(act, saved, grad):
    gate, up = saved
    return jax.vjp(functools.partial(_gated, act=act), gate, up)[1](grad)


gated.defvjp(_gated_forward, _gated_backward)


def project(x: jax.Array, w: jax.Array, dtype: jnp.dtype, inputs: int = 1) -> jax.Array:
    """Contracts the last `inputs` axes of x with the first of w, both rounded to `dtype`."""
    return _project(x.astype(dtype), w.astype(dtype), inputs)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _project(x, w, inputs):
    if _is_one_row(x, inputs) and not nn.get_logical_axis_rules():
        rows, columns = x.size, math.prod(w.shape[inputs:])
        y = kernels.row_product(x.reshape(rows), w.reshape(rows, columns))
        return y.reshape(*x.shape[: x.ndim - inputs], *w.shape[inputs:])
    return _contract(x, w, range(x.ndim - inputs, x.ndim), range(inputs))


def _is_one_row(x: jax.Array, inputs: int) -> bool:
    return math.prod(x.shape[: x.ndim - inputs]) == 1


def _project_forward(x, w, inputs):
    return _project(x, w, inputs), (x, w)


def _project_backward(inputs, saved, grad):
    """As autodiff, but for the order in the gradient of w: x leads, so that x is transposed.

    Autodiff leads with the output's gradient, and XLA on CPU fuses its transposition with all that
    computes it, strided: a quarter of a training step.
    """
    x, w = saved
    lead = x.ndim - inputs
    x_grad = _contract(grad, w, range(lead, grad.ndim), range(inputs, w.ndim))
    return x_grad, _contract(x, grad, range(lead), range(lead))


_project.defvjp(_project_forward, _project_backward)


def _contract(a: jax.Array, b: jax.Array, a_axes: range, b_axes: range) -> jax.Array:
    axes = ((tuple(a_axes), tuple(b_axes)), ((), ()))
    return jax.lax.dot_general(a, b, axes, precision=precision(a.dtype))


def weight(module: nn.Module, name: str, init: Callable, shape: tuple[int, ...]) -> Weight:
    """A parameter of a module as it is held: an array, quantised, or with an adapter."""
    held = module.get_variable("params", name) if module.has_variable("params", name) else None
    if not isinstance(held, Quantized | Adapted | Layered):
        return module.param(name, init, shape, module.param_dtype)
    chex.assert_shape(held, shape)
    return held


def multiply(x: jax.Array, held: Weight, dtype: jnp.dtype, inputs: int = 1) -> jax.Array:
    """`project` by a weight as it is held."""
    if isinstance(held, Adapted):
        inner = project(x, held.a, dtype, inputs) * held.scale
        return multiply(x, held.base, dtype, inputs) + project(inner, held.b, dtype)
    held = waiting(held, x)
    if isinstance(held, Quantized) and isinstance(held.view, Matrix):
        return project_quantized(x, held, dtype)
    return project(x, whole(held, dtype), dtype, inputs)


def project_quantized(x: jax.Array, held: Quantized, dtype: jnp.dtype) -> jax.Array:
    """Contracts the last axes of x, rounded to `dtype`, with the inputs of a `Matrix`."""
    inputs = held.view.inputs
    rows = x.astype(dtype).reshape(-1, held.form.shape[-1])
    y = kernels.quantized_matmul(rows, held.codes, held.scales, held.zeros, held.form)
    return y.reshape(*x.shape[: x.ndim - inputs], *held.view.shape[inputs:])


class Linear(nn.Module):
    """x @ w (+ b), from the last `len(inputs)` axes of x to `outputs`.

    `axes` are the logical names of inputs then outputs; `stacked` leading axes of the weight are
    independent copies (experts), which the caller multiplies itself through `stack`.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    axes: tuple[str, ...]
    bias: bool = False
    stacked: tuple[int, ...] = ()
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        first, inner = len(self.stacked), len(self.inputs)
        rank = first + inner + len(self.outputs)
        init = nn.initializers.variance_scaling(
            1.0,
            "fan_in",
            "truncated_normal",
            in_axis=tuple(range(first, first + inner)),
            out_axis=tuple(range(first + inner, rank)),
            batch_axis=tuple(range(first)),
        )
        shape = (*self.stacked, *self.inputs, *self.outputs)
        self.held = weight(self, "w", nn.with_logical_partitioning(init, self.axes), shape)
        self.heads_first = self.get_variable("params", HEADS_FIRST, None)
        if self.bias:
            axes = self.axes[:first] + self.axes[first + inner :]
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, axes)
            self.b = self.param("b", zeros, (*self.stacked, *self.outputs), self.param_dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = multiply(x, self.held, self.dtype, len(self.inputs))
        return y + self.b.astype(self.dtype) if self.bias else y

    def by_head(self, x: jax.Array, back: bool = False) -> jax.Array:
        """x[..., N, R] by the matrix of each head alone -> [..., N, H], or `back` from H to R.

        The map is one from R to [N, H]. Where `zoo.inference.unstack` has put the weight's heads
        first too, it is read so.
        """
        held = waiting(self.held, x)
        if isinstance(held, Quantized) and isinstance(held.view, Matrix):
            rows = x.astype(self.dtype).reshape(-1, *x.shape[-2:])
            parts = held.codes, held.scales, held.zeros, held.form
            return kernels.head_matmul(rows, *parts, 1 - back).reshape(*x.shape[:-1], -1)
        if self.heads_first is not None:
            w = self.heads_first.astype(self.dtype)
            how = "...nh,nrh->...nr" if back else "...nr,nrh->...nh"
            return jnp.einsum(how, x, w, precision=precision(self.dtype))
        w = whole(held, self.dtype).astype(self.dtype)
        how = "...nh,rnh->...nr" if back else "...nr,rnh->...nh"
        return jnp.einsum(how, x, w, precision=precision(self.dtype))

    def array(self, x: jax.Array) -> jax.Array:
        """[*stacked, *inputs, *outputs] in `dtype`, made after x where it is not held so."""
        return whole(waiting(self.held, x), self.dtype).astype(self.dtype)

    def stack(self, x: jax.Array) -> jax.Array | Quantized:
        """As `array`, or as it is held: quantised where the copies are matrices of their own, or
        among other layers'."""
        if isinstance(self.held, Layered):
            same = self.held.dtype == self.dtype
            return self.held if same else cut_out(self.held).astype(self.dtype)
        own = isinstance(self.held, Quantized) and len(self.held.lead) == len(self.stacked)
        return self.held if own else self.array(x)


class Normalize(nn.Module):
    """`rms_norm` or `layer_norm` with their parameters, over the last axes, of these sizes."""

    sizes: tuple[int, ...]
    norm: Norm | LayerNorm
    axes: tuple[str, ...] = ("norm",)
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if isinstance(self.norm, LayerNorm):
            scale, bias = self._param("scale", 1.0), self._param("b", 0.0)
            return layer_norm(x, scale, bias, self.norm.eps)
        scale = self._param("scale", 1.0 - self.norm.offset) if self.norm.scaled else None
        return rms_norm(x, scale, self.norm, tuple(range(-len(self.sizes), 0)))

    def _param(self, name: str, value: float) -> jax.Array:
        init = nn.with_logical_partitioning(nn.initializers.constant(value), self.axes)
        return self.param(name, init, self.sizes, self.param_dtype)


class Embed(nn.Module):
    """Token embeddings, table[V, D]."""

    vocab_size: int
    dim: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    def setup(self):
        init = nn.with_logical_partitioning(nn.initializers.normal(0.02), ("vocab", "embed"))
        held = weight(self, "table", init, (self.vocab_size, self.dim))
        self.table = whole(held, self.dtype)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """i32[B, T] -> dtype[B, T, D]."""
        return lookup(self.table, tokens, self.dtype)


class GatedMLP(nn.Module):
    """The feed-forward network of `MLP`, x[..., D] -> [..., D]."""

    spec: MLP
    dim: int
    dtype: jnp.dtype = jnp.float32
    param_dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        types = dict(bias=self.spec.bias, dtype=self.dtype, param_dtype=self.param_dtype)
        inner = ((self.dim,), (self.spec.hidden,), ("embed", "mlp"))
        gate = Linear(*inner, **types, name="gate")(x)
        up = Linear(*inner, **types, name="up")(x)
        hidden = gated(gate, up, self.spec.act)
        return Linear((self.spec.hidden,), (self.dim,), ("mlp", "embed"), **types, name="down")(
            hidden
        )
