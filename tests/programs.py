"""What golden and parity tests run of a model.

One set of functions and shapes, so that XLA compiles a case once for both.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo import cache
from zoo.decoder import Decoder

LENGTH, PIECE = 24, 8
PROMPTS = (5, 9)
"""Tokens of a sequence, of a piece of it that a cache reads at once, and of the prompts."""


class Whole(NamedTuple):
    """What a model makes of whole sequences: logits f32[B, T, V], the mean loss of the next token,
    and its gradient in the shape of the parameters."""

    logits: np.ndarray
    loss: float
    gradients: dict


def whole(model: Decoder) -> Callable[..., Whole]:
    """A function of params, ids, and a mask of what is real or None: one program for each."""

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss(params: dict, ids: jax.Array, mask: jax.Array | None):
        logits = model.apply(params, ids, segment_ids=mask).logits
        chosen = jax.nn.log_softmax(logits[:, :-1])
        return -jnp.take_along_axis(chosen, ids[:, 1:, None], -1).mean(), logits

    program = jax.jit(loss)

    def run(params: dict, ids: np.ndarray, mask: np.ndarray | None = None) -> Whole:
        mask = None if mask is None else _i32(mask)
        (value, logits), gradients = program(params, _i32(ids), mask)
        return Whole(np.asarray(logits), float(value), gradients)

    return run


def cached_logits(model: Decoder, params: dict, ids: np.ndarray) -> np.ndarray:
    """f32[B, T, V] in pieces of `PIECE` tokens; greedy text is one at a time."""
    apply, found = jax.jit(model.apply), []
    state = cache.init(model.cfg, len(ids), LENGTH, jnp.float32)
    for t in range(0, LENGTH, PIECE):
        out = apply(params, _i32(ids[:, t : t + PIECE]), cache=state)
        state, _ = out.cache, found.append(out.logits)
    return np.concatenate(found, 1)


def prompts(ids: np.ndarray) -> list[list[int]]:
    """The beginnings of the rows, of different lengths."""
    return [row[:n].tolist() for row, n in zip(ids, PROMPTS, strict=True)]


def close(found: np.ndarray, wanted: np.ndarray, bound: float = 1e-5) -> float:
    """The largest difference over the scale of `wanted`, which is at most `bound`."""
    error = np.abs(np.asarray(found) - wanted).max() / np.abs(wanted).max()
    assert error <= bound, f"off by {error:.2e} of the scale, {bound:.0e} allowed"
    return float(error)


def _i32(ids: np.ndarray) -> jax.Array:
    return jnp.asarray(ids, jnp.int32)
