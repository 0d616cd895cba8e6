"""Many requests at once: an engine reads prompts in pieces and makes a token for all per step.

    engine = Engine(model, params, slots=8, length=2048)
    engine.warm()
    texts = engine.run([Request(prompt, 64, temperature=0.7, seed=1) for prompt in prompts])

A request takes one of a fixed number of slots, a row of one cache, as soon as one is free
(continuous batching, Orca, OSDI 2022). Long prompts are read in pieces between the steps of others
(chunked prefill, arXiv:2308.16369). What a request's tokens are does not depend on the others: rows
do not see each other, and random numbers follow from the request's seed and the token's place.

`submit`, `stats` and a `Ticket` are for any thread; the rest is for the one that calls `step`.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from zoo import rope
from zoo.decoder import Decoder
from zoo.inference.batch import SMALLEST, Batch, at
from zoo.inference.prefixes import BLOCK, Prefixes
from zoo.inference.programs import Scores
from zoo.inference.requests import Constraint, Request, Stats, Ticket, Token
from zoo.inference.speculative import check_draft
from zoo.sharding import Rules

__all__ = ["Constraint", "Engine", "Request", "Stats", "Ticket", "Token"]

LONGEST = 4096
"""Tokens that a slot holds if nobody says how many, and the model takes as many."""


@dataclass(eq=False)
class _Seat:
    """A request in its slot.

    `text` is the prompt and what was made, of which the cache holds the first `read`; `speaking`
    while it makes tokens, between readings. Its keys are of a `kind`: how many borders of LongRope
    the text that was read had passed.
    """

    row: int
    ticket: Ticket
    text: list[int]
    read: int = 0
    made: int = 0
    kind: int = 0
    speaking: bool = False
    scores: list[Token | None] = field(default_factory=lambda: [None])

    @property
    def request(self) -> Request:
        return self.ticket.request


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
        cache_dtype: jnp.dtype | None = None,
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
            cache_dtype: what the cache keeps, int8 for instance; None is the model's.
            mesh: of `params`, if they are on several devices. They share the rows as `rules` have
                `batch` if slots divide by them; else all have all rows, and `data` has to be 1.
            rules: of `zoo.sharding` for it.
            draft: a small model of the same vocabulary and its parameters, to guess with; None is
                the model's own first layer of multi-token prediction.
            ahead: tokens to guess at a time; 0 guesses none. Texts are the same.

        Raises:
            ValueError: a size that means nothing, a length that the model does not take, or what
                cannot guess ahead: see `zoo.inference.speculative`.
        """
        longest = model.cfg.max_length
        length = min(longest, LONGEST) if length is None else length
        if slots < 1:
            raise ValueError(f"slots={slots} must be at least 1")
        if not 1 <= length <= longest:
            raise ValueError(f"length={length} must be 1 to the model's max_length={longest}")
        if chunk < SMALLEST or chunk & (chunk - 1):
            raise ValueError(f"chunk={chunk} must be a power of two, at least {SMALLEST}")
        if ahead or draft is not None:
            _check_ahead(model, draft, ahead, length, mesh)
        self._vocab, self._length, self._ahead = model.cfg.vocab_size, length, ahead
        self._borders = rope.borders(model.cfg.ropes)
        self._batch = Batch(
            model, params, slots, length, chunk, cache_dtype, mesh, rules, draft, ahead
        )
        self._stateful, self._prefixes = self._batch.stateful, None
        if prefix_bytes:
            self._prefixes = Prefixes(prefix_bytes, self._stateful)
        self._lock = threading.Lock()
        self._queue: collections.deque[Ticket] = collections.deque()
        self._seats: list[_Seat | None] = [None] * slots
        self._reading: collections.deque[_Seat] = collections.deque()
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
                self._admit()
                read = self._read_prompts()
                return self._decode() or read or bool(self._reading)
        except Exception as error:
            for seat in filter(None, self._seats):
                self._leave(seat, error)
            self._batch.reset()
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
        """Compiles every program that a request can need.

        Raises:
            ValueError: requests are being served.
        """
        if any(self._seats):
            raise ValueError("warm() needs an idle engine: call it before the first step")
        with self._batch.placed():
            self._batch.warm()

    @property
    def stats(self) -> Stats:
        """What the engine does and did."""
        active = sum(seat is not None for seat in self._seats)
        held = 0 if self._prefixes is None else self._prefixes.bytes
        return replace(self._stats, active=active, waiting=len(self._queue), prefix_bytes=held)

    def _check(self, request: Request) -> None:
        named = dict(prompt=request.prompt, stop_tokens=request.stop_tokens)
        for name, tokens in {**named, "logit_bias": tuple(request.logit_bias)}.items():
            if strange := [token for token in tokens if not 0 <= token < self._vocab]:
                raise ValueError(
                    f"{name} has token {strange[0]}, outside the vocabulary of {self._vocab}: was "
                    "it made by another tokenizer?"
                )
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

    def _admit(self) -> None:
        """Seats those who wait, as long as there are slots."""
        while self._queue and None in self._seats:
            ticket = self._queue.popleft()
            seat = _Seat(self._seats.index(None), ticket, list(ticket.request.prompt))
            try:
                self._restrict(seat)
            except Exception as error:
                self._end(ticket, error)
                continue
            self._seats[seat.row] = seat
            self._batch.seat(seat.row, seat.request)
            self._reading.append(seat)
            self._count(prompt_tokens=len(seat.text))

    def _leave(self, seat: _Seat, error: Exception | None = None) -> None:
        """Frees a slot."""
        self._seats[seat.row] = None
        if seat in self._reading:
            self._reading.remove(seat)
        self._batch.leave(seat.row)
        self._end(seat.ticket, error)

    def _end(self, ticket: Ticket, error: Exception | None = None) -> None:
        self._count(requests=1)
        ticket.end(error)

    def _count(self, **more: int) -> None:
        changed = {name: getattr(self._stats, name) + value for name, value in more.items()}
        self._stats = replace(self._stats, **changed)

    # Reading prompts.

    def _read_prompts(self) -> bool:
        """Reads a chunk of prompts, in the order in which they came; whether there were any."""
        worked, budget = bool(self._reading), self._batch.sizes[-1]
        while budget > 0 and self._reading:
            budget -= self._read_piece(self._reading[0])
        return worked

    def _recall(self, seat: _Seat) -> None:
        """Copies what the prefix cache has of a prompt into its row."""
        found = self._prefixes.find(seat.kind, seat.text)
        if not found:
            return
        for i, (held, _) in enumerate(found):
            self._batch.put_block(seat.row, i * BLOCK, held)
        if self._stateful:
            self._batch.put_state(seat.row, found[-1][1])
        seat.read = seat.ticket.cached_tokens = len(found) * BLOCK
        self._count(cached_tokens=seat.read, prefix_hits=1)

    def _remember(self, seat: _Seat) -> None:
        """Copies what a row has read into the prefix cache, as far as it is not there."""
        text = seat.text[: seat.read]
        whole, known = len(text) // BLOCK, self._prefixes.known(seat.kind, text)
        state = None
        if self._stateful and whole and len(text) == whole * BLOCK:
            state = self._batch.state(seat.row)
        for i in range(known, whole):
            held = self._batch.block(seat.row, i * BLOCK)
            if not self._prefixes.add(seat.kind, text[: (i + 1) * BLOCK], held):
                return
        if state is not None:
            self._prefixes.add_state(seat.kind, text, state)

    def _read_piece(self, seat: _Seat) -> int:
        """Reads a piece of a text, then perhaps says its first token; the piece's padded size."""
        if not seat.read:
            seat.kind = sum(border < len(seat.text) for border in self._borders)
            if self._prefixes and not seat.made and not seat.request.prompt_logprobs:
                self._recall(seat)
        # A text beyond a border of LongRope needs padding to say that it is.
        spare = 1 if self._borders else 0
        start, rest = seat.read, self._goal(seat) - seat.read
        size = self._batch.fitting(rest + spare, start)
        count = min(rest, size - spare)
        hidden, logits = self._batch.read(seat.row, seat.text, start, count, size)
        seat.read += count
        if self._prefixes:
            self._remember(seat)
        if seat.request.prompt_logprobs and not seat.made:
            self._score(seat, hidden, seat.text[start + 1 : seat.read + 1])
        if seat.read == len(seat.text):
            self._reading.popleft()
            self._answer(seat, logits)
        return size

    def _goal(self, seat: _Seat) -> int:
        """Tokens of a text to read before one stops: all, or those before a state to be kept."""
        whole = len(seat.text)
        border = whole // BLOCK * BLOCK
        stops = self._prefixes is not None and self._stateful and seat.read < border
        return border if stops else whole

    def _score(self, seat: _Seat, hidden: jax.Array, following: list[int]) -> None:
        """Scores the tokens that follow on those of a piece."""
        found = self._batch.score(hidden, following)
        more = seat.request.logprobs or 0
        seat.scores += [_token(token, at(found, i), more) for i, token in enumerate(following)]

    def _answer(self, seat: _Seat, logits: jax.Array) -> None:
        """The token after a text that has been read, or the end of one that wants none."""
        if seat.request.prompt_logprobs:
            seat.ticket.prompt_logprobs = seat.scores
        if not seat.request.max_new_tokens:
            self._leave(seat)
            return
        seat.speaking = True
        scored = seat.request.logprobs is not None
        self._say(seat, *self._batch.first(seat.row, logits, seat.made, scored))

    # Making tokens.

    def _decode(self) -> bool:
        """A token for every seat that speaks, or some with a draft; whether any did."""
        self._read_again()
        seats = [seat for seat in self._seats if seat is not None and seat.speaking]
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

    def _count_guesses(self, seat: _Seat, accepted: int) -> None:
        if seat.request.constraint is None:
            more = dict(guessed_tokens=self._ahead, accepted_tokens=accepted)
            seat.ticket.guessed_tokens += self._ahead
            seat.ticket.accepted_tokens += accepted
            self._count(**more)

    def _read_again(self) -> None:
        """Sends texts that outgrow LongRope's original length back: their keys turn otherwise."""
        for seat in filter(None, self._seats):
            if seat.speaking and seat.read in self._borders:
                seat.read, seat.speaking = 0, False
                self._reading.appendleft(seat)

    def _say(self, seat: _Seat, token: int, scores: Scores) -> None:
        """Hands a token out, and ends the text if it was the last."""
        request = seat.request
        seat.text.append(token)
        seat.made += 1
        try:
            finish = self._finish(seat, token)
        except Exception as error:
            self._leave(seat, error)
            return
        said = Token(token)
        if request.logprobs is not None:
            said = _token(token, scores, request.logprobs)
        seat.ticket.put(said._replace(finish=finish))
        self._count(generated_tokens=1)
        if finish is not None:
            if self._prefixes and seat.speaking:
                self._remember(seat)
            self._leave(seat)

    def _finish(self, seat: _Seat, token: int) -> str | None:
        """Why a text ends with this token, or None; its constraint goes on."""
        request = seat.request
        if token in request.stop_tokens:
            return "stop"
        if request.constraint is not None:
            request.constraint.accept(token)
            if not self._restrict(seat):
                return "stop"
        return "length" if seat.made == request.max_new_tokens else None

    def _restrict(self, seat: _Seat) -> bool:
        """Asks a request's constraint what may come next; whether anything may."""
        constraint, masks = seat.request.constraint, self._batch.masks
        if constraint is None:
            return True
        allowed = np.asarray(constraint.allowed(), bool)
        if allowed.shape != (self._vocab,):
            raise ValueError(
                f"constraint.allowed() has shape {allowed.shape}: it must have one value for each "
                f"of the {self._vocab} tokens"
            )
        if not seat.made and not allowed.any():
            raise ValueError("constraint.allowed() has no token that the text could begin with")
        masks[seat.row] = allowed
        return bool(allowed.any())


def _check_ahead(
    model: Decoder,
    draft: tuple[Decoder, dict] | None,
    ahead: int,
    length: int,
    mesh: Mesh | None,
) -> None:
    if not 1 <= ahead < SMALLEST:
        raise ValueError(f"ahead={ahead} must be 1 to {SMALLEST - 1} to guess with a draft")
    if mesh is not None:
        raise ValueError("an engine on a mesh does not guess ahead: leave mesh or ahead out")
    check_draft(model, draft, length)


def _token(token: int, scores: Scores, alternatives: int) -> Token:
    """A token and what is asked about it, of scores of this place."""
    top = zip(scores.ids[:alternatives].tolist(), scores.top[:alternatives].tolist(), strict=True)
    return Token(token, float(scores.chosen), tuple(top))
