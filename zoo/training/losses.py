"""Losses: next-token cross entropy, and the load-balance loss of mixtures of experts.

Axes: M tokens of a batch in a row, D embedding, V vocabulary, L repeats of a stack, E experts.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo import pipeline
from zoo.layers import precision
from zoo.moe import MoEStats

IGNORED = -1
"""The target of a token that has no successor: it costs nothing."""

MOST_LOGITS = 2**28
"""How many logits are held at a time; a larger batch goes by parts, computed again backward."""


class Head(NamedTuple):
    """What turns hidden states into logits: softcap(scale * (hidden @ w + bias)).

    `w` [D, V], `bias` [V] or None; `scale` and `softcap` as in `zoo.Config`, numbers or None.
    """

    w: jax.Array
    bias: jax.Array | None = None
    scale: float = 1.0
    softcap: float | None = None


def cross_entropy(hidden: jax.Array, head: Head, targets: jax.Array) -> jax.Array:
    """Negative log likelihood, in nats, of each target under the softmax of `head`'s logits.

    Args:
        hidden: dtype[M, D], after the final norm; its type is the type of the product.
        head: what makes logits of it.
        targets: i32[M]; `IGNORED` where there is nothing to predict.

    Returns:
        f32[M], 0 where the target is ignored.
    """
    w, bias, scale, softcap = head
    loss = functools.partial(_cross_entropy, scale, softcap)
    count, vocab = len(targets), w.shape[-1]
    parts = -(-count * vocab // most_logits(_sharing()))
    if parts <= 1:
        return loss(hidden, w, bias, targets)
    parts = next(n for n in range(parts, count + 1) if count % n == 0)
    # Each part takes tokens from all over the batch, and so is spread over devices as that is.
    hidden = hidden.reshape(-1, parts, hidden.shape[-1]).swapaxes(0, 1)
    targets = targets.reshape(-1, parts).T
    part = jax.checkpoint(loss)
    return jax.lax.map(lambda p: part(p[0], w, bias, p[1]), (hidden, targets)).T.reshape(-1)


def most_logits(devices: int) -> int:
    """`MOST_LOGITS` where so many devices share them: each holds a quarter of what one would.

    Every part gathers a head that is cut over devices, and sums its gradient over them, so that
    there are to be as few parts as memory allows.
    """
    return MOST_LOGITS * max(1, devices // 4)


def _sharing() -> int:
    """Devices that share a batch's logits; all stages hold the same."""
    return jax.sharding.get_abstract_mesh().size // pipeline.stages()


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _cross_entropy(scale, softcap, hidden, w, bias, targets) -> jax.Array:
    """`cross_entropy` in one part; backward reads the logits once and scatters nothing back."""
    return _cross_entropy_forward(scale, softcap, hidden, w, bias, targets)[0]


def _cross_entropy_forward(scale, softcap, hidden, w, bias, targets):
    logits = _product(hidden, w.astype(hidden.dtype), (1, 0))
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    if scale != 1.0:
        logits = logits * scale
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    total = jax.nn.logsumexp(logits, axis=-1)
    real = targets != IGNORED
    chosen = jnp.take_along_axis(logits, jnp.where(real, targets, 0)[:, None], axis=-1)[:, 0]
    return jnp.where(real, total - chosen, 0.0), (hidden, w, bias, targets, logits, total)


def _cross_entropy_backward(scale, softcap, saved, grad):
    hidden, w, bias, targets, logits, total = saved
    grad = jnp.where(targets != IGNORED, grad, 0.0)[:, None]
    probs = jnp.exp(logits - total[:, None])
    hit = targets[:, None] == jnp.arange(logits.shape[-1])
    logits_grad = grad * jnp.where(hit, probs - 1.0, probs)
    if softcap is not None:
        logits_grad = logits_grad * (1 - jnp.square(logits / softcap))
    if scale != 1.0:
        logits_grad = logits_grad * scale
    bias_grad = None if bias is None else logits_grad.sum(0).astype(bias.dtype)
    logits_grad = logits_grad.astype(hidden.dtype)
    hidden_grad = _product(logits_grad, w.astype(hidden.dtype), (1, 1))
    w_grad = _product(hidden, logits_grad, (0, 0))
    return hidden_grad.astype(hidden.dtype), w_grad.astype(w.dtype), bias_grad, None


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def _product(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Contracts one axis of each matrix, accumulating in float32."""
    return jax.lax.dot_general(
        a, b, (((axes[0],), (axes[1],)), ((), ())),
        precision=precision(a.dtype), preferred_element_type=jnp.float32,
    )  # fmt: skip


def load_balance(stats: Iterable[MoEStats]) -> jax.Array:
    """E * sum_e f_e * P_e, pooled over the tokens of layers (Switch, arXiv:2101.03961 eq. 4-6).

    f_e is the mean number of assignments of a token to expert e, P_e its mean router probability,
    as `load_balancing_loss_func` of transformers has them: a balanced router scores top_k. Layers
    of as many experts are pooled, and of several such pools this is the mean over their tokens.

    Args:
        stats: per MoE layer, `load` and `prob` f32[..., E], `tokens` f32[...]; leading axes are
            pooled.

    Returns:
        f32[]; 0 without layers.
    """
    pools: dict[int, list[MoEStats]] = {}
    for layer in stats:
        pools.setdefault(layer.load.shape[-1], []).append(layer)
    found = [_pooled(layers) for layers in pools.values()]
    total = sum(tokens for _, tokens in found)
    return jnp.asarray(sum(score * (tokens / total) for score, tokens in found), jnp.float32)


def _pooled(layers: list[MoEStats]) -> tuple[jax.Array, jax.Array]:
    """`load_balance` of layers of as many experts, and how many tokens they read together."""
    load, prob = (
        sum(x.reshape(-1, x.shape[-1]).sum(0) for x in sums)
        for sums in ([s.load for s in layers], [s.prob for s in layers])
    )
    tokens = jnp.maximum(sum(s.tokens.sum() for s in layers), 1.0)
    return load.size * jnp.sum(load / tokens * (prob / tokens)), tokens
