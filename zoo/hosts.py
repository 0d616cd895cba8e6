"""Several processes as one program: `jax.distributed`, and what only one of them does.

Every process runs the same program over the devices of all. SLURM, GKE, Open MPI and Cloud TPU are
recognised by JAX itself; elsewhere each process is told the coordinator's address, how many there
are, and which it is.

A process that is killed ends the others: a collective that waits for it fails at once where its
connection is seen to break, and JAX's heartbeats end whoever still waits after `TIMEOUT`.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import NoReturn

import jax
import numpy as np

TIMEOUT = 60
"""Seconds without a heartbeat after which a process is given up, and all others end."""

START_TIMEOUT = 300
"""Seconds that processes wait for each other at the start."""

PIECE, HEADER = 4096, 8
"""Bytes of a piece of a message, and those at its beginning that say how long the message is."""

AUTO = "auto"
"""The coordinator where JAX is to find the others, on a machine that `is_cluster` cannot tell."""


def start(
    coordinator: str | None = None, processes: int | None = None, process: int | None = None
) -> None:
    """Joins the other processes, if there are any. Comes before anything that asks for devices.

    Args:
        coordinator: "address:port" of process 0, or `AUTO`; None looks at the environment.
        processes: how many there are; with an address only.
        process: which of them this is, from 0.

    Raises:
        ValueError: the three do not fit together.
        RuntimeError: the others did not come within `START_TIMEOUT`.
    """
    found = coordinator == AUTO or (coordinator is None and is_cluster(os.environ))
    known = [x is not None for x in (processes, process)]
    if coordinator in (None, AUTO) and any(known):
        raise ValueError("processes and process need coordinator='address:port' of process 0")
    if coordinator is None and not found:
        return
    if not found:
        if not all(known):
            raise ValueError(f"coordinator={coordinator!r} needs processes and process too")
        if not 0 <= process < processes:
            raise ValueError(f"process={process} must be from 0 to {processes - 1}")
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        None if found else coordinator, processes, process,
        initialization_timeout=START_TIMEOUT, heartbeat_timeout_seconds=TIMEOUT,
    )  # fmt: skip


def is_cluster(environ: Mapping[str, str]) -> bool:
    """Whether a launcher says that it started several processes (SLURM, Open MPI, GKE's TPUs)."""
    count = environ.get("SLURM_NTASKS" if "SLURM_STEP_NODELIST" in environ else "", "1")
    count = environ.get("OMPI_COMM_WORLD_SIZE", count)
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    return count not in ("", "1") or "," in hosts or "MEGASCALE_COORDINATOR_ADDRESS" in environ


def is_first() -> bool:
    """Whether this process is the one that writes what all know."""
    return jax.process_index() == 0


def is_turn(number: int) -> bool:
    """Whether the piece of work of this number is this process's, of those that all share."""
    return number % jax.process_count() == jax.process_index()


def share() -> dict[str, int]:
    """Which part of every batch this process reads, as `zoo.data` asks for it."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def meet(name: str) -> None:
    """Returns when all processes have come to the place of this name."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def agree(value: int) -> int:
    """The first process's value, for all."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def tell(message: bytes | None) -> bytes:
    """The first process's message, for all; the others give None.

    It goes in pieces of one size, so that one program serves all of them.
    """
    if jax.process_count() == 1:
        return message
    from jax.experimental import multihost_utils

    def piece(start: int) -> np.ndarray:
        part = np.zeros(PIECE, np.uint8)
        known = framed[start : start + PIECE]
        part[: len(known)] = np.frombuffer(known, np.uint8)
        return np.asarray(multihost_utils.broadcast_one_to_all(part), np.uint8)

    framed = b"" if message is None else len(message).to_bytes(HEADER, "little") + message
    got = piece(0).tobytes()
    size = HEADER + int.from_bytes(got[:HEADER], "little")
    while len(got) < size:
        got += piece(len(got)).tobytes()
    return got[HEADER:size]


def largest(value: int) -> int:
    """The largest of all processes' values, for all."""
    if jax.process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    return int(multihost_utils.process_allgather(np.int32(value)).max())


def gathered(x: jax.Array | np.ndarray) -> np.ndarray:
    """The whole of an array, on every host. All processes ask for the same arrays in turn."""
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(x, tiled=True)


@contextmanager
def one_fate() -> Iterator[None]:
    """Within it, an error of one process ends it at once, so that the others notice.

    An ordinary exit would first wait for all to arrive, and those that wait in a collective never
    do. `SystemExit` goes through the same door with its status.
    """
    try:
        yield
    except SystemExit as e:
        if jax.process_count() == 1 or not e.code:
            raise
        _leave(e.code if isinstance(e.code, int) else 1)
    except BaseException as e:
        if jax.process_count() == 1:
            raise
        traceback.print_exc()
        here = f"process {jax.process_index()} of {jax.process_count()}"
        print(
            f"error: {here} ends: {_reason(e)}. If another one went first, its output says why. "
            "The same command on all hosts begins again, and training from its last checkpoint",
            file=sys.stderr,
        )
        _leave(1)


def _reason(error: BaseException) -> str:
    """The first line of what an error says, or its kind."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _leave(status: int) -> NoReturn:
    for file in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            file.flush()
    os._exit(status)
