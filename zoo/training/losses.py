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


def cross_entropy(hidden: jax.Array, head: jax.Array, targets: jax.Array) -> jax.Array:
    """Negative log likelihood, in nats, of each target under softmax(hidden @ head).

    Args:
        hidden: dtype[M, D], after the final norm; its type is the type of the product.
        head: [D, V].
        targets: i32[M]; `IGNORED` where there is nothing to predict.

    Returns:
        f32[M], 0 where the target is ignored.
    """
    logits = jax.lax.dot_general(
        hidden, head.astype(hidden.dtype), (((1,), (0,)), ((), ())),
        precision=precision(hidden.dtype), preferred_element_type=jnp.float32,
    )  # fmt: skip
    real = targets != IGNORED
    chosen = jnp.take_along_axis(logits, jnp.where(real, targets, 0)[:, None], axis=-1)[:, 0]
    return jnp.where(real, jax.nn.logsumexp(logits, axis=-1) - chosen, 0.0)


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
