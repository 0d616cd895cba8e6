"""What an engine reads: texts in pieces, into rows, behind the pages of what begins alike.

Long prompts are read in pieces between the steps of others (chunked prefill, arXiv:2308.16369). A
text has all pages that it may come to need from its first piece on, so that none is ever stopped
for others; it is seated when its reading begins, since only then is it known what others have read
for it.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import jax

from zoo.cache import PAGE
from zoo.inference.batch import Batch, at
from zoo.inference.pages import Pages
from zoo.inference.prefixes import Prefixes
from zoo.inference.programs import Scores
from zoo.inference.requests import Request, Ticket, Token


@dataclass(eq=False)
class Seat:
    """A request in its row.

    `text` is the prompt and what was made, of which the cache holds the first `read`; `speaking`
    while it makes tokens, between readings. Its keys are of a `kind`: how many borders of LongRope
    the text that was read had passed. It holds `pages`, and goes on from a `state` if one was kept.
    """

    row: int
    ticket: Ticket
    text: list[int]
    read: int = 0
    made: int = 0
    kind: int = 0
    speaking: bool = False
    pages: list[int] = field(default_factory=list)
    state: Any = None
    scores: list[Token | None] = field(default_factory=lambda: [None])

    @property
    def request(self) -> Request:
        return self.ticket.request


class Reader:
    """Seats whose texts are being read, in the order in which they came, and the pages of all.

    Attributes:
        cached_tokens: those that did not have to be read, since it began.
        prefix_hits: texts that had any.
    """

    def __init__(self, batch: Batch, borders: tuple[int, ...], prefix_bytes: int):
        """Reads into the rows of `batch`; the rest is `Engine`'s, `borders` of its LongRope."""
        self.cached_tokens = self.prefix_hits = 0
        self._batch, self._borders = batch, borders
        self._pages = Pages(batch.banks, batch.pages)
        self._prefixes = None
        if prefix_bytes:
            size = batch.page_bytes
            self._prefixes = Prefixes(prefix_bytes, self._pages, size, batch.stateful)
        self._seats: collections.deque[Seat] = collections.deque()

    @property
    def busy(self) -> bool:
        """Whether anything is to be read."""
        return bool(self._seats)

    @property
    def held_bytes(self) -> int:
        """Of the pages that texts and the prefix cache hold, each counted once."""
        return self._pages.held * self._batch.page_bytes

    @property
    def prefix_bytes(self) -> int:
        """Bytes that the prefix cache holds, also with others."""
        return 0 if self._prefixes is None else self._prefixes.bytes

    def room(self, bank: int) -> int:
        """Pages of a bank that are free or that only the prefix cache holds."""
        loose = 0 if self._prefixes is None else self._prefixes.loose(bank)
        return self._pages.free(bank) + loose

    def place(self, ticket: Ticket, rows: Iterable[int], room: Callable[[int], int]) -> Seat | None:
        """A seat in one of some rows, with all pages that the text may need, or None.

        Of the banks that have as many it takes the one that knows most of the text, and of those
        the one with the most free pages.

        Args:
            ticket: of the request.
            rows: that nobody has.
            room: `room`; what it said may be kept until a text is placed.
        """
        banks: dict[int, int] = {}
        for row in rows:
            banks.setdefault(self._batch.bank(row), row)
        seats = [Seat(row, ticket, list(ticket.request.prompt)) for row in banks.values()]
        for seat in seats:
            seat.kind = self._kind_of(seat)
        for seat in sorted(seats, key=self._suits, reverse=True):
            if self._take_pages(seat, room):
                return seat
        return None

    def begin(self, seat: Seat) -> None:
        """Has a text read."""
        self._seats.append(seat)
        self._batch.give(seat.row, seat.pages)
        if seat.state is not None:
            self._batch.put_state(seat.row, seat.state)
            seat.state = None

    def leave(self, seat: Seat) -> None:
        """Gives the pages of a seat back, whether it was read or not."""
        if seat in self._seats:
            self._seats.remove(seat)
        self._release(seat)

    def next(self) -> Seat | None:
        """Who is read next: one that has begun, or else the first, if there are pages for it."""
        begun = next((seat for seat in self._seats if seat.pages), None)
        if begun is not None or not self._seats:
            return begun
        first = self._seats[0]
        if not self._take_pages(first, self.room):
            return None
        self._batch.give(first.row, first.pages)
        return first

    def read(self, seat: Seat) -> tuple[int, jax.Array]:
        """Reads a piece of a text: its padded size, and the logits f32[1, V] behind it."""
        # A text beyond a border of LongRope needs padding to say that it is.
        spare = 1 if self._borders else 0
        start, rest = seat.read, self._goal(seat) - seat.read
        size = self._batch.fitting(rest + spare, start)
        count = min(rest, size - spare)
        hidden, logits = self._batch.read(seat.row, seat.text, start, count, size)
        seat.read += count
        self.remember(seat)
        if seat.request.prompt_logprobs and not seat.made:
            self._score(seat, hidden, seat.text[start + 1 : seat.read + 1])
        if seat.read == len(seat.text):
            self._seats.remove(seat)
        return size, logits

    def read_again(self, seat: Seat) -> bool:
        """Whether a text outgrows LongRope's original length: its keys turn otherwise from here on,
        so that it is read anew, before others."""
        if seat.read not in self._borders:
            return False
        seat.read, seat.kind = 0, self._kind_of(seat)
        self._release(seat)
        self._seats.appendleft(seat)
        return True

    def remember(self, seat: Seat) -> None:
        """Keeps the pages that a row has read for texts that begin alike."""
        if self._prefixes is None:
            return
        text, kind = seat.text[: seat.read], self._key(seat)
        whole = len(text) // PAGE
        state = None
        if self._batch.stateful and whole and len(text) == whole * PAGE:
            state = self._batch.state(seat.row)
        for i in range(self._prefixes.known(kind, text), whole):
            if not self._prefixes.add(kind, text[: (i + 1) * PAGE], seat.pages[i]):
                return
        if state is not None:
            self._prefixes.add_state(kind, text, state)

    def forget(self) -> None:
        """Drops what texts begin with: the device does not have it any more."""
        if self._prefixes:
            self._prefixes.clear()

    def _suits(self, seat: Seat) -> tuple[int, int]:
        """How well a row suits its text: pages that are known, and pages that are free."""
        known = self._prefixes.count(self._key(seat), seat.text) if self._shares(seat) else 0
        return known, self._pages.free(self._batch.bank(seat.row))

    def _take_pages(self, seat: Seat, room: Callable[[int], int]) -> bool:
        """Takes all pages that a text may need, those of its beginning with what they hold; or none
        if there are too few."""
        bank, found = self._batch.bank(seat.row), []
        if self._shares(seat):
            found = self._prefixes.find(self._key(seat), seat.text)
        seat.pages = [page for page, _ in found]
        self._pages.hold(seat.pages)
        longest = len(seat.request.prompt) + seat.request.max_new_tokens
        more = -(-longest // PAGE) - len(found)
        short = self._pages.free(bank) < more
        if short and (room(bank) < more or not self._prefixes.make_room(bank, more)):
            self._release(seat)
            return False
        seat.pages += self._pages.take(bank, more)
        if found:
            seat.state = found[-1][1]
            seat.read = seat.ticket.cached_tokens = len(found) * PAGE
            self.cached_tokens += seat.read
            self.prefix_hits += 1
        return True

    def _shares(self, seat: Seat) -> bool:
        """Whether a text may go on from what others read: one that is scored is read whole."""
        scored = seat.request.prompt_logprobs
        return self._prefixes is not None and not seat.made and not scored

    def _kind_of(self, seat: Seat) -> int:
        return sum(border < len(seat.text) for border in self._borders)

    def _key(self, seat: Seat) -> tuple[int, int]:
        """What texts have in common that may share pages."""
        return self._batch.bank(seat.row), seat.kind

    def _release(self, seat: Seat) -> None:
        self._pages.release(seat.pages)
        seat.pages = []

    def _goal(self, seat: Seat) -> int:
        """Tokens of a text to read before one stops: all, or those before a state to be kept."""
        whole = len(seat.text)
        border = whole // PAGE * PAGE
        stops = self._prefixes is not None and self._batch.stateful and seat.read < border
        return border if stops else whole

    def _score(self, seat: Seat, hidden: jax.Array, following: list[int]) -> None:
        """Scores the tokens that follow on those of a piece."""
        found = self._batch.score(hidden, following)
        more = seat.request.logprobs or 0
        seat.scores += [token_of(token, at(found, i), more) for i, token in enumerate(following)]


def token_of(token: int, scores: Scores, alternatives: int) -> Token:
    """A token and what is asked about it, of scores of this place."""
    top = zip(scores.ids[:alternatives].tolist(), scores.top[:alternatives].tolist(), strict=True)
    return Token(token, float(scores.chosen), tuple(top))
