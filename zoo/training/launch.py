"""Flags by which the processes of several hosts find each other, of `train.py` and `eval.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from absl import flags

from zoo.training.flags import fail

COORDINATOR = flags.DEFINE_string(
    "coordinator", None,
    "address:port of process 0 where several processes work together, or 'auto' on Cloud TPU VMs.",
)  # fmt: skip
PROCESSES = flags.DEFINE_integer("processes", None, "How many, beside --coordinator=address:port.")
PROCESS = flags.DEFINE_integer("process", None, "Which of them this one is, from 0.")


@contextmanager
def joined() -> Iterator[None]:
    """Within it this process works with those that flags or a launcher name, to the same end."""
    from zoo import hosts

    with hosts.one_fate():
        try:
            hosts.start(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        except (ValueError, RuntimeError) as e:
            fail(e, status=2)
        yield
