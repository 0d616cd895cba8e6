"""Which kernel runs on which platform: the only file that looks at it.

The choice is made when a program is lowered, not when it is traced, so one traced function exports
for cpu, cuda and tpu.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import lax

from zoo import (
    attention,
    attention_tpu,
    exchange,
    grouped_cpu,
    grouped_gpu,
    grouped_tpu,
    pairs,
    quantized_cpu,
    ring,
    row_cpu,
)
from zoo.attention import Sight, causal_backward, causal_forward
from zoo.buffer import Paged
from zoo.layered import Layered, cut_out, gradient
from zoo.precision import precision
from zoo.quantized import Form, Quantized, floats

__all__ = [
    "apart", "attend", "bring_back", "grouped_matmul", "head_matmul", "quantized_matmul",
    "row_product", "send",
]  # fmt: skip

PAGES, PAGES_ON_CPU = 64, 8
"""Of a row that a step of attention brings together: what caches of a CPU keep, or few steps."""


def attend(
    q: jax.Array,
    k: jax.Array | Paged,
    v: jax.Array | Paged,
    *,
    slots: jax.Array | None = None,
    offset: jax.Array | None = None,
    **how: Any,
) -> jax.Array:
    """`zoo.attention.attend` by the platform's kernel, or `zoo.ring.attend` where `slots` say that
    devices share rows, or `zoo.attention.attend_paged`."""
    if isinstance(k, Paged):
        return _attend_paged(q, k, v, offset, **how)
    if slots is None:
        return attention.attend(q, k, v, offset=offset, causal=_causal, **how)
    return ring.attend(q, k, v, slots=slots, **how)


def _attend_paged(
    q: jax.Array,
    k: Paged,
    v: Paged,
    offset: jax.Array,
    *,
    segment_ids: None = None,
    allowed: jax.Array | None = None,
    sinks: jax.Array | None = None,
    **options: Any,
) -> jax.Array:
    on_cpu, default = (
        functools.partial(attention.attend_paged, at_a_time=pages, **options)
        for pages in (PAGES_ON_CPU, PAGES)
    )
    return lax.platform_dependent(q, k, v, offset, allowed, sinks, cpu=on_cpu, default=default)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def _causal(q, k, v, sight: Sight, sinks, window, softcap):
    """As `zoo.attention` has it; scaled q[B, K, G, T, H] -> [B, K, G, T, Hv]."""
    return _causal_forward(q, k, v, sight, sinks, window, softcap)[0]


def _causal_forward(q, k, v, sight, sinks, window, softcap):
    if not attention_tpu.suits(q, sight.allowed, sinks):
        return causal_forward(q, k, v, sight, sinks, window, softcap)

    def plain(q, k, v, ids):
        return causal_forward(q, k, v, Sight(ids, None), None, window, softcap)[0]

    splash = functools.partial(attention_tpu.causal, window=window, softcap=softcap)
    out = lax.platform_dependent(q, k, v, sight.segment_ids, tpu=splash, default=plain)
    return out, (q, k, v, out, sight, sinks)


def _causal_backward(window, softcap, saved, grad):
    q, k, v, out, sight, sinks = saved
    if not attention_tpu.suits(q, sight.allowed, sinks):
        return causal_backward(window, softcap, saved, grad)

    def plain(q, k, v, ids, grad, out):
        kept = q, k, v, out, Sight(ids, None), None
        return causal_backward(window, softcap, kept, grad)[:3]

    def splash(q, k, v, ids, grad, out):
        return attention_tpu.causal_gradients(q, k, v, ids, grad, window, softcap)

    inputs = q, k, v, sight.segment_ids, grad, out
    grads = lax.platform_dependent(*inputs, tpu=splash, default=plain)
    return *grads, None, None


_causal.defvjp(_causal_forward, _causal_backward)


def row_product(x: jax.Array, w: jax.Array) -> jax.Array:
    """x dtype[D] @ w dtype[D, F] -> dtype[F], as in decoding a single text."""

    def elsewhere(x, w):
        return jnp.dot(x, w, precision=precision(x.dtype))

    return lax.platform_dependent(x, w, cpu=row_cpu.product, default=elsewhere)


def apart(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What stands first and what stands second in the pairs of dtype[..., 2 P], [..., P] each."""
    return tuple(lax.platform_dependent(x, tpu=pairs.by_product, default=pairs.apart))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def grouped_matmul(
    lhs: jax.Array,
    rhs: jax.Array | Quantized | Layered,
    group_sizes: jax.Array,
    alone: bool = False,
) -> jax.Array:
    """Multiplies each group of consecutive rows by the matrix of its group.

    Args:
        lhs: dtype[M, D], the rows of group 0 first, then those of group 1, and so on.
        rhs: dtype[E, D, F], one matrix per group; gradients reach those that are not quantised.
        group_sizes: i32[E], rows per group, any of them zero; their sum is at most M.
        alone: whether no two rows share a group, which a kernel may make use of.

    Returns:
        dtype[M, F], accumulated in float32. Rows beyond the last group are zero, and so are their
        gradients.
    """
    chex.assert_rank([lhs, group_sizes], [2, 1])
    chex.assert_shape(rhs, (group_sizes.shape[0], lhs.shape[1], None))
    return (_gmm_alone if alone else _gmm)(lhs, rhs, group_sizes)


