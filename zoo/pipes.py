"""Output whose reader may leave before its end, as `head` does: commands end without a word."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn, TextIO

import rich.console

STATUS = 128 + 13
"""What a shell says of a program that SIGPIPE ended: it wrote to a pipe without a reader."""


class Console(rich.console.Console):
    """rich's, which leaves the end of the program to `ends_with_reader`."""

    def on_broken_pipe(self) -> NoReturn:
        raise BrokenPipeError


@contextmanager
def ends_with_reader() -> Iterator[None]:
    """Around all of a command: it ends with `STATUS` where nobody reads what it writes.

    What is buffered is written within, since Python would complain of it after the end. An error
    that is under way stays, and so does its status.
    """
    try:
        yield
    except BrokenPipeError:
        _give_up(sys.stdout)
        _give_up(sys.stderr)
        raise SystemExit(STATUS) from None
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
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, file.fileno())
        os.close(nowhere)
        return True
    return False
