"""Which kernel runs on which platform: the only file that looks at it.

The choice is made when a program is lowered, not when it is traced, so one traced function exports
for cpu, cuda and tpu.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import lax

from zoo import grouped_cpu, grouped_gpu, grouped_tpu
from zoo.attention import attend

__all__ = ["attend", "grouped_matmul", "grouped_mlp"]


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

    @jax.jit
    def function(lhs, rhs, group_sizes):
        return lax.platform_dependent(
            lhs,
            rhs,
            group_sizes,
            cuda=getattr(grouped_gpu, name),
            tpu=getattr(grouped_tpu, name),
            default=getattr(grouped_cpu, name),
        )

    return function


_gmm, _gmm_transposed, _tgmm = map(_by_platform, ("gmm", "gmm_transposed", "tgmm"))


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def grouped_mlp(x, gate, up, down, group_sizes, act: Callable) -> jax.Array:
    """A gated MLP for each group of consecutive rows, act(x @ gate) * (x @ up) @ down.

    Args:
        x: dtype[M, D], the rows of group 0 first, then those of group 1, and so on.
        gate: dtype[E, D, F].
        up: dtype[E, D, F].
        down: dtype[E, F, D].
        group_sizes: i32[E], as in `grouped_matmul`.
        act: a function of single numbers, the activation of the gate.

    Returns:
        dtype[M, D], zero beyond the last group.
    """
    return _mlp(x, gate, up, down, group_sizes, act)[0]


def _grouped_mlp_forward(x, gate, up, down, group_sizes, act):
    out, halves = _mlp(x, gate, up, down, group_sizes, act)
    return out, (x, gate, up, down, group_sizes, halves)


def _grouped_mlp_backward(act, saved, grad):
    x_grad, *grads = _mlp_backward(*saved, grad, act)
    grads = (g.astype(w.dtype) for g, w in zip(grads, saved[1:4], strict=True))
    return x_grad, *grads, None


grouped_mlp.defvjp(_grouped_mlp_forward, _grouped_mlp_backward)


@functools.partial(jax.jit, static_argnums=5)
def _mlp(x, gate, up, down, group_sizes, act):
    def composed(module):
        def function(x, gate, up, down, group_sizes):
            halves = [module.gmm(x, w, group_sizes) for w in (gate, up)]
            out = module.gmm(act(halves[0]) * halves[1], down, group_sizes)
            return out, jnp.concatenate(halves, axis=1)

        return function

    return lax.platform_dependent(
        x,
        gate,
        up,
        down,
        group_sizes,
        cuda=composed(grouped_gpu),
        tpu=composed(grouped_tpu),
        default=functools.partial(grouped_cpu.mlp, act=act),
    )


@functools.partial(jax.jit, static_argnums=7)
def _mlp_backward(x, gate, up, down, group_sizes, halves, grad, act):
    def composed(module):
        def function(x, gate, up, down, group_sizes, halves, grad):
            hidden, pull = jax.vjp(lambda g, u: act(g) * u, *jnp.split(halves, 2, axis=1))
            gate_grad, up_grad = pull(module.gmm_transposed(grad, down, group_sizes))
            x_grad = module.gmm_transposed(gate_grad, gate, group_sizes)
            x_grad += module.gmm_transposed(up_grad, up, group_sizes)
            pairs = (x, gate_grad), (x, up_grad), (hidden, grad)
            return x_grad, *(module.tgmm(*pair, group_sizes) for pair in pairs)

        return function

    return lax.platform_dependent(
        x,
        gate,
        up,
        down,
        group_sizes,
        halves,
        grad,
        cuda=composed(grouped_gpu),
        tpu=composed(grouped_tpu),
        default=functools.partial(grouped_cpu.mlp_backward, act=act),
    )
