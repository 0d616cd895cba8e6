"""Embeddings of texts: the mean of the final hidden states over tokens, of length one.

This is what decoders that were not trained to embed can give; models that were may want the last
token's state instead.

Axes: T tokens of a text, padded, D embedding.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from zoo import sharding
from zoo.decoder import Decoder
from zoo.inference import unstack

SHORTEST, GROWTH = 32, 4
"""Texts are padded to 32, 128, 512, ... tokens, so that few lengths compile."""


class Embedder:
    """A model that embeds texts, one at a time; may be called from several threads."""

    def __init__(self, model: Decoder, params: dict, longest: int, mesh: Mesh | None = None):
        """`longest` is the most tokens of a text; `mesh` is that of `params`, if there is one."""
        self.longest, self._mesh = longest, mesh
        self._model, self._params = unstack.prepare(model, params)
        self._lock = threading.Lock()
        self._lengths = [min(SHORTEST, longest)]
        while self._lengths[-1] < longest:
            self._lengths.append(min(self._lengths[-1] * GROWTH, longest))

    def warm(self) -> None:
        """Compiles for all lengths."""
        for length in self._lengths:
            self([0] * length)

    def __call__(self, tokens: Sequence[int]) -> np.ndarray:
        """f32[D] of a text.

        Raises:
            ValueError: it is empty, too long, or has tokens outside the vocabulary.
        """
        vocab = self._model.cfg.vocab_size
        if not 0 < len(tokens) <= self.longest:
            raise ValueError(
                f"a text to embed has {len(tokens)} tokens, and may have 1 to {self.longest}"
            )
        if not 0 <= min(tokens) <= max(tokens) < vocab:
            raise ValueError(f"a token is outside the vocabulary of {vocab}")
        length = next(n for n in self._lengths if n >= len(tokens))
        padded = np.zeros((1, length), np.int32)
        padded[0, : len(tokens)] = tokens
        with self._lock, self._placed():  # one at a time: memory for one
            return np.asarray(_embed(self._model, self._params, padded, np.int32(len(tokens))))

    def _placed(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self._mesh is None else sharding.use(self._mesh)


@functools.partial(jax.jit, static_argnums=0)
def _embed(model: Decoder, params: dict, tokens: jax.Array, length: jax.Array) -> jax.Array:
    places = jnp.arange(tokens.shape[1])[None]
    real = places < length
    # Padding repeats the last position: LongRope looks at the furthest.
    out = model.apply(
        params,
        tokens,
        segment_ids=real.astype(jnp.int32),
        positions=jnp.minimum(places, length - 1),
        method="hidden",
    )
    mean = jnp.where(real[..., None], out.hidden.astype(jnp.float32), 0).sum((0, 1)) / length
    return mean / jnp.maximum(jnp.linalg.norm(mean), 1e-12)
