"""Folders that appear whole or not at all, a lock between processes, and a progress bar."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import logging

_UNFINISHED = ".unfinished-"


@contextlib.contextmanager
def new_folder(final: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `final` that takes its name when the block ends well."""
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=final.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        os.rename(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_unfinished(parent: Path, *patterns: str) -> None:
    """Removes what killed runs left in `parent`. Only for who holds the lock."""
    for pattern in (f"{_UNFINISHED}*", *patterns):
        for path in parent.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lets one process at a time work in `folder`; the system frees the lock of a killed one."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logging.info("Waiting for another process that prepares data in %s", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar of bytes on a terminal, and a log line anywhere.

    Args:
      label: what is being done.
      total: bytes to do.

    Yields:
      A function to call with the bytes done since the last call.
    """
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    logging.info("%s: %.1f MB", label, total / 1e6)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    console = Console(file=sys.stderr)
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task(label, total=total)
        yield lambda done: bar.advance(task, done)
