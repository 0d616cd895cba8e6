"""Losses: next-token cross entropy, and the load-balance loss of mixtures of experts.

Axes: B batch, T positions, D embedding, V vocabulary, L repeats of a stack, E experts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from zoo import pipeline
from zoo.cut import Cut, in_force, over
from zoo.layers import precision
from zoo.moe import MoEStats

IGNORED = -1
"""The target of a token that has no successor: it costs nothing."""

MOST_LOGITS = 2**28
"""How many logits are held at a time; of a larger batch they go by pieces of the vocabulary."""


LANES = 128
"""What pieces of a vocabulary are multiples of."""


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

    Where there are many, logits are made of a piece of the vocabulary after the other, and backward
    again. Within `zoo.sharding.use` every device makes those of its own tokens: of the matrix it
    gathers each piece once in either pass, and gradients of a piece are summed over devices once.

    Args:
        hidden: dtype[..., D], after the final norm; its type is the type of the product.
        head: what makes logits of it.
        targets: i32[...], [B, T] on a mesh; `IGNORED` where there is nothing to predict.

    Returns:
        f32[...], 0 where the target is ignored.
    """
    pieces = -(-targets.size * head.w.shape[-1] // most_logits(_sharing()))
    how = _How(in_force(targets.shape, *head.w.shape), pieces, head.scale, head.softcap)
    return _cross_entropy(how, hidden, head.w, head.bias, targets)


def most_logits(devices: int) -> int:
    """`MOST_LOGITS` where so many devices share them: each holds a quarter of what one would."""
    return MOST_LOGITS * max(1, devices // 4)


def _sharing() -> int:
    """Devices that share a batch's logits; all stages hold the same."""
    return jax.sharding.get_abstract_mesh().size // pipeline.stages()


class _How(NamedTuple):
    """What a program of the loss is specialised on: `pieces` of the vocabulary, and the head's
    `scale` and `softcap`."""

    cut: Cut
    pieces: int
    scale: float
    softcap: float | None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _cross_entropy(how: _How, hidden, w, bias, targets) -> jax.Array:
    """`cross_entropy`; backward reads logits again, of a single piece, or makes them again."""
    return _cross_entropy_forward(how, hidden, w, bias, targets)[0]


def _cross_entropy_forward(how: _How, hidden, w, bias, targets):
    def local(hidden, w, bias, targets):
        shape, vocab = targets.shape, w.shape[1]
        hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)

        def piece(state: tuple, start: jax.Array, size: int):
            top, total, chosen, _ = state
            logits = _logits(how, hidden, *_piece(how, w, bias, start, size, hidden.dtype))
            higher = jnp.maximum(top, logits.max(-1))
            total = total * jnp.exp(top - higher) + jnp.exp(logits - higher[:, None]).sum(-1)
            place = targets - how.cut.first(vocab) - start
            found = jnp.take_along_axis(logits, jnp.clip(place, 0, size - 1)[:, None], -1)[:, 0]
            chosen = jnp.where((place >= 0) & (place < size), found, chosen)
            return higher, total, chosen, logits if how.pieces == 1 else None

        zeros = jnp.zeros(targets.shape)
        start = jnp.full_like(zeros, jnp.finfo(zeros.dtype).min), zeros, zeros, None
        top, total, chosen, logits = _by_piece(how, vocab, piece, start)
        highest = over(lax.pmax, top, how.cut.vocab)
        total = jnp.log(over(lax.psum, total * jnp.exp(top - highest), how.cut.vocab)) + highest
        chosen = over(lax.psum, chosen, how.cut.vocab)
        loss = jnp.where(targets == IGNORED, 0.0, total - chosen)
        found = loss, total, logits
        return jax.tree.map(lambda a: a.reshape(*shape, *a.shape[1:]), found)

    cut = how.cut
    rows, cuts = (cut.batch, cut.length), (cut.embed, cut.vocab)
    given, out = (rows, cuts, (cut.vocab,), rows), [rows, rows, (*rows, cut.vocab)]
    loss, total, logits = cut.by_device(local, given, out)(hidden, w, bias, targets)
    return loss, (hidden, w, bias, targets, total, logits)


def _cross_entropy_backward(how: _How, saved, grad):
    cut, alone = how.cut, how.cut.batch + how.cut.length
    scatter = functools.partial(lax.psum_scatter, scatter_dimension=0, tiled=True)

    def local(hidden, w, bias, *by_token):
        shape, vocab = hidden.shape, w.shape[1]
        hidden = hidden.reshape(-1, shape[-1])
        lead = len(shape) - 1
        flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[lead:]), by_token)
        targets, total, kept, grad = flat
        grad = jnp.where(targets == IGNORED, 0.0, grad)[:, None]

        def piece(state: tuple, start: jax.Array, size: int):
            hidden_grad, w_grad, bias_grad = state
            part = _piece(how, w, bias, start, size, hidden.dtype)
            logits = _logits(how, hidden, *part) if kept is None else kept
            probs = jnp.exp(logits - total[:, None])
            hit = (targets - how.cut.first(vocab) - start)[:, None] == jnp.arange(size)
            logits_grad = grad * jnp.where(hit, probs - 1.0, probs)
            if how.softcap is not None:
                logits_grad = logits_grad * (1 - jnp.square(logits / how.softcap))
            if how.scale != 1.0:
                logits_grad = logits_grad * how.scale
            if bias is not None:
                more = logits_grad.sum(0).astype(bias.dtype)
                bias_grad = lax.dynamic_update_slice(bias_grad, more, (start,))
            logits_grad = logits_grad.astype(hidden.dtype)
            more = over(scatter, _product(hidden, logits_grad, (0, 0)), cut.embed)
            w_grad = lax.dynamic_update_slice(w_grad, more.astype(w.dtype), (0, start))
            return hidden_grad + _product(logits_grad, part[0], (1, 1)), w_grad, bias_grad

        zeros = jnp.zeros(hidden.shape, jnp.float32), *jax.tree.map(jnp.zeros_like, (w, bias))
        hidden_grad, w_grad, bias_grad = _by_piece(how, vocab, piece, zeros)
        w_grad = over(lax.psum, w_grad, cut.others)
        bias_grad = None if bias is None else over(lax.psum, bias_grad, alone)
        hidden_grad = hidden_grad.astype(hidden.dtype).reshape(shape)
        return over(lax.psum, hidden_grad, cut.vocab), w_grad, bias_grad

    rows, cuts = (cut.batch, cut.length), (cut.embed, cut.vocab)
    out = [rows, cuts, (cut.vocab,)]
    given = *out, rows, rows, (*rows, cut.vocab), rows
    return *cut.by_device(local, given, out)(*saved, grad), None


_cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)


def _by_piece(how: _How, vocab: int, piece: Callable, state: tuple) -> tuple:
    """piece(state, start, size) for a device's pieces of its vocabulary, one after the other."""
    size = min(vocab, -(-vocab // (how.pieces * LANES)) * LANES)
    count, rest = divmod(vocab, size)
    if count == 1:
        state = piece(state, 0, size)
    else:
        state = lax.fori_loop(0, count, lambda i, state: piece(state, i * size, size), state)
    return piece(state, count * size, rest) if rest else state


def _piece(how: _How, w, bias, start, size: int, dtype: jnp.dtype) -> tuple:
    """Of the matrix, gathered, dtype[D, size], and of the bias."""
    gather = functools.partial(lax.all_gather, axis=0, tiled=True)
    w = lax.dynamic_slice_in_dim(w, start, size, axis=1).astype(dtype)
    bias = None if bias is None else lax.dynamic_slice_in_dim(bias, start, size)
    return over(gather, w, how.cut.embed), bias


def _logits(how: _How, hidden: jax.Array, w: jax.Array, bias: jax.Array | None) -> jax.Array:
    logits = _product(hidden, w, (1, 0))
    if bias is not None:
        logits = logits + bias.astype(jnp.float32)
    if how.scale != 1.0:
        logits = logits * how.scale
    return logits if how.softcap is None else how.softcap * jnp.tanh(logits / how.softcap)


def _product(a: jax.Array, b: jax.Array, axes: tuple[int, int]) -> jax.Array:
    """Contracts one axis of each matrix, accumulating in float32."""
    return lax.dot_general(
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
