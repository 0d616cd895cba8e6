"""Copies between views: equal to NumPy's assignment for any strides and types."""

from __future__ import annotations

import platform
import re
import resource
from concurrent.futures import ThreadPoolExecutor

import ml_dtypes
import numpy as np
import pytest

from zoo.hf import strided

LINUX = platform.system() == "Linux" and re.match(r"(\d+)\.(\d+)", platform.release())
POPULATES = LINUX and tuple(map(int, LINUX.groups())) >= (5, 14)


def view(rng, shape, dtype):
    """A random array of `shape` whose axes lie in memory in random order, with gaps."""
    order = rng.permutation(len(shape))
    wide = [shape[i] + int(rng.integers(0, 3)) for i in order]
    base = rng.normal(size=wide).astype(dtype).transpose(np.argsort(order))
    return base[tuple(slice(0, n) for n in shape)]


@pytest.mark.parametrize("to", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_any_strides(rng, to):
    for _ in range(200):
        shape = tuple(rng.choice([1, 2, 3, 7, 33], rng.integers(1, 5)))
        src, dst = view(rng, shape, ml_dtypes.bfloat16), view(rng, shape, to)
        strided.copy(dst, src)
        np.testing.assert_array_equal(dst.astype(np.float32), src.astype(to).astype(np.float32))


@pytest.mark.parametrize("shape", [(1100, 700), (3, 600, 520), (2048, 33)])
def test_across_tiles(rng, shape):
    src = rng.normal(size=shape).astype(np.float32)
    dst = np.zeros(shape[::-1], np.float32)
    for pair in strided.pieces(dst, src.T, most=1 << 18):
        strided.copy(*pair)
    np.testing.assert_array_equal(dst, src.T)


def test_shapes_must_agree():
    with pytest.raises(ValueError, match=r"\[2, 3\] into \[3, 2\]"):
        strided.copy(np.zeros((3, 2)), np.zeros((2, 3)))


def test_buffers_are_aligned():
    assert all(strided.empty((n, 3), np.float16).ctypes.data % 64 == 0 for n in range(1, 40))


@pytest.mark.skipif(not POPULATES, reason="Linux gets pages ahead since 5.14")
def test_pages_are_there_before_they_are_written_to():
    with ThreadPoolExecutor(2) as pool:
        array = strided.empty((1 << 12, 1 << 12), np.dtype(np.uint8), pool)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array[...] = 1
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert array.all()
    assert faults < array.nbytes // resource.getpagesize() // 10
