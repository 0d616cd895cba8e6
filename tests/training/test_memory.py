"""Freed memory stays with the process that asks for that."""

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from zoo.training.memory import keep_freed_memory

C = ctypes.CDLL(None)
C.malloc.restype = C.memset.restype = ctypes.c_void_p
SIZE = ctypes.c_size_t(1 << 24)

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = ctypes.c_void_p(C.malloc(SIZE))
    C.memset(block, 1, SIZE)
    C.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

if sys.argv[1] == "keep":
    assert keep_freed_memory()
pages()
print(pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is an option of glibc")
def test_only_a_process_that_keeps_freed_memory_uses_it_again():
    keeps, returns = (_pages_of_second_block(how) for how in ("keep", "return"))
    assert 10 * keeps < returns


def _pages_of_second_block(how: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)
