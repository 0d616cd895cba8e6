"""What a model thinks of given text: log-probabilities of continuations, many at a time.

Axes: B batch, T tokens of a row, P tokens of a part, D embedding, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.axes import rules_in_force
from zoo.decoder import Decoder

SHORTEST = 32
"""Rows have this many tokens or a power of two times as many, so that few lengths compile."""

PART = 128
"""Tokens of a row whose logits are there at a time."""

IGNORED = -1
"""The target of a token that is context or padding."""


class Pair(NamedTuple):
    """Token ids: what is given, at least one, and what is scored after it."""

    context: Sequence[int]
    continuation: Sequence[int]


class Score(NamedTuple):
    """The log-probability of a continuation in nats, and whether greedy decoding would make it."""

    logprob: float
    greedy: bool


def score(
    model: Decoder,
    params: dict,
    pairs: Sequence[Pair],
    batch_size: int = 8,
    max_length: int | None = None,
) -> list[Score]:
    """The score of each pair, in their order; rows of like length share a batch.

    On a mesh within `zoo.sharding.use`.

    Args:
        model: the decoder.
        params: of `model.init` or `zoo.load`.
        pairs: of any lengths. Context is left out from the left where a row would be too long.
        batch_size: rows at a time.
        max_length: tokens that the model reads of a row at most; None is its own `max_length`.

    Raises:
        ValueError: a pair without context, or a continuation that is too long by itself.
    """
    longest = max_length or model.cfg.max_length
    rows = [_row(pair, longest) for pair in pairs]
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
    scores: list[Score | None] = [None] * len(rows)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = _padded([rows[i] for i in chosen], min(batch_size, len(rows)))
        logprobs, hits = jax.device_get(_program(model, params, *batch, rules_in_force()))
        for i, logprob, hit in zip(chosen, logprobs, hits, strict=False):
            scores[i] = Score(float(logprob), bool(hit))
    return scores


def _row(pair: Pair, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """What the model reads, i32[T], and what should follow each token, i32[T]."""
    if not len(pair.context):
        raise ValueError("context is empty: start it with at least one token (bos, say)")
    if len(pair.continuation) > longest:
        raise ValueError(
            f"continuation has {len(pair.continuation)} tokens, and max_length={longest}: score it "
            "in windows"
        )
    whole = np.array([*pair.context, *pair.continuation], np.int32)[-longest - 1 :]
    targets = whole[1:].copy()
    targets[: len(targets) - len(pair.continuation)] = IGNORED
    return whole[:-1], targets


def _padded(
    rows: Sequence[tuple[np.ndarray, np.ndarray]], batch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """tokens i32[B, T], lengths i32[B], targets i32[B, T]; rows that are missing ask nothing."""
    longest, size = max(len(tokens) for tokens, _ in rows), SHORTEST
    while size < longest:
        size *= 2
    tokens, lengths = np.zeros((batch, size), np.int32), np.ones(batch, np.int32)
    targets = np.full((batch, size), IGNORED, np.int32)
    for i, (read, wanted) in enumerate(rows):
        lengths[i] = len(read)
        tokens[i, : len(read)], targets[i, : len(read)] = read, wanted
    return tokens, lengths, targets


@functools.partial(jax.jit, static_argnums=(0, 5))
def _program(
    model: Decoder,
    params: dict,
    tokens: jax.Array,
    lengths: jax.Array,
    targets: jax.Array,
    rules: tuple,
) -> tuple[jax.Array, jax.Array]:
    """Each row's log-probability of its targets, f32[B], and whether all are likeliest, bool[B].

    `rules` are those in force, named so that others are another program.
    """
    at, last = jnp.arange(tokens.shape[1])[None], lengths[:, None] - 1
    hidden = model.apply(
        params,
        tokens,
        segment_ids=(at <= last).astype(jnp.int32),
        positions=jnp.minimum(at, last),  # as in generate: LongRope looks at the furthest
        method="hidden",
    ).hidden

    def compare(hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = model.apply(params, hidden, method="logits")
        asked, target = targets != IGNORED, jnp.maximum(targets, 0)
        chosen = jnp.take_along_axis(logits, target[..., None], axis=-1)[..., 0]
        logprob = jnp.where(asked, chosen - jax.nn.logsumexp(logits, axis=-1), 0.0)
        return logprob.sum(-1), ((logits.argmax(-1) == target) | ~asked).all(-1)

    def nothing(hidden: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
        rows = len(targets)
        return jnp.zeros(rows, jnp.float32), jnp.ones(rows, bool)

    def part(both: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        return jax.lax.cond((both[1] != IGNORED).any(), compare, nothing, *both)

    size = min(PART, tokens.shape[1])

    def parts(x: jax.Array) -> jax.Array:
        return x.reshape(len(x), -1, size, *x.shape[2:]).swapaxes(0, 1)

    logprobs, hits = jax.lax.map(part, (parts(hidden), parts(targets)))
    return logprobs.sum(0), hits.all(0)
