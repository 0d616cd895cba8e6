"""From logits to the next token: temperature, top-k, top-p, min-p, as functions.

`choose` is for a batch that samples in one way, `choose_each` for rows with options of their own.

Axes: B batch, V vocabulary. The order of the filters is that of transformers' logits processors.
"""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LEAST = 1e-30
"""Of temperatures and probabilities that are not 0: less might be 0, or infinite, in float32."""

LARGEST = float(np.finfo(np.float32).max)


class Sampling(NamedTuple):
    """How to choose; None leaves a step out, so a pytree of these compiles only what it uses.

    Attributes:
        temperature: f32[] or, like the others, a column f32[B, 1] with a value per row; divides
            the logits; None is greedy.
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
    """`Sampling` as callers say it: temperature 0 is greedy.

    Raises:
        ValueError: a value that means nothing; it names field, value and range.
    """
    t = number("temperature", temperature)
    if t and t < LEAST:
        raise ValueError(f"temperature={t} must be positive, at least {LEAST}, or 0 to be greedy")
    k = None if top_k is None else whole("top_k", top_k)
    if k is not None and k < 1:
        raise ValueError(f"top_k={k} must be at least 1, or None for the whole vocabulary")
    for name, value in (("top_p", top_p), ("min_p", min_p)):
        if value is not None and not LEAST <= number(name, value) <= 1:
            raise ValueError(
                f"{name}={value} must be above 0 and at most 1, or None: below {LEAST} is 0"
            )
    return Sampling(t or None, k, top_p, min_p)


def number(name: str, value: Any) -> float:
    """A number that float32 can hold; raises ValueError with its name if the value is none."""
    try:
        found = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not abs(found) <= LARGEST:
        raise ValueError(f"{name}={value!r} must be a finite number within float32")
    return found


def whole(name: str, value: Any) -> int:
    """A whole number; raises ValueError with its name if the value is none."""
    try:
        return int(operator.index(value))
    except TypeError:
        raise ValueError(f"{name}={value!r} must be a whole number") from None


def choose(logits: jax.Array, sampling: Sampling, key: jax.Array) -> jax.Array:
    """The next token of each row, i32[B], from logits f32[B, V]."""
    if sampling.temperature is None:
        return likeliest(logits)
    logits = keep(logits / sampling.temperature, sampling)
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def likeliest(logits: jax.Array) -> jax.Array:
    """The likeliest token of each row, the first of equals: i32[B] from f32[B, V].

    In two reductions: XLA on CPU makes `argmax` a scalar loop, which takes ten times as long.
    """
    below = logits < logits.max(-1, keepdims=True)  # none is, where the largest is NaN
    tokens = jnp.arange(logits.shape[-1], dtype=jnp.int32)
    return jnp.where(below, logits.shape[-1], tokens).min(-1)


def keep(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """logits f32[B, V] with the tokens that a filter rejects at -inf."""
    if sampling.top_k is not None or sampling.top_p is not None:
        logits = jnp.where(logits < _floor(logits, sampling), -jnp.inf, logits)
    if sampling.min_p is not None:
        likeliest = logits.max(-1, keepdims=True)
        logits = jnp.where(logits < likeliest + jnp.log(sampling.min_p), -jnp.inf, logits)
    return logits


class Options(NamedTuple):
    """How each row chooses, as arrays: a program serves every mixture of them.

    Attributes:
        temperature: f32[B], 0 is greedy.
        top_k: i32[B], V for all.
        top_p: f32[B], above 1 for all.
        min_p: f32[B], 0 for all.
        seed: u32[B].
        presence: f32[B], `presence_penalty` of `zoo.inference.requests.Request`.
        frequency: f32[B], `frequency_penalty`.
        repetition: f32[B], `repetition_penalty`.
        biased: bool[B], whether the row has a bias.
        masked: bool[B], whether the row has a mask.
    """

    temperature: jax.Array
    top_k: jax.Array
    top_p: jax.Array
    min_p: jax.Array
    seed: jax.Array
    presence: jax.Array
    frequency: jax.Array
    repetition: jax.Array
    biased: jax.Array
    masked: jax.Array


class Words(NamedTuple):
    """What rows know of each token of the vocabulary.

    Attributes:
        bias: f32[B, V], to be added to the logits.
        made: i32[B, V], how often it was made.
        asked: bool[B, V], whether the prompt has it.
    """

    bias: jax.Array
    made: jax.Array
    asked: jax.Array


def choose_each(
    logits: jax.Array, options: Options, words: Words, mask: jax.Array, step: jax.Array
) -> jax.Array:
    """The next token of each row, i32[B].

    A row that samples gets what `choose` gives with `fold_in(key(seed), step)` for it alone. What
    no row asks for is not computed.

    Args:
        logits: f32[B, V].
        options: of each row.
        words: of each row.
        mask: bool[B, V], tokens that may come; read where `options.masked`.
        step: i32[B], tokens that each row has made.
    """
    logits = edited(logits, options, words, mask)
    return jax.lax.cond(
        (options.temperature > 0).any(),
        lambda: _drawn(logits, options, step),
        lambda: likeliest(logits),
    )


def edited(logits: jax.Array, options: Options, words: Words, mask: jax.Array) -> jax.Array:
    """logits f32[B, V] after penalties, bias and mask, in this order.

    Repetition first, as a factor, then frequency and presence as differences, as in vLLM.
    """
    repetition = options.repetition[:, None]
    frequency, presence = options.frequency[:, None], options.presence[:, None]

    def penalized() -> jax.Array:
        weaker = jnp.where(logits > 0, logits / repetition, logits * repetition)
        edited = jnp.where(words.asked | (words.made > 0), weaker, logits)
        edited = edited - frequency * words.made - presence * (words.made > 0)
        return edited + jnp.where(options.biased[:, None], words.bias, 0.0)

    penalties = (repetition != 1) | (frequency != 0) | (presence != 0)
    edits = penalties.any() | options.biased.any()
    logits = jax.lax.cond(edits, penalized, lambda: logits)
    refused = options.masked[:, None] & ~mask
    return jnp.where(refused, -jnp.inf, logits)


def _drawn(logits: jax.Array, options: Options, step: jax.Array) -> jax.Array:
    """A sample of each row, or the likeliest token where the temperature is 0."""
    keys = jax.vmap(lambda seed, at: jax.random.fold_in(jax.random.key(seed), at))
    draws = jax.vmap(jax.random.categorical)(keys(options.seed, step), filtered(logits, options))
    return jnp.where(options.temperature > 0, draws, likeliest(logits)).astype(jnp.int32)


def filtered(logits: jax.Array, options: Options) -> jax.Array:
    """logits f32[B, V] over the temperature, with the tokens that a filter rejects at -inf."""
    temperature = options.temperature[:, None]
    logits = logits / jnp.where(temperature > 0, temperature, 1.0)
    filters = Sampling(None, options.top_k[:, None], options.top_p[:, None], options.min_p[:, None])
    restricts = (options.top_k < logits.shape[-1]) | (options.top_p <= 1) | (options.min_p > 0)
    return jax.lax.cond(restricts.any(), lambda: keep(logits, filters), lambda: logits)


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
