"""Speculative decoding: a cheap draft guesses some tokens, the model reads them all at once.

A guess is kept with probability min(1, p/q), p being the model's and q the draft's; the first that
is not is replaced by a sample of max(p - q, 0), and behind the last comes one of p. That leaves the
distribution as it is (arXiv:2211.17192, theorem 1), and greedy text the same. The draft is a small
model of the same vocabulary, or the model's first layer of multi-token prediction, which reads its
own hidden states beyond the first guess (DeepSeek-V3, arXiv:2412.19437 section 2.2).

Axes: B batch, T prompt length, A tokens guessed ahead, D embedding, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zoo import cache as caches
from zoo import rope
from zoo.axes import rules_in_force
from zoo.cache import Cache
from zoo.decoder import Decoder
from zoo.inference import unstack
from zoo.inference.generate import check_prompts, pad
from zoo.inference.sampling import Sampling, from_options, keep


class Speculated(NamedTuple):
    """What `speculate` made.

    Attributes:
        tokens: the new tokens of each prompt.
        accepted: guesses that were kept.
        guessed: all guesses.
        passes: times that the model read, prompts aside.
    """

    tokens: list[list[int]]
    accepted: int
    guessed: int
    passes: int

    @property
    def acceptance(self) -> float:
        """Which part of the guesses was kept; 0 of none."""
        return self.accepted / max(self.guessed, 1)


def speculate(
    model: Decoder,
    params: dict,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int = 64,
    *,
    draft: tuple[Decoder, dict] | None = None,
    ahead: int = 4,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    eos: int | Sequence[int] = (),
    rng: jax.Array | None = None,
) -> Speculated:
    """Continues prompts as `zoo.generate` does, with fewer passes of the model; on a mesh too.

    Args:
        model: the decoder.
        params: of `model.init` or `zoo.load`.
        prompts: token ids, of any lengths.
        max_new_tokens: tokens to make at most.
        draft: a model and its parameters, to guess with; None is the first of `model.cfg.mtp`.
        ahead: tokens to guess at a time.
        temperature: of `zoo.generate`, like all that follow.
        top_k: likewise.
        top_p: likewise.
        min_p: likewise.
        eos: likewise.
        rng: likewise.

    Raises:
        ValueError: as `zoo.generate`; or there is nothing to guess with, the draft has another
            vocabulary, or a model cannot take tokens back: recurrences, and LongRope at its border.
    """
    sampling = from_options(temperature, top_k, top_p, min_p)
    if ahead < 1:
        raise ValueError(f"ahead={ahead} must be at least 1")
    check_prompts(model, prompts, max_new_tokens)
    check_draft(model, draft, max(map(len, prompts)) + max_new_tokens + ahead)
    tokens, lengths = pad(prompts)
    stops = np.atleast_1d(np.asarray(eos, np.int32))
    prepared = unstack.prepare(model, params)
    guesser = prepared if draft is None else unstack.prepare(*draft)
    key = jax.random.key(0) if rng is None else rng
    own, rules = draft is None, rules_in_force()
    plan = _Plan(prepared[0], guesser[0], own, max_new_tokens, ahead, rules)
    weights = prepared[1], guesser[1]
    state = jax.device_get(_program(plan, weights, tokens, lengths, sampling, stops, key))
    made = [row[:n].tolist() for row, n in zip(state.made, state.count, strict=True)]
    return Speculated(made, int(state.accepted), int(state.guessed), int(state.passes))


def verify(
    p: jax.Array, q: jax.Array, guesses: jax.Array, key: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """How many guesses to keep, and what comes behind them.

    Args:
        p: f32[B, A + 1, V], the model's probabilities of each place.
        q: f32[B, A, V], those that the guesses were drawn from.
        guesses: i32[B, A].
        key: random.

    Returns:
        i32[B], 0 to A, and the token behind them, i32[B].
    """
    keep_key, draw_key = jax.random.split(key)

    def of_guess(probs: jax.Array) -> jax.Array:
        return jnp.take_along_axis(probs, guesses[..., None], axis=-1)[..., 0]

    kept = jax.random.uniform(keep_key, guesses.shape) * of_guess(q) < of_guess(p[:, :-1])
    count = jnp.cumprod(kept, axis=1).sum(1)
    # Behind the last guess there is no draft to make up for: q is zero there.
    q = jnp.pad(q, ((0, 0), (0, 1), (0, 0)))
    p, q = (jnp.take_along_axis(t, count[:, None, None], axis=1)[:, 0] for t in (p, q))
    rest = jnp.maximum(p - q, 0.0)
    rest = jnp.where(rest.sum(-1, keepdims=True) > 0, rest, p)
    token = jax.random.categorical(draw_key, jnp.log(rest), axis=-1)
    return count.astype(jnp.int32), token.astype(jnp.int32)


class _Plan(NamedTuple):
    """What programs are specialised on: `own` if the model drafts for itself; `rules` in force."""

    model: Decoder
    draft: Decoder
    own: bool
    new: int
    ahead: int
    rules: tuple = ()


class _State(NamedTuple):
    token: jax.Array  # i32[B], the newest, which no cache has read
    cache: Cache  # `unstack.lean`, both
    draft: Cache
    seed: jax.Array  # dtype[B, 1, D], what the next guess of an own draft follows on
    done: jax.Array  # bool[B]
    made: jax.Array  # i32[B, max_new_tokens + A + 1]
    count: jax.Array  # i32[B], tokens of each row that count
    accepted: jax.Array  # i32[]
    guessed: jax.Array  # i32[]
    passes: jax.Array  # i32[]


@functools.partial(jax.jit, static_argnums=0)
def _program(
    plan: _Plan,
    weights: tuple[dict, dict],
    tokens: jax.Array,
    lengths: jax.Array,
    sampling: Sampling,
    stops: jax.Array,
    key: jax.Array,
) -> _State:
    state = _begin(plan, weights, tokens, lengths, sampling, stops, jax.random.fold_in(key, 0))

    def one_round(state: _State) -> _State:
        round_key = jax.random.fold_in(key, state.passes + 1)
        return _round(plan, weights, sampling, stops, round_key, state)

    return jax.lax.while_loop(lambda s: ~s.done.all(), one_round, state)


def _begin(plan, weights, tokens, lengths, sampling, stops, key) -> _State:
    """Reads the prompts, and makes the first token."""
    batch, length = tokens.shape
    places = jnp.arange(length)[None]
    room = length + plan.new + plan.ahead + 1
    real = dict(
        segment_ids=(places < lengths[:, None]).astype(jnp.int32),
        positions=jnp.minimum(places, lengths[:, None] - 1),
    )
    sizes = (batch, length, room, plan.ahead)

    def filled(model: Decoder, params: dict):
        out = model.apply(
            params, tokens, cache=unstack.init_cache(model, *sizes), method="hidden", **real
        )
        return out.hidden, caches.grow(out.cache, room - length)

    hidden, cache = filled(plan.model, weights[0])
    last = jnp.take_along_axis(hidden, lengths[:, None, None] - 1, axis=1)
    probs = _probabilities(_logits(plan.model, weights[0], last), sampling)
    token = _draw(probs[:, 0], key)
    if plan.own:
        following = jnp.roll(tokens, -1, axis=1).at[jnp.arange(batch), lengths - 1].set(token)
        draft = caches.init_draft(plan.model.cfg, *sizes, dtype=plan.model.dtype)
        real["positions"] += 1
        out = _own(plan, weights, hidden, following, cache=draft, **real)
        seed = jnp.take_along_axis(out.hidden, lengths[:, None, None] - 1, axis=1)
        draft = caches.grow(out.cache, room - length)
    else:
        seed, (_, draft) = last, filled(plan.draft, weights[1])
    made = jnp.zeros((batch, plan.new + plan.ahead + 1), jnp.int32).at[:, 0].set(token)
    done = (token[:, None] == stops).any(-1) | (plan.new == 1)
    zero = jnp.int32(0)
    cache, draft = unstack.lean(cache), unstack.lean(draft)
    return _State(token, cache, draft, seed, done, made, jnp.ones_like(lengths), zero, zero, zero)


def _round(plan, weights, sampling, stops, key, state: _State) -> _State:
    """Guesses, reads the guesses, and keeps those that the model agrees with."""
    guess_key, verify_key = jax.random.split(key)
    guesses, q, draft = _guess(plan, weights, sampling, guess_key, state)
    read = jnp.concatenate((state.token[:, None], guesses), axis=1)
    out = plan.model.apply(weights[0], read, cache=unstack.full(state.cache), method="hidden")
    p = _probabilities(_logits(plan.model, weights[0], out.hidden), sampling)
    kept, token = verify(p, q, guesses, verify_key)
    places = jnp.arange(plan.ahead + 1)[None]
    new = jnp.where(places == kept[:, None], token[:, None], jnp.pad(guesses, ((0, 0), (0, 1))))

    lengths = state.cache.lengths + 1 + kept
    cache, seed = unstack.lean(out.cache)._replace(lengths=lengths), state.seed
    if plan.own:
        real = (places <= kept[:, None]).astype(jnp.int32)
        draft = draft._replace(lengths=state.draft.lengths)
        found = _own(plan, weights, out.hidden, new, segment_ids=real, cache=draft)
        seed = jnp.take_along_axis(found.hidden, kept[:, None, None], axis=1)
        draft = found.cache
    else:
        draft = draft._replace(lengths=lengths)

    alive = ~state.done
    stopping = (new[..., None] == stops).any(-1) & (places <= kept[:, None])
    more = jnp.where(stopping.any(-1), stopping.argmax(-1), kept) + 1
    count = jnp.minimum(state.count + more, plan.new)
    made = jax.vmap(jax.lax.dynamic_update_slice)(state.made, new, state.count[:, None])
    return _State(
        token, cache, draft, seed,
        state.done | stopping.any(-1) | (count == plan.new),
        jnp.where(alive[:, None], made, state.made),
        jnp.where(alive, count, state.count),
        state.accepted + (kept * alive).sum(),
        state.guessed + plan.ahead * alive.sum(),
        state.passes + 1,
    )  # fmt: skip


def _guess(plan, weights, sampling, key, state: _State):
    """Guesses i32[B, A], their probabilities f32[B, A, V], and the draft's cache behind them."""

    def own(carry, key):
        hidden, cache = carry
        q = _probabilities(_logits(plan.model, weights[0], hidden), sampling)[:, 0]
        token = _draw(q, key)
        out = _own(plan, weights, hidden, token[:, None], cache=cache)
        return (out.hidden, out.cache), (token, q)

    def other(carry, key):
        token, cache = carry
        out = plan.draft.apply(weights[1], token[:, None], cache=unstack.full(cache))
        q = _probabilities(out.logits, sampling)[:, 0]
        token = _draw(q, key)
        return (token, unstack.lean(out.cache)), (token, q)

    keys = jax.random.split(key, plan.ahead)
    if plan.own:
        (_, cache), (guesses, q) = jax.lax.scan(own, (state.seed, state.draft), keys)
    else:
        carry, (guesses, q) = jax.lax.scan(other, (state.token, state.draft), keys)
        # The last guess is read too: it may be kept.
        last = carry[0][:, None]
        out = plan.draft.apply(weights[1], last, cache=unstack.full(carry[1]), method="hidden")
        cache = unstack.lean(out.cache)
    return guesses.T, q.swapaxes(0, 1), cache


