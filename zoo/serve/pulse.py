"""How coroutines wait for a thread without blocking the event loop."""

from __future__ import annotations

import asyncio
import contextlib


class Pulse:
    """Beaten by a thread; every coroutine that waits goes on then.

    Take `next` before looking at what the thread changes, and wait for it after: a beat in between
    is not missed.
    """

    def __init__(self):
        self._loop: asyncio.AbstractEventLoop | None = None
        self._next = asyncio.Event()

    def bind(self) -> None:
        """Belongs to the running event loop from here on."""
        self._loop = asyncio.get_running_loop()

    def beat(self) -> None:
        """From any thread. Before there is a loop, and after it, nobody waits."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._ring)

    @property
    def next(self) -> asyncio.Event:
        return self._next

    def _ring(self) -> None:
        due, self._next = self._next, asyncio.Event()
        due.set()
