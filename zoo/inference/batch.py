"""The slots of an engine on the device: a pooled cache, and what each row chooses its tokens by.

Everything that the compiled programs take is put together here, in shapes and types that never
change, so that nothing compiles twice. Who sits in a row and has which pages, and why, is the
engine's business.

Axes: B slots, U banks of pages, n pages of a row, T tokens of a piece, V vocabulary.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zoo import pooled, sharding
from zoo.axes import Axes
from zoo.buffer import type_of
from zoo.cache import PAGE, Cache, stateful
from zoo.decoder import Decoder
from zoo.inference import ahead, programs, unstack
from zoo.inference.ahead import Step
from zoo.inference.programs import Feed, Form, Piece, Scores
from zoo.inference.requests import Request
from zoo.inference.sampling import Options
from zoo.sharding import Rules

SMALLEST = PAGE
"""Tokens of the smallest piece; others are larger by powers of two."""

_YES = np.ones(1, bool)


class Batch:
    """Rows that texts are read into and continued in.

    Attributes:
        sizes: of pieces, in tokens, rising.
        room: tokens of a row, what pads the last piece of a text included.
        banks: of pages, one for each part of the rows that devices share.
        pages: of each bank, the empty one included.
        page_bytes: of a page in all layers, those of a draft too.
        masks: bool[B, V] of the host, what may come next in rows that are restricted.
    """

    def __init__(
        self,
        model: Decoder,
        params: dict,
        slots: int,
        length: int,
        chunk: int,
        cache_dtype: jnp.dtype | str | None = None,
        mesh: Mesh | None = None,
        rules: str | Rules | None = None,
        draft: tuple[Decoder, dict] | None = None,
        guesses: int = 0,
        prefix_bytes: int = 0,
        cache_bytes: int | None = None,
    ):
        """Takes what `Engine` takes; `guesses` are the tokens ahead."""
        self._model, self._params = unstack.prepare(model, params)
        self._plan, self._behind = None, None
        if guesses:
            guesser = (self._model, self._params)
            if draft is not None:
                guesser = unstack.prepare(draft[0], _on(mesh, draft[1]))
            self._plan = ahead.Plan(guesser[0], draft is None, guesses)
            self._draft_params = guesser[1]
        self._mesh, self._slots = mesh, slots
        shared = _shared_by(mesh, sharding.find_rules(rules), slots)
        # Prompts are read one by one, and a single row has no batch to share out.
        self._rules = {**sharding.find_rules(rules), "batch": None, "rows": shared}
        self._vocab = model.cfg.vocab_size
        self.room = -(-length // SMALLEST) * SMALLEST + SMALLEST
        kept = type_of(model.dtype if cache_dtype is None else cache_dtype)
        self._form = Form(self.room, 1, kept, guesses)
        self.sizes = _powers(SMALLEST, min(chunk, self.room - SMALLEST))
        self._table = np.zeros((slots, self.room // PAGE), np.int32)
        self.banks = 1 if mesh is None else sharding.parts_of(mesh, shared)
        self.page_bytes = sum(map(pooled.page_bytes, jax.eval_shape(self._empty_caches)))
        self.pages = 1 + self._pages_of_a_bank(length, prefix_bytes, cache_bytes)
        self._form = self._form._replace(pages=self.banks * self.pages)
        try:
            self.reset()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            size = self._form.pages * self.page_bytes
            raise ValueError(
                f"there is no memory for a cache of {size} bytes in pages: lower slots={slots}, "
                f"length={length}, prefix_bytes={prefix_bytes}, or give cache_bytes"
            ) from error

    def _empty_caches(self) -> list[Cache]:
        """What `_caches` are to be."""
        empty = [programs.empty_cache(self._model, self._slots, self._form)]
        if self._plan is not None:
            empty.append(ahead.empty(self._model, self._plan, self._slots, self._form).cache)
        return empty

    def _pages_of_a_bank(self, length: int, prefix_bytes: int, cache_bytes: int | None) -> int:
        longest, size = -(-length // PAGE), self.page_bytes
        if cache_bytes is None or not size:
            of_prefixes = prefix_bytes // size if size else 0
            return (self._slots * longest + of_prefixes) // self.banks
        if cache_bytes < (least := self.banks * longest * size):
            raise ValueError(
                f"cache_bytes={cache_bytes} does not hold one text of length={length}: give at "
                f"least {least}, or a smaller length"
            )
        return cache_bytes // size // self.banks

    def reset(self) -> None:
        """Empties every row."""
        shape = (self._slots, self._vocab)
        self._options, self.masks = _neutral(*shape), np.ones(shape, bool)
        sizes = self._slots, self._form
        empty = programs.empty(self._model, self._params, *sizes, self._mesh, self._rules)
        self._cache, self._words, self._no_masks = empty
        if self._plan is not None:
            made = functools.partial(ahead.empty, self._model, self._plan, *sizes)
            self._behind = programs.placed(made, self._params, self._mesh, self._rules)

    def warm(self) -> None:
        """Runs every program once, in every form; what the rows held is lost."""
        self.seat(0, Request((0,)))
        for size in self.sizes:
            for known in (0, 1):
                hidden, logits = self.read(0, [0] * (known + size), known, size, size)
                self.score(hidden, [0])
        self.first(0, logits, 0, scored=False)
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
        """Makes a row ask for nothing, and have no pages."""
        self._set_options(row, Request((0,)))
        self.give(row, [])

    def bank(self, row: int) -> int:
        """Where the pages of a row are."""
        return row * self.banks // self._slots

    def give(self, row: int, pages: Sequence[int]) -> None:
        """Makes these its pages: number `page % pages` of its bank each, in the order of tokens."""
        self._table[row] = 0
        self._table[row, : len(pages)] = np.array(pages, np.int32) % self.pages

    def fitting(self, tokens: int, known: int) -> int:
        """The smallest size that holds so many tokens behind `known` ones, or else the largest."""
        fits = [size for size in self.sizes if known + size <= self.room]
        return next((size for size in fits if size >= tokens), fits[-1])

    def read(
        self, row: int, text: Sequence[int], start: int, count: int, size: int
    ) -> tuple[jax.Array, jax.Array]:
        """Reads tokens start to start + count of a text, padded to a size, behind those before.

        What has no page is not kept.

        Returns:
            The hidden states [1, T, D], and the logits behind the last token, f32[1, V].
        """
        piece = self._piece(row, text, start, start, count, size)
        if start:
            found = programs.extend(self._model, self._params, self._cache, piece)
        else:
            found = programs.begin(self._model, self._form, self._params, self._cache, piece)
        self._cache, hidden, logits = found
        if self._plan is not None:
            own = int(self._plan.own)  # it reads each token beside the state before it
            later = min(count, len(text) - own - start)
            mine = self._piece(row, text, start + own, start, later, size)
            self._behind = ahead.follow(
                self._plan, self._draft_params, self._behind, hidden, piece, mine
            )
        return hidden, logits

    @property
    def stateful(self) -> bool:
        """Whether rows keep states that go on only from where they are."""
        return any(map(stateful, self._caches))

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
    def _caches(self) -> list[Cache]:
        """The model's, and if there is a draft, its own.

        The draft lags: a page or a state of it may miss the last tokens. Guesses are worse there,
        and what is said is the same.
        """
        return [self._cache] + ([] if self._behind is None else [self._behind.cache])

    def _set_caches(self, found: Iterable[Cache]) -> None:
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
        table = np.where(alive[:, None], self._table, 0).reshape(
            self.banks, -1, len(self._table[0])
        )
        feed = Feed(step, alive, scored, masks)
        if self._plan is not None:
            with self.placed(together=True):
                self._cache, self._words, self._behind, found = ahead.decode(
                    self._model, self._plan, (self._params, self._draft_params),
                    self._cache, self._words, self._behind, table, newest, self._options, feed,
                )  # fmt: skip
            return jax.device_get(found)
        with self.placed(together=True):
            read = self._cache, table, newest, alive
            self._cache, logits = programs.decode(self._model, self._params, *read)
        self._words, *found = programs.choose(self._words, logits, self._options, feed)
        tokens, scores = jax.tree.map(lambda t: t[:, None], jax.device_get(tuple(found)))
        return Step(tokens, np.ones(len(tokens), np.int32), scores)

    def score(self, hidden: jax.Array, following: Sequence[int]) -> Scores:
        """Scores of tokens, each of which follows on a hidden state of [1, T, D]."""
        targets = np.zeros(hidden.shape[1], np.int32)
        targets[: len(following)] = following
        return jax.device_get(programs.score(self._model, self._params, hidden, targets))

    def _piece(
        self, row: int, text: Sequence[int], first: int, known: int, count: int, size: int
    ) -> Piece:
        """`count` tokens of a text from `first` on, padded to a size, behind `known` of a row."""
        padded = np.zeros((1, size), np.int32)
        padded[0, :count] = text[first : first + count]
        pages = np.zeros((self.banks, self._table.shape[1]), np.int32)
        pages[self.bank(row)] = self._table[row]
        numbers = map(np.int32, (known, len(text) - 1))
        return Piece(padded, np.int32(count), np.int32(row), pages, *numbers)

    def _set_options(self, row: int, request: Request) -> None:
        values = _option_values(request, self._vocab)
        for array, value in zip(self._options, values, strict=True):
            array[row] = value


def _on(mesh: Mesh | None, params: dict) -> dict:
    """Parameters of a draft: on a mesh whole on every device, if they are not on all of them."""
    leaves = [leaf for leaf in jax.tree.leaves(params) if isinstance(leaf, jax.Array)]
    if mesh is None or all(leaf.sharding.device_set == set(mesh.devices.flat) for leaf in leaves):
        return params
    everywhere = NamedSharding(mesh, PartitionSpec())

    def whole(leaf: jax.Array) -> jax.Array:
        held = np.asarray(leaf)  # each process gives its own copy to its devices
        return jax.make_array_from_callback(held.shape, everywhere, held.__getitem__)

    return jax.tree.map(whole, params)


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
