"""What Orbax says of every save, and of one that failed, where it is said in words of this project.

By a filter of absl's log and a hook of the interpreter, as Orbax has no setting for either.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

_EXPECTED = (
    "did not provide metrics",  # They are meant to be saved without.
    "_SignalingThread.run() raised", "Failed to run", "Save Finalize thread",  # `wait` raises these
)  # fmt: skip

_hook = sys.unraisablehook


def mute_orbax() -> None:
    """Leaves of its log what is a warning and unexpected."""
    logging.getLogger("absl").addFilter(_is_news)
    sys.unraisablehook = _mute_closed_loop


def _is_news(record: logging.LogRecord) -> bool:
    """Orbax tells a screenful per save, and of a save that fails one per thread."""
    if "orbax" not in record.pathname:
        return True
    return record.levelno >= logging.WARNING and not any(
        words in record.getMessage() for words in _EXPECTED
    )


def _mute_closed_loop(unraisable: Any) -> None:
    """Tensorstore's threads go on to answer the event loop of a save that has failed already."""
    if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
        _hook(unraisable)
