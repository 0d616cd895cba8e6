"""Many requests at once: an engine reads prompts in pieces and makes a token for all per step.

    engine = Engine(model, params, slots=8, length=2048)
    engine.warm()
    texts = engine.run([Request(prompt, 64, temperature=0.7, seed=1) for prompt in prompts])

A request takes one of a fixed number of slots as soon as one is free (continuous batching, Orca,
OSDI 2022), and as many pages of one cache as its text may come to need (PagedAttention,
arXiv:2309.06180); rows that begin alike share pages. Long prompts are read in pieces between the
steps of others (chunked prefill, arXiv:2308.16369). What a request's tokens are does not depend on
the others: rows do not see each other, and random numbers follow from the request's seed and the
token's place.

`submit`, `stats` and a `Ticket` are for any thread; the rest is for the one that calls `step`.
"""

from __future__ import annotations

import collections
import functools
import math
import threading
from collections.abc import Iterable
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from zoo import rope
from zoo.decoder import Decoder
from zoo.inference.batch import SMALLEST, Batch, at
from zoo.inference.programs import Scores
from zoo.inference.reading import Reader, Seat, token_of
from zoo.inference.requests import Constraint, Request, Stats, Ticket, Token, allowed_next
from zoo.inference.sampling import whole
from zoo.inference.speculative import check_draft
from zoo.sharding import Rules

__all__ = ["Constraint", "Engine", "Request", "Stats", "Ticket", "Token"]

LONGEST = 4096
"""Tokens that a slot holds if nobody says how many, and the model takes as many."""


