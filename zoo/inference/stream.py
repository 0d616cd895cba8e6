"""Text from a model, token by token: what `generate` makes of one prompt, as soon as it is known.

    for token in stream(model, params, prompt, 64, temperature=0.7):
        ...

One program reads a piece of text into the cache and picks the next token; it is compiled for few
shapes, because pieces and caches have sizes that double. A `Session` keeps its cache, so that a
prompt which begins like the last one, as in a conversation, costs what is new in it.

Axes: T tokens of a piece, S slots of the cache. There is one row.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo.axes import rules_in_force
from zoo.cache import Cache, grow, rewinds, slots
from zoo.decoder import Decoder
from zoo.inference import unstack
from zoo.inference.generate import check_prompts
from zoo.inference.sampling import Sampling, choose, from_options
from zoo.rope import borders

PIECE, SLOTS = 32, 256
"""The smallest T and S."""


def stream(
    model: Decoder, params: dict, prompt: Sequence[int], max_new_tokens: int = 64, **options: Any
) -> Iterator[int]:
    """The tokens that `zoo.generate` gives for this prompt and its options, one by one.

    Raises:
        ValueError: at once, as `generate` does.
    """
    return Session(model, params).stream(prompt, max_new_tokens, **options)


class _Held(NamedTuple):
    tokens: list[int]  # those that the cache has read
    cache: Cache


class Session:
    """A model that remembers what it has read, for one text at a time.

    What a prompt shares with what was read and made before is not read again. That changes nothing
    but rounding, as the size of a piece does too.
    """

    def __init__(self, model: Decoder, params: dict):
        """Takes what `generate` takes."""
        self._model, self._params = unstack.prepare(model, params)
        self._held: _Held | None = None

    def stream(
        self,
        prompt: Sequence[int],
        max_new_tokens: int = 64,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        eos: int | Sequence[int] = (),
        rng: jax.Array | None = None,
    ) -> Iterator[int]:
        """Like `stream`. Once another prompt is begun, the streams before it have ended."""
        sampling = from_options(temperature, top_k, top_p, min_p)
        (row,) = check_prompts(self._model, [prompt], max_new_tokens)
        key = jax.random.key(0) if rng is None else rng
        stops = frozenset(np.atleast_1d(np.asarray(eos, np.int32)).tolist())
        return self._tokens(row.tolist(), max_new_tokens, sampling, stops, key)

    def _tokens(
        self,
        prompt: list[int],
        max_new_tokens: int,
        sampling: Sampling,
        stops: frozenset[int],
        key: jax.Array,
    ) -> Iterator[int]:
        token, cache = self._read_prompt(prompt, sampling, key)
        tokens = prompt.copy()
        for step in range(1, max_new_tokens + 1):
            # An interrupt finds either this or nothing: never a cache beside another's tokens.
            held = self._held = _Held(tokens, cache)
            newest = token.item()
            yield newest
            if newest in stops or step == max_new_tokens:
                return
            if self._held is not held:
                raise ValueError("this stream has ended: its session went on with another prompt")
            self._held = None
            if len(tokens) in borders(self._model.cfg.ropes):
                token, cache = self._read_prompt([*tokens, newest], sampling, key, step)
            else:
                cache = _with_room(cache, len(tokens) + 1)
                token, cache = _read(
                    self._model, self._params, token, np.int32(1), cache,
                    sampling, key, np.int32(step), rules_in_force(),
                )  # fmt: skip
            tokens.append(newest)

    def _read_prompt(
        self, prompt: list[int], sampling: Sampling, key: jax.Array, step: int = 0
    ) -> tuple[jax.Array, Cache]:
        known, cache = self._known(prompt), None
        if known:
            cache = self._held.cache
        self._held = None
        new = prompt[known:]
        piece = np.zeros((1, _at_least(PIECE, len(new))), np.int32)
        piece[0, : len(new)] = new
        if cache is not None:
            cache = _with_room(_rewound(cache, known), known + piece.shape[1])
        length = np.int32(len(new))
        return _read(
            self._model, self._params, piece, length, cache,
            sampling, key, np.int32(step), rules_in_force(),
        )  # fmt: skip

    def _known(self, prompt: list[int]) -> int:
        """How many tokens of a prompt the cache has already read as it would read them now."""
        if self._held is None:
            return 0
        longest = max(len(self._held.tokens), len(prompt))
        if any(longest > border for border in borders(self._model.cfg.ropes)):
            return 0
        known = _shared(self._held.tokens, prompt[:-1])
        whole = known == len(self._held.tokens)
        return known if whole or rewinds(self._model.cfg) else 0


@functools.partial(jax.jit, static_argnums=(0, 8), donate_argnums=4)
def _read(
    model: Decoder,
    params: dict,
    piece: jax.Array,
    length: jax.Array,
    cache: Cache | None,
    sampling: Sampling,
    key: jax.Array,
    step: jax.Array,
    rules: tuple,
) -> tuple[jax.Array, Cache]:
    """Reads the first `length` tokens of piece i32[1, T]; the next, i32[1, 1], and the cache.

    Without a cache it begins one of T slots, which lets a prompt attend to itself alone. `rules`
    are those in force, named so that others are another program.
    """
    places = jnp.arange(piece.shape[1])[None]
    cache = unstack.init_cache(model, *piece.shape) if cache is None else cache
    out = model.apply(
        params,
        piece,
        segment_ids=(places < length).astype(jnp.int32),
        # Padding repeats the last position: LongRope looks at the furthest.
        positions=cache.lengths[:, None] + jnp.minimum(places, length - 1),
        cache=cache,
        method="hidden",
    )
    last = jax.lax.dynamic_slice_in_dim(out.hidden, length - 1, 1, axis=1)
    logits = model.apply(params, last, method="logits")[:, 0]
    return choose(logits, sampling, jax.random.fold_in(key, step))[:, None], out.cache


def _shared(a: list[int], b: list[int]) -> int:
    """How many tokens two texts begin with in common."""
    differ = (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)
    return next(differ, min(len(a), len(b)))


def _at_least(smallest: int, size: int) -> int:
    """The first of smallest, 2 smallest, 4 smallest, ... that is not below `size`."""
    while smallest < size:
        smallest *= 2
    return smallest


def _with_room(cache: Cache, length: int) -> Cache:
    """The cache with slots for `length` tokens at least."""
    room = slots(cache)
    if room is None or length <= room:
        return cache
    return _grown(cache, _at_least(SLOTS, length) - room)


_grown = jax.jit(grow, static_argnums=1)


def _rewound(cache: Cache, length: int) -> Cache:
    """The cache as it was after `length` tokens: what lies behind them is not read."""
    return cache._replace(lengths=jnp.full_like(cache.lengths, length))
