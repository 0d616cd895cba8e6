"""Which kernel runs on which platform: the only file that looks at it.

The choice is made when a program is lowered, not when it is traced, so one traced function exports
for cpu, cuda and tpu.
"""

from __future__ import annotations

import chex
import jax
from jax import lax

from zoo import grouped_cpu, grouped_gpu, grouped_tpu
from zoo.attention import attend

__all__ = ["attend", "grouped_matmul"]


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
    chex.assert_equal_shape_suffix([lhs, rhs[:, :, 0]], 1)
    chex.assert_axis_dimension(rhs, 0, group_sizes.shape[0])
    return lax.platform_dependent(
        lhs,
        rhs,
        group_sizes,
        cuda=grouped_gpu.gmm,
        tpu=grouped_tpu.gmm,
        default=grouped_cpu.gmm,
    )


def _grouped_matmul_forward(lhs, rhs, group_sizes):
    return grouped_matmul(lhs, rhs, group_sizes), (lhs, rhs, group_sizes)


def _grouped_matmul_backward(saved, grad):
    lhs, rhs, group_sizes = saved
    lhs_grad = lax.platform_dependent(
        grad,
        rhs,
        group_sizes,
        cuda=grouped_gpu.gmm_transposed,
        tpu=grouped_tpu.gmm_transposed,
        default=grouped_cpu.gmm_transposed,
    )
    rhs_grad = lax.platform_dependent(
        lhs,
        grad,
        group_sizes,
        cuda=grouped_gpu.tgmm,
        tpu=grouped_tpu.tgmm,
        default=grouped_cpu.tgmm,
    )
    return lhs_grad, rhs_grad.astype(rhs.dtype), None


grouped_matmul.defvjp(_grouped_matmul_forward, _grouped_matmul_backward)