def _own(plan, weights, hidden, tokens, **options):
    """What the model's first prediction layer makes of hidden states and the tokens after them."""
    return plan.model.apply(weights[0], 0, hidden, tokens, method="draft", **options)


def _logits(model: Decoder, params: dict, hidden: jax.Array) -> jax.Array:
    return model.apply(params, hidden, method="logits")


def _probabilities(logits: jax.Array, sampling: Sampling) -> jax.Array:
    """What tokens are drawn from, f32[B, T, V]; all on the likeliest without a temperature."""
    if sampling.temperature is None:
        return jax.nn.one_hot(logits.argmax(-1), logits.shape[-1])
    return jax.nn.softmax(keep(logits / sampling.temperature, sampling), axis=-1)


def _draw(probs: jax.Array, key: jax.Array) -> jax.Array:
    return jax.random.categorical(key, jnp.log(probs), axis=-1).astype(jnp.int32)


def check_draft(model: Decoder, draft: tuple[Decoder, dict] | None, longest: int) -> None:
    """Raises ValueError where texts of `longest` tokens cannot be guessed ahead, as `speculate`."""
    if draft is None and not model.cfg.mtp:
        raise ValueError(
            "draft=None needs a model with multi-token prediction, and it has no mtp: give a draft"
        )
    models: dict[str, Any] = {"model": model} if draft is None else {
        "model": model, "draft": draft[0]
    }  # fmt: skip
    for name, one in models.items():
        cfg = one.cfg
        if cfg.vocab_size != model.cfg.vocab_size:
            raise ValueError(
                f"{name} has a vocabulary of {cfg.vocab_size}, the model of "
                f"{model.cfg.vocab_size}: they need the same tokenizer"
            )
        if longest > cfg.max_length:
            raise ValueError(
                f"{name} reads up to {longest} tokens, guesses included, and its max_length is "
                f"{cfg.max_length}: shorten the prompts, max_new_tokens or ahead"
            )
        if not caches.rewinds(cfg):
            raise ValueError(f"{name} has recurrent layers, which cannot take guesses back")
        if any(border < longest for border in rope.borders(cfg.ropes)):
            raise ValueError(
                f"{name} would read {longest} tokens, beyond the border of its LongRope: all keys "
                "change there, so use zoo.generate"
            )
