"""Which kernel runs on which platform: the only file that looks at it.

The choice is made when a program is lowered, not when it is traced, so one traced function exports
for cpu, cuda and tpu.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import chex
import jax
from jax import lax

from zoo import (
    attention,
    attention_tpu,
    exchange,
    grouped_cpu,
    grouped_gpu,
    grouped_tpu,
    quantized_cpu,
    ring,
)
from zoo.attention import Sight, causal_backward, causal_forward
from zoo.precision import precision
from zoo.quantized import Form

__all__ = ["attend", "bring_back", "grouped_matmul", "quantized_matmul", "send"]

INTEGER_PRODUCTS = jax.__version_info__ >= (0, 10)
"""Whether XLA on CPU has kernels for products of int8; before, they were loops."""


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    slots: jax.Array | None = None,
    offset: jax.Array | None = None,
    **how: Any,
) -> jax.Array:
    """`zoo.attention.attend` by the platform's kernel, or `zoo.ring.attend` where `slots` say that
    devices share rows."""
    if slots is None:
        return attention.attend(q, k, v, offset=offset, causal=_causal, **how)
    return ring.attend(q, k, v, slots=slots, **how)


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


@jax.custom_vjp
def grouped_matmul(lhs: jax.Array, rhs: jax.Array, group_sizes: jax.Array) -> jax.Array:
    """Multiplies each group of consecutive rows by the matrix of its group.

    Args:
        lhs: dtype[M, D], the rows of group 0 first, then those of group 1, and so on.
        rhs: dtype[E, D, F], one matrix per group.
        group_sizes: i32[E], rows per group, any of them zero; their sum is at most M.

    Returns:
        dtype[M, F], accumulated in float32. Rows beyond the last group are zero, and so are their
        gradients.
    """
    chex.assert_rank([lhs, rhs, group_sizes], [2, 3, 1])
    chex.assert_shape(rhs, (group_sizes.shape[0], lhs.shape[1], None))
    return _gmm(lhs, rhs, group_sizes)


def _grouped_matmul_forward(lhs, rhs, group_sizes):
    return grouped_matmul(lhs, rhs, group_sizes), (lhs, rhs, group_sizes)


def _grouped_matmul_backward(saved, grad):
    lhs, rhs, group_sizes = saved
    rhs_grad = _tgmm(lhs, grad, group_sizes).astype(rhs.dtype)
    return _gmm_transposed(grad, rhs, group_sizes), rhs_grad, None


grouped_matmul.defvjp(_grouped_matmul_forward, _grouped_matmul_backward)


def _by_platform(name: str):
    """The function of this name in `grouped_{cpu,gpu,tpu}`, compiled once also outside of a jit."""

    kernels = {"tpu": getattr(grouped_tpu, name), "default": getattr(grouped_cpu, name)}
    if grouped_gpu.triton is not None:
        kernels["cuda"] = getattr(grouped_gpu, name)

    @jax.jit
    def function(lhs, rhs, group_sizes):
        if "cuda" not in kernels and jax.default_backend() == "gpu":
            _say_that_loops_are_slow()
        return lax.platform_dependent(lhs, rhs, group_sizes, **kernels)

    return function


@functools.cache
def _say_that_loops_are_slow() -> None:
    logging.getLogger(__name__).warning(
        "jax %s has no Triton backend in Pallas: experts run as XLA's loops, which are slow on "
        "GPUs; an earlier jax has it",
        jax.__version__,
    )


_gmm, _gmm_transposed, _tgmm = map(_by_platform, ("gmm", "gmm_transposed", "tgmm"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def send(rows: jax.Array, trip: exchange.Trip, group: exchange.Group) -> jax.Array:
    """Within `shard_map`: rows to the devices that they are for, dtype[M, D] -> dtype[P * S, D]."""
    return _exchanged("send", rows, trip, group=group)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def bring_back(
    blocks: jax.Array, trip: exchange.Trip, group: exchange.Group, count: int
) -> jax.Array:
    """Within `shard_map`: what `send` sent, home again, dtype[P * S, D] -> dtype[M = count, D]."""
    return _exchanged("return", blocks, trip, group=group, count=count)


def _send_forward(rows, trip, group):
    return send(rows, trip, group), (trip, len(rows))


def _send_backward(group, saved, grad):
    trip, count = saved
    return bring_back(grad, trip, group, count), None


def _bring_back_forward(blocks, trip, group, count):
    return bring_back(blocks, trip, group, count), trip


def _bring_back_backward(group, count, trip, grad):
    return send(grad, trip, group), None


send.defvjp(_send_forward, _send_backward)
bring_back.defvjp(_bring_back_forward, _bring_back_backward)


def _exchanged(name: str, rows: jax.Array, trip: exchange.Trip, **how) -> jax.Array:
    """Ragged where the platform can, padded elsewhere."""
    ragged, padded = (
        functools.partial(getattr(exchange, f"{name}_{kind}"), **how)
        for kind in ("ragged", "padded")
    )
    return lax.platform_dependent(rows, trip, cuda=ragged, tpu=ragged, default=padded)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def quantized_matmul(x: jax.Array, codes: jax.Array, scales: jax.Array, form: Form) -> jax.Array:
    """Multiplies rows by a quantised matrix without zero points.

    Args:
        x: dtype[M, C].
        codes: of `form`, whose matrix is [R, C].
        scales: of `form`.
        form: how they make the matrix.

    Returns:
        dtype[M, R]. Gradients reach x alone.
    """
    chex.assert_shape(x, (None, form.matrix[-1]))

    def floats(x, codes, scales):
        return _by_floats(x, codes, scales, form, 1)

    def integers(x, codes, scales):
        return quantized_cpu.matmul(x, codes, scales)

    if not INTEGER_PRODUCTS or not quantized_cpu.serves(form, codes, len(x)):
        return floats(x, codes, scales)
    return lax.platform_dependent(x, codes, scales, cpu=integers, default=floats)


def _by_floats(x, codes, scales, form, axis):
    """Contracts the columns of the matrix, axis 1, or its rows."""
    w = form.dequantize(codes, scales, None, x.dtype)
    axes = (((1,), (axis,)), ((), ()))
    return lax.dot_general(x, w, axes, precision=precision(x.dtype))


def _quantized_matmul_forward(x, codes, scales, form):
    return quantized_matmul(x, codes, scales, form), (codes, scales)


def _quantized_matmul_backward(form, saved, grad):
    return _by_floats(grad, *saved, form, 0), None, None


quantized_matmul.defvjp(_quantized_matmul_forward, _quantized_matmul_backward)
