"""Text from a model: prefill and decoding in one compiled program.

Axes: B batch, T prompt length, S slots of the cache, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo import rope
from zoo.axes import rules_in_force
from zoo.buffer import type_of
from zoo.cache import Cache, grow
from zoo.decoder import Decoder
from zoo.inference import unstack
from zoo.inference.sampling import Sampling, choose, from_options, whole

BUCKET = 32
"""Prompts are padded to multiples of this many tokens, so that few lengths compile."""


def generate(
    model: Decoder,
    params: dict,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 64,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    eos: int | Sequence[int] = (),
    rng: jax.Array | None = None,
    cache_dtype: jnp.dtype | str | None = None,
) -> list[list[int]]:
    """Continues each prompt by up to `max_new_tokens` tokens; on a mesh within `sharding.use`.

    Args:
        model: the decoder; its dtype is that of the computation.
        params: of `model.init` or `zoo.load`.
        prompts: token ids, of any lengths.
        max_new_tokens: tokens to make at most.
        temperature: divides the logits before sampling; 0 takes the likeliest token.
        top_k: sample from the k likeliest tokens only.
        top_p: sample from the fewest tokens that hold this much probability only.
        min_p: sample from tokens at least this fraction as likely as the likeliest only.
        eos: token or tokens that end a text; the one that did is the last of the result.
        rng: a key of `jax.random`; None is `jax.random.key(0)`.
        cache_dtype: what the cache keeps, of `zoo.cache.init`; None is the model's.

    Returns:
        The new tokens of each prompt.

    Raises:
        ValueError: an empty prompt, a token outside the vocabulary, more tokens than the model's
            `max_length`, a sampling value out of range, or a type that no cache can keep.
    """
    sampling = from_options(temperature, top_k, top_p, min_p)
    kept = type_of(model.dtype if cache_dtype is None else cache_dtype)
    check_prompts(model, prompts, max_new_tokens)
    tokens, lengths = pad(prompts)
    stops = np.atleast_1d(np.asarray(eos, np.int32))
    model, params = unstack.prepare(model, params)
    key = jax.random.key(0) if rng is None else rng
    how = _How(max_new_tokens, kept, rules_in_force())
    made, count = _program(model, params, tokens, lengths, sampling, stops, key, how)
    made, count = np.asarray(made), np.asarray(count)
    return [row[:n].tolist() for row, n in zip(made, count, strict=True)]


class _How(NamedTuple):
    """What else a program is specialised on; the rules are those in force."""

    new: int
    cache: jnp.dtype
    rules: tuple


class _State(NamedTuple):
    step: jax.Array  # i32[], tokens made so far
    token: jax.Array  # i32[B], the newest
    cache: Cache  # `unstack.lean`
    done: jax.Array  # bool[B]
    made: jax.Array  # i32[B, max_new_tokens]
    count: jax.Array  # i32[B], tokens of each row that count


@functools.partial(jax.jit, static_argnums=(0, 7))
def _program(
    model: Decoder,
    params: dict,
    tokens: jax.Array,
    lengths: jax.Array,
    sampling: Sampling,
    stops: jax.Array,
    key: jax.Array,
    how: _How,
) -> tuple[jax.Array, jax.Array]:
    batch, length = tokens.shape
    max_new_tokens = how.new
    slots, room = jnp.arange(length)[None], length + max_new_tokens
    out = model.apply(
        params,
        tokens,
        segment_ids=(slots < lengths[:, None]).astype(jnp.int32),
        # Padding repeats the last position: LongRope looks at the furthest.
        positions=jnp.minimum(slots, lengths[:, None] - 1),
        cache=unstack.init_cache(model, batch, length, room, dtype=how.cache),
        method="hidden",
    )
    last = jnp.take_along_axis(out.hidden, lengths[:, None, None] - 1, axis=1)
    cache = grow(out.cache, max_new_tokens)

    def refilled(state: _State) -> Cache:
        """The cache of what was read so far, turned as the next token will be."""
        text = jnp.pad(tokens, ((0, 0), (0, max_new_tokens)))
        text = jax.vmap(jax.lax.dynamic_update_slice)(text, state.made, lengths[:, None])
        held, at = state.cache.lengths[:, None], jnp.arange(text.shape[1])[None]
        out = model.apply(
            params,
            text,
            segment_ids=(at < held).astype(jnp.int32),
            positions=jnp.minimum(at, held),
            cache=unstack.init_cache(model, *text.shape, room, dtype=how.cache),
            method="hidden",
        )
        return unstack.lean(out.cache)

    def pick(hidden: jax.Array, step: jax.Array) -> jax.Array:
        logits = model.apply(params, hidden, method="logits")[:, 0]
        return choose(logits, sampling, jax.random.fold_in(key, step))

    def record(state: _State, token: jax.Array) -> _State:
        alive = ~state.done
        return _State(
            state.step + 1,
            token,
            state.cache,
            state.done | (token[:, None] == stops).any(-1),
            jax.lax.dynamic_update_slice(state.made, token[:, None], (0, state.step)),
            state.count + alive,
        )

    def advance(state: _State) -> _State:
        alive = (~state.done)[:, None].astype(jnp.int32)
        for border in rope.borders(model.cfg.ropes):
            crossing = ((state.cache.lengths == border) & ~state.done).any()
            cache = jax.lax.cond(crossing, refilled, lambda state: state.cache, state)
            state = state._replace(cache=cache)
        cache = unstack.full(state.cache)
        out = model.apply(
            params, state.token[:, None], segment_ids=alive, cache=cache, method="hidden"
        )
        return record(state._replace(cache=unstack.lean(out.cache)), pick(out.hidden, state.step))

    zero = jnp.zeros((batch,), jnp.int32)
    empty = jnp.zeros((batch, max_new_tokens), jnp.int32)
    start = _State(jnp.int32(0), zero, unstack.lean(cache), zero.astype(bool), empty, zero)
    state = jax.lax.while_loop(
        lambda s: (s.step < max_new_tokens) & ~s.done.all(),
        advance,
        record(start, pick(last, jnp.int32(0))),
    )
    return state.made, state.count


def pad(prompts: Any) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as tokens i32[B, T] with padding on the right, and their lengths i32[B]."""
    rows = [np.asarray(prompt, np.int32).reshape(-1) for prompt in prompts]
    lengths = np.array([row.size for row in rows], np.int32)
    tokens = np.zeros((len(rows), -(-lengths.max() // BUCKET) * BUCKET), np.int32)
    for padded, row in zip(tokens, rows, strict=True):
        padded[: row.size] = row
    return tokens, lengths


def check_prompts(model: Decoder, prompts: Any, max_new_tokens: int) -> list[np.ndarray]:
    """The prompts as arrays of integers [T] each; raises ValueError as `generate` says."""
    rows = [np.asarray(prompt) for prompt in prompts]
    if not rows:
        raise ValueError("prompts is empty: give at least one")
    if whole("max_new_tokens", max_new_tokens) < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens} must be at least 1")
    cfg = model.cfg
    for i, row in enumerate(rows):
        if row.ndim != 1 or (row.size and row.dtype.kind not in "iu"):
            raise ValueError(
                f"prompt {i} is {prompts[i]!r:.60}: prompts are lists of token ids, one for each "
                "text"
            )
        if not row.size:
            raise ValueError(f"prompt {i} is empty: start it with at least one token (bos, say)")
        if row.min() < 0 or row.max() >= cfg.vocab_size:
            raise ValueError(
                f"prompt {i} has token {row.max() if row.min() >= 0 else row.min()}, outside the "
                f"vocabulary of {cfg.vocab_size}: was it made by another tokenizer?"
            )
        if row.size + max_new_tokens > cfg.max_length:
            raise ValueError(
                f"prompt {i} has {row.size} tokens, and {max_new_tokens} new ones would pass the "
                f"model's max_length={cfg.max_length}: shorten one of them"
            )
    return rows
