"""An engine's steps when a draft guesses ahead: several tokens of a row at once, the same as alone.

The draft, a small model or the model's first layer of multi-token prediction, says what comes next
by the very rule by which the model will: same temperature and filters, and the same random numbers,
those of the seed and the token's place. The model then reads all guesses in one pass and says its
own token behind each. As long as the guess was the token, the next one counts too. So nothing is
accepted or made up for: what a row says are the tokens that it says one by one. Guesses meet tokens
about as often as the two distributions overlap, since both are the largest of logits and one noise
(coupling without communication, arXiv:2408.07978).

A step has the same shapes whatever is kept. Rows keep counts of their own; what was written behind
them is out of sight and overwritten.

Axes: B slots, A tokens guessed ahead, T tokens of a piece, D embedding, V vocabulary.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zoo import pooled
from zoo.cache import Cache, init_draft
from zoo.decoder import Decoder
from zoo.inference.programs import (
    Feed,
    Form,
    Piece,
    Scores,
    empty_cache,
    fresh,
    said,
    scores,
    settled,
    whole,
)
from zoo.inference.sampling import Options, Words, choose_each


class Plan(NamedTuple):
    """Who guesses: `draft`, the model itself if `own`; `count` tokens at a time."""

    draft: Decoder
    own: bool
    count: int


class Behind(NamedTuple):
    """What the draft has read of each row, and what it has yet to.

    Attributes:
        cache: the draft's. Of the model's own layer it is a stack of one, unstacked.
        hidden: dtype[B, A + 1, D], the model's hidden states that the tokens were said by.
        tokens: i32[B, A + 1], those that it has yet to read, the newest of them last.
        count: i32[B], how many.
    """

    cache: Cache
    hidden: jax.Array
    tokens: jax.Array
    count: jax.Array


class Step(NamedTuple):
    """What rows say: `tokens` i32[B, A + 1], of which `count` i32[B] count; and their scores."""

    tokens: jax.Array
    count: jax.Array
    scores: Scores


def empty(model: Decoder, plan: Plan, slots: int, form: Form) -> Behind:
    """A draft of `slots` rows that has read nothing."""
    if plan.own:
        sizes = slots, form.room, form.room, form.spare
        cache = init_draft(model.cfg, *sizes, dtype=form.dtype, pages=form.pages)
        cache = cache._replace(stacks={name: (held,) for name, held in cache.stacks.items()})
    else:
        cache = empty_cache(plan.draft, slots, form)
    wide = slots, plan.count + 1
    hidden = jnp.zeros((*wide, model.cfg.embed_dim), model.dtype)
    return Behind(cache, hidden, jnp.zeros(wide, jnp.int32), jnp.zeros((slots,), jnp.int32))


@functools.partial(jax.jit, static_argnums=0, donate_argnums=2)
def follow(
    plan: Plan, params: dict, behind: Behind, hidden: jax.Array, read: Piece, piece: Piece
) -> Behind:
    """The draft reads what the model has read of a prompt.

    Args:
        plan: who.
        params: of the draft.
        behind: what it has read.
        hidden: dtype[1, T, D], what the model made of the piece that it `read`.
        read: what the model read.
        piece: what the draft is to read: the same, or for the model's own layer the token after
            each, as far as they are known.
    """
    held = pooled.take(behind.cache, piece.row, piece.pages, piece.known)
    ids = (jnp.arange(piece.tokens.shape[1])[None] < piece.length).astype(jnp.int32)
    _, held = _read(plan, params, hidden, piece.tokens, ids, held)
    last = jax.lax.dynamic_slice_in_dim(hidden, read.length - 1, 1, axis=1)
    later = (
        jax.lax.dynamic_update_slice(behind.hidden, last, (piece.row, 0, 0)),
        behind.tokens,
        behind.count.at[piece.row].set(1),
    )
    cache = pooled.insert(behind.cache, piece.row, fresh(piece), held)
    return Behind(settled(cache), *whole(later))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3, 4, 5))
def decode(
    model: Decoder,
    plan: Plan,
    params: tuple[dict, dict],
    cache: Cache,
    words: Words,
    behind: Behind,
    table: jax.Array,
    newest: jax.Array,
    options: Options,
    feed: Feed,
) -> tuple[Cache, Words, Behind, Step]:
    """Guesses behind the newest token i32[B] of each row, reads, and says what the model says.

    A row with a mask says one token: what may come behind it is not known yet.

    Args:
        model: the one that speaks.
        plan: who guesses.
        params: of the model and of the draft.
        cache: the model's.
        words: of each row.
        behind: what the draft has read.
        table: the pages of each row, in both caches, as of `zoo.inference.programs.decode`.
        newest: which no cache has.
        options: of each row.
        feed: as `zoo.inference.programs.choose` takes it, for the first of the tokens.
    """
    cache = pooled.paged(cache, table)
    behind = behind._replace(cache=pooled.paged(behind.cache, table))
    guesses, drafted = _guess(plan, params[1], words, behind, newest, options, feed)
    read = jnp.concatenate((newest[:, None], guesses), axis=1)
    ids = jnp.broadcast_to(feed.alive[:, None], read.shape).astype(jnp.int32)
    out = model.apply(params[0], read, segment_ids=ids, cache=cache, method="hidden")
    logits = whole(model.apply(params[0], out.hidden, method="logits"))

    def say(carry, place):
        (words, going), (logits, guess, at) = carry, place
        token = choose_each(logits, options, words, feed.mask, feed.step + at)
        words = said(words, jnp.arange(token.shape[0]), token, going)
        agrees = going & (token == guess) & ~options.masked
        return (words, agrees), (token, going, scores(logits, token, feed.scored))

    places = jnp.arange(plan.count + 1)
    guesses = jnp.pad(guesses, ((0, 0), (0, 1)), constant_values=-1)
    by_place = logits.swapaxes(0, 1), guesses.T, places
    (words, _), found = jax.lax.scan(say, (words, feed.alive), by_place)
    tokens, counted, found = jax.tree.map(lambda t: t.swapaxes(0, 1), found)
    count = counted.sum(1)

    def kept(new: jax.Array, old: jax.Array) -> jax.Array:
        return jnp.where(feed.alive.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    later = map(kept, (out.hidden, tokens, count), behind[1:])
    cache = pooled.unpaged(out.cache)._replace(lengths=cache.lengths + count)
    behind = Behind(settled(pooled.unpaged(drafted)), *whole(tuple(later)))
    words, step = whole((words, Step(tokens, count, found)))
    return settled(cache), words, behind, step


def _guess(
    plan: Plan,
    params: dict,
    words: Words,
    behind: Behind,
    newest: jax.Array,
    options: Options,
    feed: Feed,
) -> tuple[jax.Array, Cache]:
    """Guesses i32[B, A], and the draft's cache of what is certain."""
    last = jnp.maximum(behind.count - 1, 0)
    tokens = behind.tokens.at[jnp.arange(newest.shape[0]), last].set(newest)
    places = jnp.arange(tokens.shape[1])[None]
    alive = feed.alive[:, None]
    ids = ((places < behind.count[:, None]) & alive).astype(jnp.int32)
    hidden, cache = _read(plan, params, behind.hidden, tokens, ids, behind.cache)
    hidden = jnp.take_along_axis(hidden, last[:, None, None], axis=1)

    def said_next(hidden: jax.Array, at: jax.Array) -> jax.Array:
        logits = plan.draft.apply(params, hidden, method="logits")[:, 0]
        return choose_each(whole(logits), options, words, feed.mask, feed.step + at)

    def go_on(carry, at):
        hidden, token, cache = carry
        hidden, cache = _read(plan, params, hidden, token[:, None], alive.astype(jnp.int32), cache)
        token = said_next(hidden, at)
        return (hidden, token, cache), token

    first = said_next(hidden, jnp.int32(0))
    (_, _, longer), more = jax.lax.scan(go_on, (hidden, first, cache), jnp.arange(1, plan.count))
    guesses = jnp.concatenate((first[:, None], more.T), axis=1)
    return guesses, longer._replace(lengths=cache.lengths)


def _read(
    plan: Plan,
    params: dict,
    hidden: jax.Array,
    tokens: jax.Array,
    ids: jax.Array,
    cache: Cache,
) -> tuple[jax.Array, Cache]:
    """The draft's hidden states behind tokens, which the model's own layer reads beside the states
    that they were said by; and its cache."""
    if not plan.own:
        out = plan.draft.apply(params, tokens, segment_ids=ids, cache=cache, method="hidden")
        return out.hidden, out.cache
    ((name, (held,)),) = cache.stacks.items()
    alone = Cache(cache.lengths, {name: held})
    out = plan.draft.apply(params, 0, hidden, tokens, segment_ids=ids, cache=alone, method="draft")
    return out.hidden, Cache(out.cache.lengths, {name: (out.cache.stacks[name],)})
