"""Several processes of one test: where they meet, what they wrote, and that all of them end."""

from __future__ import annotations

import contextlib
import random
import socket
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

from tests.waiting import LONG

ROOT = Path(__file__).parents[1]
PORTS = range(10_000, 30_000)
"""Those that systems give to nobody who asks for any, so that none is taken before it is used."""


def free_port() -> int:
    """A port of this machine that a process may listen at a while later."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


def free_address() -> str:
    return f"127.0.0.1:{free_port()}"


def ends(processes: Sequence[subprocess.Popen], timeout: float = 2 * LONG) -> list[tuple[str, str]]:
    """What each wrote to its two pipes. Who does not end in time is killed, and the test fails.

    All are read at once: one whose pipe is full stands still, and the others wait for it.
    """
    with ThreadPoolExecutor(len(processes)) as threads:
        reading = [threads.submit(process.communicate) for process in processes]
        late = wait(reading, timeout).not_done
        for process in processes if late else ():
            process.kill()
    outs = [reader.result() for reader in reading]
    stuck = [i for i, reader in enumerate(reading) if reader in late]
    assert not stuck, f"{stuck} did not end: {[error[-3000:] for _, error in outs]}"
    return outs


def said(out: str, word: str) -> list[str]:
    """The rest of each line that begins with the word."""
    return [line.removeprefix(word + " ") for line in out.splitlines() if line.startswith(word)]
