"""Losses: next-token cross entropy, and the load-balance loss of mixtures of experts.

Axes: M tokens of a batch in a row, D embedding, V vocabulary, L repeats of a stack, E experts.
"""

from __future__ import annotations

from collections.abc import Iterable

import jax
import jax.numpy as jnp

from zoo.layers import precision
from zoo.moe import MoEStats

IGNORED = -1
"""The target of a token that has no successor: it costs nothing."""

MOST_LOGITS = 2**28
"""How many logits are held at a time; a larger batch goes by parts, computed again backward."""


def cross_entropy(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
    """Negative log likelihood, in nats, of each target under softmax(hidden @ head).

    Args:
        hidden: dtype[M, D], after the final norm; its type is the type of the product.
        head: [D, V].
        targets: i32[M]; `IGNORED` where there is nothing to predict.

    Returns:
        f32[M], 0 where the target is ignored.
    """
    count, vocab = len(targets), head.shape[-1]
    parts = -(-count * vocab // MOST_LOGITS)
    if parts <= 1:
        return _cross_entropy(hidden, head, targets)
    parts = next(n for n in range(parts, count + 1) if count % n == 0)
    # Each part takes tokens from all over the batch, and so is spread over devices as that is.
    hidden = hidden.reshape(-1, parts, hidden.shape[-1]).swapaxes(0, 1)
    targets = targets.reshape(-1, parts).T
    part = jax.checkpoint(_cross_entropy)
    return jax.lax.map(lambda p: part(p[0], head, p[1]), (hidden, targets)).T.reshape(-1)


@jax.custom_vjp
def _cross_entropy(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
    """`cross_entropy` in one part; backward reads the logits once and scatters nothing back."""
    return _cross_entropy_forward(hidden, head, targets)[0]


def _cross_entropy_forward(hidden, head, targets):
    logits = _product(hidden, head.astype(hidden.dtype), (1, 0))
    total = jax.nn.logsumexp(logits, axis=-1)
    real = targets != IGNORED
    chosen = jnp.take_along_axis(logits, jnp.where(real, targets, 0)[:, None], axis=-1)[:, 0]
    return jnp.where(real, total - chosen, 0.0), (hidden, head, targets, logits, total)


def _cross_entropy_backward(saved, grad):
    hidden, head, targets, logits, total = saved
    grad = jnp.where(targets != IGNORED, grad, 0.0)[:, None]
    probs = jnp.exp(logits - total[:, None])
    hit = targets[:, None] == jnp.arange(logits.shape[-1])
    logits_grad = (grad * jnp.where(hit, probs - 1.0, probs)).astype(hidden.dtype)
    hidden_grad = _product(logits_grad, head.astype(hidden.dtype), (1, 1))
    head_grad = _product(hidden, logits_grad, (0, 0))
    return hidden_grad.astype(hidden.dtype), head_grad.astype(head.dtype), None


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def _product(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Contracts one axis of each matrix, accumulating in float32."""
    return jax.lax.dot_general(
        a, b, (((axes[0],), (axes[1],)), ((), ())),
        precision=precision(a.dtype), preferred_element_type=jnp.float32,
    )  # fmt: skip


def load_balance(stats: Iterable[MoEStats]) -> jax.Array:
    """E * sum_e f_e * P_e, pooled over the tokens of all layers (Switch, arXiv:2101.03961 eq. 4-6).

    f_e is the mean number of assignments of a token to expert e, P_e its mean router probability,
    as `load_balancing_loss_func` of transformers has them: a balanced router scores top_k.

    Args:
        stats: per MoE layer, `load` and `prob` f32[..., E], `tokens` f32[...]; leading axes are
            pooled.

    Returns:
        f32[]; 0 without layers.

    Raises:
        ValueError: the layers differ in their number of experts, so that pooling has no meaning.
    """
    stats = list(stats)
    sizes = {s.load.shape[-1] for s in stats}
    if not stats:
        return jnp.zeros((), jnp.float32)
    if len(sizes) > 1:
        raise ValueError(
            f"load balance over layers of {sorted(sizes)} experts: it pools layers of equal size; "
            "set balance.aux_loss=0 and balance by the selection bias"
        )
    (experts,) = sizes
    load = sum(s.load.reshape(-1, experts).sum(0) for s in stats)
    prob = sum(s.prob.reshape(-1, experts).sum(0) for s in stats)
    tokens = jnp.maximum(sum(s.tokens.sum() for s in stats), 1.0)
    return experts * jnp.sum(load / tokens * (prob / tokens))
