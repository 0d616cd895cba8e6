"""The slots of an engine on the device: one cache, and what each row chooses its tokens by.

Everything that the compiled programs take is put together here, in shapes and types that never
change, so that nothing compiles twice. Who sits in a row, and why, is the engine's business.

Axes: B slots, T tokens of a piece, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from zoo import cache as caches
from zoo import sharding
from zoo.decoder import Decoder
from zoo.inference import programs, unstack
from zoo.inference.prefixes import BLOCK
from zoo.inference.programs import Feed, Form, Piece, Scores
from zoo.inference.requests import Request
from zoo.inference.sampling import Options
from zoo.sharding import Rules

SMALLEST = 32
"""Tokens of the smallest piece; others are larger by powers of two."""

_YES = np.ones(1, bool)


class Batch:
    """Rows that texts are read into and continued in.

    Attributes:
        sizes: of pieces, in tokens, rising.
        room: tokens of a row, what pads the last piece of a text included.
        masks: bool[B, V] of the host, what may come next in rows that are restricted.
    """

    def __init__(
        self,
        model: Decoder,
        params: dict,
        slots: int,
        length: int,
        chunk: int,
        cache_dtype: jnp.dtype | None = None,
        mesh: Mesh | None = None,
        rules: str | Rules | None = None,
    ):
        """Takes what `Engine` takes."""
        self._model, self._params = unstack.prepare(model, params)
        self._mesh, self._slots = mesh, slots
        # Prompts are read one by one, and a single row has no batch to share out.
        self._rules = {**sharding.find_rules(rules), "batch": None}
        self._vocab = model.cfg.vocab_size
        self.room = -(-length // SMALLEST) * SMALLEST + SMALLEST
        self._form = Form(self.room, jnp.dtype(model.dtype if cache_dtype is None else cache_dtype))
        self.sizes = _powers(SMALLEST, min(chunk, self.room - SMALLEST))
        self.reset()

    def reset(self) -> None:
        """Empties every row."""
        shape = (self._slots, self._vocab)
        self._options, self.masks = _neutral(*shape), np.ones(shape, bool)
        sizes = self._slots, self._form
        empty = programs.empty(self._model, self._params, *sizes, self._mesh, self._rules)
        self._cache, self._words, self._no_masks = empty

    def warm(self) -> None:
        """Runs every program once, in every form; what the rows held is lost."""
        self.seat(0, Request((0,)))
        for size in self.sizes:
            for known in (0, 1):
                hidden, logits = self.read(0, [0] * size, size, known, size)
                self.score(hidden, [0])
        self.first(0, logits, 0, scored=False)
        self.put_block(0, 0, self.block(0, 0))
        if self.stateful:
            self.put_state(0, self.state(0))
        for restricted in (False, True):
            self._options.masked[0] = restricted
            nothing = np.zeros(self._slots, np.int32)
            self.decode(nothing, nothing, nothing > 0, nothing > 0)
        self.reset()

    @contextlib.contextmanager
    def placed(self) -> Iterator[None]:
        """On the mesh, if there is one."""
        with contextlib.ExitStack() as stack:
            if self._mesh is not None:
                stack.enter_context(sharding.use(self._mesh, self._rules))
            yield

    def seat(self, row: int, request: Request) -> None:
        """Makes a row choose as a request says."""
        self._set_options(row, request)
        bias, asked = np.zeros(self._vocab, np.float32), np.zeros(self._vocab, bool)
        for token, value in request.logit_bias.items():
            bias[token] = value
        asked[list(request.prompt)] = True
        self._words = programs.seat(self._words, np.int32(row), bias, asked)

    def leave(self, row: int) -> None:
        """Makes a row ask for nothing."""
        self._set_options(row, Request((0,)))

    def fitting(self, tokens: int, known: int) -> int:
        """The smallest size that holds so many tokens behind `known` ones, or else the largest."""
        fits = [size for size in self.sizes if known + size <= self.room]
        return next((size for size in fits if size >= tokens), fits[-1])

    def read(
        self, row: int, tokens: Sequence[int], size: int, known: int, length: int
    ) -> tuple[jax.Array, jax.Array]:
        """Reads tokens, padded to a size, behind the `known` ones of a text of `length`.

        Returns:
            The hidden states [1, T, D], and the logits behind the last token, f32[1, V].
        """
        padded = np.zeros((1, size), np.int32)
        padded[0, : len(tokens)] = tokens
        piece = Piece(padded, *map(np.int32, (len(tokens), row, known, length - 1)))
        if known:
            found = programs.extend(self._model, self._params, self._cache, piece)
        else:
            found = programs.begin(self._model, self._form, self._params, self._cache, piece)
        self._cache, hidden, logits = found
        return hidden, logits

    @property
    def stateful(self) -> bool:
        """Whether rows keep states that go on only from where they are."""
        return caches.stateful(self._cache)

    def block(self, row: int, start: int) -> dict:
        """What a row holds for the `BLOCK` tokens from `start` on, but for states."""
        return programs.take_block(self._cache, np.int32(row), np.int32(start), BLOCK)

    def put_block(self, row: int, start: int, block: dict) -> None:
        """Makes a row hold what `block` gave of another."""
        numbers = np.int32(row), np.int32(start)
        self._cache = programs.insert_block(self._cache, *numbers, block)

    def state(self, row: int) -> dict:
        """The states of a row."""
        return programs.take_state(self._cache, np.int32(row))

    def put_state(self, row: int, state: dict) -> None:
        """Makes a row go on from where another's `state` was."""
        self._cache = programs.insert_state(self._cache, np.int32(row), state)

    def first(self, row: int, logits: jax.Array, step: int, scored: bool) -> tuple[int, Scores]:
        """The token after a text with these logits f32[1, V], and its scores."""
        mine = slice(row, row + 1)
        feed = Feed(np.array([step], np.int32), _YES, np.array([scored]), self.masks[mine])
        options = Options(*(array[mine] for array in self._options))
        self._words, *found = programs.choose_first(
            self._words, logits, np.int32(row), options, feed
        )
        token, scores = jax.device_get(found)
        return int(token[0]), at(scores, 0)

    def decode(
        self, newest: np.ndarray, step: np.ndarray, alive: np.ndarray, scored: np.ndarray
    ) -> tuple[np.ndarray, Scores]:
        """Reads the newest token of each row, i32[B]; the next, i32[B], and their scores."""
        self._cache, logits = programs.decode(self._model, self._params, self._cache, newest, alive)
        masks = self.masks if self._options.masked.any() else self._no_masks
        feed = Feed(step, alive, scored, masks)
        self._words, *found = programs.choose(self._words, logits, self._options, feed)
        return tuple(jax.device_get(found))

    def score(self, hidden: jax.Array, following: Sequence[int]) -> Scores:
        """Scores of tokens, each of which follows on a hidden state of [1, T, D]."""
        targets = np.zeros(hidden.shape[1], np.int32)
        targets[: len(following)] = following
        return jax.device_get(programs.score(self._model, self._params, hidden, targets))

    def _set_options(self, row: int, request: Request) -> None:
        values = _option_values(request, self._vocab)
        for array, value in zip(self._options, values, strict=True):
            array[row] = value


