"""From logits to the next token: temperature, top-k, top-p, min-p, as functions.

Axes: B batch, V vocabulary. The order of the filters is that of transformers' logits processors.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Sampling(NamedTuple):
    """How to choose; None leaves a step out, so a pytree of these compiles only what it uses.

    Attributes:
        temperature: f32[], divides the logits; None is greedy.
        top_k: i32[], keeps the k likeliest tokens.
        top_p: f32[], keeps the fewest likeliest tokens whose probability reaches p
            (arXiv:1904.09751).
        min_p: f32[], keeps tokens at least min_p times as likely as the likeliest
            (arXiv:2407.01082).
    """

    temperature: jax.Array | float | None = None
    top_k: jax.Array | int | None = None
    top_p: jax.Array | float | None = None
    min_p: jax.Array | float | None = None


def from_options(
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
) -> Sampling:
    """`Sampling` as callers say it: temperature 0 is greedy; checked."""
    sampling = Sampling(None if temperature == 0 else temperature, top_k, top_p, min_p)
    check(sampling)
    return sampling


def check(sampling: Sampling) -> None:
    """Raises ValueError for values that mean nothing, naming field, value and range."""
    t, k, p, m = sampling
    if t is not None and not t > 0:
        raise ValueError(f"temperature={t} must be positive; 0 asks generate for the greedy choice")
    if k is not None and not k >= 1:
        raise ValueError(f"top_k={k} must be at least 1, or None for the whole vocabulary")
    for name, value in (("top_p", p), ("min_p", m)):
        if value is not None and not 0 < value <= 1:
            raise ValueError(f"{name}={value} must be above 0 and at most 1, or None")


def choose(logits: jax.Array, sampling: Sampling, key: jax.Array) -> jax.Array:
    """The next token of each row, i32[B], from logits f32[B, V]."""
    if sampling.temperature is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = keep(logits / sampling.temperature, sampling)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def keep(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """logits f32[B, V] with the tokens that a filter rejects at -inf."""
    if sampling.top_k is not None or sampling.top_p is not None:
        logits = jnp.where(logits < _floor(logits, sampling), -jnp.inf, logits)
    if sampling.min_p is not None:
        likeliest = logits.max(-1, keepdims=True)
        logits = jnp.where(logits < likeliest + jnp.log(sampling.min_p), -jnp.inf, logits)
    return logits


def _floor(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """The smallest logit of each row that top-k and then top-p keep, f32[B, 1]."""
    ranked = jnp.sort(logits, axis=-1, descending=True)
    kept = jnp.ones(ranked.shape, bool)
    if sampling.top_k is not None:
        kept &= jnp.arange(ranked.shape[-1]) < sampling.top_k
    if sampling.top_p is not None:
        prob = jax.nn.softmax(jnp.where(kept, ranked, -jnp.inf), axis=-1)
        kept &= jnp.cumsum(prob, axis=-1) - prob < sampling.top_p
    return jnp.where(kept, ranked, jnp.inf).min(-1, keepdims=True)
