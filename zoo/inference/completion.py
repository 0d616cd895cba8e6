"""What an `Engine` makes, as text: cut at stop strings, with a reason for its end.

    runner = Runner(Engine(model, params))
    (job,) = runner.submit([Request(prompt)])
    answer = Completion(job, tokenizer, stop=("\n",))
    while not (piece := answer.read()).finish: ...

A `Runner` is the one thread that steps an engine. Whoever waits is woken after each step, and reads
what has come without blocking, so a slow reader holds up nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from absl import logging

from zoo.inference.text import Cut, Detokenizer

if TYPE_CHECKING:
    import tokenizers

    from zoo.inference.engine import Engine
    from zoo.inference.requests import Request, Ticket, Token


PATIENCE = 30.0
"""Seconds in which a step must end when the runner is closed."""


class Busy(RuntimeError):
    """The queue is full; try again later."""


class EngineFailed(RuntimeError):
    """A step of the engine raised: what it was working on is lost, the parameters are not."""


class Job:
    """A request that an engine works on."""

    def __init__(self, ticket: Ticket, changed: Callable[[], None]):
        self.ticket, self._changed = ticket, changed
        self._failure: str | None = None

    @property
    def done(self) -> bool:
        return self.ticket.done or self._failure is not None

    @property
    def failure(self) -> str | Exception | None:
        """Why it is done though its text is not whole, if so."""
        return self._failure or self.ticket.error

    def drain(self) -> list[Token]:
        """The tokens that came since the last call.

        Raises:
            EngineFailed: there are none and there will be no more; of the ticket's own error, if
                that is why.
        """
        failed = self.failure is not None
        tokens = self.ticket.drain()
        if failed and not tokens:
            self.check()
        return tokens

    def check(self) -> None:
        """Raises EngineFailed if that is why it is done, whether its tokens were read or not."""
        if (failure := self.failure) is not None:
            raise EngineFailed(str(failure)) from self.ticket.error

    def cancel(self) -> None:
        """Frees the slot at the next step; does nothing to a job that is done."""
        if not self.done:
            self.ticket.cancel()
            self._changed()

    def fail(self, why: str) -> None:
        """Nothing more will come, whatever the engine does; for the runner."""
        self._failure = why


class Runner:
    """A thread that steps an engine while it has work.

    A step that raises ends the requests that were seated, and the engine goes on with the others.
    One that raises and ends none would do so for ever: then all fail, and the runner with them.

    Attributes:
        engine: it.
        failure: why nothing can be submitted any more; else None.
        failures: steps that raised.
    """

    def __init__(
        self, engine: Engine, *, capacity: int = 64, after_step: Callable[[], None] = lambda: None
    ):
        """Starts the thread.

        Args:
            engine: that nobody else steps.
            capacity: requests that are decoded or wait at most.
            after_step: called from the thread when tokens may have come or a job has failed.
        """
        self.engine, self.capacity = engine, capacity
        self.failure: str | None = None
        self.failures = 0
        self._after_step = after_step
        self._jobs: list[Job] = []
        self._lock, self._work, self._closed = threading.Lock(), threading.Event(), False
        self._thread = threading.Thread(target=self._run, name="zoo-engine", daemon=True)
        self._thread.start()

    @property
    def load(self) -> int:
        """Requests that are decoded or wait."""
        return sum(not job.done for job in self._jobs)

    def submit(self, requests: Sequence[Request]) -> list[Job]:
        """Queues all of them or none.

        Raises:
            Busy: they would pass the capacity.
            EngineFailed: there is no engine any more.
            ValueError: they can never fit, or the engine refuses one; then all are cancelled.
        """
        with self._lock:
            if self.failure is not None:
                raise EngineFailed(self.failure)
            if len(requests) > self.capacity:
                raise ValueError(
                    f"{len(requests)} texts are more than the {self.capacity} that are decoded or "
                    "wait at a time: ask for fewer choices or prompts"
                )
            if self.load + len(requests) > self.capacity:
                raise Busy(f"{self.load} requests wait or run, of {self.capacity} at most")
            jobs: list[Job] = []
            try:
                for request in requests:
                    jobs.append(Job(self.engine.submit(request), self._work.set))
            except ValueError:
                for job in jobs:
                    job.cancel()
                raise
            finally:
                self._jobs += jobs
        self._work.set()
        return jobs

    def close(self) -> None:
        """Ends the thread after the step it is in, or leaves it there; open jobs fail."""
        self._closed = True
        self._work.set()
        self._thread.join(PATIENCE)
        self._give_up("the server is shutting down")

    def _run(self) -> None:
        while not self._closed and self.failure is None:
            self._work.clear()
            worked = self._step()
            with self._lock:
                self._jobs = [job for job in self._jobs if not job.done]
            self._after_step()
            if not worked:
                self._work.wait(self.engine.idle)

    def _step(self) -> bool:
        try:
            return self.engine.step()
        except Exception as error:  # whatever it is, no request may wait for it for ever
            self.failures += 1
            logging.exception("A step of the engine failed; its requests fail with it")
            with self._lock:  # only a step ends jobs, and those of earlier ones are gone
                ended = any(job.done for job in self._jobs)
            if not ended:
                self._give_up(f"{type(error).__name__}: {error}")
            return True

    def _give_up(self, why: str) -> None:
        with self._lock:
            self.failure = self.failure or why
            for job in self._jobs:
                if not job.done:
                    job.fail(why)
            self._jobs = []
        self._after_step()


class Piece(NamedTuple):
    """Text that is certain, the tokens read for it, and on the last piece why it ends.

    `finish` is "stop" (a stop token or string) or "length". The tokens of a piece need not be those
    of its text: a character, or the beginning of a stop string, waits for what follows.
    """

    text: str
    tokens: tuple[Token, ...]
    finish: str | None


class Completion:
    """A job's answer as text.

    Attributes:
        tokens: tokens read so far, with the one that ended it.
        finish: as in `Piece`; None until the end.
    """

    def __init__(
        self,
        job: Job,
        tokenizer: tokenizers.Tokenizer,
        *,
        stop: Sequence[str] = (),
        skip_special: bool = True,
    ):
        """Reads a job.

        Args:
            job: of a `Runner`. The token that ends it is not shown.
            tokenizer: the model's.
            stop: strings that end the text; they are not part of it.
            skip_special: leave special tokens out of the text.
        """
        self.job, self.tokens = job, 0
        self.finish: str | None = None
        self._text, self._cut = Detokenizer(tokenizer, skip_special), Cut(stop)

    def read(self) -> Piece:
        """What has come since the last call, perhaps nothing; never blocks.

        Raises:
            EngineFailed: the engine failed before the answer was whole, and all that there is of it
                has been read.
        """
        over, text, read = self.job.done, "", []
        try:
            tokens = [] if self.finish else self.job.drain()
        except EngineFailed:
            if rest := self._rest():
                return Piece(rest, (), None)
            raise
        for token in tokens:
            read.append(token)
            text += self._cut.push(self._shown(token))
            if self._cut.found is not None:
                self.job.cancel()
                self.finish = "stop"
                break
            self.finish = token.finish
        self.tokens += len(read)
        if over and self.finish is None and self.job.failure is None:
            self.finish = "stop" if self.tokens else "length"
        if self.finish and self._cut.found is None:
            text += self._rest()
        return Piece(text, tuple(read), self.finish)

    def _shown(self, token: Token) -> str:
        ends = token.finish == "stop" and token.id in self.job.ticket.request.stop_tokens
        return "" if ends else self._text.push(token.id)

    def _rest(self) -> str:
        """What waited for more text."""
        return self._cut.push(self._text.rest()) + self._cut.rest()

    def cancel(self) -> None:
        """Nobody reads on: frees the slot."""
        self.job.cancel()
