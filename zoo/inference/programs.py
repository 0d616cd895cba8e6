"""The compiled programs of an engine: few, of fixed shapes, for every mixture of requests.

Reading a prompt takes pieces of a few sizes: `begin` into an empty row, `extend` behind what a row
holds. `decode` reads the newest token of all rows at once. They change one pooled cache in place.
What chooses tokens from logits is apart, so that it is compiled once for models of one vocabulary.

Axes: B slots of the engine, U banks of pages, n pages of a row, T tokens of a piece, D embedding, V
vocabulary, N alternatives.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zoo import pooled
from zoo.cache import PAGE, Cache, logical_axes_of
from zoo.decoder import Decoder
from zoo.inference import unstack
from zoo.inference.requests import MOST_LOGPROBS
from zoo.inference.sampling import Options, Words, choose_each
from zoo.sharding import Rules, cache_shardings

SCORED = 32
"""Tokens of a prompt whose logits are held at a time."""


class Form(NamedTuple):
    """Of a cache: tokens that a row has `room` for, the `pages` of all rows, the type that tokens
    are kept in, and how many of them can be taken back."""

    room: int
    pages: int
    dtype: jnp.dtype
    spare: int = 0


class Piece(NamedTuple):
    """A part of a prompt on its way into a row.

    Attributes:
        tokens: i32[1, T], padded on the right.
        length: i32[], how many of them are real.
        row: i32[], where they go.
        pages: i32[U, n], those of the row in its bank; 0 in others, and where it has none.
        known: i32[], how many tokens the row holds.
        last: i32[], the position of the last token of the whole prompt.
    """

    tokens: jax.Array
    length: jax.Array
    row: jax.Array
    pages: jax.Array
    known: jax.Array
    last: jax.Array


class Feed(NamedTuple):
    """What rows are at: `step` i32[B], tokens made; `alive` bool[B], whether they go on; `scored`
    bool[B], whether they want log-probabilities; `mask` bool[B, V], what may come next where
    `Options.masked`."""

    step: jax.Array
    alive: jax.Array
    scored: jax.Array
    mask: jax.Array


class Scores(NamedTuple):
    """Log-probabilities: f32[B] of tokens, and `ids` i32[B, N] and `top` f32[B, N] of the likeliest
    there."""

    chosen: jax.Array
    ids: jax.Array
    top: jax.Array


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def begin(
    model: Decoder, form: Form, params: dict, cache: Cache, piece: Piece
) -> tuple[Cache, jax.Array, jax.Array]:
    """Reads the beginning of a prompt, which attends to itself alone, into a row.

    Returns:
        The cache, the hidden states [1, T, D] and the logits behind the last token, f32[1, V].
    """
    sizes = 1, piece.tokens.shape[1], form.room, form.spare
    empty = unstack.init_cache(model, *sizes, dtype=form.dtype)
    one, hidden, logits = _read(model, params, empty, piece)
    return settled(pooled.insert(cache, piece.row, piece.pages, one)), hidden, logits


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def extend(
    model: Decoder, params: dict, cache: Cache, piece: Piece
) -> tuple[Cache, jax.Array, jax.Array]:
    """Like `begin`, behind the `known` tokens of the row."""
    held = pooled.take(cache, piece.row, piece.pages, piece.known)
    one, hidden, logits = _read(model, params, held, piece)
    return settled(pooled.insert(cache, piece.row, fresh(piece), one)), hidden, logits


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def decode(
    model: Decoder,
    params: dict,
    cache: Cache,
    table: jax.Array,
    token: jax.Array,
    alive: jax.Array,
) -> tuple[Cache, jax.Array]:
    """The logits f32[B, V] behind the newest token i32[B] of each row.

    Rows that are not alive, bool[B], keep what they hold, and have no pages in the table, which is
    `zoo.pooled.paged`'s.
    """
    ids, cache = alive[:, None].astype(jnp.int32), pooled.paged(cache, table)
    out = model.apply(params, token[:, None], segment_ids=ids, cache=cache, method="hidden")
    logits = model.apply(params, out.hidden, method="logits")[:, 0]
    return settled(pooled.unpaged(out.cache)), logits


@functools.partial(jax.jit, donate_argnums=0)
def choose(
    words: Words, logits: jax.Array, options: Options, feed: Feed
) -> tuple[Words, jax.Array, Scores]:
    """The next token of every row, i32[B], and its scores; those alive take it to their words."""
    logits = whole(logits)
    token = choose_each(logits, options, words, feed.mask, feed.step)
    words = said(words, jnp.arange(token.shape[0]), token, feed.alive)
    return whole((words, token, scores(logits, token, feed.scored)))


@functools.partial(jax.jit, donate_argnums=0)
def choose_first(
    words: Words, logits: jax.Array, row: jax.Array, options: Options, feed: Feed
) -> tuple[Words, jax.Array, Scores]:
    """`choose` for one row i32[]: all but `words` has this row alone."""
    mine = jax.tree.map(lambda t: jax.lax.dynamic_slice_in_dim(t, row, 1), words)
    logits = whole(logits)
    token = choose_each(logits, options, mine, feed.mask, feed.step)
    words = said(words, row[None], token, feed.alive)
    return whole((words, token, scores(logits, token, feed.scored)))


@functools.partial(jax.jit, static_argnums=0)
def score(model: Decoder, params: dict, hidden: jax.Array, targets: jax.Array) -> Scores:
    """Of targets i32[T], each of which follows on a hidden state of [1, T, D]."""

    def one(state: tuple[jax.Array, jax.Array]) -> Scores:
        hidden, target = state
        logits = model.apply(params, hidden[None, None], method="logits")[:, 0]
        found = _scored(logits, target[None])
        return jax.tree.map(lambda t: t[0], found)

    return whole(jax.lax.map(one, (hidden[0], targets), batch_size=SCORED))


@functools.partial(jax.jit, donate_argnums=0)
def seat(words: Words, row: jax.Array, bias: jax.Array, asked: jax.Array) -> Words:
    """Words with a new text in a row: its bias f32[V], asked bool[V], and nothing made."""
    made = words.made.at[row].set(0)
    return whole(Words(words.bias.at[row].set(bias), made, words.asked.at[row].set(asked)))


take_state = jax.jit(pooled.take_state)


@functools.partial(jax.jit, donate_argnums=0)
def insert_state(cache: Cache, row: jax.Array, state: dict) -> Cache:
    """`zoo.pooled.insert_state`."""
    return settled(pooled.insert_state(cache, row, state))


def fresh(piece: Piece) -> jax.Array:
    """The pages of a piece that may change, others being 0: those behind may be of other rows."""
    first = piece.known // PAGE
    return jnp.where(jnp.arange(piece.pages.shape[1]) < first, 0, piece.pages)


def _read(
    model: Decoder, params: dict, cache: Cache, piece: Piece
) -> tuple[Cache, jax.Array, jax.Array]:
    places = jnp.arange(piece.tokens.shape[1])[None]
    real = places < piece.length
    out = model.apply(
        params,
        piece.tokens,
        segment_ids=real.astype(jnp.int32),
        # Padding stands at the prompt's end: LongRope looks at the furthest.
        positions=jnp.where(real, piece.known + places, piece.last),
        cache=cache,
        method="hidden",
    )
    last = jax.lax.dynamic_slice_in_dim(out.hidden, piece.length - 1, 1, axis=1)
    return out.cache, out.hidden, model.apply(params, last, method="logits")[:, 0]


def said(words: Words, rows: jax.Array, token: jax.Array, alive: jax.Array) -> Words:
    """Words after rows i32[N] have said a token i32[N], where they are alive, bool[N]."""
    return words._replace(made=words.made.at[rows, token].add(alive.astype(jnp.int32)))


def scores(logits: jax.Array, token: jax.Array, scored: jax.Array) -> Scores:
    """Scores where any row wants them; a look at every logit is not free."""
    shapes = jax.eval_shape(_scored, logits, token)
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    return jax.lax.cond(scored.any(), lambda: _scored(logits, token), lambda: nothing)


def _scored(logits: jax.Array, token: jax.Array) -> Scores:
    logprobs = jax.nn.log_softmax(logits, axis=-1)
    top, ids = jax.lax.top_k(logprobs, min(MOST_LOGPROBS, logits.shape[-1]))
    chosen = jnp.take_along_axis(logprobs, token[:, None], axis=-1)[:, 0]
    return Scores(chosen, ids.astype(jnp.int32), top)


def empty_cache(model: Decoder, slots: int, form: Form) -> Cache:
    """A pooled cache of `slots` rows."""
    sizes = slots, form.room, form.room, form.spare
    return unstack.init_cache(model, *sizes, dtype=form.dtype, pages=form.pages)


def empty(
    model: Decoder, params: dict, slots: int, form: Form, mesh: Mesh | None, rules: Rules
) -> tuple[Cache, Words, jax.Array]:
    """A pooled cache of `slots` rows, their words, and masks that allow everything.

    They live with the parameters: on a mesh, rows and pages as the rules have `rows`, heads as
    `kv_heads`.
    """
    shape = slots, model.cfg.vocab_size

    def made() -> tuple[Cache, Words, jax.Array]:
        cache = empty_cache(model, slots, form)
        words = Words(jnp.zeros(shape), jnp.zeros(shape, jnp.int32), jnp.zeros(shape, bool))
        return cache, words, jnp.ones(shape, bool)

    return placed(made, params, mesh, rules)


def placed(made: Callable[[], Any], params: dict, mesh: Mesh | None, rules: Rules) -> Any:
    """What a function makes, where `empty` says; all but caches is whole on every device."""
    if mesh is None:
        leaf = jax.tree.leaves(params)[0]
        home = leaf.sharding if isinstance(leaf, jax.Array) else jax.devices()[0]
        return jax.device_put(made(), home)
    shared, everywhere = {**rules, "batch": rules["rows"]}, NamedSharding(mesh, PartitionSpec())

    def place(x: Any) -> Any:
        return cache_shardings(x, mesh, shared) if is_cache(x) else everywhere

    is_cache = lambda x: isinstance(x, Cache)  # noqa: E731
    places = jax.tree.map(place, jax.eval_shape(made), is_leaf=is_cache)
    return jax.jit(made, out_shardings=places)()


def settled(cache: Cache) -> Cache:
    """The cache where `empty` put it, so that programs find it as they left it."""
    if not nn.get_logical_axis_rules():
        return cache
    return nn.with_logical_constraint(cache, logical_axes_of(cache, "rows"))


def whole(tree: Any) -> Any:
    """The same arrays, on a mesh whole on every device: each host reads them, few are large."""
    if not nn.get_logical_axis_rules():
        return tree
    return nn.with_logical_constraint(tree, jax.tree.map(lambda leaf: (None,) * leaf.ndim, tree))
