"""Connections: what uvicorn is told, and how long it waits for a request to begin."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from zoo.serve.settings import Settings

MOST_CONNECTIONS = 2048
MOST_HEAD = 2**16
"""Bytes of a request before its body."""


def configured(app: Starlette, settings: Settings, **more: Any) -> uvicorn.Config:
    """What uvicorn serves an application with."""
    return uvicorn.Config(
        app, http=functools.partial(Patient, settings.head_timeout),
        limit_concurrency=MOST_CONNECTIONS, h11_max_incomplete_event_size=MOST_HEAD,
        server_header=False, ws="none", lifespan="on", **more,
    )  # fmt: skip


class Patient(H11Protocol):
    """uvicorn's own, which closes connections on which the head of a request does not arrive.

    It waits for ever for one that comes letter by letter, and there is room for so many.
    """

    def __init__(self, patience: float, *args: Any, **kwargs: Any):
        """Waits for `patience` seconds."""
        super().__init__(*args, **kwargs)
        self._patience = patience
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._await(None)

    def on_response_complete(self) -> None:
        last = self.cycle
        super().on_response_complete()  # which may begin with the next
        self._await(last)

    def connection_lost(self, exc: Exception | None) -> None:
        self._late.cancel()
        super().connection_lost(exc)

    def _await(self, last: RequestResponseCycle | None) -> None:
        """Gives the request after this one its time."""
        if self._late is not None:
            self._late.cancel()
        self._late = self.loop.call_later(self._patience, self._give_up, last)

    def _give_up(self, last: RequestResponseCycle | None) -> None:
        if self.cycle is last:
            self.transport.close()
