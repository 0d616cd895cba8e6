"""Flags by which the processes of several hosts find each other, of `train.py` and `eval.py`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from absl import flags

from zoo.options import HOSTS, define
from zoo.training.flags import fail

define(flags, HOSTS)


@contextmanager
def joined() -> Iterator[None]:
    """Within it this process works with those that flags or a launcher name, to the same end."""
    from zoo import hosts

    with hosts.one_fate():
        try:
            hosts.start(*(flags.FLAGS[option.name].value for option in HOSTS))
        except (ValueError, RuntimeError) as e:
            fail(e, status=2)
        yield
