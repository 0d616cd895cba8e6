"""Output whose reader may leave before its end, as `head` does: commands end without a word.

A command whose work is to be kept first gets the time to keep it (`Spared`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO

import rich.console

STATUS = 128 + 13
"""What a shell says of a program that SIGPIPE ended: it wrote to a pipe without a reader."""

INTERRUPTED = 128 + 2
"""What a shell says of a program that Ctrl-C ended."""


class Console(rich.console.Console):
    """rich's, which leaves the end of the program to `ends_with_reader`."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


class Spared:
    """A file whose failure is no error: a terminal that is gone, a full disk, a pipe nobody reads.

    For work that matters more than what it says of itself. Of a pipe `unread` is called, once.
    """

    def __init__(self, file: TextIO, unread: Callable[[], None]):
        self._file, self._unread = file, unread

    def write(self, text: str) -> int:
        self._spared(self._file.write, text)
        return len(text)

    def flush(self) -> None:
        self._spared(self._file.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def _spared(self, act: Callable, *args: str) -> None:
        try:
            act(*args)
        except BrokenPipeError:
            _discard(self._file)
            self._unread()
        except OSError:
            pass  # It may be written to again: a disk gets room.


@contextmanager
def ends_with_reader() -> Iterator[None]:
    """Around all of a command: it ends with `STATUS` where nobody reads what it writes.

    With `INTERRUPTED` where somebody wants it to end, who need not see where it was.

    What is buffered is written within, since Python would complain of it after the end. An error
    that is under way stays, and so does its status.
    """
    try:
        yield
    except BrokenPipeError:
        _give_up(sys.stdout)
        _give_up(sys.stderr)
        raise SystemExit(STATUS) from None
    except KeyboardInterrupt:
        _give_up(sys.stdout)
        raise SystemExit(INTERRUPTED) from None
    except SystemExit as e:
        if _give_up(sys.stdout) and not e.code:
            raise SystemExit(STATUS) from None
        raise
    except BaseException:
        _give_up(sys.stdout)
        raise
    if _give_up(sys.stdout):
        raise SystemExit(STATUS)


def _give_up(file: TextIO) -> bool:
    """Whether nobody reads what a file still has to write, which then goes nowhere."""
    try:
        file.flush()
    except BrokenPipeError:
        _discard(file)
        return True
    return False


def _discard(file: TextIO) -> None:
    """From now on what is written goes nowhere, and so does what is buffered."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno())
    os.close(nowhere)
