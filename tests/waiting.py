"""Waiting for what another thread or process does: as long as a slow machine may need."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

LONG = 180.0
"""Seconds within which everything happens that a test waits for, also where a core has many to
serve. Only what never happens takes as long."""

Found = TypeVar("Found")


def until(look: Callable[[], Found], wanted: Callable[[Found], object]) -> Found:
    """Looks again and again until it sees what is wanted, and returns that.

    Raises:
        AssertionError: `LONG` passed; it has what was seen last.
    """
    ends = time.monotonic() + LONG
    while not wanted(found := look()):
        assert time.monotonic() < ends, f"after {LONG:g} s there is still {found!r}"
        time.sleep(0.005)  # leaves the interpreter to the thread that is waited for
    return found