def at(scores: Scores, i: int) -> Scores:
    """The scores of one row or place."""
    return jax.tree.map(lambda t: t[i], scores)


def _powers(smallest: int, largest: int) -> list[int]:
    """smallest, 2 smallest, 4 smallest, ... up to largest."""
    sizes = [smallest]
    while sizes[-1] * 2 <= largest:
        sizes.append(sizes[-1] * 2)
    return sizes


def _option_values(request: Request, vocab: int) -> Options:
    """The row of `Options` that a request asks for."""
    return Options(
        temperature=request.temperature,
        top_k=vocab if request.top_k is None else min(request.top_k, vocab),
        top_p=2.0 if request.top_p is None else request.top_p,
        min_p=request.min_p or 0.0,
        seed=request.seed,
        presence=request.presence_penalty,
        frequency=request.frequency_penalty,
        repetition=request.repetition_penalty,
        biased=bool(request.logit_bias),
        masked=request.constraint is not None,
    )


def _neutral(rows: int, vocab: int) -> Options:
    """Options of rows that ask for nothing, as arrays of the host."""
    types = Options(
        np.float32, np.int32, np.float32, np.float32, np.uint32,
        np.float32, np.float32, np.float32, bool, bool,
    )  # fmt: skip
    values = _option_values(Request((0,)), vocab)
    return Options(*(np.full(rows, v, t) for v, t in zip(values, types, strict=True)))
