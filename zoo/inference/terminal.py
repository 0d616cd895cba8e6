"""A `Talk` in the terminal, or between pipes: a message per line, answers printed as they come."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from zoo.inference.talk import Talk

HELP = "/reset forgets what was said, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


def converse(talk: Talk) -> None:
    """Answers the lines of stdin until it ends or says /exit.

    Raises:
        ValueError: a message could not be answered. In a terminal that is printed instead.
    """
    for line in _lines():
        if line == "/exit":
            return
        if line == "/reset":
            talk.reset()
        elif line:
            _answer(talk, line)


def _answer(talk: Talk, line: str) -> None:
    """Prints an answer; in a terminal, Ctrl-C ends it and no error ends the conversation."""
    try:
        with contextlib.closing(talk.answer(line)) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
    except (KeyboardInterrupt, ValueError) as e:
        if not sys.stdin.isatty():
            raise
        if isinstance(e, ValueError):
            print(e, end="", file=sys.stderr)
    print(flush=True)


def _lines() -> Iterator[str]:
    if not sys.stdin.isatty():
        yield from map(str.strip, sys.stdin)
        return
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 (lets input() edit and recall)
    print(HELP)
    while True:
        try:
            yield input("> ").strip()
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return
