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
every process reads the same tokens. Nothing else is exchanged.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from zoo import hosts
from zoo.inference.engine import Engine
from zoo.inference.requests import Request, Ticket


class Together(Engine):
    """An `Engine` whose mesh is over the devices of several processes.

    `submit`, `step`, `run` and `close` are for the first process, `follow` for the others, and
    `warm` for all. A device that fails ends all: see `zoo.hosts.one_fate`.

    Attributes:
        idle: seconds after which to step though there is nothing to do: the others wait for it.
    """

    idle = 5.0

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._new: list[Ticket] = []
        self._open: list[Ticket] = []
        self._gone: set[Ticket] = set()

    def submit(self, request: Request) -> Ticket:
        """As that of `Engine`.

        Raises:
            ValueError: likewise; or it has a constraint, which the other processes cannot ask.
        """
        if request.constraint is not None:
            raise ValueError("constraint has to be None where several processes serve a model")
        self._check(request)
        ticket = Ticket(request)
        with self._lock:
            self._new.append(ticket)
        return ticket

    def step(self) -> bool:
        with self._lock:
            new, self._new = self._new, []
        gone = [i for i, ticket in enumerate(self._open) if ticket.cancelled]
        said = dict(asked=[_as_json(ticket.request) for ticket in new], gone=gone)
        hosts.tell(json.dumps(said).encode())
        return self._go_on(new, gone)

    def close(self) -> None:
        """Lets the others go; open texts stay as they are."""
        hosts.tell(b"")

    def follow(self) -> None:
        """Does what the first process does, until it closes."""
        while said := hosts.tell(None):
            news = json.loads(said)
            self._go_on([Ticket(_from_json(asked)) for asked in news["asked"]], news["gone"])

    def _go_on(self, new: list[Ticket], gone: list[int]) -> bool:
        """A step of every process; `gone` are places in what was open before."""
        self._gone = {self._open[i] for i in gone}
        self._queue.extend(new)
        worked = super().step()
        self._open = [ticket for ticket in (*self._open, *new) if not ticket.done]
        return worked

    def _gave_up(self, ticket: Ticket) -> bool:
        return ticket in self._gone


def _as_json(request: Request) -> dict[str, Any]:
    fields = {f.name: getattr(request, f.name) for f in dataclasses.fields(request)}
    return {**fields, "logit_bias": list(request.logit_bias.items())}


def _from_json(fields: dict[str, Any]) -> Request:
    return Request(**{**fields, "logit_bias": dict(map(tuple, fields["logit_bias"]))})
