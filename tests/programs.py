"""What golden and parity tests run of a model.

One set of functions and shapes, so that XLA compiles a case once for both.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from zoo import cache
from zoo.config import Config
from zoo.decoder import Decoder

LENGTH, PIECE = 24, 8
PROMPTS = (5, 9)
"""Tokens of a sequence, of a piece of it that a cache reads at once, and of the prompts."""


def logits(
    apply: Callable, params: dict, ids: np.ndarray, mask: np.ndarray | None = None
) -> np.ndarray:
    """f32[B, T, V] of the compiled `apply`; one program serves padded and plain batches."""
    mask = np.ones(ids.shape) if mask is None else mask
    return np.asarray(apply(params, _i32(ids), segment_ids=_i32(mask)).logits)


def cached_logits(apply: Callable, params: dict, ids: np.ndarray, cfg: Config) -> np.ndarray:
    """f32[B, T, V] in pieces of `PIECE` tokens; greedy text is one at a time."""
    state, found = cache.init(cfg, len(ids), LENGTH, jnp.float32), []
    for t in range(0, LENGTH, PIECE):
        out = apply(params, _i32(ids[:, t : t + PIECE]), cache=state)
        state, _ = out.cache, found.append(out.logits)
    return np.concatenate(found, 1)


def loss_and_gradients(model: Decoder, params: dict, ids: np.ndarray) -> tuple[float, dict]:
    """The mean loss of the next token, and its gradient in the shape of `params`."""

    def loss(params: dict, ids: jax.Array) -> jax.Array:
        chosen = jax.nn.log_softmax(model.apply(params, ids).logits[:, :-1])
        return -jnp.take_along_axis(chosen, ids[:, 1:, None], -1).mean()

    value, gradients = jax.jit(jax.value_and_grad(loss))(params, _i32(ids))
    return float(value), gradients


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
