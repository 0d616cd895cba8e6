"""Stopping in good order: who wants a run to end asks, and the loop answers after its step.

SIGTERM, Ctrl-C and the end of the terminal ask, and so does that nobody reads what the run says.

Of several processes any may be asked, and all answer after the same step.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from types import FrameType

import jax

from zoo import hosts

ASK_EVERY = 8
"""Steps after which several processes ask each other, as that waits for the devices."""

_ANSWER = b"\nstopping after this step, which is saved; Ctrl-C again leaves at once\n"


class StopRequest:
    """While entered, notes the first signal instead of dying; a second Ctrl-C does die.

    A SIGHUP that is ignored, as by nohup, stays so.

    Attributes:
        signal: the one that came, or None.
    """

    def __init__(self):
        self.signal: signal.Signals | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # Others cannot take signals.
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def unread(self) -> None:
        """Asks because a pipe that the run writes to has no reader, which ends other programs."""
        self.signal = self.signal or signal.SIGPIPE

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
        if number == signal.SIGINT:
            with contextlib.suppress(OSError):  # A handler may not use the file of Python.
                os.write(sys.stderr.fileno(), _ANSWER)
