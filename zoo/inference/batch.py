"""The slots of an engine on the device: one cache, and what each row chooses its tokens by.

Everything that the compiled programs take is put together here, in shapes and types that never
change, so that nothing compiles twice. Who sits in a row, and why, is the engine's business.

Axes: B slots, T tokens of a piece, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from zoo import cache as caches
from zoo import sharding
from zoo.axes import Axes
from zoo.decoder import Decoder
from zoo.inference import ahead, programs, unstack
from zoo.inference.ahead import Step
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
        draft: tuple[Decoder, dict] | None = None,
        guesses: int = 0,
    ):
        """Takes what `Engine` takes; `guesses` are the tokens ahead."""
        self._model, self._params = unstack.prepare(model, params)
        self._plan, self._behind = None, None
        if guesses:
            guesser = (self._model, self._params) if draft is None else unstack.prepare(*draft)
            self._plan = ahead.Plan(guesser[0], draft is None, guesses)
            self._draft_params = guesser[1]
        self._mesh, self._slots = mesh, slots
        shared = _shared_by(mesh, sharding.find_rules(rules), slots)
        # Prompts are read one by one, and a single row has no batch to share out.
        self._rules = {**sharding.find_rules(rules), "batch": None, "rows": shared}
        self._vocab = model.cfg.vocab_size
        self.room = -(-length // SMALLEST) * SMALLEST + SMALLEST
        kept = jnp.dtype(model.dtype if cache_dtype is None else cache_dtype)
        self._form = Form(self.room, kept, guesses)
        self.sizes = _powers(SMALLEST, min(chunk, self.room - SMALLEST))
        self.reset()

    def reset(self) -> None:
        """Empties every row."""
        shape = (self._slots, self._vocab)
        self._options, self.masks = _neutral(*shape), np.ones(shape, bool)
        sizes = self._slots, self._form
        empty = programs.empty(self._model, self._params, *sizes, self._mesh, self._rules)
        self._cache, self._words, self._no_masks = empty
        if self._plan is not None:
            behind = ahead.empty(self._model, self._plan, *sizes)
            self._behind = jax.device_put(behind, self._words.bias.sharding)

    def warm(self) -> None:
        """Runs every program once, in every form; what the rows held is lost."""
        self.seat(0, Request((0,)))
        for size in self.sizes:
            for known in (0, 1):
                hidden, logits = self.read(0, [0] * (known + size), known, size, size)
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
    def placed(self, *, together: bool = False) -> Iterator[None]:
        """On the mesh, if there is one; `together` if programs take all rows, and not one."""
        with contextlib.ExitStack() as stack:
            if self._mesh is not None:
                batch = self._rules["rows"] if together else None
                stack.enter_context(sharding.use(self._mesh, {**self._rules, "batch": batch}))
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
        self, row: int, text: Sequence[int], start: int, count: int, size: int
    ) -> tuple[jax.Array, jax.Array]:
        """Reads tokens start to start + count of a text, padded to a size, behind those before.

        Returns:
            The hidden states [1, T, D], and the logits behind the last token, f32[1, V].
        """
        piece = _piece(row, text, start, start, count, size)
        if start:
            found = programs.extend(self._model, self._params, self._cache, piece)
        else:
            found = programs.begin(self._model, self._form, self._params, self._cache, piece)
        self._cache, hidden, logits = found
        if self._plan is not None:
            own = int(self._plan.own)  # it reads each token beside the state before it
            later = min(count, len(text) - own - start)
            mine = _piece(row, text, start + own, start, later, size)
            self._behind = ahead.follow(
                self._plan, self._draft_params, self._behind, hidden, piece, mine
            )
        return hidden, logits

    @property
    def stateful(self) -> bool:
        """Whether rows keep states that go on only from where they are."""
        return any(map(caches.stateful, self._caches))

    def block(self, row: int, start: int) -> list[dict]:
        """What a row holds for the `BLOCK` tokens from `start` on, but for states."""
        numbers = np.int32(row), np.int32(start)
        return [programs.take_block(cache, *numbers, BLOCK) for cache in self._caches]

    def put_block(self, row: int, start: int, block: list[dict]) -> None:
        """Makes a row hold what `block` gave of another."""
        numbers = np.int32(row), np.int32(start)
        self._set_caches(
            programs.insert_block(cache, *numbers, part)
            for cache, part in zip(self._caches, block, strict=True)
        )

    def state(self, row: int) -> list[dict]:
        """The states of a row."""
        return [programs.take_state(cache, np.int32(row)) for cache in self._caches]

    def put_state(self, row: int, state: list[dict]) -> None:
        """Makes a row go on from where another's `state` was."""
        self._set_caches(
            programs.insert_state(cache, np.int32(row), part)
            for cache, part in zip(self._caches, state, strict=True)
        )

    @property
    def _caches(self) -> list[caches.Cache]:
        """The model's, and if there is a draft, its own.

        The draft lags: a block or a state of it may miss the last tokens. Guesses are worse there,
        and what is said is the same.
        """
        return [self._cache] + ([] if self._behind is None else [self._behind.cache])

    def _set_caches(self, found: Iterable[caches.Cache]) -> None:
        self._cache, *others = found
        if others:
            self._behind = self._behind._replace(cache=others[0])

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
    ) -> Step:
        """Reads the newest token of each row, i32[B]; what rows say then."""
        masks = self.masks if self._options.masked.any() else self._no_masks
        feed = Feed(step, alive, scored, masks)
        if self._plan is not None:
            self._cache, self._words, self._behind, found = ahead.decode(
                self._model, self._plan, (self._params, self._draft_params),
                self._cache, self._words, self._behind, newest, self._options, feed,
            )  # fmt: skip
            return jax.device_get(found)
        with self.placed(together=True):
            read = self._cache, newest, alive
            self._cache, logits = programs.decode(self._model, self._params, *read)
        self._words, *found = programs.choose(self._words, logits, self._options, feed)
        tokens, scores = jax.tree.map(lambda t: t[:, None], jax.device_get(tuple(found)))
        return Step(tokens, np.ones(len(tokens), np.int32), scores)

    def score(self, hidden: jax.Array, following: Sequence[int]) -> Scores:
        """Scores of tokens, each of which follows on a hidden state of [1, T, D]."""
        targets = np.zeros(hidden.shape[1], np.int32)
        targets[: len(following)] = following
        return jax.device_get(programs.score(self._model, self._params, hidden, targets))

    def _set_options(self, row: int, request: Request) -> None:
        values = _option_values(request, self._vocab)
        for array, value in zip(self._options, values, strict=True):
            array[row] = value


def _shared_by(mesh: Mesh | None, rules: Rules, slots: int) -> Axes:
    """The mesh axes that share the rows: those of a batch, or none where slots do not divide.

    Raises:
        ValueError: then there would be nothing to do for an axis `data`.
    """
    if mesh is None or not slots % sharding.parts_of(mesh, rules.get("batch")):
        return rules.get("batch")
    if mesh.shape["data"] > 1:
        sharding.batch_sharding(mesh, rules, slots)
    return None


def at(scores: Scores, *i: int) -> Scores:
    """The scores of one row or place."""
    return jax.tree.map(lambda t: t[i], scores)


def _piece(row: int, text: Sequence[int], first: int, known: int, count: int, size: int) -> Piece:
    """`count` tokens of a text from `first` on, padded to a size, behind `known` ones of a row."""
    padded = np.zeros((1, size), np.int32)
    padded[0, :count] = text[first : first + count]
    return Piece(padded, *map(np.int32, (count, row, known, len(text) - 1)))


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
