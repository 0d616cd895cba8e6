"""What the C library does with freed memory: on CPU, it decides a good part of a training step.

XLA allocates a step's buffers anew each time. glibc returns large ones to the system when they are
freed, and the next step pays for the same pages again: a fault and a page of zeros for every 4 KB,
138 000 of them in a step of 34M parameters on 4 x 256 tokens.
"""

from __future__ import annotations

import ctypes
import os
from glob import glob

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Options of `mallopt`, as <malloc.h> of glibc numbers them."""

_ACCELERATORS = ("/dev/nvidia[0-9]*", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*", "/dev/kfd")
"""What Linux calls GPUs and TPUs."""


def computes_on_cpu() -> bool:
    """Whether JAX will, as $JAX_PLATFORMS or else the devices say; JAX itself starts threads."""
    asked = os.environ.get("JAX_PLATFORMS")
    return asked == "cpu" if asked else not any(map(glob, _ACCELERATORS))


def keep_freed_memory() -> bool:
    """Keeps freed memory in the process, in one heap for all threads, and says whether it could.

    To be called before threads start, by a program that owns its process: the process will stay as
    large as it ever was, and may become larger than it would have, since a heap has gaps.
    Without glibc it changes nothing.
    """
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - other C libraries number options otherwise
        options = (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_ARENA_MAX, 1)
        return all([library.mallopt(*option) for option in options])
    except (AttributeError, OSError, TypeError):
        return False
