"""Stopping in good order: SIGTERM and Ctrl-C ask, the loop answers after its step.

Of several processes any may be asked, and all answer after the same step.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType

import jax

from zoo import hosts

ASK_EVERY = 8
"""Steps after which several processes ask each other, as that waits for the devices."""


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

    def is_asked(self, step: int) -> bool:
        """Whether to stop after this step; `signal` is then set in every process."""
        if jax.process_count() == 1:
            return self.signal is not None
        if step % ASK_EVERY:
            return False
        if number := hosts.largest(self.signal or 0):
            self.signal = signal.Signals(number)
        return bool(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