def _grouped_matmul_forward(lhs, rhs, group_sizes, alone):
    return grouped_matmul(lhs, rhs, group_sizes, alone), (lhs, rhs, group_sizes)


def _grouped_matmul_backward(alone, saved, grad):
    lhs, rhs, group_sizes = saved
    lhs_grad = _gmm_transposed(grad, rhs, group_sizes)
    if isinstance(rhs, Quantized):
        return lhs_grad, None, None
    rhs_grad = _tgmm(lhs, grad, group_sizes).astype(rhs.dtype)
    return lhs_grad, gradient(rhs, rhs_grad), None


grouped_matmul.defvjp(_grouped_matmul_forward, _grouped_matmul_backward)


def _by_platform(name: str, cpu: Callable | None = None):
    """The function of this name in `grouped_{cpu,gpu,tpu}`, compiled once also outside of a jit.

    `cpu` is another one for CPU.
    """

    kernels = {
        "tpu": _of_floats(getattr(grouped_tpu, name)),
        "default": _of_layer(getattr(grouped_cpu, name)),
    }
    if cpu is not None:
        kernels["cpu"] = _of_layer(cpu)
    if grouped_gpu.triton is not None:
        kernels["cuda"] = _of_layer(_of_floats(getattr(grouped_gpu, name)))

    @jax.jit
    def function(lhs, rhs, group_sizes):
        if "cuda" not in kernels and jax.default_backend() == "gpu":
            _say_that_loops_are_slow()
        return lax.platform_dependent(lhs, rhs, group_sizes, **kernels)

    return function


def _of_floats(kernel: Callable) -> Callable:
    """The kernel, by matrices that may be quantised: all of them become floats before."""

    def function(lhs, rhs, group_sizes):
        return kernel(lhs, floats(rhs, lhs.dtype), group_sizes)

    return function


def _of_layer(kernel: Callable) -> Callable:
    """The kernel, by matrices that may be `Layered`: without other layers'."""
    return lambda lhs, rhs, group_sizes: kernel(lhs, cut_out(rhs), group_sizes)


@functools.cache
def _say_that_loops_are_slow() -> None:
    logging.getLogger(__name__).warning(
        "jax %s has no Triton backend in Pallas: experts run as XLA's loops, which are slow on "
        "GPUs; an earlier jax has it",
        jax.__version__,
    )


