"""Stopping in good order: SIGTERM and Ctrl-C ask, the loop answers after its step."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class StopRequest:
    """While entered, notes the first SIGTERM or SIGINT instead of dying; a second Ctrl-C does die.

    Attributes:
        signal: the one that came, or None.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Others cannot take signals.
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
