"""An engine of several processes: the first one is asked, and all do what it does.

    hosts.start()
    engine = Together(model, params, mesh=mesh)       # over the devices of all
    if hosts.is_first():
        texts = engine.run(requests)
        engine.close()
    else:
        engine.follow()

What an engine does follows from who asked and who gave up, in order. So the first process tells the
others both before each step, and each steps its own engine: the programs run on all devices, and
every process reads the same tokens. Nothing else is exchanged: what restricts a text is told as a
text, of which each process makes its own.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from zoo import hosts
from zoo.inference.engine import Engine
from zoo.inference.requests import Constraint, Request, Ticket

ASK_EVERY = 8
"""Steps after which the processes ask each other whether to stop, if there is work; else always."""


class Together(Engine):
    """An `Engine` whose mesh is over the devices of several processes.

    `submit`, `step`, `run` and `close` are for the first process, `follow` for the others, `warm`
    and `ask_to_stop` for all. A step that fails is the last: see `zoo.hosts.one_fate`.

    Attributes:
        idle: seconds after which to step though there is nothing to do: the others wait for it.
        stopping: a process was asked to stop. The first is to close when it likes.
    """

    idle = 5.0

    def __init__(
        self,
        *args: Any,
        restrict: Callable[[str], Constraint] | None = None,
        **kwargs: Any,
    ):
        """Takes what `Engine` takes.

        Args:
            restrict: makes a request's constraint anew, of its `text`; None takes no constraints.
        """
        super().__init__(*args, **kwargs)
        self._restriction = restrict
        self._new: list[Ticket] = []
        self._open: list[Ticket] = []
        self._gone: set[Ticket] = set()
        self._steps, self._asked, self.stopping = 0, False, False
        self._failure: Exception | None = None

    def submit(self, request: Request) -> Ticket:
        """As that of `Engine`.

        Raises:
            ValueError: likewise; or it has a constraint that the other processes cannot make.
        """
        if request.constraint is not None and self._restriction is None:
            raise ValueError("constraint has to be None: this engine has no restrict to make it of")
        self._check(request)
        ticket = Ticket(request)
        with self._lock:
            self._new.append(ticket)
        return ticket

    def step(self) -> bool:
        """As that of `Engine`, of all processes.

        Raises:
            Exception: what the device raised, or a process is gone. So does every later call.
        """
        if self._failure is not None:
            raise RuntimeError(f"the processes lost each other: {self._failure}")
        with self._lock:
            new, self._new = self._new, []
        gone = [i for i, ticket in enumerate(self._open) if ticket.cancelled]
        said = dict(asked=[_as_json(ticket.request) for ticket in new], gone=gone)
        try:
            hosts.tell(json.dumps(said).encode())
            return self._go_on(new, gone)
        except Exception as error:
            self._failure = error
            raise

    def ask_to_stop(self) -> None:
        """Has `stopping` set in all processes a few steps later; also from a signal's handler."""
        self._asked = True

    def close(self) -> None:
        """Lets the others go; open texts stay as they are."""
        hosts.tell(b"")

    def follow(self) -> None:
        """Does what the first process does, until it closes."""
        while said := hosts.tell(None):
            news = json.loads(said)
            self._go_on([Ticket(self._request(asked)) for asked in news["asked"]], news["gone"])

    def _request(self, asked: dict[str, Any]) -> Request:
        text, bias = asked["constraint"], dict(map(tuple, asked["logit_bias"]))
        constraint = None if text is None else self._restriction(text)
        return Request(**{**asked, "logit_bias": bias, "constraint": constraint})

    def _go_on(self, new: list[Ticket], gone: list[int]) -> bool:
        """A step of every process; `gone` are places in what was open before."""
        self._gone = {self._open[i] for i in gone}
        self._queue.extend(new)
        worked = super().step()
        self._open = [ticket for ticket in (*self._open, *new) if not ticket.done]
        self._steps += 1
        if not worked or self._steps % ASK_EVERY == 0:
            self.stopping = self.stopping or bool(hosts.largest(self._asked))
        return worked

    def _gave_up(self, ticket: Ticket) -> bool:
        return ticket in self._gone


def _as_json(request: Request) -> dict[str, Any]:
    fields = {f.name: getattr(request, f.name) for f in dataclasses.fields(request)}
    told = None if request.constraint is None else request.constraint.text
    return {**fields, "logit_bias": list(request.logit_bias.items()), "constraint": told}