_gmm, _gmm_transposed, _tgmm = map(_by_platform, ("gmm", "gmm_transposed", "tgmm"))
_gmm_alone = _by_platform("gmm", cpu=grouped_cpu.gmm_alone)


def send(rows: jax.Array, trip: exchange.Trip, group: exchange.Group) -> jax.Array:
    """Within `shard_map`: rows to the devices that they are for, dtype[M, ...] -> dtype[R, ...]."""
    return _exchanged("send", group, rows, trip)


def bring_back(
    there: jax.Array, onto: jax.Array, trip: exchange.Trip, group: exchange.Group
) -> jax.Array:
    """Within `shard_map`: what `send` sent, home again: dtype[R, ...] over dtype[M, ...]."""
    return _exchanged("return", group, there, onto, trip)


def _exchanged(name: str, group: exchange.Group, *args: Any) -> jax.Array:
    """Ragged where the platform can, padded elsewhere."""
    ragged, padded = (
        functools.partial(getattr(exchange, f"{name}_{kind}"), group=group)
        for kind in ("ragged", "padded")
    )
    return lax.platform_dependent(*args, cuda=ragged, tpu=ragged, default=padded)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def quantized_matmul(
    x: jax.Array, codes: jax.Array, scales: jax.Array, zeros: jax.Array | None, form: Form
) -> jax.Array:
    """Multiplies rows by a quantised matrix.

    Args:
        x: dtype[M, C].
        codes: of `form`, whose tensor is [R, C].
        scales: of `form`.
        zeros: of `form`, or None.
        form: how they make the tensor.

    Returns:
        dtype[M, R]. Gradients reach x alone.
    """
    chex.assert_shape(x, (None, form.shape[-1]))

    def elsewhere(x, codes, scales, zeros):
        return _by_floats(x, codes, scales, zeros, form, 1)

    on_cpu = functools.partial(quantized_cpu.matmul, form=form)
    return lax.platform_dependent(x, codes, scales, zeros, cpu=on_cpu, default=elsewhere)


def _by_floats(x, codes, scales, zeros, form, axis):
    """Contracts the columns of the tensor, axis 1, or its rows."""
    w = form.dequantize(codes, scales, zeros, x.dtype)
    axes = (((1,), (axis,)), ((), ()))
    return lax.dot_general(x, w, axes, precision=precision(x.dtype))


def _quantized_matmul_forward(x, codes, scales, zeros, form):
    return quantized_matmul(x, codes, scales, zeros, form), (codes, scales, zeros)


def _quantized_matmul_backward(form, saved, grad):
    return _by_floats(grad, *saved, form, 0), None, None, None


quantized_matmul.defvjp(_quantized_matmul_forward, _quantized_matmul_backward)


def head_matmul(
    x: jax.Array,
    codes: jax.Array,
    scales: jax.Array,
    zeros: jax.Array | None,
    form: Form,
    axis: int,
) -> jax.Array:
    """Multiplies what each head has by its own part of a quantised matrix; without gradients.

    Args:
        x: dtype[M, N, K], of N heads.
        codes: of `form`, whose tensor is [N * H, C].
        scales: of `form`.
        zeros: of `form`, or None.
        form: how they make the tensor.
        axis: 1 contracts C, 0 contracts H.

    Returns:
        dtype[M, N, H] or dtype[M, N, C].
    """
    heads, dims = x.shape[1], (((2,), (1 + axis,)), ((1,), (0,)))

    def by_floats(x, codes, scales, zeros):
        w = form.dequantize(codes, scales, zeros, x.dtype).reshape(heads, -1, form.shape[1])
        return lax.dot_general(x, w, dims, precision=precision(x.dtype)).swapaxes(0, 1)

    on_cpu = by_floats
    if quantized_cpu.divides(heads, form):
        on_cpu = functools.partial(quantized_cpu.by_head, form=form, axis=axis)
    return lax.platform_dependent(x, codes, scales, zeros, cpu=on_cpu, default=by_floats)