class Engine:
    """A model that serves requests in turns; see the module.

    Attributes:
        idle: seconds after which to step though there is nothing to do; None is never.
    """

    idle: float | None = None

    def __init__(
        self,
        model: Decoder,
        params: dict,
        *,
        slots: int = 8,
        length: int | None = None,
        chunk: int = 256,
        prefix_bytes: int = 0,
        cache_bytes: int | None = None,
        cache_dtype: jnp.dtype | str | None = None,
        mesh: Mesh | None = None,
        rules: str | Rules | None = None,
        draft: tuple[Decoder, dict] | None = None,
        ahead: int = 0,
    ):
        """Makes the cache; compiles nothing.

        Args:
            model: the decoder; its dtype is that of the computation.
            params: of `model.init` or `zoo.load`.
            slots: requests that are served at a time.
            length: tokens of a prompt and its continuation at most; None is the model's
                `max_length`, or 4096 if that is more.
            chunk: tokens of prompts that are read between two steps: a power of two.
            prefix_bytes: of memory for what prompts begin with, so that it is read once.
            cache_bytes: of memory for the tokens of all texts and of what prompts begin with. None
                is what all slots need at most, and `prefix_bytes`; with less, requests may wait
                though there is a slot.
            cache_dtype: what the cache keeps, int8 for instance; None is the model's.
            mesh: of `params`, if they are on several devices. They share the rows as `rules` have
                `batch` if slots divide by them; else all have all rows, and `data` has to be 1. The
                rows of a device have the pages that are there.
            rules: of `zoo.sharding` for it.
            draft: a small model of the same vocabulary and its parameters, to guess with; None is
                the model's own first layer of multi-token prediction. On a mesh its parameters lie
                on all devices too, whole on each if the caller has not placed them.
            ahead: tokens to guess at a time; 0 guesses none. Texts are the same.

        Raises:
            ValueError: a size or type that means nothing, a length that the model does not take, or
                what cannot guess ahead: see `zoo.inference.speculative`.
        """
        longest = model.cfg.max_length
        length = min(longest, LONGEST) if length is None else whole("length", length)
        slots, chunk = whole("slots", slots), whole("chunk", chunk)
        prefix_bytes = whole("prefix_bytes", prefix_bytes)
        cache_bytes = None if cache_bytes is None else whole("cache_bytes", cache_bytes)
        if slots < 1:
            raise ValueError(f"slots={slots} must be at least 1")
        if not 1 <= length <= longest:
            raise ValueError(f"length={length} must be 1 to the model's max_length={longest}")
        if chunk < SMALLEST or chunk & (chunk - 1):
            raise ValueError(f"chunk={chunk} must be a power of two, at least {SMALLEST}")
        if prefix_bytes < 0:
            raise ValueError(f"prefix_bytes={prefix_bytes} must be at least 0, for none")
        if ahead or draft is not None:
            _check_ahead(model, draft, ahead, length)
        self._vocab, self._length, self._ahead = model.cfg.vocab_size, length, ahead
        self._batch = Batch(
            model, params, slots, length, chunk, cache_dtype, mesh, rules, draft, ahead,
            prefix_bytes, cache_bytes,
        )  # fmt: skip
        self._reader = Reader(self._batch, rope.borders(model.cfg.ropes), prefix_bytes)
        self._lock = threading.Lock()
        self._queue: collections.deque[Ticket] = collections.deque()
        self._seats: list[Seat | None] = [None] * slots
        self._stats = Stats(slots)

    def submit(self, request: Request) -> Ticket:
        """Queues a request; first come, first served.

        Raises:
            ValueError: a token outside the vocabulary, or more tokens than a slot holds.
        """
        self._check(request)
        ticket = Ticket(request)
        with self._lock:
            self._queue.append(ticket)
        return ticket

    def step(self) -> bool:
        """One round: seats requests, reads up to a chunk of prompts, and makes a token for each.

        Returns:
            False if there was nothing to do.

        Raises:
            Exception: what the device raised. All seated requests have ended with it, and the
                engine is as new for those that wait.
        """
        try:
            with self._batch.placed():
                self._leave_cancelled()
                read = self._read()
                return self._decode() or read or self._reader.busy
        except Exception as error:
            for seat in filter(None, self._seats):
                self._leave(seat, error)
            self._batch.reset()
            self._reader.forget()
            raise

    def run(self, requests: Iterable[Request]) -> list[list[Token]]:
        """The tokens of each request, all served together.

        Raises:
            Exception: what ended one of them early.
        """
        tickets = [self.submit(request) for request in requests]
        while self.step():
            pass
        for ticket in tickets:
            if ticket.error is not None:
                raise ticket.error
        return [ticket.drain() for ticket in tickets]

    def warm(self) -> None:
        """Compiles every program that a request can need; what prompts begin with is forgotten.

        Raises:
            ValueError: requests are being served.
        """
        if any(self._seats):
            raise ValueError("warm() needs an idle engine: call it before the first step")
        with self._batch.placed():
            self._batch.warm()
        self._reader.forget()

    @property
    def stats(self) -> Stats:
        """What the engine does and did. From any thread: no request is in neither count."""
        waiting = len(self._queue)  # first, since a request goes from here to a seat
        return replace(
            self._stats,
            active=sum(seat is not None for seat in self._seats),
            waiting=waiting,
            cached_tokens=self._reader.cached_tokens,
            prefix_hits=self._reader.prefix_hits,
            held_bytes=self._reader.held_bytes,
            prefix_bytes=self._reader.prefix_bytes,
        )

    def _check(self, request: Request) -> None:
        named = dict(prompt=request.prompt, stop_tokens=request.stop_tokens)
        for name, tokens in {**named, "logit_bias": tuple(request.logit_bias)}.items():
            if strange := [token for token in tokens if not 0 <= token < self._vocab]:
                raise ValueError(
                    f"{name} has token {strange[0]}, outside the vocabulary of {self._vocab}: was "
                    "it made by another tokenizer?"
                )
        if list(request.logit_bias.values()).count(-math.inf) == self._vocab:
            raise ValueError("logit_bias is -inf for every token: leave one that can be said")
        if len(request.prompt) + request.max_new_tokens > self._length:
            raise ValueError(
                f"prompt has {len(request.prompt)} tokens, and max_new_tokens="
                f"{request.max_new_tokens} would pass the {self._length} of a slot: shorten one of "
                "them, or give Engine a larger length"
            )

    # Seats: who is served, and how it ends.

    def _leave_cancelled(self) -> None:
        for seat in filter(None, self._seats):
            if self._gave_up(seat.ticket):
                self._leave(seat)
        with self._lock:
            gone = [ticket for ticket in self._queue if self._gave_up(ticket)]
            for ticket in gone:
                self._queue.remove(ticket)
        for ticket in gone:
            self._end(ticket)

    def _gave_up(self, ticket: Ticket) -> bool:
        return ticket.cancelled

    def _admit(self) -> bool:
        """Seats one of those who wait, if there are a row and pages for it."""
        while (seat := self._next_seat()) is not None:
            try:
                self._restrict(seat)
            except Exception as error:
                self._leave(seat, error)
                continue
            self._batch.seat(seat.row, seat.request)
            self._reader.begin(seat)
            self._count(prompt_tokens=len(seat.text))
            return True
        return False

    def _next_seat(self) -> Seat | None:
        """The seat of the first of those who wait whom there are pages for.

        Those before it have been passed once more. One that was passed as often as there are slots
        is passed no more: the others wait for it.
        """
        rows = [row for row, seat in enumerate(self._seats) if seat is None]
        with self._lock:
            waiting = list(self._queue) if rows else []
        room = functools.cache(self._reader.room)
        for i, ticket in enumerate(waiting):
            if i and waiting[0].passed >= len(self._seats):
                break
            if (seat := self._reader.place(ticket, rows, room)) is None:
                continue
            for earlier in waiting[:i]:
                earlier.passed += 1
            self._seats[seat.row] = seat
            with self._lock:
                self._queue.remove(ticket)
            return seat
        return None

    def _leave(self, seat: Seat, error: Exception | None = None) -> None:
        """Frees a slot."""
        self._seats[seat.row] = None
        self._reader.leave(seat)
        self._batch.leave(seat.row)
        self._end(seat.ticket, error)

    def _end(self, ticket: Ticket, error: Exception | None = None) -> None:
        self._count(requests=1)
        ticket.end(error)

    def _count(self, **more: int) -> None:
        changed = {name: getattr(self._stats, name) + value for name, value in more.items()}
        self._stats = replace(self._stats, **changed)

    # Making tokens.

    def _read(self) -> bool:
        """Reads a chunk of prompts, and seats who can begin; whether there were any."""
        left = budget = self._batch.sizes[-1]
        while left > 0 and (self._reader.busy or self._admit()):
            if (seat := self._reader.next()) is None:
                break
            size, logits = self._reader.read(seat)
            left -= size
            if seat.read == len(seat.text):
                self._begin(seat, logits)
        return left < budget

    def _begin(self, seat: Seat, logits: jax.Array) -> None:
        """The token after a text that has been read, or the end of one that wants none."""
        if seat.request.prompt_logprobs:
            seat.ticket.prompt_logprobs = seat.scores
        if not seat.request.max_new_tokens:
            self._leave(seat)
            return
        seat.speaking = True
        scored = seat.request.logprobs is not None
        self._say(seat, *self._batch.first(seat.row, logits, seat.made, scored))

    def _decode(self) -> bool:
        """A token for every seat that speaks, or some with a draft; whether any did."""
        seats = [seat for seat in self._seats if seat is not None and seat.speaking]
        for seat in seats:
            seat.speaking = not self._reader.read_again(seat)
        seats = [seat for seat in seats if seat.speaking]
        if not seats:
            return False
        newest, step, alive, scored = np.zeros((4, len(self._seats)), np.int32)
        for seat in seats:
            newest[seat.row], step[seat.row], alive[seat.row] = seat.text[-1], seat.made, 1
            scored[seat.row] = seat.request.logprobs is not None
        found = self._batch.decode(newest, step, alive > 0, scored > 0)
        for seat in seats:
            before = seat.made
            for i in range(found.count[seat.row]):
                seat.read += 1
                self._say(seat, int(found.tokens[seat.row, i]), at(found.scores, seat.row, i))
                if self._seats[seat.row] is not seat:
                    break
            self._count_guesses(seat, seat.made - before - 1)
        return True

    def _count_guesses(self, seat: Seat, accepted: int) -> None:
        if seat.request.constraint is None:
            more = dict(guessed_tokens=self._ahead, accepted_tokens=accepted)
            seat.ticket.guessed_tokens += self._ahead
            seat.ticket.accepted_tokens += accepted
            self._count(**more)

    def _say(self, seat: Seat, token: int, scores: Scores) -> None:
        """Hands a token out, and ends the text if it was the last or nothing can follow."""
        request = seat.request
        seat.text.append(token)
        seat.made += 1
        finish = error = None
        try:
            finish = self._finish(seat, token)
        except Exception as e:
            error = e
        said = Token(token)
        if request.logprobs is not None:
            said = token_of(token, scores, request.logprobs)
        self._count(generated_tokens=1)  # before anybody can know of the token
        seat.ticket.put(said._replace(finish=finish))
        if finish is not None and seat.speaking:
            self._reader.remember(seat)
        if finish is not None or error is not None:
            self._leave(seat, error)

    def _finish(self, seat: Seat, token: int) -> str | None:
        """Why a text ends with this token, or None; its constraint goes on."""
        request = seat.request
        if token in request.stop_tokens:
            return "stop"
        if request.constraint is not None:
            request.constraint.accept(token)
            if not self._restrict(seat):
                return "stop"
        return "length" if seat.made == request.max_new_tokens else None

    def _restrict(self, seat: Seat) -> bool:
        """Asks a request's constraint what may come next; whether anything may."""
        if seat.request.constraint is None:
            return True
        allowed = allowed_next(seat.request, seat.made, self._vocab)
        self._batch.masks[seat.row] = allowed
        return bool(allowed.any())


def _check_ahead(
    model: Decoder,
    draft: tuple[Decoder, dict] | None,
    ahead: int,
    length: int,
) -> None:
    if not 1 <= ahead < SMALLEST:
        raise ValueError(f"ahead={ahead} must be 1 to {SMALLEST - 1} to guess with a draft")
    check_draft(model, draft, length)
