"""Dropless mixture of experts: tokens sorted by expert, three grouped products, tokens put back.

Axes: T tokens, D embedding, F hidden of an expert, E experts, C chosen experts of a token, and
M = T * C rows, one for each choice of a token.

The idea of sorting instead of dropping or padding is MegaBlocks' (arXiv:2211.15841). Rows move only
by gathers, forward and backward: a sort is a permutation, so its transpose is the gather by the
inverse permutation, and no rows are scattered, which is slow on every platform.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from zoo import kernels
from zoo.layers import Gate, gated
from zoo.quantized import Quantized

FEW = 1 << 14
"""Comparisons of choices and experts that take less time than a search."""


class Order(NamedTuple):
    """Where the M = T * C choices of experts go when sorted by expert.

    Attributes:
        rows: i32[M], the choice (token * C + c) that stands in each sorted row.
        inverse: i32[M], the sorted row of each choice.
        group_sizes: i32[E], rows of each expert; dropped choices come after all of them.
    """

    rows: jax.Array
    inverse: jax.Array
    group_sizes: jax.Array


def expert_mlp(
    x: jax.Array,
    experts: jax.Array,
    weights: jax.Array,
    gate: jax.Array | Quantized,
    up: jax.Array | Quantized,
    down: jax.Array | Quantized,
    act: Gate = "silu",
    biases: tuple[jax.Array, jax.Array, jax.Array] | None = None,
    weigh_input: bool = False,
) -> jax.Array:
    """The weighted sum of each token's chosen experts, every one a gated MLP.

    Args:
        x: dtype[T, D], the tokens.
        experts: i32[T, C], chosen experts; a choice of E or more contributes nothing.
        weights: f32[T, C], the weight of each choice.
        gate: dtype[E, D, F].
        up: dtype[E, D, F].
        down: dtype[E, F, D].
        act: the activation of the gate, as in `zoo.config.MLP`.
        biases: of gate dtype[E, F], up dtype[E, F] and down dtype[E, D].
        weigh_input: multiplies what an expert reads by its weight, instead of what it says.

    Returns:
        dtype[T, D].
    """
    E, D, F = gate.shape
    chex.assert_shape(x, (None, D))
    chex.assert_equal_shape([experts, weights])
    chex.assert_shape([up, down], [(E, D, F), (E, F, D)])
    order = sort_by_expert(experts, E)
    gate_bias, up_bias, down_bias = biases or (None, None, None)

    def product(rows: jax.Array, w: jax.Array | Quantized, bias: jax.Array | None) -> jax.Array:
        y = kernels.grouped_matmul(rows, w, order.group_sizes, x.shape[0] == 1)
        return y if bias is None else y + _of_rows(bias, order)

    rows = dispatch(x, order)
    if weigh_input:
        rows = weigh(rows, weights, order)
    hidden = gated(product(rows, gate, gate_bias), product(rows, up, up_bias), act)
    if not weigh_input and down_bias is not None:
        return combine(product(hidden, down, down_bias), weights, order)
    if not weigh_input:  # here and not what comes out, which gradients of weights would need again
        hidden = weigh(hidden, weights, order)
    return summed(product(hidden, down, down_bias), order, x.shape[0])


def sort_by_expert(experts: jax.Array, num_experts: int) -> Order:
    """A stable order of the choices i32[T, C] by expert; those of E or more are dropped, last."""
    choices = experts.reshape(-1)
    dropped = (choices < 0) | (choices >= num_experts)
    choices = jnp.where(dropped, num_experts, choices)
    rows = jnp.argsort(choices, stable=True).astype(jnp.int32)
    # By comparing all where they are few: a search is a loop, of many small steps.
    how = "compare_all" if choices.size * num_experts <= FEW else "scan"
    ends = jnp.searchsorted(choices[rows], jnp.arange(num_experts), side="right", method=how)
    group_sizes = jnp.diff(ends, prepend=0).astype(jnp.int32)
    inverse = (
        jnp.zeros_like(rows)
        .at[rows]
        .set(jnp.arange(rows.size, dtype=jnp.int32), unique_indices=True)
    )
    return Order(rows, inverse, group_sizes)


def _of_rows(bias: jax.Array, order: Order) -> jax.Array:
    """Each sorted row's own of dtype[E, F] -> dtype[M, F]; zero for dropped rows."""
    ends = jnp.cumsum(order.group_sizes)
    owner = jnp.searchsorted(ends, jnp.arange(order.rows.size), side="right")
    return jnp.pad(bias, ((0, 1), (0, 0)))[owner]


@jax.custom_vjp
def dispatch(x: jax.Array, order: Order) -> jax.Array:
    """The token of each sorted row: dtype[T, D] -> dtype[M, D]."""
    return _take(x, order.rows // (order.rows.size // x.shape[0]))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def summed(rows: jax.Array, order: Order, tokens: int) -> jax.Array:
    """Sums the sorted rows of each token: dtype[M, D] -> dtype[T, D]."""
    places = order.inverse.reshape(tokens, -1).T
    return sum(_take(rows, place).astype(jnp.float32) for place in places).astype(rows.dtype)


def _dispatch_forward(x, order):
    return dispatch(x, order), (order, x.shape[0])


def _dispatch_backward(saved, grad):
    return summed(grad, *saved), None


def _summed_forward(rows, order, tokens):
    return summed(rows, order, tokens), order


def _summed_backward(tokens, order, grad):
    return dispatch(grad, order), None


dispatch.defvjp(_dispatch_forward, _dispatch_backward)
summed.defvjp(_summed_forward, _summed_backward)


@jax.custom_vjp
def weigh(rows: jax.Array, weights: jax.Array, order: Order) -> jax.Array:
    """Sorted rows times the weights f32[T, C] of their choices: dtype[M, D] -> dtype[M, D]."""
    return (rows * _take(weights.reshape(-1), order.rows)[:, None]).astype(rows.dtype)


def _weigh_forward(rows, weights, order):
    return weigh(rows, weights, order), (rows, weights, order)


def _weigh_backward(saved, grad):
    rows, weights, order = saved
    weight_grad = _take(jnp.sum(grad.astype(jnp.float32) * rows, axis=1), order.inverse)
    weight_grad = weight_grad.reshape(weights.shape).astype(weights.dtype)
    return weigh(grad, weights, order), weight_grad, None


weigh.defvjp(_weigh_forward, _weigh_backward)


@jax.custom_vjp
def combine(rows: jax.Array, weights: jax.Array, order: Order) -> jax.Array:
    """`summed`, of rows times their weights: dtype[M, D], f32[T, C] -> dtype[T, D]."""
    places = order.inverse.reshape(weights.shape).T
    scales = weights.astype(jnp.float32).T[..., None]
    total = sum(_take(rows, place) * scale for place, scale in zip(places, scales, strict=True))
    return total.astype(rows.dtype)


def _combine_forward(rows, weights, order):
    return combine(rows, weights, order), (rows, weights, order)


def _combine_backward(saved, grad):
    rows, weights, order = saved
    grads = _take(grad, order.rows // weights.shape[1]).astype(jnp.float32)
    scales = _take(weights.reshape(-1).astype(jnp.float32), order.rows)
    weight_grad = _take(jnp.sum(grads * rows, axis=1), order.inverse)
    rows_grad = (grads * scales[:, None]).astype(rows.dtype)
    return rows_grad, weight_grad.reshape(weights.shape).astype(weights.dtype), None


combine.defvjp(_combine_forward, _combine_backward)


def _take(x, index):
    return x.at[index].get(mode="promise_in_bounds")
